"""Zipkin's JSON, version 2: a list of spans.

A record is a span. Times are microseconds; what OTLP has fields for is in tags: links as ``otlp.link.N``, the scope,
the instance. There is no kind for INTERNAL.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from tracefill.audit.readers.batch import Link, Span, SpanBatch
from tracefill.audit.readers.json_stream import JsonStream
from tracefill.audit.readers.records import (
    json_integer,
    json_member,
    json_object,
    json_text,
    parse_json,
    read_records,
)

LINK = re.compile(r"otlp\.link\.[0-9]+")
SERVER_HALF = 1 << 63


def read(blocks: Iterable[bytes], file: str, batch: SpanBatch) -> int:
    """Read every span of the file; the number of them."""
    return read_records(_spans(blocks), lambda span: read_span(span, batch), file, batch.input)


def _spans(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The elements of one list or of several that follow each other."""
    stream = JsonStream(blocks)
    while stream.enter(b"["):
        yield from stream.elements()
    yield from stream.documents()  # what follows has no business here, and is damaged


def read_span(record: bytes, batch: SpanBatch) -> None:
    """One span. Raises `DamagedRecord`."""
    told = json_object(parse_json(record))
    tags = json_member(told, "tags")
    endpoint, peer = (
        json_member(told, "localEndpoint"),
        json_text(json_member(told, "remoteEndpoint").get("serviceName")),
    )
    service = json_text(endpoint.get("serviceName")) or json_text(tags.get("service.name"))
    library = json_text(tags.get("otel.scope.name")) or json_text(tags.get("otel.library.name"))
    attributes = {"peer.service": peer, **tags} if peer else tags
    batch.add_one(_span(told, tags), service, json_text(tags.get("service.instance.id")), library, attributes)


def _span(told: dict[str, Any], tags: dict[str, Any]) -> Span:
    start, duration = json_integer(told.get("timestamp")), json_integer(told.get("duration"), -1)
    span_id, parent_id = json_text(told.get("id")), json_text(told.get("parentId"))
    return Span(
        trace_id=json_text(told.get("traceId")),
        span_id=_server_half(span_id) if told.get("shared") is True else span_id,
        parent_id=span_id if told.get("shared") is True else parent_id,
        name=json_text(told.get("name")),
        kind=json_text(told.get("kind")) or json_text(tags.get("span.kind")),
        start=start * 1000,
        end=(start + duration) * 1000 if duration >= 0 else 0,
        links=[_link(json_text(tags[tag])) for tag in sorted(filter(LINK.fullmatch, tags))],
    )


def _server_half(span_id: str) -> str:
    """The id of a SERVER that shares its caller's, as B3 allows: one id made two, so that they are caller and callee.

    >>> _server_half("00f067aa0ba902b7")
    '80f067aa0ba902b7'
    """
    try:
        return f"{int(span_id, 16) ^ SERVER_HALF:016x}"
    except ValueError:
        return ""


def _link(text: str) -> Link:
    """Of trace id, span id, trace state, attributes and their number, joined by bars, the first two."""
    trace_id, _, rest = text.partition("|")
    return Link(trace_id, rest.partition("|")[0])
