"""Service call: in-process queues. An item brings its producer's context to whoever takes it."""
# ruff: noqa: PERF203

import asyncio
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue as ImportedSimpleQueue
from typing import Any

from tests.boundaries import Program, boundary

CONTRIB = [
    "opentelemetry.instrumentation.threading:ThreadingInstrumentor",
    "opentelemetry.instrumentation.asyncio:AsyncioInstrumentor",
]

EARLIER: "queue.Queue[Any]" = queue.Queue()
EARLIER_SIMPLE: "queue.SimpleQueue[Any]" = queue.SimpleQueue()


def requests(b: Program, jobs: Any, keys: str = "abc", worker: Any = None) -> None:
    """Some requests that put a job each into the queue and wait for it; the first may start the worker."""
    for key in keys:
        with b.near(key):
            if worker is not None and worker.ident is None:
                worker.start()
            done = threading.Event()
            jobs.put((key, done))
            done.wait(10)


def work(b: Program, jobs: Any) -> None:
    while True:
        item = jobs.get()
        if item is None:
            b.clean("the worker has nothing to do")
            return
        key, done = item
        b.far(key)
        done.set()


def worker_before(b: Program, jobs: Any) -> None:
    worker = threading.Thread(target=work, args=(b, jobs))
    worker.start()
    requests(b, jobs)
    jobs.put(None)
    worker.join()


def worker_lazy(b: Program, jobs: Any, keys: str = "abc") -> None:
    worker = threading.Thread(target=work, args=(b, jobs))
    requests(b, jobs, keys, worker)
    jobs.put(None)
    worker.join()


# --------------------------------------------------------------------------------------------------------------- threads


@boundary("queue.Queue to a long-lived worker thread", expect="direct")
def queue_worker(b: Program) -> None:
    worker_before(b, queue.Queue())


@boundary("queue.Queue to a worker thread that the first request starts", expect="direct")
def queue_worker_lazy(b: Program) -> None:
    worker_lazy(b, queue.Queue())


@boundary("queue.SimpleQueue to a long-lived worker thread", expect="direct")
def simple_queue_worker(b: Program) -> None:
    worker_before(b, queue.SimpleQueue())


@boundary("from queue import SimpleQueue before install(), worker started by the first request", expect="direct")
def simple_queue_imported(b: Program) -> None:
    worker_lazy(b, ImportedSimpleQueue())


@boundary("queues that are older than install()", expect="direct")
def queues_earlier(b: Program) -> None:
    worker_lazy(b, EARLIER)
    worker_lazy(b, EARLIER_SIMPLE, "xyz")


@boundary("queue.LifoQueue to a long-lived worker thread", expect="direct")
def lifo_queue_worker(b: Program) -> None:
    worker_before(b, queue.LifoQueue())


@boundary("queue.PriorityQueue to a long-lived worker thread", expect="direct")
def priority_queue_worker(b: Program) -> None:
    jobs: queue.PriorityQueue[Any] = queue.PriorityQueue()
    for priority, key in ((3, "a"), (1, "b"), (2, "c")):
        with b.near(key):
            jobs.put((priority, key))
    jobs.put((9, ""))
    order = []

    def worker() -> None:
        while True:
            _, key = jobs.get()
            if not key:
                return b.clean("item put outside")
            order.append(key)
            b.far(key)
            jobs.task_done()

    t = threading.Thread(target=worker)
    t.start()
    t.join()
    assert order == ["b", "c", "a"]


@boundary("LifoQueue filled by three requests, then drained", expect="direct")
def lifo_order(b: Program) -> None:
    jobs: queue.LifoQueue[Any] = queue.LifoQueue()
    for key in "abc":
        with b.near(key):
            jobs.put(key)
    taken = []

    def worker() -> None:
        while not jobs.empty():
            taken.append(jobs.get_nowait())
            b.far(taken[-1])

    t = threading.Thread(target=worker)
    t.start()
    t.join()
    assert taken == ["c", "b", "a"]


@boundary("the same object put by two requests", expect="direct")
def same_object(b: Program) -> None:
    jobs: queue.Queue[Any] = queue.Queue()
    for key in "ab":
        with b.near(key):
            jobs.put("job")
    jobs.put("job")

    def worker() -> None:
        for key in "ab":
            jobs.get()
            b.far(key)
        jobs.get()
        b.clean("put outside")

    t = threading.Thread(target=worker)
    t.start()
    t.join()


