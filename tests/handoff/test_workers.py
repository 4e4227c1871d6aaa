"""What is a job and what is a worker: told from the code, before it runs for the first time."""
# ruff: noqa: PERF203

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import functools
import itertools
import logging.handlers
import multiprocessing.pool
import queue
import sched
import socketserver
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tracefill.handoff.workers import TAKES, TICKS, is_worker, loop_of

jobs: queue.Queue[Any] = queue.Queue()
stop = threading.Event()
running = True


def work(*_: Any) -> None: ...


def check() -> bool:
    return True


def span(_: str) -> Any: ...


# ---------------------------------------------------------------------------------------------------------------- workers


def tick_for_ever() -> None:
    while True:
        work()
        time.sleep(1)


def tick_in_a_span() -> None:
    n = 0
    while True:
        with span("tick"):
            n += 1
        if n == 3:
            return
        time.sleep(1)


def tick_until_stopped() -> None:
    while not stop.wait(1):
        work()


def tick_while_running() -> None:
    while running:
        try:
            work()
        except OSError:
            logging.getLogger().exception("tick")
        time.sleep(1)


def tick_by_count() -> None:
    for i in itertools.count():
        work(i)
        time.sleep(1)


def restart_when_it_fails() -> None:
    while True:
        try:
            work()
        except OSError:
            time.sleep(5)


def take_for_ever() -> None:
    while True:
        job = jobs.get()
        if job is None:
            break
        work(job)
        jobs.task_done()


def take_with_a_timeout() -> None:
    while not stop.is_set():
        try:
            job = jobs.get(timeout=1)
        except queue.Empty:
            continue
        work(job)


def take_by_iter() -> None:
    for job in iter(jobs.get, None):
        work(job)


def take_by_walrus() -> None:
    while (job := jobs.get()) is not None:
        work(job)


def take_under_a_condition() -> None:
    condition = threading.Condition()
    while True:
        with condition:
            while not jobs.queue:
                condition.wait()
            job = jobs.queue.popleft()
        work(job)


def set_up_and_loop() -> None:
    work()
    try:
        tick_for_ever()
    finally:
        work()


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


class Worker(threading.Thread):
    def run(self) -> None:
        self.loop()

    def loop(self) -> None:
        while not stop.is_set():
            self.step()
            stop.wait(1)

    def step(self) -> None: ...


class Callable_:
    def __call__(self) -> None:
        while True:
            work()
            time.sleep(1)


async def tick_task() -> None:
    while True:
        await asyncio.sleep(1)
        work()


async def take_task() -> None:
    waiting: asyncio.Queue[Any] = asyncio.Queue()
    while True:
        job = await asyncio.wait_for(waiting.get(), 1)
        work(job)
        waiting.task_done()


@pytest.mark.parametrize(
    "function",
    [
        tick_for_ever, tick_in_a_span, tick_until_stopped, tick_while_running, tick_by_count, restart_when_it_fails,
        take_for_ever, take_with_a_timeout, take_by_iter, take_by_walrus, take_under_a_condition, set_up_and_loop,
        decorated(tick_for_ever), functools.partial(tick_for_ever), Worker().run, Worker().loop, Callable_(),
        lambda: tick_for_ever(), tick_task, take_task,
    ],
)  # fmt: skip
def test_workers(function: Any) -> None:
    assert is_worker(function)


@pytest.mark.parametrize(
    "function",
    [
        concurrent.futures.thread._worker, multiprocessing.pool.worker, multiprocessing.pool.Pool._handle_tasks,
        multiprocessing.pool.Pool._handle_results, multiprocessing.pool.Pool._handle_workers, sched.scheduler.run,
        socketserver.BaseServer.serve_forever, logging.handlers.QueueListener._monitor,
    ],
)  # fmt: skip
def test_workers_of_the_standard_library(function: Any) -> None:
    assert is_worker(function)


@pytest.mark.parametrize("module", ["pymysql.cursors", "MySQLdb.cursors"])
def test_cursor_that_skips_the_results_before_is_no_worker(module: str) -> None:
    cursors = pytest.importorskip(module)
    assert not is_worker(cursors.SSCursor.execute)


def test_what_the_loop_waits_for() -> None:
    assert loop_of(tick_task.__code__) == loop_of(tick_until_stopped.__code__) == TICKS
    assert loop_of(take_task.__code__) == loop_of(take_by_walrus.__code__) == TAKES
    assert loop_of(work.__code__) == ""


def test_what_a_wrapper_calls_is_looked_at_each_time() -> None:
    def wrapped(function: Callable[[], Any]) -> Callable[[], None]:
        def wrapper() -> None:
            function()

        return wrapper

    assert [is_worker(wrapped(each)) for each in (work, tick_for_ever, check)] == [False, True, False]


# ------------------------------------------------------------------------------------------------------------------- jobs


def sleep_and_work() -> None:
    time.sleep(1)
    work()


def wait_and_work() -> None:
    stop.wait(1)
    work()


def take_one() -> None:
    work(jobs.get())


def poll_until_it_is_there() -> None:
    while not check():
        time.sleep(0.1)
    work()


def poll_with_a_break() -> None:
    while True:
        if check():
            break
        time.sleep(0.1)
    work()


def poll_and_say_so() -> None:
    while not check():
        print("waiting")
        time.sleep(0.1)
    work()


def try_until_it_works() -> None:
    while True:
        try:
            work()
            break
        except OSError:
            time.sleep(1)


def try_and_return() -> Any:
    while True:
        try:
            work()
        except OSError:
            time.sleep(1)
        else:
            return


def try_five_times() -> None:
    attempts = 0
    while attempts < 5:
        work()
        attempts += 1
        time.sleep(1)


def try_until_sent() -> None:
    sent = False
    while not sent:
        try:
            work()
            sent = True
        except OSError:
            time.sleep(1)


def each_with_a_pause() -> None:
    for i in range(3):
        work(i)
        time.sleep(0.1)


def empty_the_queue() -> None:
    while not jobs.empty():
        work(jobs.get())


def page_after_page() -> None:
    rows = {"next": None}
    while True:
        page = rows.get("next")
        work(page)
        if page is None:
            return


def read_to_the_end() -> None:
    with open("/dev/null") as file:
        while True:
            line = file.readline()
            if not line:
                break
            work(line)


def wait_by_a_helper() -> None:
    poll_until_it_is_there()
    work()


def defines_a_worker() -> Any:
    def inner() -> None:
        while True:
            work()
            time.sleep(1)

    return inner


async def work_task() -> None:
    await asyncio.sleep(1)
    work()


@pytest.mark.parametrize(
    "function",
    [
        sleep_and_work, wait_and_work, take_one, poll_until_it_is_there, poll_with_a_break, poll_and_say_so,
        try_until_it_works, try_and_return, try_five_times, try_until_sent, each_with_a_pause, empty_the_queue,
        page_after_page, read_to_the_end, wait_by_a_helper, defines_a_worker, work_task, len, threading.Thread.run,
        socketserver.ThreadingMixIn.process_request_thread, functools.partial(work, 1), lambda: work(), asyncio.run,
        eval("lambda: work()"), None, "text", jobs.put, asyncio.Queue.put,
    ],
)  # fmt: skip
def test_jobs(function: Any) -> None:
    assert not is_worker(function)


def test_code_without_source_is_a_job() -> None:
    names: dict[str, Any] = {}
    exec(compile("def f():\n while True:\n  work()\n  sleep()\n", "nowhere.py", "exec"), names)
    assert not is_worker(names["f"])
