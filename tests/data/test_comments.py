from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import asyncpg
import psycopg
import psycopg2
import pymysql
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import tracefill
from tests.data.driver_contract import seen, tracer
from tracefill.data import comments
from tracefill.data.comments import commented

COMMENT = re.compile(r" /\*((?:[\w.~%-]+='[\w.~%-]*',?)+)\*/[ \t\r\n]*;?\Z", re.ASCII)
ROUTE = "/orders/{no}?a=50%&b='*/;--"
ROUTE_ENCODED = "%2Forders%2F%7Bno%7D%3Fa%3D50%25%26b%3D%27%2A%2F%3B--"


@pytest.fixture
def everything() -> Iterator[None]:
    """Comments with all that they can have, and every driver installed."""
    tracefill.install(only=["sqlite3", "psycopg", "psycopg2", "pymysql", "mysqlclient", "asyncpg", "sqlalchemy"])
    comments.configure(
        traceparent=True,
        constant={"application": "shop"},
        tags=lambda: {"route": ROUTE, "password": "secret"},
        allow=["route", "tenant_id"],
    )
    yield
    comments.configure()
    tracefill.uninstall()


def said(sql: str) -> dict[str, str]:
    """What the comment at the end of a statement says; nothing else of it may be a comment."""
    found = COMMENT.search(sql)
    assert found, sql
    members = (member.split("=") for member in found[1].split(","))
    return {unquote(key): unquote(value[1:-1]) for key, value in members}


def traceparent(span: Any) -> str:
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}"


# ------------------------------------------------------------------------------------------------------------ what it says


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"route": "/param first"}, "/*route='%2Fparam%20first'*/"),
        ({"name": "DROP TABLE FOO"}, "/*name='DROP%20TABLE%20FOO'*/"),
        ({"route parameter": "a", "action": "*/"}, "/*action='%2A%2F',route%20parameter='a'*/"),
        ({"!50000": 1, "+hint": 2}, "/*%2150000='1',%2Bhint='2'*/"),
        ({"a": "é\ud800\x00\n", "b": None}, "/*a='%C3%A9%3F%00%0A'*/"),
        ({"long": "x" * 300, "short": ""}, "/*short=''*/"),
    ],
)
def test_comment_is_sorted_encoded_and_bounded(tags: Any, expected: str) -> None:
    assert commented("select 1", tags) == f"select 1 {expected}"


@pytest.mark.parametrize(
    "sql",
    [
        "",
        " ;",
        "select 1;;",
        "select /*+ hint */ 1",
        "select 1 -- why",
        "select '/*'",
        "select 1 # why",
        "/*!50000 select 1*/",
    ],
)
def test_statement_that_has_a_comment_or_is_none_stays_as_it_was(sql: str) -> None:
    assert commented(sql, {"a": 1}) is sql


def test_nothing_to_say_is_no_comment() -> None:
    assert commented("select 1", {}) == commented("select 1", {"a": None}) == "select 1"


def test_comment_stands_before_the_semicolon() -> None:
    assert commented("select 1;\n", {"a": 1}) == "select 1 /*a='1'*/;"


def test_list_of_names_is_asked_for() -> None:
    with pytest.raises(TypeError, match=r"write \['tenant_id'\]"):
        comments.configure(allow="tenant_id")


def test_tags_that_cannot_be_told_do_not_stop_the_statement(everything: None) -> None:
    comments.configure(constant={"a": 1}, tags=lambda: {}[0])
    assert comments.added(("select 1",), {}) == (("select 1 /*a='1'*/",), {})


# ------------------------------------------------------------------------------------------------------------------ fuzzing

pieces = st.sampled_from(
    [
        "select", "1", "17", "a", "*", "from", "t", "where", "=", ",", "(", ")", ";", "'", "''", '"', "`", "\\", "--", "/*", "*/",
        "#", "$$", "$q$", "%", "%%", "/*+ hint */", "\n", " ", "values", "union", "'x'", "E'\\''", "insert into", "?", "-",
    ]
)  # fmt: skip
broken = st.lists(pieces, max_size=14).map(" ".join)
valid = st.tuples(
    st.sampled_from(
        ["select {}", "select {} from t", "select a, {} from t where a > 0;", "values ({})", "select {} as x \n"]
    ),
    st.sampled_from(
        ["1", "'a'", "'it''s'", "'/*'", "'--'", "'#'", "'*/ '", "'%'", "'a;b'", "a_column", "'\\\\'", "1/2"]
    ),
).map(lambda two: two[0].format(two[1]))
adversarial = st.one_of(valid, broken, st.text(max_size=30))
texts = st.one_of(
    st.text(max_size=20),
    st.lists(st.sampled_from(["*/", "/*", "'", ";", "--", "\\", "%", "!", "+", "x", "\n"])).map("".join),
)
tag_sets = st.dictionaries(texts, texts, max_size=4)


