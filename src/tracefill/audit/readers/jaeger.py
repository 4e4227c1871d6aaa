"""Jaeger's UI JSON: ``{"data": [trace, ...]}``, as its query API answers and as its UI saves traces.

A record is a trace. Times are microseconds, ids may lack their leading zeros, and what OTLP has fields for is in tags.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tracefill.audit.readers.batch import Link, Span, SpanBatch
from tracefill.audit.readers.json_stream import JsonStream
from tracefill.audit.readers.records import (
    json_integer,
    json_member,
    json_object,
    json_objects,
    json_text,
    parse_json,
    read_records,
)

NO_SERVICE = "OTLPResourceNoServiceName"  # what Jaeger writes for a resource without service.name
CHILD_OF = ("CHILD_OF", "0", "None")  # the type of a reference is a name or a number, and CHILD_OF when it is missing

Reference = tuple[bool, str, str]
"""Whether it is a CHILD_OF, and the trace id and span id that it points to."""


def read(blocks: Iterable[bytes], file: str, batch: SpanBatch) -> int:
    """Read every trace of the file; the number of traces."""
    return read_records(_traces(blocks), lambda trace: read_trace(trace, batch), file, batch.input)


def _traces(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The elements of `data`, of one document or of several that follow each other."""
    stream = JsonStream(blocks)
    while stream.enter(b"{"):
        while stream.enter_member("data"):
            yield from stream.elements()
    yield from stream.documents()  # what follows has no business here, and is damaged


def read_trace(record: bytes, batch: SpanBatch) -> None:
    """The spans of one trace. Raises `DamagedRecord`."""
    trace = json_object(parse_json(record))
    processes = {name: json_object(process) for name, process in json_member(trace, "processes").items()}
    for told in [_read_span(span, processes) for span in json_objects(trace, "spans")]:
        batch.add_one(*told)


def _read_span(told: dict[str, Any], processes: dict[str, Any]) -> tuple[Span, str, str, str, dict[str, Any]]:
    """The span with service, instance, library and attributes."""
    process = json_member(told, "process") or processes.get(json_text(told.get("processID")), {})
    service = json_text(process.get("serviceName"))
    instance = json_text(_tags(process).get("service.instance.id"))
    tags = _tags(told)
    library = json_text(tags.get("otel.scope.name") or tags.get("otel.library.name"))
    return _span(told, tags), service if service != NO_SERVICE else "", instance, library, tags


def _span(told: dict[str, Any], tags: dict[str, Any]) -> Span:
    trace_id = _padded(told.get("traceID"))
    start, duration = json_integer(told.get("startTime")), json_integer(told.get("duration"), -1)
    references = [_reference(reference) for reference in json_objects(told, "references")]
    parent = _parent(references, trace_id)
    return Span(
        trace_id=trace_id,
        span_id=_padded(told.get("spanID")),
        parent_id=parent[2] if parent else _padded(told.get("parentSpanID")),
        name=json_text(told.get("operationName")),
        kind=json_text(tags.get("span.kind")),
        start=start * 1000,
        end=(start + duration) * 1000 if duration >= 0 else 0,
        links=[Link(trace_id, span_id) for _, trace_id, span_id in references if (_, trace_id, span_id) != parent],
    )


def _reference(told: dict[str, Any]) -> Reference:
    return str(told.get("refType")) in CHILD_OF, _padded(told.get("traceID")), _padded(told.get("spanID"))


def _parent(references: list[Reference], trace_id: str) -> Reference | None:
    """The first CHILD_OF in the same trace, else the first FOLLOWS_FROM there: OpenTracing has parents of both."""
    here = [reference for reference in references if reference[1] == trace_id]
    return next((reference for reference in here if reference[0]), here[0] if here else None)


def _tags(owner: dict[str, Any]) -> dict[str, Any]:
    return {json_text(tag.get("key")): tag.get("value") for tag in json_objects(owner, "tags")}


def _padded(value: Any) -> str:
    """An id with its leading zeros, in lower case; empty when there is none."""
    text = json_text(value).lower()
    return text.zfill(32 if len(text) > 16 else 16) if text else ""
