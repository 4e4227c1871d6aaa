from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("MySQLdb")

import MySQLdb.connections  # noqa: E402
import MySQLdb.cursors  # noqa: E402
from opentelemetry.instrumentation.mysqlclient import MySQLClientInstrumentor  # noqa: E402

from tests.data.driver_contract import DriverContract, only  # noqa: E402


class TestMySQLClient(DriverContract):
    name = "mysqlclient"
    system = "mariadb"
    contrib = MySQLClientInstrumentor
    failing = ("select 'secret' from nowhere", "1146")

    @pytest.fixture(autouse=True)
    def _server(self, mariadb: Any, _where_it_runs: None) -> None:
        self.server = mariadb

    def owners(self) -> list[Any]:
        return [MySQLdb.cursors.BaseCursor, MySQLdb.connections.Connection]

    def connect(self) -> Any:
        server = self.server
        return MySQLdb.connect(
            host=server.host, port=server.port, user=server.username, password=server.password, database=server.database
        )

    @pytest.mark.parametrize("kind", ["DictCursor", "SSCursor"])
    def test_cursors_of_other_classes(self, kind: str, connection: Any, spans: Any) -> None:
        cursor = connection.cursor(getattr(MySQLdb.cursors, kind))
        spans.clear()
        cursor.execute("select 1 as a union select 2")
        assert len(cursor.fetchall()) == 2
        assert only(spans).attributes["db.query.text"] == "select ? as a union select ?"

    def test_callproc_is_one_statement(self, connection: Any, spans: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("create or replace procedure twice (n integer) select 2 * n")
        spans.clear()
        cursor.callproc("twice", (21,))
        assert cursor.fetchall() == ((42,),)
        assert only(spans).name == "CALL twice"
