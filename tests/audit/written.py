"""Neutral spans, written in every format that the audit reads."""

from __future__ import annotations

import gzip
import json
import struct
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import duckdb
from backports import zstd
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.audit.systems import Span

BATCH = 50
KINDS = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
US = 1000

Json = dict[str, Any]


def trace_hex(trace_id: int) -> str:
    return f"{trace_id:032x}"


def span_hex(span_id: int) -> str:
    return f"{span_id:016x}"


def batches(spans: Iterable[Span]) -> Iterator[list[Span]]:
    rest = iter(spans)
    while batch := list(islice(rest, BATCH)):
        yield batch


# --- OTLP ---


def otlp_json(spans: Sequence[Span]) -> Json:
    """One document of TracesData."""
    sources: dict[tuple[str, str], dict[str, list[Json]]] = defaultdict(lambda: defaultdict(list))
    for span in spans:
        sources[span.service, span.instance][span.library].append(otlp_span(span))
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": otlp_attributes({"service.name": service, "service.instance.id": instance})},
                "scopeSpans": [{"scope": {"name": name}, "spans": told} for name, told in libraries.items()],
            }
            for (service, instance), libraries in sources.items()
        ]
    }


def otlp_span(span: Span) -> Json:
    told: Json = {
        "traceId": trace_hex(span.trace_id),
        "spanId": span_hex(span.span_id),
        "name": span.name,
        "kind": span.kind,
        "startTimeUnixNano": str(span.start),
        "endTimeUnixNano": str(span.end),
        "attributes": otlp_attributes(span.attributes),
        "links": [{"traceId": trace_hex(trace), "spanId": span_hex(id_)} for trace, id_ in span.links],
        "status": {},
    }
    return told | {"parentSpanId": span_hex(span.parent_id)} if span.parent_id else told


def otlp_attributes(attributes: Json) -> list[Json]:
    return [
        {"key": key, "value": {"stringValue": value} if isinstance(value, str) else {"intValue": str(value)}}
        for key, value in attributes.items()
    ]


def otlp_proto(spans: Sequence[Span]) -> bytes:
    data = trace_pb2.TracesData()
    for span in spans:
        resource = _proto_attributes({"service.name": span.service, "service.instance.id": span.instance})
        scope = trace_pb2.ScopeSpans(scope=InstrumentationScope(name=span.library), spans=[_proto_span(span)])
        data.resource_spans.add(resource=Resource(attributes=resource), scope_spans=[scope])
    return data.SerializeToString()


def _proto_span(span: Span) -> trace_pb2.Span:
    return trace_pb2.Span(
        trace_id=span.trace_id.to_bytes(16, "big"),
        span_id=span.span_id.to_bytes(8, "big"),
        parent_span_id=span.parent_id.to_bytes(8, "big") if span.parent_id else b"",
        name=span.name,
        kind=trace_pb2.Span.SpanKind.Name(span.kind),  # type: ignore[arg-type]
        start_time_unix_nano=span.start,
        end_time_unix_nano=span.end,
        attributes=_proto_attributes(span.attributes),
        links=[
            trace_pb2.Span.Link(trace_id=trace.to_bytes(16, "big"), span_id=id_.to_bytes(8, "big"))
            for trace, id_ in span.links
        ],
    )


def _proto_attributes(attributes: Json) -> list[KeyValue]:
    return [
        KeyValue(key=key, value=AnyValue(string_value=value) if isinstance(value, str) else AnyValue(int_value=value))
        for key, value in attributes.items()
    ]


def framed(messages: Iterable[bytes]) -> bytes:
    """Four bytes of length before each, as the Collector's file exporter writes them."""
    return b"".join(struct.pack(">I", len(message)) + message for message in messages)


# --- Jaeger and Zipkin ---


def jaeger(spans: Sequence[Span]) -> Json:
    traces: dict[int, list[Span]] = defaultdict(list)
    for span in spans:
        traces[span.trace_id].append(span)
    return {"data": [_jaeger_trace(trace_id, own) for trace_id, own in traces.items()], "total": 0, "errors": None}


