"""confluent-kafka: the trace headers of a message, and the scope of whoever handles it (2.5 and later).

    for message in consume(consumer):       # a Consumer: each message is current in the body of the loop
        handle(message)

    with process(message) as span:          # one message of those that `consumer.consume(100)` returned
        handle(message)

`install()` does the same for programs that do not name tracefill: what `poll()` and `consume()` return, `on_delivery`
callbacks; Producer and Consumer, Serializing- and DeserializingConsumer, the clients of `confluent_kafka.aio`; objects and
names (`from confluent_kafka import Producer`) of before. See tracefill.messages.handling for when a handling ends.

librdkafka sends no headers in a batch. `produce_batch` and AIOProducer, which is built on it, send one message after the other
while tracefill is installed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from opentelemetry.context import Context

from tracefill._codec import bind
from tracefill._codec import extract as extract_headers
from tracefill.messages import handling
from tracefill.messages.contrib import Contrib
from tracefill.messages.kafka_messages import (
    consumer_attributes,
    inject_into,
    partition_attributes,
    process_attributes,
    publish_attributes,
    server_attributes,
    with_trace,
)
from tracefill.messages.message_spans import Source, sending
from tracefill.spans import Tracer, suppressed
from tracefill.wrapping import Patches

__all__ = ["batch", "consume", "extract", "inject", "patch", "process", "unpatch"]

_CONTRIB = "opentelemetry.instrumentation.confluent_kafka"
LIBRARIES = ("confluent_kafka", _CONTRIB)
EACH = True

_tracer = Tracer("tracefill.messages.confluent")
_patches = Patches()
_contrib = Contrib(_CONTRIB, "ConfluentKafkaInstrumentor", _tracer)

Headers = list[tuple[str, Any]] | dict[str, Any]


def inject(headers: Headers | None = None) -> Headers:
    """The headers (a list of pairs or a dict; None: a new list) with the position of now; that of another trace is replaced.

    >>> inject({"customer": b"7"})
    {'customer': b'7'}
    """
    filled: Headers = inject_into(headers)
    return filled


def extract(message: Any) -> Context:
    """The Context that a message's headers carry; an empty one when they carry none."""
    return extract_headers(message.headers() or ())


def consume(consumer: Any, timeout: float = 1.0) -> Iterator[Any]:
    """The messages of a Consumer, one after the other, for ever; each is current in the body of the loop.

    Errors and ends of partitions come too, as from `poll`: see `message.error()`. `timeout`: seconds that one poll waits.
    """
    poll = type(consumer).poll
    fetch = partial(_next_message, partial(getattr(poll, "plain", poll), consumer, timeout))
    return handling.Walk(consumer, _Source(consumer), fetch, surely=True)


def _next_message(poll: Callable[[], Any]) -> Any:
    while (message := poll()) is None:
        pass
    return message


def process(message: Any) -> handling.Processing:
    """`with process(message) as span:` - the scope of one message of a batch."""
    return handling.Processing(_Source(None), message)


def batch(messages: Sequence[Any]) -> handling.Processing:
    """`with batch(messages) as span:` - one scope for several messages."""
    return handling.Processing(_Source(None), _several(messages))


def _several(messages: Sequence[Any]) -> handling.Several:
    return handling.Several(message for message in handling.unwalked(messages) if message.error() is None)


class _Source(Source):
    """The messages of one Consumer (None: of an unknown one)."""

    __slots__ = ("consumer",)

    def __init__(self, consumer: Any) -> None:
        self.consumer = consumer

    @property
    def tracer(self) -> Tracer:
        return _contrib.tracer

    def is_no_message(self, message: Any) -> bool:
        return message.error() is not None

    def destination(self, message: Any) -> str:
        topic: str = message.topic()
        return topic

    def headers(self, message: Any) -> Any:
        return message.headers()

    def body(self, message: Any) -> Any:
        return message.value()

    def created_ms(self, message: Any) -> float | None:
        kind, created = message.timestamp()
        return created if kind else None

    def span_name(self, destination: str) -> str:
        return f"{destination} process" if _contrib.leads else super().span_name(destination)

    def attributes(self, message: Any) -> dict[str, Any]:
        config = _config(self.consumer)
        common = consumer_attributes(config.get("group.id"), config.get("client.id"), config.get("bootstrap.servers"))
        common |= partition_attributes(message.topic(), message.partition())
        found = process_attributes(common, message.offset(), message.key(), message.value())
        if _contrib.leads:
            found |= _old_attributes(message.topic(), "process")
            found["messaging.kafka.partition"] = message.partition()
            found["messaging.message.id"] = f"{message.topic()}.{message.partition()}.{message.offset()}"
        end = self._end_of(message)
        if end is not None:
            found["tracefill.message.lag"] = max(0, end - message.offset() - 1)
        return found

    def _end_of(self, message: Any) -> int | None:
        """The end of the message's partition, as far as the client knows without asking the broker."""
        if self.consumer is None:
            return None
        try:
            partition = sys.modules["confluent_kafka"].TopicPartition(message.topic(), message.partition())
            _, end = self.consumer.get_watermark_offsets(partition, cached=True)
        except Exception:  # closed, or no longer assigned to us
            return None
        return end if end >= 0 else None


