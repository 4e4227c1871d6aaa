"""tracefill.messages.pika against a real RabbitMQ."""

from __future__ import annotations

import contextvars
import gc
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.pika import PikaInstrumentor
from opentelemetry.instrumentation.utils import suppress_instrumentation
from pika import BasicProperties
from pika.adapters import blocking_connection, select_connection

import tracefill
from tests.contracts import BoundaryContract, PatchContract, ancestors, finished, tracer
from tracefill.messages import pika as integration
from tracefill.messages.message_spans import correlation


@pytest.fixture
def channel(rabbitmq: Any) -> Iterator[Any]:
    with pika.BlockingConnection(pika.URLParameters(rabbitmq.url)) as connection:
        yield connection.channel()


@pytest.fixture
def queue(channel: Any) -> str:
    name = f"orders-{uuid.uuid4().hex[:12]}"
    channel.queue_declare(name)
    return name


@pytest.fixture
def installed() -> Iterator[None]:
    tracefill.install(only=["pika"])
    yield
    tracefill.uninstall()


@pytest.fixture
def contrib() -> Iterator[PikaInstrumentor]:
    instrumentor = PikaInstrumentor()
    instrumentor.instrument()
    yield instrumentor
    instrumentor.uninstrument()


def handle(channel: Any, queue: str, callback: Callable[..., Any]) -> None:
    """Has one message handled by a callback."""

    def on_message(*message: Any) -> None:
        channel.stop_consuming()
        callback(*message)

    tag = channel.basic_consume(queue, on_message, auto_ack=True)
    channel.start_consuming()
    assert tag


