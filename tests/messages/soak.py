"""python -m tests.messages.soak [--messages 100000]: a consumer group of three on a real Kafka, with and without tracefill.

One message in ten comes from a stranger with hostile trace headers; members leave and join; the broker stops and starts in
mid-flight. Each message has to be handled as often as without tracefill, and each chain has to be whole:
order -> send -> process -> handle, for a stranger's message process -> handle.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import threading
import time
import uuid
from array import array
from collections.abc import Callable
from typing import Any

import psutil

MEMBERS = 3
BACKLOG = 2_000  # messages in flight, so that what grows is a leak and not a buffer
IDLE_S = 2  # after the last message: time for one that comes twice
DEADLINE_S = 1_800
DOWN_S = 1
POISON = [
    (name, value)
    for value in (b"\xff\xfe", b"", b"00-0-0-01", b"\x00" * 40, b"x" * 9_000, None)
    for name in ("traceparent", "tracestate", "baggage", "b3", "x-b3-traceid", "attempt")
]


class Chains:
    """A SpanProcessor that keeps of each span no more than its id and its parent's."""

    def __init__(self) -> None:
        self.ended: dict[str, tuple[array[int], array[int]]] = {}
        self._lock = threading.Lock()

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        pass

    def _on_ending(self, span: Any) -> None:
        pass

    def on_end(self, span: Any) -> None:
        with self._lock:
            ids, parents = self.ended.setdefault(span.name.partition(" ")[0], (array("Q"), array("Q")))
            ids.append(span.context.span_id)
            parents.append(0 if span.parent is None else span.parent.span_id)

    def shutdown(self) -> None:
        pass

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True

    def judge(self, handled: int, strangers: int) -> dict[str, int]:
        """What is whole and what is not: a `broken` handle has no way up to its order, or to nobody in a stranger's name."""
        orders = set(self.ended["order"][0])
        sends = {own: parent in orders for own, parent in zip(*self.ended["send"], strict=True)}
        processes = dict(zip(*self.ended["process"], strict=True))
        above = [processes.get(parent) for parent in self.ended["handle"][1]]
        roots = above.count(0)
        whole = sum(1 for parent in above if parent is not None and sends.get(parent, False))
        doubled = sum(len(ids) - len(set(ids)) for ids, _ in self.ended.values())
        return {
            "whole": whole,
            "roots": roots,
            "broken": handled - whole - roots + abs(roots - strangers),
            "doubled": doubled + len(processes) - handled,
        }


