from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import redis
import rq
import rq.job
import rq.queue
import rq.scheduler
import rq.worker

import tracefill
from tests.contracts import PatchContract, ancestors, tracer
from tests.jobs.job_contract import QueueContract, keep, position, until, work

WORK = "tests.jobs.job_contract.work"


class TestPatches(PatchContract):
    name = "rq"

    def owners(self) -> list[Any]:
        return [rq.queue.Queue, rq.job.Job, rq.worker.BaseWorker, rq.SpawnWorker]


@pytest.fixture
def queue(redis_server: Any) -> Any:
    logging.getLogger("rq.worker").setLevel(logging.CRITICAL)
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        yield rq.Queue(connection=client)
        for number, handler in handlers.items():  # a worker leaves its own behind
            signal.signal(number, handler)


def run(queue: Any, kind: type = rq.SimpleWorker) -> None:
    kind([queue], connection=queue.connection).work(burst=True)


def enqueue_what_is_due(queue: Any) -> None:
    """As the scheduler process of a worker does."""
    scheduler = rq.scheduler.RQScheduler([queue], connection=queue.connection)
    scheduler.acquire_locks()
    scheduler.enqueue_scheduled_jobs()
    scheduler.release_locks()


class TestBoundary(QueueContract):
    name = "rq"
    job_name = WORK

    @pytest.fixture(autouse=True)
    def _queue(self, queue: Any) -> None:
        self.queue = queue

    def submit(self, task: Callable[[], Any], *, delay_s: float = 0, retries: int = 0) -> None:
        if delay_s:
            self.queue.enqueue_in(timedelta(seconds=delay_s), work, keep(task))
        else:
            self.queue.enqueue(work, keep(task), retry=rq.Retry(max=retries) if retries else None)

    def drain(self) -> None:
        later = self.queue.scheduled_job_registry
        if later.count:
            until(later.get_jobs_to_schedule)
            enqueue_what_is_due(self.queue)
        run(self.queue)


@pytest.fixture
def installed(spans: Any) -> Any:
    tracefill.install(only=["rq", "processes"])
    yield
    tracefill.uninstall()


@pytest.mark.parametrize("kind", [rq.SimpleWorker, rq.Worker, rq.SpawnWorker])
def test_every_kind_of_worker_runs_the_job_in_its_trace(kind: type, queue: Any, installed: None) -> None:
    with tracer.start_as_current_span("near") as near:
        job = queue.enqueue(position)
    nobodys = queue.enqueue(position)
    with tracer.start_as_current_span("ambient") as ambient:
        run(queue, kind)
    assert job.return_value()[:32] == f"{near.get_span_context().trace_id:032x}"
    assert nobodys.return_value()[:32] != f"{ambient.get_span_context().trace_id:032x}"


def test_the_meta_of_a_job_stays_the_users(queue: Any, installed: None) -> None:
    with tracer.start_as_current_span("near"):
        job = queue.enqueue(position, meta={"tenant": "shop"})
    assert rq.job.Job.fetch(job.id, connection=queue.connection).meta == {"tenant": "shop"}


def test_a_dependent_job_continues_whoever_asked_for_it(queue: Any, installed: None, spans: Any) -> None:
    with tracer.start_as_current_span("first"):
        first = queue.enqueue(work, keep(lambda: None))
    with tracer.start_as_current_span("second"):
        queue.enqueue(work, keep(lambda: tracer.start_span("far").end()), depends_on=first)
    run(queue)
    far = next(span for span in spans.get_finished_spans() if span.name == "far")
    assert ancestors(spans, far)[-1] == "second"


def test_a_queue_without_a_worker_runs_the_job_below_its_caller(queue: Any, installed: None, spans: Any) -> None:
    at_once = rq.Queue(connection=queue.connection, is_async=False)
    with tracer.start_as_current_span("near"):
        at_once.enqueue(work, keep(lambda: tracer.start_span("far").end()))
    far = next(span for span in spans.get_finished_spans() if span.name == "far")
    assert ancestors(spans, far) == [f"run {WORK}", f"enqueue {WORK}", "near"]


def test_what_somebody_else_wrote_in_the_field_is_no_context(queue: Any, installed: None, spans: Any) -> None:
    job = queue.enqueue(work, keep(lambda: tracer.start_span("far").end()))
    queue.connection.hset(job.key, "tracefill", "{no json")
    run(queue)
    far = next(span for span in spans.get_finished_spans() if span.name == "far")
    assert ancestors(spans, far) == [f"run {WORK}"]


def test_a_worker_without_tracefill_runs_the_job(queue: Any, installed: None) -> None:
    done: list[int] = []
    with tracer.start_as_current_span("near"):
        queue.enqueue(work, keep(lambda: done.append(1)))
    tracefill.uninstall()
    run(queue)
    assert done == [1]
