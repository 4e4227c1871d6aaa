"""In-process queues: an item brings its producer's context to whoever takes it, until he takes the next.

    from tracefill.handoff import queues

    jobs.put(queues.inject(order))              # in a request
    for order in queues.consume(jobs):          # in a worker: each in its request's context, up to a None
        handle(order)

Nothing is patched for that. A program that cannot be changed has `tracefill.install(queues=True)` instead, which is opt-in
because `get()` then changes the current context: with it `jobs.put(order)`, `jobs.get()` and `with queues.scope(order)` are enough.
`queue.Queue`, `LifoQueue`, `PriorityQueue`, `SimpleQueue` and asyncio's, their subclasses too, also those that exist already; order,
`task_done`, `join`, `maxsize` and the items stay what they were. Whoever has opened a span of his own keeps that: what he takes is a
reply. What a library takes for the program's code (a connection out of a pool) brings nothing.
"""

from __future__ import annotations

import concurrent.futures.thread
import functools
import queue
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from types import CodeType, TracebackType
from typing import Any

from opentelemetry.context import Context

from tracefill import context as _context
from tracefill.handoff.carried import NOTHING, bring, brought
from tracefill.handoff.items import hand_over, putter, stands_between, waiting_in
from tracefill.handoff.tasks import plain_coroutine
from tracefill.snapshots import snapshot
from tracefill.wrapping import Patches

__all__ = ["Carrying", "consume", "extract", "inject", "patch", "scope", "unpatch"]

LIBRARIES = ()
OPT_IN = True

_patches = Patches()


# -------------------------------------------------------------------------------------------------------------- explicit


@functools.total_ordering
class Carrying:
    """An item with the context of its producer. Sorts as the item does, for a PriorityQueue; pickles."""

    __slots__ = ("here", "item")

    def __init__(self, item: Any) -> None:
        self.item = item
        self.here = snapshot()

    def __eq__(self, other: object) -> Any:
        return self.item == other.item if isinstance(other, Carrying) else NotImplemented

    def __lt__(self, other: Any) -> Any:
        return self.item < other.item if isinstance(other, Carrying) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.item)

    def __repr__(self) -> str:
        return f"<{self.item!r} with {self.here!r}>"


def inject(item: Any) -> Carrying:
    """The item with the context of now, to be put into a queue that is read by `consume()` or with `scope()`."""
    return Carrying(item)


def extract(item: Any) -> Context:
    """The context that came with an item: one of `inject()`, or, with `install(queues=True)`, the one that was taken last. An
    empty context where nothing came with it.

    >>> extract("an item")
    {}
    """
    if isinstance(item, Carrying):
        return item.here.to_context()
    context = brought(item)
    return NOTHING if context is None else context


class scope:
    """The time in which an item is handled: its producer's context is current, and afterwards what was before.

    >>> with scope(inject("an item")) as item:
    ...     print(item)
    an item
    """

    __slots__ = ("_item", "_scope")

    def __init__(self, item: Any) -> None:
        self._item = item
        self._scope = _context.scope(extract(item))

    def __enter__(self) -> Any:
        self._scope.__enter__()
        return self._item.item if isinstance(self._item, Carrying) else self._item

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._scope.__exit__(kind, error, traceback)


class consume:
    """The items of a queue, one after the other: the body of the loop runs in the context of each. Ends at the item `until`.

    `for` over a queue of threads, `async for` over one of asyncio.

    >>> jobs = queue.Queue()
    >>> for item in ("first", "second", None):
    ...     jobs.put(inject(item))
    >>> for item in consume(jobs):
    ...     print(item)
    first
    second
    """

    def __init__(self, queue: Any, *, until: object = None) -> None:
        self._queue = queue
        self._until = until
        self._scope: scope | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self.close()
        return self._handed(self._queue.get(), StopIteration)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        self.close()
        return self._handed(await self._queue.get(), StopAsyncIteration)

    def _handed(self, taken: Any, end: type[Exception]) -> Any:
        opened = scope(taken)
        item = opened.__enter__()
        self._scope = opened
        if item is self._until or (self._until is not None and item == self._until):
            self.close()
            raise end
        return item

    def close(self) -> None:
        """Ends the scope of the item that was handed out last, as the next round and the end of the loop do."""
        opened, self._scope = self._scope, None
        if opened is not None:
            opened.__exit__(None, None, None)

    def __del__(self) -> None:
        self.close()


# ---------------------------------------------------------------------------------------------------------------- patched

# Queue and LifoQueue, of threads and of asyncio, keep what they hold by `_put` and `_get`, which run under the queue's lock or in one
# step of the event loop: there an item and its context cannot be parted.


