"""Service call: eventlet, monkey-patched before anything else is imported."""

import queue
import threading

import eventlet
import eventlet.event
import eventlet.greenthread
import eventlet.queue
import eventlet.tpool

from tests.boundaries import Program, boundary

FIRST = "import eventlet; eventlet.monkey_patch()"
CONTRIB = ["opentelemetry.instrumentation.threading:ThreadingInstrumentor"]

SPAWN = eventlet.spawn


@boundary("eventlet.spawn", expect="direct")
def spawn(b: Program) -> None:
    for key in "ab":
        with b.near(key):
            eventlet.spawn(b.far, key).wait()
    eventlet.spawn(b.clean, "spawned outside").wait()


@boundary("eventlet.spawn imported before install(), spawn_n, spawn_after, by all their names", expect="direct")
def spawns(b: Program) -> None:
    with b.near():
        SPAWN(b.far).wait()
        eventlet.spawn_n(b.far)
        eventlet.greenthread.spawn_n(b.far)
        eventlet.spawn_after(0.01, b.far).wait()
        eventlet.greenthread.spawn_after(0.01, b.far).wait()
        eventlet.greenthread.spawn_after_local(0.01, b.far).wait()
        eventlet.sleep(0.01)


@boundary("eventlet.spawn_after: the span has ended, another is current", expect="direct")
def later(b: Program) -> None:
    with b.near("a"):
        later = eventlet.spawn_after(0.02, b.far, "a")
    with b.near("b"):
        later.wait()
        b.far("b")


@boundary("hop after hop, as nameko has it", expect="connected")
def hops(b: Program) -> None:
    pool = eventlet.GreenPool(4)

    def hop(left: int) -> None:
        with b.span(f"hop {left}"):
            if not left:
                b.far()
            elif left % 2:
                eventlet.spawn(hop, left - 1)
            else:
                pool.spawn_n(hop, left - 1)

    with b.near():
        eventlet.spawn_n(hop, 6)
    eventlet.sleep(0.05)
    pool.waitall()


@boundary("GreenPool.spawn, spawn_n, imap, starmap, GreenPile; a pool older than the request", expect="direct")
def pool(b: Program) -> None:
    pool = eventlet.GreenPool(2)
    list(pool.imap(lambda _: None, range(2)))
    for key in "ab":
        with b.near(key):
            pool.spawn(b.far, key).wait()
            pool.spawn_n(b.far, key)
            pool.waitall()
            list(pool.imap(b.far, [key] * 3))
            list(pool.starmap(b.far, [(key,)] * 3))
            pile = eventlet.GreenPile(pool)
            pile.spawn(b.far, key)
            list(pile)


@boundary("greenthreads in turns, each in its own span", expect="direct")
def turns(b: Program) -> None:
    def work(key: str) -> None:
        for _ in range(3):
            eventlet.sleep(0)
            b.far(key)

    def request(key: str) -> None:
        with b.near(key):
            for thread in [eventlet.spawn(work, key) for _ in range(3)]:
                thread.wait()

    for thread in [eventlet.spawn(request, f"-{n}") for n in range(30)]:
        thread.wait()


@boundary("tpool.execute and tpool.Proxy", expect="direct")
def tpool(b: Program) -> None:
    for key in "ab":
        with b.near(key):
            eventlet.tpool.execute(b.far, key)
            eventlet.tpool.Proxy(b).far(key)
    eventlet.tpool.killall()


@boundary("the standard library's threads, which are green now", expect="direct")
def threads(b: Program) -> None:
    for key in "ab":
        with b.near(key):
            thread = threading.Thread(target=b.far, args=(key,))
            thread.start()
            thread.join()


@boundary("a periodic green thread must be new roots", expect="own root")
def periodic(b: Program) -> None:
    left = [3, 3, 3, 3]

    def tick(n: int) -> None:
        while True:
            b.far()
            left[n] -= 1
            if not left[n]:
                return
            eventlet.sleep(0.001)

    with b.near():
        eventlet.spawn(tick, 0)
        eventlet.spawn_n(tick, 1)
        eventlet.spawn_after(0.001, tick, 2)
        eventlet.GreenPool(1).spawn_n(tick, 3)
    while any(left):
        eventlet.sleep(0.001)


@boundary("green threads that fail, are killed, are cancelled", expect="direct")
def failing(b: Program) -> None:
    def fail() -> None:
        with b.span("bad"):
            raise ValueError

    with b.near():
        bad = eventlet.spawn(fail)
        try:
            bad.wait()
        except ValueError:
            b.far()
        eventlet.spawn(eventlet.sleep, 60).kill()
        eventlet.spawn_after(60, b.far).cancel()
        eventlet.spawn(b.far).wait()


@boundary("eventlet.Queue and the standard library's to a green thread that the first request spawns", expect="direct")
def queues(b: Program) -> None:
    kinds = (eventlet.Queue, eventlet.queue.LightQueue, eventlet.queue.LifoQueue, queue.Queue)
    for kind in kinds:
        jobs = kind()

        def worker(jobs=jobs) -> None:
            while True:
                item = jobs.get()
                if item is None:
                    return b.clean("put outside")
                b.far(item[0])
                item[1].send()

        serving = None
        for key in (f"a{kind}", f"b{kind}"):
            with b.near(key):
                serving = serving or eventlet.spawn(worker)
                done = eventlet.event.Event()
                jobs.put((key, done))
                done.wait()
        jobs.put(None)
        serving.wait()


@boundary("eventlet.PriorityQueue keeps its order", expect="direct")
def priorities(b: Program) -> None:
    jobs = eventlet.queue.PriorityQueue()
    for priority, key in ((2, "a"), (1, "b")):
        with b.near(key):
            jobs.put((priority, key))
    order = []

    def worker() -> None:
        while not jobs.empty():
            _, key = jobs.get_nowait()
            order.append(key)
            b.far(key)
            jobs.task_done()

    eventlet.spawn(worker).wait()
    jobs.join()
    assert order == ["b", "a"]
