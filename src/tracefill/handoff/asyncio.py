"""Tasks of asyncio: carried by Python itself, and here kept from those that should carry nothing.

    import tracefill
    tracefill.install(only=["asyncio"])
    asyncio.create_task(handle(order))      # continues the request, as it always did
    asyncio.create_task(tick_for_ever())    # a periodic loop does not (see workers.py)

A task that waits for one item after the other is its starter's while the starter's span is open, and nobody's after that. With
`install(queues=True)` it takes on the context of each item. CPython 3.10 and later; anyio's tasks are these; `uvloop` likewise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tracefill.handoff.carried import forget_what_is_over
from tracefill.handoff.items import stands_between, taken_by_library
from tracefill.handoff.tasks import create_task
from tracefill.wrapping import Patches

LIBRARIES = ("asyncio",)

_patches = Patches()


def _get_nowait(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_nowait(self: Any) -> Any:
        item = original(self)
        if not taken_by_library(sys._getframe(1)):
            forget_what_is_over()
        return item

    return get_nowait


def patch() -> None:
    import asyncio

    stands_between(asyncio.Queue)
    _patches.wrap(asyncio.BaseEventLoop, "create_task", create_task)
    _patches.wrap(asyncio.Queue, "get_nowait", _get_nowait)


def unpatch() -> None:
    _patches.undo()
