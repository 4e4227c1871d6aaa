from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from opentelemetry.instrumentation.psycopg2 import Psycopg2Instrumentor
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.instrumentation.sqlite3 import SQLite3Instrumentor
from opentelemetry.trace import StatusCode
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.engine import Engine
from sqlalchemy.engine.cursor import BufferedRowCursorFetchStrategy
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.ext.asyncio import create_async_engine

import tracefill
from tests.contracts import PatchContract
from tests.data.driver_contract import only, seen, tracer
from tracefill.data import sqlalchemy as integration
from tracefill.data import statements

VERSION = tuple(int(part) for part in sa.__version__.split(".")[:2])

numbers = sa.Table("numbers", sa.MetaData(), sa.Column("a", sa.Integer))


class TestInstall(PatchContract):
    name = "sqlalchemy"

    def owners(self) -> list[Any]:
        from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2

        return [Engine, DefaultDialect, Dialect, PGDialect_psycopg2, BufferedRowCursorFetchStrategy]


@pytest.fixture
def installed() -> Iterator[None]:
    """Every driver's integration is on as well: still there is one span a statement."""
    tracefill.install(
        only=["sqlalchemy", "sqlite3", "aiosqlite", "psycopg", "psycopg2", "pymysql", "mysqlclient", "asyncpg"]
    )
    yield
    tracefill.uninstall()


def url(driver: str, server: Any) -> str:
    return f"{driver}://{server.username}@{server.host}:{server.port}/{server.database}"


