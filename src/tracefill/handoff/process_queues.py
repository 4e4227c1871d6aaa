"""Queues and pipes between processes: an item brings its producer's context to whoever takes it, until he takes the next (opt-in).

    tracefill.install(queues=True)
    jobs.put(order)             # in a request
    order = jobs.get()          # in another process: the request's span is current until the next get

`multiprocessing.Queue`, `JoinableQueue`, `SimpleQueue`, `Pipe` and `Manager().Queue()`, with any start method. The context is
pickled around the item, and taken off where that is unpickled: the taker sees the item as it was, and needs no patch. What
goes to another program, by `multiprocessing.connection.Client` and `Listener`, is left as it is.
"""

from __future__ import annotations

import multiprocessing.connection
import multiprocessing.managers
import multiprocessing.process
import multiprocessing.queues
import sys
import weakref
from types import FrameType
from typing import Any

from tracefill.context import current
from tracefill.handoff.carried import NOTHING, bring
from tracefill.snapshots import Snapshot, snapshot
from tracefill.wrapping import Patches

__all__ = ["patch", "unpatch"]

OPT_IN = "queues"

_patches = Patches()
# The queues and pipes that Python's own pools, managers and loggers keep for themselves.
_INTERNAL = ("multiprocessing.", "concurrent.futures.", "logging.")
_foreign: weakref.WeakSet[Any] = weakref.WeakSet()


class _Item:
    """What is pickled in the place of an item."""

    __slots__ = ("here", "item")

    def __init__(self, item: Any, here: Snapshot | None) -> None:
        self.item = item
        self.here = here

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, (self.item, self.here)

    def __lt__(self, other: Any) -> bool:
        return bool(self.item < (other.item if isinstance(other, _Item) else other))


def _from_here(item: Any) -> _Item:
    return _Item(item, snapshot() if current() else None)


def _arrive(item: Any, here: Snapshot | None) -> Any:
    """The item, for whoever unpickles it; one that goes into a manager's queue goes on as it came."""
    if hasattr(multiprocessing.process.current_process(), "_manager_server"):
        return _Item(item, here)
    taker = _taker(sys._getframe(1))
    if taker is not None:
        bring(here.to_context() if here is not None else NOTHING, item, taker)
    return item


def _taker(frame: FrameType | None) -> FrameType | None:
    while frame is not None and (_module(frame).startswith((__name__, _INTERNAL[0])) or _is_generated(frame)):
        frame = frame.f_back
    return frame


def _is_generated(frame: FrameType) -> bool:
    """The methods of a manager's proxies are made from text."""
    return frame.f_code.co_filename == "<string>"


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _put(original: Any) -> Any:
    def put(self: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        if _module(sys._getframe(1)).startswith(_INTERNAL) and not _is_nested(sys._getframe(1)):
            return original(self, obj, *args, **kwargs)
        return original(self, _from_here(obj), *args, **kwargs)

    return put


def _is_nested(frame: FrameType) -> bool:
    """`put_nowait` calls `put`."""
    return frame.f_code.co_name == "put_nowait" and not _module(_outer(frame)).startswith(_INTERNAL)


def _outer(frame: FrameType) -> FrameType:
    return frame.f_back or frame


def _send(original: Any) -> Any:
    def send(self: Any, obj: Any) -> Any:
        if self in _foreign or _module(sys._getframe(1)).startswith(_INTERNAL):
            return original(self, obj)
        return original(self, _from_here(obj))

    return send


def _connects_to_strangers(original: Any) -> Any:
    def connect(*args: Any, **kwargs: Any) -> Any:
        connection = original(*args, **kwargs)
        _foreign.add(connection)
        return connection

    return connect


def _callmethod(original: Any) -> Any:
    def _callmethod(self: Any, methodname: str, args: Any = (), *rest: Any, **kwargs: Any) -> Any:
        if methodname in ("put", "put_nowait") and args and self._token.typeid in ("Queue", "JoinableQueue"):
            args = (_from_here(args[0]), *args[1:])
        return original(self, methodname, args, *rest, **kwargs)

    return _callmethod


def patch() -> None:
    for kind in (
        multiprocessing.queues.Queue,
        multiprocessing.queues.JoinableQueue,
        multiprocessing.queues.SimpleQueue,
    ):
        _patches.wrap(kind, "put", _put)
    connection = multiprocessing.connection
    _patches.wrap(connection._ConnectionBase, "send", _send)
    _patches.wrap(connection, "Client", _connects_to_strangers)
    _patches.wrap(connection.Listener, "accept", _connects_to_strangers)
    _patches.wrap(multiprocessing.managers.BaseProxy, "_callmethod", _callmethod)


def unpatch() -> None:
    _patches.undo()