def _config(client: Any) -> Mapping[str, Any]:
    """The configuration, where a subclass (contrib's) has kept it: the C types do not tell."""
    config = getattr(client, "config", None)
    return config if isinstance(config, Mapping) else {}


def _old_attributes(topic: str, operation: str) -> dict[str, Any]:
    """Contrib's, of conventions 1.11."""
    return {"messaging.destination": topic, "messaging.destination_kind": "queue", "messaging.operation": operation}


# ----------------------------------------------------------------------------------------------------------- install


def patch() -> None:
    from confluent_kafka import DeserializingConsumer, cimpl

    single = cimpl.Producer.produce
    # The C types themselves: programs hold them (`from confluent_kafka import Producer`), and objects of them.
    _patches.wrap(cimpl.Producer, "__init__", _noting_contrib)
    _patches.wrap(cimpl.Producer, "produce", _produce)
    _patches.wrap(cimpl.Producer, "produce_batch", partial(_produce_batch, single))
    _patches.wrap(cimpl.Consumer, "__init__", _noting_contrib)
    _patches.wrap(cimpl.Consumer, "poll", _poll)
    _patches.wrap(cimpl.Consumer, "consume", _consume)
    _patches.wrap(cimpl.Consumer, "close", _finishing)
    _patches.wrap(cimpl.Consumer, "unsubscribe", _finishing)
    _patches.wrap(DeserializingConsumer, "poll", _poll)
    _patch_aio()
    _stand_in_for_contrib()


def _patch_aio() -> None:
    """The asyncio clients, where this version has them."""
    try:
        from confluent_kafka import aio
        from confluent_kafka.aio.producer._producer_batch_processor import ProducerBatchManager
    except ImportError:
        return
    _patches.wrap(ProducerBatchManager, "add_message", _add_message)
    for kind in (aio.AIOConsumer, getattr(aio, "AsyncDeserializingConsumer", None)):
        if kind is not None:
            _patches.wrap(kind, "poll", _aio_poll)
            _patches.wrap(kind, "consume", _aio_consume)
    _patches.wrap(aio.AIOConsumer, "close", _aio_finishing)
    _patches.wrap(aio.AIOConsumer, "unsubscribe", _aio_finishing)
    handling.patch_wait_for(__name__)


def unpatch() -> None:
    _patches.undo()
    handling.unpatch_wait_for(__name__)


def _stand_in_for_contrib() -> None:
    """Contrib's wrappers hand on; ours, which are called by its classes too, do the work with its tracer."""
    instrumentor: Any = getattr(sys.modules.get(_CONTRIB), "ConfluentKafkaInstrumentor", None)
    if instrumentor is not None:
        for name in ("wrap_produce", "wrap_poll", "wrap_consume", "wrap_close"):
            _patches.wrap(instrumentor, name, _handing_on)
        _contrib.takes_part(tracer=getattr(instrumentor(), "_tracer", None))


def _handing_on(original: Any) -> Any:
    def handing_on(func: Any, instance: Any, *rest: Any) -> Any:
        args, kwargs = rest[-2:]
        return func(*args, **kwargs)

    return handing_on


