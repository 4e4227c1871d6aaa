"""python -m tests.handoff.soak [--threads 8] [--minutes 10 | --seconds N] [--seed N]: mixed hand-offs, for a long time.

Each thread serves one request after the other. A request hands jobs over in every way that there is, at random; of the jobs some
fail and some are cancelled. In the end every job's span hangs right below the span that was current where it was handed over,
no job is lost, no snapshot is in use, nothing is logged, and memory is where it was when all had run for a while.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import gc
import itertools
import logging
import multiprocessing
import multiprocessing.pool
import os
import queue
import random
import sched
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

if __name__ == "__main__":
    os.environ["OTEL_PYTHON_CONTEXT"] = "tracefill"

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

import tracefill
from tracefill import snapshots
from tracefill.handoff import generators, queues

tracer = trace.get_tracer("soak")


class Failure(Exception):
    """Of a job, on purpose."""


def here() -> str:
    held = trace.get_current_span().get_span_context()
    return f"{held.trace_id:032x}-{held.span_id:016x}"


class Judge(SpanProcessor, logging.Handler):
    """Compares each job's parent with what the job was told to expect, and keeps nothing of what was right."""

    def __init__(self) -> None:
        logging.Handler.__init__(self, logging.WARNING)
        self._asked, self._cancelled, self._ran = itertools.count(), itertools.count(), itertools.count()
        self.wrong: list[str] = []

    def ask(self) -> str:
        next(self._asked)
        return here()

    def cancel(self) -> None:
        """A job may not run, for it was cancelled."""
        next(self._cancelled)

    def ran(self, kind: str, expected: str, found: str) -> None:
        next(self._ran)
        if found != expected and len(self.wrong) < 20:
            self.wrong.append(f"{kind}: below {found}, not {expected}")

    def on_end(self, span: ReadableSpan) -> None:
        expected = (span.attributes or {}).get("below")
        if expected is not None:
            parent = f"{span.parent.span_id:016x}" if span.parent else "nothing"
            self.ran(span.name, str(expected), f"{span.context.trace_id:032x}-{parent}")  # type: ignore[union-attr]

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith(("opentelemetry", "tracefill", "asyncio")) and len(self.wrong) < 20:
            self.wrong.append(f"logged by {record.name}: {record.getMessage()}")

    def thread_failed(self, failure: Any) -> None:
        self.wrong.append(f"{failure.thread.name} failed: {failure.exc_value!r}")

    def counts(self) -> tuple[int, int, int]:
        """Jobs asked for, perhaps cancelled, run."""
        return tuple(int(repr(counter)[6:-1]) for counter in (self._asked, self._cancelled, self._ran))  # type: ignore[return-value]


def job(kind: str, below: str, fails: bool = False) -> None:
    with tracer.start_as_current_span(kind, attributes={"below": below}, record_exception=False):
        if fails:
            raise Failure


async def async_job(kind: str, below: str, pause: float = 0) -> None:
    await asyncio.sleep(pause)
    job(kind, below)


class Overriding(threading.Thread):
    def __init__(self, below: str) -> None:
        super().__init__()
        self.below = below

    def run(self) -> None:
        job("overridden run()", self.below)


