from __future__ import annotations

import io
from typing import Any

import asyncpg
import pytest
from asyncpg.connection import Connection
from asyncpg.cursor import BaseCursor
from asyncpg.prepared_stmt import PreparedStatement
from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor
from opentelemetry.trace import StatusCode

import tracefill
from tests.contracts import PatchContract
from tests.data.driver_contract import only, seen, tracer


class TestAsyncpg(PatchContract):
    name = "asyncpg"

    def owners(self) -> list[Any]:
        return [Connection, BaseCursor, PreparedStatement]


@pytest.fixture
async def opened_before(postgres: Any) -> Any:
    connection = await asyncpg.connect(postgres.url)
    yield connection
    await connection.close()


@pytest.fixture
def connection(opened_before: Any, spans: Any) -> Any:
    tracefill.install(only=["asyncpg"])
    yield opened_before
    tracefill.uninstall()


async def test_every_way_to_run_a_statement_is_one_span(connection: Any, spans: Any, no_log: Any) -> None:
    with tracer.start_as_current_span("near") as near:
        await connection.execute("create temporary table t (a int)")
        await connection.executemany("insert into t values ($1)", [(1,), (2,)])
        assert len(await connection.fetch("select a from t where a > $1", 0)) == 2
        assert await connection.fetchval("select 17") == 17
        assert await connection.fetchrow(query="select 17") == (17,)
        prepared = await connection.prepare("select a from t")
        assert len(await prepared.fetch()) == 2
        await connection.copy_from_table("t", output=io.BytesIO())
        await connection.copy_records_to_table("t", records=[(3,)])
        async with connection.transaction():
            assert len([row async for row in connection.cursor("select a from t")]) == 3
            cursor = await connection.cursor("select a from t")
            assert len(await cursor.fetch(2)) == 2
    names = [span.name for span in seen(spans)]
    assert names == [
        "CREATE t",
        "INSERT t",
        "SELECT t",
        "SELECT",
        "SELECT",
        "SELECT t",
        "COPY t",
        "COPY t",
        "BEGIN",
        "SELECT t",
        "SELECT t",
        "COMMIT",
    ]
    assert {span.parent.span_id for span in seen(spans)} == {near.get_span_context().span_id}
    assert seen(spans)[2].attributes["db.response.returned_rows"] == 2


async def test_rows_of_a_copy_come_from_the_programs_own_code(connection: Any, spans: Any) -> None:
    async def records() -> Any:
        with tracer.start_as_current_span("between"):
            yield (1,)

    await connection.execute("create temporary table t (a int)")
    spans.clear()
    with tracer.start_as_current_span("near") as near:
        assert await connection.copy_records_to_table(table_name="t", records=records()) == "COPY 1"
    parents = {span.name: span.parent for span in spans.get_finished_spans()}
    assert parents["between"].span_id == parents["COPY t"].span_id == near.get_span_context().span_id


async def test_server_is_told(connection: Any, postgres: Any, spans: Any) -> None:
    await connection.fetch("select 1")
    attributes = only(spans).attributes
    assert (attributes["server.address"], attributes["server.port"]) == (postgres.host, postgres.port)
    assert attributes["db.namespace"] == postgres.database


async def test_pool_shows_the_programs_statements_only(connection: Any, postgres: Any, spans: Any) -> None:
    async with asyncpg.create_pool(postgres.url, min_size=1, max_size=1) as pool:
        for _ in range(2):
            assert await pool.fetchval("select 1") == 1
        async with pool.acquire() as acquired:
            await acquired.execute("select 2")
    assert [span.name for span in seen(spans)] == ["SELECT"] * 3


async def test_failure_is_an_error_of_the_span_and_goes_on_untouched(connection: Any, spans: Any) -> None:
    with pytest.raises(asyncpg.UndefinedTableError, match="nowhere"):
        await connection.fetch("select 'secret' from nowhere")
    assert only(spans).status.status_code is StatusCode.ERROR
    assert only(spans).attributes["db.response.status_code"] == "42P01"


@pytest.mark.parametrize("ours_first", [True, False])
async def test_one_span_beside_contrib_whoever_comes_first(
    ours_first: bool, opened_before: Any, spans: Any, no_log: Any
) -> None:
    if ours_first:
        tracefill.install(only=["asyncpg"])
    AsyncPGInstrumentor().instrument()
    tracefill.install(only=["asyncpg"])
    try:
        await opened_before.fetch("select 1")
        assert only(spans).instrumentation_scope.name == "opentelemetry.instrumentation.asyncpg"
        spans.clear()
        await opened_before.copy_from_query("select 1", output=io.BytesIO())
        assert only(spans).instrumentation_scope.name == "tracefill.data.asyncpg"
    finally:
        tracefill.uninstall()
        AsyncPGInstrumentor().uninstrument()
