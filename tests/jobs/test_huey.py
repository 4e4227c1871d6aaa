from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import huey
import huey.api
import huey.consumer
import huey.serializer
import pytest
from huey import MemoryHuey
from huey.serializer import SignedSerializer
from opentelemetry.trace import SpanKind

import tracefill
from tests.contracts import PatchContract, ancestors, tracer
from tests.jobs.job_contract import QueueContract, keep, until, work


class TestPatches(PatchContract):
    name = "huey"

    def owners(self) -> list[Any]:
        return [huey.api.Huey, huey.serializer.Serializer, huey.consumer.Consumer]


_names = map("huey{}".format, itertools.count())


def make_huey(**options: Any) -> tuple[Any, Any]:
    """A huey of its own, and its task."""
    made = MemoryHuey(next(_names), **options)
    return made, made.task(name="work")(work)


def consume(of: Any, over: Callable[[], Any]) -> None:
    consumer = of.create_consumer(initial_delay=0.01, max_delay=0.05, scheduler_interval=1)
    consumer._set_signal_handlers = lambda: None
    consumer.start()
    try:
        until(over)
    finally:
        consumer.stop(graceful=True)


class TestBoundary(QueueContract):
    name = "huey"

    @pytest.fixture(autouse=True)
    def _huey(self) -> None:
        self.huey, self.task = self.make()
        self.over: list[Any] = []
        self.asked = 0

        @self.huey.signal(huey.signals.SIGNAL_COMPLETE, huey.signals.SIGNAL_ERROR)
        def note(signal: str, task: Any, error: Any = None) -> None:
            if error is None or not task.retries:
                self.over.append(signal)

    def make(self) -> tuple[Any, Any]:
        return make_huey()

    def submit(self, task: Callable[[], Any], *, delay_s: float = 0, retries: int = 0) -> None:
        self.asked += 1
        self.huey.enqueue(self.task.s(keep(task), retries=retries, delay=delay_s or None))

    def drain(self) -> None:
        consume(self.huey, lambda: len(self.over) == self.asked)


class TestSignedAndCompressed(TestBoundary):
    def make(self) -> tuple[Any, Any]:
        return make_huey(serializer=SignedSerializer(secret="s", compression=True))


@pytest.fixture
def installed(spans: Any) -> Any:
    tracefill.install(only=["huey"])
    yield
    tracefill.uninstall()


def test_a_pipeline_continues_from_task_to_task(installed: None, spans: Any) -> None:
    of, task = make_huey()
    done: list[str] = []
    with tracer.start_as_current_span("near"):
        of.enqueue(task.s(keep(lambda: done.append("a"))).then(of.task(name="second")(lambda *_: done.append("b"))))
    consume(of, lambda: len([span for span in spans.get_finished_spans() if span.name.startswith("run ")]) == 2)
    second = next(span for span in spans.get_finished_spans() if span.name == "run second")
    assert ancestors(spans, second) == ["enqueue second", "run work", "enqueue work", "near"]
    assert done == ["a", "b"]


def test_a_periodic_task_is_a_trace_of_its_own(installed: None, spans: Any) -> None:
    of, _ = make_huey()
    of.periodic_task(lambda _: True, name="tick")(lambda: None)
    with tracer.start_as_current_span("starts"):
        consumer = of.create_consumer(initial_delay=0.01, max_delay=0.05, scheduler_interval=1, periodic=True)
        consumer._set_signal_handlers = lambda: None
        consumer.start()
        # As its scheduler does each minute, from the thread that it has for that.
        until(lambda: any(span.name == "run tick" for span in spans.get_finished_spans()), 90)
        consumer.stop(graceful=True)
    tick = next(span for span in spans.get_finished_spans() if span.name == "run tick")
    assert "starts" not in ancestors(spans, tick)


def test_an_immediate_huey_runs_below_its_caller(installed: None, spans: Any) -> None:
    _, task = make_huey(immediate=True)
    with tracer.start_as_current_span("near"):
        task(keep(lambda: tracer.start_span("far").end()))
    far = next(span for span in spans.get_finished_spans() if span.name == "far")
    assert ancestors(spans, far) == ["run work", "enqueue work", "near"]


def test_queue_and_id_are_on_the_spans(installed: None, spans: Any) -> None:
    of, task = make_huey()
    asked = task(keep(lambda: None))
    consume(of, lambda: len(spans.get_finished_spans()) == 2)
    sent, run = spans.get_finished_spans()
    assert (sent.name, sent.kind, run.kind) == ("enqueue work", SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert (run.attributes["messaging.destination.name"], run.attributes["messaging.message.id"]) == (of.name, asked.id)


def test_a_consumer_without_tracefill_runs_the_task(installed: None) -> None:
    of, task = make_huey()
    done: list[int] = []
    with tracer.start_as_current_span("near"):
        task(keep(lambda: done.append(1)))
    tracefill.uninstall()
    consume(of, lambda: done)
