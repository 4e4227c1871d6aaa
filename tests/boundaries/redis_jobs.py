"""Background jobs by way of Redis: RQ, arq."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import redis

from tests.boundaries import Program, boundary
from tests.boundaries.ran import check, done, far, until

CONTRIB = [
    "opentelemetry.instrumentation.threading:ThreadingInstrumentor",
    "opentelemetry.instrumentation.redis:RedisInstrumentor",
    "opentelemetry.instrumentation.click:ClickInstrumentor",
]
REDIS = ("redis_server",)


def fail(key: str) -> None:
    far(key)
    raise ValueError(key)


def called_back(job: Any, connection: Any, result: Any, *_: Any) -> None:
    far(job.args[0])


def fails_twice(key: str) -> None:
    far(key)
    client = redis.Redis.from_url(os.environ["URL"])
    if client.incr("attempts") < 3:
        raise ConnectionError


def asks_for_more(key: str) -> None:
    import rq

    rq.Queue(connection=redis.Redis.from_url(os.environ["URL"])).enqueue(far, key)


def connection(b: Program) -> redis.Redis:
    os.environ["URL"] = f"redis://{b.address('redis_server')}/0"
    client = redis.Redis.from_url(os.environ["URL"])
    client.flushall()
    return client


# ---------------------------------------------------------------------------------------------------------------------- RQ


def rq_queue(b: Program) -> Any:
    import rq

    logging.getLogger("rq.worker").setLevel(logging.CRITICAL)
    return rq.Queue(connection=connection(b))


def simple(queue: Any, **options: Any) -> None:
    import rq

    rq.SimpleWorker([queue], connection=queue.connection).work(burst=True, **options)


def forking(queue: Any, **options: Any) -> None:
    import rq

    rq.Worker([queue], connection=queue.connection).work(burst=True, **options)


def rq_two_and_nobodys(b: Program, work: Callable[[Any], None]) -> None:
    queue = rq_queue(b)
    for key in "ab":
        with b.near(key):
            queue.enqueue(far, key)
    queue.enqueue(check)
    work(queue)
    assert queue.finished_job_registry.count == 3


@boundary("RQ enqueue, SimpleWorker", needs=REDIS)
def rq_simple(b: Program) -> None:
    rq_two_and_nobodys(b, simple)


@boundary("RQ enqueue, forking Worker", needs=REDIS)
def rq_forking(b: Program) -> None:
    rq_two_and_nobodys(b, forking)


@boundary("RQ: worker under a span that its command line holds open", needs=REDIS)
def rq_command_line(b: Program) -> None:
    def work(queue: Any) -> None:
        with b.span("near of the command line"):
            simple(queue)

    rq_two_and_nobodys(b, work)


@boundary("RQ: `rq worker`, started as a program", needs=REDIS)
def rq_program(b: Program) -> None:
    def work(queue: Any) -> None:
        start = "import sys, tests.boundaries; from rq.cli import main; sys.argv[0] = 'rq'; main()"
        command = [sys.executable, "-c", start, "worker", "--burst", "--quiet", "--url", os.environ["URL"]]
        subprocess.run(command, check=True)

    rq_two_and_nobodys(b, work)


@boundary("RQ: SpawnWorker", needs=REDIS)
def rq_spawning(b: Program) -> None:
    def work(queue: Any) -> None:
        import rq

        rq.SpawnWorker([queue], connection=queue.connection).work(burst=True)

    rq_two_and_nobodys(b, work)


@boundary("RQ: retries, failure, callbacks", needs=REDIS)
def rq_retry(b: Program) -> None:
    import rq

    queue = rq_queue(b)
    with b.near("a"):
        queue.enqueue(fails_twice, "a", retry=rq.Retry(max=3))
    with b.near("b"):
        queue.enqueue(fail, "b")
    with b.near("c"):
        queue.enqueue(far, "c", on_success=rq.Callback(called_back))
    simple(queue)
    assert done.runs == 6


@boundary("RQ: enqueue_in, dependents, many at once, a job that asks for more", needs=REDIS)
def rq_more(b: Program) -> None:
    import rq

    queue = rq_queue(b)
    with b.near("a"):
        queue.enqueue_in(timedelta(milliseconds=10), far, "a")
    with b.near("b"):
        first = queue.enqueue(far, "b")
    with b.near("c"):
        queue.enqueue(far, "c", depends_on=first)
    with b.near("d"):
        queue.enqueue_many([rq.Queue.prepare_data(far, ("d",)), rq.Queue.prepare_data(far, ("d",))])
    with b.near("e"):
        queue.enqueue(asks_for_more, "e")
    until(lambda: queue.scheduled_job_registry.get_jobs_to_schedule())
    rq.scheduler.RQScheduler([queue], connection=queue.connection).acquire_locks()
    scheduler = rq.scheduler.RQScheduler([queue], connection=queue.connection)
    queue.connection.delete(*[scheduler.get_locking_key(queue.name)])
    scheduler.acquire_locks()
    scheduler.enqueue_scheduled_jobs()
    simple(queue)
    assert done.runs == 6, done.runs


@boundary("RQ: synchronous queue", needs=REDIS)
def rq_synchronous(b: Program) -> None:
    import rq

    queue = rq.Queue(connection=connection(b), is_async=False)
    with b.near():
        queue.enqueue(far)


# --------------------------------------------------------------------------------------------------------------------- arq


async def arq_far(ctx: dict[str, Any], key: str) -> None:
    far(key)


async def arq_fails_twice(ctx: dict[str, Any], key: str) -> None:
    from arq import Retry

    far(key)
    if ctx["job_try"] < 3:
        raise Retry(defer=0.01)


async def arq_asks_for_more(ctx: dict[str, Any], key: str) -> None:
    await ctx["redis"].enqueue_job("arq_far", key, _defer_by=0.1)


async def arq_check(ctx: dict[str, Any]) -> None:
    check()


FUNCTIONS = [arq_far, arq_fails_twice, arq_asks_for_more, arq_check]


class Settings:
    functions = FUNCTIONS
    burst = True
    poll_delay = 0.05


async def arq_pool(b: Program) -> Any:
    from arq import create_pool
    from arq.connections import RedisSettings

    connection(b)
    return await create_pool(RedisSettings.from_dsn(os.environ["URL"]))


async def arq_work(b: Program, **options: Any) -> None:
    from arq.connections import RedisSettings
    from arq.worker import Worker

    settings = RedisSettings.from_dsn(os.environ["URL"])
    worker = Worker(FUNCTIONS, redis_settings=settings, burst=True, poll_delay=0.05, handle_signals=False, **options)
    with b.span("near of the command line"):
        await worker.async_run()
    await worker.close()


@boundary("ARQ enqueue, worker under a span that its command line holds open", needs=REDIS)
async def arq_two(b: Program) -> None:
    pool = await arq_pool(b)
    for key in "ab":
        with b.near(key):
            await pool.enqueue_job("arq_far", key)
    await pool.enqueue_job("arq_check")
    await arq_work(b)
    assert done.runs == 3


@boundary("ARQ: retry, deferred, job that asks for more, hooks", needs=REDIS)
async def arq_more(b: Program) -> None:
    pool = await arq_pool(b)
    for key, function in (("a", "arq_fails_twice"), ("b", "arq_asks_for_more")):
        with b.near(key):
            await pool.enqueue_job(function, key)
    with b.near("c"):
        await pool.enqueue_job("arq_far", "c", _defer_by=0.1)

    async def started(ctx: dict[str, Any]) -> None:
        b.far({1: "a"}.get(ctx["job_try"], "a")) if ctx["job_try"] > 1 else None

    await arq_work(b, on_job_start=started)
    assert done.runs == 5, done.runs


@boundary("ARQ: `arq`, started as a program", needs=REDIS)
async def arq_program(b: Program) -> None:
    pool = await arq_pool(b)
    with b.near():
        await pool.enqueue_job("arq_far", "")
    start = (
        "import sys, asyncio, tests.boundaries; from tests.boundaries import redis_jobs; from arq.connections import *; "
        f"redis_jobs.Settings.redis_settings = RedisSettings.from_dsn({os.environ['URL']!r}); "
        "from arq.cli import cli; cli()"
    )
    command = [sys.executable, "-c", start, "tests.boundaries.redis_jobs.Settings", "--burst"]
    process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.DEVNULL)
    assert await process.wait() == 0


@boundary("ARQ: cron job has its own root", needs=REDIS, expect="own root")
async def arq_cron(b: Program) -> None:
    from arq import cron

    await arq_pool(b)

    async def tick(ctx: dict[str, Any]) -> None:
        far()

    with b.near():
        from arq.connections import RedisSettings
        from arq.worker import Worker

        worker = Worker(
            cron_jobs=[cron(tick, second=set(range(60)))],
            redis_settings=RedisSettings.from_dsn(os.environ["URL"]),
            poll_delay=0.05,
            handle_signals=False,
        )
        running = asyncio.create_task(worker.async_run())
        while not done.runs:
            await asyncio.sleep(0.05)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await worker.close()
