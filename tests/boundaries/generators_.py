"""Service call: generators that hold a span open across their yields, whoever consumes them and wherever they are closed."""

import asyncio
import contextlib
import gc
import queue
import threading
from concurrent.futures import ThreadPoolExecutor

from tests.boundaries import Program, boundary

CONTRIB = [
    "opentelemetry.instrumentation.threading:ThreadingInstrumentor",
    "opentelemetry.instrumentation.asyncio:AsyncioInstrumentor",
]


def rows(b: Program, count: int = 3, key: str | None = None):
    """What it does itself is below its span: `far` when it has a key."""
    with b.span("near" + key if key is not None else "rows"):
        for n in range(count):
            yield n
            if key is not None:
                b.far(key)


async def async_rows(b: Program, count: int = 3, key: str | None = None):
    with b.span("near" + key if key is not None else "rows"):
        for n in range(count):
            await asyncio.sleep(0)
            yield n
            if key is not None:
                b.far(key)


def elsewhere(function, *args):
    """In a thread that was there before."""
    if not hasattr(elsewhere, "jobs"):
        elsewhere.jobs = ThreadPoolExecutor(1)
        elsewhere.jobs.submit(int).result()
    return elsewhere.jobs.submit(function, *args).result()


# ----------------------------------------------------------------------------------------------------------------- plain


@boundary("generator: consumer sees the generator's span as current", expect="direct")
def consumer(b: Program) -> None:
    with b.near():
        for _ in rows(b):
            b.far()
        b.far()


@boundary("generator abandoned half-way (break), context after", expect="direct")
def abandoned(b: Program) -> None:
    with b.near():
        for _ in rows(b):
            b.far()
            break
        kept = rows(b)
        next(kept)
        b.far()
    b.clean("after next(kept)")
    del kept
    gc.collect()
    b.clean("after it was collected")


@boundary("generator held by what outlives the request, then collected inside another", expect="direct")
def collected_later(b: Program) -> None:
    with b.near("a"):
        held = [rows(b)]
        next(held[0])
        b.far("a")
    with b.near("b"):
        held.clear()
        gc.collect()
        b.far("b")


@boundary("generator's own work hangs below its span, each step in another thread", expect="direct")
def steps_elsewhere(b: Program) -> None:
    made = rows(b, key="")
    next(made)
    for _ in range(2):
        thread = threading.Thread(target=next, args=(made,))
        thread.start()
        thread.join()
    elsewhere(list, made)
    b.clean("caller")
    elsewhere(b.clean, "pool thread")


@boundary("generator consumed in another thread, which works below its own span", expect="direct")
def consumed_elsewhere(b: Program) -> None:
    def consume() -> None:
        with b.near():
            for _ in rows(b):
                b.far()
        b.clean("consumer")

    made = rows(b)
    next(made)
    elsewhere(consume)
    elsewhere(list, made)
    b.clean("maker")


@boundary("generator with open span closed in another thread", expect="direct")
def closed_elsewhere(b: Program) -> None:
    with b.near():
        made = rows(b)
        next(made)
        elsewhere(made.close)
        b.far()
    b.clean("caller after the generator was closed elsewhere")
    elsewhere(b.clean, "where it was closed")


@boundary("generators nested, delegated to, two in turns", expect="direct")
def nested(b: Program) -> None:
    def outer(key: str):
        with b.span(f"near{key}"):
            for n in rows(b):
                b.far(key)
                yield n
                b.far(key)

    def delegating():
        yield from outer("-delegated")

    with b.near():
        for _ in zip(outer("-first"), outer("-second"), strict=True):
            b.far()
        for _ in delegating():
            b.far()
        b.far()


@boundary("generator that is sent to, thrown into and closed", expect="direct")
def sent(b: Program) -> None:
    def echo():
        got = None
        with b.span("near-own"):
            while True:
                try:
                    got = yield got
                except KeyError:
                    got = "thrown"
                b.far("-own")

    with b.near():
        made = echo()
        next(made)
        assert made.send(1) == 1
        b.far()
        assert made.throw(KeyError()) == "thrown"
        b.far()
        made.close()
        b.far()


@boundary("work that the generator starts is below its span", expect="direct")
def starts_work(b: Program) -> None:
    def made(pool: ThreadPoolExecutor):
        with b.span("near-own"):
            yield pool.submit(b.far, "-own")
            yield pool.submit(b.far, "-own")

    with ThreadPoolExecutor(1) as pool, b.near():
        for future in made(pool):
            future.result()
            b.far()
            pool.submit(b.far).result()


@boundary("contextlib.contextmanager: the span is for whoever enters it", expect="direct")
def context_manager(b: Program) -> None:
    @contextlib.contextmanager
    def transaction(key: str):
        with b.span(f"near{key}"):
            yield

    with transaction("a"):
        b.far("a")
        with transaction("b"):
            b.far("b")
        b.far("a")


@boundary("generator handed over in a queue and consumed by the worker", expect="direct")
def through_a_queue(b: Program) -> None:
    jobs = queue.Queue()

    def plain():
        for _ in range(3):
            b.far()
            yield

    def worker() -> None:
        while (made := jobs.get()) is not None:
            list(made)
            jobs.task_done()

    thread = threading.Thread(target=worker)
    thread.start()
    with b.near():
        jobs.put(plain())
        jobs.join()
    jobs.put(None)
    thread.join()


