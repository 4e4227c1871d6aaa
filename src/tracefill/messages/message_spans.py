"""The spans of messages, after the messaging conventions of OpenTelemetry.

| what | name | kind | parent |
|---|---|---|---|
| a message is sent | `send orders` | PRODUCER | the current span; where there is none, what the message's own headers say |
| one message is handled | `process orders` | CONSUMER | the span that sent it (its creation context) |
| a batch is handled as one | `process orders` | CONSUMER | none: a trace of its own, with a link to each message's sender |

`correlation` is the switch: a single message is a child of its sender, unless it is older than `link_after_s` (a day): a
trace of last week is closed, so a late or replayed message starts a trace of its own, with a link.

    from tracefill.messages.message_spans import correlation

    correlation.single = "link"         # always a trace of its own, with a link
    correlation.link_after_s = None     # however old: a child

A message without trace headers starts a trace; its span has `tracefill.entry`. Beside the standard attributes:

| attribute | unit | what |
|---|---|---|
| `tracefill.message.delivery_time_ms` | ms | from the message's timestamp to its handling |
| `tracefill.message.lag` | messages | how many more there are in the partition or queue behind this one |
| `tracefill.message.attempt` | 1, 2, ... | which attempt this is, where the message was tried before |
| `tracefill.message.original_destination` | | where it was sent first, before it went to a retry topic or a dead-letter queue |
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Link, Span, set_span_in_context

from tracefill import carriers, tags
from tracefill._codec import current_context, extract, inject
from tracefill.spans import SpanScope, Tracer, link_to

__all__ = [
    "SPAN_KEY",
    "Correlation",
    "Source",
    "attempt_of",
    "correlation",
    "is_replaced",
    "original_of",
    "sending",
    "trace_headers",
]

# The key is made anew in each process; asking for it needs no private name.
SPAN_KEY = next(iter(set_span_in_context(INVALID_SPAN, Context())))

_DAY_S = 86_400.0


@dataclass(slots=True)
class Correlation:
    """How the span of a single message hangs together with its sender's: "parent" or "link"."""

    single: str = "parent"
    link_after_s: float | None = _DAY_S

    def parent_and_links(self, context: Context, age_ms: float | None) -> tuple[Context, Sequence[Link]]:
        """The context to start a message's span in, and its links."""
        if SPAN_KEY not in context or (self.single == "parent" and not self.is_old(age_ms)):
            return context, ()
        return _without_span(context), link_to(context)

    def is_old(self, age_ms: float | None) -> bool:
        return self.link_after_s is not None and age_ms is not None and age_ms > self.link_after_s * 1000


correlation = Correlation()


def _without_span(context: Context) -> Context:
    return Context({key: value for key, value in context.items() if key != SPAN_KEY})


def sending(
    tracer: Tracer,
    destination: str,
    headers: Any,
    attributes: Callable[[], dict[str, Any]],
    name: str | None = None,
) -> SpanScope:
    """The scope in which a message is sent: a PRODUCER span; `tracefill.inject` writes its position.

    `headers`: what the caller gave. They say who the parent is only where there is no current span: a relay that passes a
    stored message on continues its trace, and a republished message does not lose its hop.
    """
    context = None
    if headers and SPAN_KEY not in current_context():
        stored = extract(headers)
        context = stored if SPAN_KEY in stored else None
    return tracer.scope(name or f"send {destination}", "producer", context, attributes)


def trace_headers(given: Any) -> dict[str, str]:
    """What a message has to carry: the position of now, and the business tags that a broker may see and that are not `given`."""
    headers: dict[str, str] = {}
    if tags.declared():
        tags.inject(headers, current_context(), tags.BROKER, given or ())
    else:
        inject(headers)
    return headers


def is_replaced(name: Any, fresh: Mapping[str, str]) -> bool:
    """True for a header of the caller's, in whichever case, whose place these take; a tracestate goes with its traceparent."""
    if not isinstance(name, str):
        return False
    lower = name.lower()
    return lower in fresh or (lower == "tracestate" and "traceparent" in fresh)


