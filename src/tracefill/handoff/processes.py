"""Work that other processes do: `multiprocessing` and `concurrent.futures.ProcessPoolExecutor`, by fork, spawn and forkserver.

    pool.submit(work, order)            # `work` runs in the context of now, in whichever process
    Process(target=work).start()        # so does this

Each job runs in the context of whoever submitted it. A worker (of a pool, or see `workers.py`) belongs to nobody: it is started
in no context, also where it is forked in the middle of a request. A process that is spawned switches on what is on here before
its work begins.
"""

from __future__ import annotations

import concurrent.futures.process
import multiprocessing.pool
import multiprocessing.process
from collections.abc import Callable, Iterable
from typing import Any

from tracefill.context import scope
from tracefill.handoff.carried import NOTHING, begin
from tracefill.handoff.workers import is_worker
from tracefill.snapshots import Snapshot, bind, snapshot
from tracefill.wrapping import Patches

__all__ = ["patch", "unpatch"]

#: Pickled along with a process; unpickling it there switches on what is on here. Given by `tracefill.patches`.
same_as_here: object = None

# Whose processes wait for one job after the other.
_OF_WORKERS = ("concurrent.futures.process", "multiprocessing.pool", "multiprocessing.managers")
_CARRIED = "_tracefill"

_patches = Patches()


def _bound(fn: Any) -> Any:
    """The callable for the far side; what cannot be called fails where it would have failed."""
    return bind(fn) if callable(fn) and not isinstance(fn, _Bound) else fn


_Bound: Any = type(bind(len))


# ------------------------------------------------------------------------------------------------------------- processes


def _start(original: Any) -> Any:
    def start(self: Any) -> None:
        here = None if _is_worker(self) else snapshot()
        vars(self)[_CARRIED] = here, same_as_here
        try:
            original(self)
        finally:
            vars(self).pop(_CARRIED, None)

    return start


def _is_worker(process: Any) -> bool:
    target = getattr(process, "_target", None)
    return getattr(target, "__module__", None) in _OF_WORKERS or is_worker(process.run) or is_worker(target)


def _bootstrap(original: Any) -> Any:
    def _bootstrap(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _CARRIED not in vars(self):
            return original(self, *args, **kwargs)
        here: Snapshot | None = vars(self).pop(_CARRIED)[0]
        context = here.to_context() if here is not None else NOTHING
        begin(context)
        with scope(context):
            return original(self, *args, **kwargs)

    return _bootstrap


# ----------------------------------------------------------------------------------------------------------------- pools


def _submit(original: Any) -> Any:
    def submit(self: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        return original(self, _bound(fn), *args, **kwargs)

    return submit


def _map(original: Any) -> Any:
    def map(self: Any, fn: Any, *iterables: Any, **kwargs: Any) -> Any:
        # With `buffersize` (3.14) most of the jobs are submitted later, while somebody reads the results.
        later = kwargs.get("buffersize") is not None
        return original(self, _bound(fn) if later else fn, *iterables, **kwargs)

    return map


def _apply_async(original: Any) -> Any:
    def apply_async(
        self: Any, func: Any, args: Any = (), kwds: Any = None, callback: Any = None, error_callback: Any = None
    ) -> Any:
        kwds = {} if kwds is None else kwds
        if isinstance(self, multiprocessing.pool.ThreadPool):
            return original(self, func, args, kwds, callback, error_callback)
        return original(self, _bound(func), args, kwds, _bound(callback), _bound(error_callback))

    return apply_async


def _map_async(original: Any) -> Any:
    def _map_async(
        self: Any,
        func: Any,
        iterable: Any,
        mapper: Any,
        chunksize: Any = None,
        callback: Any = None,
        error_callback: Any = None,
    ) -> Any:
        if isinstance(self, multiprocessing.pool.ThreadPool):
            return original(self, func, iterable, mapper, chunksize, callback, error_callback)
        return original(self, _bound(func), iterable, mapper, chunksize, _bound(callback), _bound(error_callback))

    return _map_async


def _imap(original: Any) -> Any:
    def imap(self: Any, func: Any, iterable: Any, chunksize: int = 1) -> Any:
        if isinstance(self, multiprocessing.pool.ThreadPool):
            return original(self, func, iterable, chunksize)
        return original(self, _bound(func), _read_here(iterable), chunksize)

    return imap


def _read_here(iterable: Iterable[Any]) -> Iterable[Any]:
    """A generator that a thread of the pool will read runs in the context of now, not in that thread's."""
    advance: Callable[[], Any] | None = getattr(iterable, "__next__", None)
    return iterable if advance is None else iter(bind(advance), object())


def patch() -> None:
    process = multiprocessing.process.BaseProcess
    _patches.wrap(process, "start", _start)
    _patches.wrap(process, "_bootstrap", _bootstrap)
    executor = concurrent.futures.process.ProcessPoolExecutor
    _patches.wrap(executor, "submit", _submit)
    _patches.wrap(executor, "map", _map)
    pool = multiprocessing.pool.Pool
    _patches.wrap(pool, "apply_async", _apply_async)
    _patches.wrap(pool, "_map_async", _map_async)
    _patches.wrap(pool, "imap", _imap)
    _patches.wrap(pool, "imap_unordered", _imap)


def unpatch() -> None:
    _patches.undo()
