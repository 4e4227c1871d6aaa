"""tracefill.messages.aiokafka against a real Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.producer.message_accumulator import BatchBuilder
from opentelemetry import trace
from opentelemetry.instrumentation.aiokafka import AIOKafkaInstrumentor

from tests.contracts import BoundaryContract, PatchContract, ancestors, finished, tracer
from tests.messages.kafka_contract import DEADLINE_S, Clients, KafkaContract, installed, named, work
from tracefill.messages import aiokafka as integration


class TestPatches(PatchContract):
    name = "aiokafka"

    def owners(self) -> list[Any]:
        return [AIOKafkaProducer, AIOKafkaConsumer, BatchBuilder, asyncio, asyncio.tasks]


class Aiokafka(Clients):
    name = "aiokafka"
    integration = integration
    instrumentor = AIOKafkaInstrumentor
    contrib_names = ("{} send", "{} receive")
    contrib_scope = "opentelemetry.instrumentation.aiokafka"
    header_shapes = (list, tuple)

    def send(self, topic: str, value: Any = b"x", headers: Any = None, timestamp_ms: int | None = None) -> None:
        asyncio.run(self.send_soon(topic, value, headers, timestamp_ms))

    async def send_soon(self, topic: str, value: Any, headers: Any, timestamp_ms: int | None = None) -> None:
        async with AIOKafkaProducer(bootstrap_servers=self.address) as producer:
            await producer.send_and_wait(topic, value, headers=headers, timestamp_ms=timestamp_ms)

    def send_positional(self, topic: str, headers: Any) -> None:
        async def main() -> None:
            async with AIOKafkaProducer(bootstrap_servers=self.address) as producer:
                await (await producer.send(topic, b"x", None, None, None, headers))

        asyncio.run(main())

    async def with_consumer(self, topic: str, use: Callable[[Any], Awaitable[None]]) -> None:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.address, auto_offset_reset="earliest", fetch_max_wait_ms=50, metadata_max_age_ms=500
        )
        consumer.assign([TopicPartition(topic, 0)])
        async with consumer:
            await asyncio.wait_for(asyncio.ensure_future(use(consumer)), DEADLINE_S)

    def handle(self, topic: str, handler: Callable[[Any], object], count: int = 1) -> None:
        async def loop(consumer: Any) -> None:
            left = count
            async for record in consumer:
                pending = handler(record)
                if asyncio.iscoroutine(pending):
                    await pending
                left -= 1
                if not left:
                    break

        asyncio.run(self.with_consumer(topic, loop))

    def send_inside(self, topic: str, value: Any, headers: Any) -> Any:
        return self.send_soon(topic, value, headers)

    def poll_empty(self, topic: str) -> None:
        async def look(consumer: Any) -> None:
            await consumer.seek_to_end()
            assert await consumer.getmany(timeout_ms=50) == {}
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(consumer.getone(), 0.1)
            assert not trace.get_current_span().get_span_context().is_valid

        asyncio.run(self.with_consumer(topic, look))

    def fetch(self, topic: str, count: int, handler: Callable[[list[Any]], object]) -> None:
        async def get(consumer: Any) -> None:
            fetched: Any = {}
            while not fetched:
                fetched = await consumer.getmany(timeout_ms=500)
            [records] = fetched.values()
            assert len(records) == count
            handler(records)

        asyncio.run(self.with_consumer(topic, get))

    def consume(self, topic: str, handler: Callable[[Any], object]) -> None:
        async def loop(consumer: Any) -> None:
            async for record in integration.consume(consumer):
                handler(record)
                break

        asyncio.run(self.with_consumer(topic, loop))


class TestAiokafka(Aiokafka, KafkaContract):
    @pytest.mark.parametrize("headers", [{"a": b"1"}, [("a", "1")], "a"])
    def test_what_the_client_refuses_it_still_refuses(self, headers: Any) -> None:
        with pytest.raises(Exception) as plain:  # noqa: PT011 - whichever it is
            self.send(self.topic, headers=headers)
        with installed(self.name), pytest.raises(type(plain.value)) as ours:
            self.send(self.topic, headers=headers)
        assert str(ours.value) == str(plain.value)

    def test_messages_of_a_batch_carry_whoever_appended_them(self, spans: Any) -> None:
        async def main() -> None:
            async with AIOKafkaProducer(bootstrap_servers=self.address) as producer:
                batch = producer.create_batch()
                for name in ("first", "second"):
                    with tracer.start_as_current_span(name):
                        assert batch.append(key=None, value=name.encode(), timestamp=None) is not None
                await (await producer.send_batch(batch, self.topic, partition=0))

        with installed(self.name):
            asyncio.run(main())
            self.handle(self.topic, lambda record: work(f"far {record.value.decode()}"), count=2)
        for name in ("first", "second"):
            assert ancestors(spans, finished(spans, f"far {name}")) == [f"process {self.topic}", name]
        assert finished(spans, f"send {self.topic}").attributes["messaging.batch.message_count"] == 2

    def test_received_headers_are_a_tuple_and_may_be_sent_on(self) -> None:
        seen: list[Any] = []
        with installed(self.name):
            self.send(self.topic, headers=[("customer", b"7")])

            async def relay(record: Any) -> None:
                assert isinstance(record.headers, tuple)
                await self.send_soon(f"{self.topic}-on", record.value, record.headers)

            self.handle(self.topic, relay)
            self.handle(f"{self.topic}-on", lambda record: seen.extend(record.headers))
        assert named(seen).count("traceparent") == 1
        assert ("customer", b"7") in seen


class TestBoundary(Aiokafka, BoundaryContract):
    spans_between = 2

    def cross(self, work: Callable[[], Any]) -> None:
        topic = f"{self.topic}-{next(self.numbers)}"
        self.send(topic)
        self.handle(topic, lambda record: work())


class TestBoundaryOfGetone(TestBoundary):
    def handle(self, topic: str, handler: Callable[[Any], object], count: int = 1) -> None:
        async def get(consumer: Any) -> None:
            handler(await asyncio.wait_for(consumer.getone(), DEADLINE_S))

        asyncio.run(self.with_consumer(topic, get))


class TestBoundaryOfGetmany(TestBoundary):
    def handle(self, topic: str, handler: Callable[[Any], object], count: int = 1) -> None:
        def each(records: list[Any]) -> None:
            for record in records:
                handler(record)

        self.fetch(topic, 1, each)
