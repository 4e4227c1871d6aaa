"""Service call: threads."""

import queue
import threading
from concurrent.futures import ThreadPoolExecutor

from tests.boundaries import Program, boundary

CONTRIB = ["opentelemetry.instrumentation.threading:ThreadingInstrumentor"]


@boundary("threading.Thread(target)", expect="direct")
def thread(b: Program) -> None:
    with b.near():
        t = threading.Thread(target=b.far)
        t.start()
        t.join()


@boundary("ThreadPoolExecutor.submit", expect="direct")
def pool_submit(b: Program) -> None:
    with ThreadPoolExecutor(1) as pool:
        for key in "ab":
            with b.near(key):
                pool.submit(b.far, key).result()


@boundary("queue.Queue to a long-lived worker thread", expect="direct")
def queue_worker(b: Program) -> None:
    jobs: queue.Queue = queue.Queue()

    def work() -> None:
        while (key := jobs.get()) is not None:
            b.far(key)
            jobs.task_done()

    worker = threading.Thread(target=work)
    worker.start()
    for key in "ab":
        with b.near(key):
            jobs.put(key)
            jobs.join()
    jobs.put(None)
    worker.join()
