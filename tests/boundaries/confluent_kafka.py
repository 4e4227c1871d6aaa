"""Async message: confluent-kafka."""

from __future__ import annotations

import asyncio
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

import confluent_kafka
from opentelemetry import trace

from tests.boundaries import Program, boundary

CONTRIB = [
    "opentelemetry.instrumentation.confluent_kafka:ConfluentKafkaInstrumentor",
    "opentelemetry.instrumentation.threading:ThreadingInstrumentor",
]
DEADLINE_S = 30

# A program that nobody instruments.
STRANGER = """
import sys
from confluent_kafka import Producer

producer = Producer({"bootstrap.servers": sys.argv[1]})
for name in ("traceparent", "tracestate", "baggage", "b3"):
    producer.produce(sys.argv[2], b"x", headers=[(name, b"\\xff\\xfe")])
producer.flush()
"""


def plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "BOUNDARY_"))}


def new_topic() -> str:
    return f"topic-{uuid.uuid4().hex[:12]}"


def settings(b: Program) -> dict[str, Any]:
    return {
        "bootstrap.servers": b.address("kafka"),
        "group.id": new_topic(),
        "auto.offset.reset": "earliest",
        "topic.metadata.refresh.interval.ms": 500,
    }


def producer(b: Program, kind: Any = None) -> Any:
    return (kind or confluent_kafka.Producer)({"bootstrap.servers": b.address("kafka"), "linger.ms": 0})


def consumer(b: Program, topic: str, kind: Any = None) -> Any:
    c = (kind or confluent_kafka.Consumer)(settings(b))
    c.subscribe([topic])
    return c


def send_each(b: Program, topic: str, keys: str, p: Any = None, **options: Any) -> None:
    p = p or producer(b)
    for key in keys:
        with b.near(key):
            p.produce(topic, key.encode(), **options)
    p.flush(DEADLINE_S)


def poll_one(c: Any) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        message = c.poll(0.5)
        if message is not None and message.error() is None:
            return message
    raise TimeoutError


def text(message: Any) -> str:
    return message.value().decode()


# ----------------------------------------------------------------------------------------------------------------- poll


@boundary("confluent-kafka: poll() loop, work after poll", needs=("kafka",))
def poll_loop(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "abc")
    c = consumer(b, topic)
    seen = 0
    while seen < 3:
        message = c.poll(0.5)
        if message is None:
            b.clean("after an empty poll")
            continue
        if message.error():
            continue
        b.far(text(message))
        seen += 1
    c.close()
    b.clean("after close")


@boundary("confluent-kafka: poll() once then stop polling: context after", needs=("kafka",))
def poll_once(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "a")
    c = consumer(b, topic)

    def work() -> None:
        message = poll_one(c)
        b.far(text(message))

    work()
    b.clean("thread that stopped polling")
    c.close()


@boundary("confluent-kafka: a pool thread polls once, then does another job", needs=("kafka",))
def poll_once_in_pool(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "a")
    c = consumer(b, topic)
    kept = []

    def work() -> None:
        message = poll_one(c)
        kept.append(message)
        b.far(text(message))

    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()
        pool.submit(b.clean, "the pool thread's next job").result()
    c.close()


@boundary("confluent-kafka: poll() inside a user span (worker main span)", needs=("kafka",))
def poll_inside_a_span(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "ab")
    c = consumer(b, topic)
    with b.span("worker") as worker:
        for _ in "ab":
            b.far(text(poll_one(c)))
        c.poll(0)
        if trace.get_current_span() is not worker:
            b.leak("in the worker's span after an empty poll")
    b.clean("after the worker")
    c.close()


@boundary("confluent-kafka: poll() in a method that returns the decoded order", needs=("kafka",))
def poll_decoded(b: Program) -> None:
    class Orders:
        def __init__(self, topic: str) -> None:
            self.consumer = consumer(b, topic)

        def receive(self) -> str | None:
            message = self.consumer.poll(0.5)
            return None if message is None or message.error() else text(message)

        def run(self, count: int) -> None:
            while count:
                order = self.receive()
                if order is not None:
                    self.handle(order)
                    count -= 1

        def handle(self, order: str) -> None:
            b.far(order)

    topic = new_topic()
    send_each(b, topic, "ab")
    orders = Orders(topic)
    orders.run(2)
    b.clean("after run() has returned")
    orders.consumer.close()


