"""aio-pika: the trace headers of a message, and the scope of whoever handles it (9 and later).

    async for message in consume(queue):    # each is current in the body of the loop
        async with message.process():
            await handle(message.body)

    with process(message) as span:          # one message that `queue.get()` returned
        await handle(message.body)

`install()` does the same for programs that do not name tracefill: callbacks, `queue.iterator()`, `queue.get()`, the patterns
that ride on them (RPC, Master), consumers that were there before too.
See tracefill.messages.handling for when the handling of a message that was fetched ends.
"""

from __future__ import annotations

import copy
import inspect
import sys
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import Span

from tracefill._codec import extract as extract_headers
from tracefill._codec import scope
from tracefill.messages import handling
from tracefill.messages.amqp_messages import (
    AmqpSource,
    extract,
    inject,
    milliseconds,
    of_properties,
    old_attributes,
    publish_attributes,
    shown,
    with_trace,
)
from tracefill.messages.contrib import Contrib
from tracefill.messages.message_spans import sending
from tracefill.spans import Tracer
from tracefill.wrapping import Patches

__all__ = ["consume", "extract", "inject", "patch", "process", "unpatch"]

LIBRARIES = ("aio_pika",)

_CONTRIB = "opentelemetry.instrumentation.aio_pika"
_tracer = Tracer("tracefill.messages.aio_pika")
_patches = Patches()
_contrib = Contrib(_CONTRIB, "AioPikaInstrumentor", _tracer)


def consume(queue: Any, **options: Any) -> AsyncIterator[Any]:
    """The messages of `queue.iterator(**options)`, one after the other; each is current in the body of the loop."""
    return _walk(queue.iterator(**options))


def process(message: Any) -> handling.Processing:
    """`with process(message) as span:` - the scope of one message."""
    return handling.Processing(_Source(None), message)


class _Source(AmqpSource):
    """The messages of one queue (None: of an unknown one)."""

    __slots__ = ()

    def __init__(self, queue: Any) -> None:
        super().__init__(getattr(queue, "name", None), {})

    @property
    def tracer(self) -> Tracer:
        return _contrib.tracer

    def route(self, message: Any) -> tuple[str, str]:
        return message.exchange or "", message.routing_key or ""

    def headers(self, message: Any) -> Any:
        return message.headers

    def body(self, message: Any) -> Any:
        return message.body

    def created_ms(self, message: Any) -> float | None:
        return milliseconds(message.timestamp)

    def start(self, message: Any) -> tuple[Context, Span | None]:
        context, span = super().start(message)
        if span is not None and _contrib.active:
            span.update_name(f"{message.exchange or message.routing_key} receive")
        return context, span

    def attributes(self, message: Any) -> dict[str, Any]:
        found = super().attributes(message) | of_properties(message) | _server(_channel_of(message))
        if message.delivery_tag is not None:
            found["messaging.rabbitmq.message.delivery_tag"] = message.delivery_tag
        if message.message_count is not None:
            found["tracefill.message.lag"] = message.message_count
        if _contrib.active:
            found |= old_attributes(message.exchange or message.routing_key, "receive")
        return found


def _channel_of(message: Any) -> Any:
    """aiormq's, which the message came by: that of a closed one is not to be had."""
    try:
        return message.channel
    except Exception:
        return None


def _server(channel: Any) -> dict[str, Any]:
    """Where the connection of aiormq's channel leads; empty when nobody knows."""
    url = getattr(getattr(channel, "connection", None), "url", None)
    return {"server.address": url.host, "server.port": url.port} if url is not None and url.host else {}


# ----------------------------------------------------------------------------------------------------------- install


def patch() -> None:
    from aio_pika import channel, exchange, queue, robust_queue
    from aiormq import Channel

    _step_over_contrib()
    _patches.wrap(Channel, "basic_publish", _basic_publish)
    _patches.wrap(exchange.Exchange, "__init__", _noting_contrib)
    _patches.wrap(queue.Queue, "consume", _consume)
    _patches.wrap(queue, "create_task", _create_task)
    _patches.wrap(queue.Queue, "get", _get)
    _patches.wrap(queue.Queue, "__aiter__", _aiter_of_queue)
    for iterator in (queue.QueueIterator, robust_queue.RobustQueueIterator):
        _patches.wrap(iterator, "__aiter__", _aiter)
        _patches.wrap(iterator, "__anext__", _anext)
    _patches.wrap(channel.Channel, "_on_return", _on_return)
    handling.patch_wait_for(__name__)


def unpatch() -> None:
    _patches.undo()
    _contrib.put_back()
    handling.unpatch_wait_for(__name__)


def _step_over_contrib() -> None:
    queue: Any = sys.modules["aio_pika.queue"]
    exchange: Any = sys.modules["aio_pika.exchange"]
    _contrib.step_over(queue.Queue, "consume")
    _contrib.step_over(exchange.Exchange, "publish")


def _noting_contrib(original: Any) -> Any:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        _step_over_contrib()
        original(self, *args, **kwargs)

    return __init__


