from __future__ import annotations

import io
from typing import Any

import psycopg2
import psycopg2.extras
import pytest
from opentelemetry.instrumentation.psycopg2 import Psycopg2Instrumentor
from psycopg2 import sql

from tests.data.driver_contract import DriverContract, only, seen


class TestPsycopg2(DriverContract):
    name = "psycopg2"
    system = "postgresql"
    contrib = Psycopg2Instrumentor
    failing = ("select 'secret' from nowhere", "42P01")

    @pytest.fixture(autouse=True)
    def _server(self, postgres: Any, _where_it_runs: None) -> None:
        self.server = postgres

    def owners(self) -> list[Any]:
        return [psycopg2.extensions.cursor]

    def connect(self) -> Any:
        return psycopg2.connect(self.server.url)

    def test_server_side_cursor_is_one_statement(self, connection: Any, spans: Any) -> None:
        cursor = connection.cursor("named")
        cursor.execute("select generate_series(1, 100)")
        assert len(list(cursor)) == 100
        assert only(spans).name == "SELECT"

    @pytest.mark.parametrize(
        "copy",
        [
            lambda cursor: cursor.copy_expert("copy numbers from stdin", io.StringIO("1\n2\n")),
            lambda cursor: cursor.copy_from(io.StringIO("1\n2\n"), "numbers"),
            lambda cursor: cursor.copy_from(file=io.StringIO("1\n2\n"), table="numbers", columns=["a"]),
        ],
    )
    def test_copy_is_a_statement(self, copy: Any, connection: Any, spans: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("create temporary table numbers (a integer)")
        spans.clear()
        copy(cursor)
        assert only(spans).name == "COPY numbers"
        spans.clear()
        out = io.StringIO()
        cursor.copy_to(out, "numbers")
        assert out.getvalue() == "1\n2\n"
        assert only(spans).attributes["db.query.text"] == "COPY numbers TO STDOUT"

    def test_cursors_of_other_classes_and_composed_statements(self, connection: Any, spans: Any) -> None:
        for factory in (psycopg2.extras.DictCursor, psycopg2.extras.RealDictCursor, psycopg2.extras.NamedTupleCursor):
            cursor = connection.cursor(cursor_factory=factory)
            spans.clear()
            cursor.execute(sql.SQL("select {} as {}").format(sql.Literal("secret"), sql.Identifier("a")))
            assert len(cursor.fetchall()) == 1
            assert only(spans).attributes["db.query.text"] == 'select ? as "a"'
            assert only(spans).attributes["db.response.returned_rows"] == 1

    def test_callproc_and_execute_values(self, connection: Any, spans: Any) -> None:
        cursor = connection.cursor()
        cursor.callproc("upper", ("secret",))
        assert cursor.fetchone() == ("SECRET",)
        assert only(spans).name == "CALL upper"
        cursor.execute("create temporary table numbers (a text)")
        spans.clear()
        psycopg2.extras.execute_values(cursor, "insert into numbers values %s", [("secret",), ("secret2",)])
        assert only(spans).attributes["db.query.text"] == "insert into numbers values (?),(?)"

    def test_closed_connection_fails_as_it_would_have(self, connection: Any, spans: Any) -> None:
        cursor = connection.cursor()
        connection.close()
        with pytest.raises(psycopg2.InterfaceError, match="closed"):
            cursor.execute("select 1")
        assert len(seen(spans)) == 1
