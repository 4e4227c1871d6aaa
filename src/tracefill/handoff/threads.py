"""Threads and thread pools: the context of the job, never of the thread that happens to run it.

    import tracefill
    tracefill.install(only=["threads"])
    threading.Thread(target=work).start()       # `work` sees the starter's span, however late it runs
    pool.submit(work)                           # so does this, whoever made the pool start its threads

CPython 3.10 and later; `Thread` and its subclasses with a `run()` of their own, `Timer`, `_thread.start_new_thread`,
`ThreadPoolExecutor`, `multiprocessing.pool.ThreadPool`, callbacks of futures. A thread that is a worker (see `workers.py`: a
periodic loop, a queue's worker, a scheduler, a server) carries nothing. A `Timer` is a job each time that it fires.

Signal handlers, `weakref.finalize` and `atexit` stay as they are: the first two interrupt what runs, and see its context; the
last belongs to nobody.
"""

from __future__ import annotations

import _thread
import concurrent.futures
import multiprocessing.pool
import sys
import threading
from collections.abc import Callable
from typing import Any

from tracefill.context import current, scope
from tracefill.handoff.carried import NOTHING, begin, once
from tracefill.handoff.workers import is_worker
from tracefill.snapshots import Snapshot, bind, snapshot
from tracefill.wrapping import Patches

LIBRARIES = ()

_patches = Patches()


# --------------------------------------------------------------------------------------------------------------- threads


def _start(original: Callable[..., Any]) -> Callable[..., Any]:
    def start(self: threading.Thread) -> None:
        if not current() or _has_variables_of_its_own(self):
            original(self)
            return
        # What contrib's instrumentation has noted, which would glue a worker to its starter for life.
        vars(self).pop("_otel_context", None)
        if _runs_a_worker(self):
            with scope(NOTHING):
                original(self)
        else:
            _start_a_job(original, self)

    return start


def _start_a_job(original: Callable[..., Any], thread: threading.Thread) -> None:
    own_run = vars(thread).get("run")
    here = snapshot()
    vars(thread)["run"] = _carried(thread, own_run, here)
    try:
        original(thread)
    except BaseException:
        _put_back(thread, own_run)
        here.release()
        raise


def _carried(thread: threading.Thread, own_run: Any, here: Snapshot) -> Callable[[], None]:
    """The thread's `run` for as long as it takes to begin it: so it is carried in subclasses that override it, too."""

    def run() -> None:
        _put_back(thread, own_run)
        context = here.to_context()
        begin(context)
        try:
            with scope(context):
                thread.run()
        finally:
            here.release()

    return run


def _put_back(thread: threading.Thread, own_run: Any) -> None:
    if own_run is None:
        vars(thread).pop("run", None)
    else:
        vars(thread)["run"] = own_run


def _runs_a_worker(thread: threading.Thread) -> bool:
    if isinstance(thread, threading.Timer):
        return is_worker(thread.function)
    return is_worker(thread.run) or is_worker(getattr(thread, "_target", None))


def _has_variables_of_its_own(thread: threading.Thread) -> bool:
    return sys.version_info >= (3, 14) and getattr(thread, "_context", None) is not None


def _start_new_thread(original: Callable[..., Any]) -> Callable[..., Any]:
    def start_new_thread(function: Any, *args: Any) -> Any:
        if not current():
            return original(function, *args)
        if is_worker(function):
            with scope(NOTHING):
                return original(function, *args)
        return original(once(function), *args)

    return start_new_thread


# ------------------------------------------------------------------------------------------------------ pools and futures


def _bound(function: Any) -> Any:
    """The callable for the far side; what cannot be called fails where it would have failed."""
    return bind(function) if callable(function) else function


def _submit(original: Callable[..., Any]) -> Callable[..., Any]:
    def submit(self: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        bound = bind(fn) if callable(fn) else fn
        if args or kwargs:
            return original(self, bound, *args, **kwargs)
        return original(self, bound)  # to pass on what is empty would cost as much as to carry the context

    return submit


def _add_done_callback(original: Callable[..., Any]) -> Callable[..., Any]:
    def add_done_callback(self: Any, fn: Any) -> Any:
        return original(self, once(fn))

    return add_done_callback


def _apply_async(original: Callable[..., Any]) -> Callable[..., Any]:
    def apply_async(
        self: Any, func: Any, args: Any = (), kwds: Any = None, callback: Any = None, error_callback: Any = None
    ) -> Any:
        kwds = {} if kwds is None else kwds
        return original(self, _bound(func), args, kwds, once(callback), once(error_callback))

    return apply_async


def _map_async(original: Callable[..., Any]) -> Callable[..., Any]:
    def _map_async(
        self: Any,
        func: Any,
        iterable: Any,
        mapper: Any,
        chunksize: Any = None,
        callback: Any = None,
        error_callback: Any = None,
    ) -> Any:
        return original(self, _bound(func), iterable, mapper, chunksize, once(callback), once(error_callback))

    return _map_async


def _imap(original: Callable[..., Any]) -> Callable[..., Any]:
    def imap(self: Any, func: Any, iterable: Any, chunksize: int = 1) -> Any:
        if hasattr(iterable, "__next__"):  # a thread of the pool will read it
            iterable = iter(bind(iterable.__next__), NOTHING)
        return original(self, _bound(func), iterable, chunksize)

    return imap


def patch() -> None:
    _patches.wrap(threading.Thread, "start", _start)
    if "start" in vars(threading.Timer):  # contrib's, which holds the method that was there before ours
        _patches.wrap(threading.Timer, "start", _start)
    _patches.wrap(_thread, "start_new_thread", _start_new_thread)
    executor = concurrent.futures.ThreadPoolExecutor
    if sys.version_info >= (
        3,
        14,
    ):  # its jobs are pickled for another interpreter, where compiled modules like ours may not run
        _patches.replace(concurrent.futures.InterpreterPoolExecutor, "submit", executor.submit)
    _patches.wrap(executor, "submit", _submit)
    _patches.wrap(concurrent.futures.Future, "add_done_callback", _add_done_callback)
    pool = multiprocessing.pool.ThreadPool
    _patches.wrap(pool, "apply_async", _apply_async)
    _patches.wrap(pool, "_map_async", _map_async)
    _patches.wrap(pool, "imap", _imap)
    _patches.wrap(pool, "imap_unordered", _imap)


def unpatch() -> None:
    _patches.undo()