def _jaeger_trace(trace_id: int, spans: list[Span]) -> Json:
    sources = {source: f"p{number}" for number, source in enumerate({(s.service, s.instance): 0 for s in spans}, 1)}
    return {
        "traceID": _unpadded(trace_id),
        "spans": [_jaeger_span(span, sources[span.service, span.instance]) for span in spans],
        "processes": {
            name: {"serviceName": service, "tags": _jaeger_tags({"service.instance.id": instance})}
            for (service, instance), name in sources.items()
        },
        "warnings": None,
    }


def _jaeger_span(span: Span, process: str) -> Json:
    parent = [_reference("CHILD_OF", span.trace_id, span.parent_id)] if span.parent_id else []
    kind = {"span.kind": KINDS[span.kind].lower()} if span.kind else {}
    return {
        "traceID": _unpadded(span.trace_id),
        "spanID": span_hex(span.span_id),
        "operationName": span.name,
        "references": parent + [_reference("FOLLOWS_FROM", *link) for link in span.links],
        "startTime": span.start // US,
        "duration": (span.end - span.start) // US,
        "tags": _jaeger_tags({"otel.scope.name": span.library} | kind | span.attributes),
        "logs": [],
        "processID": process,
        "warnings": None,
    }


def _unpadded(trace_id: int) -> str:
    """As Jaeger shows an id: 16 digits when its upper half is zero."""
    return trace_hex(trace_id) if trace_id >> 64 else span_hex(trace_id)


def _reference(kind: str, trace_id: int, span_id: int) -> Json:
    return {"refType": kind, "traceID": _unpadded(trace_id), "spanID": span_hex(span_id)}


def _jaeger_tags(tags: Json) -> list[Json]:
    return [
        {"key": key, "type": "string" if isinstance(value, str) else "int64", "value": value}
        for key, value in tags.items()
    ]


def zipkin(spans: Sequence[Span]) -> list[Json]:
    return [_zipkin_span(span) for span in spans]


def _zipkin_span(span: Span) -> Json:
    tags = {key: str(value) for key, value in span.attributes.items()}
    tags |= {"service.instance.id": span.instance, "otel.scope.name": span.library, "otel.library.name": span.library}
    for number, (trace_id, span_id) in enumerate(span.links):
        tags[f"otlp.link.{number}"] = f"{trace_hex(trace_id)}|{span_hex(span_id)}||{{}}|0"
    told: Json = {
        "traceId": trace_hex(span.trace_id),
        "id": span_hex(span.span_id),
        "name": span.name,
        "timestamp": span.start // US,
        "duration": (span.end - span.start) // US,
        "localEndpoint": {"serviceName": span.service},
        "tags": tags,
    }
    if span.kind > 1:
        told["kind"] = KINDS[span.kind]
    return told | {"parentId": span_hex(span.parent_id)} if span.parent_id else told


# --- tables ---


OTEL_TRACES = """
    Timestamp DateTime64(9), TraceId String, SpanId String, ParentSpanId String, TraceState String,
    SpanName LowCardinality(String), SpanKind LowCardinality(String), ServiceName LowCardinality(String),
    ResourceAttributes {attributes}, ScopeName String, ScopeVersion String, SpanAttributes {attributes},
    Duration UInt64, StatusCode LowCardinality(String), StatusMessage String,
    Events Nested (Timestamp DateTime64(9), Name LowCardinality(String), Attributes {attributes}),
    Links Nested (TraceId String, SpanId String, TraceState String, Attributes {attributes})
"""
"""The columns of the Collector's exporter; attributes are a Map, or JSON in its newer layout."""