def _put(original: Callable[..., Any]) -> Callable[..., Any]:
    def _put(self: Any, item: Any) -> None:
        waiting = waiting_in(self)
        if waiting is None or waiting.nested:
            original(self, item)
            return
        size = _size(self)
        if not size:
            waiting.clear()  # somebody may have emptied the storage behind the queue's back
        waiting.nested = True
        try:
            original(self, item)
        finally:
            waiting.nested = False
        if _size(self) > size:
            waiting.add(item)

    return _put


def _get(original: Callable[..., Any]) -> Callable[..., Any]:
    def _get(self: Any) -> Any:
        waiting = waiting_in(self)
        if waiting is None or waiting.nested:
            return original(self)
        waiting.nested = True
        try:
            item = original(self)
        finally:
            waiting.nested = False
        caller = sys._getframe(1)
        if caller.f_code.co_name == "shutdown":  # which throws away what is left, and hands it to nobody
            waiting.take(item)
        else:
            hand_over(item, waiting, caller)
        return item

    return _get


def _size(of: Any) -> int:
    size: int = (of._qsize if isinstance(of, queue.Queue) else of.qsize)()
    return size


_met: set[type] = set()


def _meeting(original: Callable[..., Any]) -> Callable[..., Any]:
    """`put` that sees to it that the queue's class is patched, which may override what it inherits."""

    def put(self: Any, *args: Any, **kwargs: Any) -> Any:
        if type(self) not in _met:
            _meet(type(self))
        return original(self, *args, **kwargs)

    return put


def _meet(kind: type) -> None:
    _met.add(kind)
    for owner in kind.__mro__:
        for name, make in (("_put", _put), ("_get", _get)):
            if name in vars(owner):
                _patches.wrap(owner, name, make)


def _simple_put(original: Callable[..., Any]) -> Callable[..., Any]:
    carrying = putter(original)

    def put(self: Any, item: Any, *args: Any, **kwargs: Any) -> Any:
        if type(item) is concurrent.futures.thread._WorkItem:  # a pool's job brings its context itself
            return original(self, item, *args, **kwargs)
        return carrying(self, item, *args, **kwargs)

    return put


def _simple_get(original: Callable[..., Any]) -> Callable[..., Any]:
    def get(self: Any, *args: Any, **kwargs: Any) -> Any:
        item = original(self, *args, **kwargs)
        waiting = None if type(item) is concurrent.futures.thread._WorkItem else waiting_in(self)
        if waiting is not None:
            hand_over(item, waiting, sys._getframe(1))
        return item

    return get


_get_code: CodeType | None = None


def _wait_for(original: Callable[..., Any]) -> Callable[..., Any]:
    """Up to CPython 3.11 `wait_for(queue.get(), ...)` lets another task take the item, which is no more once it has."""

    async def wait_for(fut: Any, *args: Any, **kwargs: Any) -> Any:
        plain = plain_coroutine(fut)
        if plain is None or plain.cr_code is not _get_code:
            return await original(fut, *args, **kwargs)
        contexts: list[Context] = []

        async def take() -> Any:
            item = await fut
            contexts.append(extract(item))
            return item

        item = await original(take(), *args, **kwargs)
        bring(contexts[0], item, sys._getframe(1))
        return item

    return wait_for


def patch() -> None:
    import asyncio

    global _get_code
    _get_code = asyncio.Queue.get.__code__
    for ours_or_stock in (consume, queue.Queue, asyncio.Queue):
        stands_between(ours_or_stock)
    kinds = (queue.LifoQueue, queue.PriorityQueue, asyncio.LifoQueue, asyncio.PriorityQueue)
    for kind in filter(_is_stock, kinds):
        _meet(kind)
    if _is_stock(queue.Queue):
        _patches.wrap(queue.Queue, "put", _meeting)
    _patches.wrap(asyncio.Queue, "put_nowait", _meeting)
    if _is_stock(queue.SimpleQueue):
        for name in ("put", "put_nowait"):
            _patches.wrap(queue.SimpleQueue, name, _simple_put)
        for name in ("get", "get_nowait"):
            _patches.wrap(queue.SimpleQueue, name, _simple_get)
    if sys.version_info < (3, 12):
        for module in (asyncio, asyncio.tasks):
            _patches.wrap(module, "wait_for", _wait_for)
    else:
        stands_between(asyncio.wait_for)


def _is_stock(kind: type) -> bool:
    """False for what gevent or eventlet have put in the place of a class of Python's: see gevent_queues.py, eventlet_queues.py."""
    return kind.__module__ in ("queue", "_queue", "asyncio.queues")


def unpatch() -> None:
    _patches.undo()
    _met.clear()
