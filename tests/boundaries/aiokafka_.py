"""Async message: aiokafka."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener
from opentelemetry import trace

from tests.boundaries import Program, boundary

CONTRIB = [
    "opentelemetry.instrumentation.aiokafka:AIOKafkaInstrumentor",
    "opentelemetry.instrumentation.threading:ThreadingInstrumentor",
]
DEADLINE_S = 30

# A program that nobody instruments.
STRANGER = """
import asyncio, sys
from aiokafka import AIOKafkaProducer

async def main():
    async with AIOKafkaProducer(bootstrap_servers=sys.argv[1]) as producer:
        for name in ("traceparent", "tracestate", "baggage", "b3"):
            await producer.send_and_wait(sys.argv[2], b"x", headers=[(name, b"\\\\xff\\\\xfe")])

asyncio.run(main())
"""


def plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "BOUNDARY_"))}


def new_topic() -> str:
    return f"topic-{uuid.uuid4().hex[:12]}"


def producer(b: Program, **options: Any) -> AIOKafkaProducer:
    return AIOKafkaProducer(bootstrap_servers=b.address("kafka"), **options)


def consumer(b: Program, *topics: str, **options: Any) -> AIOKafkaConsumer:
    options = {"auto_offset_reset": "earliest", "metadata_max_age_ms": 500} | options
    return AIOKafkaConsumer(*topics, bootstrap_servers=b.address("kafka"), **options)


async def send_each(b: Program, topic: str, keys: str) -> None:
    async with producer(b) as p:
        for key in keys:
            with b.near(key):
                await p.send_and_wait(topic, key.encode())


def text(record: Any) -> str:
    return record.value.decode()


# ------------------------------------------------------------------------------------------------------------ async for


@boundary("aiokafka: async for msg in consumer", needs=("kafka",))
async def loop_body(b: Program) -> None:
    topic = new_topic()
    await send_each(b, topic, "ab")
    async with consumer(b, topic) as c:
        keys = set()
        async for record in c:
            b.far(text(record))
            keys.add(text(record))
            if len(keys) == 2:
                break
        b.clean("after the loop")


@boundary("aiokafka: async for, awaits in the handler, another task meanwhile", needs=("kafka",))
async def loop_with_other_task(b: Program) -> None:
    async def tick() -> None:
        while True:
            await asyncio.sleep(0.01)
            b.clean("the other task")

    topic = new_topic()
    await send_each(b, topic, "ab")
    other = asyncio.create_task(tick())
    async with consumer(b, topic) as c:
        left = 2
        async for record in c:
            await asyncio.sleep(0.1)
            b.far(text(record))
            left -= 1
            if not left:
                break
    other.cancel()
    b.clean("after close")


@boundary("aiokafka: async for raises, a supervisor starts it again", needs=("kafka",))
async def loop_supervised(b: Program) -> None:
    topic = new_topic()
    await send_each(b, topic, "ab")
    async with consumer(b, topic) as c:

        async def run() -> None:
            async for record in c:
                b.far(text(record))
                raise ValueError(record.value)

        for _ in "ab":
            with contextlib.suppress(ValueError):
                await run()
            b.clean("in the supervisor")


@boundary("aiokafka: async for in an async generator, the handler outside", needs=("kafka",))
async def loop_in_generator(b: Program) -> None:
    topic = new_topic()
    await send_each(b, topic, "ab")
    async with consumer(b, topic) as c:

        async def orders() -> AsyncIterator[str]:
            async for record in c:
                yield text(record)

        left = 2
        async with contextlib.aclosing(orders()) as each:
            async for key in each:
                b.far(key)
                left -= 1
                if not left:
                    break
        b.clean("after the generator")


@boundary("aiokafka: a consumer task is cancelled while it waits", needs=("kafka",))
async def loop_cancelled(b: Program) -> None:
    topic = new_topic()
    await send_each(b, topic, "ab")
    handled = asyncio.Event()

    async def work() -> None:
        async with consumer(b, topic) as c:
            left = 2
            async for record in c:
                b.far(text(record))
                left -= 1
                if not left:
                    handled.set()

    with b.span("starts the worker"):
        worker = asyncio.create_task(work())
    await handled.wait()
    worker.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await worker
    b.clean("after the task")


@boundary("aiokafka: async for, a task for each message", needs=("kafka",))
async def loop_to_tasks(b: Program) -> None:
    async def work(record: Any) -> None:
        await asyncio.sleep(0.2)
        b.far(text(record))

    topic = new_topic()
    await send_each(b, topic, "abc")
    tasks = []
    async with consumer(b, topic) as c:
        async for record in c:
            tasks.append(asyncio.create_task(work(record)))
            if len(tasks) == 3:
                break
        b.clean("after the loop")
    await asyncio.gather(*tasks)


@boundary("aiokafka: async for, each message into an asyncio.Queue", needs=("kafka",))
async def loop_to_queue(b: Program) -> None:
    jobs: asyncio.Queue[Any] = asyncio.Queue()

    async def work() -> None:
        while (record := await jobs.get()) is not None:
            b.far(text(record))

    worker = asyncio.create_task(work())
    topic = new_topic()
    await send_each(b, topic, "ab")
    async with consumer(b, topic) as c:
        left = 2
        async for record in c:
            await jobs.put(record)
            left -= 1
            if not left:
                break
    await jobs.put(None)
    await worker


@boundary("aiokafka: async for, run_in_executor", needs=("kafka",))
async def loop_to_executor(b: Program) -> None:
    topic = new_topic()
    await send_each(b, topic, "ab")
    left = 2
    with ThreadPoolExecutor(1) as pool:
        async with consumer(b, topic) as c:
            async for record in c:
                await asyncio.get_running_loop().run_in_executor(pool, b.far, text(record))
                left -= 1
                if not left:
                    break


@boundary("aiokafka: async for inside of a worker's main span", needs=("kafka",))
async def loop_inside_a_span(b: Program) -> None:
    topic = new_topic()
    await send_each(b, topic, "ab")
    async with consumer(b, topic) as c:
        with b.span("worker") as worker:
            left = 2
            async for record in c:
                b.far(text(record))
                left -= 1
                if not left:
                    break
            if trace.get_current_span() is not worker:
                b.leak("in the worker's span after the loop")


# --------------------------------------------------------------------------------------------------------------- getone


@boundary("aiokafka: getone()", needs=("kafka",))
async def getone(b: Program) -> None:
    topic = new_topic()
    await send_each(b, topic, "ab")
    c = consumer(b, topic)
    await c.start()
    for _ in "ab":
        record = await c.getone()
        b.far(text(record))
    await c.stop()
    b.clean("after stop")


@boundary("aiokafka: wait_for(getone()), timeouts in between", needs=("kafka",))
async def getone_wait_for(b: Program) -> None:
    topic = new_topic()
    await send_each(b, topic, "ab")
    c = consumer(b, topic)
    await c.start()
    for _ in "ab":
        record = await asyncio.wait_for(c.getone(), DEADLINE_S)
        b.far(text(record))
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.sleep(1), 0.01)
    await c.stop()
    b.clean("after stop")


@boundary("aiokafka: getone() in a coroutine that returns the decoded value", needs=("kafka",))
async def getone_decoded(b: Program) -> None:
    topic = new_topic()
    await send_each(b, topic, "ab")
    c = consumer(b, topic)
    await c.start()

    async def receive() -> str:
        return text(await c.getone())

    async def work() -> None:
        for _ in "ab":
            key = await receive()
            b.far(key)

    await work()
    b.clean("after work()")
    await c.stop()


@boundary("aiokafka: getone() once, then the task goes on", needs=("kafka",))
async def getone_once(b: Program) -> None:
    topic = new_topic()
    await send_each(b, topic, "a")
    c = consumer(b, topic)
    await c.start()

    async def one() -> None:
        record = await c.getone()
        b.far(text(record))

    await one()
    b.clean("the task that stopped reading")
    await c.stop()


@boundary("aiokafka: await anext(consumer)", needs=("kafka",))
async def by_anext(b: Program) -> None:
    topic = new_topic()
    await send_each(b, topic, "ab")
    async with consumer(b, topic) as c:
        for _ in "ab":
            record = await anext(c)
            b.far(text(record))
    b.clean("after stop")


# -------------------------------------------------------------------------------------------------------------- getmany


@boundary("aiokafka: getmany() batch, per-message work", needs=("kafka",))
async def getmany(b: Program) -> None:
    topic = new_topic()
    await send_each(b, topic, "abc")
    async with consumer(b, topic) as c:
        seen = 0
        while seen < 3:
            for records in (await c.getmany(timeout_ms=500)).values():
                for record in records:
                    await asyncio.sleep(0)
                    b.far(text(record))
                    seen += 1
    b.clean("after stop")


@boundary("aiokafka: getmany() batch, one processing span (links)", expect="linked", needs=("kafka",))
async def getmany_as_one(b: Program) -> None:
    topic = new_topic()
    await send_each(b, topic, "abc")
    async with consumer(b, topic) as c:
        fetched: dict[Any, Any] = {}
        while sum(map(len, fetched.values())) < 3:
            if fetched:
                await c.seek_to_beginning()
            fetched = await c.getmany(timeout_ms=500)
        with b.span("batch"):
            for key in "abc":
                b.far(key)


@boundary("aiokafka: getmany() batch, a task for each message", needs=("kafka",))
async def getmany_to_tasks(b: Program) -> None:
    async def work(record: Any) -> None:
        await asyncio.sleep(0.1)
        b.far(text(record))

    topic = new_topic()
    await send_each(b, topic, "abc")
    tasks: list[Any] = []
    async with consumer(b, topic) as c:
        while len(tasks) < 3:
            for records in (await c.getmany(timeout_ms=500)).values():
                tasks += [asyncio.create_task(work(record)) for record in records]
        await asyncio.gather(*tasks)


@boundary("aiokafka: getmany() batch, handed to another coroutine", needs=("kafka",))
async def getmany_other_method(b: Program) -> None:
    async def handle_all(records: list[Any]) -> int:
        for record in records:
            await asyncio.sleep(0)
            b.far(text(record))
        return len(records)

    topic = new_topic()
    await send_each(b, topic, "abc")
    async with consumer(b, topic) as c:
        seen = 0
        while seen < 3:
            fetched = await c.getmany(timeout_ms=500)
            for records in fetched.values():
                seen += await asyncio.create_task(handle_all(records))


# -------------------------------------------------------------------------------------------------------------- sending


@boundary("aiokafka: send() future add_done_callback", expect="direct", needs=("kafka",))
async def add_done_callback(b: Program) -> None:
    async with producer(b) as p:
        done = asyncio.Event()
        with b.near():
            future = await p.send(new_topic(), b"x")
            future.add_done_callback(lambda future: (b.far(), done.set()))
        await done.wait()


async def send_in_any_way(b: Program, sends: list[Callable[[AIOKafkaProducer, str, bytes], Any]]) -> None:
    topic = new_topic()
    keys = "abcdefgh"[: len(sends)]
    async with producer(b) as p:
        for key, send in zip(keys, sends, strict=True):
            with b.near(key):
                await (await send(p, topic, key.encode()))
    async with consumer(b, topic) as c:
        for _ in keys:
            record = await c.getone()
            b.far(text(record))
            if [name for name, _ in record.headers].count("traceparent") != 1:
                b.leak(f"headers: {record.headers}")


@boundary("aiokafka: headers positional, keyword, list, tuple, shared", needs=("kafka",))
async def header_arguments(b: Program) -> None:
    shared = [("customer", b"7")]
    await send_in_any_way(
        b,
        [
            lambda p, topic, value: p.send(topic, value, None, None, None, None),
            lambda p, topic, value: p.send(topic, value, b"key", 0, None, [("n", b"1")]),
            lambda p, topic, value: p.send(topic=topic, value=value, headers=None),
            lambda p, topic, value: p.send(topic, value, headers=shared),
            lambda p, topic, value: p.send(topic, value, headers=shared),
            lambda p, topic, value: p.send(topic, value, headers=(("n", b"1"),)),
        ],
    )
    if shared != [("customer", b"7")]:
        b.leak(f"into the caller's list: {shared}")


@boundary("aiokafka: create_batch(), send_batch()", needs=("kafka",))
async def batches(b: Program) -> None:
    topic = new_topic()
    async with producer(b) as p:
        await p.send_and_wait(f"{topic}.other", b"x")
        batch = p.create_batch()
        for key in "ab":
            with b.near(key):
                batch.append(key=None, value=key.encode(), timestamp=int(time.time() * 1000))
        await p.partitions_for(topic)
        await (await p.send_batch(batch, topic, partition=0))
    async with consumer(b, topic) as c:
        for _ in "ab":
            record = await c.getone()
            b.far(text(record))


async def republish(b: Program, headers: Callable[[Any], Any]) -> None:
    topic = new_topic()
    dead = f"{topic}.dlq"
    await send_each(b, topic, "a")
    async with producer(b) as p, consumer(b, topic) as c:
        async for record in c:
            with b.span("near-hop"):
                await p.send_and_wait(dead, record.value, headers=headers(record))
            break
    async with consumer(b, dead) as c:
        async for record in c:
            b.far(text(record))
            b.far("-hop")
            if [name for name, _ in record.headers].count("traceparent") != 1:
                b.leak(f"headers: {record.headers}")
            break


@boundary("aiokafka: DLQ republish with the original headers", needs=("kafka",))
async def dlq_original_headers(b: Program) -> None:
    await republish(b, lambda record: record.headers)


@boundary("aiokafka: DLQ republish with a list of the original headers and one more", needs=("kafka",))
async def dlq_copied_headers(b: Program) -> None:
    await republish(b, lambda record: [*record.headers, ("error", b"ValueError")])


@boundary("aiokafka: DLQ republish with fresh headers", needs=("kafka",))
async def dlq_fresh_headers(b: Program) -> None:
    await republish(b, lambda record: None)


@boundary("aiokafka: retry topic, 3 attempts", needs=("kafka",))
async def retry_topic(b: Program) -> None:
    topic = new_topic()
    await send_each(b, topic, "a")
    attempt = 0
    async with producer(b) as p, consumer(b, topic) as c:
        async for record in c:
            attempt += 1
            b.far(text(record))
            if attempt == 3:
                break
            await p.send_and_wait(topic, record.value, headers=list(record.headers))
    b.clean("after stop")


# ------------------------------------------------------------------------------------------------------------ own roots


@boundary("aiokafka: hostile trace headers of strangers", expect="own root", needs=("kafka",))
async def hostile_headers(b: Program) -> None:
    topic = new_topic()
    subprocess.run([sys.executable, "-c", STRANGER, b.address("kafka"), topic], env=plain_environment(), check=True)
    async with consumer(b, topic) as c:
        for _ in range(4):
            await c.getone()
            b.far()


@boundary("aiokafka: rebalance listener, client started inside of a request", expect="own root", needs=("kafka",))
async def rebalance_listener(b: Program) -> None:
    class Listener(ConsumerRebalanceListener):
        async def on_partitions_revoked(self, revoked: Any) -> None: ...

        async def on_partitions_assigned(self, assigned: Any) -> None:
            b.far()

    topic = new_topic()
    await send_each(b, topic, "-")
    with b.near():
        c = consumer(b, group_id=new_topic())
        c.subscribe([topic], listener=Listener())
        await c.start()
    await c.getone()
    await c.stop()


# ------------------------------------------------------------------------------------------- kept, and handled afterwards


@boundary("aiokafka: async for collects three, the consumer stops, then the work", needs=("kafka",))
async def collected(b: Program) -> None:
    topic = new_topic()
    await send_each(b, topic, "abc")
    records = []
    async with consumer(b, topic) as c:
        async for record in c:
            records.append(record)
            if len(records) == 3:
                break
    for record in records:
        b.far(text(record))
    b.clean("after the loop")


@boundary("aiokafka: getone() three times, then gather", needs=("kafka",))
async def getone_gathered(b: Program) -> None:
    async def work(record: Any) -> None:
        await asyncio.sleep(0.05)
        b.far(text(record))

    topic = new_topic()
    await send_each(b, topic, "abc")
    async with consumer(b, topic) as c:
        records = [await c.getone() for _ in "abc"]
        await asyncio.gather(*(work(record) for record in records))
    b.clean("after stop")


@boundary("aiokafka: getone() in a task that is waited for", needs=("kafka",))
async def getone_in_task(b: Program) -> None:
    topic = new_topic()
    await send_each(b, topic, "ab")
    async with consumer(b, topic) as c:
        for _ in "ab":
            task = asyncio.create_task(c.getone())
            await asyncio.wait({task}, timeout=DEADLINE_S)
            record = task.result()
            b.far(text(record))
    b.clean("after stop")


@boundary("aiokafka: a subclass with its own getone()", needs=("kafka",))
async def subclass_of_consumer(b: Program) -> None:
    class Orders(AIOKafkaConsumer):  # type: ignore[misc]
        async def getone(self, *partitions: Any) -> Any:
            return await super().getone(*partitions)

    topic = new_topic()
    await send_each(b, topic, "ab")
    left = 2
    async with Orders(topic, bootstrap_servers=b.address("kafka"), auto_offset_reset="earliest") as c:
        async for record in c:
            b.far(text(record))
            left -= 1
            if not left:
                break
        b.clean("after the loop")
