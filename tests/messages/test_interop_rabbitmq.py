"""Go, Java and Python on one queue of a real RabbitMQ: one trace, in each of the formats that they have in common."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import aio_pika
import kombu
import pika
import pytest
from opentelemetry import trace

import tracefill
from tests.contracts import ancestors, finished, tracer
from tests.messages.kafka_contract import installed, of_kind, written_as
from tests.messages.test_interop import SPAN_ID, TRACE_ID, TRACEPARENT, only
from tracefill.context import scope


class Together(ABC):
    name: str

    @abstractmethod
    def send(self, queue: str) -> None: ...

    @abstractmethod
    def handle(self, queue: str, work: Callable[[], Any], count: int) -> None:
        """Has so many messages of the queue handled: `work` is called under each."""

    @pytest.fixture(autouse=True)
    def _with(self, rabbitmq: Any) -> None:
        self.url, self.queue = rabbitmq.url, f"orders-{uuid.uuid4().hex[:12]}"
        self.parameters = pika.URLParameters(rabbitmq.url)
        with pika.BlockingConnection(self.parameters) as connection:
            connection.channel().queue_declare(self.queue)

    @pytest.mark.parametrize("format", ["tracecontext", "b3"])
    def test_all_of_them_are_one_trace(self, spans: Any, go_peer: Any, java_peer: Any, format: str) -> None:
        """Python sends; Go and Java read it and send on; Python handles all three."""
        with written_as(format), installed(self.name), scope(tracefill.extract({"traceparent": TRACEPARENT})):
            with tracer.start_as_current_span("near"):
                self.send(self.queue)
            sent = finished(spans, f"send {self.queue}")
            for peer in (go_peer, java_peer):
                [record] = peer.consume(self.url, self.queue, 1)
                assert record[format]["trace_id"] == f"{sent.context.trace_id:032x}" == TRACE_ID
                assert record[format]["span_id"] == f"{sent.context.span_id:016x}"
                assert record[format]["sampled"] is True
                peer.produce(self.url, self.queue, only(record, format), format)
            handled: list[Any] = []
            self.handle(self.queue, lambda: handled.append(trace.get_current_span()), 3)
        assert len(handled) == 3
        for span in handled:
            assert ancestors(spans, span) == [f"send {self.queue}", "near"]

    @pytest.mark.parametrize("format", ["tracecontext", "b3", "b3multi"])
    def test_what_they_send_is_continued(self, spans: Any, go_peer: Any, java_peer: Any, format: str) -> None:
        for peer in (go_peer, java_peer):
            peer.produce(self.url, self.queue, {"traceparent": TRACEPARENT}, format)
        with installed(self.name):
            self.handle(self.queue, lambda: None, 2)
        handled = of_kind(spans, "CONSUMER")
        assert [f"{span.context.trace_id:032x} {span.parent.span_id:016x}" for span in handled] == [
            f"{TRACE_ID} {SPAN_ID}"
        ] * 2


class TestPika(Together):
    name = "pika"

    def send(self, queue: str) -> None:
        with pika.BlockingConnection(self.parameters) as connection:
            connection.channel().basic_publish("", queue, b"from python")

    def handle(self, queue: str, work: Callable[[], Any], count: int) -> None:
        with pika.BlockingConnection(self.parameters) as connection:
            for _ in connection.channel().consume(queue, auto_ack=True):
                work()
                count -= 1
                if not count:
                    break


class TestAioPika(Together):
    name = "aio_pika"

    def send(self, queue: str) -> None:
        async def send() -> None:
            async with await aio_pika.connect(self.url) as connection:
                channel = await connection.channel()
                await channel.default_exchange.publish(aio_pika.Message(b"from python"), queue)

        asyncio.run(send())

    def handle(self, queue: str, work: Callable[[], Any], count: int) -> None:
        async def handle(left: int) -> None:
            async with await aio_pika.connect(self.url) as connection:
                channel = await connection.channel()
                async with (await channel.get_queue(queue)).iterator() as messages:
                    async for message in messages:
                        await message.ack()
                        work()
                        left -= 1
                        if not left:
                            break

        asyncio.run(handle(count))


class TestKombu(Together):
    name = "kombu"

    def send(self, queue: str) -> None:
        with kombu.Connection(self.url) as connection:
            kombu.Producer(connection).publish("from python", routing_key=queue)

    def handle(self, queue: str, work: Callable[[], Any], count: int) -> None:
        left = [count]

        def on_message(message: Any) -> None:
            message.ack()
            work()
            left[0] -= 1

        queues = [kombu.Queue(queue, durable=False, no_declare=True)]
        with kombu.Connection(self.url) as connection, connection.Consumer(queues, on_message=on_message):
            while left[0]:
                with contextlib.suppress(socket.timeout):
                    connection.drain_events(timeout=1)
