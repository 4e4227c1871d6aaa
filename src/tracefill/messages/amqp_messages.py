"""What pika, aio-pika and kombu have in common: a message's headers, and the attributes of its spans.

Headers are a dict, or None. What a program gives to its producer is copied, never changed: it may be one constant dict for
all messages, or that of the message that is being handled. Setting replaces, in whichever case a name is written.

| attribute | what |
|---|---|
| `messaging.destination.name` | `exchange:routing key`, on the consumer's side `exchange:routing key:queue`; what is empty is left out |
| `messaging.destination.anonymous` | the broker has made up the queue's name; spans are called `send (anonymous)` then |
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from opentelemetry.context import Context

from tracefill._codec import extract as extract_headers
from tracefill.messages.handling import Republished
from tracefill.messages.message_spans import Source, is_replaced, trace_headers

__all__ = [
    "AmqpSource",
    "extract",
    "inject",
    "milliseconds",
    "of_properties",
    "old_attributes",
    "publish_attributes",
    "shown",
    "with_trace",
]

# By the broker, and by aio-pika.
_MADE_UP = ("amq.gen-", "amq.rabbitmq.reply-to", "amq_")


def inject(headers: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """For the clients that hold headers as a dict: a copy of these (None: new ones) with the position of now.

    >>> inject({"customer": 7})
    {'customer': 7}
    """
    return dict(with_trace(headers) or {})


def extract(message: Any) -> Context:
    """The Context that a message's headers carry; an empty one when they carry none."""
    return extract_headers(message.headers or ())


def with_trace(headers: Mapping[str, Any] | None, republished: Republished | None = None) -> Any:
    """A copy of a producer's headers that carries the position of now; the very same object where there is nothing to carry."""
    fresh = trace_headers(headers)
    if republished is not None:
        fresh |= republished.headers()
    if not fresh:
        return headers
    kept = {name: value for name, value in (headers or {}).items() if not is_replaced(name, fresh)}
    return kept | fresh


def shown(name: str) -> str:
    """A queue's or an exchange's name for the name of a span, of which there must not be many.

    >>> shown("amq.gen-JzTY20BRgKO")
    '(anonymous)'
    """
    return "(anonymous)" if name.startswith(_MADE_UP) else name


def publish_attributes(exchange: str, routing_key: str, republished: Republished | None) -> dict[str, Any]:
    """The attributes of a PRODUCER span."""
    found = _attributes("send", exchange, routing_key)
    if republished is not None:
        found["tracefill.message.attempt"] = republished.attempt
        found["tracefill.message.original_destination"] = republished.original
    return found


def _attributes(operation: str, *names: str) -> dict[str, Any]:
    exchange, routing_key, *_ = names
    found: dict[str, Any] = {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": ":".join(dict.fromkeys(filter(None, names))),
    }
    if routing_key:
        found["messaging.rabbitmq.destination.routing_key"] = routing_key
    if not exchange and routing_key.startswith(_MADE_UP):
        found["messaging.destination.anonymous"] = True
    return found


def of_properties(properties: Any) -> dict[str, Any]:
    """The attributes that a message's properties (None: it has none) give."""
    found = {
        "messaging.message.id": getattr(properties, "message_id", None),
        "messaging.message.conversation_id": getattr(properties, "correlation_id", None),
    }
    return {name: value for name, value in found.items() if value}


def milliseconds(timestamp: Any) -> float | None:
    """A message's timestamp (a datetime, or seconds since the epoch) in milliseconds; None when it has none.

    >>> milliseconds(1.5)
    1500.0
    """
    if isinstance(timestamp, datetime):
        return (timestamp if timestamp.tzinfo else timestamp.replace(tzinfo=timezone.utc)).timestamp() * 1000
    return timestamp * 1000 if isinstance(timestamp, (int, float)) else None


def old_attributes(destination: str, operation: str | None) -> dict[str, Any]:
    """Contrib's, of conventions 1.11. `operation` None: it is sent."""
    found: dict[str, Any] = {"messaging.destination": destination}
    return found | ({"messaging.operation": operation} if operation else {"messaging.temp_destination": True})


class AmqpSource(Source):
    """The messages of one consumer. `queue`: the one that it reads, where that is known."""

    __slots__ = ("_common", "_queue")

    def __init__(self, queue: str | None, common: dict[str, Any]) -> None:
        self._queue = queue or ""
        self._common = common

    @abstractmethod
    def route(self, message: Any) -> tuple[str, str]:
        """The exchange and the routing key that a message was sent to."""

    def destination(self, message: Any) -> str:
        exchange, routing_key = self.route(message)
        return self._queue or routing_key or exchange

    def names(self, message: Any) -> tuple[str, ...]:
        return tuple(filter(None, (self._queue, *self.route(message))))

    def span_name(self, destination: str) -> str:
        return super().span_name(shown(destination))

    def attributes(self, message: Any) -> dict[str, Any]:
        return {**self._common, **_attributes("process", *self.route(message), self._queue)}
