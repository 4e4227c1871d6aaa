"""gevent: a greenlet runs in the context in which it was started, at once or later, alone or by a pool.

    import tracefill
    tracefill.install(only=["gevent"])
    gevent.spawn(work)                      # `work` sees the span of now
    gevent.get_hub().threadpool.spawn(work) # so does this, in a thread

gevent 20.9 and later, monkey-patched or not. A greenlet that is a worker (see workers.py) carries nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tracefill.context import current
from tracefill.handoff.carried import once, variables_with
from tracefill.handoff.workers import is_worker
from tracefill.wrapping import Patches

LIBRARIES = ("gevent",)

_patches = Patches()


def _spawned(greenlet: Any) -> None:
    here = current()
    if here and not is_worker(greenlet._run):
        greenlet.gr_context = variables_with(here)


def _spawn_in_thread(original: Callable[..., Any]) -> Callable[..., Any]:
    def spawn(self: Any, func: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, once(func), *args, **kwargs)

    return spawn


def _spawn_raw(original: Callable[..., Any]) -> Callable[..., Any]:
    def spawn_raw(function: Any, *args: Any, **kwargs: Any) -> Any:
        here = current()
        carried = here and callable(function) and not is_worker(function)
        return original(once(function) if carried else function, *args, **kwargs)

    return spawn_raw


class _Carried:
    """A callback of a greenlet that runs in the context of now, and passes for the callback itself when that is taken out again."""

    __slots__ = ("callback", "run")

    def __init__(self, callback: Callable[..., Any]) -> None:
        self.callback = callback
        self.run = once(callback)

    def __call__(self, source: Any) -> Any:
        return self.run(source)

    def __eq__(self, other: object) -> bool:
        return bool(self.callback == getattr(other, "callback", other))

    def __hash__(self) -> int:
        return hash(self.callback)


def _link(original: Callable[..., Any]) -> Callable[..., Any]:
    def link(self: Any, callback: Any, *args: Any, **kwargs: Any) -> Any:
        carried = callable(callback) and not isinstance(callback, _Carried)
        return original(self, _Carried(callback) if carried else callback, *args, **kwargs)

    return link


def patch() -> None:
    import gevent.hub
    import gevent.threadpool

    gevent.Greenlet.add_spawn_callback(_spawned)
    _patches.wrap(gevent.threadpool.ThreadPool, "spawn", _spawn_in_thread)
    for name in ("link", "link_value", "link_exception"):
        _patches.wrap(gevent.Greenlet, name, _link)
    for module in (gevent, gevent.hub):
        _patches.wrap(module, "spawn_raw", _spawn_raw)


def unpatch() -> None:
    import gevent

    gevent.Greenlet.remove_spawn_callback(_spawned)
    _patches.undo()