def _basic_publish(original: Any) -> Any:
    async def basic_publish(self: Any, body: Any, *args: Any, **kwargs: Any) -> Any:
        exchange, routing_key = kwargs.get("exchange", ""), kwargs.get("routing_key", "")
        properties = kwargs.get("properties")
        headers = getattr(properties, "headers", None)
        if args or not isinstance(headers, (Mapping, type(None))) or _is_sent_by_contrib():
            return await original(self, body, *args, **kwargs)
        destination = exchange or routing_key
        again = handling.republished(routing_key or exchange, body, headers)
        attributes = partial(_publish_attributes, self, exchange, routing_key, properties, again)
        name = f"{exchange},{routing_key} send" if _contrib.active else f"send {shown(destination)}"
        with sending(_contrib.tracer, destination, headers, attributes, name):
            kwargs["properties"] = _carrying(properties, again)
            return await original(self, body, **kwargs)

    return basic_publish


def _is_sent_by_contrib() -> bool:
    """Contrib was switched on after the exchange was declared: this one message goes by its wrapper, the next ones do not."""
    if not _contrib.active:
        return False
    publish = sys.modules["aio_pika.exchange"].Exchange.publish
    _step_over_contrib()
    return sys.modules["aio_pika.exchange"].Exchange.publish is not publish


def _carrying(properties: Any, again: handling.Republished | None) -> Any:
    """The properties to send in the place of the caller's; the very same where there is nothing to carry."""
    headers = getattr(properties, "headers", None)
    with_ours = with_trace(headers, again)
    if with_ours is headers:
        return properties
    carrying = copy.copy(properties) if properties is not None else sys.modules["aiormq"].spec.Basic.Properties()
    carrying.headers = with_ours
    return carrying


def _publish_attributes(
    channel: Any, exchange: str, routing_key: str, properties: Any, again: handling.Republished | None
) -> dict[str, Any]:
    found = publish_attributes(exchange, routing_key, again) | _server(channel) | of_properties(properties)
    return found | old_attributes(f"{exchange},{routing_key}", None) if _contrib.active else found


_handlers: weakref.WeakSet[Any] = weakref.WeakSet()


def _handler(callback: Callable[..., Awaitable[Any]], source: _Source) -> Callable[..., Awaitable[Any]]:
    """A callback that handles each message in a scope of its own."""

    async def handle(message: Any) -> Any:
        if not _patches.active:
            return await callback(message)
        with handling.Processing(source, message):
            return await callback(message)

    _handlers.add(handle)
    return handle


def _is_to_be_handled(callback: Any) -> bool:
    """False for what is ours already, and for the library's own that only puts a message into its iterator."""
    return callback not in _handlers and not _is_iterator(getattr(callback, "__self__", None))


def _is_iterator(taken_by: Any) -> bool:
    return isinstance(taken_by, sys.modules["aio_pika"].queue.QueueIterator)


def _consume(original: Any) -> Any:
    async def consume(self: Any, callback: Any, *args: Any, **kwargs: Any) -> Any:
        callback = _past_contrib(callback)
        if callable(callback) and _is_to_be_handled(callback):
            awaitable = sys.modules["aio_pika.tools"].ensure_awaitable(callback)
            callback = _handler(awaitable, _Source(self))
        return await original(self, callback, *args, **kwargs)

    return consume


def _create_task(original: Any) -> Any:
    """Which starts the callback of a message: here those are handled that were registered before."""

    def create_task(func: Any, *args: Any, **kwargs: Any) -> Any:
        callback = _past_contrib(func)
        if len(args) == 1 and inspect.iscoroutinefunction(callback) and _is_to_be_handled(callback):
            callback = _handler(callback, _Source(None))
        return original(callback, *args, **kwargs)

    return create_task


def _past_contrib(callback: Any) -> Any:
    if getattr(callback, "__module__", None) != f"{_CONTRIB}.callback_decorator":
        return callback
    return inspect.getclosurevars(callback).nonlocals["callback"]


def _walk(iterator: Any) -> _Messages:
    following = type(iterator).__anext__
    fetch = partial(getattr(following, "plain", following), iterator)
    return _Messages(iterator, _Source(iterator._amqp_queue), fetch)


class _Messages(handling.AsyncWalk[Any]):
    """A QueueIterator, walked."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._owner, name)


def _aiter(original: Any) -> Any:
    def __aiter__(self: Any) -> Any:
        return _walk(self)

    return __aiter__


def _aiter_of_queue(original: Any) -> Any:
    def __aiter__(self: Any) -> Any:
        return _walk(original(self))

    return __aiter__


def _anext(original: Any) -> Any:
    async def __anext__(self: Any) -> Any:
        if handling.is_library(sys._getframe(1)):
            return await original(self)
        handling.finish(self, handling.taker(sys._getframe(1)))
        message = await original(self)
        handling.take(self, _Source(self._amqp_queue), message, handling.taker(sys._getframe(1)))
        return message

    __anext__.plain = original  # type: ignore[attr-defined]
    return __anext__


def _get(original: Any) -> Any:
    async def get(self: Any, *args: Any, **kwargs: Any) -> Any:
        handling.finish(self, handling.taker(sys._getframe(1)))
        message = await original(self, *args, **kwargs)
        if message is not None:
            handling.take(self, _Source(self), message, handling.taker(sys._getframe(1)))
        return message

    return get


def _on_return(original: Any) -> Any:
    """A message that the broker could not route comes back to whoever sent it."""

    def on_return(self: Any, message: Any) -> Any:
        with scope(extract_headers(message.header.properties.headers or ())):
            return original(self, message)

    return on_return
