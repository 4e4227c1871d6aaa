"""How the tasks of an event loop begin: what `asyncio` and `uvloop` share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from tracefill import _codec
from tracefill.context import current, scope
from tracefill.handoff.carried import NOTHING, begin, end
from tracefill.handoff.workers import TICKS, loop_of

__all__ = ["create_task"]


def create_task(original: Callable[..., Any]) -> Callable[..., Any]:
    """`loop.create_task` for a loop whose method this was."""

    def create_task(self: Any, coro: Any, **kwargs: Any) -> Any:
        here = current()
        if not here or kwargs.get("context") is not None:
            return original(self, coro, **kwargs)
        if inspect.iscoroutine(coro) and loop_of(coro.cr_code) == TICKS:
            with scope(NOTHING):
                return original(self, coro, **kwargs)
        token = begin(here)
        try:
            if (
                _codec.generators_hold()
            ):  # the task copies the variables, and would take what is hidden in them for its own
                with scope(here):
                    return original(self, coro, **kwargs)
            return original(self, coro, **kwargs)
        finally:
            end(token)

    return create_task
