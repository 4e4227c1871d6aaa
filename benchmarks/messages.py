"""Kafka: what a message costs in the process, and how many go through a real broker.

python -m benchmarks.messages [--messages 20000] [--unsampled]     CPU and throughput: no tracing, contrib, tracefill

The rows of `python -m benchmarks` take a producer and a consumer that do nothing, so that what is timed is the tracing alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

from kafka.consumer.fetcher import ConsumerRecord
from opentelemetry import trace
from opentelemetry.instrumentation.kafka.utils import _wrap_next, _wrap_send
from opentelemetry.sdk.trace import TracerProvider
from wrapt import wrap_function_wrapper

from benchmarks.sdk import provider
from benchmarks.timing import Case
from tracefill.messages import kafka

CONFIG = {"bootstrap_servers": ["127.0.0.1:9092"], "client_id": "bench", "group_id": "orders"}
TRACEPARENT = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
HEADERS = [
    ("customer", b"7"),
    ("content-type", b"application/json"),
    ("traceparent", TRACEPARENT),
    ("a", b"1"),
    ("b", b"2"),
]
RECORD = ConsumerRecord(
    "orders", 0, 0, 7, int(time.time() * 1000), 0, b"key", b"value", HEADERS, None, 3, 5, 100
)  # fmt: skip
BATCH = 20


class Future:
    """What a producer returns, as far as contrib looks at it."""

    def __init__(self) -> None:
        self._produce_future = self
        self.topic_partition = ("orders", 0)


class Producer:
    config = CONFIG
    future = Future()

    def send(self, topic: str, value: Any = None, key: Any = None, headers: Any = None, partition: Any = None) -> Any:
        self.headers = headers
        return self.future


class Consumer:
    config = CONFIG

    def __init__(self) -> None:
        self.records = iter(())

    def fill(self) -> None:
        self.records: Iterator[Any] = map(copy.copy, [RECORD] * BATCH)  # each is its handler's alone

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return next(self.records)

    def highwater(self, partition: Any) -> int:
        return 12


def receive(consumer: Any) -> Any:
    """The trace id that the last of the records was handled under; 0 after contrib, whose span is over by then."""
    consumer.fill()
    span = None
    for _record in consumer:
        span = trace.get_current_span()
    return span.get_span_context().trace_id if span is not None else 0


def cases() -> list[Case]:
    tracer = provider().get_tracer("bench")

    class ContribProducer(Producer):
        send = Producer.send

    class ContribConsumer(Consumer):
        __next__ = Consumer.__next__

    class OurProducer(Producer):
        send = kafka._send(Producer, Producer.send)

    class OurConsumer(Consumer):
        __iter__ = kafka._iter(Consumer.__iter__)

    wrap_function_wrapper(ContribProducer, "send", _wrap_send(tracer, None))
    wrap_function_wrapper(ContribConsumer, "__next__", _wrap_next(tracer, None))
    names = {
        "stock": ContribProducer(), "ours": OurProducer(), "plain": Producer(), "receive": receive,
        "stock_in": ContribConsumer(), "ours_in": OurConsumer(), "plain_in": Consumer(),
        "sent": lambda p: (p.send("orders", b"v"), [name for name, _ in p.headers])[1],
    }  # fmt: skip
    return [
        Case(
            "Kafka send, SDK span",
            'stock.send("orders", b"value")',
            'ours.send("orders", b"value")',
            names,
            lambda stock, ours: names["sent"](names["stock"]) == names["sent"](names["ours"]) == ["traceparent"],
            1.7,
            'plain.send("orders", b"value")',
        ),
        Case(
            f"Kafka receive of {BATCH} records, SDK span each",
            "receive(stock_in)",
            "receive(ours_in)",
            names,
            lambda stock, ours: ours == int(TRACEPARENT[3:35], 16) != stock,
            2.0,
            "receive(plain_in)",
        ),
    ]


# ---------------------------------------------------------------------------------------------------- a real broker

LIBRARIES = ("kafka-python", "confluent-kafka", "aiokafka")
MODES = ("none", "contrib", "tracefill")
CONTRIB = {
    "kafka-python": ("opentelemetry.instrumentation.kafka", "KafkaInstrumentor"),
    "confluent-kafka": ("opentelemetry.instrumentation.confluent_kafka", "ConfluentKafkaInstrumentor"),
    "aiokafka": ("opentelemetry.instrumentation.aiokafka", "AIOKafkaInstrumentor"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.messages", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, the best counts (default 3)")
    parser.add_argument("--unsampled", action="store_true", help="a sampler that says no")
    parser.add_argument("--library", choices=LIBRARIES, action="append")
    parser.add_argument("--one", nargs=3, metavar=("LIBRARY", "MODE", "BROKER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(run_one(*arguments.one, arguments.messages, arguments.unsampled)))
        return
    from tests import servers

    with servers.running("kafka") as broker:
        for library in arguments.library or LIBRARIES:
            compare(library, broker.address, arguments)


def compare(library: str, broker: str, arguments: argparse.Namespace) -> None:
    """Each mode in processes of its own, in turn; CPU of the whole process, the client's own threads included."""
    best: dict[str, dict[str, float]] = {mode: {} for mode in MODES}
    for _ in range(arguments.rounds):
        for mode in MODES:
            for what, value in in_process(library, mode, broker, arguments).items():
                best[mode][what] = min(value, best[mode].get(what, value))
    for what in ("produce", "consume"):
        plain = best["none"][f"{what}_cpu_us"]
        for mode in MODES:
            cpu, wall = best[mode][f"{what}_cpu_us"], best[mode][f"{what}_wall_us"]
            print(
                f"{library:16} {what:8} {mode:10} {cpu:7.1f} us of CPU a message ({cpu / plain:4.2f} of none) "
                f"{1e6 / wall:9.0f} messages/s",
                flush=True,
            )