@boundary("confluent-kafka: a generator of messages, the handler outside", needs=("kafka",))
def poll_in_generator(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "ab")
    c = consumer(b, topic)

    def messages() -> Iterator[Any]:
        while True:
            message = c.poll(0.5)
            if message is not None and not message.error():
                yield message

    for count, message in enumerate(messages(), 1):
        b.far(text(message))
        if count == 2:
            break
    b.clean("after the generator was left")
    c.close()


@boundary("confluent-kafka: iter(lambda: consumer.poll(1), None)", needs=("kafka",))
def poll_by_iter(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "ab")
    c = consumer(b, topic)
    b.far(text(poll_one(c)))

    def rest() -> None:
        for message in iter(lambda: c.poll(2), None):
            b.far(text(message))

    rest()
    b.clean("after the loop's function")
    c.close()


@boundary("confluent-kafka: two consumers in turn, one handler each", needs=("kafka",))
def two_consumers(b: Program) -> None:
    topics = [new_topic(), new_topic()]
    p = producer(b)
    send_each(b, topics[0], "ac", p)
    send_each(b, topics[1], "bd", p)
    consumers = [consumer(b, topic) for topic in topics]
    seen = 0
    while seen < 4:
        for c in consumers:
            message = c.poll(0.3)
            if message is not None and not message.error():
                b.far(text(message))
                seen += 1
    for c in consumers:
        c.close()
    b.clean("after close")


@boundary("confluent-kafka: a handler asks another consumer for the answer", needs=("kafka",))
def nested_poll(b: Program) -> None:
    orders, answers = new_topic(), new_topic()
    p = producer(b)
    send_each(b, orders, "ab", p)
    send_each(b, answers, "cd", p)
    c, inner = consumer(b, orders), consumer(b, answers)

    def ask() -> None:
        b.far(text(poll_one(inner)))

    def work() -> None:
        for _ in "ab":
            message = poll_one(c)
            ask()
            b.far(text(message))

    work()
    b.clean("after work()")
    c.close()
    inner.close()


@boundary("confluent-kafka: the handler raises, the loop's except block sends it to the DLQ", needs=("kafka",))
def poll_dlq_in_except(b: Program) -> None:
    topic = new_topic()
    dead = f"{topic}.dlq"
    send_each(b, topic, "ab")
    p = producer(b)
    c = consumer(b, topic)
    seen = 0
    while seen < 2:
        message = c.poll(0.5)
        if message is None:
            continue
        seen += 1
        try:
            raise ValueError(message.value())
        except ValueError:
            p.produce(dead, message.value(), headers=message.headers())
    p.flush(DEADLINE_S)
    c.close()
    c = consumer(b, dead)
    for _ in "ab":
        b.far(text(poll_one(c)))
    c.close()


@boundary("confluent-kafka: Thread subclass with its own run()", needs=("kafka",))
def poll_in_thread_subclass(b: Program) -> None:
    class Worker(threading.Thread):
        def __init__(self, topic: str) -> None:
            super().__init__()
            self.consumer = consumer(b, topic)
            self.left = 2

        def run(self) -> None:
            while self.left:
                self.process(self.consumer.consume(10, 0.5))
            b.clean("in run()")
            self.consumer.close()

        def process(self, messages: list[Any]) -> None:
            for message in messages:
                if not message.error():
                    self.handle(message)

        def handle(self, message: Any) -> None:
            b.far(text(message))
            self.left -= 1

    topic = new_topic()
    send_each(b, topic, "ab")
    worker = Worker(topic)
    with b.span("starts the worker"):
        worker.start()
    worker.join()


@boundary("confluent-kafka: from confluent_kafka import Producer, Consumer", needs=("kafka",))
def imported_names(b: Program) -> None:
    from confluent_kafka import Consumer, Producer
    from confluent_kafka.cimpl import Consumer as InnermostConsumer
    from confluent_kafka.cimpl import Producer as InnermostProducer

    for key, make_producer, make_consumer in (("a", Producer, Consumer), ("b", InnermostProducer, InnermostConsumer)):
        topic = new_topic()
        send_each(b, topic, key, producer(b, make_producer))
        c = consumer(b, topic, make_consumer)
        b.far(text(poll_one(c)))
        c.close()


# -------------------------------------------------------------------------------------------------------------- consume


@boundary("confluent-kafka: consume(n) batch, per-message work", needs=("kafka",))
def consume_batch(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "abc")
    c = consumer(b, topic)
    seen = 0
    while seen < 3:
        for message in c.consume(10, 0.5):
            if not message.error():
                b.far(text(message))
                seen += 1
    c.close()
    b.clean("after close")


