from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import arq
import arq.connections
import arq.worker
import pytest
from arq.connections import RedisSettings
from arq.worker import Worker

import tracefill
from tests.contracts import PatchContract, ancestors, tracer
from tests.jobs.job_contract import QueueContract, keep, work


class TestPatches(PatchContract):
    name = "arq"

    def owners(self) -> list[Any]:
        return [arq.connections.ArqRedis, arq.connections, arq.worker, Worker]


async def run(ctx: dict[str, Any], key: str, retries: int = 0) -> Any:
    try:
        return work(key)
    except ConnectionError:
        if ctx["job_try"] <= retries:
            raise arq.Retry(defer=0.01) from None
        raise


class Arq:
    """A worker's settings, and calls from outside of an event loop."""

    def __init__(self, url: str) -> None:
        self.settings = RedisSettings.from_dsn(url)

    def enqueue(self, function: str, *args: Any, **options: Any) -> None:
        async def enqueue() -> None:
            pool = await arq.create_pool(self.settings)
            await pool.enqueue_job(function, *args, **options)
            await pool.aclose()

        asyncio.run(enqueue())

    def work(self, **options: Any) -> None:
        async def work() -> None:
            worker = Worker(
                [arq.func(run, name="work")],
                redis_settings=self.settings,
                burst=True,
                poll_delay=0.05,
                handle_signals=False,
                **options,
            )
            try:
                await worker.async_run()
            finally:
                await worker.close()

        asyncio.run(work())

    def clear(self) -> None:
        async def clear() -> None:
            pool = await arq.create_pool(self.settings)
            await pool.flushall()
            await pool.aclose()

        asyncio.run(clear())


@pytest.fixture
def arq_(redis_server: Any) -> Arq:
    found = Arq(redis_server.url)
    found.clear()
    return found


class TestBoundary(QueueContract):
    name = "arq"

    @pytest.fixture(autouse=True)
    def _arq(self, arq_: Arq) -> None:
        self.arq = arq_

    def submit(self, task: Callable[[], Any], *, delay_s: float = 0, retries: int = 0) -> None:
        self.arq.enqueue("work", keep(task), retries, _defer_by=delay_s or None)

    def drain(self) -> None:
        self.arq.work()


@pytest.fixture
def installed(spans: Any) -> Any:
    tracefill.install(only=["arq"])
    yield
    tracefill.uninstall()


def test_the_hooks_of_a_worker_are_the_jobs_too(arq_: Arq, installed: None, spans: Any) -> None:
    async def hook(ctx: dict[str, Any]) -> None:
        tracer.start_span("hook").end()

    with tracer.start_as_current_span("near"):
        arq_.enqueue("work", keep(lambda: None))
    arq_.work(on_job_start=hook)
    found = next(span for span in spans.get_finished_spans() if span.name == "hook")
    assert ancestors(spans, found)[-1] == "near"


def test_a_cron_job_is_a_trace_of_its_own(arq_: Arq, installed: None, spans: Any) -> None:
    async def tick(ctx: dict[str, Any]) -> None:
        tracer.start_span("far").end()

    with tracer.start_as_current_span("near"):
        arq_.work(cron_jobs=[arq.cron(tick, month=1, run_at_startup=True)])
    far = next(span for span in spans.get_finished_spans() if span.name == "far")
    assert ancestors(spans, far) == [f"run cron:{tick.__qualname__}", f"enqueue cron:{tick.__qualname__}"]


def test_jobs_that_run_at_the_same_time_stay_apart(arq_: Arq, installed: None, spans: Any) -> None:
    for name in "abcd":
        with tracer.start_as_current_span(name):
            arq_.enqueue("work", keep(lambda name=name: tracer.start_span(f"far {name}").end()))
    arq_.work()
    for far in [span for span in spans.get_finished_spans() if span.name.startswith("far ")]:
        assert ancestors(spans, far) == ["run work", "enqueue work", far.name[-1]]


def test_a_worker_without_tracefill_runs_the_job(arq_: Arq, installed: None) -> None:
    done: list[int] = []
    with tracer.start_as_current_span("near"):
        arq_.enqueue("work", keep(lambda: done.append(1)))
    tracefill.uninstall()
    arq_.work()
    assert done == [1]