@boundary("bounded queue, put blocks, put_nowait fails, task_done and join", expect="direct")
def bounded(b: Program) -> None:
    jobs: queue.Queue[Any] = queue.Queue(1)

    def worker() -> None:
        while (key := jobs.get()) is not None:
            b.far(key)
            jobs.task_done()

    full = 0
    t = threading.Thread(target=worker)
    for key in "abcd":
        with b.near(key):
            try:
                jobs.put_nowait(key)
            except queue.Full:
                full += 1
                if not t.is_alive():
                    t.start()
                jobs.put(key, timeout=10)
    jobs.join()
    jobs.put(None)
    t.join()
    assert full


@boundary("get with a timeout that runs out now and then", expect="direct")
def get_with_timeout(b: Program) -> None:
    jobs: queue.Queue[Any] = queue.Queue()

    def worker() -> None:
        while True:
            try:
                key, done = jobs.get(timeout=0.01)
            except queue.Empty:
                continue
            if not key:
                return
            b.far(key)
            done.set()

    t = threading.Thread(target=worker)
    t.start()
    requests(b, jobs, "ab")
    jobs.put(("", None))
    t.join()


@boundary("user's subclass with its own storage, that drops doubles", expect="direct")
def subclass_queue(b: Program) -> None:
    class SetQueue(queue.Queue):  # type: ignore[type-arg]
        def _init(self, maxsize: int) -> None:
            self.queue: Any = {}

        def _put(self, item: Any) -> None:
            self.queue[item] = None

        def _get(self) -> Any:
            return self.queue.popitem()[0]

    jobs = SetQueue()
    worker = threading.Thread(target=work, args=(b, jobs))
    with b.near("x"):
        jobs.put("same")
    with b.near("y"):
        jobs.put("same")
    with b.near("z"):
        assert jobs.get() == "same"
        b.far("z")
    worker.start()
    requests(b, jobs, "ab")
    jobs.put(None)
    worker.join()


@boundary("user's subclass that wraps what it holds", expect="direct")
def subclass_wraps(b: Program) -> None:
    class Counting(queue.PriorityQueue):  # type: ignore[type-arg]
        count = 0

        def _put(self, item: Any) -> None:
            self.count += 1
            super()._put((self.count, item))

        def _get(self) -> Any:
            return super()._get()[1]

    worker_lazy(b, Counting())


@boundary("a chain of three workers, each with its queue", expect="connected")
def pipeline(b: Program) -> None:
    queues: list[Any] = [queue.Queue(), queue.SimpleQueue(), queue.LifoQueue()]
    done: queue.Queue[Any] = queue.Queue()

    def stage(source: Any, target: Any) -> None:
        while (key := source.get()) is not None:
            with b.span("stage"):
                target.put(key)

    def last(source: Any) -> None:
        while (key := source.get()) is not None:
            b.far(key)
            done.put(key)

    threads = [
        threading.Thread(target=stage, args=queues[:2]),
        threading.Thread(target=stage, args=queues[1:]),
        threading.Thread(target=last, args=queues[2:]),
    ]
    for t in threads:
        t.start()
    for key in "ab":
        with b.near(key):
            queues[0].put(key)
            done.get()
    for q in queues:
        q.put(None)
    for t in threads:
        t.join()


@boundary("reply by a queue: the request keeps its own span", expect="direct")
def reply(b: Program) -> None:
    with ThreadPoolExecutor(1) as pool:
        for key in "ab":
            with b.near(key):
                replies: queue.Queue[Any] = queue.Queue()

                def job(replies: Any = replies) -> None:
                    with b.span("job"):
                        replies.put("done")

                pool.submit(job)
                replies.get()
                b.far(key)


@boundary("replies from two traces are collected in a third", expect="direct")
def collect(b: Program) -> None:
    replies: queue.Queue[Any] = queue.Queue()
    for key in "xy":
        with b.near(key):
            replies.put(key)
            b.far(key)
    with b.near("z"):
        taken = []
        while len(taken) < 2:
            taken.append(replies.get())
        b.far("z")


@boundary("a pool of connections in a queue: whoever takes one keeps his context", expect="direct")
def connections(b: Program) -> None:
    jobs: queue.Queue[Any] = queue.Queue()
    connections: queue.LifoQueue[Any] = queue.LifoQueue()
    connections.put(object())

    def use_a_connection() -> None:
        connection = connections.get()
        with b.span("statement"):
            pass
        connections.put(connection)

    def worker() -> None:
        while (item := jobs.get()) is not None:
            key, done = item
            use_a_connection()
            b.far(key)
            done.set()

    t = threading.Thread(target=worker)
    t.start()
    for key in "xy":
        with b.near(key):
            use_a_connection()
            b.far(key)
    requests(b, jobs, "ab")
    jobs.put(None)
    t.join()