def rows(spans: Iterable[Span]) -> Iterator[Json]:
    """The rows of `otel_traces`, by its names."""
    for span in spans:
        yield {
            "Timestamp": span.start,
            "TraceId": trace_hex(span.trace_id),
            "SpanId": span_hex(span.span_id),
            "ParentSpanId": span_hex(span.parent_id) if span.parent_id else "",
            "SpanName": span.name,
            "SpanKind": KINDS[span.kind].capitalize(),
            "ServiceName": span.service,
            "ResourceAttributes": {"service.name": span.service, "service.instance.id": span.instance},
            "ScopeName": span.library,
            "SpanAttributes": {key: str(value) for key, value in span.attributes.items()},
            "Duration": span.end - span.start,
            "Links.TraceId": [trace_hex(trace_id) for trace_id, _ in span.links],
            "Links.SpanId": [span_hex(span_id) for _, span_id in span.links],
        }


DUCKDB_COLUMNS = {
    "Timestamp": "BIGINT",
    "TraceId": "VARCHAR",
    "SpanId": "VARCHAR",
    "ParentSpanId": "VARCHAR",
    "SpanName": "VARCHAR",
    "SpanKind": "VARCHAR",
    "ServiceName": "VARCHAR",
    "ResourceAttributes": "MAP(VARCHAR, VARCHAR)",
    "ScopeName": "VARCHAR",
    "SpanAttributes": "MAP(VARCHAR, VARCHAR)",
    "Duration": "UBIGINT",
    "Links.TraceId": "VARCHAR[]",
    "Links.SpanId": "VARCHAR[]",
}


def _fill(connection: duckdb.DuckDBPyConnection, table: str, spans: Iterable[Span]) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows(spans))
        file.flush()
        connection.execute(
            f"CREATE TABLE {table} AS SELECT * REPLACE (make_timestamp_ns(Timestamp) AS Timestamp) "
            f"FROM read_json('{file.name}', columns = {DUCKDB_COLUMNS}, format = 'newline_delimited')"
        )


def write_parquet(path: Path, spans: Sequence[Span]) -> None:
    with duckdb.connect() as connection:
        _fill(connection, "spans", spans)
        connection.execute(f"COPY spans TO '{path}' (FORMAT parquet)")


def write_duckdb(path: Path, spans: Sequence[Span]) -> None:
    with duckdb.connect(str(path)) as connection:
        _fill(connection, "otel_traces", spans)


# --- files ---


def _lines(spans: Sequence[Span]) -> bytes:
    return b"".join(json.dumps(otlp_json(batch)).encode() + b"\n" for batch in batches(spans))


def _write(convert: Callable[[Sequence[Span]], bytes]) -> Callable[[Path, Sequence[Span]], None]:
    return lambda path, spans: path.write_bytes(convert(spans)) and None


FILES: dict[str, Callable[[Path, Sequence[Span]], None]] = {
    "otlp.jsonl": _write(_lines),
    "otlp.jsonl.gz": _write(lambda spans: gzip.compress(_lines(spans))),
    "otlp.jsonl.zst": _write(lambda spans: zstd.compress(_lines(spans))),
    "otlp-pretty.json": _write(lambda spans: json.dumps(otlp_json(spans), indent=2).encode()),
    "otlp.pb": _write(lambda spans: framed(map(otlp_proto, batches(spans)))),
    "otlp-packed.pb": _write(lambda spans: framed(zstd.compress(otlp_proto(batch)) for batch in batches(spans))),
    "otlp-packed-json.pb": _write(
        lambda spans: framed(zstd.compress(json.dumps(otlp_json(batch)).encode()) for batch in batches(spans))
    ),
    "otlp-bare.pb": _write(otlp_proto),
    "jaeger.json": _write(lambda spans: json.dumps(jaeger(spans)).encode()),
    "zipkin.json": _write(lambda spans: json.dumps(zipkin(spans)).encode()),
    "spans.parquet": write_parquet,
    "spans.duckdb": write_duckdb,
}
"""How a file of each format is written; the name ends as such a file's would."""

ROUNDED = ("jaeger.json", "zipkin.json")
"""Formats whose times are microseconds, start and duration each by itself."""
