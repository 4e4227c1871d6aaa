"""Service call: threads."""

import _thread
import concurrent.futures
import functools
import multiprocessing.pool
import sched
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Thread as ImportedThread
from typing import Any

from tests.boundaries import Program, boundary

CONTRIB = ["opentelemetry.instrumentation.threading:ThreadingInstrumentor"]


# --------------------------------------------------------------------------------------------------------------- threads


@boundary("threading.Thread(target)", expect="direct")
def thread(b: Program) -> None:
    with b.near():
        t = threading.Thread(target=b.far)
        t.start()
        t.join()


@boundary("from threading import Thread before install()", expect="direct")
def thread_imported(b: Program) -> None:
    with b.near():
        t = ImportedThread(target=b.far)
        t.start()
        t.join()


@boundary("Thread made before the span, started in it", expect="direct")
def thread_made_before(b: Program) -> None:
    t = threading.Thread(target=b.far)
    with b.near():
        t.start()
        t.join()


@boundary("fire and forget: the span has ended before the thread does its work", expect="direct")
def thread_after_the_end(b: Program) -> None:
    ended = threading.Event()

    def work() -> None:
        ended.wait()
        time.sleep(0.02)
        b.far()

    with b.near():
        t = threading.Thread(target=work)
        t.start()
    ended.set()
    t.join()


@boundary("fire and forget: waits in a loop for something, then works", expect="direct")
def thread_polls(b: Program) -> None:
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            time.sleep(0.01)
        b.far()

    with b.near():
        t = threading.Thread(target=work)
        t.start()
    ended.set()
    t.join()


@boundary("a thread that does three things with pauses", expect="direct")
def thread_three_things(b: Program) -> None:
    def work() -> None:
        for _ in range(3):
            b.far()
            time.sleep(0.01)

    with b.near():
        t = threading.Thread(target=work)
        t.start()
    t.join()


@boundary("Thread subclass overriding run()", expect="direct")
def thread_subclass(b: Program) -> None:
    class Job(threading.Thread):
        def run(self) -> None:
            b.far()

    with b.near():
        t = Job()
        t.start()
        t.join()


@boundary("Thread subclass overriding run() and start()", expect="direct")
def thread_subclass_start(b: Program) -> None:
    class Job(threading.Thread):
        def __init__(self, key: str) -> None:
            super().__init__(daemon=True)
            self.key = key

        def start(self) -> None:
            self.started_at = time.time()
            super().start()

        def run(self) -> None:
            super().run()
            b.far(self.key)

    jobs = []
    for key in "ab":
        with b.near(key):
            job = Job(key)
            job.start()
            jobs.append(job)
    for job in jobs:
        job.join()


@boundary("thread from thread from thread", expect="connected")
def thread_hops(b: Program) -> None:
    def hop(left: int) -> None:
        if not left:
            return b.far()
        t = threading.Thread(target=hop, args=(left - 1,))
        t.start()
        t.join()
        return None

    with b.near():
        hop(3)


@boundary("thread whose work fails", expect="direct")
def thread_fails(b: Program) -> None:
    threading.excepthook = lambda _: None

    def work() -> None:
        b.far()
        raise RuntimeError

    with b.near():
        t = threading.Thread(target=work)
        t.start()
        t.join()
    t = threading.Thread(target=b.clean, args=("next thread",))
    t.start()
    t.join()


@boundary("two requests, two threads at once", expect="direct")
def thread_two(b: Program) -> None:
    both = threading.Barrier(2)

    def request(key: str) -> None:
        with b.near(key):
            both.wait()
            t = threading.Thread(target=b.far, args=(key,))
            t.start()
            t.join()
            both.wait()

    requests = [threading.Thread(target=request, args=(key,)) for key in "ab"]
    for r in requests:
        r.start()
    for r in requests:
        r.join()


@boundary("_thread.start_new_thread", expect="direct")
def start_new_thread(b: Program) -> None:
    done = threading.Event()

    def work() -> None:
        b.far()
        done.set()

    with b.near():
        _thread.start_new_thread(work, ())
    done.wait()


# ---------------------------------------------------------------------------------------------------------------- timers


@boundary("threading.Timer", expect="direct")
def timer(b: Program) -> None:
    with b.near():
        t = threading.Timer(0.05, b.far)
        t.start()
    t.join()


@boundary("Timer that is cancelled, and one that is not", expect="direct")
def timer_cancelled(b: Program) -> None:
    with b.near():
        t = threading.Timer(10, b.leak, ("a cancelled timer ran",))
        t.start()
        other = threading.Timer(0.02, b.far)
        other.start()
    t.cancel()
    t.join()
    other.join()


class Repeating(threading.Timer):
    def run(self) -> None:
        while not self.finished.wait(self.interval):
            self.function(*self.args, **self.kwargs)


@boundary("Timer subclass overriding run() (repeating timer)", expect="direct")
def timer_repeating(b: Program) -> None:
    with b.near():
        t = Repeating(0.02, b.far)
        t.start()
        time.sleep(0.1)
    t.cancel()
    t.join()


