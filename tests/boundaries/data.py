"""Data layer: every statement is a span (or an event) on the chain of the job that caused it."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from sqlite3 import connect as connect_imported_before
from typing import Any

from tests.boundaries import Program, boundary

CONTRIB = [
    "opentelemetry.instrumentation.sqlite3:SQLite3Instrumentor",
    "opentelemetry.instrumentation.psycopg:PsycopgInstrumentor",
    "opentelemetry.instrumentation.psycopg2:Psycopg2Instrumentor",
    "opentelemetry.instrumentation.pymysql:PyMySQLInstrumentor",
    "opentelemetry.instrumentation.mysqlclient:MySQLClientInstrumentor",
    "opentelemetry.instrumentation.asyncpg:AsyncPGInstrumentor",
    "opentelemetry.instrumentation.redis:RedisInstrumentor",
    "opentelemetry.instrumentation.threading:ThreadingInstrumentor",
]


# --------------------------------------------------------------------------------------------------------------- sqlite3

opened_before = sqlite3.connect(":memory:", check_same_thread=False)
cursor_made_before = opened_before.cursor()


def shop() -> Any:
    return sqlite3.connect(":memory:", check_same_thread=False)


@boundary("db: sqlite3 cursor.execute", statements={"": 1})
def sqlite_cursor(b: Program) -> None:
    cursor = shop().cursor()
    with b.near():
        assert cursor.execute("select 1").fetchall() == [(1,)]


@boundary("db: sqlite3 connection.execute() shortcut", statements={"a": 1, "b": 1})
def sqlite_connection(b: Program) -> None:
    connection = shop()
    for key in "ab":
        with b.near(key):
            connection.execute("select ?", (1,)).fetchall()


@boundary("db: sqlite3 executemany / executescript", statements={"a": 2, "b": 2})
def sqlite_many(b: Program) -> None:
    connection = shop()
    with b.near("a"):
        connection.executescript("create table t (a); create table u (a)")
        connection.executemany("insert into t values (?)", [(1,), (2,)])
    cursor = connection.cursor()
    with b.near("b"):
        cursor.executescript("create table v (a)")
        cursor.executemany("insert into t values (?)", [(1,), (2,)])
    assert [row for row in cursor.connection.cursor().execute("select count(*) from t")] == [(4,)]


@boundary("db: sqlite3 connection and cursor opened before instrument()", statements={"a": 1, "b": 1})
def sqlite_opened_before(b: Program) -> None:
    with b.near("a"):
        opened_before.execute("select 1")
    with b.near("b"):
        cursor_made_before.execute("select 1")


@boundary("db: from sqlite3 import connect before instrument()", statements={"": 2})
def sqlite_imported_before(b: Program) -> None:
    with b.near(), contextlib.closing(connect_imported_before(":memory:")) as connection:
        connection.execute("select 1")
        connection.cursor().execute("select 2")


@boundary("db: sqlite3 in ThreadPoolExecutor / to_thread", statements={"": 2})
async def sqlite_threads(b: Program) -> None:
    connection = shop()
    with ThreadPoolExecutor(1) as pool, b.near():
        pool.submit(connection.execute, "select 1").result()
        await asyncio.to_thread(connection.execute, "select 1")


@boundary("db: sqlite3 in a pool, after the request's scope was closed", statements={"a": 1, "b": 1})
def sqlite_after_the_end(b: Program) -> None:
    connection, ended = shop(), threading.Event()

    def work() -> None:
        ended.wait()
        connection.execute("select 1")

    with ThreadPoolExecutor(1) as pool:
        for key in "ab":
            with b.near(key):
                pool.submit(work)
        ended.set()


@boundary("db: sqlite3 statements of a writer thread fed by a queue", statements={"a": 1, "b": 1})
def sqlite_writer(b: Program) -> None:
    connection = shop()
    waiting: queue.Queue[str | None] = queue.Queue()

    def writer() -> None:
        while (sql := waiting.get()) is not None:
            connection.execute(sql)

    thread = threading.Thread(target=writer)
    for key in "ab":
        with b.near(key):
            if key == "a":
                thread.start()
            waiting.put("select 1")
    waiting.put(None)
    thread.join()


@boundary("db: sqlite3 factory classes with methods of their own", statements={"a": 1, "b": 1})
def sqlite_factories(b: Program) -> None:
    class Cursor(sqlite3.Cursor):
        def execute(self, *arguments: Any) -> Any:
            return super().execute(*arguments)

    class Connection(sqlite3.Connection):
        def cursor(self, factory: Any = Cursor) -> Any:
            return super().cursor(factory)

    connection = sqlite3.connect(":memory:", factory=Connection)
    with b.near("a"):
        connection.execute("select 1")
    with b.near("b"):
        connection.cursor().execute("select 1")


@boundary("db: sqlite3 statement that fails, and the one after it", statements={"": 2})
def sqlite_fails(b: Program) -> None:
    connection = shop()
    with b.near():
        with contextlib.suppress(sqlite3.OperationalError):
            connection.execute("select nothing from nowhere")
        connection.execute("select 1")


@boundary("db: sqlite3 transaction as a context manager, commit and rollback", statements={"": 2})
def sqlite_transaction(b: Program) -> None:
    connection = shop()
    connection.execute("create table t (a)")
    with b.near():
        with connection:
            connection.execute("insert into t values (1)")
        with contextlib.suppress(ZeroDivisionError), connection:
            connection.execute("insert into t values (2)")
            raise ZeroDivisionError
    assert connection.execute("select a from t").fetchall() == [(1,)]


@boundary("db: sqlite3 rows read by a generator, with the user's own spans between", statements={"": 1})
def sqlite_rows(b: Program) -> None:
    connection = shop()

    def rows() -> Iterator[Any]:
        yield from connection.execute("select 1 union select 2")

    with b.near():
        for _ in rows():
            b.far()