class Source(ABC):
    """What a library's module knows of the messages that one consumer hands over."""

    __slots__ = ()

    @property
    @abstractmethod
    def tracer(self) -> Tracer: ...

    @abstractmethod
    def destination(self, message: Any) -> str: ...

    def names(self, message: Any) -> tuple[str, ...]:
        """What it may be sent to for another attempt: names that the place of the next one has in its own."""
        return (self.destination(message),)

    @abstractmethod
    def headers(self, message: Any) -> Any:
        """The carrier of its trace headers, or None."""

    @abstractmethod
    def body(self, message: Any) -> Any: ...

    @abstractmethod
    def attributes(self, message: Any) -> dict[str, Any]:
        """Those of the library; asked only when the span is recorded."""

    def is_no_message(self, message: Any) -> bool:
        """True for an event that the library hands over in the place of a message: an error, the end of a partition."""
        return False

    def created_ms(self, message: Any) -> float | None:
        """When it was sent, in milliseconds since the epoch; None when nobody says so."""
        return None

    def span_name(self, destination: str) -> str:
        return f"process {destination}"

    def begun(self, span: Span, message: Any) -> None:  # noqa: B027 - most have nothing to do
        """Called with the span of a single message before its handling begins."""

    def start(self, message: Any) -> tuple[Context, Span | None]:
        """The context that a message carries, and the span to handle it in; None where nobody would record it."""
        headers = self.headers(message) or ()
        context = extract(headers)
        if tags.declared():
            context = tags.received(context, headers, "")
        created_ms = self.created_ms(message)
        age_ms = time.time() * 1000 - created_ms if created_ms and created_ms > 0 else None
        parent, links = correlation.parent_and_links(context, age_ms)
        tracer = self.tracer
        if not tracer.records(parent):
            return context, None
        name = self.span_name(self.destination(message))
        attributes = self.attributes(message)
        if age_ms is not None:
            attributes["tracefill.message.delivery_time_ms"] = int(age_ms) if age_ms > 0 else 0
        if SPAN_KEY not in context:
            attributes["tracefill.entry"] = True
        if headers and (retried := retry_attributes(headers)):
            attributes |= retried
        span = tracer.begin(name, "consumer", parent, attributes, links)
        self.begun(span, message)
        return context, span

    def start_batch(self, messages: Sequence[Any]) -> tuple[Context, Span | None]:
        """The same for several messages that are handled as one."""
        if len(messages) == 1:
            return self.start(messages[0])
        context, tracer = Context(), self.tracer
        if not tracer.records(context):
            return context, None
        links = [link for message in messages for link in link_to(extract(self.headers(message) or ()))]
        name = self.span_name(" ".join(sorted({self.destination(message) for message in messages})))
        return context, tracer.begin(name, "consumer", context, self._batch_attributes(messages), links)

    def _batch_attributes(self, messages: Sequence[Any]) -> dict[str, Any]:
        found = self.attributes(messages[0])
        if len({self.destination(message) for message in messages}) > 1:
            found.pop("messaging.destination.name", None)
        for of_one in ("messaging.destination.partition.id", "messaging.kafka.offset", "messaging.kafka.message.key"):
            found.pop(of_one, None)
        return found | {"messaging.batch.message_count": len(messages)}


# ------------------------------------------------------------------------------------------------ retries, dead letters

ATTEMPT_HEADER = "tracefill-attempt"
ORIGINAL_HEADER = "tracefill-original-destination"

# Ours, then those of Spring Kafka, Kafka Connect, and what applications commonly call them.
_ATTEMPT = (
    ATTEMPT_HEADER,
    "retry_topic-attempts",
    "x-retry-count",
    "retry-count",
    "retry_count",
    "x-attempt",
    "attempt",
)
_ORIGINAL = (
    ORIGINAL_HEADER,
    "kafka_original-topic",
    "kafka_dlt-original-topic",
    "__connect.errors.topic",
    "x-original-topic",
    "original-topic",
    "original_topic",
    "x-first-death-queue",
)


_none_is_known = frozenset((*_ATTEMPT, *_ORIGINAL, "x-death")).isdisjoint


def retry_attributes(headers: Any) -> dict[str, Any]:
    """What the headers of a message say about earlier attempts; empty when they say nothing."""
    found: dict[str, Any] = {}
    if _none_is_known(headers if isinstance(headers, dict) else map(itemgetter(0), filter(None, headers))):
        return found
    attempt, original = attempt_of(headers), original_of(headers)
    if attempt is not None:
        found["tracefill.message.attempt"] = attempt
    if original is not None:
        found["tracefill.message.original_destination"] = original
    return found


def attempt_of(headers: Any) -> int | None:
    """Which attempt a message's headers say it is; None when they do not say.

    >>> attempt_of([("tracefill-attempt", b"3")])
    3
    """
    lines = _last_of_each(headers)
    counted = next((number for name in _ATTEMPT if (number := _number(lines.get(name))) is not None), None)
    deaths = lines.get("x-death")
    if isinstance(deaths, list) and deaths and isinstance(deaths[0], Mapping):
        died = sum(_number(death.get("count")) or 1 for death in deaths if isinstance(death, Mapping))
        return max(1 + died, counted or 0)
    return counted


def original_of(headers: Any) -> str | None:
    """Where a message's headers say that it was sent first; None when they do not say.

    >>> original_of([("kafka_dlt-original-topic", b"orders")])
    'orders'
    """
    lines = _last_of_each(headers)
    return next((text for name in _ORIGINAL if (text := _text(lines.get(name)))), None)


def _last_of_each(headers: Any) -> dict[str, Any]:
    return {name.lower(): value for name, value in carriers.pairs(headers or ()) if isinstance(name, str)}


def _text(value: Any) -> str | None:
    if isinstance(value, (bytes, bytearray)):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return None
    return value if isinstance(value, str) else None


def _number(value: Any) -> int | None:
    if isinstance(value, int):
        return value
    if isinstance(value, bytes) and len(value) == 4 and not value.isdigit():
        return int.from_bytes(value, "big")  # Spring's
    text = _text(value)
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 10 else None
