"""The standard library's `sched`: an event runs in the context in which it was entered, whoever calls `run()`.

import tracefill
tracefill.install(only=["sched"])
scheduler.enter(5, 1, work)     # `work` sees the span of now
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tracefill.handoff.carried import once
from tracefill.wrapping import Patches

LIBRARIES = ("sched",)

_patches = Patches()


def _enterabs(original: Callable[..., Any]) -> Callable[..., Any]:
    def enterabs(self: Any, time: Any, priority: Any, action: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, time, priority, once(action), *args, **kwargs)

    return enterabs


def patch() -> None:
    import sched

    _patches.wrap(sched.scheduler, "enterabs", _enterabs)


def unpatch() -> None:
    _patches.undo()
