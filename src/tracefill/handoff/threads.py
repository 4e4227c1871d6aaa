"""Threads and thread pools: the context of the job, never of the thread that happens to run it.

    import tracefill
    tracefill.install(only=["threads"])
    threading.Thread(target=work).start()       # `work` sees the starter's span
    pool.submit(work)                           # so does this, whoever started the pool's threads

CPython 3.10 and later. Covers subclasses that override `run()`, timers, `map`, initialisers and futures' callbacks.
"""

from __future__ import annotations

import concurrent.futures.thread
import threading
from collections.abc import Callable
from typing import Any

from opentelemetry.context import Context

import tracefill
from tracefill.context import current, scope
from tracefill.wrapping import Patches

LIBRARIES = ()

_patches = Patches()
_NOTHING = Context()


def _start(original: Callable[..., Any]) -> Callable[..., Any]:
    def start(self: threading.Thread) -> None:
        if current():
            self.run = tracefill.bind(self.run)  # type: ignore[method-assign]
        original(self)

    return start


def _submit(original: Callable[..., Any]) -> Callable[..., Any]:
    def submit(self: Any, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return original(self, tracefill.bind(fn) if current() else fn, *args, **kwargs)

    return submit


def _with_nothing(original: Callable[..., Any]) -> Callable[..., Any]:
    """A pool's threads belong to nobody's job, whoever's job made the pool start them."""

    def start_workers(self: Any) -> Any:
        with scope(_NOTHING):
            return original(self)

    return start_workers


def _add_done_callback(original: Callable[..., Any]) -> Callable[..., Any]:
    def add_done_callback(self: Any, fn: Callable[..., Any]) -> Any:
        return original(self, tracefill.bind(fn) if current() else fn)

    return add_done_callback


def patch() -> None:
    pool = concurrent.futures.thread.ThreadPoolExecutor
    _patches.wrap(threading.Thread, "start", _start)
    _patches.wrap(pool, "submit", _submit)
    _patches.wrap(pool, "_adjust_thread_count", _with_nothing)
    _patches.wrap(concurrent.futures.Future, "add_done_callback", _add_done_callback)


def unpatch() -> None:
    _patches.undo()
