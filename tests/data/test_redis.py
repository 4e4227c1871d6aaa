from __future__ import annotations

from typing import Any

import pytest
import redis
import redis.asyncio
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.trace import StatusCode

import tracefill
from tests.contracts import PatchContract
from tests.data.driver_contract import only, seen, tracer
from tracefill.data import statements


class TestRedis(PatchContract):
    name = "redis"

    def owners(self) -> list[Any]:
        return [
            redis.Redis,
            redis.client.Pipeline,
            redis.asyncio.Redis,
            redis.asyncio.client.Pipeline,
            redis.cluster.RedisCluster,
            redis.cluster.ClusterPipeline,
            redis.asyncio.cluster.RedisCluster,
            redis.asyncio.cluster.ClusterPipeline,
        ]


@pytest.fixture
def installed(spans: Any) -> Any:
    tracefill.install(only=["redis"])
    yield
    tracefill.uninstall()


@pytest.fixture
def client(redis_server: Any) -> Any:
    with redis.Redis.from_url(redis_server.url) as client:
        yield client


def test_command_is_a_client_span_without_keys_and_values(
    client: Any, redis_server: Any, installed: None, spans: Any, no_log: Any
) -> None:
    with tracer.start_as_current_span("near") as near:
        client.set("order:secret", "secret", ex=60)
        assert client.get("order:secret") == b"secret"
        client.client_setname("shop")
    assert [span.name for span in seen(spans)] == ["SET", "GET", "CLIENT SETNAME"]
    assert {span.parent.span_id for span in seen(spans)} == {near.get_span_context().span_id}
    attributes = dict(seen(spans)[0].attributes)
    assert attributes == {
        "db.system.name": "redis",
        "db.namespace": "0",
        "db.query.text": "SET ? ? ? ?",
        "db.query.summary": "SET",
        "db.operation.name": "SET",
        "server.address": redis_server.host,
        "server.port": redis_server.port,
    }


def test_pipeline_is_one_span(client: Any, installed: None, spans: Any) -> None:
    with client.pipeline() as pipeline:
        pipeline.set("a", 1).get("a").set("b", 2)
        assert seen(spans) == []
        assert pipeline.execute() == [True, b"1", True]
    assert only(spans).name == "PIPELINE"
    assert only(spans).attributes["db.query.text"] == "SET ? ?; GET ?; SET ? ?"
    assert only(spans).attributes["db.operation.batch.size"] == 3


def test_event_form_makes_one_event_of_the_callers_span(client: Any, installed: None, spans: Any) -> None:
    statements.configure(form="event")
    try:
        with tracer.start_as_current_span("near"):
            client.set("a", "secret")
            client.pipeline().get("a").get("a").execute()
        client.get("a")  # on no span
    finally:
        statements.configure()
    (near,) = spans.get_finished_spans()
    assert [event.name for event in near.events] == ["db.query"] * 2
    command, pipeline = (event.attributes for event in near.events)
    assert command["db.query.text"] == "SET ? ?"
    assert command["db.system.name"] == "redis"
    assert command["db.client.operation.duration_ns"] > 0
    assert pipeline["db.operation.batch.size"] == 2


def test_text_is_bounded(client: Any, installed: None, spans: Any) -> None:
    client.mset({f"key{n}": n for n in range(1000)})
    pipeline = client.pipeline()
    for _ in range(1000):
        pipeline.get("a")
    pipeline.execute()
    assert [span.attributes["db.query.text"].count("?") for span in seen(spans)] == [16, 16]
    assert seen(spans)[1].attributes["db.operation.batch.size"] == 1000


def test_command_that_was_written_in_one_str(client: Any, installed: None, spans: Any) -> None:
    client.execute_command("SET a secret")
    client.execute_command("CLIENT SETNAME secret")
    assert [span.attributes["db.query.text"] for span in seen(spans)] == ["SET ? ?", "CLIENT SETNAME ?"]
    with pytest.raises(Exception, match="index out of range"):
        client.execute_command()


def test_pipeline_that_watches(client: Any, installed: None, spans: Any) -> None:
    client.set("a", 1)
    spans.clear()

    def more(pipeline: Any) -> None:
        before = int(pipeline.get("a"))
        pipeline.multi()
        pipeline.set("a", before + 1)

    client.transaction(more, "a")
    assert client.get("a") == b"2"
    assert [span.name for span in seen(spans)] == ["WATCH", "GET", "SET", "GET"]


def test_error_of_the_server_goes_on_untouched(client: Any, installed: None, spans: Any) -> None:
    client.set("a", "text")
    spans.clear()
    with pytest.raises(redis.ResponseError, match=r"WRONGTYPE|wrong kind"):
        client.lpush("a", 1)
    assert only(spans).status.status_code is StatusCode.ERROR
    assert only(spans).attributes["error.type"] == "ResponseError"


async def test_async_commands_and_pipelines(redis_server: Any, installed: None, spans: Any, no_log: Any) -> None:
    async with redis.asyncio.Redis.from_url(redis_server.url) as client:
        with tracer.start_as_current_span("near") as near:
            await client.set("a", 1)
            async with client.pipeline() as pipeline:
                assert await pipeline.get("a").get("a").execute() == [b"1", b"1"]
    assert [span.name for span in seen(spans)] == ["SET", "PIPELINE GET"]
    assert {span.parent.span_id for span in seen(spans)} == {near.get_span_context().span_id}


@pytest.mark.parametrize("ours_first", [True, False])
def test_one_span_beside_contrib_whoever_comes_first(ours_first: bool, client: Any, spans: Any, no_log: Any) -> None:
    if ours_first:
        tracefill.install(only=["redis"])
    RedisInstrumentor().instrument()
    tracefill.install(only=["redis"])
    try:
        client.get("a")
        client.pipeline().get("a").execute()
        assert [span.instrumentation_scope.name for span in seen(spans)] == ["opentelemetry.instrumentation.redis"] * 2
    finally:
        tracefill.uninstall()
        RedisInstrumentor().uninstrument()
