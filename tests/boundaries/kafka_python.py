"""Async message: kafka-python."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import queue
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from opentelemetry import trace

from tests.boundaries import Program, boundary

CONTRIB = [
    "opentelemetry.instrumentation.kafka:KafkaInstrumentor",
    "opentelemetry.instrumentation.threading:ThreadingInstrumentor",
]
DEADLINE_S = 30


# A program that nobody instruments.
STRANGER = """
import sys
from kafka import KafkaProducer

producer = KafkaProducer(bootstrap_servers=sys.argv[1])
for name in ("traceparent", "tracestate", "baggage", "b3"):
    producer.send(sys.argv[2], b"x", headers=[(name, b"\\xff\\xfe")])
producer.flush()
"""


def plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "BOUNDARY_"))}


def new_topic() -> str:
    return f"topic-{uuid.uuid4().hex[:12]}"


def producer(b: Program, **options: Any) -> KafkaProducer:
    return KafkaProducer(bootstrap_servers=b.address("kafka"), linger_ms=0, **options)


def consumer(b: Program, *topics: str, **options: Any) -> KafkaConsumer:
    options = {"auto_offset_reset": "earliest", "consumer_timeout_ms": DEADLINE_S * 1000} | options
    return KafkaConsumer(*topics, bootstrap_servers=b.address("kafka"), **options)


def send_each(b: Program, topic: str, keys: str, p: KafkaProducer | None = None, **options: Any) -> None:
    p = p or producer(b)
    for key in keys:
        with b.near(key):
            p.send(topic, key.encode(), **options)
    p.flush()


def poll_all(c: KafkaConsumer, count: int) -> list[Any]:
    """Raw material for those who walk a list of their own."""
    found: list[Any] = []
    deadline = time.monotonic() + DEADLINE_S
    while len(found) < count and time.monotonic() < deadline:
        for records in c.poll(timeout_ms=500).values():
            found += records
    return found


def text(record: Any) -> str:
    return record.value.decode()


# --------------------------------------------------------------------------------------------------------------- loops


@boundary("kafka-python: for msg in consumer, work in the loop body", needs=("kafka",))
def loop_body(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "ab")
    c = consumer(b, topic)
    keys = set()
    for record in c:
        b.far(text(record))
        keys.add(text(record))
        if len(keys) == 2:
            break
    b.clean("after the loop")
    c.close()


@boundary("kafka-python: the handler is a method of another object, the loop ends by timeout", needs=("kafka",))
def loop_other_method(b: Program) -> None:
    class Handler:
        def handle(self, record: Any) -> None:
            self.inner(record)

        def inner(self, record: Any) -> None:
            b.far(text(record))

    topic = new_topic()
    send_each(b, topic, "abc")
    handler = Handler()
    with consumer(b, topic, consumer_timeout_ms=3000) as c:
        for record in c:
            handler.handle(record)
        b.clean("after the loop")


@boundary("kafka-python: a handler raises and the loop goes on", needs=("kafka",))
def loop_handler_raises(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "abc")
    c = consumer(b, topic, consumer_timeout_ms=3000)
    for record in c:
        with contextlib.suppress(ValueError):
            b.far(text(record))
            raise ValueError(record.value)
        b.far(text(record))
    b.clean("after the loop")


@boundary("kafka-python: a handler raises out of the loop, a supervisor starts it again", needs=("kafka",))
def loop_supervised(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "ab")
    c = consumer(b, topic)

    def run() -> None:
        for record in c:
            b.far(text(record))
            raise ValueError(record.value)

    for _ in "ab":
        with contextlib.suppress(ValueError):
            run()
        b.clean("in the supervisor")
    c.close()


@boundary("kafka-python: next(consumer)", needs=("kafka",))
def by_next(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "ab")
    c = consumer(b, topic)
    for _ in "ab":
        record = next(c)
        b.far(text(record))
    c.close()
    b.clean("after close")


@boundary("kafka-python: next(consumer) in a function that returns the decoded value", needs=("kafka",))
def by_next_decoded(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "ab")
    c = consumer(b, topic)

    def receive() -> dict[str, str]:
        return {"key": next(c).value.decode()}

    def work() -> None:
        for _ in "ab":
            order = receive()
            b.far(order["key"])

    work()
    b.clean("after work() has returned")
    c.close()


@boundary("kafka-python: enumerate(consumer), zip, islice", needs=("kafka",))
def by_enumerate(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "abcd")
    c = consumer(b, topic)
    for number, record in enumerate(c):
        b.far(text(record))
        if number == 1:
            break
    b.clean("after enumerate")
    for record in itertools.islice(c, 2):
        b.far(text(record))
    b.clean("after islice")
    c.close()


@boundary("kafka-python: the loop in a generator, the handler outside", needs=("kafka",))
def in_a_generator(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "ab")
    c = consumer(b, topic)

    def orders() -> Iterator[str]:
        for record in c:
            yield text(record)

    for count, key in enumerate(orders(), 1):
        b.far(key)
        if count == 2:
            break
    b.clean("after the generator's loop")
    c.close()


@boundary("kafka-python: subclass of KafkaConsumer with its own __next__", needs=("kafka",))
def subclass_of_consumer(b: Program) -> None:
    class Orders(KafkaConsumer):
        def __next__(self) -> Any:
            while True:
                record = super().__next__()
                if record.value != b"skip":
                    return record

    topic = new_topic()
    p = producer(b)
    p.send(topic, b"skip")
    send_each(b, topic, "ab", p)
    c = Orders(topic, bootstrap_servers=b.address("kafka"), auto_offset_reset="earliest", consumer_timeout_ms=4000)
    for record in c:
        b.far(text(record))
    b.clean("after the loop")
    c.close()


@boundary("kafka-python: a worker thread consumes, the function returns", needs=("kafka",))
def loop_in_thread(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "ab")

    def work() -> None:
        c = consumer(b, topic)
        for count, record in enumerate(c, 1):
            b.far(text(record))
            if count == 2:
                c.close()
        b.clean("thread after the loop")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


@boundary("kafka-python: Thread subclass with its own run()", needs=("kafka",))
def loop_in_thread_subclass(b: Program) -> None:
    class Worker(threading.Thread):
        def __init__(self, topic: str) -> None:
            super().__init__()
            self.consumer = consumer(b, topic, consumer_timeout_ms=3000)

        def run(self) -> None:
            for record in self.consumer:
                self.handle(record)
            self.consumer.close()

        def handle(self, record: Any) -> None:
            b.far(text(record))

    topic = new_topic()
    send_each(b, topic, "ab")
    with b.span("starts the worker"):
        worker = Worker(topic)
        worker.start()
    worker.join()


@boundary("kafka-python: the loop runs inside of a worker's main span", needs=("kafka",))
def loop_inside_a_span(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "ab")
    c = consumer(b, topic)
    with b.span("worker") as worker:
        for count, record in enumerate(c, 1):
            b.far(text(record))
            if count == 2:
                break
        if trace.get_current_span() is not worker:
            b.leak("in the worker's span after the loop")
    b.clean("after the worker")
    c.close()


# --------------------------------------------------------------------------------------------------------------- batches


@boundary("kafka-python: poll() batch, per-message work", needs=("kafka",))
def poll_batch(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "abc")
    c = consumer(b, topic)
    seen = 0
    while seen < 3:
        polled = c.poll(timeout_ms=500)
        for partition, records in polled.items():
            for record in records:
                b.far(text(record))
                seen += 1
            assert partition.topic == topic
    c.close()
    b.clean("after close")


@boundary("kafka-python: poll() batch walked in another method", needs=("kafka",))
def poll_batch_other_method(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "abc")
    c = consumer(b, topic)

    def handle_all(records: list[Any]) -> int:
        for record in records:
            b.far(text(record))
        return len(records)

    def work() -> None:
        seen = 0
        while seen < 3:
            polled = c.poll(timeout_ms=500)
            seen += sum(handle_all(records) for records in polled.values())

    work()
    b.clean("after work() has returned")
    c.close()


@boundary("kafka-python: poll() batches chained and mapped", needs=("kafka",))
def poll_batch_chained(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "abc")
    c = consumer(b, topic)
    seen = 0
    while seen < 3:
        polled = c.poll(timeout_ms=500)
        done = list(map(lambda record: b.far(text(record)), itertools.chain(*polled.values())))
        seen += len(done)
    c.close()


@boundary("kafka-python: poll() batch, one processing span for all (links)", expect="linked", needs=("kafka",))
def poll_batch_as_one(b: Program) -> None:
    topic = new_topic()
    p = producer(b)
    send_each(b, topic, "abc", p)
    c = consumer(b, topic)
    polled: dict[Any, Any] = {}
    while sum(map(len, polled.values())) < 3:
        if polled:
            c.seek_to_beginning()
        polled = c.poll(timeout_ms=500)
    with b.span("batch"):
        for key in "abc":
            b.far(key)
    c.close()
    b.clean("after close")


@boundary("kafka-python: poll() list handed to a pool thread, walked there", needs=("kafka",))
def poll_batch_to_pool(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "abc")
    c = consumer(b, topic)

    def handle_all(records: list[Any]) -> None:
        for record in records:
            b.far(text(record))

    seen = 0
    with ThreadPoolExecutor(2) as pool:
        while seen < 3:
            for records in c.poll(timeout_ms=500).values():
                pool.submit(handle_all, records).result()
                seen += len(records)
    c.close()


@boundary("kafka-python: poll() batch, each record to pool.submit", needs=("kafka",))
def poll_batch_each_to_pool(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "abc")
    c = consumer(b, topic)
    seen = 0
    with ThreadPoolExecutor(2) as pool:
        while seen < 3:
            for records in c.poll(timeout_ms=500).values():
                for record in records:
                    pool.submit(b.far, text(record))
                    seen += 1
    c.close()
    b.clean("after close")


@boundary("kafka-python: poll(max_records=1), the record by its index", needs=("kafka",))
def poll_one_by_index(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "ab")
    c = consumer(b, topic)
    seen = 0
    while seen < 2:
        polled = c.poll(timeout_ms=500, max_records=1)
        if not polled:
            continue
        records = next(iter(polled.values()))
        b.far(text(records[0]))
        seen += 1
    c.close()
    b.clean("after close")


@boundary("kafka-python: poll() batch, commit after each record", needs=("kafka",))
def poll_batch_committed(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "ab")
    c = consumer(b, topic, group_id=new_topic(), enable_auto_commit=False)
    seen = 0
    while seen < 2:
        for records in c.poll(timeout_ms=500).values():
            for record in records:
                c.commit()
                b.far(text(record))
                seen += 1
    c.close()


# -------------------------------------------------------------------------------------------------------------- hand-off


@boundary("kafka-python: consumer hands message to ThreadPoolExecutor", needs=("kafka",))
def to_pool(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "ab")
    c = consumer(b, topic)

    def work(record: Any) -> None:
        time.sleep(0.3)
        b.far(text(record))

    with ThreadPoolExecutor(2) as pool:
        jobs = []
        for record in c:
            jobs.append(pool.submit(work, record))
            if len(jobs) == 2:
                break
        b.clean("after the loop")
    c.close()


@boundary("kafka-python: consumer puts the message into a queue, a worker takes it", needs=("kafka",))
def to_queue(b: Program) -> None:
    jobs: queue.Queue[Any] = queue.Queue()

    def work() -> None:
        while (record := jobs.get()) is not None:
            b.far(text(record))
            jobs.task_done()

    worker = threading.Thread(target=work)
    worker.start()
    topic = new_topic()
    send_each(b, topic, "ab")
    c = consumer(b, topic)
    for count, record in enumerate(c, 1):
        jobs.put(record)
        if count == 2:
            break
    jobs.put(None)
    worker.join()
    c.close()


# ------------------------------------------------------------------------------------------------------------- callbacks


@boundary("kafka-python: commit_async(callback)", expect="direct", needs=("kafka",))
def commit_async(b: Program) -> None:
    topic = new_topic()
    p = producer(b)
    p.send(topic, b"x").get(DEADLINE_S)
    c = consumer(b, topic, group_id=new_topic(), enable_auto_commit=False)

    def read_all() -> None:
        while not c.poll(timeout_ms=500):
            pass

    read_all()
    done = threading.Event()
    with b.near():
        c.commit_async(callback=lambda offsets, answer: (b.far(), done.set()))
    while not done.is_set():
        c.poll(timeout_ms=100)
    c.close()


@boundary("kafka-python: send().add_callback", expect="direct", needs=("kafka",))
def add_callback(b: Program) -> None:
    p = producer(b)
    topic = new_topic()
    for key in "ab":
        done = threading.Event()
        with b.near(key):
            p.send(topic, b"x").add_callback(lambda metadata, key=key, done=done: (b.far(key), done.set()))
        p.flush()
        done.wait(DEADLINE_S)


@boundary("kafka-python: send().add_errback, add_both", expect="direct", needs=("kafka",))
def add_errback(b: Program) -> None:
    p = producer(b, max_request_size=2**24)
    topic = new_topic()
    p.send(topic, b"x").get(DEADLINE_S)
    for key, add in (("a", "add_errback"), ("b", "add_both")):
        done = threading.Event()
        with b.near(key):
            future = p.send(topic, b"x" * 2**22)  # more than the broker takes
            getattr(future, add)(lambda error, key=key, done=done: (b.far(key), done.set()))
        p.flush()
        done.wait(DEADLINE_S)


@boundary("kafka-python: producer and its IO thread made inside of a request, then another", needs=("kafka",))
def lazily_made_producer(b: Program) -> None:
    topic = new_topic()
    made: list[KafkaProducer] = []
    for key in "ab":
        with b.near(key):
            if not made:
                made.append(producer(b))
            made[0].send(topic, key.encode())
            made[0].flush()
    c = consumer(b, topic)
    for count, record in enumerate(c, 1):
        b.far(text(record))
        if count == 2:
            break
    c.close()


# --------------------------------------------------------------------------------------------------------------- headers


def send_in_any_way(b: Program, sends: list[Callable[[KafkaProducer, str, bytes], Any]]) -> None:
    topic = new_topic()
    p = producer(b)
    keys = "abcdefgh"[: len(sends)]
    for key, send in zip(keys, sends, strict=True):
        with b.near(key):
            send(p, topic, key.encode())
    p.flush()
    for record in poll_all_one_by_one(consumer(b, topic), len(keys)):
        b.far(text(record))


def poll_all_one_by_one(c: KafkaConsumer, count: int) -> Iterator[Any]:
    yield from itertools.islice(c, count)
    c.close()


@boundary("kafka-python: send() with positional and keyword headers, None, shared list", needs=("kafka",))
def header_arguments(b: Program) -> None:
    shared = [("customer", b"7")]
    send_in_any_way(
        b,
        [
            lambda p, topic, value: p.send(topic, value, None, None),
            lambda p, topic, value: p.send(topic, value, b"key", [("n", b"1")], 0),
            lambda p, topic, value: p.send(topic=topic, value=value, headers=None),
            lambda p, topic, value: p.send(topic, value, headers=shared),
            lambda p, topic, value: p.send(topic, value, headers=shared),
            lambda p, topic, value: p.send(topic, value, None, shared),
        ],
    )
    if shared != [("customer", b"7")]:
        b.leak(f"into the caller's list: {shared}")


@boundary("kafka-python: hostile trace headers of strangers", expect="own root", needs=("kafka",))
def hostile_headers(b: Program) -> None:
    topic = new_topic()
    subprocess.run([sys.executable, "-c", STRANGER, b.address("kafka"), topic], env=plain_environment(), check=True)
    c = consumer(b, topic)
    for _record in itertools.islice(c, 4):
        b.far()
    c.close()


# --------------------------------------------------------------------------------------------------------- retries, DLQ


def republish(b: Program, headers: Callable[[Any], Any]) -> None:
    """a -> orders -> orders.dlq; every hop is on the chain, once."""
    topic = new_topic()
    dead = f"{topic}.dlq"
    send_each(b, topic, "a")
    p = producer(b)
    c = consumer(b, topic)
    for record in c:
        with b.span("near-hop"):
            p.send(dead, record.value, headers=headers(record))
        p.flush()
        break
    c.close()
    c = consumer(b, dead)
    for record in c:
        b.far(text(record))
        b.far("-hop")
        if [name for name, _ in record.headers].count("traceparent") != 1:
            b.leak(f"headers: {record.headers}")
        break
    c.close()


@boundary("kafka-python: DLQ republish with the original headers", needs=("kafka",))
def dlq_original_headers(b: Program) -> None:
    republish(b, lambda record: record.headers)


@boundary("kafka-python: DLQ republish with a copy of the headers and one more", needs=("kafka",))
def dlq_copied_headers(b: Program) -> None:
    republish(b, lambda record: [*record.headers, ("error", b"ValueError")])


@boundary("kafka-python: DLQ republish with fresh headers", needs=("kafka",))
def dlq_fresh_headers(b: Program) -> None:
    republish(b, lambda record: None)


@boundary("kafka-python: retry topic, 3 attempts, headers copied", needs=("kafka",))
def retry_topic(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "a")
    p = producer(b)
    c = consumer(b, topic)
    for attempt, record in enumerate(c, 1):
        b.far(text(record))
        if attempt == 3:
            break
        p.send(topic, record.value, headers=list(record.headers))
        p.flush()
    c.close()
    b.clean("after close")


@boundary("kafka-python: poll() batch, failed ones to the DLQ in the except block", needs=("kafka",))
def dlq_from_batch(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "ab")
    p = producer(b)
    c = consumer(b, topic)
    seen = 0
    while seen < 2:
        for records in c.poll(timeout_ms=500).values():
            for record in records:
                seen += 1
                try:
                    json.loads(record.value)
                except ValueError:
                    p.send(f"{topic}.dlq", record.value, headers=record.headers)
    p.flush()
    c.close()
    dead = consumer(b, f"{topic}.dlq")
    for record in itertools.islice(dead, 2):
        b.far(text(record))
    dead.close()


@boundary("kafka-python: a relay without a scope passes stored headers on", needs=("kafka",))
def relay(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "a")
    c = consumer(b, topic, consumer_timeout_ms=DEADLINE_S * 1000)
    stored = [(record.value, record.headers) for record in itertools.islice(c, 1)]
    c.close()
    p = producer(b)
    for value, headers in stored:
        p.send(f"{topic}.out", value, headers=headers)
    p.flush()
    c = consumer(b, f"{topic}.out")
    for record in itertools.islice(c, 1):
        b.far(text(record))
    c.close()


# ------------------------------------------------------------------------------------------------------------- own roots


@boundary("kafka-python: rebalance listener, client made inside of a request", expect="own root", needs=("kafka",))
def rebalance_listener(b: Program) -> None:
    from kafka import ConsumerRebalanceListener

    assigned = threading.Event()

    class Listener(ConsumerRebalanceListener):  # type: ignore[misc]
        def on_partitions_revoked(self, revoked: Any) -> None: ...

        def on_partitions_assigned(self, assigned_now: Any) -> None:
            b.far()
            assigned.set()

    topic = new_topic()
    producer(b).send(topic, b"x").get(DEADLINE_S)
    with b.near():
        c = consumer(b, group_id=new_topic())
        c.subscribe([topic], listener=Listener())
    while not assigned.is_set():
        c.poll(timeout_ms=100)
    c.close()


@boundary("kafka-python: work after the consumer was polled empty", expect="own root", needs=("kafka",))
def after_empty_poll(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "a")
    c = KafkaConsumer(bootstrap_servers=b.address("kafka"), auto_offset_reset="earliest", consumer_timeout_ms=500)
    c.assign([TopicPartition(topic, 0)])
    got = 0
    while not got:
        got = sum(map(len, c.poll(timeout_ms=500).values()))
    while c.poll(timeout_ms=0):
        pass
    b.far("a")
    c.close()


# ------------------------------------------------------------------------------------------- kept, and handled afterwards


@boundary("kafka-python: records of poll() put into one list, then walked", needs=("kafka",))
def poll_flattened(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "abc")
    c = consumer(b, topic)
    seen = 0
    while seen < 3:
        records = [record for records in c.poll(timeout_ms=500).values() for record in records]
        for record in records:
            b.far(text(record))
        seen += len(records)
    c.close()
    b.clean("after close")


@boundary("kafka-python: one method fetches into a buffer, another works it off", needs=("kafka",))
def poll_buffered(b: Program) -> None:
    class Worker:
        def __init__(self, topic: str) -> None:
            self.consumer = consumer(b, topic)
            self.buffer: list[Any] = []

        def fetch(self) -> None:
            for records in self.consumer.poll(timeout_ms=500).values():
                self.buffer.extend(records)

        def drain(self) -> None:
            for record in sorted(self.buffer, key=lambda record: -record.offset):
                b.far(text(record))
            b.clean("after the loop")

    topic = new_topic()
    send_each(b, topic, "abc")
    worker = Worker(topic)
    while len(worker.buffer) < 3:
        worker.fetch()
    worker.drain()
    worker.consumer.close()


@boundary("kafka-python: list(consumer), the consumer closed, then the work", needs=("kafka",))
def list_then_close(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "abc")
    with consumer(b, topic, consumer_timeout_ms=3000) as c:
        records = list(c)
    for record in records:
        b.far(text(record))
    b.clean("after the loop")


@boundary("kafka-python: list(islice(consumer, 3))", needs=("kafka",))
def list_of_islice(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "abc")
    c = consumer(b, topic)
    for record in list(itertools.islice(c, 3)):
        b.far(text(record))
    b.clean("after the loop")
    c.close()


@boundary("kafka-python: a function returns a record out of its loop", needs=("kafka",))
def returned_out_of_the_loop(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "ab")
    c = consumer(b, topic)

    def first() -> Any:
        for record in c:
            return record
        return None

    def work() -> None:
        for _ in "ab":
            record = first()
            b.far(text(record))

    work()
    b.clean("after work() has returned")
    c.close()


@boundary("kafka-python: run_in_executor(None, next, consumer)", needs=("kafka",))
async def next_in_executor(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "ab")
    c = consumer(b, topic)
    for _ in "ab":
        record = await asyncio.get_running_loop().run_in_executor(None, next, c)
        b.far(text(record))
    c.close()


@boundary("kafka-python: clients made before contrib is switched on", needs=("kafka",))
def contrib_comes_late(b: Program) -> None:
    from opentelemetry.instrumentation.kafka import KafkaInstrumentor

    topic = new_topic()
    p, c = producer(b), consumer(b, topic)
    if not KafkaInstrumentor().is_instrumented_by_opentelemetry:
        KafkaInstrumentor().instrument()
    send_each(b, topic, "ab", p)
    for _ in "ab":
        record = next(c)
        b.far(text(record))
    c.close()
    b.clean("after close")


@boundary("kafka-python: read, transformed and written in one transaction", needs=("kafka",))
def transaction(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "ab")
    p = producer(b, transactional_id=new_topic())
    p.init_transactions()
    c = consumer(b, topic)
    for count, record in enumerate(c, 1):
        p.begin_transaction()
        p.send(f"{topic}.out", record.value)
        p.commit_transaction()
        if count == 2:
            break
    c.close()
    p.close()
    c = consumer(b, f"{topic}.out", isolation_level="read_committed")
    for record in itertools.islice(c, 2):
        b.far(text(record))
    c.close()


@boundary("kafka-python: one record, the consumer closed, then the work", needs=("kafka",))
def closed_before_the_work(b: Program) -> None:
    for key in "ab":
        topic = new_topic()
        send_each(b, topic, key)
        with contextlib.closing(consumer(b, topic)) as c:
            record = next(c)
        b.far(record.value.decode())
        b.far(record.value.decode())
    b.clean("after the work")


@boundary("kafka-python: the consumer is closed in a function that returns the record", needs=("kafka",))
def closed_by_who_fetches(b: Program) -> None:
    def fetch(topic: str) -> Any:
        c = consumer(b, topic)
        record = next(c)
        c.close()
        return record

    for key in "ab":
        topic = new_topic()
        send_each(b, topic, key)
        record = fetch(topic)
        b.far(record.value.decode())
    b.clean("after the work")
