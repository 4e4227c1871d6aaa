"""aiokafka: the trace headers of a record, and the scope of whoever handles it (0.11 and later).

    async for record in consume(consumer):  # an AIOKafkaConsumer: each record is current in the body of the loop
        await handle(record)

    with process(record) as span:           # one record of those that `getmany()` returned
        await handle(record)

`install()` does the same for programs that do not name tracefill: `async for record in consumer`, `getone()`, the lists that
`getmany()` returns. See tracefill.messages.handling for when a handling ends.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import get_current_span

from tracefill._codec import extract as extract_headers
from tracefill._codec import scope
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

_CONTRIB = "opentelemetry.instrumentation.aiokafka"
LIBRARIES = ("aiokafka", _CONTRIB)
EACH = True

_tracer = Tracer("tracefill.messages.aiokafka")
_patches = Patches()
_contrib = Contrib(_CONTRIB, "AIOKafkaInstrumentor", _tracer)


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


def consume(consumer: Any) -> AsyncIterator[Any]:
    """The records of an AIOKafkaConsumer, one after the other; each is current in the body of the loop."""
    following = type(consumer).__anext__
    fetch = partial(getattr(following, "plain", following), consumer)
    return handling.AsyncWalk(consumer, _source_of(consumer), fetch, _begun)


def process(record: Any) -> handling.Processing:
    """`with process(record) as span:` - the scope of one record of a batch."""
    return handling.Processing(_Source(None), record)


def batch(records: Sequence[Any] | Mapping[Any, Sequence[Any]]) -> handling.Processing:
    """`with batch(records) as span:` - one scope for several records (a list, or what `getmany()` returned)."""
    return handling.Processing(_Source(None), _several(records))


def _several(records: Sequence[Any] | Mapping[Any, Sequence[Any]]) -> handling.Several:
    lists = records.values() if isinstance(records, Mapping) else (records,)
    return handling.Several(record for some in lists for record in handling.unwalked(some))


class _Source(RecordSource):
    """The records of one AIOKafkaConsumer (None: of an unknown one)."""

    __slots__ = ()

    def __init__(self, consumer: Any) -> None:
        client = getattr(consumer, "_client", None)
        common = consumer_attributes(
            getattr(consumer, "_group_id", None),
            getattr(client, "_client_id", None),
            getattr(client, "_bootstrap_servers", None),
        )
        super().__init__("aiokafka", consumer, common)

    @property
    def tracer(self) -> Tracer:
        return _contrib.tracer

    def span_name(self, destination: str) -> str:
        return f"{destination} receive" if _contrib.leads else f"process {destination}"

    def attributes(self, message: Any) -> dict[str, Any]:
        found = super().attributes(message)
        if _contrib.leads:
            found["messaging.kafka.message.offset"] = message.offset
            found["messaging.message.id"] = f"{message.topic}.{message.partition}.{message.offset}"
        return found


_sources: weakref.WeakKeyDictionary[Any, _Source] = weakref.WeakKeyDictionary()


def _source_of(consumer: Any) -> _Source:
    found = _sources.get(consumer)
    if found is None:
        found = _sources[consumer] = _Source(consumer)
    return found


# ----------------------------------------------------------------------------------------------------------- install


def patch() -> None:
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
    from aiokafka.producer.message_accumulator import BatchBuilder

    _patches.wrap(AIOKafkaProducer, "__init__", partial(_noting_contrib, AIOKafkaProducer))
    _patches.wrap(AIOKafkaProducer, "start", _in_no_trace)
    _patches.wrap(AIOKafkaProducer, "send", partial(_send, AIOKafkaProducer))
    _patches.wrap(AIOKafkaProducer, "send_batch", _send_batch)
    _patches.wrap(BatchBuilder, "append", _append)
    _patches.wrap(AIOKafkaConsumer, "__init__", partial(_noting_contrib, AIOKafkaConsumer))
    _patches.wrap(AIOKafkaConsumer, "start", _in_no_trace)
    _patches.wrap(AIOKafkaConsumer, "__aiter__", _aiter)
    _patches.wrap(AIOKafkaConsumer, "__anext__", _take_one)
    _patches.wrap(AIOKafkaConsumer, "getone", _take_one)
    _patches.wrap(AIOKafkaConsumer, "getmany", _getmany)
    _patches.wrap(AIOKafkaConsumer, "stop", _finishing)
    _patches.wrap(AIOKafkaConsumer, "unsubscribe", _unsubscribe)
    handling.patch_wait_for(__name__)
    _contrib.watch(_patches, {AIOKafkaProducer: ("send",), AIOKafkaConsumer: ("getone", "getmany")})


def unpatch() -> None:
    _patches.undo()
    _contrib.put_back()
    handling.unpatch_wait_for(__name__)


def _noting_contrib(owner: Any, original: Any) -> Any:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        _contrib.step_over(owner, "send", "getone", "getmany")
        original(self, *args, **kwargs)

    return __init__


def _in_no_trace(original: Any) -> Any:
    """The tasks that a client starts are nobody's job: rebalance listeners run in them long after."""

    async def start(self: Any, *args: Any, **kwargs: Any) -> Any:
        with scope(Context()):
            await original(self, *args, **kwargs)
        handling.expect()

    return start


