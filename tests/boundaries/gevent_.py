"""Service call: gevent, monkey-patched before anything else is imported."""

import queue
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import gevent
import gevent.event
import gevent.pool
import gevent.queue
import gevent.threadpool

from tests.boundaries import Program, boundary

FIRST = "from gevent import monkey; monkey.patch_all()"
CONTRIB = ["opentelemetry.instrumentation.threading:ThreadingInstrumentor"]

SPAWN, SPAWN_RAW, SPAWN_LATER = gevent.spawn, gevent.spawn_raw, gevent.spawn_later


def pause(seconds: float = 0.01) -> None:
    gevent.sleep(seconds)


@boundary("gevent.spawn", expect="direct")
def spawn(b: Program) -> None:
    for key in "ab":
        with b.near(key):
            gevent.spawn(b.far, key).join()
    gevent.spawn(b.clean, "spawned outside").join()


@boundary("gevent.spawn, imported before install(), and Greenlet's own ways to begin", expect="direct")
def spawn_imported(b: Program) -> None:
    with b.near():
        started = gevent.Greenlet(b.far)
        started.start()
        later = gevent.Greenlet(b.far)
        later.start_later(0.01)
        gevent.joinall([SPAWN(b.far), SPAWN_LATER(0.01, b.far), gevent.Greenlet.spawn(b.far), started, later])


@boundary("gevent.spawn_raw, by both its names", expect="direct")
def spawn_raw(b: Program) -> None:
    with b.near():
        gevent.spawn_raw(b.far)
        gevent.hub.spawn_raw(b.far)
        pause()


@boundary("gevent.spawn_later: the span has ended, another is current", expect="direct")
def spawn_later(b: Program) -> None:
    with b.near("a"):
        later = gevent.spawn_later(0.02, b.far, "a")
    with b.near("b"):
        later.join()
        b.far("b")


@boundary("a hundred greenlets take turns, each in its own span", expect="direct")
def turns(b: Program) -> None:
    def work(key: str) -> None:
        for _ in range(3):
            pause(0)
            b.far(key)

    def request(key: str) -> None:
        with b.near(key):
            gevent.joinall([gevent.spawn(work, key) for _ in range(3)])

    gevent.joinall([gevent.spawn(request, f"-{n}") for n in range(30)])


@boundary("Greenlet subclass overriding _run()", expect="direct")
def subclass(b: Program) -> None:
    class Job(gevent.Greenlet):
        def _run(self) -> None:
            b.far()

    job = Job()
    with b.near():
        job.start()
        job.join()


@boundary("spawn from spawn from spawn", expect="connected")
def hops(b: Program) -> None:
    def hop(left: int) -> None:
        with b.span(f"hop {left}"):
            gevent.spawn(hop, left - 1).join() if left else b.far()

    with b.near():
        gevent.spawn(hop, 3).join()


@boundary("gevent.pool.Pool.map, imap, apply_async, and a pool that is older than the request", expect="direct")
def pool(b: Program) -> None:
    pool = gevent.pool.Pool(2)
    pool.map(lambda _: None, range(2))
    for key in "ab":
        with b.near(key):
            pool.map(b.far, [key] * 3)
            list(pool.imap(b.far, [key] * 3))
            list(pool.imap_unordered(b.far, [key] * 3))
            pool.apply_async(b.far, (key,)).join()
            pool.apply(b.far, (key,))
            pool.spawn(b.far, key)
            pool.join()


@boundary("gevent.pool.Pool: callback of apply_async and links", expect="direct")
def links(b: Program) -> None:
    with b.near():
        job = gevent.spawn(pause)
        job.link(lambda _: gevent.spawn(b.far))
        job.link_value(lambda _: b.far())
        gevent.pool.Pool(1).apply_async(pause, callback=lambda _: b.far())
        job.link(b.clean)
        job.unlink(b.clean)
        job.join()
        pause(0.05)


@boundary("gevent threadpool.spawn, map and apply, the threads started by the first request", expect="direct")
def threadpool(b: Program) -> None:
    pool = gevent.get_hub().threadpool
    own = gevent.threadpool.ThreadPool(1)
    for key in "ab":
        with b.near(key):
            pool.spawn(b.far, key).get()
            pool.map(b.far, [key] * 2)
            pool.apply(b.far, (key,))
            own.spawn(b.far, key).get()
    own.spawn(b.clean, "spawned outside").get()
    own.kill()


