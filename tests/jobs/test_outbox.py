from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable
from typing import Any

import psycopg
import psycopg2
import pymysql
import pytest
from opentelemetry.instrumentation.dbapi import instrument_connection
from opentelemetry.trace import SpanKind, StatusCode, get_current_span

from tests.contracts import ancestors, finished, tracer
from tracefill.jobs import outbox
from tracefill.jobs.job_spans import correlation

Connect = Callable[[], Any]


@pytest.fixture(params=["sqlite3", "psycopg", "psycopg2", "pymysql"])
def connect(request: Any, tmp_path: Any) -> Connect:
    """Connections to a database with an empty outbox."""
    found: dict[str, Connect] = {
        "sqlite3": lambda: sqlite3.connect(tmp_path / "shop"),
        "psycopg": lambda: psycopg.connect(request.getfixturevalue("postgres").url),
        "psycopg2": lambda: psycopg2.connect(request.getfixturevalue("postgres").url),
        "pymysql": lambda: _pymysql(request.getfixturevalue("mariadb")),
    }
    connect = found[request.param]
    with contextlib.closing(connect()) as connection:
        for statement in ("DROP TABLE IF EXISTS tracefill_outbox", "DROP TABLE IF EXISTS orders"):
            connection.cursor().execute(statement)
        connection.cursor().execute("CREATE TABLE orders (id INTEGER, item TEXT)")
        outbox.create(connection)
        outbox.create(connection)
        connection.commit()
    return connect


def _pymysql(server: Any) -> Any:
    return pymysql.connect(
        host=server.host, port=server.port, user=server.username, password=server.password, database=server.database
    )


def write(connect: Connect, row_id: int = 1) -> None:
    with contextlib.closing(connect()) as connection:
        connection.cursor().execute(f"INSERT INTO orders VALUES ({row_id}, 'a book')")
        outbox.inject(connection, "orders", row_id)
        connection.commit()


def test_the_relay_continues_whoever_wrote_the_row(connect: Connect, spans: Any, no_log: Any) -> None:
    for row_id, name in enumerate("ab", 1):
        with tracer.start_as_current_span(name):
            write(connect, row_id)
    with contextlib.closing(connect()) as connection, tracer.start_as_current_span("loop") as loop:
        for row_id in (1, 2):
            with outbox.scope(connection, "orders", row_id):
                tracer.start_span(f"far {row_id}").end()
            assert get_current_span() is loop
    assert ancestors(spans, finished(spans, "far 1")) == ["run orders", "a"]
    assert ancestors(spans, finished(spans, "far 2")) == ["run orders", "b"]


def test_the_span_of_a_relay_says_what_and_how_late(connect: Connect, spans: Any) -> None:
    with tracer.start_as_current_span("near"):
        write(connect)
    time.sleep(0.05)
    with contextlib.closing(connect()) as connection, outbox.scope(connection, "orders", 1):
        pass
    run = finished(spans, "run orders")
    assert run.kind == SpanKind.CONSUMER
    assert run.attributes["tracefill.job.name"] == "orders"
    assert run.attributes["tracefill.job.delay_ms"] >= 40
    assert run.attributes["messaging.message.id"] == "1"


def test_what_is_relayed_leaves_nothing_behind_and_what_fails_is_tried_again(connect: Connect, spans: Any) -> None:
    with tracer.start_as_current_span("near"):
        write(connect)
    with contextlib.closing(connect()) as connection:
        with pytest.raises(ValueError, match="no broker"), outbox.scope(connection, "orders", 1):
            raise ValueError("no broker")
        assert finished(spans, "run orders").status.status_code == StatusCode.ERROR
        assert outbox.extract(connection, "orders", 1)
        with outbox.scope(connection, "orders", 1):
            pass
        assert not outbox.extract(connection, "orders", 1)
    assert [ancestors(spans, span) for span in spans.get_finished_spans() if span.name == "run orders"] == [
        ["near"]
    ] * 2


def test_a_row_that_is_rolled_back_takes_its_context_along(connect: Connect) -> None:
    with contextlib.closing(connect()) as connection, tracer.start_as_current_span("near"):
        outbox.inject(connection, "orders", 1)
        connection.rollback()
        assert not outbox.extract(connection, "orders", 1)


def test_a_row_of_nobody_is_nobodys(connect: Connect, spans: Any) -> None:
    with tracer.start_as_current_span("earlier"):
        write(connect)
    write(connect)  # the same row, written again outside of any request
    with contextlib.closing(connect()) as connection, outbox.scope(connection, "orders", 1):
        pass
    run = finished(spans, "run orders")
    assert run.parent is None
    assert run.attributes["tracefill.entry"] is True


def test_a_row_that_is_too_old_starts_a_trace_with_a_link(connect: Connect, spans: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(correlation, "link_after_s", 0.01)
    with tracer.start_as_current_span("near") as near:
        write(connect)
    time.sleep(0.1)
    with contextlib.closing(connect()) as connection, outbox.scope(connection, "orders", 1):
        pass
    run = finished(spans, "run orders")
    assert run.parent is None
    assert [link.context.span_id for link in run.links] == [near.get_span_context().span_id]


def test_a_connection_in_a_proxy_is_taken_for_what_it_holds(tmp_path: Any, spans: Any) -> None:
    connection = instrument_connection("shop", sqlite3.connect(":memory:"), "sqlite")
    outbox.create(connection)
    with tracer.start_as_current_span("near"):
        outbox.inject(connection, "orders", 1)
    with outbox.scope(connection, "orders", 1):
        pass
    assert ancestors(spans, finished(spans, "run orders")) == ["near"]
