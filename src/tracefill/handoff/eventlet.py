"""eventlet: a green thread runs in the context in which it was spawned, hop after hop.

    import tracefill
    tracefill.install(only=["eventlet"])
    eventlet.spawn(work)                # `work` sees the span of now
    pool.spawn_n(work)                  # GreenPool, GreenPile, spawn_n and spawn_after likewise
    tpool.execute(work)                 # and native threads

eventlet 0.33 and later, monkey-patched or not. A green thread that is a worker (see workers.py) carries nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tracefill.context import current, scope
from tracefill.handoff.carried import NOTHING, once, variables_with
from tracefill.handoff.workers import is_worker
from tracefill.wrapping import Patches

LIBRARIES = ("eventlet",)

_patches = Patches()


def _init(original: Callable[..., Any]) -> Callable[..., Any]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        here = current()
        if here:
            self.gr_context = variables_with(here)

    return __init__


def _spawn(original: Callable[..., Any]) -> Callable[..., Any]:
    def spawn(func: Any, *args: Any, **kwargs: Any) -> Any:
        if not current() or not is_worker(func):
            return original(func, *args, **kwargs)
        with scope(NOTHING):
            return original(func, *args, **kwargs)

    return spawn


def _spawn_after(original: Callable[..., Any]) -> Callable[..., Any]:
    def spawn_after(seconds: Any, func: Any, *args: Any, **kwargs: Any) -> Any:
        return _spawn(lambda func, *args, **kwargs: original(seconds, func, *args, **kwargs))(func, *args, **kwargs)

    return spawn_after


def _spawn_n(original: Callable[..., Any]) -> Callable[..., Any]:
    """`spawn_n` makes a plain greenlet, which has no class of eventlet's."""

    def spawn_n(func: Any, *args: Any, **kwargs: Any) -> Any:
        carried = current() and callable(func) and not is_worker(func)
        return original(once(func) if carried else func, *args, **kwargs)

    return spawn_n


def _pool_spawn_n(original: Callable[..., Any]) -> Callable[..., Any]:
    """Which passes a method of its own to `spawn_n`, that would hide a worker."""

    def spawn_n(self: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        if not current() or not is_worker(function):
            return original(self, function, *args, **kwargs)
        with scope(NOTHING):
            return original(self, function, *args, **kwargs)

    return spawn_n


def _execute(original: Callable[..., Any]) -> Callable[..., Any]:
    def execute(meth: Any, *args: Any, **kwargs: Any) -> Any:
        return original(once(meth), *args, **kwargs)

    return execute


def patch() -> None:
    import eventlet
    import eventlet.greenthread
    import eventlet.tpool

    _patches.wrap(eventlet.greenthread.GreenThread, "__init__", _init)
    for module in (eventlet, eventlet.greenthread):
        _patches.wrap(module, "spawn", _spawn)
        _patches.wrap(module, "spawn_n", _spawn_n)
        _patches.wrap(module, "spawn_after", _spawn_after)
    _patches.wrap(eventlet.greenthread, "spawn_after_local", _spawn_after)
    _patches.wrap(eventlet.GreenPool, "spawn_n", _pool_spawn_n)
    _patches.wrap(eventlet.tpool, "execute", _execute)


def unpatch() -> None:
    _patches.undo()