@settings(max_examples=500, deadline=None)
@given(sql=adversarial, tags=tag_sets)
@example(sql="select 1", tags={"a": "*/; drop table t; /*"})
def test_no_text_breaks_out_of_its_comment(sql: str, tags: dict[str, str]) -> None:
    result = commented(sql, tags)
    if result == sql:
        return
    assert COMMENT.sub("", result).rstrip(" ;\t\r\n") == sql.rstrip(" ;\t\r\n")
    assert said(result).items() <= tags.items()


def outcome(execute: Any) -> object:
    """The rows, or the kind of the error."""
    try:
        return [tuple(row) for row in execute()]
    except Exception as error:
        return type(error), getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)


def sqlite_outcome(sql: str) -> object:
    connection = sqlite3.connect(":memory:")
    try:
        connection.executescript("create table t (a, a_column); insert into t values (1, 2), (3, 4)")
        return outcome(lambda: connection.execute(sql).fetchall()), outcome(
            lambda: connection.execute("select * from t")
        )
    finally:
        connection.close()


@settings(max_examples=400, deadline=None)
@given(sql=adversarial, tags=tag_sets)
def test_sqlite_returns_the_same_with_and_without(sql: str, tags: dict[str, str]) -> None:
    without = sqlite_outcome(sql)
    assert sqlite_outcome(commented(sql, tags)) == without


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sql=adversarial)
def test_statements_return_the_same_with_and_without_us(sql: str, everything: None) -> None:
    with_us = sqlite_outcome(sql)
    tracefill.uninstall()
    without = sqlite_outcome(sql)
    tracefill.install(only=["sqlite3", "psycopg", "psycopg2", "pymysql", "mysqlclient", "asyncpg", "sqlalchemy"])
    assert with_us == without


def check_on_server(connection: Any, sql: str, tags: dict[str, str]) -> None:
    """Commented and as it is, each in a transaction that is rolled back."""
    assert server_outcome(connection, commented(sql, tags)) == server_outcome(connection, sql)


def server_outcome(connection: Any, sql: str) -> object:
    cursor = connection.cursor()
    try:
        return outcome(lambda: (cursor.execute(sql), cursor.fetchall())[1])
    finally:
        connection.rollback()
        cursor.close()


@pytest.fixture(scope="module")
def on_postgres(postgres: Any) -> Iterator[Any]:
    with psycopg.connect(postgres.url) as connection:
        connection.execute("create temporary table t (a int, a_column int)")
        connection.commit()
        yield connection


@pytest.fixture(scope="module")
def on_mariadb(mariadb: Any) -> Iterator[Any]:
    where = {"host": mariadb.host, "port": mariadb.port, "user": mariadb.username, "database": mariadb.database}
    connection = pymysql.connect(**where)
    connection.cursor().execute("create temporary table t (a int, a_column int)")
    yield connection
    connection.close()


@settings(max_examples=200, deadline=None)
@given(sql=adversarial.filter(lambda sql: "\0" not in sql), tags=tag_sets)
def test_postgres_returns_the_same_with_and_without(on_postgres: Any, sql: str, tags: dict[str, str]) -> None:
    check_on_server(on_postgres, sql, tags)


@settings(max_examples=200, deadline=None)
@given(sql=adversarial, tags=tag_sets)
def test_mariadb_returns_the_same_with_and_without(on_mariadb: Any, sql: str, tags: dict[str, str]) -> None:
    check_on_server(on_mariadb, sql, tags)


# -------------------------------------------------------------------------------------------------------------- the drivers


def seen_by_sqlite(run: Any) -> list[str]:
    connection = sqlite3.connect(":memory:")
    found: list[str] = []
    connection.set_trace_callback(found.append)
    run(connection)
    connection.close()
    return found


def test_off_by_default() -> None:
    tracefill.install(only=["sqlite3"])
    try:
        assert seen_by_sqlite(lambda connection: connection.execute("select 1")) == ["select 1"]
    finally:
        tracefill.uninstall()


def test_sqlite_keeps_its_statements_prepared(everything: None) -> None:
    found = seen_by_sqlite(lambda connection: [connection.cursor().execute("select ?", (n,)) for n in range(2)])
    assert found == ["select 0 /*application='shop'*/", "select 1 /*application='shop'*/"]


