"""Redis itself as a queue: streams, channels, lists; and a table as a queue."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import threading
from typing import Any

import redis
import redis.asyncio

from tests.boundaries import Program, boundary
from tests.boundaries.ran import check, done, far

CONTRIB = [
    "opentelemetry.instrumentation.threading:ThreadingInstrumentor",
    "opentelemetry.instrumentation.redis:RedisInstrumentor",
    "opentelemetry.instrumentation.sqlite3:SQLite3Instrumentor",
]
REDIS = ("redis_server",)


def client(b: Program, **options: Any) -> redis.Redis:
    found = redis.Redis.from_url(f"redis://{b.address('redis_server')}/0", **options)
    found.flushall()
    return found


# ---------------------------------------------------------------------------------------------------------------- streams


@boundary("Redis stream (XADD / XREADGROUP)", needs=REDIS)
def stream_group(b: Program) -> None:
    with client(b) as queue:
        queue.xgroup_create("orders", "workers", id="0", mkstream=True)
        for key in "ab":
            with b.near(key):
                queue.xadd("orders", {"key": key})
        while replies := queue.xreadgroup("workers", "one", {"orders": ">"}, count=10):
            for _, entries in replies:
                for entry_id, fields in entries:
                    assert list(fields) == [b"key"]
                    far(fields[b"key"].decode())
                    queue.xack("orders", "workers", entry_id)
        b.clean("after the last entry")
        assert queue.xpending("orders", "workers")["pending"] == 0


@boundary("Redis stream read by a thread that a request started, then nobody's entry", needs=REDIS)
def stream_thread(b: Program) -> None:
    with client(b, decode_responses=True) as queue:

        def work() -> None:
            last = "0"
            while True:
                for _, entries in queue.xread({"orders": last}, count=1, block=5000):
                    last, fields = entries[0]
                    if fields["key"] == "end":
                        return
                    check() if fields["key"] == "nobody" else far(fields["key"])

        with b.span("started in"):
            thread = threading.Thread(target=work)
            thread.start()
        for key in "ab":
            with b.near(key):
                queue.xadd("orders", {"key": key})
        queue.xadd("orders", {"key": "nobody"})
        queue.xadd("orders", {"key": "end"})
        thread.join()
        assert done.runs == 3


@boundary("Redis stream, asyncio, claimed by another worker", needs=REDIS)
async def stream_asyncio(b: Program) -> None:
    client(b).close()
    queue = redis.asyncio.Redis.from_url(f"redis://{b.address('redis_server')}/0")
    await queue.xgroup_create("orders", "workers", id="0", mkstream=True)
    for key in "ab":
        with b.near(key):
            await queue.xadd("orders", {"key": key})

    async def work() -> None:
        for _, entries in await queue.xreadgroup("workers", "one", {"orders": ">"}, count=1):
            for _, fields in entries:
                far(fields[b"key"].decode())
        await queue.xreadgroup("workers", "two", {"orders": ">"})
        claimed = await queue.xautoclaim("orders", "workers", "three", 0, start_id="0")
        for _, fields in claimed[1][1:]:
            far(fields[b"key"].decode())

    await asyncio.create_task(work())
    await queue.aclose()
    assert done.runs == 2


# --------------------------------------------------------------------------------------------------------------- channels


@boundary("Redis pub/sub", needs=REDIS)
def channel_listen(b: Program) -> None:
    with client(b) as publisher, publisher.pubsub() as pubsub:
        pubsub.subscribe("orders")
        assert pubsub.get_message(timeout=5)["type"] == "subscribe"

        def work() -> None:
            for message in pubsub.listen():
                key = message["data"].decode()
                if key == "end":
                    pubsub.unsubscribe()
                if message["type"] == "message" and key != "end":
                    check() if key == "nobody" else far(key)
                if message["type"] == "unsubscribe" or key == "end":
                    return

        thread = threading.Thread(target=work)
        thread.start()
        for key in "ab":
            with b.near(key):
                assert publisher.publish("orders", key) == 1
        publisher.publish("orders", "nobody")
        publisher.publish("orders", "end")
        thread.join()
        assert done.runs == 3


@boundary("Redis pub/sub: get_message, pattern", needs=REDIS)
def channel_get_message(b: Program) -> None:
    with client(b, decode_responses=True) as publisher, publisher.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.psubscribe("order*")
        for key in "ab":
            with b.near(key):
                publisher.publish("orders", key)
        while done.runs < 2:
            message = pubsub.get_message(timeout=1)
            if message:
                far(message["data"])
        while pubsub.get_message(timeout=0.05):
            pass
        b.clean("when there are no more")


@boundary("Redis pub/sub: channel and pattern that fit the same message, two messages at once", needs=REDIS)
def channel_both(b: Program) -> None:
    with client(b, decode_responses=True) as publisher, publisher.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe("orders")
        pubsub.psubscribe("*")
        for key in "ab":
            with b.near(key):
                publisher.publish("orders", key)
        while done.runs < 4:
            message = pubsub.get_message(timeout=1)
            if message:
                assert message["channel"] == "orders"
                far(message["data"])


@boundary("Redis pub/sub: handlers in a thread of the library", needs=REDIS)
def channel_handlers(b: Program) -> None:
    with client(b) as publisher, publisher.pubsub() as pubsub:
        pubsub.subscribe(orders=lambda message: far(message["data"].decode()))
        with b.span("started in"):
            thread = pubsub.run_in_thread(sleep_time=0.01)
        for key in "ab":
            with b.near(key):
                publisher.publish("orders", key)
        done.wait(2)
        thread.stop()
        thread.join()


@boundary("Redis pub/sub, asyncio", needs=REDIS)
async def channel_asyncio(b: Program) -> None:
    client(b).close()
    publisher = redis.asyncio.Redis.from_url(f"redis://{b.address('redis_server')}/0")
    pubsub = publisher.pubsub()
    await pubsub.subscribe("orders")

    async def work() -> None:
        async for message in pubsub.listen():
            if message["type"] == "message":
                far(message["data"].decode())
            if done.runs == 2:
                return

    task = asyncio.create_task(work())
    for key in "ab":
        with b.near(key):
            assert await publisher.publish("orders", key) == 1
    await task
    await pubsub.aclose()
    await publisher.aclose()


# ------------------------------------------------------------------------------------------------- with the program's help


@boundary("Redis list, its values in an envelope", needs=REDIS)
def list_envelope(b: Program) -> None:
    from tracefill.context import scope
    from tracefill.messages.envelope import unwrap_json, wrap_json

    with client(b) as queue:
        for key in "ab":
            with b.near(key):
                queue.rpush("orders", json.dumps(wrap_json({"key": key})))
        for _ in "ab":
            order, context = unwrap_json(json.loads(queue.blpop(["orders"], timeout=5)[1]))
            with scope(context):
                far(order["key"])
        b.clean("after the last one")


@boundary("transactional outbox (row stored in SQLite, relay publishes later)")
def outbox_table(b: Program) -> None:
    from tracefill.jobs import outbox

    with contextlib.closing(sqlite3.connect(os.environ["BOUNDARY_OUT"] + ".shop")) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER, key TEXT)")
        outbox.create(connection)
        for row_id, key in enumerate("ab"):
            with b.near(key), connection:
                connection.execute("INSERT INTO orders VALUES (?, ?)", (row_id, key))
                outbox.inject(connection, "orders", row_id)
        for row_id, key in connection.execute("SELECT id, key FROM orders").fetchall():
            with outbox.scope(connection, "orders", row_id):
                far(key)
        b.clean("after the last row")
