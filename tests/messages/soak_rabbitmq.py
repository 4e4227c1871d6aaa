"""python -m tests.messages.soak_rabbitmq [--messages 100000]: pika, aio-pika and kombu on one queue of a real RabbitMQ, with and
without tracefill.

One message in ten comes from a stranger with hostile trace headers; consumers leave and join; the broker closes all connections in
mid-flight, three times. Each message has to be handled as often as the broker delivered it, and each chain has to be whole, as
in tests.messages.soak.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import logging
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

from tests import servers
from tests.messages.soak import BACKLOG, Chains, Soak, main, say, show

DROPS = 3
PREFETCH = 50
SHARES = 12  # how many members it takes to handle all
CLIENTS = ("pika", "aio_pika", "kombu")
NESTED: Any = {"a": {"b": [b"\xff", {"c": None}]}}
POISON = [
    {name: value}
    for value in (b"\xff\xfe", b"", 7, True, None, ["00"], NESTED, "00-0-0-01", "\x00" * 40, "x" * 9_000)
    for name in ("traceparent", "tracestate", "baggage", "b3", "X-B3-TraceId", "x-death", "attempt")
]


class RabbitSoak(Soak):
    """Inside of the child process; `refused` counts what may come again: the broker or the producer has said so."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(arguments)
        self._turns = itertools.cycle([self.be_pika, self.be_aio_pika, self.be_kombu])

    # -------------------------------------------------------------------------------------------------------- producers

    def produce(self) -> None:
        own, stranger = Reconnecting(self.pika_sender), Reconnecting(self.stranger_sender)
        for number in range(self.total):
            while self.sent - self.handled > BACKLOG and not self.over.is_set():
                time.sleep(0.005)
            if number % 10 == 0:
                again = stranger.send(str(number), POISON[number // 10 % len(POISON)])
            else:
                with self.span("order"):
                    again = own.send(str(number), None)
            with self._lock:
                self.refused += again
            self.sent += 1
        own.close()
        stranger.close()

    def pika_sender(self) -> tuple[Callable[..., Any], Callable[[], Any]]:
        connection = self.pika_connection()
        channel = connection.channel()
        channel.confirm_delivery()
        return lambda body, headers: channel.basic_publish("", self.topic, body.encode()), connection.close

    def stranger_sender(self) -> tuple[Callable[..., Any], Callable[[], Any]]:
        """py-amqp, which is not instrumented."""
        import amqp

        connection = amqp.Connection(self.address, confirm_publish=True)
        connection.connect()
        channel = connection.channel()

        def send(body: str, headers: Any) -> None:
            channel.basic_publish(amqp.Message(body, application_headers=headers), "", self.topic, timeout=10)

        return send, connection.close

    # -------------------------------------------------------------------------------------------------------- consumers

    def consume(self) -> None:
        """One member after the other, each of the next library."""
        while not self.over.is_set():
            self.joins += 1
            be_member = next(self._turns)
            try:
                be_member(self.total // SHARES)
            except connection_errors() as error:
                self.errors.append(type(error).__name__)
                time.sleep(0.1)

    def pika_connection(self) -> Any:
        import pika

        host, _, port = self.address.partition(":")
        return pika.BlockingConnection(pika.ConnectionParameters(host, int(port)))

    def be_pika(self, share: int) -> None:
        left = [share]

        def on_message(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            self.handle_number(int(body), method.redelivered)
            left[0] -= 1
            if left[0] % 10 == 0:  # so that some that were handled come again when the connection is lost
                channel.basic_ack(method.delivery_tag, multiple=True)

        with self.pika_connection() as connection:
            channel = connection.channel()
            channel.basic_qos(prefetch_count=PREFETCH)
            channel.basic_consume(self.topic, on_message)
            while left[0] > 0 and not self.over.is_set():
                connection.process_data_events(time_limit=0.1)

    def be_aio_pika(self, share: int) -> None:
        asyncio.run(self.iterate(share))

    async def iterate(self, share: int) -> None:
        import aio_pika

        connection = await aio_pika.connect(f"amqp://guest:guest@{self.address}/")
        async with connection:
            channel = await connection.channel()
            await channel.set_qos(prefetch_count=PREFETCH)
            queue = await channel.get_queue(self.topic)
            while share > 0 and not (self.over.is_set() or connection.is_closed):
                with contextlib.suppress(asyncio.TimeoutError):
                    async with queue.iterator(timeout=0.5) as messages:
                        async for message in messages:
                            self.handle_number(int(message.body), bool(message.redelivered))
                            await message.ack()
                            share -= 1
                            if share <= 0:
                                break

    def be_kombu(self, share: int) -> None:
        import kombu

        left = [share]

        def on_message(body: Any, message: Any) -> None:
            self.handle_number(int(body), message.delivery_info["redelivered"])
            message.ack()
            left[0] -= 1

        with kombu.Connection(f"amqp://guest:guest@{self.address}//") as connection:
            queue = kombu.Queue(self.topic, durable=False, no_declare=True)
            with connection.Consumer([queue], callbacks=[on_message], prefetch_count=PREFETCH):
                while left[0] > 0 and not self.over.is_set():
                    with contextlib.suppress(socket.timeout):
                        connection.drain_events(timeout=0.1)

    def handle_number(self, number: int, redelivered: bool) -> None:
        with self.span("handle"), self._lock:
            self.refused += bool(self.counts[number] and redelivered)
            self.counts[number] += 1
            self.handled += 1
            self.strangers += number % 10 == 0


class Reconnecting:
    """Sends until the broker has confirmed it; `connect` gives how to send and how to close."""

    def __init__(self, connect: Callable[[], tuple[Callable[..., Any], Callable[[], Any]]]) -> None:
        self._connect = connect
        self._send, self.close = connect()

    def send(self, body: str, headers: Any) -> int:
        """How often it was sent in vain: that may have come for all that."""
        for again in itertools.count():
            with contextlib.suppress(connection_errors()):
                if again:
                    self._send, self.close = self._connect()
                self._send(body, headers)
                return again
            time.sleep(0.1)
        raise AssertionError


def connection_errors() -> tuple[type[BaseException], ...]:
    import aio_pika
    import amqp
    import pika

    return (
        pika.exceptions.AMQPError,
        amqp.AMQPError,
        aio_pika.exceptions.AMQPError,
        OSError,
        RuntimeError,  # aiormq's, of a channel that has just been closed
        asyncio.CancelledError,
    )


def inside(arguments: argparse.Namespace) -> None:
    soak = RabbitSoak(arguments)
    for name in ("aiormq", "aio_pika", "pika"):  # which tell of each connection that is lost
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
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
    tracefill.install(only=CLIENTS)
    soak.tracer = trace.get_tracer("soak")
    result = soak.run()
    left = [reference for reference in handling._lingering if reference() is not None]
    held = {"left": len(left), "in_use": snapshots.stats().in_use}
    say({"result": result | chains.judge(soak.handled, soak.strangers) | held})


# ------------------------------------------------------------------------------------------------- the broker's own process


def soak(rabbitmq: Any, messages: int, *, plain: bool, quiet: bool = False) -> dict[str, Any]:
    """One run in a process of its own; all its connections are closed when a quarter, a half and three quarters are handled."""
    queue = f"soak-{uuid.uuid4().hex[:12]}"
    declare(rabbitmq.address, queue)
    command = [sys.executable, "-m", "tests.messages.soak_rabbitmq", "--messages", str(messages)]
    command += ["--inside", rabbitmq.address, "--topic", queue, *(["--plain"] if plain else [])]
    dropped = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            for line in map(json.loads, child.stdout):
                if "result" in line:
                    found: dict[str, Any] = line["result"] | {"dropped": dropped}
                    return found
                if not quiet:
                    show(line, messages, plain)
                if dropped < DROPS and line["handled"] > messages * (dropped + 1) // (DROPS + 1):
                    dropped += 1
                    close_all_connections(rabbitmq)
        finally:
            child.terminate()
    raise RuntimeError("the soak ended without a result")


def declare(address: str, queue: str) -> None:
    import pika

    host, _, port = address.partition(":")
    with pika.BlockingConnection(pika.ConnectionParameters(host, int(port))) as connection:
        connection.channel().queue_declare(queue)


def close_all_connections(rabbitmq: Any) -> None:
    command = [servers.program("rabbitmqctl") or "rabbitmqctl", "--quiet", "close_all_connections", "a soak"]
    subprocess.run(command, env=os.environ | rabbitmq.environment(), check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main("tests.messages.soak_rabbitmq", __doc__, "rabbitmq", inside, soak))