@boundary("confluent-kafka: consume(n), the rest of the list in a slice, sorted and reversed order", needs=("kafka",))
def consume_slices(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "abcd")
    c = consumer(b, topic)
    messages: list[Any] = []
    while len(messages) < 4:
        messages = c.consume(4, 5)
    for message in messages[:2]:
        b.far(text(message))
    for _, message in enumerate(messages[2:]):
        b.far(text(message))
    c.close()


@boundary("confluent-kafka: consume(1)", needs=("kafka",))
def consume_one(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "ab")
    c = consumer(b, topic)
    seen = 0
    while seen < 2:
        messages = c.consume(1, 0.5)
        if messages:
            (message,) = messages
            b.far(text(message))
            seen += 1
    c.close()


@boundary("confluent-kafka: consume(n), one span for all (links)", expect="linked", needs=("kafka",))
def consume_as_one(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "abc")
    c = consumer(b, topic)
    messages: list[Any] = []
    while len(messages) < 3:
        messages = c.consume(3, 10)
    with b.span("batch"):
        for key in "abc":
            b.far(key)
    c.close()


@boundary("confluent-kafka: consume(n), each message to a pool", needs=("kafka",))
def consume_to_pool(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "abc")
    c = consumer(b, topic)
    jobs = []
    with ThreadPoolExecutor(2) as pool:
        while len(jobs) < 3:
            jobs += [pool.submit(b.far, text(message)) for message in c.consume(10, 0.5)]
    c.close()


# ------------------------------------------------------------------------------------------------------------- hand-off


@boundary("confluent-kafka: consumer hands message to ThreadPoolExecutor", needs=("kafka",))
def to_pool(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "ab")
    c = consumer(b, topic)

    def work(message: Any) -> None:
        time.sleep(0.3)
        b.far(text(message))

    with ThreadPoolExecutor(2) as pool:
        for _ in "ab":
            pool.submit(work, poll_one(c))
        c.close()


@boundary("confluent-kafka: consumer puts the message into a queue, a worker takes it", needs=("kafka",))
def to_queue(b: Program) -> None:
    jobs: queue.Queue[Any] = queue.Queue()

    def work() -> None:
        while (message := jobs.get()) is not None:
            b.far(text(message))

    worker = threading.Thread(target=work)
    worker.start()
    topic = new_topic()
    send_each(b, topic, "ab")
    c = consumer(b, topic)
    for _ in "ab":
        jobs.put(poll_one(c))
    c.close()
    jobs.put(None)
    worker.join()


# -------------------------------------------------------------------------------------------------------------- produce


@boundary("confluent-kafka: on_delivery callback", expect="direct", needs=("kafka",))
def on_delivery(b: Program) -> None:
    p = producer(b)
    topic = new_topic()
    with b.near("a"):
        p.produce(topic, b"x", on_delivery=lambda error, message: b.far("a"))
    with b.near("b"):
        p.produce(topic, b"x", callback=lambda error, message: b.far("b"))
    with b.near("c"):
        p.produce(topic, b"x", b"key", 0, None, lambda error, message: b.far("c"))
    p.flush(DEADLINE_S)


@boundary(
    "confluent-kafka: on_delivery callback of a message that cannot be delivered", expect="direct", needs=("kafka",)
)
def on_delivery_failed(b: Program) -> None:
    p = confluent_kafka.Producer({"bootstrap.servers": "127.0.0.1:1", "message.timeout.ms": 500, "log_level": 0})
    with b.near():
        p.produce(new_topic(), b"x", on_delivery=lambda error, message: b.far() if error else None)
    p.flush(DEADLINE_S)


def send_in_any_way(b: Program, sends: list[Callable[[Any, str, bytes], Any]], p: Any = None) -> None:
    topic = new_topic()
    p = p or producer(b)
    keys = "abcdefgh"[: len(sends)]
    for key, send in zip(keys, sends, strict=True):
        with b.near(key):
            send(p, topic, key.encode())
    p.flush(DEADLINE_S)
    c = consumer(b, topic)
    for _ in keys:
        message = poll_one(c)
        b.far(text(message))
        if [name for name, _ in message.headers()].count("traceparent") != 1:
            b.leak(f"headers: {message.headers()}")
    c.close()


