"""Spans that ended are sent before the process does, however it leaves.

A TracerProvider sends what it holds from `atexit`, which neither `os._exit` runs (the children of multiprocessing, the work
horses of RQ) nor a signal (gRPC servers, uvicorn, the workers of a Pool) nor `os.execv`. Here they wait for it first, at most
`flush_timeout_s` (TRACEFILL_FLUSH_TIMEOUT_MS); a second SIGTERM does not wait.

    tracefill.handoff.exits.flush()     # True when all is sent

SIGTERM is taken only where nobody has it: a handler of yours, set before or after, stays alone.
"""

from __future__ import annotations

import _thread
import contextlib
import multiprocessing.process
import os
import signal
import sys
import threading
import time
from types import BuiltinFunctionType, FrameType
from typing import Any

from opentelemetry import trace

from tracefill.wrapping import Patches

__all__ = ["flush", "flush_timeout_s", "patch", "unpatch"]

flush_timeout_s = float(os.environ.get("TRACEFILL_FLUSH_TIMEOUT_MS") or 3000) / 1000

_patches = Patches()
_leaving = _terminated = False

_DEADLY = {
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGABRT", "SIGKILL")
    if hasattr(signal, name)
}


def flush(timeout_s: float | None = None) -> bool:
    """Has the global TracerProvider send what ended so far; False when that takes longer than `timeout_s`.

    >>> flush()
    True
    """
    force_flush = getattr(trace.get_tracer_provider(), "force_flush", None)
    if force_flush is None:
        return True
    # force_flush ignores its timeout, and a lock may be held by whoever was interrupted: so it has a thread of its own. Not
    # of `threading`, whose own locks are among those.
    done = _thread.allocate_lock()
    done.acquire()

    def send() -> None:
        with contextlib.suppress(Exception):  # an exporter's trouble must not keep a process from ending
            force_flush()
        done.release()

    try:
        _thread.start_new_thread(send, ())
    except RuntimeError:  # the interpreter is shutting down, and its atexit handlers send
        return False
    return done.acquire(timeout=flush_timeout_s if timeout_s is None else timeout_s)


def _leave() -> None:
    """Flushes, once: whoever could not wait the first time will not the second."""
    global _leaving
    if not _leaving:
        _leaving = True
        flush()


def _forget_leaving() -> None:
    global _leaving, _terminated
    _leaving = _terminated = False


def _before(original: Any) -> Any:
    def leave(*args: Any, **kwargs: Any) -> Any:
        _leave()
        try:
            return original(*args, **kwargs)
        finally:
            _forget_leaving()  # there was no such program to become

    return leave


def _kill(original: Any) -> Any:
    def kill(pid: int, sig: int, /) -> None:
        if pid == os.getpid() and _is_deadly(sig):
            _leave()
        original(pid, sig)

    return kill


def _raise_signal(original: Any) -> Any:
    def raise_signal(sig: int, /) -> None:
        if _is_deadly(sig):
            _leave()
        original(sig)

    return raise_signal


def _is_deadly(number: int) -> bool:
    return number in _DEADLY and signal.getsignal(number) is signal.SIG_DFL


def _terminate(number: int, frame: FrameType | None) -> None:
    """What SIGTERM does by default, after a flush. Where the process is leaving anyway, only a second one hurries it."""
    global _terminated
    if _leaving and (_reminded or not _terminated):
        _terminated = True
        return
    again, _terminated = _terminated, True
    if not (again or _leaving) and _shuts_down(frame):
        _terminate_later(number)
        return
    _leave()
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    signal.signal(number, _terminate)  # still here: the first process of a container outlives its signals
    _forget_leaving()


def _shuts_down(frame: FrameType | None) -> bool:
    """True when a TracerProvider is being shut down in this frame: it refuses to flush by then, and sends by itself."""
    while frame is not None:
        if frame.f_code.co_name == "shutdown" and str(frame.f_globals.get("__name__")).startswith("opentelemetry.sdk."):
            return True
        frame = frame.f_back
    return False


