"""OTLP JSON: a document a line, as OpenTelemetry's file exporters and the Collector's write it.

Also the answers of Jaeger's ``/api/v3/traces``, which wrap the same document in ``{"result": ...}``.

Nearly every line passes the typed decoder, which picks out the fields that an audit needs. A line that it refuses is
looked at again, slowly, field by field: what is not a document is damaged, what is merely odd counts as not told.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from tracefill.audit.readers.batch import NO_TRAITS, Link, Span, SpanBatch, Traits
from tracefill.audit.readers.json_stream import JsonStream
from tracefill.audit.readers.records import (
    json_integer,
    json_member,
    json_object,
    json_objects,
    json_text,
    lines,
    parse_json,
    read_records,
)
from tracefill.audit.spans import ATTRIBUTES


class Value(msgspec.Struct, gc=False, frozen=True, rename="camel"):
    string_value: str | None = None
    int_value: int | None = None


class Attribute(msgspec.Struct, gc=False, frozen=True):
    key: str = ""
    value: Value = Value()


class OtlpSpan(Span, gc=False, kw_only=True):
    attributes: list[Attribute] | None = None


class Scope(msgspec.Struct, gc=False, frozen=True):
    name: str = ""


class ScopeSpans(msgspec.Struct, gc=False):
    scope: Scope | None = None
    spans: list[OtlpSpan] | None = None


class Resource(msgspec.Struct, gc=False, frozen=True):
    attributes: list[Attribute] | None = None


class ResourceSpans(msgspec.Struct, gc=False, rename="camel"):
    resource: Resource | None = None
    scope_spans: list[ScopeSpans] | None = None


class TracesData(msgspec.Struct, gc=False, rename="camel"):
    resource_spans: list[ResourceSpans] | None = None
    result: TracesData | None = None


NO_NUMBER = 1 << 80  # no integer of OTLP is as large

DECODER = msgspec.json.Decoder(TracesData, strict=False)  # not strict: 64-bit integers may be strings


def read_lines(blocks: Iterable[bytes], file: str, batch: SpanBatch) -> int:
    """Read a document a line; the number of lines."""
    return read_records(lines(blocks), lambda line: read_document(line, batch), file, batch.input)


def read_documents(blocks: Iterable[bytes], file: str, batch: SpanBatch) -> int:
    """Read documents that go over many lines, as `jq` and people write them; the number of documents."""
    documents = JsonStream(blocks).documents()
    return read_records(documents, lambda document: read_document(document, batch), file, batch.input)


def read_document(document: bytes, batch: SpanBatch) -> None:
    """The spans of one document; a blank one has none. Raises `DamagedRecord`."""
    try:
        data = DECODER.decode(document)
        if not document.isascii():
            document.decode()  # the decoder does not look into strings that it does not need
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        if not document.strip():
            return
        data = _patient_decode(document)
    _add(data, batch)


def _add(data: TracesData, batch: SpanBatch) -> None:
    if data.result:
        _add(data.result, batch)
    for resource_spans in data.resource_spans or ():
        service, instance = _service(resource_spans.resource)
        for scope_spans in resource_spans.scope_spans or ():
            source = batch.source(service, instance, scope_spans.scope.name if scope_spans.scope else "")
            spans = scope_spans.spans or ()
            batch.add(spans, source, [_traits(span.attributes, batch) for span in spans])


def _service(resource: Resource | None) -> tuple[str, str]:
    told = {attribute.key: _told(attribute.value) for attribute in resource.attributes or ()} if resource else {}
    return str(told.get("service.name") or ""), str(told.get("service.instance.id") or "")


def _traits(attributes: list[Attribute] | None, batch: SpanBatch) -> Traits:
    if not attributes:
        return NO_TRAITS
    told = {attribute.key: _told(attribute.value) for attribute in attributes if attribute.key in ATTRIBUTES}
    return batch.traits(told) if told else NO_TRAITS


def _told(value: Value) -> str | int | None:
    return value.string_value or value.int_value


def _patient_decode(document: bytes) -> TracesData:
    return _patient_data(json_object(parse_json(document)))


def _patient_data(data: dict[str, Any]) -> TracesData:
    result = json_member(data, "result")
    return TracesData(
        [
            ResourceSpans(
                Resource(_patient_attributes(json_member(resource_spans, "resource"))),
                [
                    ScopeSpans(
                        Scope(json_text(json_member(scope_spans, "scope").get("name"))),
                        [_patient_span(span) for span in json_objects(scope_spans, "spans")],
                    )
                    for scope_spans in json_objects(resource_spans, "scopeSpans")
                ],
            )
            for resource_spans in json_objects(data, "resourceSpans")
        ],
        _patient_data(result) if result else None,
    )


def _patient_span(span: dict[str, Any]) -> OtlpSpan:
    kind = span.get("kind")
    return OtlpSpan(
        trace_id=json_text(span.get("traceId")),
        span_id=json_text(span.get("spanId")),
        parent_id=json_text(span.get("parentSpanId")),
        name=json_text(span.get("name")),
        kind=kind if isinstance(kind, str) else json_integer(kind),
        start=json_integer(span.get("startTimeUnixNano")),
        end=json_integer(span.get("endTimeUnixNano")),
        attributes=_patient_attributes(span),
        links=[
            Link(json_text(link.get("traceId")), json_text(link.get("spanId"))) for link in json_objects(span, "links")
        ],
    )


def _patient_attributes(owner: dict[str, Any]) -> list[Attribute]:
    return [
        Attribute(json_text(attribute.get("key")), _patient_value(json_member(attribute, "value")))
        for attribute in json_objects(owner, "attributes")
    ]


def _patient_value(value: dict[str, Any]) -> Value:
    number = json_integer(value.get("intValue"), NO_NUMBER)
    return Value(json_text(value.get("stringValue")), None if number == NO_NUMBER else number)
