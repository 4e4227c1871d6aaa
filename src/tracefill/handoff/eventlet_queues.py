"""eventlet's queues: see queues.py. Opt-in, with `install(queues=True)`.

import tracefill
tracefill.install(queues=True)
jobs = eventlet.Queue()
"""

from __future__ import annotations

from tracefill.handoff.items import getter, putter, stands_between
from tracefill.wrapping import Patches

LIBRARIES = ("eventlet",)
OPT_IN = "queues"

_patches = Patches()


def patch() -> None:
    import eventlet.queue

    stands_between(eventlet.queue.LightQueue)
    _patches.wrap(eventlet.queue.LightQueue, "put", putter)
    _patches.wrap(eventlet.queue.LightQueue, "get", getter)


def unpatch() -> None:
    _patches.undo()
