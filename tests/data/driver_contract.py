"""What every PEP 249 driver owes. A driver's test says how it connects and what its statements look like."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import SpanKind, StatusCode

import tracefill
from tests.contracts import PatchContract
from tracefill.data import statements

tracer = trace.get_tracer("tests")


def seen(spans: Any) -> list[Any]:
    """The statements' spans, whoever made them."""
    return [
        span for span in spans.get_finished_spans() if {"db.system", "db.system.name"} & (span.attributes or {}).keys()
    ]


def only(spans: Any) -> Any:
    found = seen(spans)
    assert len(found) == 1, [span.name for span in found]
    return found[0]


class DriverContract(PatchContract):
    system: str
    #: Contrib's instrumentor of this driver.
    contrib: Any
    parameter = "%s"
    #: A statement that fails, and the code that the database gives.
    failing: tuple[str, str | None]

    @pytest.fixture(autouse=True)
    def _where_it_runs(self, request: pytest.FixtureRequest) -> None:
        self.server: Any = None

    @pytest.fixture
    def installed(self) -> Iterator[None]:
        tracefill.install(only=[self.name])
        yield
        tracefill.uninstall()

    def connect(self) -> Any:
        raise NotImplementedError

    @pytest.fixture
    def opened_before(self) -> Iterator[Any]:
        connection = self.connect()
        yield connection
        connection.close()

    @pytest.fixture
    def connection(self, installed: None) -> Iterator[Any]:
        connection = self.connect()
        yield connection
        connection.close()

    def test_statement_is_a_client_span_of_the_caller(self, connection: Any, spans: Any, no_log: Any) -> None:
        cursor = connection.cursor()
        spans.clear()
        with tracer.start_as_current_span("near") as near:
            cursor.execute(f"select 'secret', {self.parameter} as answer", (42,))
            assert trace.get_current_span() is near
        assert [tuple(row) for row in cursor.fetchall()] in ([("secret", 42)], [("secret", "42")])
        span = only(spans)
        assert span.parent.span_id == near.get_span_context().span_id
        assert span.kind is SpanKind.CLIENT
        assert span.name == "SELECT"
        assert span.attributes["db.system.name"] == self.system
        assert span.attributes["db.query.text"] == f"select ?, {self.parameter} as answer"

    def test_server_is_told_where_the_driver_knows_it(self, connection: Any, spans: Any) -> None:
        spans.clear()
        connection.cursor().execute("select 1")
        attributes = only(spans).attributes
        if self.server is None:
            assert not [name for name in attributes if name.startswith("server.")]
        else:
            assert attributes["server.address"] == self.server.host
            assert attributes["server.port"] == self.server.port
            assert attributes["db.namespace"] == self.server.database

    def test_connection_and_cursor_opened_before_install_are_traced(
        self, opened_before: Any, installed: None, spans: Any
    ) -> None:
        cursor = opened_before.cursor()
        cursor.execute("select 1")
        assert only(spans).name == "SELECT"

    def test_executemany_is_one_statement(self, connection: Any, spans: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("create temporary table numbers (a integer)")
        for sql in (
            f"insert into numbers values ({self.parameter})",
            f"update numbers set a = a where a = {self.parameter}",
        ):
            spans.clear()
            cursor.executemany(sql, [(1,), (2,)])
            assert only(spans).name == f"{sql.split()[0].upper()} numbers"
        cursor.execute("select count(*) from numbers")
        assert cursor.fetchall()[0][0] == 2

    def test_failure_is_an_error_of_the_span_and_goes_on_untouched(self, connection: Any, spans: Any) -> None:
        sql, code = self.failing
        spans.clear()
        with pytest.raises(Exception, match="nowhere") as raised:
            connection.cursor().execute(sql)
        assert raised.value.__traceback__ is not None
        span = only(spans)
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes.get("db.response.status_code") == code
        assert span.attributes["error.type"] == (code or type(raised.value).__name__)
        assert "secret" not in span.attributes["db.query.text"]

    def test_event_form_makes_one_event_of_the_callers_span(self, connection: Any, spans: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("create temporary table numbers (a integer)")
        spans.clear()
        statements.configure(form="event")
        try:
            with tracer.start_as_current_span("near"):
                cursor.executemany(f"insert into numbers values ({self.parameter})", [(1,), (2,)])
            cursor.execute("select 1")  # on no span
        finally:
            statements.configure()
        (near,) = spans.get_finished_spans()
        (event,) = near.events
        assert event.name == "db.query"
        assert event.attributes["db.query.summary"] == "INSERT numbers"
        assert event.attributes["db.client.operation.duration_ns"] > 0

    def test_no_span_while_instrumentation_is_suppressed(self, connection: Any, spans: Any) -> None:
        spans.clear()
        with suppress_instrumentation():
            connection.cursor().execute("select 1")
        assert seen(spans) == []

    def test_statement_in_a_bound_thread_lands_under_its_job(self, connection: Any, spans: Any) -> None:
        spans.clear()
        with tracer.start_as_current_span("near") as near:
            thread = threading.Thread(target=tracefill.bind(lambda: self.in_thread(connection)))
        thread.start()
        thread.join()
        assert only(spans).parent.span_id == near.get_span_context().span_id

    def in_thread(self, connection: Any) -> None:
        connection.cursor().execute("select 1")

    @pytest.mark.parametrize("ours_first", [True, False])
    def test_one_span_beside_contrib_whoever_comes_first(self, ours_first: bool, spans: Any, no_log: Any) -> None:
        instrumentor = self.contrib()
        if ours_first:
            tracefill.install(only=[self.name])
        instrumentor.instrument()
        tracefill.install(only=[self.name])
        try:
            connection = self.connect()
            cursor = connection.cursor()
            spans.clear()
            cursor.execute("select 1")
            assert only(spans).instrumentation_scope.name.startswith("opentelemetry.")
            connection.close()
        finally:
            instrumentor.uninstrument()
            tracefill.uninstall()