class Service:
    """What lives as long as the program: pools, workers, an event loop."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.pool = ThreadPoolExecutor(4)
        self.stock_pool = multiprocessing.pool.ThreadPool(2)
        self.processes = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        self.queues: list[Any] = [queue.Queue(50), queue.LifoQueue(50), queue.PriorityQueue(50), queue.SimpleQueue()]
        self.explicit: queue.Queue[Any] = queue.Queue(50)
        self.order = itertools.count()
        self.threads = [threading.Thread(target=self.work, args=(jobs,)) for jobs in self.queues]
        self.threads.append(threading.Thread(target=self.work_explicitly))
        self.loop = asyncio.new_event_loop()
        self.threads.append(threading.Thread(target=self.loop.run_forever))
        for thread in self.threads:
            thread.start()
        self.async_jobs = asyncio.run_coroutine_threadsafe(self.make_async_queue(), self.loop).result()

    async def make_async_queue(self) -> asyncio.Queue[Any]:
        jobs: asyncio.Queue[Any] = asyncio.Queue(50)
        self.async_worker = asyncio.ensure_future(self.work_async(jobs))
        return jobs

    def work(self, jobs: Any) -> None:
        while True:
            _, kind, below, fails = jobs.get()
            if kind is None:
                return
            try:
                job(kind, below, fails)
            except Failure:
                continue

    def work_explicitly(self) -> None:
        for below in queues.consume(self.explicit):
            job("consume()", below)

    async def work_async(self, jobs: asyncio.Queue[Any]) -> None:
        while (below := await jobs.get()) is not None:
            await async_job("asyncio.Queue", below)

    def close(self) -> None:
        for jobs in self.queues:
            jobs.put(
                (sys.maxsize, None, None, False) if not isinstance(jobs, queue.LifoQueue) else self._after_all(jobs)
            )
        self.explicit.put(None)
        asyncio.run_coroutine_threadsafe(self.async_jobs.put(None), self.loop).result()
        self.pool.shutdown()
        self.stock_pool.close()
        self.stock_pool.join()
        self.processes.shutdown()
        asyncio.run_coroutine_threadsafe(self._all_tasks(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        for thread in self.threads:
            thread.join()
        self.loop.close()

    @staticmethod
    def _after_all(jobs: Any) -> Any:
        while not jobs.empty():
            time.sleep(0.001)
        return sys.maxsize, None, None, False

    @staticmethod
    async def _all_tasks() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)


class Requests:
    """One thread that serves requests: the ways to hand a job over, each of which is taken at random."""

    def __init__(self, service: Service, seed: int) -> None:
        self.service = service
        self.judge = service.judge
        self.random = random.Random(seed)
        self.ways: list[Callable[[], None]] = [getattr(self, name) for name in dir(self) if name.startswith("by_")]
        self.timers: list[threading.Timer] = []

    def serve(self, until: float) -> None:
        while time.monotonic() < until:
            with tracer.start_as_current_span("request"):
                for _ in range(self.random.randint(1, 4)):
                    with tracer.start_as_current_span("step"):
                        self.random.choice(self.ways)()
            if here() != f"{0:032x}-{0:016x}":
                self.judge.wrong.append(f"left current after a request: {here()}")
        for timer in self.timers:
            timer.join()

    def fails(self) -> bool:
        return self.random.random() < 0.1

    def by_thread(self) -> None:
        below = self.judge.ask()
        thread: threading.Thread = (
            Overriding(below)
            if self.random.random() < 0.5
            else threading.Thread(target=job, args=("Thread", below), daemon=True)
        )
        thread.start()
        thread.join()

    def by_timer(self) -> None:
        timer = threading.Timer(self.random.random() / 50, job, ("Timer", self.judge.ask()))
        timer.start()
        if self.fails():
            self.judge.cancel()
            timer.cancel()
        self.timers = [timer, *(t for t in self.timers if t.is_alive())]

    def by_submit(self) -> None:
        futures = [self.service.pool.submit(job, "submit", self.judge.ask(), self.fails()) for _ in range(3)]
        for future in futures:
            future.add_done_callback(self._callback(self.judge.ask()))
            if self.fails():
                self.judge.cancel()
                future.cancel()
        concurrent.futures.wait(futures)

    @staticmethod
    def _callback(below: str) -> Callable[[Any], None]:
        return lambda _: job("add_done_callback", below)

    def by_map(self) -> None:
        below = [self.judge.ask() for _ in range(3)]
        list(self.service.pool.map(job, ["map"] * 3, below))

    def by_stock_pool(self) -> None:
        pool = self.service.stock_pool
        pool.apply(job, ("ThreadPool.apply", self.judge.ask()))
        list(pool.imap_unordered(lambda below: job("ThreadPool.imap", below), [self.judge.ask()]))

    def by_process(self) -> None:
        if self.random.random() < 0.05:  # for these take long
            self.judge.ran("process", self.judge.ask(), self.service.processes.submit(here).result())

    def by_go(self) -> None:
        tracefill.go(job, "go", self.judge.ask()).join()

    def by_bind(self) -> None:
        bound = tracefill.bind(job)
        self.service.pool.submit(bound, "bind", self.judge.ask())
        with tracefill.snapshot() as taken, tracer.start_as_current_span("elsewhere"):
            below = f"{taken.trace_id:032x}-{taken.span_id:016x}"
            self.judge.ask()
            taken.run(job, "run", below)

    def by_queue(self) -> None:
        item = next(self.service.order), "queue", self.judge.ask(), self.fails()
        self.random.choice(self.service.queues).put(item)

    def by_explicit_queue(self) -> None:
        self.service.explicit.put(queues.inject(self.judge.ask()))

    def by_dropped_queue(self) -> None:
        queue.Queue[Any]().put(queues.inject("never taken"))
        dropped: queue.Queue[Any] = queue.Queue()
        dropped.put(object())

    def by_sched(self) -> None:
        scheduler = sched.scheduler()
        scheduler.enter(0, 1, job, ("sched", self.judge.ask()))
        scheduler.cancel(scheduler.enter(0, 2, job, ("sched", here())))
        with tracer.start_as_current_span("elsewhere"):
            scheduler.run()

    def by_task(self) -> None:
        task = asyncio.run_coroutine_threadsafe(async_job("task", self.judge.ask(), 0.001), self.service.loop)
        if self.fails():
            self.judge.cancel()
            task.cancel()

    def by_to_thread(self) -> None:
        below = self.judge.ask()
        work = asyncio.to_thread(job, "to_thread", below)
        asyncio.run_coroutine_threadsafe(work, self.service.loop).result()

    def by_async_queue(self) -> None:
        put = self.service.async_jobs.put(self.judge.ask())
        asyncio.run_coroutine_threadsafe(put, self.service.loop).result()

    def by_generator(self) -> None:
        below = here()
        made = self.rows()
        for n in made:
            self.judge.ask()
            job("consumer of a generator", below)
            if self.fails():
                break
            if n == 1 and self.fails():
                self.service.pool.submit(made.close).result()

    def by_bound_generator(self) -> None:
        made = generators.bind(self.rows())
        next(made)
        self.service.pool.submit(list, made).result()

    def rows(self) -> Iterator[int]:
        with tracer.start_as_current_span("rows"):
            for n in range(3):
                job("generator", self.judge.ask())
                yield n

    def by_async_generator(self) -> None:
        asyncio.run_coroutine_threadsafe(self.consume_rows(here()), self.service.loop).result()

    async def consume_rows(self, below: str) -> None:
        async for _ in self.async_rows():
            self.judge.ask()
            job("consumer of an async generator", below)
            if self.fails():
                break

    async def async_rows(self) -> AsyncIterator[int]:
        with tracer.start_as_current_span("rows"):
            for n in range(3):
                await async_job("async generator", self.judge.ask())
                yield n


class Memory:
    """Blocks that Python's allocator has handed out, and the resident set: the least of early and of late samples."""

    def __init__(self) -> None:
        self.samples: list[tuple[int, int]] = []

    def sample(self) -> None:
        self.samples.append((sys.getallocatedblocks(), resident_kb()))

    def grown(self) -> tuple[float, float]:
        """By what part of the early blocks, and by how many kB, the last quarter is above the second."""
        quarter = max(1, len(self.samples) // 4)
        early, late = self.samples[quarter : 2 * quarter] or self.samples, self.samples[-quarter:]
        blocks, kilobytes = ([min(column) for column in zip(*part, strict=True)] for part in (early, late))
        return kilobytes[0] / blocks[0] - 1, float(kilobytes[1] - blocks[1])


def resident_kb() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def soak(threads: int, seconds: float, seed: int, every: float = 5) -> list[str]:
    """What went wrong; nothing in a good run. Prints a line every so often."""
    judge, memory = Judge(), Memory()
    trace.set_tracer_provider(TracerProvider())
    trace.get_tracer_provider().add_span_processor(judge)  # type: ignore[attr-defined]
    logging.getLogger().addHandler(judge)
    threading.excepthook = judge.thread_failed
    tracefill.install(queues=True)
    begun = time.monotonic()
    service = Service(judge)
    servers = [
        threading.Thread(target=Requests(service, seed + n).serve, args=(begun + seconds,)) for n in range(threads)
    ]
    for server in servers:
        server.start()
    said = begun
    while any(server.is_alive() for server in servers):
        time.sleep(0.1)
        memory.sample()
        if time.monotonic() - said >= every:
            said = time.monotonic()
            print(line(judge, said - begun, memory), flush=True)
    service.close()
    tracefill.uninstall()
    del service, servers
    gc.collect()
    print(line(judge, time.monotonic() - begun, memory), flush=True)
    return [*judge.wrong, *left_over(judge, memory, seconds)]


def line(judge: Judge, seconds: float, memory: Memory) -> str:
    asked, cancelled, ran = judge.counts()
    in_use, (blocks, kilobytes) = snapshots.stats().in_use, memory.samples[-1]
    return (
        f"{seconds:6.0f} s {ran:10,} of {asked:10,} jobs run, {cancelled:8,} cancelled, {len(judge.wrong)} wrong, "
        f"{in_use:4} snapshots in use, {blocks:9,} blocks, {kilobytes / 1024:6.1f} MB"
    )


def left_over(judge: Judge, memory: Memory, seconds: float) -> Iterator[str]:
    asked, cancelled, ran = judge.counts()
    if not 0 < asked - cancelled <= ran <= asked:
        yield f"of {asked} jobs {ran} have run, though only {cancelled} were cancelled"
    if snapshots.stats().in_use:
        yield f"{snapshots.stats().in_use} snapshots are still in use, from {snapshots.leaks()[:20]} (TRACEFILL_DEBUG=1)"
    blocks, kilobytes = memory.grown()
    if blocks > 0.05 or (seconds >= 60 and kilobytes > 8 * 1024):
        yield f"memory has grown by {blocks:.1%} of the blocks, {kilobytes / 1024:.1f} MB"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.handoff.soak", description=__doc__)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seconds", type=float, help="instead of minutes")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    arguments = parser.parse_args()
    seconds = arguments.minutes * 60 if arguments.seconds is None else arguments.seconds
    print(f"{arguments.threads} threads, {seconds:g} s, --seed {arguments.seed}", flush=True)
    wrong = soak(arguments.threads, seconds, arguments.seed)
    for what in wrong:
        print(f"WRONG  {what}")
    print(
        "every span is below its own parent, no snapshot is in use, memory is flat"
        if not wrong
        else f"{len(wrong)} wrong"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