class Soak:
    """Inside of the child process: the producer, the members, and the counts."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.address, self.topic, self.total = arguments.inside, arguments.topic, arguments.messages
        self.counts = array("H", [0]) * self.total
        self.handled = 0
        self.sent = 0
        self.strangers = 0  # their messages, as often as they were handled
        self.joins = 0
        self.refused = 0  # handled, but the broker did not take the commit: these may come again
        self.errors: list[str] = []
        self.over = threading.Event()
        self.tracer: Any = None
        self._lock = threading.Lock()

    def produce(self) -> None:
        from confluent_kafka import Producer
        from kafka import KafkaProducer

        stranger = Producer({"bootstrap.servers": self.address, "log_level": 0, "enable.idempotence": True})
        with contextlib.closing(KafkaProducer(bootstrap_servers=self.address, delivery_timeout_ms=300_000)) as producer:
            for number in range(self.total):
                while self.sent - self.handled > BACKLOG and not self.over.is_set():
                    time.sleep(0.005)
                if number % 10 == 0:
                    poison = POISON[number // 10 % len(POISON)]
                    stranger.produce(self.topic, str(number).encode(), headers=[poison])
                    stranger.poll(0)
                else:
                    with self.span("order"):
                        producer.send(self.topic, str(number).encode())
                self.sent += 1
            stranger.flush()
            producer.flush()

    def span(self, name: str) -> Any:
        return contextlib.nullcontext() if self.tracer is None else self.tracer.start_as_current_span(name)

    def consume(self) -> None:
        """One member after the other: each leaves after its share, and another one joins."""
        from kafka.errors import KafkaError

        while not self.over.is_set():
            self.joins += 1
            try:
                self.be_member(self.total // 9)
            except KafkaError as error:  # the broker is away
                self.errors.append(type(error).__name__)
                time.sleep(0.2)

    def be_member(self, share: int) -> None:
        from kafka import KafkaConsumer

        consumer = KafkaConsumer(
            self.topic,
            bootstrap_servers=self.address,
            group_id=self.topic,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            heartbeat_interval_ms=300,
            session_timeout_ms=10_000,  # of a member that could not say goodbye, since the broker was away
            max_poll_records=100,
        )
        with contextlib.closing(consumer):
            while share > 0 and not self.over.is_set():
                polled = consumer.poll(timeout_ms=200)
                for records in polled.values():
                    for record in records:
                        self.handle(record)
                count = sum(map(len, polled.values()))
                share -= count
                if count and not self.commits(consumer):
                    self.refused += count

    def handle(self, record: Any) -> None:
        number = int(record.value)
        with self.span("handle"), self._lock:
            self.counts[number] += 1
            self.handled += 1
            self.strangers += number % 10 == 0

    def commits(self, consumer: Any) -> bool:
        from kafka.errors import KafkaError

        try:
            consumer.commit()
        except KafkaError as error:  # the broker is away, or the group is about to be another
            self.errors.append(type(error).__name__)
            return False
        return True

    def guarded(self, work: Any) -> None:
        try:
            work()
        except Exception as error:
            self.errors.append(f"{type(error).__name__}: {error}")
            self.over.set()
            raise

    def run(self) -> dict[str, Any]:
        memory = psutil.Process().memory_info
        workers = [
            threading.Thread(target=self.guarded, args=(work,)) for work in (self.produce, *[self.consume] * MEMBERS)
        ]
        for worker in workers:
            worker.start()
        deadline, at_quarter, last, idle_since = time.monotonic() + DEADLINE_S, 0, -1, time.monotonic()
        while time.monotonic() < deadline and not self.over.is_set():
            say({"handled": self.handled, "rss_mb": memory().rss >> 20})
            if not at_quarter and self.handled > self.total // 4:
                at_quarter = memory().rss
            if last != self.handled:
                last, idle_since = self.handled, time.monotonic()
            if self.sent == self.total and min(self.counts) and time.monotonic() - idle_since > IDLE_S:
                break
            time.sleep(0.25)
        grown = memory().rss - at_quarter
        self.over.set()
        for worker in workers:
            worker.join()
        return {
            "lost": self.counts.count(0),
            "again": self.handled - self.total + self.counts.count(0),
            "refused": self.refused,
            "joins": self.joins,
            "grown_mb": round(grown / 2**20, 1),
            "errors": sorted(set(self.errors)),
        }


def inside(arguments: argparse.Namespace) -> None:
    soak = Soak(arguments)
    if arguments.plain:
        say({"result": soak.run()})
        return
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    import tracefill
    from tracefill import snapshots
    from tracefill.messages import handling

    chains, provider = Chains(), TracerProvider()
    provider.add_span_processor(chains)
    trace.set_tracer_provider(provider)
    tracefill.install(only=["kafka"])
    soak.tracer = trace.get_tracer("soak")
    result = soak.run()
    left = [reference for reference in handling._lingering if reference() is not None]
    held = {"left": len(left), "in_use": snapshots.stats().in_use}
    say({"result": result | chains.judge(soak.handled, soak.strangers) | held})


def say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


# ------------------------------------------------------------------------------------------------- the broker's own process


def soak(kafka: Any, messages: int, *, plain: bool, quiet: bool = False) -> dict[str, Any]:
    """One run in a process of its own, the broker stopped and started when a third is handled."""
    topic = f"soak-{uuid.uuid4().hex[:12]}"
    make_topic(kafka.address, topic)
    command = [sys.executable, "-m", "tests.messages.soak", "--messages", str(messages)]
    command += ["--inside", kafka.address, "--topic", topic, *(["--plain"] if plain else [])]
    restarted = False
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            for line in map(json.loads, child.stdout):
                if "result" in line:
                    found: dict[str, Any] = line["result"] | {"restarted": restarted}
                    return found
                if not quiet:
                    show(line, messages, plain)
                if not restarted and line["handled"] > messages // 3:
                    restarted = True
                    kafka.stop()
                    time.sleep(DOWN_S)
                    kafka.start()
        finally:
            child.terminate()
    raise RuntimeError("the soak ended without a result")


def show(line: dict[str, Any], messages: int, plain: bool) -> None:
    name = "without tracefill" if plain else "with tracefill   "
    print(f"\r{name}  {line['handled']:>9,} of {messages:,} handled, {line['rss_mb']} MB  ", end="", file=sys.stderr)


def make_topic(address: str, topic: str) -> None:
    from confluent_kafka.admin import AdminClient, NewTopic

    client = AdminClient({"bootstrap.servers": address})  # the request dies with it
    [made] = client.create_topics([NewTopic(topic, 6, 1)]).values()
    made.result(60)


def complaints(without: dict[str, Any], with_: dict[str, Any]) -> list[str]:
    """What is worse with tracefill than without; empty when nothing is."""
    found = [f"{name}: {with_[name]}" for name in ("lost", "broken", "doubled", "left", "in_use") if with_[name]]
    if without["lost"]:
        found.append(f"no run to compare with: without tracefill {without['lost']} are lost")
    if with_["again"] > max(with_["refused"], without["again"]):
        found.append(f"handled again: {with_['again']}, without {without['again']}")
    if with_["grown_mb"] > without["grown_mb"] + 16:
        found.append(f"grown by {with_['grown_mb']} MB, without by {without['grown_mb']} MB")
    return found


def main(
    program: str, about: str | None, broker: str, inside: Callable[[argparse.Namespace], None], soak: Callable[..., Any]
) -> int:
    """The command line of a soak, and of the process in it."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=about)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("--topic", help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        inside(arguments)
        return 0
    from tests import servers

    with servers.running(broker) as server:
        runs = [soak(server, arguments.messages, plain=plain) for plain in (True, False)]
    for name, run in zip(("without tracefill", "with tracefill"), runs, strict=True):
        print(f"\n{name}: {json.dumps(run)}")
    worse = complaints(*runs)
    print("; ".join(worse) or "nothing is worse with tracefill")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main("tests.messages.soak", __doc__, "kafka", inside, soak))
