from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dramatiq
import dramatiq.broker
import dramatiq.worker
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware.asyncio import AsyncIO
from opentelemetry.trace import SpanKind

import tracefill
from tests.contracts import PatchContract, ancestors, tracer
from tests.jobs.job_contract import QueueContract, keep, work, work_async


class TestPatches(PatchContract):
    name = "dramatiq"

    def owners(self) -> list[Any]:
        return [dramatiq.broker.Broker, StubBroker, dramatiq.worker.Worker, dramatiq.worker._WorkerThread]


def run(broker: Any) -> None:
    """A worker, until its queues are empty."""
    worker = dramatiq.Worker(broker, worker_timeout=20, worker_threads=1)
    worker.start()
    try:
        for name in list(broker.queues):
            if not name.endswith(".DQ"):
                broker.join(name, fail_fast=False, timeout=60_000)
        worker.join()
    finally:
        worker.stop()


class TestBoundary(QueueContract):
    name = "dramatiq"

    @pytest.fixture(autouse=True)
    def _broker(self) -> Any:
        self.broker = StubBroker()
        options = {"min_backoff": 10, "max_backoff": 20, "max_retries": 0}
        self.actor = dramatiq.actor(work, actor_name="work", broker=self.broker, **options)
        yield
        self.broker.close()

    def submit(self, task: Callable[[], Any], *, delay_s: float = 0, retries: int = 0) -> None:
        delay = {"delay": delay_s * 1000} if delay_s else {}
        self.actor.send_with_options(args=(keep(task),), max_retries=retries, **delay)

    def drain(self) -> None:
        run(self.broker)


@pytest.fixture
def broker(spans: Any) -> Any:
    tracefill.install(only=["dramatiq"])
    broker = StubBroker()
    yield broker
    broker.close()
    tracefill.uninstall()


def test_one_message_that_is_sent_twice_has_two_senders(broker: Any, spans: Any) -> None:
    actor = dramatiq.actor(work, actor_name="work", broker=broker)
    message = actor.message(keep(lambda: None))
    for name in "ab":
        with tracer.start_as_current_span(name):
            broker.enqueue(message)
    run(broker)
    runs = [span for span in spans.get_finished_spans() if span.name == "run work"]
    assert {ancestors(spans, span)[-1] for span in runs} == {"a", "b"}
    assert message.options == {}


def test_a_pipeline_continues_from_actor_to_actor(broker: Any, spans: Any) -> None:
    first = dramatiq.actor(work, actor_name="first", broker=broker)
    second = dramatiq.actor(work, actor_name="second", broker=broker)
    key = keep(lambda: None)
    with tracer.start_as_current_span("near"):
        messages = [first.message(key), second.message_with_options(args=(key,), pipe_ignore=True)]
        dramatiq.pipeline(messages, broker=broker).run()
    run(broker)
    found = next(span for span in spans.get_finished_spans() if span.name == "run second")
    assert ancestors(spans, found) == ["enqueue second", "run first", "enqueue first", "near"]


def test_an_async_actor_is_below_the_span_of_its_run(broker: Any, spans: Any) -> None:
    broker.add_middleware(AsyncIO())
    actor = dramatiq.actor(work_async, actor_name="work", broker=broker)
    with tracer.start_as_current_span("near"):
        actor.send(keep(lambda: tracer.start_span("far").end()))
    run(broker)
    far = next(span for span in spans.get_finished_spans() if span.name == "far")
    assert ancestors(spans, far) == ["run work", "enqueue work", "near"]


def test_a_broker_class_that_comes_later_is_patched_too(broker: Any, spans: Any) -> None:
    class Later(StubBroker):
        def enqueue(self, message: Any, *, delay: Any = None) -> Any:
            return super().enqueue(message, delay=delay)

    later = Later()
    actor = dramatiq.actor(work, actor_name="work", broker=later)
    with tracer.start_as_current_span("near"):
        actor.send(keep(lambda: None))
    run(later)
    assert [span.name for span in spans.get_finished_spans()].count("enqueue work") == 1


def test_queue_and_id_are_on_the_spans(broker: Any, spans: Any) -> None:
    actor = dramatiq.actor(work, actor_name="work", broker=broker, queue_name="mails")
    sent = actor.send(keep(lambda: None))
    run(broker)
    enqueued, ran = spans.get_finished_spans()
    assert (enqueued.kind, ran.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert ran.attributes["messaging.destination.name"] == "mails"
    assert enqueued.attributes["messaging.message.id"] == ran.attributes["messaging.message.id"] == sent.message_id
