from __future__ import annotations

import asyncio
from typing import Any

import aiosqlite
import pytest
from opentelemetry.instrumentation.sqlite3 import SQLite3Instrumentor

import tracefill
from tests.contracts import PatchContract
from tests.data.driver_contract import only, seen, tracer


class TestAiosqlite(PatchContract):
    name = "aiosqlite"

    def owners(self) -> list[Any]:
        return [aiosqlite.core.Connection]


@pytest.fixture
async def connection(spans: Any) -> Any:
    async with aiosqlite.connect(":memory:") as connection:  # before install
        tracefill.install(only=["aiosqlite", "sqlite3"])
        yield connection
        tracefill.uninstall()


async def test_statements_are_spans_of_whoever_awaits_them(connection: Any, spans: Any, no_log: Any) -> None:
    with tracer.start_as_current_span("near") as near:
        await connection.execute("create table t (a)")
        await connection.executemany("insert into t values (?)", [(1,), (2,)])
        await connection.executescript("update t set a = a")
        cursor = await connection.cursor()
        await cursor.execute("select a from t")
        assert list(await cursor.fetchall()) == [(1,), (2,)]
        async with connection.execute("select a from t") as rows:
            assert len([row async for row in rows]) == 2
        await connection.execute_fetchall("select 1")
        await connection.commit()
    assert [span.name for span in seen(spans)] == [
        "CREATE t",
        "INSERT t",
        "UPDATE t",
        "SELECT t",
        "SELECT t",
        "SELECT",
    ]
    assert {span.parent.span_id for span in seen(spans)} == {near.get_span_context().span_id}


async def test_jobs_that_share_a_connection_keep_apart(connection: Any, spans: Any) -> None:
    async def request(name: str) -> None:
        with tracer.start_as_current_span(name):
            for _ in range(5):
                await connection.execute(f"select a from (select 1 as a) {name}")

    await asyncio.gather(*(request(f"r{n}") for n in range(5)))
    await connection.execute("select 1")
    by_id = {span.context.span_id: span.name for span in spans.get_finished_spans()}
    *inside, outside = seen(spans)
    assert len(inside) == 25
    assert all(by_id[span.parent.span_id] in span.attributes["db.query.text"] for span in inside)
    assert outside.parent is None


async def test_contribs_span_lands_on_the_chain_too(spans: Any) -> None:
    SQLite3Instrumentor().instrument()
    tracefill.install(only=["aiosqlite", "sqlite3"])
    try:
        async with aiosqlite.connect(":memory:") as connection:
            cursor = await connection.cursor()
            with tracer.start_as_current_span("near") as near:
                await cursor.execute("select 1")
        assert only(spans).instrumentation_scope.name == "opentelemetry.instrumentation.sqlite3"
        assert only(spans).parent.span_id == near.get_span_context().span_id
    finally:
        SQLite3Instrumentor().uninstrument()
        tracefill.uninstall()