@boundary("urllib3's pool of connections brings nobody else's trace", expect="own root")
def urllib3_pool(b: Program) -> None:
    import http.server

    import urllib3

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        pool = urllib3.HTTPConnectionPool("127.0.0.1", server.server_port, maxsize=1, block=True)
        with b.near():
            pool.request("GET", "/")
        pool.request("GET", "/")
        b.clean("after a request outside")
        b.far()
        pool.close()
        server.shutdown()


@boundary("worker that opens a span for each item", expect="connected")
def worker_with_span(b: Program) -> None:
    jobs: queue.Queue[Any] = queue.Queue()

    def worker() -> None:
        while True:
            item = jobs.get()
            if item is None:
                return
            with b.span("process"):
                b.far(item[0])
                item[1].set()

    t = threading.Thread(target=worker)
    t.start()
    requests(b, jobs)
    jobs.put(None)
    t.join()


@boundary("worker whose work fails", expect="direct")
def worker_fails(b: Program) -> None:
    jobs: queue.Queue[Any] = queue.Queue()

    def worker() -> None:
        for key, done in iter(jobs.get, None):
            try:
                with b.span("bad"):
                    raise ValueError
            except ValueError:
                b.far(key)
            finally:
                done.set()

    t = threading.Thread(target=worker)
    t.start()
    requests(b, jobs)
    jobs.put(None)
    t.join()


@boundary("two workers share a queue, two requests at once", expect="direct")
def two_workers(b: Program) -> None:
    jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
    workers = [threading.Thread(target=work, args=(b, jobs)) for _ in range(2)]
    for t in workers:
        t.start()
    callers = [threading.Thread(target=requests, args=(b, jobs, keys)) for keys in ("ace", "bdf")]
    for t in callers:
        t.start()
    for t in callers:
        t.join()
    for _ in workers:
        jobs.put(None)
    for t in workers:
        t.join()


@boundary("retry: the worker puts the item back", expect="connected")
def retry(b: Program) -> None:
    jobs: queue.Queue[Any] = queue.Queue()
    attempts: dict[str, int] = {}

    def worker() -> None:
        while True:
            item = jobs.get()
            if item is None:
                return
            key, done = item
            attempts[key] = attempts.get(key, 0) + 1
            if attempts[key] < 3:
                jobs.put(item)
            else:
                b.far(key)
                done.set()

    t = threading.Thread(target=worker)
    t.start()
    requests(b, jobs, "ab")
    jobs.put(None)
    t.join()


# --------------------------------------------------------------------------------------------------------------- asyncio


async def ask(b: Program, jobs: Any, key: str) -> None:
    with b.near(key):
        done = asyncio.Event()
        await jobs.put((key, done))
        await done.wait()


async def async_worker(b: Program, jobs: Any) -> None:
    while True:
        item = await jobs.get()
        if item is None:
            b.clean("long-lived worker task")
            return
        b.far(item[0])
        item[1].set()
        jobs.task_done()


@boundary("asyncio.Queue to a long-lived worker task", expect="direct")
async def async_queue(b: Program) -> None:
    jobs: asyncio.Queue[Any] = asyncio.Queue()
    worker = asyncio.create_task(async_worker(b, jobs))
    for key in "abc":
        await ask(b, jobs, key)
    await jobs.put(None)
    await worker


@boundary("asyncio worker task lazily created inside a request, then serves another", expect="direct")
async def async_queue_lazy(b: Program) -> None:
    jobs: asyncio.Queue[Any] = asyncio.Queue(1)
    with b.near("a"):
        worker = asyncio.create_task(async_worker(b, jobs))
        done = asyncio.Event()
        jobs.put_nowait(("a", done))
        await done.wait()
    await asyncio.gather(*[ask(b, jobs, key) for key in "bcd"])
    await jobs.join()
    jobs.put_nowait(None)
    await worker


@boundary("asyncio.PriorityQueue and LifoQueue", expect="direct")
async def async_other_queues(b: Program) -> None:
    for jobs, keys in ((asyncio.PriorityQueue[Any](), "ab"), (asyncio.LifoQueue[Any](), "cd")):
        for n, key in enumerate(keys):
            with b.near(key):
                jobs.put_nowait((-n, key))

        async def worker(jobs: Any = jobs, keys: str = keys) -> None:
            for expected in reversed(keys):
                _, key = await jobs.get()
                assert key == expected
                b.far(key)

        await asyncio.create_task(worker())


