"""tracefill.messages.confluent (confluent-kafka) against a real Kafka."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, DeserializingConsumer, SerializingProducer, TopicPartition
from confluent_kafka.aio import AIOConsumer, AIOProducer
from confluent_kafka.aio.producer._producer_batch_processor import ProducerBatchManager
from opentelemetry import trace
from opentelemetry.instrumentation.confluent_kafka import ConfluentKafkaInstrumentor

from tests.contracts import BoundaryContract, PatchContract, ancestors, finished, tracer
from tests.messages.kafka_contract import DEADLINE_S, Clients, KafkaContract, installed, named, work
from tracefill.messages import confluent as integration


class TestPatches(PatchContract):
    name = "confluent"

    def owners(self) -> list[Any]:
        c_types = [confluent_kafka.cimpl.Producer, confluent_kafka.cimpl.Consumer]
        return [*c_types, DeserializingConsumer, AIOConsumer, ProducerBatchManager]


class Confluent(Clients):
    name = "confluent"
    integration = integration
    instrumentor = ConfluentKafkaInstrumentor
    contrib_names = ("{} send", "{} process")
    contrib_scope = "opentelemetry.instrumentation.confluent_kafka"
    header_shapes = (list, dict)

    @pytest.fixture(autouse=True)
    def _producer(self, _with: None) -> Iterator[None]:
        """Made before any install()."""
        self.make_producer()
        yield
        del self.producer

    def make_producer(self) -> None:
        self.producer: Any = confluent_kafka.Producer({"bootstrap.servers": self.address, "linger.ms": 0})

    def send(self, topic: str, value: Any = b"x", headers: Any = None, timestamp_ms: int | None = None) -> None:
        options = {} if timestamp_ms is None else {"timestamp": timestamp_ms}
        self.producer.produce(topic, value, headers=headers, **options)
        assert self.producer.flush(DEADLINE_S) == 0

    def send_positional(self, topic: str, headers: Any) -> None:
        self.producer.produce(topic, b"x", None, -1, None, None, 0, headers)
        assert self.producer.flush(DEADLINE_S) == 0

    def settings(self) -> dict[str, Any]:
        return {
            "bootstrap.servers": self.address,
            "group.id": uuid.uuid4().hex,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 50,
        }

    def consumer(self, topic: str, offset: int = OFFSET_BEGINNING) -> Any:
        consumer = confluent_kafka.Consumer(self.settings())
        consumer.assign([TopicPartition(topic, 0, offset)])
        return consumer

    def handle(self, topic: str, handler: Callable[[Any], object], count: int = 1) -> None:
        consumer = self.consumer(topic)
        try:
            while count:
                message = consumer.poll(0.5)
                if message is None or message.error():
                    continue
                handler(message)
                count -= 1
        finally:
            consumer.close()

    def poll_empty(self, topic: str) -> None:
        consumer = self.consumer(topic, OFFSET_END)
        assert consumer.poll(0.1) is None
        assert consumer.consume(5, 0.1) == []
        consumer.close()

    def fetch(self, topic: str, count: int, handler: Callable[[list[Any]], object]) -> None:
        consumer = self.consumer(topic)
        messages: list[Any] = []
        deadline = time.monotonic() + DEADLINE_S
        while not messages and time.monotonic() < deadline:
            messages = consumer.consume(count, 10)
        assert len(messages) == count
        handler(messages)
        consumer.close()

    def consume(self, topic: str, handler: Callable[[Any], object]) -> None:
        consumer = self.consumer(topic)
        for message in integration.consume(consumer):
            handler(message)
            break
        consumer.close()

    def headers_of(self, message: Any) -> list[tuple[str, Any]]:
        return list(message.headers() or ())

    def value_of(self, message: Any) -> Any:
        return message.value()


def poll_and_work(consumer: Any) -> Any:
    message = None
    while message is None:
        message = consumer.poll(0.5)
    work()
    return message


class TestConfluent(Confluent, KafkaContract):
    @pytest.mark.parametrize("headers", ["a", [("a",)], 7])
    def test_what_the_client_refuses_it_still_refuses(self, headers: Any) -> None:
        with pytest.raises(Exception) as plain:  # noqa: PT011 - whichever it is
            self.send(self.topic, headers=headers)
        with installed(self.name), pytest.raises(type(plain.value)) as ours:
            self.send(self.topic, headers=headers)
        assert str(ours.value) == str(plain.value)

    def test_delivery_report_runs_in_the_context_of_who_sent(self, spans: Any) -> None:
        with installed(self.name):
            with tracer.start_as_current_span("near"):
                self.producer.produce(self.topic, b"x", on_delivery=lambda error, message: work())
            self.producer.flush(DEADLINE_S)
        assert ancestors(spans, finished(spans, "far")) == ["near"]

    def test_error_event_is_no_message(self, spans: Any) -> None:
        self.send(self.topic)
        with installed(self.name):
            consumer = confluent_kafka.Consumer(self.settings() | {"enable.partition.eof": True})
            consumer.assign([TopicPartition(self.topic, 0, OFFSET_END)])
            message = None
            while message is None:
                message = consumer.poll(1)
            assert message.error() is not None
            assert not trace.get_current_span().get_span_context().is_valid
            consumer.close()
        assert spans.get_finished_spans() == ()

    def test_polling_no_more_leaves_nothing_current(self, spans: Any) -> None:
        self.send(self.topic)
        consumer = self.consumer(self.topic)
        with installed(self.name):
            poll_and_work(consumer)
            work("after")
        consumer.close()
        assert ancestors(spans, finished(spans, "far")) == [f"process {self.topic}"]
        assert ancestors(spans, finished(spans, "after")) == []

    def test_serializing_and_deserializing_clients(self, spans: Any) -> None:
        with installed(self.name):
            producer = SerializingProducer(
                {"bootstrap.servers": self.address, "value.serializer": lambda value, context: value.upper()}
            )
            with tracer.start_as_current_span("near"):
                producer.produce(self.topic, value=b"order", headers={"customer": b"7"})
            producer.flush(DEADLINE_S)
            consumer = DeserializingConsumer(
                self.settings() | {"value.deserializer": lambda value, context: value.decode()}
            )
            consumer.assign([TopicPartition(self.topic, 0, OFFSET_BEGINNING)])
            message = poll_and_work(consumer)
            assert message.value() == "ORDER"
            assert named(message.headers()) == ["customer", "traceparent"]
            consumer.close()
        above = [f"process {self.topic}", f"send {self.topic}", "near"]
        assert ancestors(spans, finished(spans, "far")) == above

    def test_clients_of_asyncio(self, spans: Any) -> None:
        async def main() -> None:
            producer = AIOProducer({"bootstrap.servers": self.address})
            with tracer.start_as_current_span("near"):
                delivered = await producer.produce(self.topic, value=b"x")
            await producer.flush()
            await delivered
            await producer.close()
            consumer = AIOConsumer(self.settings())
            await consumer.assign([TopicPartition(self.topic, 0, OFFSET_BEGINNING)])
            while await consumer.poll(0.5) is None:
                pass
            work()
            await consumer.close()

        with installed(self.name):
            asyncio.run(main())
        above = [f"process {self.topic}", f"send {self.topic}", "near"]
        assert ancestors(spans, finished(spans, "far")) == above


class TestBoundary(Confluent, BoundaryContract):
    spans_between = 2

    def cross(self, work: Callable[[], Any]) -> None:
        topic = f"{self.topic}-{next(self.numbers)}"
        self.send(topic)
        self.handle(topic, lambda message: work())


class TestBoundaryOfConsume(TestBoundary):
    def handle(self, topic: str, handler: Callable[[Any], object], count: int = 1) -> None:
        def each(messages: list[Any]) -> None:
            for message in messages:
                handler(message)

        self.fetch(topic, 1, each)