def server_of(driver: str, request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("postgres" if driver.startswith("postgresql") else "mariadb")


def exercise(connection: Any) -> None:
    """Six statements. In a transaction that is rolled back: no BEGIN, no ROLLBACK among them."""
    numbers.create(connection, checkfirst=False)
    connection.execute(numbers.insert(), [{"a": 1}, {"a": 2}])
    connection.execute(sa.text("update numbers set a = a + :n"), [{"n": 10}, {"n": 20}])
    assert connection.execute(sa.select(numbers.c.a).order_by(numbers.c.a)).fetchall() == [(31,), (32,)]
    assert connection.exec_driver_sql("select 17").scalar() == 17
    numbers.drop(connection)


NAMES = ["CREATE numbers", "INSERT numbers", "UPDATE numbers", "SELECT numbers", "SELECT", "DROP numbers"]


def check(spans: Any, near: Any, system: str) -> None:
    assert [span.name for span in seen(spans)] == NAMES
    assert {span.parent.span_id for span in seen(spans)} == {near.get_span_context().span_id}
    assert {span.instrumentation_scope.name for span in seen(spans)} == {"tracefill.data.sqlalchemy"}
    assert {span.attributes["db.system.name"] for span in seen(spans)} == {system}


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+psycopg2", "mysql+pymysql", "mysql+mysqldb"])
def test_statements_of_every_driver_are_one_span_each(
    driver: str, installed: None, request: pytest.FixtureRequest, spans: Any, no_log: Any
) -> None:
    if VERSION < (2, 0) and driver == "postgresql+psycopg":
        pytest.skip("SQLAlchemy 1.4 does not know psycopg 3")
    server = server_of(driver, request)
    engine = sa.create_engine(url(driver, server))
    with tracer.start_as_current_span("near") as near:  # what the engine asks when it first connects is in it too
        with engine.connect() as connection:
            exercise(connection)
    engine.dispose()
    check(spans, near, "postgresql" if driver.startswith("postgresql") else "mariadb")
    assert seen(spans)[0].attributes["server.port"] == server.port
    assert seen(spans)[0].attributes["server.address"] == server.host
    assert seen(spans)[0].attributes["db.namespace"] == server.database


@pytest.mark.parametrize("driver", ["postgresql+psycopg_async", "postgresql+asyncpg"])
async def test_statements_of_every_async_driver_are_one_span_each(
    driver: str, installed: None, postgres: Any, spans: Any, no_log: Any
) -> None:
    if VERSION < (2, 0) and "psycopg" in driver:
        pytest.skip("SQLAlchemy 1.4 does not know psycopg 3")
    engine = create_async_engine(url(driver, postgres))
    with tracer.start_as_current_span("near") as near:
        async with engine.connect() as connection:
            await connection.run_sync(exercise)
    await engine.dispose()
    check(spans, near, "postgresql")


async def test_statements_of_aiosqlite_are_one_span_each(installed: None, spans: Any, no_log: Any) -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    with tracer.start_as_current_span("near") as near:
        async with engine.connect() as connection:
            await connection.run_sync(exercise)
    await engine.dispose()
    check(spans, near, "sqlite")


def test_engine_and_connection_opened_before_install_are_traced(spans: Any) -> None:
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        tracefill.install(only=["sqlalchemy"])
        try:
            connection.execute(sa.text("select 1"))
        finally:
            tracefill.uninstall()
        connection.execute(sa.text("select 2"))
    assert only(spans).name == "SELECT"


def test_trace_is_for_one_engine(spans: Any) -> None:
    engine, other = sa.create_engine("sqlite://"), sa.create_engine("sqlite://")
    assert integration.trace(engine) is engine
    for each in (engine, other):
        with each.connect() as connection:
            connection.execute(sa.text("select 1"))
    assert "db.client.connection.wait_time" in only(spans).attributes


def test_dialect_that_is_imported_later_is_covered(installed: None, spans: Any) -> None:
    from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

    class Later(SQLiteDialect_pysqlite):
        supports_statement_cache = True

        def do_execute(self, cursor: Any, statement: Any, parameters: Any, context: Any = None) -> None:
            cursor.execute(statement, parameters)

    original = vars(Later)["do_execute"]
    sa.dialects.registry.impls["later"] = lambda: Later
    engine = sa.create_engine("later://")
    with engine.connect() as connection:
        connection.execute(sa.text("select :a"), {"a": 1})
    assert only(spans).instrumentation_scope.name == "tracefill.data.sqlalchemy"
    tracefill.uninstall()
    assert vars(Later)["do_execute"] is original


def test_wait_for_the_pool_is_told_by_the_first_statement(installed: None, tmp_path: Path, spans: Any) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/t.db", poolclass=sa.pool.QueuePool, pool_size=1, max_overflow=0)
    held = engine.connect()
    threading.Timer(0.3, held.close).start()
    with engine.connect() as connection:
        connection.execute(sa.text("select 1"))
        connection.execute(sa.text("select 2"))
    first, second = seen(spans)
    assert first.attributes["db.client.connection.wait_time"] > 0.1
    assert "db.client.connection.wait_time" not in second.attributes


def test_connections_that_were_given_back_are_forgotten(installed: None) -> None:
    engine = sa.create_engine("sqlite://")
    for _ in range(3):
        with engine.connect() as connection:
            connection.begin().rollback()
    del connection
    gc.collect()
    assert not integration._waited_s


def test_failure_is_an_error_of_the_span_and_goes_on_untouched(installed: None, spans: Any) -> None:
    with sa.create_engine("sqlite://").connect() as connection, pytest.raises(sa.exc.OperationalError, match="nowhere"):
        connection.execute(sa.text("select 'secret' from nowhere"))
    assert only(spans).status.status_code is StatusCode.ERROR
    assert only(spans).attributes["db.query.text"] == "select ? from nowhere"


def test_many_rows_in_batches_are_as_many_statements(installed: None, spans: Any) -> None:
    if VERSION < (2, 0):
        pytest.skip("insertmanyvalues came with 2.0")
    table = sa.Table("t", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("a", sa.Integer))
    engine = sa.create_engine("sqlite://", insertmanyvalues_page_size=10)
    with engine.connect() as connection:
        table.create(connection)
        spans.clear()
        rows = connection.execute(table.insert().returning(table.c.id), [{"a": n} for n in range(25)]).fetchall()
    assert len(rows) == 25
    assert [span.name for span in seen(spans)] == ["INSERT t"] * 3


@pytest.mark.parametrize("driver", ["postgresql+psycopg2", "mysql+pymysql"])
def test_what_sqlalchemy_asks_for_itself_is_no_statement(
    driver: str, installed: None, request: pytest.FixtureRequest, spans: Any
) -> None:
    engine = sa.create_engine(
        url(driver, server_of(driver, request)), isolation_level="SERIALIZABLE", pool_pre_ping=True
    )
    for _ in range(2):
        with engine.connect() as connection:
            assert connection.get_isolation_level() == "SERIALIZABLE"
            connection.execution_options(isolation_level="AUTOCOMMIT")
    engine.dispose()
    assert seen(spans) == []


@pytest.mark.parametrize("driver", ["postgresql+psycopg2", "mysql+mysqldb"])
def test_engine_made_before_connects_as_quietly(driver: str, request: pytest.FixtureRequest, spans: Any) -> None:
    engine = sa.create_engine(url(driver, server_of(driver, request)), poolclass=sa.pool.NullPool)
    tracefill.install(only=["sqlalchemy", "psycopg2", "mysqlclient"])
    try:
        for _ in range(2):
            engine.connect().close()
        assert seen(spans) == []
    finally:
        tracefill.uninstall()
    engine.connect().close()


def test_statements_of_the_programs_own_listeners_are_its_own(installed: None, spans: Any) -> None:
    engine = sa.create_engine("sqlite://")

    @sa.event.listens_for(engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        connection.execute("pragma foreign_keys = on")

    engine.connect().close()
    assert only(spans).name == "PRAGMA"


def test_dialect_that_is_made_after_install_is_covered(installed: None, spans: Any) -> None:
    class Dialect(SQLiteDialect_pysqlite):
        supports_statement_cache = True

        def do_execute(self, cursor: Any, statement: Any, parameters: Any, context: Any = None) -> None:
            cursor.execute(statement, parameters)

    registry.impls["late"] = lambda: Dialect
    with sa.create_engine("late://").connect() as connection:
        connection.execute(sa.text("select 1"))
    assert only(spans).instrumentation_scope.name == "tracefill.data.sqlalchemy"


def test_event_form_makes_one_event(installed: None, spans: Any) -> None:
    statements.configure(form="event")
    try:
        with sa.create_engine("sqlite://").connect() as connection, tracer.start_as_current_span("near"):
            connection.execute(sa.text("select 1"))
    finally:
        statements.configure()
    (near,) = spans.get_finished_spans()
    assert [event.name for event in near.events] == ["db.query"]


def test_users_listeners_run_outside_of_the_quiet(installed: None, spans: Any) -> None:
    engine = sa.create_engine("sqlite://")

    @sa.event.listens_for(engine, "before_cursor_execute", retval=True)
    def before(connection: Any, cursor: Any, statement: str, *arguments: Any) -> Any:
        with tracer.start_as_current_span("listener"):
            cursor.execute("select 'a statement of its own'")
        return f"{statement} -- {time.time()}", arguments[0]

    with engine.connect() as connection:
        connection.execute(sa.text("select 1"))
    assert [span.name for span in spans.get_finished_spans()] == ["SELECT", "listener", "SELECT"]


@pytest.mark.parametrize("ours_first", [True, False])
def test_drivers_contrib_keeps_quiet_below(ours_first: bool, postgres: Any, spans: Any, no_log: Any) -> None:
    instrumentors = [SQLite3Instrumentor(), Psycopg2Instrumentor()]
    if ours_first:
        tracefill.install(only=["sqlalchemy"])
    for instrumentor in instrumentors:
        instrumentor.instrument()
    tracefill.install(only=["sqlalchemy"])
    try:
        for address in ("sqlite://", url("postgresql+psycopg2", postgres)):
            spans.clear()
            with sa.create_engine(address).connect() as connection:
                connection.execute(sa.text("select 1"))
            assert only(spans).instrumentation_scope.name == "tracefill.data.sqlalchemy"
    finally:
        for instrumentor in instrumentors:
            instrumentor.uninstrument()
        tracefill.uninstall()


@pytest.mark.skipif(VERSION >= (2, 1), reason="contrib's SQLAlchemyInstrumentor does nothing from 2.1 on")
def test_contribs_span_is_the_only_one(installed: None, spans: Any, no_log: Any) -> None:
    SQLAlchemyInstrumentor().instrument()
    try:
        with sa.create_engine("sqlite://").connect() as connection:
            spans.clear()
            connection.execute(sa.text("select 1"))
        assert only(spans).instrumentation_scope.name == "opentelemetry.instrumentation.sqlalchemy"
    finally:
        SQLAlchemyInstrumentor().uninstrument()


async def test_tasks_that_share_an_engine_keep_apart(installed: None, tmp_path: Path, spans: Any) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/t.db")

    async def request(name: str) -> None:
        with tracer.start_as_current_span(name):
            for _ in range(5):
                async with engine.connect() as connection:
                    await connection.execute(sa.text(f"select {name}.a from (select 1 as a) {name}"))

    await asyncio.gather(*(request(f"r{n}") for n in range(5)))
    await engine.dispose()
    by_id = {span.context.span_id: span.name for span in spans.get_finished_spans()}
    assert len(seen(spans)) == 25
    assert all(by_id[span.parent.span_id] in span.attributes["db.query.text"] for span in seen(spans))