@boundary("Timer subclass that calls super().run()", expect="direct")
def timer_super(b: Program) -> None:
    class Late(threading.Timer):
        def run(self) -> None:
            super().run()

    with b.near():
        t = Late(0.02, b.far)
        t.start()
    t.join()


@boundary("Timer that starts the next one (three times)", expect="direct")
def timer_chain(b: Program) -> None:
    done = threading.Event()

    def tick(left: int) -> None:
        b.far()
        if left:
            threading.Timer(0.01, tick, (left - 1,)).start()
        else:
            done.set()

    with b.near():
        threading.Timer(0.01, tick, (3,)).start()
    done.wait()


@boundary("sched.scheduler", expect="direct")
def scheduler(b: Program) -> None:
    s = sched.scheduler()
    for key in "ab":
        with b.near(key):
            s.enter(0.01, 1, b.far, (key,))
    s.enter(0.02, 1, b.clean, ("event entered outside",))
    s.run()
    b.clean("after the scheduler")


@boundary("sched.scheduler run by a thread that was started in another request", expect="direct")
def scheduler_thread(b: Program) -> None:
    s = sched.scheduler()
    with b.near("a"):
        s.enterabs(s.timefunc() + 0.02, 1, b.far, ("a",))
        t = threading.Thread(target=s.run)
        t.start()
    with b.near("b"):
        s.enter(0.02, 1, b.far, kwargs={"key": "b"})
        t.join()


# --------------------------------------------------------------------------------------------------------------- workers


@boundary("periodic loop thread (while True: work; sleep) must be new roots", expect="own root")
def periodic(b: Program) -> None:
    def loop() -> None:
        n = 0
        while True:
            b.clean("periodic tick")
            b.far()
            n += 1
            if n == 3:
                break
            time.sleep(0.02)

    with b.near():
        t = threading.Thread(target=loop)
        t.start()
        time.sleep(0.03)
    t.join()


@boundary("periodic loop of a Thread subclass, with an Event", expect="own root")
def periodic_subclass(b: Program) -> None:
    class Loop(threading.Thread):
        def __init__(self) -> None:
            super().__init__(daemon=True)
            self.stopped = threading.Event()

        def run(self) -> None:
            self.main_loop()

        def main_loop(self) -> None:
            while not self.stopped.wait(0.01):
                b.clean("periodic tick")
                b.far()

    with b.near():
        t = Loop()
        t.start()
        time.sleep(0.04)
    time.sleep(0.04)
    t.stopped.set()
    t.join()


@boundary("periodic loop started as Timer(0, loop) and as functools.partial", expect="own root")
def periodic_by_timer(b: Program) -> None:
    stop = threading.Event()

    def loop(_: int = 0) -> None:
        while not stop.is_set():
            b.far()
            time.sleep(0.01)

    with b.near():
        threads: list[threading.Thread] = [
            threading.Timer(0.01, loop),
            threading.Thread(target=functools.partial(loop, 1)),
        ]
        for t in threads:
            t.start()
    time.sleep(0.05)
    stop.set()
    for t in threads:
        t.join()


@boundary(
    "a worker's own pool of deque and Condition, started lazily in a request: not that request's", expect="own root"
)
def lazy_worker_of_ones_own(b: Program) -> None:
    waiting: list[str] = []
    changed = threading.Condition()

    def worker() -> None:
        while True:
            with changed:
                changed.wait_for(lambda: waiting)
                key = waiting.pop(0)
            if not key:
                return
            b.far(key)

    with b.near("a"):
        t = threading.Thread(target=worker)
        t.start()
    for key in ("b", ""):
        with b.near(key or "c"), changed:
            waiting.append(key)
            changed.notify()
    t.join()


# ----------------------------------------------------------------------------------------------------------------- pools


@boundary("ThreadPoolExecutor.submit", expect="direct")
def pool_submit(b: Program) -> None:
    with ThreadPoolExecutor(1) as pool:
        for key in "ab":
            with b.near(key):
                pool.submit(b.far, key).result()
        pool.submit(b.clean, "job submitted outside").result()


@boundary("ThreadPoolExecutor.map", expect="direct")
def pool_map(b: Program) -> None:
    with ThreadPoolExecutor(2) as pool:
        for key in "ab":
            with b.near(key):
                list(pool.map(b.far, [key] * 3))
            pool.submit(b.clean, "job submitted outside").result()


@boundary("ThreadPoolExecutor with an initializer, started lazily inside the first request", expect="direct")
def pool_initializer(b: Program) -> None:
    def initialize() -> None:
        b.clean("initializer")
        b.span("initializer").__enter__()  # left open, as bad initializers do

    pool = ThreadPoolExecutor(1, initializer=initialize)
    for key in "ab":
        with b.near(key):
            pool.submit(b.far, key).result()
    pool.shutdown()


