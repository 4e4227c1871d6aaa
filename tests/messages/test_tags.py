"""Business tags in messages of RabbitMQ and in jobs; those of Kafka are in kafka_contract.py."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pika
import pytest
from kombu import Connection, Exchange, Queue

import tracefill
from tests.contracts import finished, tracer
from tracefill import tags
from tracefill.jobs.job_spans import Job, carried, running
from tracefill.messages.message_spans import trace_headers
from tracefill.spans import Tracer


@pytest.fixture(autouse=True)
def _declared() -> Iterator[None]:
    tags.declare(
        tags.Tag("tenant_id", header="x-tenant-id"),
        tags.Tag("order_no", baggage=True),
        tags.Tag("secret", header="x-secret", baggage=True, hosts=["*.shop.example"]),
    )
    yield
    tags.forget()


VALUES = {"tenant_id": "blue", "order_no": "7", "secret": "hidden"}
SEEN = {"tenant_id": "blue", "order_no": "7"}


def test_message_of_rabbitmq_brings_its_tags(spans: Any, rabbitmq: Any) -> None:
    given = {"customer": 7}
    seen: list[Any] = []

    def handle(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        seen.append((tags.current(), properties.headers))
        channel.stop_consuming()

    tracefill.install(only=["pika"])
    try:
        with pika.BlockingConnection(pika.URLParameters(rabbitmq.url)) as connection:
            channel = connection.channel()
            queue = channel.queue_declare(f"orders-{uuid.uuid4().hex[:12]}", auto_delete=True).method.queue
            with tags.scope(**VALUES):
                channel.basic_publish("", queue, b"x", pika.BasicProperties(headers=given))
            channel.basic_consume(queue, handle, auto_ack=True)
            channel.start_consuming()
    finally:
        tracefill.uninstall()
    [(current, headers)] = seen
    assert current == SEEN
    assert (headers["x-tenant-id"], headers["baggage"], headers["customer"]) == ("blue", "order_no=7", 7)
    assert "x-secret" not in headers
    assert given == {"customer": 7}
    assert SEEN.items() <= dict(finished(spans, f"process {queue}").attributes).items()


def test_message_of_kombu_brings_its_tags(spans: Any) -> None:
    seen: list[Any] = []

    def handle(body: Any, message: Any) -> None:
        seen.append(tags.current())
        message.ack()

    tracefill.install(only=["kombu"])
    try:
        queue = Queue(uuid.uuid4().hex, Exchange("orders"), routing_key="orders")
        with Connection("memory://") as connection:
            with tags.scope(**VALUES):
                connection.Producer().publish({}, exchange=queue.exchange, routing_key="orders", declare=[queue])
            with connection.Consumer(queue, callbacks=[handle], accept=["json"]):
                connection.drain_events(timeout=10)
    finally:
        tracefill.uninstall()
    assert seen == [SEEN]


def test_job_brings_its_tags(spans: Any) -> None:
    with tags.scope(**VALUES), tracer.start_as_current_span("near"):
        headers = carried()
    assert headers["x-tenant-id"] == "blue"
    assert "x-secret" not in headers
    with running(Tracer("tests"), Job("queue", "send_mail"), headers):
        assert tags.current() == SEEN
    assert SEEN.items() <= dict(finished(spans, "run send_mail").attributes).items()


def test_value_that_a_tag_can_not_have_is_not_taken(spans: Any) -> None:
    with running(Tracer("tests"), Job("queue", "send_mail"), {"x-tenant-id": "two words"}):
        assert tags.current() == {}
    assert "tenant_id" not in finished(spans, "run send_mail").attributes


def test_without_a_declaration_nothing_is_added() -> None:
    with tags.scope(**VALUES), tracer.start_as_current_span("near"):
        tags.forget()
        assert list(trace_headers(None)) == ["traceparent"]
        assert set(carried()) == {"traceparent", "tracefill-sent-ms"}