def get(channel: Any, queue: str) -> Any:
    """One message, outside of any scope."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        message = type(channel).basic_get.__wrapped__(channel, queue, auto_ack=True)
        if message[0] is not None:
            return message
    raise AssertionError("no message came")


class TestPatches(PatchContract):
    name = "pika"

    def owners(self) -> list[Any]:
        return [
            blocking_connection.BlockingChannel,
            blocking_connection.BlockingConnection,
            blocking_connection._ReturnedMessageEvt,
            select_connection.IOLoop,
            pika.channel.Channel,
            pika.connection.Connection,
        ]


class TestBoundary(BoundaryContract):
    name = "pika"
    spans_between = 2  # send, process

    @pytest.fixture(autouse=True)
    def _with(self, channel: Any, queue: str) -> None:
        self.channel, self.queue = channel, queue

    def cross(self, work: Callable[[], Any]) -> None:
        self.channel.basic_publish("", self.queue, b"x")
        handle(self.channel, self.queue, lambda *message: work())


class TestBoundaryOfGenerator(TestBoundary):
    def cross(self, work: Callable[[], Any]) -> None:
        self.channel.basic_publish("", self.queue, b"x")
        for _ in self.channel.consume(self.queue, auto_ack=True):
            work()
            break
        self.channel.cancel()


class TestBoundaryOfGet(TestBoundary):
    def cross(self, work: Callable[[], Any]) -> None:
        def get_and_work() -> None:
            method, _, _ = self.channel.basic_get(self.queue, auto_ack=True)
            assert method is not None
            work()

        self.channel.basic_publish("", self.queue, b"x")
        get_and_work()


def test_spans_have_the_standard_names_and_attributes(spans: Any, installed: None, channel: Any, queue: str) -> None:
    with tracer.start_as_current_span("near"):
        channel.basic_publish("", queue, b"x", BasicProperties(message_id="7", correlation_id="c"))
    handle(channel, queue, lambda *message: None)
    sent, processed = finished(spans, f"send {queue}"), finished(spans, f"process {queue}")
    assert (sent.kind.name, processed.kind.name) == ("PRODUCER", "CONSUMER")
    assert ancestors(spans, processed) == [f"send {queue}", "near"]
    common = {
        "messaging.system": "rabbitmq",
        "messaging.destination.name": queue,
        "messaging.rabbitmq.destination.routing_key": queue,
        "messaging.message.id": "7",
        "messaging.message.conversation_id": "c",
        "server.address": "127.0.0.1",
    }
    assert common.items() <= dict(sent.attributes).items()
    assert common.items() <= dict(processed.attributes).items()
    assert sent.attributes["messaging.operation.name"] == "send"
    assert processed.attributes["messaging.operation.name"] == "process"
    assert processed.attributes["messaging.rabbitmq.message.delivery_tag"] == 1


def test_name_that_the_broker_made_up_is_not_in_a_span_name(spans: Any, installed: None, channel: Any) -> None:
    made_up = channel.queue_declare("", exclusive=True).method.queue
    channel.basic_publish("", made_up, b"x")
    handle(channel, made_up, lambda *message: None)
    assert finished(spans, "send (anonymous)").attributes["messaging.destination.anonymous"] is True
    assert finished(spans, "process (anonymous)").attributes["messaging.destination.name"] == made_up


def test_message_without_context_is_an_entry(spans: Any, channel: Any, queue: str) -> None:
    channel.basic_publish("", queue, b"x")
    tracefill.install(only=["pika"])
    try:
        handle(channel, queue, lambda *message: None)
    finally:
        tracefill.uninstall()
    span = finished(spans, f"process {queue}")
    assert span.parent is None
    assert span.attributes["tracefill.entry"] is True


def test_old_message_is_linked(spans: Any, installed: None, channel: Any, queue: str) -> None:
    with tracer.start_as_current_span("near") as near:
        channel.basic_publish("", queue, b"x", BasicProperties(timestamp=int(time.time()) - 2 * 86_400))
    handle(channel, queue, lambda *message: None)
    span = finished(spans, f"process {queue}")
    assert span.parent is None
    assert [link.context.trace_id for link in span.links] == [near.get_span_context().trace_id]
    assert span.attributes["tracefill.message.delivery_time_ms"] >= 2 * 86_400_000


def test_link_is_a_switch(
    spans: Any, installed: None, channel: Any, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(correlation, "single", "link")
    with tracer.start_as_current_span("near"):
        channel.basic_publish("", queue, b"x")
    handle(channel, queue, lambda *message: None)
    span = finished(spans, f"process {queue}")
    assert span.parent is None
    assert len(span.links) == 1


def test_get_tells_how_many_are_left(spans: Any, installed: None, channel: Any, queue: str) -> None:
    def get_one() -> None:
        message = channel.basic_get(queue, auto_ack=True)
        assert isinstance(message, tuple)
        assert message[2] == b"x"

    for _ in range(3):
        channel.basic_publish("", queue, b"x")
    get_one()
    assert finished(spans, f"process {queue}").attributes["tracefill.message.lag"] == 2


def test_what_has_copied_the_variables_keeps_the_message(spans: Any, installed: None, channel: Any, queue: str) -> None:
    """As `loop.call_soon_threadsafe` does: the handling has ended when it runs."""
    copied: list[contextvars.Context] = []
    channel.basic_publish("", queue, b"x")
    handle(channel, queue, lambda *message: copied.append(contextvars.copy_context()))
    copied[0].run(tracer.start_span, "later").end()
    assert ancestors(spans, finished(spans, "later")) == []
    copied.clear()
    assert ancestors(spans, finished(spans, "later")) == [f"process {queue}", f"send {queue}"]


def test_message_or_none_that_a_function_returns_is_handled_by_its_caller(
    spans: Any, installed: None, channel: Any, queue: str
) -> None:
    def receive() -> Any:
        method, _, body = channel.basic_get(queue, auto_ack=True)
        return body if method else None

    def work() -> None:
        assert receive() == b"x"
        tracer.start_span("work").end()

    channel.basic_publish("", queue, b"x")
    work()
    assert ancestors(spans, finished(spans, "work")) == [f"process {queue}", f"send {queue}"]


def test_exception_of_a_callback_goes_on_and_is_recorded(spans: Any, installed: None, channel: Any, queue: str) -> None:
    def fail(*message: Any) -> None:
        raise ValueError("no such order")

    channel.basic_publish("", queue, b"x")
    with pytest.raises(ValueError, match="no such order"):
        handle(channel, queue, fail)
    gc.collect()
    assert not trace.get_current_span().get_span_context().is_valid
    span = finished(spans, f"process {queue}")
    assert span.status.description == "ValueError: no such order"


@pytest.mark.parametrize("headers", [None, {}, {"customer": 7, "TraceParent": "old"}])
def test_callers_properties_are_copied(installed: None, channel: Any, queue: str, headers: Any) -> None:
    properties = BasicProperties(headers=headers, content_type="text/plain")
    before = dict(headers) if headers else headers
    for _ in range(3):
        with tracer.start_as_current_span("near") as near:
            channel.basic_publish("", queue, b"x", properties)
        _, received, _ = get(channel, queue)
        assert received.content_type == "text/plain"
        assert [name.lower() for name in received.headers].count("traceparent") == 1
        assert f"{near.get_span_context().trace_id:032x}" in received.headers["traceparent"]
    assert properties.headers is headers
    assert headers == before


def test_without_a_trace_nothing_is_sent_along(spans: Any, installed: None, channel: Any, queue: str) -> None:
    with suppress_instrumentation():
        channel.basic_publish("", queue, b"x")
    _, properties, _ = get(channel, queue)
    assert spans.get_finished_spans() == ()
    assert properties.headers is None


@pytest.mark.parametrize("value", [b"\xff\xfe", 7, None, ["a"], {"a": 1}])
@pytest.mark.parametrize("name", ["traceparent", "tracestate", "baggage", "b3"])
def test_bad_header_loses_no_message(
    spans: Any, no_log: Any, installed: None, channel: Any, queue: str, name: str, value: Any
) -> None:
    type(channel._impl).basic_publish.__wrapped__(
        channel._impl, "", queue, b"x", BasicProperties(headers={name: value})
    )
    bodies: list[bytes] = []
    handle(channel, queue, lambda channel, method, properties, body: bodies.append(body))
    assert bodies == [b"x"]
    assert finished(spans, f"process {queue}").parent is None


def test_attempts_are_counted(spans: Any, installed: None, channel: Any, queue: str) -> None:
    retry = f"{queue}.retry"
    channel.queue_declare(retry)
    channel.basic_publish("", queue, b"x")
    handle(channel, queue, lambda channel, method, properties, body: channel.basic_publish("", retry, body))
    handle(channel, retry, lambda channel, method, properties, body: channel.basic_publish("", retry, body, properties))
    handle(channel, retry, lambda *message: None)
    attempts = [
        span.attributes.get("tracefill.message.attempt")
        for span in sorted(spans.get_finished_spans(), key=lambda span: span.start_time)
        if span.name.startswith("process ")
    ]
    assert attempts == [None, 2, 3]
    assert {
        span.attributes["tracefill.message.original_destination"]
        for span in spans.get_finished_spans()
        if span.name == f"process {retry}"
    } == {queue}


def test_dead_letter_tells_attempt_and_original_queue(spans: Any, installed: None, channel: Any) -> None:
    suffix = uuid.uuid4().hex[:12]
    exchange, dead, queue = f"dlx-{suffix}", f"dead-{suffix}", f"orders-{suffix}"
    channel.exchange_declare(exchange, "fanout")
    channel.queue_declare(dead)
    channel.queue_bind(dead, exchange)
    channel.queue_declare(queue, arguments={"x-dead-letter-exchange": exchange})
    with tracer.start_as_current_span("near"):
        channel.basic_publish("", queue, b"x")
    method, _, _ = type(channel).basic_get.__wrapped__(channel, queue)
    channel.basic_reject(method.delivery_tag, requeue=False)
    handle(channel, dead, lambda *message: None)
    span = finished(spans, f"process {dead}")
    assert ancestors(spans, span) == [f"send {queue}", "near"]
    assert span.attributes["tracefill.message.attempt"] == 2
    assert span.attributes["tracefill.message.original_destination"] == queue
    assert span.attributes["messaging.destination.name"] == f"{exchange}:{queue}:{dead}"


class TestVerbs:
    """Without install()."""

    def test_inject_and_process(self, spans: Any, channel: Any, queue: str) -> None:
        given = BasicProperties(headers={"customer": 7})
        with tracer.start_as_current_span("near"):
            channel.basic_publish("", queue, b"x", integration.inject(given))
        assert given.headers == {"customer": 7}
        method, properties, body = channel.basic_get(queue, auto_ack=True)
        assert trace.get_current_span(integration.extract(properties)).get_span_context().is_valid
        with integration.process(method, properties, body):
            tracer.start_span("far").end()
        assert ancestors(spans, finished(spans, "far")) == [f"process {queue}", "near"]

    def test_consume(self, spans: Any, channel: Any, queue: str) -> None:
        with tracer.start_as_current_span("near"):
            channel.basic_publish("", queue, b"x", integration.inject())
        for _method, _properties, body in integration.consume(channel, queue, auto_ack=True, inactivity_timeout=1):
            if body is None:
                break
            tracer.start_span("far").end()
        assert ancestors(spans, finished(spans, "far")) == [f"process {queue}", "near"]

    def test_process_of_what_is_handled_already_is_no_second_span(
        self, spans: Any, installed: None, channel: Any, queue: str
    ) -> None:
        def callback(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            with integration.process(method, properties, body) as span:
                assert span is trace.get_current_span()

        channel.basic_publish("", queue, b"x")
        handle(channel, queue, callback)
        finished(spans, f"process {queue}")


class TestWithContrib:
    """One span for each crossing, and it is contrib's."""

    def check(self, spans: Any, channel: Any, queue: str, tell: Any = None) -> None:
        with tracer.start_as_current_span("near"):
            channel.basic_publish("", queue, b"x")
        handle(channel, queue, lambda *message: tracer.start_span("far").end())
        far = finished(spans, "far")
        assert ancestors(spans, far) == [f"{queue} receive", f"{queue} send", "near"]
        scopes = {
            span.instrumentation_scope.name
            for span in spans.get_finished_spans()
            if span.kind.name in ("PRODUCER", "CONSUMER")
        }
        assert scopes == {"opentelemetry.instrumentation.pika.pika_instrumentor"}

    def test_contrib_before(
        self, spans: Any, no_log: Any, contrib: Any, installed: None, channel: Any, queue: str
    ) -> None:
        self.check(spans, channel, queue)

    def test_contrib_after(
        self, spans: Any, no_log: Any, installed: None, contrib: Any, channel: Any, queue: str
    ) -> None:
        self.check(spans, channel, queue)

    def test_channel_that_contrib_has_decorated(
        self, spans: Any, no_log: Any, contrib: Any, channel: Any, queue: str
    ) -> None:
        assert "basic_publish" in vars(channel)
        tracefill.install(only=["pika"])
        try:
            self.check(spans, channel, queue)
        finally:
            tracefill.uninstall()
        assert "basic_publish" in vars(channel)

    def test_hooks_are_called(self, spans: Any, installed: None, rabbitmq: Any) -> None:
        seen: list[Any] = []
        instrumentor = PikaInstrumentor()
        instrumentor.instrument(
            publish_hook=lambda span, body, properties: properties.headers.update(customer="7"),
            consume_hook=lambda span, body, properties: seen.append((span, body, properties.headers["customer"])),
        )
        try:
            with pika.BlockingConnection(pika.URLParameters(rabbitmq.url)) as connection:
                channel = connection.channel()
                name = channel.queue_declare("", exclusive=True).method.queue
                channel.basic_publish("", name, b"x")
                handle(channel, name, lambda *message: None)
        finally:
            instrumentor.uninstrument()
        assert [(body, customer) for _, body, customer in seen] == [(b"x", "7")]
