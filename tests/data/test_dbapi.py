from __future__ import annotations

import contextlib
import sqlite3
from typing import Any

import psycopg2
import pymysql
import pytest

from tests.data.driver_contract import only, seen, tracer
from tracefill.data.dbapi import trace


@pytest.fixture(params=["sqlite3", "psycopg2", "pymysql"])
def connection(request: Any) -> Any:
    if request.param == "sqlite3":
        opened: Any = sqlite3.connect(":memory:")
    elif request.param == "psycopg2":
        opened = psycopg2.connect(request.getfixturevalue("postgres").url)
    else:
        server = request.getfixturevalue("mariadb")
        opened = pymysql.connect(host=server.host, port=server.port, user=server.username, database=server.database)
    with contextlib.closing(opened):
        yield trace(opened)


def test_statements_of_any_driver_are_spans_of_the_caller(connection: Any, spans: Any) -> None:
    with tracer.start_as_current_span("near") as near:
        cursor = connection.cursor()
        cursor.execute("create temporary table t (a integer)")
        mark = "?" if isinstance(connection, sqlite3.Connection) else "%s"
        cursor.executemany(f"insert into t values ({mark})", [(1,), (2,)])
        cursor.execute("select a from t")
        assert [tuple(row) for row in cursor] == [(1,), (2,)]
    assert [span.name for span in seen(spans)] == ["CREATE t", "INSERT t", "SELECT t"]
    assert {span.parent.span_id for span in seen(spans)} == {near.get_span_context().span_id}
    assert seen(spans)[0].attributes["db.system.name"] in ("sqlite", "postgresql", "mysql")


def test_proxy_passes_for_the_connection(connection: Any) -> None:
    kinds = (sqlite3.Connection, psycopg2.extensions.connection, pymysql.connections.Connection)
    assert isinstance(connection, kinds)
    cursor = connection.cursor()
    assert cursor.connection is not None
    cursor.arraysize = 7
    assert cursor.arraysize == 7
    with pytest.raises(AttributeError, match="nothing"):
        connection.nothing  # noqa: B018


def test_shortcuts_and_with_blocks_of_a_connection(spans: Any) -> None:
    opened = sqlite3.connect(":memory:")
    with trace(opened, db_namespace="shop", server_port=17) as connection:
        assert connection.execute("select 17").fetchone() == (17,)
        assert connection.execute("select 17").execute("select 18").fetchone() == (18,)
        connection.executescript("create table t (a); create table u (a)")
    assert len(seen(spans)) == 4
    assert seen(spans)[0].attributes["db.namespace"] == "shop"
    assert seen(spans)[0].attributes["server.port"] == 17
    opened.close()


def test_proxy_beside_install_makes_one_span(spans: Any) -> None:
    import tracefill

    tracefill.install(only=["sqlite3"])
    try:
        trace(sqlite3.connect(":memory:")).execute("select 1")
    finally:
        tracefill.uninstall()
    assert only(spans).instrumentation_scope.name == "tracefill.data.dbapi"


def test_procedure_is_called(mariadb: Any, spans: Any) -> None:
    opened = pymysql.connect(host=mariadb.host, port=mariadb.port, user=mariadb.username, database=mariadb.database)
    with contextlib.closing(opened):
        opened.cursor().execute("create or replace procedure thrice (n integer) select 3 * n")
        cursor = trace(opened).cursor()
        cursor.callproc("thrice", (14,))
        assert cursor.fetchall() == ((42,),)
    assert only(spans).name == "CALL thrice"


def test_unknown_driver_is_some_database(spans: Any) -> None:
    class Cursor:
        description = None
        rowcount = -1

        def execute(self, sql: str) -> None:
            raise ConnectionError(sql)

        def fetchone(self) -> None:
            pass

    class Connection:
        def cursor(self) -> Cursor:
            return Cursor()

    with pytest.raises(ConnectionError, match="select 1"):
        trace(Connection()).cursor().execute("select 1")
    assert only(spans).attributes["db.system.name"] == "other_sql"
    assert only(spans).attributes["error.type"] == "ConnectionError"
