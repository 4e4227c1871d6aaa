"""tracefill.messages.kafka (kafka-python) against a real Kafka."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.future import Future
from opentelemetry import trace
from opentelemetry.instrumentation.kafka import KafkaInstrumentor

from tests.contracts import BoundaryContract, PatchContract, ancestors, finished, tracer
from tests.messages.kafka_contract import DEADLINE_S, Clients, KafkaContract, installed, of_kind, work
from tracefill.messages import kafka as integration


class TestPatches(PatchContract):
    name = "kafka"

    def owners(self) -> list[Any]:
        return [KafkaProducer, KafkaConsumer, Future]


class KafkaPython(Clients):
    name = "kafka"
    integration = integration
    instrumentor = KafkaInstrumentor
    contrib_names = ("{} send", "{} receive")
    contrib_scope = "opentelemetry.instrumentation.kafka"

    @pytest.fixture(autouse=True)
    def _producer(self, _with: None) -> Iterator[None]:
        """Made before any install()."""
        self.make_producer()
        yield
        self.producer.close()

    def make_producer(self) -> None:
        self.producer = KafkaProducer(bootstrap_servers=self.address, linger_ms=0)

    def send(self, topic: str, value: Any = b"x", headers: Any = None, timestamp_ms: int | None = None) -> None:
        self.producer.send(topic, value, headers=headers, timestamp_ms=timestamp_ms).get(DEADLINE_S)

    def send_positional(self, topic: str, headers: Any) -> None:
        self.producer.send(topic, b"x", None, headers).get(DEADLINE_S)

    def consumer(self, topic: str) -> Any:
        consumer = KafkaConsumer(bootstrap_servers=self.address, auto_offset_reset="earliest", fetch_max_wait_ms=50)
        consumer.assign([TopicPartition(topic, 0)])
        return consumer

    def handle(self, topic: str, handler: Callable[[Any], object], count: int = 1) -> None:
        with self.consumer(topic) as consumer:
            for record in consumer:
                handler(record)
                count -= 1
                if not count:
                    break

    def poll_empty(self, topic: str) -> None:
        with self.consumer(topic) as consumer:
            consumer.seek_to_end()
            consumer.position(TopicPartition(topic, 0))
            assert consumer.poll(timeout_ms=50) == {}
            work_is_nobodys()

    def fetch(self, topic: str, count: int, handler: Callable[[list[Any]], object]) -> None:
        with self.consumer(topic) as consumer:
            deadline = time.monotonic() + DEADLINE_S
            while time.monotonic() < deadline:
                for records in consumer.poll(timeout_ms=500).values():
                    assert len(records) == count
                    handler(records)
                    return
        raise AssertionError("no records came")

    def consume(self, topic: str, handler: Callable[[Any], object]) -> None:
        with self.consumer(topic) as consumer:
            for record in integration.consume(consumer):
                handler(record)
                break


def work_is_nobodys() -> None:
    assert not trace.get_current_span().get_span_context().is_valid


class TestKafka(KafkaPython, KafkaContract):
    @pytest.mark.parametrize("headers", [(("a", b"1"),), {"a": b"1"}, [("a", "1")], "a"])
    def test_what_the_client_refuses_it_still_refuses(self, headers: Any) -> None:
        with pytest.raises((TypeError, AttributeError, AssertionError)) as plain:
            self.send(self.topic, headers=headers)
        with installed(self.name), pytest.raises(type(plain.value)) as ours:
            self.send(self.topic, headers=headers)
        assert str(ours.value) == str(plain.value)

    def test_contrib_that_comes_after_a_producer_makes_no_second_span(self, spans: Any, no_log: Any) -> None:
        instrumentor = KafkaInstrumentor()
        headers = [("customer", b"7")]
        with installed(self.name):
            instrumentor.instrument()
            try:
                for _ in range(2):
                    spans.clear()
                    with tracer.start_as_current_span("near"):
                        self.producer.send(self.topic, b"x", headers=list(headers)).get(DEADLINE_S)
                    [sender] = of_kind(spans, "PRODUCER")
                    assert ancestors(spans, sender) == ["near"]
                    assert sender.instrumentation_scope.name == self.contrib_scope
                spans.clear()
                self.send(self.topic, headers=headers)
                assert headers == [("customer", b"7")]
            finally:
                instrumentor.uninstrument()

    def test_callbacks_run_in_the_context_of_who_added_them(self, spans: Any) -> None:
        with installed(self.name):
            with tracer.start_as_current_span("near"):
                future = self.producer.send(self.topic, b"x")
                future.add_callback(lambda metadata: work("on success"))
                future.add_both(lambda result: work("on either"))
                future.get(DEADLINE_S)
            self.producer.flush()
        for name in ("on success", "on either"):
            assert ancestors(spans, finished(spans, name)) == ["near"]

    def test_errback_runs_in_the_context_of_who_added_it(self, spans: Any) -> None:
        future = Future()
        with installed(self.name), tracer.start_as_current_span("near"):
            future.add_errback(lambda error: work("on failure"))
        future.failure(ValueError("refused"))
        assert ancestors(spans, finished(spans, "on failure")) == ["near"]


class TestBoundary(KafkaPython, BoundaryContract):
    spans_between = 2

    def cross(self, work: Callable[[], Any]) -> None:
        topic = f"{self.topic}-{next(self.numbers)}"
        self.send(topic)
        self.handle(topic, lambda record: work())


class TestBoundaryOfNext(TestBoundary):
    def handle(self, topic: str, handler: Callable[[Any], object], count: int = 1) -> None:
        with self.consumer(topic) as consumer:
            handler(next(consumer))


class TestBoundaryOfPoll(TestBoundary):
    def handle(self, topic: str, handler: Callable[[Any], object], count: int = 1) -> None:
        def each(records: list[Any]) -> None:
            for record in records:
                handler(record)

        self.fetch(topic, 1, each)