@boundary("confluent-kafka: headers positional, keyword, list, dict, shared", needs=("kafka",))
def header_arguments(b: Program) -> None:
    shared = [("customer", b"7")]
    of_dict = {"customer": "7"}
    send_in_any_way(
        b,
        [
            lambda p, topic, value: p.produce(topic, value, b"key", 0, None, None, 0, [("n", b"1")]),
            lambda p, topic, value: p.produce(topic, value, b"key", 0, None, None, 0, None),
            lambda p, topic, value: p.produce(topic=topic, value=value, headers=None),
            lambda p, topic, value: p.produce(topic, value, headers=shared),
            lambda p, topic, value: p.produce(topic, value, headers=shared),
            lambda p, topic, value: p.produce(topic, value, headers=of_dict),
        ],
    )
    if shared != [("customer", b"7")] or of_dict != {"customer": "7"}:
        b.leak(f"into the caller's headers: {shared} {of_dict}")


@boundary("confluent-kafka: SerializingProducer / DeserializingConsumer", needs=("kafka",))
def serializing(b: Program) -> None:
    from confluent_kafka import DeserializingConsumer, SerializingProducer
    from confluent_kafka.serialization import StringDeserializer, StringSerializer

    topic = new_topic()
    p = SerializingProducer({"bootstrap.servers": b.address("kafka"), "value.serializer": StringSerializer()})
    for key in "ab":
        with b.near(key):
            p.produce(topic, value=key)
    p.flush(DEADLINE_S)
    c = DeserializingConsumer(settings(b) | {"value.deserializer": StringDeserializer()})
    c.subscribe([topic])
    for _ in "ab":
        b.far(poll_one(c).value())
    c.close()
    b.clean("after close")


@boundary("confluent-kafka: produce_batch()", needs=("kafka",))
def produce_batch(b: Program) -> None:
    topic = new_topic()
    p = producer(b)
    for key in "ab":
        with b.near(key):
            assert p.produce_batch(topic, [{"value": key}, {"value": key.encode(), "key": b"k"}]) == 2
    p.flush(DEADLINE_S)
    c = consumer(b, topic)
    for _ in "aabb":
        b.far(text(poll_one(c)))
    c.close()


# ------------------------------------------------------------------------------------------------------------------ aio


async def aio_poll_one(c: Any) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        message = await c.poll(0.5)
        if message is not None and message.error() is None:
            return message
    raise TimeoutError


@boundary("confluent-kafka: AIOProducer / AIOConsumer (asyncio)", needs=("kafka",))
async def aio(b: Program) -> None:
    from confluent_kafka.aio import AIOConsumer, AIOProducer

    topic = new_topic()
    p = AIOProducer({"bootstrap.servers": b.address("kafka")})
    sent = []
    for key in "ab":
        with b.near(key):
            sent.append(await p.produce(topic, value=key.encode()))
    await p.flush()
    for future in sent:
        await future
    c = AIOConsumer(settings(b))
    await c.subscribe([topic])
    for _ in "ab":
        message = await aio_poll_one(c)
        b.far(text(message))
    await c.close()
    b.clean("after close")
    await p.close()


@boundary("confluent-kafka: AIOConsumer.consume() in tasks, wait_for(poll())", needs=("kafka",))
async def aio_consume(b: Program) -> None:
    from confluent_kafka.aio import AIOConsumer, AIOProducer

    async def work(message: Any) -> None:
        await asyncio.sleep(0.1)
        b.far(text(message))

    topic = new_topic()
    p = AIOProducer({"bootstrap.servers": b.address("kafka")})
    for key in "abc":
        with b.near(key):
            await p.produce(topic, value=key.encode())
    await p.flush()
    c = AIOConsumer(settings(b))
    await c.subscribe([topic])
    message = None
    while message is None:
        message = await asyncio.wait_for(c.poll(1), 10)
    b.far(text(message))
    tasks: list[Any] = []
    while len(tasks) < 2:
        tasks += [asyncio.create_task(work(message)) for message in await c.consume(10, 0.5)]
    await asyncio.gather(*tasks)
    await c.close()
    b.clean("after close")
    await p.close()


# ------------------------------------------------------------------------------------------------------- retries, DLQ


