"""kafka-python: the trace headers of a record, and the scope of whoever handles it (2.0.3 and later, made for 3).

    for record in consume(consumer):        # a KafkaConsumer: each record is current in the body of the loop
        handle(record)

    with batch(records) as span:            # several records as one, with a link to the sender of each
        store(records)

`install()` does the same for programs that do not name tracefill: `for record in consumer`, `next(consumer)`, the lists that
`poll()` returns, callbacks of futures and of `commit_async`. See tracefill.messages.handling for when a handling ends.
"""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import Span

from tracefill._codec import bind, scope
from tracefill._codec import extract as extract_headers
from tracefill.messages import handling
from tracefill.messages.contrib import Contrib
from tracefill.messages.kafka_messages import (
    RecordSource,
    consumer_attributes,
    inject_into,
    publish_attributes,
    server_attributes,
    with_trace,
)
from tracefill.messages.message_spans import sending
from tracefill.spans import Tracer, suppressed
from tracefill.wrapping import Patches

__all__ = ["batch", "consume", "extract", "inject", "patch", "process", "unpatch"]

_CONTRIB = "opentelemetry.instrumentation.kafka"
LIBRARIES = ("kafka", _CONTRIB)
EACH = True

_tracer = Tracer("tracefill.messages.kafka")
_patches = Patches()
_contrib = Contrib(_CONTRIB, "KafkaInstrumentor", _tracer)


def inject(headers: list[tuple[str, bytes]] | None = None) -> list[tuple[str, bytes]]:
    """The headers (None: a new list) with the position of now; what they held of another trace is replaced.

    >>> inject([("customer", b"7")])
    [('customer', b'7')]
    """
    filled: list[tuple[str, bytes]] = inject_into(headers)
    return filled


def extract(record: Any) -> Context:
    """The Context that a record's headers carry; an empty one when they carry none."""
    return extract_headers(record.headers or ())


def consume(consumer: Any) -> Iterator[Any]:
    """The records of a KafkaConsumer, one after the other; each is current in the body of the loop."""
    following = _contrib.beneath(type(consumer).__next__)
    fetch = partial(getattr(following, "plain", following), consumer)
    return handling.Walk(consumer, _source_of(consumer), fetch, surely=True)


def process(record: Any) -> handling.Processing:
    """`with process(record) as span:` - the scope of one record of a batch."""
    return handling.Processing(_Source(None), record)


def batch(records: Sequence[Any] | Mapping[Any, Sequence[Any]]) -> handling.Processing:
    """`with batch(records) as span:` - one scope for several records (a list, or what `poll()` returned)."""
    return handling.Processing(_Source(None), _several(records))


def _several(records: Sequence[Any] | Mapping[Any, Sequence[Any]]) -> handling.Several:
    lists = records.values() if isinstance(records, Mapping) else (records,)
    return handling.Several(record for some in lists for record in handling.unwalked(some))


class _Source(RecordSource):
    """The records of one KafkaConsumer (None: of an unknown one)."""

    __slots__ = ()

    def __init__(self, consumer: Any) -> None:
        config = getattr(consumer, "config", {})
        common = consumer_attributes(config.get("group_id"), config.get("client_id"), _bootstrap(config))
        super().__init__("kafka", consumer, common)

    @property
    def tracer(self) -> Tracer:
        return _contrib.tracer

    def span_name(self, destination: str) -> str:
        return f"{destination} receive" if _contrib.leads else f"process {destination}"

    def attributes(self, message: Any) -> dict[str, Any]:
        found = super().attributes(message)
        if _contrib.leads:
            config = getattr(self._consumer(), "config", {})
            found |= _old_attributes(message.topic, config) | {"messaging.kafka.partition": message.partition}
        return found

    def begun(self, span: Span, message: Any) -> None:
        _contrib.call_hook("consume_hook", span, message, (), {})


_sources: weakref.WeakKeyDictionary[Any, _Source] = weakref.WeakKeyDictionary()


def _source_of(consumer: Any) -> _Source:
    found = _sources.get(consumer)
    if found is None:
        found = _sources[consumer] = _Source(consumer)
    return found


def _bootstrap(config: Mapping[str, Any]) -> Any:
    return config.get("bootstrap_servers")


