"""How the tasks of an event loop begin: what `asyncio` and `uvloop` share."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from types import CoroutineType
from typing import Any

from tracefill import _codec
from tracefill.context import current, scope
from tracefill.handoff.carried import NOTHING, begin, end
from tracefill.handoff.workers import TICKS, loop_of

__all__ = ["CONTRIB", "create_task", "plain_coroutine"]

#: How the name of the file ends whose coroutines contrib puts around those of the program.
CONTRIB = os.path.join("opentelemetry", "instrumentation", "asyncio", "__init__.py")


def create_task(original: Callable[..., Any]) -> Callable[..., Any]:
    """`loop.create_task` for a loop whose method this was."""

    def create_task(self: Any, coro: Any, **kwargs: Any) -> Any:
        here = current()
        if not here or kwargs.get("context") is not None:
            return original(self, coro, **kwargs)
        if _ticks(coro):
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


def _ticks(coro: Any) -> bool:
    plain = plain_coroutine(coro)
    return plain is not None and loop_of(plain.cr_code) == TICKS


def plain_coroutine(coro: Any) -> CoroutineType[Any, Any, Any] | None:
    """The coroutine, without the one that contrib's instrumentation of asyncio puts around it; None for what is none."""
    while inspect.iscoroutine(coro):
        if not coro.cr_code.co_filename.endswith(CONTRIB) or coro.cr_frame is None:
            return coro
        coro = coro.cr_frame.f_locals.get("coro")
    return None
