"""Log lines that say which request and which trace they belong to.

    logging.basicConfig(format="%(asctime)s %(request_id)s %(otelTraceID)s %(message)s")
    tracefill.install()                                 # every record that a logger makes has the fields
    handler.addFilter(ContextFilter())                  # or: those that one handler sees
    logging.setLogRecordFactory(record_factory)         # or: all, `extra={"request_id": ...}` being forbidden then
    structlog.configure(processors=[add_context, ...])  # structlog

The fields are those of OpenTelemetry's logging instrumentation, `otelTraceID`, `otelSpanID`, `otelTraceSampled` and
`otelServiceName`, and `request_id`; outside of a request they are "0", "0", False, the service's name and "". Business tags that
are declared with `log` are fields too, "" where they have no value.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping
from typing import Any

from opentelemetry import trace

from tracefill import tags
from tracefill._codec import snapshot
from tracefill.wrapping import Patches

__all__ = ["ContextFilter", "add_context", "patch", "record_factory", "unpatch"]

_patches = Patches()


class ContextFilter(logging.Filter):
    """Lets every record through, and gives it the fields that it does not have yet."""

    def filter(self, record: logging.LogRecord) -> bool:
        _add_fields(record)
        return True


def add_context(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: the same fields in the event, but for those that it has already.

    >>> add_context(None, "info", {"event": "paid"})["request_id"]
    ''
    """
    tags.notice(event)
    for name, value in _fields().items():
        event.setdefault(name, value)
    return event


def record_factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
    """A log record with the fields.

    >>> record_factory("shop", logging.INFO, "shop.py", 1, "paid", (), None).request_id
    ''
    """
    record = logging.LogRecord(*args, **kwargs)
    _add_fields(record)
    return record


def patch() -> None:
    # Not by the factory: logging raises KeyError where a program's own `extra` holds what a factory has set.
    _patches.wrap(logging.Logger, "makeRecord", _make_record)


def unpatch() -> None:
    _patches.undo()


def _make_record(original: Any) -> Callable[..., logging.LogRecord]:
    def make_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record: logging.LogRecord = original(*args, **kwargs)
        _add_fields(record)
        return record

    return make_record


def _add_fields(record: logging.LogRecord) -> None:
    present = vars(record)
    tags.notice(present)
    for name, value in _fields().items():
        present.setdefault(name, value)


def _fields() -> dict[str, Any]:
    with snapshot() as here:
        known = here.is_valid
        return {
            "otelTraceID": f"{here.trace_id:032x}" if known else "0",
            "otelSpanID": f"{here.span_id:016x}" if known else "0",
            "otelTraceSampled": bool(known and here.flags & 1),
            "otelServiceName": _service_name(),
            "request_id": here.request_id or "",
            **tags.log_fields(),
        }


def _service_name() -> str:
    resource = getattr(trace.get_tracer_provider(), "resource", None)
    return str(resource.attributes.get("service.name", "")) if resource is not None else ""
