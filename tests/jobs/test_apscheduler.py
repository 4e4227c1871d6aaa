from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import apscheduler.executors.asyncio
import apscheduler.executors.base
import apscheduler.executors.pool
import apscheduler.job
import apscheduler.schedulers.asyncio
import apscheduler.schedulers.background
import pytest
from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED, EVENT_JOB_MISSED
from apscheduler.executors.pool import ProcessPoolExecutor
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from opentelemetry.trace import SpanKind

import tracefill
from tests.contracts import PatchContract, ancestors, tracer
from tests.jobs.job_contract import JobContract, keep, position, until, work, work_async

OVER = EVENT_JOB_EXECUTED | EVENT_JOB_ERROR | EVENT_JOB_MISSED


class TestPatches(PatchContract):
    name = "apscheduler"

    def owners(self) -> list[Any]:
        return [
            apscheduler.job.Job,
            apscheduler.executors.base,
            apscheduler.executors.pool,
            apscheduler.executors.asyncio,
            BackgroundScheduler,
            AsyncIOScheduler,
        ]


class TestBackground(JobContract):
    name = "apscheduler"
    spans_between = 1
    kind = SpanKind.INTERNAL
    job_name = "tests.jobs.job_contract:work"

    @pytest.fixture(autouse=True)
    def _scheduler(self) -> None:
        self.scheduler = BackgroundScheduler()
        self.asked = 0

    def submit(self, task: Callable[[], Any], **_: Any) -> None:
        self.asked += 1
        self.scheduler.add_job(work, args=[keep(task)])

    def drain(self) -> None:
        over: list[Any] = []
        self.scheduler.add_listener(over.append, OVER)
        self.scheduler.start()
        until(lambda: len(over) == self.asked)
        self.scheduler.shutdown()
        self.scheduler, self.asked = BackgroundScheduler(), 0


class TestAsyncio(JobContract):
    name = "apscheduler"
    spans_between = 1
    kind = SpanKind.INTERNAL
    job_name = "tests.jobs.job_contract:work_async"

    @pytest.fixture(autouse=True)
    def _scheduler(self) -> None:
        self.scheduler: Any = None  # until a loop runs
        self.asked = 0

    def submit(self, task: Callable[[], Any], **_: Any) -> None:
        self.scheduler = self.scheduler or AsyncIOScheduler()
        self.asked += 1
        self.scheduler.add_job(work_async, args=[keep(task)])

    def drain(self) -> None:
        asyncio.run(self._run())
        self.scheduler, self.asked = None, 0

    async def _run(self) -> None:
        over: list[Any] = []
        self.scheduler.add_listener(over.append, OVER)
        self.scheduler.start()
        while len(over) < self.asked:
            await asyncio.sleep(0.01)
        self.scheduler.shutdown()


@pytest.fixture
def installed(spans: Any) -> Any:
    tracefill.install(only=["apscheduler"])
    yield
    tracefill.uninstall()


@contextlib.contextmanager
def running(**options: Any) -> Any:
    scheduler = BackgroundScheduler(**options)
    scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.shutdown()


def test_an_interval_job_is_a_trace_of_its_own_each_time_with_a_link(installed: None, spans: Any) -> None:
    with running() as scheduler, tracer.start_as_current_span("near") as near:
        scheduler.add_job(position, "interval", seconds=0.05)
        until(lambda: len(spans.get_finished_spans()) >= 3)
    runs = [span for span in spans.get_finished_spans() if span.name.startswith("run ")]
    assert {run.parent for run in runs} == {None}
    assert len({run.context.trace_id for run in runs}) == len(runs)
    assert {link.context.span_id for run in runs for link in run.links} == {near.get_span_context().span_id}


def test_an_interval_job_of_nobody_has_no_link(installed: None, spans: Any) -> None:
    with running() as scheduler:
        scheduler.add_job(position, "interval", seconds=0.05)
        until(lambda: spans.get_finished_spans())
    assert spans.get_finished_spans()[0].links == ()


def test_an_interval_job_that_waits_beside_others_is_not_touched_by_theirs(installed: None, spans: Any) -> None:
    with running() as scheduler:
        scheduler.add_job(work, "interval", seconds=0.05, args=[keep(lambda: None)])
        with tracer.start_as_current_span("near"):
            scheduler.add_job(position)
        until(lambda: len(spans.get_finished_spans()) >= 4)
    for span in spans.get_finished_spans():
        if span.name.endswith(":work"):
            assert span.parent is None
            assert span.links == ()


def test_a_job_for_later_says_how_late_it_is(installed: None, spans: Any) -> None:
    with running() as scheduler, tracer.start_as_current_span("near"):
        due = datetime.now() + timedelta(seconds=0.3)
        scheduler.add_job(position, "date", run_date=due)
        until(lambda: spans.get_finished_spans())
    run = spans.get_finished_spans()[0]
    assert run.start_time >= due.timestamp() * 1e9 - 5e6
    assert 0 <= run.attributes["tracefill.job.delay_ms"] < 30_000


def test_a_job_that_is_missed_says_so(installed: None, spans: Any) -> None:
    missed: list[Any] = []
    with running(executors={"default": {"type": "threadpool", "max_workers": 1}}) as scheduler:
        scheduler.add_listener(missed.append, EVENT_JOB_MISSED)
        scheduler.add_job(work, args=[keep(lambda: time.sleep(2.5))])
        with tracer.start_as_current_span("near"):
            scheduler.add_job(position, "date", run_date=datetime.now() + timedelta(seconds=0.1), misfire_grace_time=1)
        until(lambda: missed)
    (run,) = [span for span in spans.get_finished_spans() if span.name.endswith(":position")]
    assert run.attributes["tracefill.job.missed"] is True


def test_a_job_store_that_pickles_keeps_who_asked(installed: None, spans: Any, tmp_path: Any) -> None:
    options = {"jobstores": {"default": SQLAlchemyJobStore(f"sqlite:///{tmp_path}/jobs")}}
    first = BackgroundScheduler(**options)
    first.start(paused=True)
    with tracer.start_as_current_span("near"):
        first.add_job(position, "date", run_date=datetime.now() + timedelta(seconds=0.5))
    first.shutdown()
    with running(**options):
        until(lambda: len(spans.get_finished_spans()) == 2)
    (run,) = [span for span in spans.get_finished_spans() if span.name.startswith("run ")]
    assert ancestors(spans, run) == ["near"]


def test_a_process_pool_runs_the_job_in_its_trace(installed: None) -> None:
    tracefill.install(only=["processes"])  # its workers are spawned
    over: list[Any] = []
    with running(executors={"default": ProcessPoolExecutor(1)}) as scheduler:
        scheduler.add_listener(over.append, OVER)
        with tracer.start_as_current_span("near") as near:
            scheduler.add_job(position, misfire_grace_time=None)
        until(lambda: over)
    assert over[0].retval.startswith(f"{near.get_span_context().trace_id:032x}")
