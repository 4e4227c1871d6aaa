"""tracefill.messages.aio_pika against a real RabbitMQ."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import aio_pika
import aiormq
import pytest
from aio_pika import Message
from opentelemetry import trace
from opentelemetry.instrumentation.aio_pika import AioPikaInstrumentor
from opentelemetry.instrumentation.utils import suppress_instrumentation

import tracefill
from tests.contracts import BoundaryContract, PatchContract, ancestors, finished, tracer
from tracefill.messages import aio_pika as integration

DEADLINE_S = 30


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[tuple[Any, Any]]:
    """A channel and a queue."""
    connection = await aio_pika.connect_robust(url)
    async with connection:
        channel = await connection.channel()
        yield channel, await channel.declare_queue(f"orders-{uuid.uuid4().hex[:12]}")


@pytest.fixture
def installed() -> Iterator[None]:
    tracefill.install(only=["aio_pika"])
    yield
    tracefill.uninstall()


@pytest.fixture
def contrib() -> Iterator[AioPikaInstrumentor]:
    instrumentor = AioPikaInstrumentor()
    instrumentor.instrument()
    yield instrumentor
    instrumentor.uninstrument()


async def send(channel: Any, queue: Any, **options: Any) -> None:
    await channel.default_exchange.publish(Message(b"x", **options), queue.name)


async def handle(queue: Any, work: Callable[[Any], Awaitable[Any]]) -> None:
    """Has one message handled by a callback; raises what that raises."""
    done = asyncio.get_running_loop().create_future()

    async def on_message(message: Any) -> None:
        try:
            await work(message)
        except ValueError as error:
            done.set_exception(error)
            raise
        done.set_result(None)

    tag = await queue.consume(on_message, no_ack=True)
    try:
        await asyncio.wait_for(done, DEADLINE_S)
    finally:
        await queue.cancel(tag)
        await asyncio.sleep(0)


async def nothing(message: Any) -> None:
    pass


class TestPatches(PatchContract):
    name = "aio_pika"

    def owners(self) -> list[Any]:
        return [
            aiormq.Channel,
            aio_pika.queue,
            aio_pika.queue.Queue,
            aio_pika.queue.QueueIterator,
            aio_pika.robust_queue.RobustQueueIterator,
            aio_pika.channel.Channel,
            aio_pika.exchange.Exchange,
        ]


class TestBoundary(BoundaryContract):
    name = "aio_pika"
    spans_between = 2  # send, process

    @pytest.fixture(autouse=True)
    def _with(self, rabbitmq: Any) -> None:
        self.url = rabbitmq.url

    def cross(self, work: Callable[[], Any]) -> None:
        async def run() -> None:
            async with opened(self.url) as (channel, queue):
                await send(channel, queue)
                await self.receive(queue, work)

        asyncio.run(run())

    async def receive(self, queue: Any, work: Callable[[], Any]) -> None:
        async def on_message(message: Any) -> None:
            work()

        await handle(queue, on_message)


class TestBoundaryOfIterator(TestBoundary):
    async def receive(self, queue: Any, work: Callable[[], Any]) -> None:
        async with queue.iterator(no_ack=True) as messages:
            async for _ in messages:
                work()
                break


class TestBoundaryOfGet(TestBoundary):
    async def receive(self, queue: Any, work: Callable[[], Any]) -> None:
        assert await queue.get(no_ack=True) is not None
        work()


async def test_spans_have_the_standard_names_and_attributes(spans: Any, installed: None, rabbitmq: Any) -> None:
    async with opened(rabbitmq.url) as (channel, queue):
        with tracer.start_as_current_span("near"):
            await send(channel, queue, message_id="7", correlation_id="c")
        await handle(queue, nothing)
    sent, processed = finished(spans, f"send {queue.name}"), finished(spans, f"process {queue.name}")
    assert (sent.kind.name, processed.kind.name) == ("PRODUCER", "CONSUMER")
    assert ancestors(spans, processed) == [f"send {queue.name}", "near"]
    common = {
        "messaging.system": "rabbitmq",
        "messaging.destination.name": queue.name,
        "messaging.message.id": "7",
        "messaging.message.conversation_id": "c",
        "server.address": "127.0.0.1",
        "server.port": rabbitmq.port,
    }
    assert common.items() <= dict(sent.attributes).items()
    assert common.items() <= dict(processed.attributes).items()


async def test_message_without_context_is_an_entry(spans: Any, rabbitmq: Any) -> None:
    async with opened(rabbitmq.url) as (channel, queue):
        await send(channel, queue)
        tracefill.install(only=["aio_pika"])
        try:
            await handle(queue, nothing)
        finally:
            tracefill.uninstall()
    span = finished(spans, f"process {queue.name}")
    assert span.parent is None
    assert span.attributes["tracefill.entry"] is True


async def test_old_message_is_linked(spans: Any, installed: None, rabbitmq: Any) -> None:
    async with opened(rabbitmq.url) as (channel, queue):
        with tracer.start_as_current_span("near") as near:
            await send(channel, queue, timestamp=datetime.now(timezone.utc) - timedelta(days=2))
        await handle(queue, nothing)
    span = finished(spans, f"process {queue.name}")
    assert span.parent is None
    assert [link.context.trace_id for link in span.links] == [near.get_span_context().trace_id]
    assert span.attributes["tracefill.message.delivery_time_ms"] >= 2 * 86_400_000


async def test_exception_of_a_callback_is_recorded(spans: Any, installed: None, rabbitmq: Any) -> None:
    async def fail(message: Any) -> None:
        raise ValueError("no such order")

    async with opened(rabbitmq.url) as (channel, queue):
        await send(channel, queue)
        with pytest.raises(ValueError, match="no such order"):
            await handle(queue, fail)
    span = finished(spans, f"process {queue.name}")
    assert span.status.description == "ValueError: no such order"


@pytest.mark.parametrize("headers", [None, {}, {"customer": 7, "TraceParent": "old"}])
async def test_callers_headers_are_copied(installed: None, rabbitmq: Any, headers: Any) -> None:
    given = dict(headers) if headers is not None else None
    message = Message(b"x", headers=given, content_type="text/plain")
    async with opened(rabbitmq.url) as (channel, queue):
        for _ in range(3):
            with tracer.start_as_current_span("near") as near:
                await channel.default_exchange.publish(message, queue.name)
            received = await queue.get(no_ack=True)
            assert received.content_type == "text/plain"
            assert [name.lower() for name in received.headers].count("traceparent") == 1
            assert f"{near.get_span_context().trace_id:032x}" in received.headers["traceparent"]
    assert message.headers == (headers or {})
    assert given == headers


async def test_suppressed_publishing_sends_nothing_along(spans: Any, installed: None, rabbitmq: Any) -> None:
    async with opened(rabbitmq.url) as (channel, queue):
        with suppress_instrumentation():
            await send(channel, queue)
            received = await queue.get(no_ack=True)
    assert received.headers == {}
    assert spans.get_finished_spans() == ()


@pytest.mark.parametrize("value", [bytearray(b"\xff\xfe"), 7, None, ["a"], {"a": 1}])
@pytest.mark.parametrize("name", ["traceparent", "tracestate", "baggage", "b3"])
async def test_bad_header_loses_no_message(
    spans: Any, no_log: Any, installed: None, rabbitmq: Any, name: str, value: Any
) -> None:
    bodies: list[bytes] = []

    async def keep(message: Any) -> None:
        bodies.append(message.body)

    async with opened(rabbitmq.url) as (channel, queue):
        with suppress_instrumentation():
            await send(channel, queue, headers={name: value})
        await handle(queue, keep)
    assert bodies == [b"x"]
    assert finished(spans, f"process {queue.name}").parent is None


async def test_attempts_are_counted(spans: Any, installed: None, rabbitmq: Any) -> None:
    async with opened(rabbitmq.url) as (channel, queue):
        retry = await channel.declare_queue(f"{queue.name}.retry")

        async def again(message: Any) -> None:
            await channel.default_exchange.publish(Message(message.body, headers=message.headers), retry.name)

        async def handle_one(of: Any, work: Callable[[Any], Awaitable[Any]]) -> None:
            await work(await of.get(no_ack=True))

        await send(channel, queue)
        await handle_one(queue, again)
        await handle_one(retry, again)
        await handle_one(retry, nothing)
    processed = sorted(
        (span for span in spans.get_finished_spans() if span.name.startswith("process ")),
        key=lambda span: span.start_time,
    )
    assert [span.attributes.get("tracefill.message.attempt") for span in processed] == [None, 2, 3]
    assert processed[-1].attributes["tracefill.message.original_destination"] == queue.name


class TestVerbs:
    """Without install()."""

    async def test_inject_consume_process(self, spans: Any, rabbitmq: Any) -> None:
        given = {"customer": 7}
        async with opened(rabbitmq.url) as (channel, queue):
            for _ in range(2):
                with tracer.start_as_current_span("near"):
                    await send(channel, queue, headers=integration.inject(given))
            async for message in integration.consume(queue, no_ack=True):
                tracer.start_span("in the loop").end()
                assert trace.get_current_span(integration.extract(message)).get_span_context().is_valid
                break
            assert not trace.get_current_span().get_span_context().is_valid
            with integration.process(message):
                tracer.start_span("in the scope").end()
        assert given == {"customer": 7}
        for name in ("in the loop", "in the scope"):
            assert ancestors(spans, finished(spans, name)) == [f"process {queue.name}", "near"]


class TestWithContrib:
    """One span for each crossing, and it is contrib's."""

    async def check(self, spans: Any, channel: Any, queue: Any) -> None:
        async def far(message: Any) -> None:
            tracer.start_span("far").end()

        with tracer.start_as_current_span("near"):
            await send(channel, queue)
        await handle(queue, far)
        assert ancestors(spans, finished(spans, "far")) == [f"{queue.name} receive", f",{queue.name} send", "near"]
        scopes = {
            span.instrumentation_scope.name
            for span in spans.get_finished_spans()
            if span.kind.name in ("PRODUCER", "CONSUMER")
        }
        assert scopes == {"opentelemetry.instrumentation.aio_pika"}

    async def test_contrib_before(self, spans: Any, no_log: Any, contrib: Any, installed: None, rabbitmq: Any) -> None:
        async with opened(rabbitmq.url) as (channel, queue):
            await self.check(spans, channel, queue)

    async def test_contrib_after(self, spans: Any, no_log: Any, installed: None, contrib: Any, rabbitmq: Any) -> None:
        async with opened(rabbitmq.url) as (channel, queue):
            await self.check(spans, channel, queue)

    async def test_contrib_after_the_channel(self, spans: Any, no_log: Any, installed: None, rabbitmq: Any) -> None:
        async with opened(rabbitmq.url) as (channel, queue):
            AioPikaInstrumentor().instrument()
            try:
                await self.check(spans, channel, queue)
            finally:
                AioPikaInstrumentor().uninstrument()

    def test_contribs_wrappers_are_given_back(self, contrib: Any) -> None:
        before = vars(aio_pika.Queue)["consume"], vars(aio_pika.Exchange)["publish"]
        tracefill.install(only=["aio_pika"])
        assert vars(aio_pika.Exchange)["publish"] is not before[1]
        tracefill.uninstall()
        assert (vars(aio_pika.Queue)["consume"], vars(aio_pika.Exchange)["publish"]) == before