@boundary("generator that fails, the context after", expect="direct")
def failing(b: Program) -> None:
    def bad():
        with b.span("bad"):
            yield 1
            raise ValueError

    with b.near():
        try:
            for _ in bad():
                b.far()
        except ValueError:
            b.far()


# --------------------------------------------------------------------------------------------------------------- asyncio


@boundary("async generator: span held open across yield, body of async for", expect="direct")
async def async_consumer(b: Program) -> None:
    with b.near():
        async for _ in async_rows(b):
            b.far()
            await asyncio.sleep(0)
            b.far()
        async for _ in async_rows(b, key="-own"):
            b.far()


@boundary("async generator abandoned half-way, closed by the event loop", expect="direct")
async def async_abandoned(b: Program) -> None:
    with b.near():
        async for _ in async_rows(b):
            break
        b.far()
        gc.collect()
        await asyncio.sleep(0.01)
        b.far()
    b.clean("after it was closed")


@boundary("async generator closed from another task (aclose)", expect="direct")
async def async_closed_elsewhere(b: Program) -> None:
    with b.near():
        made = async_rows(b)
        await anext(made)
        await asyncio.create_task(made.aclose())
        b.far()
    b.clean("caller after aclose elsewhere")


@boundary("async generator whose steps are taken by one task each", expect="direct")
async def async_steps_elsewhere(b: Program) -> None:
    async def step(made) -> None:
        await anext(made)

    made = async_rows(b, key="")
    for _ in range(3):
        await asyncio.create_task(step(made))
        b.clean("between the steps")
    await made.aclose()
    b.clean("after")


@boundary("many tasks consume generators of their own", expect="direct")
async def async_many(b: Program) -> None:
    async def request(key: str) -> None:
        with b.near(key):
            async for _ in async_rows(b):
                b.far(key)

    await asyncio.gather(*[request(f"-{n}") for n in range(20)])


@boundary("contextlib.asynccontextmanager", expect="direct")
async def async_context_manager(b: Program) -> None:
    @contextlib.asynccontextmanager
    async def transaction():
        with b.near():
            yield

    async with transaction():
        await asyncio.create_task(asyncio.to_thread(b.far))
        b.far()


# ----------------------------------------------------------------------------------------------------------------- anyio


@boundary("anyio.to_thread.run_sync + from_thread.run", expect="direct")
async def anyio_threads(b: Program) -> None:
    import anyio

    async def back() -> None:
        b.far()

    def there() -> None:
        b.far()
        anyio.from_thread.run(back)
        anyio.from_thread.run_sync(b.far)

    with b.near():
        await anyio.to_thread.run_sync(there)


@boundary("anyio task groups, started in the request, and a portal's thread", expect="direct")
async def anyio_tasks(b: Program) -> None:
    import anyio
    import anyio.from_thread

    async def work(key: str) -> None:
        await anyio.sleep(0)
        b.far(key)

    def by_a_portal() -> None:
        with anyio.from_thread.start_blocking_portal() as portal:
            for key in "xy":
                with b.near(key):
                    portal.call(work, key)
                    portal.start_task_soon(work, key).result()

    for key in "ab":
        with b.near(key):
            async with anyio.create_task_group() as group:
                group.start_soon(work, key)
                group.start_soon(work, key)
    await asyncio.to_thread(by_a_portal)


@boundary("anyio's memory object streams to a worker task that the first request starts", expect="direct")
async def anyio_streams(b: Program) -> None:
    import anyio

    async def worker(receive) -> None:
        async for key, done in receive:
            b.far(key)
            done.set()
        b.clean("the worker has nothing to do")

    async def request(key: str, send, group=None, receive=None) -> None:
        with b.near(key):
            if group is not None:
                group.start_soon(worker, receive)
            done = anyio.Event()
            if int(key[1:]) % 2:
                await send.send((key, done))
            else:
                with contextlib.suppress(anyio.WouldBlock):
                    send.send_nowait((key, done))
                    await done.wait()
            await anyio.sleep(0.001)

    for size in (0, 1, 100):
        send, receive = anyio.create_memory_object_stream(size)
        async with anyio.create_task_group() as group:
            await request(f"-{size}1", send, group, receive)
            async with anyio.create_task_group() as requests:
                for n in range(2, 9):
                    requests.start_soon(request, f"-{size}{n}", send)
            send.close()


@boundary("anyio's memory object stream: receive, receive_nowait, a request that takes a reply", expect="direct")
async def anyio_receive(b: Program) -> None:
    import anyio

    send, receive = anyio.create_memory_object_stream(10)
    for key in "ab":
        with b.near(key):
            send.send_nowait(key)

    async def worker() -> None:
        assert await receive.receive() == "a"
        b.far("a")
        assert receive.receive_nowait() == "b"
        b.far("b")

    await asyncio.create_task(worker())
    b.clean("where the worker was started")
    with b.near("c"):
        async with anyio.create_task_group() as group:
            group.start_soon(send.send, "reply")
            await receive.receive()
            b.far("c")
