from __future__ import annotations

from typing import Any

import pytest
import redis
import redis.asyncio.client
import redis.client
import redis.commands.core
from opentelemetry.context import Context
from opentelemetry.trace import get_current_span

import tracefill
from tests.contracts import PatchContract, tracer
from tracefill.handoff import carried


class TestPatches(PatchContract):
    name = "redis_queues"

    def owners(self) -> list[Any]:
        return [
            redis.commands.core.StreamCommands,
            redis.commands.core.PubSubCommands,
            redis.client.PubSub,
            redis.asyncio.client.PubSub,
        ]


@pytest.fixture(autouse=True)
def _nothing_was_taken_before() -> Any:
    """What was taken last stays current, so each test begins afresh."""
    with tracefill.context.scope(Context()):
        carried._noted.set(None)
        yield
    carried._noted.set(None)


@pytest.fixture
def client(redis_server: Any, spans: Any) -> Any:
    tracefill.install(only=["redis_queues"])
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        yield client
    tracefill.uninstall()


def add(client: Any, *names: str) -> list[int]:
    """One entry of each near span's; the ids of their traces."""
    traces = []
    for name in names:
        with tracer.start_as_current_span(name) as near:
            client.xadd("orders", {"name": name})
            traces.append(near.get_span_context().trace_id)
    return traces


def here() -> int:
    return get_current_span().get_span_context().trace_id


def test_the_program_sees_the_entries_as_they_were(client: Any) -> None:
    fields = {"name": "a"}
    with tracer.start_as_current_span("near"):
        entry_id = client.xadd("orders", fields)
    assert fields == {"name": "a"}
    entry = (entry_id, {b"name": b"a"})
    assert client.xrange("orders") == client.xrevrange("orders") == [entry]
    assert client.xread({"orders": 0}) == [[b"orders", [entry]]]


def test_each_entry_is_handled_in_its_own_trace(client: Any) -> None:
    traces = add(client, "a", "b", "c")
    seen = []
    ((_, entries),) = client.xread({"orders": 0})
    for _ in entries:
        seen.append(here())
    assert seen == traces
    assert here() == 0
    assert entries[1] in entries
    assert here() == traces[1]
    assert [*entries[2:]] == entries[2:]
    assert not client.xread({"orders": entries[2][0]})
    assert here() == 0


def test_an_entry_of_nobody_and_one_with_a_strange_field_bring_nothing(client: Any) -> None:
    client.xadd("orders", {"name": "nobody"})
    client.xadd("orders", {"name": "stranger", "tracefill": "{no json"})
    ((_, entries),) = client.xread({"orders": 0})
    assert [here() for _ in entries] == [0, 0]


def test_a_pipeline_adds_with_the_context_too(client: Any) -> None:
    with tracer.start_as_current_span("near") as near, client.pipeline() as pipeline:
        pipeline.xadd("orders", {"name": "a"}).xlen("orders")
        assert pipeline.execute()[1] == 1
    ((_, entries),) = client.xread({"orders": 0})
    assert [here() for _ in entries] == [near.get_span_context().trace_id]
    with client.pipeline() as pipeline:
        assert pipeline.xread({"orders": 0}) is pipeline


def test_a_span_of_the_readers_own_is_kept(client: Any) -> None:
    add(client, "a")
    with tracer.start_as_current_span("own") as own:
        ((_, entries),) = client.xread({"orders": 0})
        for _ in entries:
            assert get_current_span() is own


def test_a_subscriber_without_tracefill_sees_the_message_alone(client: Any) -> None:
    tracefill.uninstall()
    with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe("orders")
        pubsub.get_message(timeout=5)
        tracefill.install(only=["redis_queues"])
        with tracer.start_as_current_span("near"):
            assert client.publish("orders", "a book") == 1
        tracefill.uninstall()
        assert pubsub.get_message(timeout=5)["data"] == b"a book"
        assert pubsub.get_message(timeout=0.05) is None


def test_messages_of_somebody_without_tracefill_bring_nothing(client: Any) -> None:
    with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe("orders")
        pubsub.get_message(timeout=5)
        with tracer.start_as_current_span("near"), client.pipeline() as pipeline:
            pipeline.publish("orders", "a").publish("orders", "b").execute()
        assert pubsub.get_message(timeout=5)["data"] == b"a"
        assert here() == 0


def test_the_library_keeps_its_books_as_before(client: Any) -> None:
    with client.pubsub() as pubsub:
        pubsub.subscribe("orders", sales=print)
        pubsub.psubscribe("order*")
        assert set(pubsub.channels) == {b"orders", b"sales"}
        assert [pubsub.get_message(timeout=5)["channel"] for _ in range(3)] == [b"orders", b"sales", b"order*"]
        pubsub.unsubscribe()
        pubsub.punsubscribe()
        assert {pubsub.get_message(timeout=5)["type"] for _ in range(3)} == {"unsubscribe", "punsubscribe"}
        assert not pubsub.subscribed
        assert list(pubsub.listen()) == []


def test_what_is_unsubscribed_is_heard_no_more(client: Any) -> None:
    with client.pubsub() as pubsub:
        pubsub.subscribe("orders", "sales")
        pubsub.unsubscribe("orders")
        assert [pubsub.get_message(timeout=5)["type"] for _ in range(3)] == ["subscribe", "subscribe", "unsubscribe"]
        assert set(client.pubsub_channels()) == {b"sales", b"tracefill:sales"}


def test_a_subscriber_whose_connection_breaks_is_given_the_contexts_again(client: Any) -> None:
    with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe("orders")
        pubsub.get_message(timeout=5)
        pubsub.connection.disconnect()
        pubsub.get_message(timeout=1)
        with tracer.start_as_current_span("near") as near:
            client.publish("orders", "a")
        while pubsub.get_message(timeout=5) is None:
            pass
        assert here() == near.get_span_context().trace_id
