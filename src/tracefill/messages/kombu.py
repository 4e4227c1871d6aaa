"""kombu 5: the trace headers of a message, and the scope of whoever handles it, with any of its transports.

    def on_order(body, message):            # a callback of kombu.Consumer
        with process(message) as span:
            handle(body)

`install()` does the same for programs that do not name tracefill: `Producer.publish`, callbacks and `on_message` of consumers
that were there before too, `Queue.get()`, `SimpleQueue`, `itermessages()`; and so for what rides on kombu, like nameko's RPC
and events with their reply queues. Celery's own traffic is left alone: tracefill.jobs.celery knows its tasks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from types import FrameType
from typing import Any

from tracefill._codec import bind
from tracefill.messages import handling
from tracefill.messages.amqp_messages import (
    AmqpSource,
    extract,
    inject,
    milliseconds,
    publish_attributes,
    shown,
    with_trace,
)
from tracefill.messages.message_spans import sending
from tracefill.spans import Tracer
from tracefill.wrapping import Patches

__all__ = ["extract", "inject", "patch", "process", "unpatch"]

LIBRARIES = ("kombu",)

_tracer = Tracer("tracefill.messages.kombu")
_patches = Patches()


def process(message: Any) -> handling.Processing:
    """`with process(message) as span:` - the scope of one message."""
    return handling.Processing(_Source(None, None), message)


class _Source(AmqpSource):
    """The messages of one queue (None: of an unknown one). `channel`: kombu's, that they come by."""

    __slots__ = ()

    def __init__(self, channel: Any, queue: str | None) -> None:
        super().__init__(queue, _server(getattr(getattr(channel, "connection", None), "client", None)))

    @property
    def tracer(self) -> Tracer:
        return _tracer

    def route(self, message: Any) -> tuple[str, str]:
        delivery = message.delivery_info or {}
        return delivery.get("exchange") or "", delivery.get("routing_key") or ""

    def headers(self, message: Any) -> Any:
        return message.headers

    def body(self, message: Any) -> Any:
        decoded = getattr(message, "_decoded_cache", None)
        return message.body if decoded is None else decoded

    def created_ms(self, message: Any) -> float | None:
        return milliseconds((message.properties or {}).get("timestamp"))

    def attributes(self, message: Any) -> dict[str, Any]:
        found: dict[str, Any] = super().attributes(message) | self._common | _of_properties(message.properties or {})
        if isinstance(message.delivery_tag, int):
            found["messaging.rabbitmq.message.delivery_tag"] = message.delivery_tag
        behind = (message.delivery_info or {}).get("message_count")
        return found if behind is None else found | {"tracefill.message.lag": behind}


def _of_properties(properties: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        "messaging.message.id": properties.get("message_id"),
        "messaging.message.conversation_id": properties.get("correlation_id"),
    }
    return {name: value for name, value in found.items() if isinstance(value, str)}


def _server(connection: Any) -> dict[str, Any]:
    """Which system a kombu.Connection leads to, and where it is; empty when nobody knows."""
    if connection is None:
        return {}
    driver = getattr(connection.transport_cls, "driver_type", None) or connection.transport_cls
    found = {
        "messaging.system": "rabbitmq" if driver in ("amqp", "pyamqp", "amqps") else driver,
        "server.address": connection.hostname,
        "server.port": connection.port or None,
    }
    return {name: value for name, value in found.items() if isinstance(value, (str, int))}


# ----------------------------------------------------------------------------------------------------------- install


def patch() -> None:
    from kombu import common
    from kombu.asynchronous import Hub
    from kombu.entity import Queue
    from kombu.messaging import Consumer, Producer
    from kombu.simple import SimpleBase

    _patches.wrap(Producer, "publish", _publish)
    _patches.wrap(Consumer, "_receive_callback", _receive_callback)
    _patches.wrap(Consumer, "receive", _receive)
    _patches.replace(Consumer, "on_message", property(_on_message, _set_on_message))
    _patches.wrap(Queue, "consume", _consume)
    _patches.wrap(Queue, "get", _get)
    _patches.wrap(SimpleBase, "get", _get)
    _patches.wrap(SimpleBase, "get_nowait", _get)
    _patches.wrap(SimpleBase, "close", _finishing)
    _patches.wrap(common, "drain_consumer", _drain_consumer)
    _patches.wrap(Hub, "call_soon", _call_soon)
    _patches.wrap(Hub, "call_later", _call_later)
    _patches.wrap(Hub, "call_at", _call_later)


