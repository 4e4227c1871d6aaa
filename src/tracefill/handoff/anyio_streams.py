"""anyio's memory object streams: see queues.py. Opt-in, with `install(queues=True)`.

import tracefill
tracefill.install(queues=True)
send, receive = anyio.create_memory_object_stream(10)   # anyio 4
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Awaitable, Callable, Iterator
from types import CodeType
from typing import Any

from tracefill.handoff.items import hand_over, no_more, stands_between, waiting_in
from tracefill.wrapping import Patches

LIBRARIES = ("anyio",)
OPT_IN = "queues"

_patches = Patches()
_stock: set[CodeType] = set()


def _send_nowait(original: Callable[..., None]) -> Callable[..., None]:
    def send_nowait(self: Any, item: Any) -> None:
        if sys._getframe(1).f_code in _stock:  # `send`, which has noted the item
            original(self, item)
            return
        with _noted(self, item):
            original(self, item)

    return send_nowait


def _send(original: Callable[..., Awaitable[None]]) -> Callable[..., Any]:
    async def send(self: Any, item: Any) -> None:
        with _noted(self, item):
            await original(self, item)

    return send


@contextlib.contextmanager
def _noted(stream: Any, item: Any) -> Iterator[None]:
    """The context of now waits beside the item, unless that cannot be sent."""
    waiting = waiting_in(stream._state)
    entry = waiting.add(item) if waiting is not None else None
    try:
        yield
    except BaseException:
        if waiting is not None and entry is not None:
            waiting.discard(entry)
        raise


def _receive_nowait(original: Callable[..., Any]) -> Callable[..., Any]:
    def receive_nowait(self: Any) -> Any:
        item = original(self)
        caller = sys._getframe(1)
        waiting = None if caller.f_code in _stock else waiting_in(self._state)
        if waiting is not None:
            hand_over(item, waiting, caller)
        return item

    return receive_nowait


def _receive(original: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    import anyio

    async def receive(self: Any) -> Any:
        try:
            item = await original(self)
        except anyio.EndOfStream:
            no_more(sys._getframe(1))
            raise
        waiting = waiting_in(self._state)
        if waiting is not None:
            hand_over(item, waiting, sys._getframe(1))
        return item

    return receive


def patch() -> None:
    from anyio.abc import ObjectReceiveStream, UnreliableObjectReceiveStream
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

    _stock.update((MemoryObjectSendStream.send.__code__, MemoryObjectReceiveStream.receive.__code__))
    for between in (ObjectReceiveStream, UnreliableObjectReceiveStream):
        stands_between(between)
    _patches.wrap(MemoryObjectSendStream, "send_nowait", _send_nowait)
    _patches.wrap(MemoryObjectSendStream, "send", _send)
    _patches.wrap(MemoryObjectReceiveStream, "receive_nowait", _receive_nowait)
    _patches.wrap(MemoryObjectReceiveStream, "receive", _receive)


def unpatch() -> None:
    _patches.undo()
