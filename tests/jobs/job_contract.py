"""What every integration of a scheduler or a task queue owes, beside tests/contracts.py."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.trace import SpanKind, StatusCode, get_current_span

from tests.contracts import BoundaryContract, ancestors, tracer
from tracefill import snapshots
from tracefill.jobs.job_spans import correlation

_todo: dict[str, Callable[[], Any]] = {}
_keys = map(str, itertools.count())


def keep(task: Callable[[], Any]) -> str:
    """The key by which `work` finds a function that no queue could carry."""
    key = next(_keys)
    _todo[key] = task
    return key


def work(key: str) -> Any:
    return _todo[key]()


async def work_async(key: str) -> Any:
    return _todo[key]()


def until(true: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def position() -> str:
    """Trace and span, to be sent home from a process whose spans are out of reach."""
    here = get_current_span().get_span_context()
    return f"{here.trace_id:032x}-{here.span_id:016x}"


class JobContract(BoundaryContract):
    """`submit(task)` asks for a job that runs `task`; `drain()` starts a worker or scheduler, waits until all has run, stops it."""

    spans_between = 2
    kind = SpanKind.CONSUMER
    job_name = "work"

    def submit(self, task: Callable[[], Any], *, delay_s: float = 0, retries: int = 0) -> None:
        raise NotImplementedError

    def drain(self) -> None:
        raise NotImplementedError

    def cross(self, work: Callable[[], Any]) -> None:
        self.submit(work)
        self.drain()

    @pytest.fixture(autouse=True)
    def _snapshots_come_back(self) -> Any:
        gc.collect()
        before = snapshots.stats().in_use
        yield
        gc.collect()
        assert snapshots.stats().in_use == before, snapshots.leaks()

    def runs(self, spans: Any) -> list[Any]:
        found = [span for span in spans.get_finished_spans() if span.name == f"run {self.job_name}"]
        return sorted(found, key=lambda span: span.start_time)

    def test_the_span_of_a_job_says_what_runs(self, spans: Any) -> None:
        with tracer.start_as_current_span("near"):
            self.submit(lambda: None)
        self.drain()
        (run,) = self.runs(spans)
        assert run.kind == self.kind
        assert run.attributes["tracefill.job.name"] == self.job_name
        assert run.attributes["tracefill.job.delay_ms"] >= 0
        assert run.attributes.get("tracefill.job.attempt", 1) == 1
        assert "tracefill.entry" not in run.attributes

    def test_what_a_job_brings_replaces_what_is_ambient_in_its_worker(self, spans: Any) -> None:
        with tracer.start_as_current_span("near"):
            self.submit(lambda: tracer.start_span("far").end())
        with tracer.start_as_current_span("ambient"):
            self.drain()
        (far,) = [span for span in spans.get_finished_spans() if span.name == "far"]
        assert ancestors(spans, far)[-1] == "near"

    def test_a_job_of_nobody_is_no_part_of_its_workers_command_line(self, spans: Any) -> None:
        self.submit(lambda: tracer.start_span("far").end())
        with tracer.start_as_current_span("ambient"):
            self.drain()
        (far,) = [span for span in spans.get_finished_spans() if span.name == "far"]
        assert "ambient" not in ancestors(spans, far)

    def test_a_failure_is_on_the_span_and_the_worker_goes_on(self, spans: Any) -> None:
        def fail() -> None:
            raise ValueError("out of stock")

        with tracer.start_as_current_span("near"):
            self.submit(fail)
            self.submit(lambda: tracer.start_span("far").end())
        self.drain()
        failed, well = sorted(self.runs(spans), key=lambda span: not span.events)
        assert failed.status.status_code == StatusCode.ERROR
        assert [event.attributes["exception.message"] for event in failed.events] == ["out of stock"]
        assert well.status.status_code == StatusCode.UNSET
        (far,) = [span for span in spans.get_finished_spans() if span.name == "far"]
        assert far.parent.span_id == well.context.span_id

    def test_a_job_that_is_too_old_starts_a_trace_with_a_link(self, spans: Any, monkeypatch: Any) -> None:
        monkeypatch.setattr(correlation, "link_after_s", 0.01)
        with tracer.start_as_current_span("near") as near:
            self.submit(lambda: tracer.start_span("far").end())
        time.sleep(0.1)
        self.drain()
        (run,) = self.runs(spans)
        (link,) = run.links
        assert run.parent is None
        assert link.context.trace_id == near.get_span_context().trace_id
        (far,) = [span for span in spans.get_finished_spans() if span.name == "far"]
        assert ancestors(spans, far) == [run.name]


class QueueContract(JobContract):
    """A task queue, which can also run a job later, and again after a failure."""

    def test_each_attempt_continues_whoever_asked_for_the_job(self, spans: Any) -> None:
        attempts: list[int] = []

        def fails_twice() -> None:
            attempts.append(1)
            if len(attempts) < 3:
                raise ConnectionError

        with tracer.start_as_current_span("near"):
            self.submit(fails_twice, retries=2)
        self.drain()
        runs = self.runs(spans)
        made = [run.attributes["tracefill.job.attempt"] for run in runs]
        assert made == [1, 2, 3], made
        assert {ancestors(spans, run)[-1] for run in runs} == {"near"}

    def test_a_job_for_later_continues_whoever_asked_for_it(self, spans: Any) -> None:
        with tracer.start_as_current_span("near"):
            self.submit(lambda: tracer.start_span("far").end(), delay_s=1)
        with tracer.start_as_current_span("ambient"):
            self.drain()
        (run,) = self.runs(spans)
        assert ancestors(spans, run)[-1] == "near"
        near = next(span for span in spans.get_finished_spans() if span.name == "near")
        assert run.start_time - near.end_time > 0.2e9
