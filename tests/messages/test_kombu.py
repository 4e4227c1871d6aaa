"""tracefill.messages.kombu against a real RabbitMQ."""

from __future__ import annotations

import contextlib
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import kombu
import pytest
from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.asynchronous import Hub
from kombu.simple import SimpleBase
from opentelemetry import trace
from opentelemetry.instrumentation.utils import suppress_instrumentation

import tracefill
from tests.contracts import BoundaryContract, PatchContract, ancestors, finished, tracer
from tracefill.messages import kombu as integration

DEADLINE_S = 30


@pytest.fixture
def connection(rabbitmq: Any) -> Iterator[Any]:
    with Connection(f"amqp://guest:guest@{rabbitmq.address}//") as connection:
        yield connection


@pytest.fixture
def queue(connection: Any) -> Any:
    return declared(connection, f"orders-{uuid.uuid4().hex[:12]}")


def declared(connection: Any, name: str, **options: Any) -> Any:
    """A bound queue, which gets what is sent to its name."""
    made = Queue(name, Exchange(""), name, durable=False, **options)(connection.default_channel)
    made.declare()
    return made


@pytest.fixture
def installed() -> Iterator[None]:
    tracefill.install(only=["kombu"])
    yield
    tracefill.uninstall()


def handle(connection: Any, queue: Any, callback: Callable[[Any, Any], Any]) -> None:
    """Has one message handled by a callback."""
    seen: list[Any] = []

    def on_message(body: Any, message: Any) -> None:
        seen.append(body)
        callback(body, message)

    deadline = time.monotonic() + DEADLINE_S
    with Consumer(connection.channel(), [queue], callbacks=[on_message], no_ack=True, prefetch_count=1):
        while not seen and time.monotonic() < deadline:
            with contextlib.suppress(socket.timeout):
                connection.drain_events(timeout=1)
    assert seen


def nothing(body: Any, message: Any) -> None:
    pass


class TestPatches(PatchContract):
    name = "kombu"

    def owners(self) -> list[Any]:
        return [Producer, Consumer, Queue, SimpleBase, kombu.common, Hub]


class TestBoundary(BoundaryContract):
    name = "kombu"
    spans_between = 2  # send, process

    @pytest.fixture(autouse=True)
    def _with(self, connection: Any, queue: Any) -> None:
        self.connection, self.queue = connection, queue

    def cross(self, work: Callable[[], Any]) -> None:
        Producer(self.connection).publish({"order": 7}, routing_key=self.queue.name)
        self.receive(work)

    def receive(self, work: Callable[[], Any]) -> None:
        handle(self.connection, self.queue, lambda body, message: work())


class TestBoundaryOfOnMessage(TestBoundary):
    def receive(self, work: Callable[[], Any]) -> None:
        with Consumer(self.connection.channel(), [self.queue], on_message=lambda message: work(), no_ack=True):
            self.connection.drain_events(timeout=DEADLINE_S)


class TestBoundaryOfGet(TestBoundary):
    def receive(self, work: Callable[[], Any]) -> None:
        message = self.queue.get(no_ack=True)
        assert message is not None
        work()


class TestBoundaryOfSimpleQueue(TestBoundary):
    def receive(self, work: Callable[[], Any]) -> None:
        simple = self.connection.SimpleQueue(self.queue, no_ack=True)
        assert simple.get(timeout=DEADLINE_S).payload == {"order": 7}
        work()
        simple.close()


def test_spans_have_the_standard_names_and_attributes(
    spans: Any, installed: None, connection: Any, queue: Any, rabbitmq: Any
) -> None:
    with tracer.start_as_current_span("near"):
        Producer(connection).publish({}, routing_key=queue.name, message_id="7", correlation_id="c")
    handle(connection, queue, nothing)
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


def test_system_is_that_of_the_transport(spans: Any, installed: None) -> None:
    with Connection("memory://") as connection, connection.SimpleQueue("in-memory") as simple:
        simple.put({})
    assert finished(spans, "send in-memory").attributes["messaging.system"] == "memory"


def test_message_without_context_is_an_entry(spans: Any, connection: Any, queue: Any) -> None:
    Producer(connection).publish({}, routing_key=queue.name)
    tracefill.install(only=["kombu"])
    try:
        handle(connection, queue, nothing)
    finally:
        tracefill.uninstall()
    span = finished(spans, f"process {queue.name}")
    assert span.parent is None
    assert span.attributes["tracefill.entry"] is True


def test_old_message_is_linked(spans: Any, installed: None, connection: Any, queue: Any) -> None:
    with tracer.start_as_current_span("near") as near:
        Producer(connection).publish({}, routing_key=queue.name, timestamp=int(time.time()) - 2 * 86_400)
    handle(connection, queue, nothing)
    span = finished(spans, f"process {queue.name}")
    assert span.parent is None
    assert [link.context.trace_id for link in span.links] == [near.get_span_context().trace_id]