def in_process(library: str, mode: str, broker: str, arguments: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.messages", "--messages", str(arguments.messages)]
    command += ["--unsampled"] * arguments.unsampled + ["--one", library, mode, broker]
    environment = os.environ | (
        {"OTEL_PROPAGATORS": "tracefill", "OTEL_PYTHON_CONTEXT": "tracefill"} if mode == "tracefill" else {}
    )
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_one(library: str, mode: str, broker: str, count: int, unsampled: bool) -> dict[str, float]:
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased

    class Discarding(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    if mode != "none":
        made = TracerProvider(sampler=ParentBased(ALWAYS_OFF if unsampled else ALWAYS_ON))
        made.add_span_processor(BatchSpanProcessor(Discarding(), max_queue_size=2**16, schedule_delay_millis=200))
        trace.set_tracer_provider(made)
    if mode == "contrib":
        module, kind = CONTRIB[library]
        getattr(__import__(module, fromlist=[kind]), kind)().instrument()
    elif mode == "tracefill":
        import tracefill

        tracefill.install(
            only=[{"kafka-python": "kafka", "confluent-kafka": "confluent", "aiokafka": "aiokafka"}[library]]
        )
    topic = f"bench-{uuid.uuid4().hex[:12]}"
    if library == "aiokafka":
        import asyncio

        return asyncio.run(run_aiokafka(broker, topic, count))
    produce, consume = (
        (produce_kafka, consume_kafka) if library == "kafka-python" else (produce_confluent, consume_confluent)
    )
    return measured("produce", count, produce, broker, topic) | measured("consume", count, consume, broker, topic)


def measured(what: str, count: int, run: Any, broker: str, topic: str) -> dict[str, float]:
    steps = run(broker, topic, count)
    next(steps)  # connected
    cpu, wall = time.process_time(), time.perf_counter()
    next(steps)
    return {
        f"{what}_cpu_us": (time.process_time() - cpu) / count * 1e6,
        f"{what}_wall_us": (time.perf_counter() - wall) / count * 1e6,
    }


def produce_kafka(broker: str, topic: str, count: int) -> Iterator[None]:
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=broker, linger_ms=5)
    producer.send(topic, b"first").get(30)
    yield
    for _ in range(count):
        producer.send(topic, b"x" * 100)
    producer.flush()
    yield


def consume_kafka(broker: str, topic: str, count: int) -> Iterator[None]:
    from kafka import KafkaConsumer

    consumer = KafkaConsumer(topic, bootstrap_servers=broker, auto_offset_reset="earliest", max_poll_records=500)
    next(consumer)
    yield
    left = count
    for _record in consumer:
        left -= 1
        if not left:
            break
    yield


def produce_confluent(broker: str, topic: str, count: int) -> Iterator[None]:
    import confluent_kafka

    producer = confluent_kafka.Producer({"bootstrap.servers": broker, "linger.ms": 5})
    producer.produce(topic, b"first")
    producer.flush(30)
    yield
    for sent in range(count):
        producer.produce(topic, b"x" * 100)
        if sent % 1000 == 0:
            producer.poll(0)
    producer.flush(30)
    yield


def consume_confluent(broker: str, topic: str, count: int) -> Iterator[None]:
    import confluent_kafka

    settings = {"bootstrap.servers": broker, "group.id": topic, "auto.offset.reset": "earliest"}
    consumer = confluent_kafka.Consumer(settings)
    consumer.subscribe([topic])
    while consumer.poll(1) is None:
        pass
    yield
    left = count
    while left:
        if consumer.poll(1) is not None:
            left -= 1
    consumer.close()
    yield


async def run_aiokafka(broker: str, topic: str, count: int) -> dict[str, float]:
    import aiokafka

    found = {}
    async with aiokafka.AIOKafkaProducer(bootstrap_servers=broker, linger_ms=5) as producer:
        await producer.send_and_wait(topic, b"first")
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(count):
            await producer.send(topic, b"x" * 100)
        await producer.flush()
        found["produce_cpu_us"] = (time.process_time() - cpu) / count * 1e6
        found["produce_wall_us"] = (time.perf_counter() - wall) / count * 1e6
    async with aiokafka.AIOKafkaConsumer(topic, bootstrap_servers=broker, auto_offset_reset="earliest") as consumer:
        await consumer.getone()
        cpu, wall = time.process_time(), time.perf_counter()
        left = count
        async for _record in consumer:
            left -= 1
            if not left:
                break
        found["consume_cpu_us"] = (time.process_time() - cpu) / count * 1e6
        found["consume_wall_us"] = (time.perf_counter() - wall) / count * 1e6
    return found


if __name__ == "__main__":
    main()