def unpatch() -> None:
    _patches.undo()


_PUBLISH = (
    "body",
    "routing_key",
    "delivery_mode",
    "mandatory",
    "immediate",
    "priority",
    "content_type",
    "content_encoding",
    "serializer",
    "headers",
    "compression",
    "exchange",
)


def _publish(original: Any) -> Any:
    def publish(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(_PUBLISH, args, strict=False))
        headers = given.get("headers", kwargs.get("headers"))
        if (
            len(args) > len(_PUBLISH)
            or not given.keys().isdisjoint(kwargs)
            or not isinstance(headers, (Mapping, type(None)))
            or _is_celerys_frame(sys._getframe(1))
        ):
            return original(self, *args, **kwargs)
        given |= kwargs
        exchange, routing_key = _name_of(given.get("exchange") or self.exchange), _routing_key(self, given)
        again = handling.republished(routing_key or exchange, given.get("body"), headers)
        attributes = partial(_publish_attributes, self, exchange, routing_key, given, again)
        destination = exchange or routing_key
        with sending(_tracer, destination, headers, attributes, f"send {shown(destination)}"):
            given["headers"] = with_trace(headers, again)
            return original(self, **given)

    return publish


def _name_of(exchange: Any) -> str:
    return str(getattr(exchange, "name", exchange) or "")


def _routing_key(producer: Any, given: Mapping[str, Any]) -> str:
    routing_key = given.get("routing_key")
    return str((producer.routing_key if routing_key is None else routing_key) or "")


def _publish_attributes(
    producer: Any, exchange: str, routing_key: str, given: Mapping[str, Any], again: handling.Republished | None
) -> dict[str, Any]:
    return publish_attributes(exchange, routing_key, again) | _server(_connection_of(producer)) | _of_properties(given)


def _connection_of(producer: Any) -> Any:
    """The producer's kombu.Connection, where asking for it does not connect."""
    if producer.__connection__ is not None:
        return producer.__connection__
    channel = getattr(producer._channel, "__value__", producer._channel)
    return getattr(getattr(channel, "connection", None), "client", None)


def _receive_callback(original: Any) -> Any:
    """What a message comes to first; here a `receive` of the program's own, in a subclass, gets its scope."""

    def receive_callback(self: Any, message: Any) -> Any:
        kind = type(self)
        if kind.receive is sys.modules["kombu.messaging"].Consumer.receive or "receive" in vars(self):
            return original(self, message)
        vars(self)["receive"] = partial(_handle_body, self, kind.receive)
        try:
            return original(self, message)
        finally:
            del vars(self)["receive"]

    return receive_callback


def _handle_body(consumer: Any, receive: Callable[..., Any], body: Any, message: Any) -> Any:
    with handling.Processing(_Source(consumer.channel, _queue_of(consumer, message)), message):
        return receive(consumer, body, message)


def _receive(original: Any) -> Any:
    def receive(self: Any, body: Any, message: Any) -> Any:
        if all(_is_librarys(callback) for callback in self.callbacks or ()):
            return original(self, body, message)
        with handling.Processing(_Source(self.channel, _queue_of(self, message)), message):
            return original(self, body, message)

    return receive


def _queue_of(consumer: Any, message: Any) -> str | None:
    """The name of the consumer's queue that a message came by."""
    tag = (message.delivery_info or {}).get("consumer_tag")
    return next((name for name, tag_of in consumer._active_tags.items() if tag_of == tag), None)


def _on_message(consumer: Any) -> Any:
    """`Consumer.on_message`, for consumers that were there before too: handles each message in a scope of its own."""
    on_message = vars(consumer).get("on_message")
    return on_message if on_message is None or _is_librarys(on_message) else partial(_handle, consumer, on_message)


def _set_on_message(consumer: Any, on_message: Any) -> None:
    ours = isinstance(on_message, partial) and on_message.func is _handle
    vars(consumer)["on_message"] = on_message.args[1] if ours else on_message


def _handle(consumer: Any, on_message: Callable[[Any], Any], message: Any) -> Any:
    with handling.Processing(_Source(consumer.channel, _queue_of(consumer, message)), message):
        return on_message(message)