_SEND = ("topic", "value", "key", "partition", "timestamp_ms", "headers")


def _send(owner: Any, original: Any) -> Any:
    plain = _contrib.beneath(original)

    async def send(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(_SEND, args, strict=False))
        if len(args) > len(_SEND) or not given.keys().isdisjoint(kwargs):
            return await plain(self, *args, **kwargs)  # which says what is wrong with it
        given |= kwargs
        topic, headers = given.get("topic"), given.get("headers")
        if not isinstance(topic, str) or not isinstance(headers, (list, tuple, type(None))):
            return await plain(self, *args, **kwargs)
        if _contrib.just_came(owner, "send"):
            return await plain(self, *args, **kwargs)  # contrib has done its work already
        again = handling.republished(topic, given.get("value"), headers)
        name = f"{topic} send" if _contrib.leads else f"send {topic}"
        attributes = partial(_publish_attributes, self, given, again)
        with sending(_contrib.tracer, topic, headers, attributes, name) as span:
            given["headers"] = with_trace(headers, again)
            await _contrib.await_hook("async_produce_hook", span, (), given)
            return await plain(self, **given)

    return send


def _append(original: Any) -> Any:
    """A message of a batch carries the position of whoever appends it; the batch's own span comes when it is sent."""

    def append(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not args and not handling.is_library(sys._getframe(1)):
            kwargs["headers"] = with_trace(kwargs.get("headers")) or []
        return original(self, *args, **kwargs)

    return append


def _send_batch(original: Any) -> Any:
    async def send_batch(self: Any, batch: Any, topic: Any, **kwargs: Any) -> Any:
        given = {"topic": str(topic), "value": batch, **kwargs}
        with sending(_contrib.tracer, str(topic), None, partial(_publish_attributes, self, given, None)) as span:
            span.set_attribute("messaging.batch.message_count", batch.record_count())
            return await original(self, batch, topic, **kwargs)

    return send_batch


def _publish_attributes(producer: Any, given: Mapping[str, Any], again: handling.Republished | None) -> dict[str, Any]:
    found = publish_attributes(given["topic"], given.get("value"), given.get("key"), given.get("partition"), again)
    client = producer.client
    return found | {"messaging.client.id": client._client_id, **server_attributes(client._bootstrap_servers)}


async def _begun(record: Any) -> None:
    await _contrib.await_hook("async_consume_hook", get_current_span(), record, (), {})


def _aiter(original: Any) -> Any:
    def __aiter__(self: Any) -> Any:
        return consume(original(self))

    return __aiter__


def _take_one(original: Any) -> Any:
    """For getone, and for __anext__, which calls it."""
    plain = _contrib.beneath(original)

    async def take_one(self: Any, *args: Any) -> Any:
        if handling.is_library(sys._getframe(1)):
            return await plain(self, *args)
        handling.finish(self, handling.taker(sys._getframe(1)))
        record = await plain(self, *args)
        handling.take(self, _source_of(self), record, handling.taker(sys._getframe(1)))
        await _begun(record)
        return record

    take_one.plain = plain  # type: ignore[attr-defined]
    return take_one


def _getmany(original: Any) -> Any:
    plain = _contrib.beneath(original)

    async def getmany(self: Any, *args: Any, **kwargs: Any) -> Any:
        handling.finish(self, handling.taker(sys._getframe(1)))
        fetched = await plain(self, *args, **kwargs)
        if fetched and not suppressed():
            source = _source_of(self)
            handling.take(self, source, _several(fetched), handling.taker(sys._getframe(1)), lazily=True)
            for partition, records in fetched.items():
                fetched[partition] = handling.Batch(records, source)
        return fetched

    return getmany


def _finishing(original: Any) -> Any:
    async def stop(self: Any, *args: Any, **kwargs: Any) -> Any:
        handling.leave(self)
        return await original(self, *args, **kwargs)

    return stop


def _unsubscribe(original: Any) -> Any:
    def unsubscribe(self: Any) -> Any:
        handling.leave(self)
        return original(self)

    return unsubscribe