def _old_attributes(topic: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Contrib's, of conventions 1.11."""
    return {"messaging.destination": topic, "messaging.url": json.dumps(_bootstrap(config))}


# ----------------------------------------------------------------------------------------------------------- install


def patch() -> None:
    from kafka import KafkaConsumer, KafkaProducer
    from kafka.future import Future

    _patches.wrap(KafkaProducer, "__init__", partial(_in_no_trace, KafkaProducer))
    _patches.wrap(KafkaProducer, "send", partial(_send, KafkaProducer))
    _patches.wrap(KafkaConsumer, "__init__", partial(_in_no_trace, KafkaConsumer))
    _patches.wrap(KafkaConsumer, "__iter__", _iter)
    _patches.wrap(KafkaConsumer, "__next__", _next)
    _patches.wrap(KafkaConsumer, "poll", _poll)
    _patches.wrap(KafkaConsumer, "commit_async", _commit_async)
    _patches.wrap(KafkaConsumer, "close", _finishing)
    _patches.wrap(KafkaConsumer, "unsubscribe", _finishing)
    for name in ("add_callback", "add_errback", "add_both"):
        _patches.wrap(Future, name, _add_callback)
    _contrib.watch(_patches, {KafkaProducer: ("send",), KafkaConsumer: ("__next__",)})


def unpatch() -> None:
    _patches.undo()
    _contrib.put_back()


def _in_no_trace(owner: Any, original: Any) -> Any:
    """The threads that a client starts are nobody's job: rebalance listeners run on them long after."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        _contrib.step_over(owner, "send", "__next__")
        with scope(Context()):
            original(self, *args, **kwargs)
        handling.expect()

    return __init__


def _send(owner: Any, original: Any) -> Any:
    plain = _contrib.beneath(original)

    def send(self: Any, *args: Any, **kwargs: Any) -> Any:
        topic = args[0] if args else kwargs.get("topic")
        headers = args[3] if len(args) > 3 else kwargs.get("headers")
        if not isinstance(topic, str) or not isinstance(headers, (list, type(None))):
            return plain(self, *args, **kwargs)  # which says what is wrong with it
        if _contrib.just_came(owner, "send"):
            return plain(self, *args, **kwargs)  # contrib has done its work already
        again = handling.republished(topic, args[1] if len(args) > 1 else kwargs.get("value"), headers)
        attributes = partial(_publish_attributes, self, topic, args, kwargs, again)
        with sending(_contrib.tracer, topic, headers, attributes, _send_name(topic)) as span:
            carrying = with_trace(headers, again)
            if len(args) > 3:
                args = (*args[:3], carrying, *args[4:])
            else:
                kwargs["headers"] = carrying
            _contrib.call_hook("produce_hook", span, args, kwargs)
            return plain(self, *args, **kwargs)

    return send


def _send_name(topic: str) -> str:
    return f"{topic} send" if _contrib.leads else f"send {topic}"


def _publish_attributes(producer: Any, topic: str, args: Any, kwargs: Any, again: handling.Republished | None) -> Any:
    value = args[1] if len(args) > 1 else kwargs.get("value")
    key = args[2] if len(args) > 2 else kwargs.get("key")
    partition = args[4] if len(args) > 4 else kwargs.get("partition")
    config = producer.config
    found = publish_attributes(topic, value, key, partition, again)
    found["messaging.client.id"] = config.get("client_id")
    found.update(server_attributes(_bootstrap(config)))
    return found | _old_attributes(topic, config) if _contrib.leads else found


def _iter(original: Any) -> Any:
    def __iter__(self: Any) -> Any:
        return consume(original(self))

    return __iter__


def _next(original: Any) -> Any:
    plain = _contrib.beneath(original)

    def __next__(self: Any) -> Any:
        caller = sys._getframe(1)
        if handling.is_library(caller):
            return plain(self)
        frame = handling.taker(caller)
        handling.finish(self, frame)
        record = plain(self)
        handling.take(self, _source_of(self), record, frame)
        return record

    __next__.plain = plain  # type: ignore[attr-defined]
    return __next__


def _poll(original: Any) -> Any:
    def poll(self: Any, *args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1)
        if handling.is_library(caller):  # the iterator's own
            return original(self, *args, **kwargs)
        frame = handling.taker(caller)
        handling.finish(self, frame)
        polled = original(self, *args, **kwargs)
        if polled and not suppressed():
            source = _source_of(self)
            handling.take(self, source, _several(polled), frame, lazily=True)
            for partition, records in polled.items():
                polled[partition] = handling.Batch(records, source)
        return polled

    return poll


def _commit_async(original: Any) -> Any:
    def commit_async(self: Any, offsets: Any = None, callback: Any = None) -> Any:
        return original(self, offsets, bind(callback) if callable(callback) else callback)

    return commit_async


def _finishing(original: Any) -> Any:
    def finishing(self: Any, *args: Any, **kwargs: Any) -> Any:
        handling.leave(self)
        return original(self, *args, **kwargs)

    return finishing


def _add_callback(original: Any) -> Any:
    def add_callback(self: Any, f: Any, *args: Any, **kwargs: Any) -> Any:
        ours = callable(f) and not handling.is_library(sys._getframe(1))
        return original(self, bind(f) if ours else f, *args, **kwargs)

    return add_callback