@boundary("asyncio.Queue with wait_for and cancellations", expect="direct")
async def async_queue_cancelled(b: Program) -> None:
    jobs: asyncio.Queue[Any] = asyncio.Queue()

    async def worker() -> None:
        while True:
            try:
                key, done = await asyncio.wait_for(jobs.get(), 0.02)
            except asyncio.TimeoutError:
                continue
            b.far(key)
            done.set()

    worker_task = asyncio.create_task(worker())
    for key in "ab":
        await asyncio.sleep(0.03)
        await ask(b, jobs, key)
    worker_task.cancel()
    await asyncio.gather(worker_task, return_exceptions=True)


@boundary("docs' example: workers of one request share its queue", expect="direct")
async def async_queue_of_one_request(b: Program) -> None:
    async def worker(jobs: Any) -> None:
        while True:
            key = await jobs.get()
            await asyncio.sleep(0.001)
            b.far(key)
            jobs.task_done()

    for key in "ab":
        with b.near(key):
            jobs: asyncio.Queue[Any] = asyncio.Queue()
            for _ in range(5):
                jobs.put_nowait(key)
            workers = [asyncio.create_task(worker(jobs)) for _ in range(2)]
            await jobs.join()
            for task in workers:
                task.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


@boundary("reply by an asyncio.Queue: the request keeps its own span", expect="direct")
async def async_reply(b: Program) -> None:
    async def job(replies: Any) -> None:
        with b.span("job"):
            await replies.put("done")

    for key in "ab":
        with b.near(key):
            replies: asyncio.Queue[Any] = asyncio.Queue()
            task = asyncio.create_task(job(replies))
            await replies.get()
            b.far(key)
            await task


@boundary("items of a thread's queue handed to the event loop", expect="direct")
async def thread_to_loop(b: Program) -> None:
    jobs: queue.Queue[Any] = queue.Queue()
    loop = asyncio.get_running_loop()

    async def handle(key: str, done: threading.Event) -> None:
        b.far(key)
        done.set()

    def worker() -> None:
        while (item := jobs.get()) is not None:
            asyncio.run_coroutine_threadsafe(handle(*item), loop)

    t = threading.Thread(target=worker)
    t.start()
    await asyncio.to_thread(requests, b, jobs)
    jobs.put(None)
    t.join()


@boundary("logging.handlers.QueueListener handles each record in its own context", expect="direct")
def queue_listener(b: Program) -> None:
    import logging
    import logging.handlers

    class Far(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            b.far(record.getMessage())

    records: queue.Queue[Any] = queue.Queue()
    logger = logging.getLogger("boundary")
    logger.propagate = False
    logger.addHandler(logging.handlers.QueueHandler(records))
    listener = logging.handlers.QueueListener(records, Far())
    with b.near("a"):
        listener.start()
        logger.warning("a")
    with b.near("b"):
        logger.warning("b")
    listener.stop()


def items(jobs: Any) -> Iterator[Any]:
    while (item := jobs.get()) is not None:
        yield item


@boundary("the items come out of a generator", expect="direct")
def through_a_generator(b: Program) -> None:
    jobs: queue.Queue[Any] = queue.Queue()

    def worker() -> None:
        for key, done in items(jobs):
            b.far(key)
            done.set()

    t = threading.Thread(target=worker)
    t.start()
    requests(b, jobs)
    jobs.put(None)
    t.join()


@boundary("the queue's own put is the job: of a thread, of a timer, of a task, from another thread", expect="direct")
async def put_is_the_job(b: Program) -> None:
    jobs: asyncio.Queue[Any] = asyncio.Queue()
    stock: queue.Queue[Any] = queue.Queue(10)
    loop = asyncio.get_running_loop()
    worker = asyncio.create_task(async_worker(b, jobs))
    thread = threading.Thread(target=work, args=(b, stock))
    thread.start()

    def put_from_a_thread(key: str) -> None:
        with b.near(key):
            asyncio.run_coroutine_threadsafe(jobs.put((key, asyncio.Event())), loop).result()
            threading.Thread(target=stock.put, args=((key, threading.Event()),)).start()
            threading.Timer(0.01, stock.put, [(key, threading.Event())]).start()

    for key in "ab":
        await asyncio.to_thread(put_from_a_thread, key)
    with b.near("c"):
        await asyncio.gather(*[jobs.put(("c", asyncio.Event())) for _ in range(3)])
        await asyncio.wait_for(jobs.put(("c", asyncio.Event())), 5)
    await jobs.put(None)
    await worker
    await asyncio.sleep(0.1)
    stock.put(None)
    await asyncio.to_thread(thread.join)