def _terminate_later(number: int) -> None:
    """Sends the signal once more when the main thread has shut its TracerProvider down."""
    global _leaving
    _leaving = True
    main = threading.main_thread().ident or 0
    deadline = time.monotonic() + flush_timeout_s

    def send() -> None:
        global _leaving, _reminded
        while _shuts_down(sys._current_frames().get(main)) and time.monotonic() < deadline:
            time.sleep(0.005)
        _leaving = _reminded = False
        os.kill(os.getpid(), number)

    with contextlib.suppress(RuntimeError):  # the interpreter is shutting down: the process is over soon anyway
        _thread.start_new_thread(send, ())


def _take_sigterm(free: Any, handler: Any) -> None:
    with contextlib.suppress(ValueError):  # only the main thread may
        if signal.getsignal(signal.SIGTERM) is free:
            signal.signal(signal.SIGTERM, handler)


# ------------------------------------------------------------------------------------------------- what Python loses
#
# Python runs a handler between two bytecodes of the main thread, so a signal is lost that comes within a fork, and waits when
# it comes just before the main thread does. A plain process would have died of both: `Process.terminate()`, and the join that
# follows, must not depend on it.

_masks: dict[int, set[signal.Signals | int]] = {}


def _hold_sigterm() -> None:
    if signal.getsignal(signal.SIGTERM) is _terminate:
        _masks[_thread.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _let_sigterm() -> None:
    mask = _masks.pop(_thread.get_ident(), None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _in_child() -> None:
    global _wakeup, _reminded
    _forget_leaving()
    _reminded = False
    if _wakeup is not None:  # its other end is the parent's
        signal.set_wakeup_fd(-1)
        os.close(_wakeup)
        _wakeup = None
    _let_sigterm()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold_sigterm, after_in_parent=_let_sigterm, after_in_child=_in_child)

_wakeup: int | None = None
_reminded = False


def _bootstrap(original: Any) -> Any:
    def _bootstrap(self: Any, *args: Any, **kwargs: Any) -> Any:
        _watch()
        return original(self, *args, **kwargs)

    return _bootstrap


def _watch() -> None:
    """In a child of multiprocessing: sees to it that SIGTERM reaches the main thread, and ends the process where it cannot."""
    global _wakeup
    start = getattr(_thread.start_new_thread, "__wrapped__", _thread.start_new_thread)
    if not isinstance(start, BuiltinFunctionType) or not hasattr(signal, "pthread_kill"):
        return  # gevent's or eventlet's threads would wait for all of them
    if signal.getsignal(signal.SIGTERM) is _terminate and _wakeup is None:
        read, _wakeup = os.pipe()
        os.set_blocking(_wakeup, False)
        signal.set_wakeup_fd(_wakeup, warn_on_full_buffer=False)
        start(_pass_on, (read,))


def _pass_on(read: int) -> None:
    while number := os.read(read, 1):
        if number[0] == signal.SIGTERM and not _arrives():
            flush()
            os.kill(os.getpid(), signal.SIGKILL)


def _arrives() -> bool:
    """False when the main thread is in the middle of something that no signal interrupts."""
    global _reminded
    deadline = time.monotonic() + flush_timeout_s
    while time.monotonic() < deadline:
        time.sleep(0.01)
        if _leaving or signal.getsignal(signal.SIGTERM) is not _terminate:
            return True
        main = threading.main_thread().ident
        if main is not None:
            _reminded = True
            signal.pthread_kill(main, signal.SIGTERM)
    return False


def patch() -> None:
    for name in ("_exit", "abort", "execv", "execve"):
        _patches.wrap(os, name, _before)
    _patches.wrap(os, "kill", _kill)
    _patches.wrap(signal, "raise_signal", _raise_signal)
    _patches.wrap(multiprocessing.process.BaseProcess, "_bootstrap", _bootstrap)
    _take_sigterm(signal.SIG_DFL, _terminate)


def unpatch() -> None:
    _take_sigterm(_terminate, signal.SIG_DFL)
    _patches.undo()
