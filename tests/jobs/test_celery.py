from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import celery
import celery.beat
import celery.worker
import pytest
from celery import Celery, chain, signals
from celery.contrib.testing.worker import start_worker
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.trace import SpanKind, get_current_span

import tracefill
from tests.contracts import PatchContract, ancestors, tracer
from tests.jobs.job_contract import QueueContract, keep, until, work


class TestPatches(PatchContract):
    name = "celery"

    def owners(self) -> list[Any]:
        return [Celery, celery.worker.WorkController, celery.beat.Service]


_names = map("app{}".format, itertools.count())


def make_app() -> Any:
    app = Celery(next(_names), broker="memory://", backend="cache+memory://")
    # The memory broker is one for the process: each application has a queue to itself.
    app.conf.update(task_default_queue=app.main, worker_hijack_root_logger=False)

    def run(self: Any, key: str, retries: int) -> Any:
        try:
            return work(key)
        except ConnectionError as error:
            raise self.retry(exc=error, countdown=0, max_retries=retries) from error

    app.task(name="work", bind=True, shared=False)(run)
    return app


class TestBoundary(QueueContract):
    name = "celery"

    @pytest.fixture(autouse=True)
    def _app(self) -> Any:
        self.app = make_app()
        self.over: list[Any] = []
        self.asked = 0

        def note(state: Any = None, **_: Any) -> None:
            if state != "RETRY":
                self.over.append(state)

        signals.task_postrun.connect(note, weak=False)
        yield
        signals.task_postrun.disconnect(note)

    def submit(self, task: Callable[[], Any], *, delay_s: float = 0, retries: int = 0) -> None:
        self.asked += 1
        self.app.tasks["work"].apply_async((keep(task), retries), countdown=delay_s or None)

    def drain(self) -> None:
        with start_worker(self.app, perform_ping_check=False, pool="solo"):
            until(lambda: len(self.over) == self.asked)


@pytest.fixture
def app(spans: Any) -> Any:
    tracefill.install(only=["celery"])
    yield make_app()
    tracefill.uninstall()


def test_a_task_that_runs_at_once_is_below_its_caller(app: Any, spans: Any) -> None:
    app.conf.task_always_eager = True
    with tracer.start_as_current_span("near"):
        app.tasks["work"].delay(keep(lambda: tracer.start_span("far").end()), 0)
    far = spans.get_finished_spans()[0]
    assert ancestors(spans, far) == ["run work", "near"]


def test_the_links_of_a_chain_are_of_one_trace(app: Any, spans: Any) -> None:
    done: list[str] = []
    tasks = [app.tasks["work"].si(keep(lambda name=name: done.append(name)), 0) for name in "ab"]
    with start_worker(app, perform_ping_check=False):
        with tracer.start_as_current_span("near"):
            chain(*tasks).apply_async()
        until(lambda: done == ["a", "b"])
    runs = [span for span in spans.get_finished_spans() if span.name == "run work"]
    assert [ancestors(spans, run)[-1] for run in runs] == ["near", "near"]


def test_a_pool_of_threads_keeps_two_requests_apart(app: Any, spans: Any) -> None:
    with tracer.start_as_current_span("starts"):
        worker = start_worker(app, perform_ping_check=False, pool="threads", concurrency=2)
        worker.__enter__()
    for name in "abcd":
        with tracer.start_as_current_span(name):
            app.tasks["work"].delay(keep(lambda name=name: tracer.start_span(f"far {name}").end()), 0)
    until(lambda: sum(span.name == "run work" for span in spans.get_finished_spans()) == 4)
    worker.__exit__(None, None, None)
    for far in [span for span in spans.get_finished_spans() if span.name.startswith("far ")]:
        assert ancestors(spans, far) == ["run work", "enqueue work", far.name[-1]]


def test_a_failure_that_the_task_expects_is_no_error(app: Any, spans: Any) -> None:
    def expects() -> None:
        raise KeyError

    app.task(name="expects", throws=(KeyError,), shared=False)(expects).apply()
    (run,) = spans.get_finished_spans()
    assert run.events == ()


def test_queue_and_id_are_on_the_spans(app: Any, spans: Any) -> None:
    with start_worker(app, perform_ping_check=False):
        asked = app.tasks["work"].delay(keep(lambda: None), 0)
        until(lambda: len(spans.get_finished_spans()) == 2)
    sent, run = sorted(spans.get_finished_spans(), key=lambda span: span.start_time)
    assert (sent.name, sent.kind) == ("enqueue work", SpanKind.PRODUCER)
    assert sent.attributes["messaging.destination.name"] == app.main
    assert run.attributes["messaging.message.id"] == asked.id
    assert run.attributes["messaging.system"] == "celery"


def test_an_eta_that_is_no_time_is_left_out(app: Any, spans: Any) -> None:
    from tracefill.jobs.celery import _due_ms

    assert _due_ms("soon") is None
    assert _due_ms(None) is None


def test_with_contribs_instrumentor_its_spans_are_the_only_ones(app: Any, spans: Any, no_log: Any) -> None:
    instrumentor = CeleryInstrumentor()
    instrumentor.instrument()
    try:
        with start_worker(app, perform_ping_check=False):
            with tracer.start_as_current_span("near"):
                app.tasks["work"].delay(keep(lambda: tracer.start_span("far").end()), 0)
            until(lambda: any(span.name == "run/work" for span in spans.get_finished_spans()))
    finally:
        instrumentor.uninstrument()
    (far,) = [span for span in spans.get_finished_spans() if span.name == "far"]
    assert ancestors(spans, far) == ["run/work", "apply_async/work", "near"]


def test_with_contribs_instrumentor_a_task_that_the_caller_does_not_know_leaves_nothing_current(
    app: Any, spans: Any
) -> None:
    instrumentor = CeleryInstrumentor()
    instrumentor.instrument()
    try:
        with tracer.start_as_current_span("near") as near:
            app.send_task("of.another.service")
            assert get_current_span() is near
    finally:
        instrumentor.uninstrument()
    assert "apply_async/of.another.service" in [span.name for span in spans.get_finished_spans()]


def test_a_worker_without_tracefill_runs_the_task(app: Any) -> None:
    done: list[int] = []
    with tracer.start_as_current_span("near"):
        app.tasks["work"].delay(keep(lambda: done.append(1)), 0)
    tracefill.uninstall()
    with start_worker(app, perform_ping_check=False):
        until(lambda: done)
