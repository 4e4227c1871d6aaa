"""Scheduled and background jobs, without a server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sched
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

from tests.boundaries import Program, boundary
from tests.boundaries.ran import check, done, far

CONTRIB = [
    "opentelemetry.instrumentation.threading:ThreadingInstrumentor",
    "opentelemetry.instrumentation.celery:CeleryInstrumentor",
]


async def async_far(key: str = "") -> None:
    await asyncio.sleep(0)
    far(key)


def far_of_two(_: object, key: str = "") -> None:
    far(key)


# ------------------------------------------------------------------------------------------------------------- APScheduler


@contextlib.contextmanager
def background(b: Program, inside: bool = False, **options: Any) -> Iterator[Any]:
    from apscheduler.schedulers.background import BackgroundScheduler

    scheduler = BackgroundScheduler(**options)
    with b.span("started in") if inside else contextlib.nullcontext():
        scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.shutdown()


@boundary("APScheduler BackgroundScheduler: job added in a span, date trigger")
def apscheduler_date(b: Program) -> None:
    with background(b) as scheduler:
        for key in "ab":
            with b.near(key):
                scheduler.add_job(far, "date", run_date=datetime.now() + timedelta(seconds=0.1), args=[key])
        done.wait(2)


@boundary("APScheduler: scheduler started inside another request, job to run at once, results after the request")
def apscheduler_now(b: Program) -> None:
    with background(b, inside=True) as scheduler:
        with b.near():
            scheduler.add_job(far)
        done.wait()
        scheduler.add_job(check)
        done.wait(2)


@boundary("APScheduler: added before the scheduler is started")
def apscheduler_pending(b: Program) -> None:
    from apscheduler.schedulers.background import BackgroundScheduler

    scheduler = BackgroundScheduler()
    with b.near():
        scheduler.add_job(far)
    with b.span("another"):
        scheduler.start()
    done.wait()
    scheduler.shutdown()


@boundary("APScheduler BackgroundScheduler: interval job has its own root", expect="own root")
def apscheduler_interval(b: Program) -> None:
    from apscheduler.schedulers.background import BackgroundScheduler

    scheduler = BackgroundScheduler()
    with b.near():
        scheduler.start()
        scheduler.add_job(far, "interval", seconds=0.1)
        done.wait(2)
    done.wait(3)
    scheduler.shutdown()


@boundary("APScheduler: interval job is linked to whoever scheduled it", expect="linked")
def apscheduler_interval_link(b: Program) -> None:
    with background(b) as scheduler:
        with b.near():
            scheduler.add_job(far, "interval", seconds=0.1)
        done.wait(2)


@boundary("APScheduler: cron job by the decorator, own root", expect="own root")
def apscheduler_cron(b: Program) -> None:
    with background(b) as scheduler:
        with b.near():
            scheduler.scheduled_job("cron", second="*")(far)
        done.wait()


@boundary("APScheduler: job store that pickles, rescheduled by another request")
def apscheduler_stored(b: Program) -> None:
    from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore

    store = SQLAlchemyJobStore(f"sqlite:///{os.environ['BOUNDARY_OUT']}.jobs")
    with background(b, jobstores={"default": store}) as scheduler:
        with b.near("a"):
            scheduler.add_job("tests.boundaries.jobs:far", args=["a"])
        done.wait()
        with b.span("adds"):
            job = scheduler.add_job(
                "tests.boundaries.jobs:far", "date", run_date=datetime.now() + timedelta(hours=1), args=["b"]
            )
        with b.near("b"):
            scheduler.reschedule_job(job.id, trigger="date")
        done.wait(2)


@boundary("APScheduler: ProcessPoolExecutor")
def apscheduler_processes(b: Program) -> None:
    from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED
    from apscheduler.executors.pool import ProcessPoolExecutor

    with background(b, executors={"default": ProcessPoolExecutor(1)}) as scheduler:
        scheduler.add_listener(lambda event: done(), EVENT_JOB_EXECUTED | EVENT_JOB_ERROR)
        for number, key in enumerate("ab", 1):
            with b.near(key):
                scheduler.add_job("tests.boundaries.jobs:far", args=[key], misfire_grace_time=None)
            done.wait(number)


@boundary("APScheduler AsyncIOScheduler: job added in a span")
async def apscheduler_asyncio(b: Program) -> None:
    from apscheduler.schedulers.asyncio import AsyncIOScheduler

    scheduler = AsyncIOScheduler()
    with b.span("started in"):
        scheduler.start()
    for number, (key, job) in enumerate([("a", async_far), ("b", far)], 1):
        with b.near(key):
            scheduler.add_job(job, args=[key])
        while done.runs < number:
            await asyncio.sleep(0.01)
    scheduler.shutdown()


@boundary("APScheduler AsyncIOScheduler: interval job has its own root", expect="own root")
async def apscheduler_asyncio_interval(b: Program) -> None:
    from apscheduler.schedulers.asyncio import AsyncIOScheduler

    scheduler = AsyncIOScheduler()
    with b.near():
        scheduler.start()
        scheduler.add_job(async_far, "interval", seconds=0.1)
        scheduler.add_job(far, "interval", seconds=0.1)
        while done.runs < 2:
            await asyncio.sleep(0.01)
    while done.runs < 4:
        await asyncio.sleep(0.01)
    scheduler.shutdown()


@boundary("APScheduler AsyncIOScheduler: a job added between the runs of an interval job", expect="own root")
async def apscheduler_asyncio_wakeup(b: Program) -> None:
    from apscheduler.schedulers.asyncio import AsyncIOScheduler

    scheduler = AsyncIOScheduler()
    scheduler.start()
    scheduler.add_job(async_far, "interval", seconds=0.2)
    with b.near():
        scheduler.add_job(asyncio.sleep, args=[0])
    while done.runs < 2:
        await asyncio.sleep(0.01)
    scheduler.shutdown()


# ---------------------------------------------------------------------------------------------------------- schedule, sched


def looping(run: Callable[[], Any]) -> Any:
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(0.01):
            run()

    thread = threading.Thread(target=loop)
    thread.start()
    return lambda: (stop.set(), thread.join())


@boundary("schedule library run in a loop thread")
def schedule_loop(b: Program) -> None:
    import schedule

    stop = looping(schedule.run_pending)

    def once(key: str) -> Any:
        far(key)
        return schedule.CancelJob

    for number, key in enumerate("ab", 1):
        with b.near(key):
            schedule.every(0.05).seconds.do(once, key)
        done.wait(number)
    stop()


@boundary("schedule: inside the request, the runs that it waits for")
def schedule_inside(b: Program) -> None:
    import schedule

    scheduler = schedule.Scheduler()
    with b.near():
        stop = looping(scheduler.run_pending)
        scheduler.every(0.05).seconds.do(far)
        done.wait(3)
        scheduler.clear()
    stop()


@boundary("schedule: runs after the first are their own roots, with a link", expect="linked")
def schedule_again(b: Program) -> None:
    import schedule

    scheduler = schedule.Scheduler()
    runs = iter(["first", ""])

    def tick() -> None:
        if next(runs, "") == "":
            far()

    with b.near():
        scheduler.every(0.05).seconds.do(tick)
    stop = looping(scheduler.run_pending)
    done.wait(2)
    stop()


@boundary("sched.scheduler", expect="direct")
def sched_scheduler(b: Program) -> None:
    scheduler = sched.scheduler()
    for key in "ab":
        with b.near(key):
            scheduler.enter(0.05, 1, far, (key,))
    with b.near("c"):
        cancelled = scheduler.enter(0.01, 1, far, ("never",))
        scheduler.enterabs(time.monotonic(), 1, far, kwargs={"key": "c"})
    scheduler.cancel(cancelled)
    with b.span("runs them"):
        scheduler.run()
    scheduler.enter(0, 1, check)
    scheduler.run()
    assert done.runs == 4


@boundary("sched.scheduler run by a thread", expect="direct")
def sched_thread(b: Program) -> None:
    scheduler = sched.scheduler()
    with b.near():
        scheduler.enter(0.01, 1, far)
    with b.span("another"):
        thread = threading.Thread(target=scheduler.run)
        thread.start()
    thread.join()


@boundary("periodic loop thread (while True: work; sleep) must be new roots", expect="own root")
def periodic_thread(b: Program) -> None:
    stop = threading.Event()

    def loop() -> None:
        while True:
            far()
            time.sleep(0.02)
            if stop.is_set():
                return

    with b.near():
        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        done.wait(2)
    done.wait(4)
    stop.set()
    thread.join()


# ------------------------------------------------------------------------------------------------------------------ Celery


def celery_app() -> Any:
    from celery import Celery

    app = Celery("boundary", broker="memory://", backend="cache+memory://")
    app.conf.update(task_always_eager=False, worker_hijack_root_logger=False, broker_connection_retry_on_startup=True)
    app.task(name="far")(far)
    app.task(name="far_of_two")(far_of_two)
    app.task(name="check")(check)
    return app


@contextlib.contextmanager
def celery_worker(app: Any, **options: Any) -> Iterator[None]:
    from celery.contrib.testing.worker import start_worker

    with start_worker(app, perform_ping_check=False, **{"pool": "solo", **options}):
        yield


@boundary("Celery delay() (memory broker, solo worker)")
def celery_delay(b: Program) -> None:
    app = celery_app()
    with celery_worker(app):
        for number, key in enumerate("ab", 1):
            with b.near(key):
                app.tasks["far"].delay(key)
            done.wait(number)
        app.tasks["check"].delay()
        done.wait(3)


@boundary("Celery: worker started inside another request, threads pool")
def celery_threads(b: Program) -> None:
    app = celery_app()
    with contextlib.ExitStack() as stack:
        with b.span("started in"):
            stack.enter_context(celery_worker(app, pool="threads", concurrency=2))
        for key in "abc":
            with b.near(key):
                app.tasks["far"].delay(key)
        done.wait(3)
        app.tasks["check"].delay()
        done.wait(4)


@boundary("Celery apply_async(countdown) / eta")
def celery_countdown(b: Program) -> None:
    app = celery_app()
    with celery_worker(app):
        with b.near("a"):
            app.tasks["far"].apply_async(("a",), countdown=0.2)
        with b.near("b"):
            app.tasks["far"].apply_async(("b",), eta=datetime.now().astimezone() + timedelta(seconds=0.1))
        done.wait(2)


@boundary("Celery task_always_eager")
def celery_eager(b: Program) -> None:
    app = celery_app()
    app.conf.task_always_eager = True
    with b.near("a"):
        app.tasks["far"].delay("a")
    with b.near("b"):
        app.tasks["far"].apply(("b",))


@boundary("Celery retry (autoretry)")
def celery_retry(b: Program) -> None:
    app = celery_app()
    attempts = []

    def flaky() -> None:
        attempts.append(1)
        far()
        if len(attempts) < 3:
            raise ConnectionError

    task = app.task(name="flaky", autoretry_for=(ConnectionError,), retry_backoff=False, default_retry_delay=0)(flaky)
    with celery_worker(app):
        with b.near():
            task.delay()
        done.wait(3)


@boundary("Celery: a task that fails, then another's")
def celery_failure(b: Program) -> None:
    app = celery_app()

    def fail() -> None:
        far("a")
        raise ValueError

    task = app.task(name="fail")(fail)
    with celery_worker(app):
        with b.near("a"):
            task.delay()
        done.wait(1)
        app.tasks["check"].delay()
        with b.near("b"):
            app.tasks["far"].delay("b")
        done.wait(3)


@boundary("Celery chain")
def celery_chain(b: Program) -> None:
    from celery import chain

    app = celery_app()
    with celery_worker(app):
        with b.near():
            chain(app.tasks["far"].s(), app.tasks["far_of_two"].s(), app.tasks["far_of_two"].s()).apply_async()
        done.wait(3)


@boundary("Celery chord (group + callback)")
def celery_chord(b: Program) -> None:
    from celery import chord

    app = celery_app()
    with celery_worker(app):
        with b.near():
            chord([app.tasks["far"].s(), app.tasks["far"].s()])(app.tasks["far_of_two"].s())
        done.wait(3)


@boundary("Celery send_task(name unknown to the producer): caller afterwards", expect="direct")
def celery_send_task(b: Program) -> None:
    app = celery_app()
    with b.near():
        app.send_task("other.service.task", args=[1])
        b.far()


@boundary("Celery send_task(name unknown to the producer): the worker knows it")
def celery_send_task_known(b: Program) -> None:
    from celery import Celery

    app = celery_app()
    with celery_worker(app):
        with b.near(), app.connection_for_write() as connection:
            Celery("caller", broker="memory://").send_task("far", connection=connection)
        done.wait()


@boundary("Celery: a task calls another")
def celery_nested(b: Program) -> None:
    app = celery_app()

    def outer() -> None:
        app.tasks["far"].delay()

    task = app.task(name="outer")(outer)
    with celery_worker(app):
        with b.near():
            task.delay()
        done.wait()


# ---------------------------------------------------------------------------------------------------------- huey, dramatiq


@contextlib.contextmanager
def huey_consumer(huey: Any) -> Iterator[None]:
    consumer = huey.create_consumer(initial_delay=0.01, max_delay=0.05, scheduler_interval=1)
    consumer.start_threads = None
    consumer._set_signal_handlers = lambda: None
    consumer.start()
    try:
        yield
    finally:
        consumer.stop(graceful=True)


@boundary("huey task (memory huey, consumer thread)")
def huey_task(b: Program) -> None:
    from huey import MemoryHuey

    huey = MemoryHuey()
    task, nobodys = huey.task()(far), huey.task(name="check")(check)
    with contextlib.ExitStack() as stack:
        with b.span("started in"):
            stack.enter_context(huey_consumer(huey))
        for number, key in enumerate("ab", 1):
            with b.near(key):
                task(key)
            done.wait(number)
        nobodys()
        done.wait(3)


@boundary("huey: delay, retry, pipeline, compressed and signed")
def huey_rest(b: Program) -> None:
    from huey import MemoryHuey
    from huey.serializer import SignedSerializer

    huey = MemoryHuey(serializer=SignedSerializer(secret="s", compression=True))
    attempts = []

    def flaky(key: str) -> None:
        attempts.append(1)
        far(key)
        if len(attempts) < 3:
            raise ConnectionError

    task, retried = huey.task()(lambda *a, key="": far(key)), huey.task(retries=2, name="flaky")(flaky)
    with huey_consumer(huey):
        with b.near("a"):
            task.schedule(kwargs={"key": "a"}, delay=1)
        with b.near("b"):
            retried("b")
        with b.near("c"):
            huey.enqueue(task.s(key="c").then(task, key="c"))
        done.wait(6)


@boundary("huey: immediate")
def huey_immediate(b: Program) -> None:
    from huey import MemoryHuey

    huey = MemoryHuey(immediate=True)
    task = huey.task()(far)
    with b.near():
        task()


@contextlib.contextmanager
def dramatiq_worker(broker: Any) -> Iterator[None]:
    import dramatiq

    worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=2)
    worker.start()
    try:
        yield
    finally:
        worker.stop()


def dramatiq_broker() -> Any:
    import dramatiq
    from dramatiq.brokers.stub import StubBroker

    broker = StubBroker()
    dramatiq.set_broker(broker)
    return broker


@boundary("dramatiq actor (StubBroker + Worker)")
def dramatiq_actor(b: Program) -> None:
    import dramatiq

    broker = dramatiq_broker()
    actor, nobodys = dramatiq.actor(actor_name="far")(far), dramatiq.actor(actor_name="check")(check)
    with contextlib.ExitStack() as stack:
        with b.span("started in"):
            stack.enter_context(dramatiq_worker(broker))
        for number, key in enumerate("ab", 1):
            with b.near(key):
                actor.send(key)
            done.wait(number)
        nobodys.send()
        done.wait(3)


@boundary("dramatiq retry + delayed message")
def dramatiq_retry(b: Program) -> None:
    import dramatiq

    broker = dramatiq_broker()
    attempts = []

    def flaky(key: str) -> None:
        attempts.append(1)
        far(key)
        if len(attempts) < 3:
            raise ConnectionError

    retried = dramatiq.actor(actor_name="flaky", min_backoff=50, max_backoff=100, max_retries=3)(flaky)
    delayed = dramatiq.actor(actor_name="far")(far)
    with dramatiq_worker(broker):
        with b.near("a"):
            retried.send("a")
        with b.near("b"):
            delayed.send_with_options(args=("b",), delay=200)
        with b.near("c"):
            dramatiq.pipeline([delayed.message("c"), delayed.message_with_options(pipe_ignore=True, args=("c",))]).run()
        done.wait(6)


@boundary("dramatiq: one message object sent twice, an async actor")
def dramatiq_again(b: Program) -> None:
    import dramatiq
    from dramatiq.middleware.asyncio import AsyncIO

    broker = dramatiq_broker()
    broker.add_middleware(AsyncIO())
    keys = iter("ab")
    actor = dramatiq.actor(actor_name="far")(lambda: far(next(keys)))
    asynchronous = dramatiq.actor(actor_name="async")(async_far)
    message = actor.message()
    with dramatiq_worker(broker):
        for number, key in enumerate("ab", 1):
            with b.near(key):
                broker.enqueue(message)
            done.wait(number)
        with b.near("c"):
            asynchronous.send("c")
        done.wait(3)
    assert message.options == {}