@boundary("ThreadPoolExecutor whose threads a subclass starts", expect="direct")
def pool_subclass(b: Program) -> None:
    class Pool(ThreadPoolExecutor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            return super().submit(fn, *args, **kwargs)

    with Pool(1) as pool:
        for key in "ab":
            with b.near(key):
                pool.submit(functools.partial(b.far, key)).result()


@boundary("fire and forget in a pool, the span has ended", expect="direct")
def pool_after_the_end(b: Program) -> None:
    go = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(go.wait)
        for key in "ab":
            with b.near(key):
                pool.submit(b.far, key)
        go.set()


@boundary("a job that submits a job that submits a job", expect="connected")
def pool_hops(b: Program) -> None:
    with ThreadPoolExecutor(4) as pool:

        def hop(left: int) -> None:
            with b.span(f"hop {left}"):
                if left:
                    pool.submit(hop, left - 1).result()
                else:
                    b.far()

        with b.near():
            pool.submit(hop, 2).result()


@boundary("jobs that fail and jobs that are cancelled", expect="direct")
def pool_failures(b: Program) -> None:
    with ThreadPoolExecutor(1) as pool:
        for key in "abc":
            with b.near(key):
                failing = pool.submit(lambda: 1 / 0)
                cancelled = pool.submit(b.leak, "a cancelled job ran")
                cancelled.cancel()
                job = pool.submit(b.far, key)
                concurrent.futures.wait([failing, job])
                if not cancelled.cancelled():
                    b.far(key)
    b.clean("after all")


@boundary("Future.add_done_callback (runs in worker)", expect="direct")
def done_callback(b: Program) -> None:
    with ThreadPoolExecutor(1) as pool:
        for key in "ab":
            with b.near(key):
                future = pool.submit(time.sleep, 0.02)
                future.add_done_callback(lambda _, key=key: b.far(key))
        pool.submit(b.clean, "worker after a callback").result()


@boundary("Future.add_done_callback registered by another request than the job's", expect="direct")
def done_callback_of_another(b: Program) -> None:
    with ThreadPoolExecutor(1) as pool:
        with b.near("a"):
            future = pool.submit(time.sleep, 0.05)
            future.add_done_callback(lambda _: b.far("a"))
        with b.near("b"):
            future.add_done_callback(lambda _: b.far("b"))
            future.add_done_callback(lambda _: 1 / 0)
        future.add_done_callback(lambda _: b.clean("callback registered outside"))
        future.result()
    future.add_done_callback(lambda _: b.clean("callback registered afterwards"))


@boundary("concurrent.futures.wait / as_completed then continue", expect="direct")
def wait_then_continue(b: Program) -> None:
    with ThreadPoolExecutor(2) as pool, b.near():
        for future in concurrent.futures.as_completed([pool.submit(time.sleep, 0.01) for _ in range(3)]):
            future.result()
            b.far()


@boundary("multiprocessing.pool.ThreadPool, all methods, started in the first request", expect="direct")
def thread_pool(b: Program) -> None:
    pool = None
    for key in "ab":
        with b.near(key):
            pool = pool or multiprocessing.pool.ThreadPool(2)
            pool.apply(b.far, (key,))
            pool.apply_async(b.far, (), {"key": key}).get()
            pool.map(b.far, [key, key])
            pool.map_async(b.far, [key, key], 1).get()
            pool.starmap(b.far, [(key,), (key,)])
            pool.starmap_async(b.far, [(key,)], 1).get()
            list(pool.imap(b.far, [key, key]))
            list(pool.imap_unordered(b.far, (k for k in [key, key]), 2))
        pool.apply(b.clean, ("job from outside",))
    assert pool is not None
    pool.close()
    pool.join()


@boundary("multiprocessing.pool.ThreadPool callbacks", expect="direct")
def thread_pool_callbacks(b: Program) -> None:
    pool = multiprocessing.pool.ThreadPool(1)
    for key in "ab":
        with b.near(key):
            pool.apply_async(int, ("1",), callback=lambda _, key=key: b.far(key)).wait()
            pool.apply_async(int, ("x",), error_callback=lambda _, key=key: b.far(key)).wait()
            pool.map_async(int, ["1", "2"], callback=lambda _, key=key: b.far(key)).wait()
    pool.close()
    pool.join()


@boundary("multiprocessing.pool.ThreadPool.imap over a generator that makes spans", expect="direct")
def thread_pool_generator(b: Program) -> None:
    def items(key: str) -> Any:
        for _ in range(2):
            b.far(key)
            yield key

    with multiprocessing.pool.ThreadPool(1) as pool:
        for key in "ab":
            with b.near(key):
                list(pool.imap(b.far, items(key)))


# --------------------------------------------------------------------------------------------------------------- signals


@boundary("signal.signal handler inside the span", expect="direct")
def signal_handler(b: Program) -> None:
    signal.signal(signal.SIGUSR1, lambda *_: b.far())
    with b.near():
        signal.raise_signal(signal.SIGUSR1)
