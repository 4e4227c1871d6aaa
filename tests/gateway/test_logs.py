"""Log lines that say which request and which trace they belong to."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace

import tracefill
from tests.contracts import PatchContract
from tracefill.context import scope
from tracefill.edge import request_ids
from tracefill.gateway import logs

tracer = trace.get_tracer("tests")


class TestPatch(PatchContract):
    name = "logs"

    def owners(self) -> list[Any]:
        return [logging, logging.Logger]


class Keep(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def kept() -> Iterator[Keep]:
    handler, logger = Keep(), logging.getLogger("shop")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture
def installed() -> Iterator[None]:
    tracefill.install(only=["logs"])
    yield
    tracefill.uninstall()


@pytest.mark.usefixtures("installed")
def test_a_record_within_a_request_has_all_fields(kept: Keep) -> None:
    with tracer.start_as_current_span("request") as span, scope(request_ids.in_context(_now(), "order-4711")):
        logging.getLogger("shop").warning("paid")
    (record,) = kept.records
    ids = span.get_span_context()
    assert vars(record)["otelTraceID"] == f"{ids.trace_id:032x}"
    assert vars(record)["otelSpanID"] == f"{ids.span_id:016x}"
    assert vars(record)["otelTraceSampled"] is True
    assert vars(record)["otelServiceName"].startswith("unknown_service")
    assert vars(record)["request_id"] == "order-4711"


@pytest.mark.usefixtures("installed")
def test_a_record_outside_of_any_request_has_them_too(kept: Keep) -> None:
    logging.getLogger("shop").warning("started")
    (record,) = kept.records
    fields = ("otelTraceID", "otelSpanID", "otelTraceSampled", "request_id")
    assert [vars(record)[name] for name in fields] == ["0", "0", False, ""]


@pytest.mark.usefixtures("installed")
def test_what_a_program_says_itself_is_kept(kept: Keep) -> None:
    logging.getLogger("shop").warning("paid", extra={"request_id": "mine", "otelTraceID": "mine"})
    assert vars(kept.records[0])["request_id"] == "mine"
    assert vars(kept.records[0])["otelTraceID"] == "mine"


def test_the_filter_gives_the_fields_to_one_handler() -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.addFilter(logs.ContextFilter())
    handler.setFormatter(logging.Formatter("%(request_id)s|%(otelTraceID)s|%(message)s"))
    logger = logging.getLogger("shop.filtered")
    logger.addHandler(handler)
    with scope(request_ids.in_context(_now(), "order-4711")):
        logger.warning("paid")
    logger.removeHandler(handler)
    assert out.getvalue() == "order-4711|0|paid\n"


def test_the_factory_makes_records_with_the_fields(kept: Keep) -> None:
    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(logs.record_factory)
    try:
        logging.getLogger("shop").warning("paid %s", 1)
    finally:
        logging.setLogRecordFactory(before)
    assert kept.records[0].getMessage() == "paid 1"
    assert vars(kept.records[0])["request_id"] == ""


def test_structlog_events_have_the_fields() -> None:
    structlog = pytest.importorskip("structlog")
    seen: list[dict[str, Any]] = []

    def keep(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
        seen.append(event)
        raise structlog.DropEvent

    logger = structlog.wrap_logger(None, processors=[logs.add_context, keep])
    with tracer.start_as_current_span("request") as span, scope(request_ids.in_context(_now(), "order-4711")):
        logger.info("paid", otelSpanID="mine")
    assert seen[0]["otelTraceID"] == f"{span.get_span_context().trace_id:032x}"
    assert seen[0]["otelSpanID"] == "mine"
    assert seen[0]["request_id"] == "order-4711"


def _now() -> Any:
    return tracefill.context.current()  # type: ignore[attr-defined]
