"""gevent's queues and channels: see queues.py. Opt-in, with `install(queues=True)`.

import tracefill
tracefill.install(queues=True)
jobs = gevent.queue.Queue()
"""

from __future__ import annotations

from tracefill.handoff.items import getter, putter
from tracefill.wrapping import Patches

LIBRARIES = ("gevent",)
OPT_IN = "queues"

_patches = Patches()


def patch() -> None:
    import gevent.queue

    for kind in (gevent.queue.SimpleQueue, gevent.queue.Channel):
        for name in ("put", "put_nowait"):
            _patches.wrap(kind, name, putter)
        for name in ("get", "get_nowait", "__next__"):
            _patches.wrap(kind, name, getter)
    _patches.wrap(gevent.queue.UnboundQueue, "put", putter)


def unpatch() -> None:
    _patches.undo()
