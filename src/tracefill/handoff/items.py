"""Items that wait in a queue, and beside each the context in which it was put there: what all kinds of queues share.

By identity, because an item may neither hash nor be weakly held; and the queue holds it while it waits, so that its id stays its
own. The item itself is handed on as it is.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR
from types import FrameType, FunctionType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from opentelemetry.context import Context

from tracefill.context import current
from tracefill.handoff.carried import NOTHING, bring, brought
from tracefill.handoff.tasks import CONTRIB
from tracefill.handoff.workers import is_library
from tracefill.snapshots import Snapshot, snapshot

__all__ = ["Waiting", "getter", "hand_over", "no_more", "putter", "stands_between", "taken_by_library", "waiting_in"]


class _Entry(NamedTuple):
    item: object
    here: Snapshot | None


class Waiting:
    """What waits in one queue."""

    __slots__ = ("_entries", "_last_first", "_lock", "is_pool", "nested")

    def __init__(self, queue: Any) -> None:
        self._entries: dict[int, list[_Entry]] = {}
        self._last_first = any(kind.__name__ == "LifoQueue" for kind in type(queue).__mro__)
        self._lock = threading.RLock()  # a SimpleQueue may be put into by a destructor, in the middle of anything
        #: Known to hold things that are used and put back, like connections, and no work to be done.
        self.is_pool = False
        #: A method of the queue is running that may call the one it overrides.
        self.nested = False

    def add(self, item: object) -> _Entry:
        context = current()
        entry = _Entry(item, snapshot(context) if context else None)
        with self._lock:
            self._entries.setdefault(id(item), []).append(entry)
        return entry

    def discard(self, entry: _Entry) -> None:
        with self._lock:
            left = [other for other in self._entries.pop(id(entry.item), ()) if other is not entry]
            if left:
                self._entries[id(entry.item)] = left

    def take(self, item: object) -> Context | None:
        """The context that the item was put in; None: nobody saw it put in."""
        with self._lock:
            entries = self._entries.get(id(item))
            if not entries:
                return None
            here = entries.pop(-1 if self._last_first else 0).here
            if not entries:
                del self._entries[id(item)]
        if here is None:
            return NOTHING
        with here:
            return here.to_context()

    def clear(self) -> None:
        self._entries.clear()


_queues: WeakKeyDictionary[Any, Waiting] = WeakKeyDictionary()


def waiting_in(queue: Any) -> Waiting | None:
    """None for a queue that carries nothing: a pool, or one of a class whose objects cannot be told apart."""
    try:
        waiting = _queues.get(queue) or _queues.setdefault(queue, Waiting(queue))
    except TypeError:
        return None
    return None if waiting.is_pool else waiting


def hand_over(item: object, waiting: Waiting, frame: FrameType) -> None:
    """Makes the item's context current for whoever has taken it: the first frame outwards that is not the queue's own."""
    context = waiting.take(item)
    taker = _taker(frame)
    if _is_a_library_asked(taker):
        waiting.is_pool = True
        waiting.clear()
    elif context is not None:
        bring(context, item, taker)
    elif brought(item) is None:
        bring(NOTHING, item, taker)


def taken_by_library(frame: FrameType) -> bool:
    """True when a library takes the item for the program's code: a connection out of a pool is no work."""
    return _is_a_library_asked(_taker(frame))


def no_more(frame: FrameType) -> None:
    """Whoever would have taken an item, had there been one, has handled the last one."""
    bring(NOTHING, None, _taker(frame))


def _taker(frame: FrameType) -> FrameType:
    while _is_between(frame.f_code.co_filename):
        outer = frame.f_back
        if outer is None or (_is_coroutine(frame) and not _is_coroutine(outer)):
            break  # a task that does nothing but take an item
        frame = outer
    return frame


def _is_coroutine(frame: FrameType) -> bool:
    return bool(frame.f_code.co_flags & (CO_COROUTINE | CO_ASYNC_GENERATOR | CO_GENERATOR))


_between = {__file__}


def stands_between(of: type | FunctionType) -> None:
    """The frames of this class's or function's module are passed over on the way to whoever takes an item."""
    functions = vars(of).values() if isinstance(of, type) else (of,)
    _between.update(function.__code__.co_filename for function in functions if hasattr(function, "__code__"))
    _is_between.cache_clear()


@functools.lru_cache(1024)
def _is_between(filename: str) -> bool:
    return filename in _between or filename.endswith(CONTRIB)


def _is_a_library_asked(taker: FrameType) -> bool:
    return is_library(taker.f_code) and not _is_between(taker.f_code.co_filename) and _is_asked_for(taker)


def _is_asked_for(frame: FrameType) -> bool:
    """True when the program's own code waits further out for what a library does here."""
    outer: FrameType | None = frame
    while outer is not None:
        if not is_library(outer.f_code):
            return True
        outer = outer.f_back
    return False


# ------------------------------------------------------------------------------- for queues whose storage is out of our reach


def putter(original: Callable[..., Any]) -> Callable[..., Any]:
    """`put(item, ...)` that notes the context of now beside the item."""

    def put(self: Any, item: Any, *args: Any, **kwargs: Any) -> Any:
        waiting = waiting_in(self)
        if waiting is None:
            return original(self, item, *args, **kwargs)
        entry = waiting.add(item)
        try:
            return original(self, item, *args, **kwargs)
        except BaseException:
            waiting.discard(entry)
            raise

    return put


def getter(original: Callable[..., Any]) -> Callable[..., Any]:
    """`get(...)` that makes the context of the item current."""

    def get(self: Any, *args: Any, **kwargs: Any) -> Any:
        item = original(self, *args, **kwargs)
        waiting = waiting_in(self)
        if waiting is not None:
            hand_over(item, waiting, sys._getframe(1))
        return item

    return get
