from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import schedule
from opentelemetry.trace import SpanKind

import tracefill
from tests.contracts import PatchContract, ancestors, tracer
from tests.jobs.job_contract import JobContract, keep, until, work
from tracefill import snapshots


class TestPatches(PatchContract):
    name = "schedule"

    def owners(self) -> list[Any]:
        return [schedule.Job]


def once(key: str) -> Any:
    work(key)
    return schedule.CancelJob


class TestBoundary(JobContract):
    name = "schedule"
    spans_between = 1
    kind = SpanKind.INTERNAL
    job_name = "once"

    @pytest.fixture(autouse=True)
    def _scheduler(self) -> None:
        self.scheduler = schedule.Scheduler()

    def submit(self, task: Callable[[], Any], **_: Any) -> None:
        self.scheduler.every().hour.do(once, keep(task))

    def drain(self) -> None:
        for job in list(self.scheduler.jobs):
            with contextlib.suppress(ValueError):  # `schedule` lets a failure through to whoever runs it
                self.scheduler._run_job(job)
        self.scheduler.clear()

    def test_a_job_of_nobody_is_no_part_of_its_workers_command_line(self, spans: Any) -> None:
        """Nobody's job runs in the hands of whoever calls `run_pending`, as it does without tracefill."""
        self.submit(lambda: tracer.start_span("far").end())
        with tracer.start_as_current_span("loop"):
            self.drain()
        assert [span.name for span in spans.get_finished_spans()] == ["far", "loop"]


@pytest.fixture
def scheduler(spans: Any) -> Any:
    tracefill.install(only=["schedule"])
    yield schedule.Scheduler()
    tracefill.uninstall()


def test_the_first_run_continues_and_the_later_ones_are_linked(scheduler: Any, spans: Any) -> None:
    with tracer.start_as_current_span("near") as near:
        scheduler.every().hour.do(work, keep(lambda: None))
    for _ in range(3):
        scheduler.run_all()
    first, *later = [span for span in spans.get_finished_spans() if span.name == "run work"]
    assert ancestors(spans, first) == ["near"]
    assert [run.parent for run in later] == [None, None]
    assert {link.context.span_id for run in later for link in run.links} == {near.get_span_context().span_id}


def test_while_the_request_waits_for_them_all_runs_are_its_own(scheduler: Any, spans: Any) -> None:
    with tracer.start_as_current_span("near"):
        scheduler.every().hour.do(work, keep(lambda: None))
        scheduler.run_all()
        scheduler.run_all()
    assert [ancestors(spans, span) for span in spans.get_finished_spans()[:2]] == [["near"], ["near"]]


def test_a_job_of_nobody_is_what_it_was_without_tracefill(scheduler: Any, spans: Any) -> None:
    scheduler.every().hour.do(work, keep(lambda: tracer.start_span("far").end()))
    scheduler.run_all()
    assert [(span.name, span.parent) for span in spans.get_finished_spans()] == [("far", None)]


def test_a_job_that_is_cancelled_gives_its_snapshot_back(scheduler: Any) -> None:
    before = snapshots.stats().in_use
    with tracer.start_as_current_span("near"):
        job = scheduler.every().hour.do(work, "never")
    assert snapshots.stats().in_use == before + 1
    scheduler.cancel_job(job)
    del job
    until(lambda: snapshots.stats().in_use == before)