def _noting_contrib(original: Any) -> Any:
    """Contrib's classes are subclasses, which call this: the moment to see that contrib was switched on after us."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        _stand_in_for_contrib()
        original(self, *args, **kwargs)
        handling.expect()

    return __init__


_PRODUCE = ("topic", "value", "key", "partition", "callback", "on_delivery", "timestamp", "headers")


def _produce(original: Any) -> Any:
    def produce(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(_PRODUCE, args, strict=False))
        if len(args) > len(_PRODUCE) or not given.keys().isdisjoint(kwargs):
            return original(self, *args, **kwargs)  # which says what is wrong with it
        given |= kwargs
        topic, headers = given.get("topic"), given.get("headers")
        if not isinstance(topic, str) or not isinstance(headers, (list, dict, type(None))):
            return original(self, *args, **kwargs)
        again = handling.republished(topic, given.get("value"), headers)
        for name in ("callback", "on_delivery"):
            if callable(given.get(name)):
                given[name] = bind(given[name])
        with _sending(self, given, again):
            given["headers"] = with_trace(headers, again)
            return original(self, **given)

    return produce


def _sending(producer: Any, given: Mapping[str, Any], again: handling.Republished | None = None) -> Any:
    topic = given["topic"]
    name = f"{topic} send" if _contrib.leads else f"send {topic}"
    return sending(
        _contrib.tracer, topic, given.get("headers"), partial(_publish_attributes, producer, given, again), name
    )


def _publish_attributes(producer: Any, given: Mapping[str, Any], again: handling.Republished | None) -> dict[str, Any]:
    found = publish_attributes(given["topic"], given.get("value"), given.get("key"), given.get("partition"), again)
    found |= server_attributes(_config(producer).get("bootstrap.servers"))
    return found | _old_attributes(given["topic"], "publish") if _contrib.leads else found


def _produce_batch(single: Any, original: Any) -> Any:
    def produce_batch(self: Any, topic: Any, messages: Any, partition: int = -1, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            return original(self, topic, messages, partition, *args, **kwargs)
        on_delivery = kwargs.get("on_delivery") or kwargs.get("callback") or next(iter(args), None)
        send = partial(_send_one, single, self, topic, partition, bind(on_delivery) if callable(on_delivery) else None)
        if messages and all("headers" in message for message in messages):  # AIOProducer's: see _add_message
            return sum(send(message, message["headers"]) for message in messages)
        with _sending(self, {"topic": topic, "value": messages, "partition": partition}) as span:
            span.set_attribute("messaging.batch.message_count", len(messages))
            headers = with_trace(None)
            if headers is None:
                return original(self, topic, messages, partition, *args, **kwargs)
            return sum(send(message, headers) for message in messages)

    return produce_batch


def _send_one(
    single: Any, producer: Any, topic: str, partition: int, on_delivery: Any, message: dict[str, Any], headers: Any
) -> bool:
    """True when the message is queued; else its `_error` says why, as after `produce_batch`."""
    from confluent_kafka import KafkaError, KafkaException

    options = {name: message[name] for name in ("value", "key", "timestamp") if message.get(name) is not None}
    callback = message.get("callback")
    try:
        single(
            producer,
            topic,
            partition=message.get("partition", partition),
            on_delivery=bind(callback) if callable(callback) else on_delivery,
            headers=headers,
            **options,
        )
    except BufferError:
        message["_error"] = KafkaError(KafkaError._QUEUE_FULL)
    except KafkaException as error:
        message["_error"] = error.args[0]
    else:
        return True
    return False


def _add_message(original: Any) -> Any:
    """AIOProducer collects messages and sends them from a pool thread: their headers are written here, while the sender's
    context is current."""

    def add_message(self: Any, msg_data: dict[str, Any], future: Any) -> None:
        if isinstance(msg_data.get("topic"), str):
            with _sending(None, msg_data):
                carrying = with_trace(msg_data.get("headers"))
            msg_data = msg_data | {"headers": carrying}
        original(self, msg_data, future)

    return add_message


def _poll(original: Any) -> Any:
    def poll(self: Any, *args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1)
        if handling.is_library(caller):
            return original(self, *args, **kwargs)
        frame = handling.taker(caller)
        handling.finish(self, frame)
        message = original(self, *args, **kwargs)
        if message is not None and message.error() is None:
            handling.take(self, _Source(self), message, frame)
        return message

    poll.plain = original  # type: ignore[attr-defined]
    return poll


def _consume(original: Any) -> Any:
    def consume(self: Any, *args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1)
        if handling.is_library(caller):
            return original(self, *args, **kwargs)
        frame = handling.taker(caller)
        handling.finish(self, frame)
        return _batched(self, _Source(self), original(self, *args, **kwargs), frame)

    return consume


def _batched(consumer: Any, source: _Source, messages: list[Any], frame: Any) -> list[Any]:
    if not messages or suppressed():
        return messages
    several = _several(messages)
    if several:
        handling.take(consumer, source, several, frame, lazily=True)
    return handling.Batch(messages, source)


def _finishing(original: Any) -> Any:
    def finishing(self: Any, *args: Any, **kwargs: Any) -> Any:
        handling.leave(self)
        return original(self, *args, **kwargs)

    return finishing


def _aio_poll(original: Any) -> Any:
    async def poll(self: Any, *args: Any, **kwargs: Any) -> Any:
        if handling.is_library(sys._getframe(1)):
            return await original(self, *args, **kwargs)
        handling.finish(self, handling.taker(sys._getframe(1)))
        message = await original(self, *args, **kwargs)
        if message is not None and message.error() is None:
            handling.take(self, _Source(None), message, handling.taker(sys._getframe(1)))
        return message

    return poll


def _aio_consume(original: Any) -> Any:
    async def consume(self: Any, *args: Any, **kwargs: Any) -> Any:
        if handling.is_library(sys._getframe(1)):
            return await original(self, *args, **kwargs)
        handling.finish(self, handling.taker(sys._getframe(1)))
        messages = await original(self, *args, **kwargs)
        return _batched(self, _Source(None), messages, handling.taker(sys._getframe(1)))

    return consume


def _aio_finishing(original: Any) -> Any:
    async def finishing(self: Any, *args: Any, **kwargs: Any) -> Any:
        handling.leave(self)
        return await original(self, *args, **kwargs)

    return finishing
