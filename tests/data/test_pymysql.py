from __future__ import annotations

from typing import Any

import pymysql
import pymysql.cursors
import pytest
from opentelemetry.instrumentation.pymysql import PyMySQLInstrumentor

from tests.data.driver_contract import DriverContract, only, seen


class TestPyMySQL(DriverContract):
    name = "pymysql"
    system = "mariadb"
    contrib = PyMySQLInstrumentor
    failing = ("select 'secret' from nowhere", "1146")

    @pytest.fixture(autouse=True)
    def _server(self, mariadb: Any, _where_it_runs: None) -> None:
        self.server = mariadb

    def owners(self) -> list[Any]:
        return [pymysql.cursors.Cursor]

    def connect(self) -> Any:
        server = self.server
        return pymysql.connect(
            host=server.host, port=server.port, user=server.username, password=server.password, database=server.database
        )

    @pytest.mark.parametrize("kind", ["DictCursor", "SSCursor", "SSDictCursor"])
    def test_cursors_of_other_classes(self, kind: str, connection: Any, spans: Any) -> None:
        cursor = connection.cursor(getattr(pymysql.cursors, kind))
        spans.clear()
        cursor.execute("select 1 as a union select 2")
        assert len(cursor.fetchall()) == 2
        assert only(spans).attributes["db.query.text"] == "select ? as a union select ?"
        assert only(spans).attributes.get("db.response.returned_rows") == (None if kind.startswith("SS") else 2)

    def test_what_is_sent_to_connect_is_no_statement(self, installed: None, spans: Any) -> None:
        server = self.server
        where = {"host": server.host, "port": server.port, "user": server.username, "database": server.database}
        pymysql.connect(**where, init_command="set @a = 17", sql_mode="ANSI").close()
        assert seen(spans) == []

    def test_callproc_is_one_statement(self, connection: Any, spans: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("create or replace procedure twice (n integer) select 2 * n")
        spans.clear()
        cursor.callproc("twice", (21,))
        assert cursor.fetchall() == ((42,),)
        assert only(spans).name == "CALL twice"