def test_exception_of_a_callback_goes_on_and_is_recorded(
    spans: Any, installed: None, connection: Any, queue: Any
) -> None:
    def fail(body: Any, message: Any) -> None:
        raise ValueError("no such order")

    Producer(connection).publish({}, routing_key=queue.name)
    with pytest.raises(ValueError, match="no such order"):
        handle(connection, queue, fail)
    assert not trace.get_current_span().get_span_context().is_valid
    assert finished(spans, f"process {queue.name}").status.description == "ValueError: no such order"


@pytest.mark.parametrize("headers", [None, {}, {"customer": 7, "TraceParent": "old"}])
def test_callers_headers_are_copied(installed: None, connection: Any, queue: Any, headers: Any) -> None:
    given = dict(headers) if headers is not None else None
    for _ in range(3):
        with tracer.start_as_current_span("near") as near:
            Producer(connection).publish({}, routing_key=queue.name, headers=given)
        received = type(queue).get.__wrapped__(queue, no_ack=True)
        assert [name.lower() for name in received.headers].count("traceparent") == 1
        assert f"{near.get_span_context().trace_id:032x}" in received.headers["traceparent"]
    assert given == headers


@pytest.mark.parametrize("value", [b"\xff\xfe", 7, None, ["a"], {"a": 1}])
@pytest.mark.parametrize("name", ["traceparent", "tracestate", "baggage", "b3"])
def test_bad_header_loses_no_message(
    spans: Any, no_log: Any, installed: None, connection: Any, queue: Any, name: str, value: Any
) -> None:
    bodies: list[Any] = []
    with suppress_instrumentation():
        Producer(connection).publish({"order": 7}, routing_key=queue.name, headers={name: value})
    handle(connection, queue, lambda body, message: bodies.append(body))
    assert bodies == [{"order": 7}]
    assert finished(spans, f"process {queue.name}").parent is None


def test_attempts_are_counted(spans: Any, installed: None, connection: Any, queue: Any) -> None:
    retry = declared(connection, f"{queue.name}.retry")

    def again(body: Any, message: Any) -> None:
        Producer(connection).publish(body, routing_key=retry.name, headers=message.headers)

    def handle_one(of: Any, callback: Callable[[Any, Any], Any]) -> None:
        message = of.get(no_ack=True)
        callback(message.payload, message)

    Producer(connection).publish({"order": 7}, routing_key=queue.name)
    handle_one(queue, again)
    handle_one(retry, again)
    handle_one(retry, nothing)
    processed = sorted(
        (span for span in spans.get_finished_spans() if span.name.startswith("process ")),
        key=lambda span: span.start_time,
    )
    assert [span.attributes.get("tracefill.message.attempt") for span in processed] == [None, 2, 3]
    assert processed[-1].attributes["tracefill.message.original_destination"] == queue.name


class TestOnMessage:
    def test_is_what_was_set(self, installed: None, connection: Any, queue: Any) -> None:
        def on_message(message: Any) -> None: ...

        consumer = Consumer(connection.channel(), [queue], on_message=on_message)
        consumer.on_message = consumer.on_message  # a wrapper of ours is not wrapped again
        assert vars(consumer)["on_message"] is on_message
        tracefill.uninstall()
        assert consumer.on_message is on_message

    def test_is_none_where_it_was_not_set(self, installed: None, connection: Any, queue: Any) -> None:
        assert Consumer(connection.channel(), [queue]).on_message is None


class TestVerbs:
    """Without install()."""

    def test_inject_and_process(self, spans: Any, connection: Any, queue: Any) -> None:
        given = {"customer": 7}
        with tracer.start_as_current_span("near"):
            Producer(connection).publish({}, routing_key=queue.name, headers=integration.inject(given))
        message = queue.get(no_ack=True)
        assert given == {"customer": 7}
        assert trace.get_current_span(integration.extract(message)).get_span_context().is_valid
        with integration.process(message):
            tracer.start_span("far").end()
        assert ancestors(spans, finished(spans, "far")) == [f"process {queue.name}", "near"]


class TestCelery:
    def test_its_own_traffic_has_no_span_of_ours(self, spans: Any, installed: None, rabbitmq: Any) -> None:
        from celery import Celery
        from celery.contrib.testing.worker import start_worker

        app = Celery(f"app{uuid.uuid4().hex[:8]}", broker=f"amqp://guest:guest@{rabbitmq.address}//", backend="rpc://")
        app.conf.update(task_default_queue=f"tasks-{uuid.uuid4().hex[:12]}", worker_hijack_root_logger=False)

        @app.task  # type: ignore[untyped-decorator]
        def double(number: int) -> int:
            return 2 * number

        with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=DEADLINE_S):
            assert double.delay(21).get(timeout=DEADLINE_S) == 42
            assert app.control.inspect(timeout=1).ping()
        assert [span.name for span in spans.get_finished_spans()] == []

    def test_a_program_of_the_users_that_uses_its_producer_has(
        self, spans: Any, installed: None, rabbitmq: Any, connection: Any, queue: Any
    ) -> None:
        from celery import Celery

        app = Celery("app", broker=f"amqp://guest:guest@{rabbitmq.address}//")
        with app.producer_pool.acquire(block=True) as producer:
            producer.publish({"order": 7}, exchange="", routing_key=queue.name)
        finished(spans, f"send {queue.name}")
        app.close()