@pytest.mark.parametrize("parameters", [(), (None,), ((17,),), ({"n": 17},)])
@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "pymysql", "MySQLdb"])
def test_server_sees_the_comment_and_the_span_does_not(
    driver: str, parameters: Any, everything: None, request: pytest.FixtureRequest, spans: Any, no_log: Any
) -> None:
    if driver.startswith("psycopg"):
        server = request.getfixturevalue("postgres")
        connection: Any = (psycopg2 if driver == "psycopg2" else psycopg).connect(server.url)
        running = "select query, '{}' from pg_stat_activity where pid = pg_backend_pid()"
    else:
        server = request.getfixturevalue("mariadb")
        module: Any = pytest.importorskip(driver)
        connection = module.connect(host=server.host, port=server.port, user=server.username, database=server.database)
        running = "select info, '{}' from information_schema.processlist where id = connection_id()"
    mark = "17" if parameters in ((), (None,)) else "%(n)s" if isinstance(parameters[0], dict) else "%s"
    sql = running.replace("'{}'", mark)
    spans.clear()
    cursor = connection.cursor()
    more = {"prepare": False} if driver == "psycopg" else {}
    with tracer.start_as_current_span("near"):
        cursor.execute(sql, *parameters, **more)
    ((text, answer),) = cursor.fetchall()
    connection.close()
    (span,) = seen(spans)
    assert answer == 17
    assert said(text) == {"application": "shop", "route": ROUTE, "traceparent": traceparent(span)}
    assert f"route='{ROUTE_ENCODED}'" in text
    assert "/*" not in span.attributes["db.query.text"]


def prepared(connection: Any) -> list[str]:
    found = connection.cursor().execute("select statement from pg_prepared_statements", prepare=False)
    return [text for (text,) in found.fetchall()]


def test_psycopg_keeps_its_statements_prepared(everything: None, postgres: Any) -> None:
    with psycopg.connect(postgres.url) as connection:
        for n in range(8):
            with tracer.start_as_current_span("near"):
                assert connection.execute("select %s::int", (n,)).fetchone() == (n,)
        assert prepared(connection) == ["select $1::int /*application='shop'*/"]


@pytest.mark.parametrize("kind", [psycopg.ClientCursor, psycopg.RawCursor])
def test_other_cursors_of_psycopg(kind: Any, everything: None, postgres: Any) -> None:
    mark = "$1" if kind is psycopg.RawCursor else "%s"
    with psycopg.connect(postgres.url, cursor_factory=kind, prepare_threshold=None) as connection:
        sql = f"select query from pg_stat_activity where pid = pg_backend_pid() and 1 = {mark}"
        ((text,),) = connection.execute(sql, (1,)).fetchall()
    assert said(text)["route"] == ROUTE


async def test_asyncpg_keeps_its_statements_prepared(everything: None, postgres: Any) -> None:
    for size, count in ((100, 1), (0, 0)):
        connection = await asyncpg.connect(postgres.url, statement_cache_size=size)
        sql = "select query from pg_stat_activity where pid = pg_backend_pid()"
        for _ in range(3):
            with tracer.start_as_current_span("near"):
                text = await connection.fetchval(sql)
        assert ("traceparent" in said(text)) is (size == 0)
        assert said(text)["application"] == "shop"
        assert len([entry for entry in connection._stmt_cache.iter_statements()]) == count
        await connection.close()


@pytest.mark.parametrize("driver", ["pymysql", "MySQLdb"])
def test_executemany_of_mysql_is_still_one_insert(driver: str, everything: None, mariadb: Any) -> None:
    where = {"host": mariadb.host, "port": mariadb.port, "user": mariadb.username, "database": mariadb.database}
    connection: Any = pytest.importorskip(driver).connect(**where)
    cursor = connection.cursor()
    cursor.execute("create temporary table t (a int)")
    before = inserts(cursor)
    cursor.executemany("insert into t values (%s)", [(n,) for n in range(10)])
    assert inserts(cursor) == before + 1
    connection.close()


def inserts(cursor: Any) -> int:
    cursor.execute("show session status like 'Com_insert'")
    return int(cursor.fetchone()[1])


def test_sqlalchemys_statements_are_commented_by_its_driver(everything: None, postgres: Any, spans: Any) -> None:
    import sqlalchemy as sa

    engine = sa.create_engine(postgres.url.replace("postgresql://", "postgresql+psycopg2://"))
    spans.clear()
    with engine.connect() as connection:
        sql = "select query from pg_stat_activity where pid = pg_backend_pid() and 1 = :one"
        text = connection.execute(sa.text(sql), {"one": 1}).scalar()
    engine.dispose()
    (span,) = seen(spans)
    assert said(text)["traceparent"] == traceparent(span)
    assert said(text)["route"] == ROUTE


def test_comment_that_is_there_already_is_the_only_one(everything: None, postgres: Any) -> None:
    connection = psycopg2.connect(postgres.url)
    cursor = connection.cursor()
    cursor.execute("select query from pg_stat_activity where pid = pg_backend_pid() /*mine*/")
    assert cursor.fetchone()[0].count("/*") == 1
    connection.close()
