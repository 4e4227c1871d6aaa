from __future__ import annotations

from typing import Any

import psycopg
import pytest
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.trace import StatusCode
from psycopg import sql

from tests.data.driver_contract import DriverContract, only, seen, tracer


class TestPsycopg(DriverContract):
    name = "psycopg"
    system = "postgresql"
    contrib = PsycopgInstrumentor
    failing = ("select 'secret' from nowhere", "42P01")

    @pytest.fixture(autouse=True)
    def _server(self, postgres: Any, _where_it_runs: None) -> None:
        self.server = postgres

    def owners(self) -> list[Any]:
        return [psycopg.Cursor, psycopg.ServerCursor, psycopg.AsyncCursor, psycopg.AsyncServerCursor]

    def connect(self) -> Any:
        return psycopg.connect(self.server.url)

    def test_shortcut_of_a_connection_is_one_statement(self, connection: Any, spans: Any) -> None:
        assert connection.execute("select 17").fetchone() == (17,)
        assert only(spans).attributes["db.response.returned_rows"] == 1

    def test_server_side_cursor_is_one_statement(self, connection: Any, spans: Any) -> None:
        with connection.cursor("named") as cursor:
            cursor.execute("select generate_series(1, 100)")
            assert len(list(cursor)) == 100
        assert only(spans).name == "SELECT"

    @pytest.mark.parametrize("query", [b"select 'secret'", sql.SQL("select {}").format(sql.Literal("secret"))])
    def test_statements_that_are_no_text(self, query: Any, connection: Any, spans: Any) -> None:
        connection.execute(query)
        assert only(spans).attributes["db.query.text"] == "select ?"

    def test_copy_lasts_from_beginning_to_end_and_is_never_current(self, connection: Any, spans: Any) -> None:
        cursor = connection.execute("create temporary table numbers (a integer)")
        spans.clear()
        with tracer.start_as_current_span("near") as near:
            with cursor.copy("copy numbers from stdin") as copy:
                with tracer.start_as_current_span("between"):
                    copy.write("1\n2\n")
            with cursor.copy("copy numbers to stdout") as copy:
                assert [row for row in copy.rows()] == [("1",), ("2",)]
        by_name = {span.name: span for span in spans.get_finished_spans() if span.name != "COPY numbers"}
        assert by_name["between"].parent.span_id == near.get_span_context().span_id
        first, second = seen(spans)
        assert first.parent.span_id == second.parent.span_id == near.get_span_context().span_id
        assert first.start_time < by_name["between"].start_time < by_name["between"].end_time < first.end_time
        assert first.name == "COPY numbers"

    def test_copy_that_fails_is_an_error(self, connection: Any, spans: Any) -> None:
        with pytest.raises(ZeroDivisionError), connection.cursor().copy("copy (select 1) to stdout"):
            raise ZeroDivisionError
        with pytest.raises(psycopg.errors.UndefinedTable), connection.cursor().copy("copy nowhere to stdout"):
            pass
        assert [span.status.status_code for span in seen(spans)] == [StatusCode.ERROR] * 2
        assert [span.attributes["error.type"] for span in seen(spans)] == ["ZeroDivisionError", "42P01"]

    def test_stream_belongs_to_whoever_asked_for_it(self, connection: Any, spans: Any) -> None:
        cursor = connection.cursor()
        with tracer.start_as_current_span("near") as near:
            rows = cursor.stream("select generate_series(1, 3)")
        with tracer.start_as_current_span("other") as other:
            for _ in rows:
                with tracer.start_as_current_span("between"):
                    pass
        assert only(spans).parent.span_id == near.get_span_context().span_id
        between = [span for span in spans.get_finished_spans() if span.name == "between"]
        assert [span.parent.span_id for span in between] == [other.get_span_context().span_id] * 3

    def test_abandoned_stream_ends_its_span(self, connection: Any, spans: Any) -> None:
        rows = connection.cursor().stream("select generate_series(1, 300)")
        next(rows)
        assert seen(spans) == []
        rows.close()
        assert only(spans).status.status_code is StatusCode.UNSET
        assert connection.execute("select 1").fetchone() == (1,)

    def test_pipeline(self, connection: Any, spans: Any) -> None:
        with connection.pipeline():
            first, second = connection.execute("select 1"), connection.execute("select 2")
        assert (first.fetchone(), second.fetchone()) == ((1,), (2,))
        assert len(seen(spans)) == 2


class TestAsync:
    @pytest.fixture
    async def connection(self, postgres: Any, spans: Any) -> Any:
        import tracefill

        tracefill.install(only=["psycopg"])
        async with await psycopg.AsyncConnection.connect(postgres.url) as connection:
            spans.clear()
            yield connection
        tracefill.uninstall()

    async def test_statements_are_client_spans_of_the_caller(self, connection: Any, spans: Any, no_log: Any) -> None:
        with tracer.start_as_current_span("near") as near:
            await connection.execute("create temporary table numbers (a integer)")
            cursor = connection.cursor()
            await cursor.executemany("insert into numbers values (%s)", [(1,), (2,)])
            await cursor.execute("select a from numbers")
            assert await cursor.fetchall() == [(1,), (2,)]
            async with cursor.copy("copy numbers from stdin") as copy:
                await copy.write("3\n")
            assert [row async for row in cursor.stream("select max(a) from numbers")] == [(3,)]
            async with connection.cursor("named") as named:
                await named.execute("select a from numbers")
                assert len([row async for row in named]) == 3
        assert [span.name for span in seen(spans)] == [
            "CREATE numbers",
            "INSERT numbers",
            "SELECT numbers",
            "COPY numbers",
            "SELECT numbers",
            "SELECT numbers",
        ]
        assert {span.parent.span_id for span in seen(spans)} == {near.get_span_context().span_id}

    async def test_abandoned_stream_ends_its_span(self, connection: Any, spans: Any) -> None:
        rows = connection.cursor().stream("select generate_series(1, 300)")
        await anext(rows)
        await rows.aclose()
        assert only(spans).status.status_code is StatusCode.UNSET
