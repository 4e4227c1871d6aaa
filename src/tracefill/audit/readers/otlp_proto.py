"""OTLP protobuf: frames of four bytes of length and a message, as the Collector's file exporter writes them.

With ``compression: zstd`` it compresses each message and frames JSON too, so a frame may hold either. A file that is
one bare message is read as well, each of its resources a record.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from tracefill.audit.readers import otlp_json
from tracefill.audit.readers.batch import Link, Span, SpanBatch
from tracefill.audit.readers.records import CutShort, DamagedRecord, read_records
from tracefill.audit.readers.unpacking import is_zstd, unpack_frame
from tracefill.audit.spans import ATTRIBUTES

FRAME_LIMIT = 1 << 30  # no exporter sends that much at once: it is not a length
RESOURCE_SPANS = 0x0A  # field 1 of the message, with a length


def read_frames(blocks: Iterable[bytes], file: str, batch: SpanBatch) -> int:
    """Read every frame of the file; the number of frames."""
    return read_records(_frames(_Bytes(blocks)), lambda frame: read_frame(frame, batch), file, batch.input)


def read_message(blocks: Iterable[bytes], file: str, batch: SpanBatch) -> int:
    """Read a file that is one message; the number of its resources."""
    return read_records(_resources(_Bytes(blocks)), lambda message: _read(message, batch), file, batch.input)


def read_frame(frame: bytes, batch: SpanBatch) -> None:
    """The spans of one frame. Raises `DamagedRecord`."""
    if is_zstd(frame):
        frame = unpack_frame(frame)
    if frame.startswith(b"{"):
        otlp_json.read_document(frame, batch)
    else:
        _read(frame, batch)


def _read(message: bytes, batch: SpanBatch) -> None:
    try:
        data = trace_pb2.TracesData.FromString(message)
    except DecodeError:
        raise DamagedRecord("not an OTLP protobuf message") from None
    for resource_spans in data.resource_spans:
        resource = _texts(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            service, instance = resource.get("service.name", ""), resource.get("service.instance.id", "")
            for span in scope_spans.spans:
                batch.add_one(_span(span), service, instance, scope_spans.scope.name, _told(span.attributes))


def _span(span: trace_pb2.Span) -> Span:
    return Span(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        name=span.name,
        kind=span.kind,
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        links=[Link(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
    )


def _texts(attributes: Iterable[KeyValue]) -> dict[str, str]:
    return {attribute.key: attribute.value.string_value for attribute in attributes}


def _told(attributes: Iterable[KeyValue]) -> dict[str, object]:
    return {attribute.key: _value(attribute.value) for attribute in attributes if attribute.key in ATTRIBUTES}


def _value(value: AnyValue) -> str | int | None:
    return value.string_value or (value.int_value if value.HasField("int_value") else None)


def _frames(file: _Bytes) -> Iterator[bytes]:
    while header := file.take(4):
        length = int.from_bytes(header, "big")
        if len(header) < 4 or length > FRAME_LIMIT:
            raise CutShort(f"not a frame: its length would be {header.hex()}")
        yield _whole(file.take(length), length)


def _resources(file: _Bytes) -> Iterator[bytes]:
    """Each field 1 of the message, as a message that holds nothing else."""
    while tag := file.take(1):
        if tag[0] != RESOURCE_SPANS:
            raise CutShort(f"not an OTLP protobuf message: field tag 0x{tag.hex()}")
        length, size = 0, b""
        while not size or (size[-1] >= 0x80 and len(size) < 10):
            size += _whole(file.take(1), 1)
            length |= (size[-1] & 0x7F) << 7 * (len(size) - 1)
        yield tag + size + _whole(file.take(min(length, FRAME_LIMIT)), length)


def _whole(text: bytes, length: int) -> bytes:
    if len(text) < length:
        raise CutShort(f"unexpected end: {length} bytes announced, {len(text)} there")
    return text


class _Bytes:
    """Blocks, taken by so many bytes."""

    def __init__(self, blocks: Iterable[bytes]):
        self._blocks = iter(blocks)
        self._text = b""
        self._at = 0

    def take(self, count: int) -> bytes:
        """So many bytes; fewer at the end of the file."""
        while len(self._text) - self._at < count and (block := next(self._blocks, b"")):
            self._text, self._at = self._text[self._at :] + block, 0
        text = self._text[self._at : self._at + count]
        self._at += len(text)
        return text