def republish(b: Program, headers: Callable[[Any], Any]) -> None:
    topic = new_topic()
    dead = f"{topic}.dlq"
    send_each(b, topic, "a")
    p = producer(b)
    c = consumer(b, topic)

    def fail() -> None:
        message = poll_one(c)
        with b.span("near-hop"):
            p.produce(dead, message.value(), headers=headers(message))
        p.flush(DEADLINE_S)

    fail()
    c.close()
    c = consumer(b, dead)
    message = poll_one(c)
    b.far(text(message))
    b.far("-hop")
    if [name for name, _ in message.headers()].count("traceparent") != 1:
        b.leak(f"headers: {message.headers()}")
    c.close()


@boundary("confluent-kafka: DLQ republish with the original headers", needs=("kafka",))
def dlq_original_headers(b: Program) -> None:
    republish(b, lambda message: message.headers())


@boundary("confluent-kafka: DLQ republish with fresh headers", needs=("kafka",))
def dlq_fresh_headers(b: Program) -> None:
    republish(b, lambda message: {"error": "ValueError"})


@boundary("confluent-kafka: retry topic, 3 attempts, fresh headers", needs=("kafka",))
def retry_topic(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "a")
    p = producer(b)
    c = consumer(b, topic)
    for attempt in (1, 2, 3):
        message = poll_one(c)
        b.far(text(message))
        if attempt < 3:
            p.produce(topic, message.value())
            p.flush(DEADLINE_S)
    c.close()
    b.clean("after close")


@boundary("confluent-kafka: hostile trace headers of strangers", expect="own root", needs=("kafka",))
def hostile_headers(b: Program) -> None:
    topic = new_topic()
    subprocess.run([sys.executable, "-c", STRANGER, b.address("kafka"), topic], env=plain_environment(), check=True)
    c = consumer(b, topic)
    for _ in range(4):
        poll_one(c)
        b.far()
    c.close()


@boundary("confluent-kafka: work after an empty poll", expect="own root", needs=("kafka",))
def after_empty_poll(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "a")
    c = consumer(b, topic)
    poll_one(c)
    assert c.poll(0.1) is None
    b.far("a")
    c.close()


# ------------------------------------------------------------------------------------------- kept, and handled afterwards


@boundary("confluent-kafka: poll() until three are there, then the work", needs=("kafka",))
def drained(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "abc")
    c = consumer(b, topic)
    messages: list[Any] = []
    while len(messages) < 3:
        message = c.poll(0.5)
        if message is None or message.error():
            continue
        messages.append(message)
    for message in messages:
        b.far(text(message))
    b.clean("after the loop")
    c.close()


@boundary("confluent-kafka: consume() lists put together, the consumer closed, then the work", needs=("kafka",))
def consumed_then_closed(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "abc")
    c = consumer(b, topic)
    messages: list[Any] = []
    while len(messages) < 3:
        messages += c.consume(3, 0.5)
    c.close()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda message: b.far(text(message)), messages))
    for message in messages:
        b.far(text(message))
    b.clean("after the loop")


@boundary("confluent-kafka: every third message works off the three", needs=("kafka",))
def micro_batches(b: Program) -> None:
    def work_off(messages: list[Any]) -> None:
        for message in messages:
            b.far(text(message))

    topic = new_topic()
    send_each(b, topic, "abc")
    c = consumer(b, topic)
    messages: list[Any] = []
    while len(messages) < 3:
        messages.append(poll_one(c))
    work_off(messages)
    c.close()
    b.clean("after close")


@boundary("confluent-kafka: await asyncio.to_thread(consumer.poll)", needs=("kafka",))
async def poll_in_thread(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "ab")
    c = consumer(b, topic)
    seen = 0
    while seen < 2:
        message = await asyncio.to_thread(c.poll, 0.5)
        if message is None or message.error():
            continue
        b.far(text(message))
        seen += 1
    c.close()
    b.clean("after close")


@boundary("confluent-kafka: one message, the consumer closed, then the work", needs=("kafka",))
def closed_before_the_work(b: Program) -> None:
    for key in "ab":
        topic = new_topic()
        send_each(b, topic, key)
        c = consumer(b, topic)
        message = poll_one(c)
        c.close()
        b.far(text(message))
        b.far(text(message))
    b.clean("after the work")


@boundary("confluent-kafka: poll() until there is one, the consumer closed, then the work", needs=("kafka",))
def closed_after_polling(b: Program) -> None:
    topic = new_topic()
    send_each(b, topic, "a")
    c = consumer(b, topic)
    message = None
    while message is None:
        message = c.poll(0.5)
    c.close()
    b.far(text(message))
    b.clean("after the work")
