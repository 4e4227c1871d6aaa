"""Greenlets as the greenlet package makes them: one begins with the context in which it was made.

    import tracefill
    tracefill.install(only=["greenlet"])
    greenlet.greenlet(work).switch()    # `work` sees the span of now

greenlet 1.0 and later. Covers what is built on plain greenlets, too; `gevent` and `eventlet` have modules of their own for the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

from tracefill.context import current
from tracefill.handoff.carried import variables_with
from tracefill.handoff.workers import is_library, is_worker
from tracefill.wrapping import Patches

LIBRARIES = ("greenlet",)

_patches = Patches()


def _init(original: Callable[..., Any]) -> Callable[..., Any]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        run = args[0] if args else kwargs.get("run") or _own_run(type(self))
        # Some keep this method when it is patched no more.
        here = current() if run is not None and _patches.active else None
        if here and not is_worker(run):
            self.gr_context = variables_with(here)

    return __init__


def _own_run(kind: type) -> Any:
    """The `run` of a class of the program. A library that derives classes from greenlets starts them for others, too."""
    run = getattr(kind, "run", None)
    return run if isinstance(run, FunctionType) and not is_library(run.__code__) else None


def patch() -> None:
    import greenlet

    _patches.wrap(greenlet.greenlet, "__init__", _init)


def unpatch() -> None:
    _patches.undo()