def _consume(original: Any) -> Any:
    """Consuming without a `Consumer`: the callback is handed the messages of the transport's own library."""

    def consume(self: Any, consumer_tag: str = "", callback: Any = None, *args: Any, **kwargs: Any) -> Any:
        if callable(callback) and not _is_librarys(callback) and not _is_celerys_frame(sys._getframe(1)):
            callback = partial(_handle_plain, self, callback)
        return original(self, consumer_tag, callback, *args, **kwargs)

    return consume


def _handle_plain(queue: Any, callback: Callable[[Any], Any], message: Any) -> Any:
    if not _patches.active:
        return callback(message)
    with handling.Processing(_Source(queue.channel, queue.name), message):
        return callback(message)


def _get(original: Any) -> Any:
    def get(self: Any, *args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1)
        if handling.is_library(caller) or _is_celerys_frame(caller):
            return original(self, *args, **kwargs)
        frame = handling.taker(caller)
        handling.finish(self, frame)
        message = original(self, *args, **kwargs)
        if message is not None:
            handling.take(self, _Source(self.channel, _name_of(getattr(self, "queue", self))), message, frame)
        return message

    return get


def _finishing(original: Any) -> Any:
    def close(self: Any, *args: Any, **kwargs: Any) -> Any:
        handling.leave(self)
        return original(self, *args, **kwargs)

    return close


def _call_soon(original: Any) -> Any:
    def call_soon(self: Any, callback: Any, *args: Any) -> Any:
        return original(self, _bound(callback, sys._getframe(1)), *args)

    return call_soon


def _call_later(original: Any) -> Any:
    def call_later(self: Any, when: float, callback: Any, *args: Any) -> Any:
        return original(self, when, _bound(callback, sys._getframe(1)), *args)

    return call_later


def _bound(callback: Any, caller: FrameType) -> Any:
    """The program's own callbacks; a promise of the library's, and what it calls itself, are nobody's."""
    if hasattr(callback, "then") or handling.is_library(caller) or _is_celerys_frame(caller):
        return callback
    return bind(callback)


class _Messages(handling.Walk[Any]):
    """What `itermessages()` yields: pairs of a body and its message."""

    __slots__ = ("_generator",)

    def __init__(self, consumer: Any, generator: Any) -> None:
        self._generator = generator
        super().__init__(consumer, _PairSource(consumer), generator.__next__, surely=True)

    def close(self) -> None:
        self._end()
        self._generator.close()


class _PairSource(_Source):
    """The messages of a consumer that come with their decoded bodies."""

    __slots__ = ()

    def __init__(self, consumer: Any) -> None:
        names = [queue.name for queue in consumer.queues]
        super().__init__(consumer.channel, names[0] if len(names) == 1 else None)

    def route(self, message: Any) -> tuple[str, str]:
        return super().route(message[1])

    def headers(self, message: Any) -> Any:
        return message[1].headers

    def body(self, message: Any) -> Any:
        return message[0]

    def created_ms(self, message: Any) -> float | None:
        return super().created_ms(message[1])

    def attributes(self, message: Any) -> dict[str, Any]:
        return _Source(None, self._queue).attributes(message[1]) | self._common


def _drain_consumer(original: Any) -> Any:
    def drain_consumer(consumer: Any, *args: Any, **kwargs: Any) -> Any:
        generator = original(consumer, *args, **kwargs)
        return generator if _is_celerys_frame(sys._getframe(1)) else _Messages(consumer, generator)

    return drain_consumer


# ------------------------------------------------------------------------------------------------------------ Celery


def _is_celerys_frame(frame: FrameType | None) -> bool:
    """True when Celery sends or fetches, through whichever of kombu's functions: a task, a result, an event, a command."""
    while frame is not None:
        name = f"{frame.f_globals.get('__name__')}."
        if not name.startswith(("kombu.", "tracefill.", "opentelemetry.", "wrapt.")):
            return name.startswith("celery.")
        frame = frame.f_back
    return False


def _is_librarys(callback: Any) -> bool:
    """True for callbacks of Celery's, and for kombu's own, which only put a message where it is taken from later."""
    return f"{getattr(callback, '__module__', '')}.".startswith(("celery.", "kombu."))