@boundary("gevent.threadpool.ThreadPoolExecutor", expect="direct")
def threadpool_executor(b: Program) -> None:
    with gevent.threadpool.ThreadPoolExecutor(1) as pool:
        for key in "ab":
            with b.near(key):
                pool.submit(b.far, key).result()
                list(pool.map(b.far, [key]))


@boundary("the standard library's threads, timers and pools, which are greenlets now", expect="direct")
def threads(b: Program) -> None:
    with ThreadPoolExecutor(1) as pool:
        for key in "ab":
            with b.near(key):
                thread = threading.Thread(target=b.far, args=(key,))
                thread.start()
                thread.join()
                timer = threading.Timer(0.01, b.far, (key,))
                timer.start()
                timer.join()
                pool.submit(b.far, key).result()


@boundary("a periodic greenlet must be new roots", expect="own root")
def periodic(b: Program) -> None:
    stop = gevent.event.Event()

    def tick() -> None:
        while not stop.is_set():
            b.far()
            gevent.sleep(0.005)

    with b.near():
        ticking = [gevent.spawn(tick), gevent.Greenlet(tick)]
        ticking[1].start()
        pause(0.02)
    stop.set()
    gevent.joinall(ticking)


@boundary("greenlets that fail, are killed, are killed before they begin", expect="direct")
def failing(b: Program) -> None:
    def fail() -> None:
        with b.span("bad"):
            raise ValueError

    with b.near():
        bad = gevent.spawn(fail)
        bad.join()
        hanging = gevent.spawn(time.sleep, 60)
        pause()
        hanging.kill()
        gevent.spawn(b.far).kill()
        gevent.spawn(b.far).join()


@boundary("gevent.queue.Queue to a greenlet that the first request spawns", expect="direct")
def queues(b: Program) -> None:
    for jobs in (
        gevent.queue.Queue(),
        gevent.queue.JoinableQueue(),
        gevent.queue.SimpleQueue(),
        gevent.queue.Channel(),
    ):

        def worker(jobs=jobs) -> None:
            while True:
                item = jobs.get()
                if item is None:
                    return b.clean("put outside")
                b.far(item[0])
                item[1].set()

        serve(b, jobs, worker)


def serve(b: Program, jobs, worker) -> None:
    serving = None
    for key in "ab":
        with b.span("near" + (key := f"{key}{id(jobs)}")):
            serving = serving or gevent.spawn(worker)
            done = gevent.event.Event()
            jobs.put((key, done))
            done.wait()
    jobs.put(None)
    serving.join()


@boundary("for item in gevent.queue.Queue, with priorities", expect="direct")
def queue_loop(b: Program) -> None:
    jobs = gevent.queue.PriorityQueue()
    for priority, key in ((2, "a"), (1, "b")):
        with b.near(key):
            jobs.put((priority, key))
    jobs.put((3, ""))
    order = []

    def worker() -> None:
        for _, key in jobs:
            if not key:
                return
            order.append(key)
            b.far(key)

    gevent.spawn(worker).join()
    assert order == ["b", "a"]


@boundary("the standard library's queues between greenlets", expect="direct")
def stock_queues(b: Program) -> None:
    for jobs in (queue.Queue(), queue.SimpleQueue(), queue.LifoQueue()):

        def worker(jobs=jobs) -> None:
            while (item := jobs.get()) is not None:
                b.far(item[0])
                item[1].set()

        serve(b, jobs, worker)


@boundary("a server of greenlets: nobody's but the connection's", expect="own root")
def server(b: Program) -> None:
    import gevent.server

    def handle(connection: socket.socket, _) -> None:
        b.far()
        connection.close()

    with b.near():
        listening = gevent.server.StreamServer(("127.0.0.1", 0), handle)
        listening.start()
        pause()
    for _ in range(2):
        with socket.create_connection(("127.0.0.1", listening.server_port)) as client:
            client.recv(1)
    listening.stop()
