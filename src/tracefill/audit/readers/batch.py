"""Spans as a format tells them, checked and turned into columns, some thousands at a time.

A format's reader makes `Span` objects and hands them over with where they come from (`source`) and what their
attributes say (`traits`); what is valid is decided here, once for every format.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from tracefill.audit import spans as table

BATCH_SPANS = 4096
OFTEN_UNIQUE = ("url.path", "url.full", "http.target", "http.url", "messaging.message.id", "messaging.message_id")
TRACE_DIGITS, SPAN_DIGITS = 32, 16
ZERO = "0" * SPAN_DIGITS
TIME_LIMIT = 1 << 63

Tick = Callable[[int, int], None]
"""Told how many bytes and how many spans a step brought."""

Column = npt.NDArray[Any]
Traits = tuple[int, bool, int, int, int]
"""Thread, database, destination, peer, subject: the columns of the table that attributes fill."""

NO_TRAITS: Traits = (table.NO_THREAD, False, 0, 0, 0)

KIND_NAMES = ("INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
KINDS = {told: number for number, name in enumerate(KIND_NAMES, 1) for told in (name, str(number))}


class Link(msgspec.Struct, gc=False, rename="camel"):
    """A span's link to another."""

    trace_id: str = ""
    span_id: str = ""


class Span(msgspec.Struct, gc=False, kw_only=True):
    """A span before anybody has checked it; the names are OTLP's. Times are nanoseconds, 0 where they are not told."""

    trace_id: str = msgspec.field(name="traceId", default="")
    span_id: str = msgspec.field(name="spanId", default="")
    parent_id: str | None = msgspec.field(name="parentSpanId", default=None)
    name: str | None = None
    kind: int | str | None = None
    start: int = msgspec.field(name="startTimeUnixNano", default=0)
    end: int = msgspec.field(name="endTimeUnixNano", default=0)
    links: list[Link] | None = None


class SpanBatch:
    """Collects spans for a `SpansBuilder`.

    >>> batch = SpanBatch()
    >>> source = batch.source("orders", "orders-1", "shop")
    >>> batch.add([Span(trace_id="a" * 32, span_id="B" * 16, name="GET", kind="SERVER", start=1, end=2)], source)
    >>> batch.add([Span(trace_id="a" * 31, span_id="b" * 16, start=1, end=2)], source)
    >>> spans = batch.build()
    >>> spans.text("service", 0), hex(spans["span_id"][0]), spans.input.skipped_spans
    ('orders', '0xbbbbbbbbbbbbbbbb', 1)
    """

    def __init__(self) -> None:
        self.builder = table.SpansBuilder()
        self.input = self.builder.input
        self._intern = self.builder.intern
        self._sources: dict[tuple[str, str, str], int] = {}
        self._source_strings: list[tuple[int, int, int]] = []
        self._known: dict[tuple[tuple[str, object], ...], Traits] = {}
        self._clear()

    def source(self, service: str, instance: str, library: str) -> int:
        """The number of a place that spans come from."""
        place = (service, instance, library)
        if place not in self._sources:
            self._sources[place] = len(self._sources)
            texts = (service, table.process_name(service, instance), library)
            self._source_strings.append(tuple(self._intern(text) for text in texts))  # type: ignore[arg-type]
        return self._sources[place]

    def traits(self, attributes: Mapping[str, object]) -> Traits:
        """What the attributes say; those that an audit does not read may be left out."""
        if not attributes.keys().isdisjoint(OFTEN_UNIQUE):
            return self._new_traits(attributes)
        told = tuple(attributes.items())
        known = self._known.get(told)
        if known is None:
            known = self._known[told] = self._new_traits(attributes)
        return known

    def _new_traits(self, attributes: Mapping[str, object]) -> Traits:
        return (
            table.thread_of(attributes),
            table.is_database(attributes),
            self._intern(table.destination_of(attributes)),
            self._intern(table.peer_of(attributes)),
            table.subject_of(attributes),
        )

    def add(self, spans: Sequence[Span], source: int, traits: Sequence[Traits] | None = None) -> None:
        """Spans of one source, with the traits of each; without traits they tell nothing more."""
        self._spans += spans
        self._span_sources += [source] * len(spans)
        self._traits += traits or [NO_TRAITS] * len(spans)
        if len(self._spans) >= BATCH_SPANS:
            self._flush()

    def add_one(self, span: Span, service: str, instance: str, library: str, attributes: Mapping[str, object]) -> None:
        """A span with all that it says; attributes that an audit does not read are left out here."""
        told = {key: _scalar(value) for key, value in attributes.items() if key in table.ATTRIBUTES}
        self.add([span], self.source(service, instance, library), [self.traits(told)])

    def teller(self, tick: Tick) -> Callable[[int], None]:
        """What to call with a number of bytes, so that `tick` is told of them and of the spans that are new."""
        told = len(self)

        def tell(count: int) -> None:
            nonlocal told
            tick(count, len(self) - told)
            told = len(self)

        return tell

    def build(self) -> table.Spans:
        """The table of all spans added."""
        self._flush()
        return self.builder.build()

    def __len__(self) -> int:
        return len(self.builder) + len(self._spans)

    def _clear(self) -> None:
        self._spans: list[Span] = []
        self._span_sources: list[int] = []
        self._traits: list[Traits] = []

    def add_columns(self, columns: Mapping[str, Column], links: Mapping[str, Column]) -> None:
        """Many spans at once, by all columns of the table but `copies`; `link_row` counts from the first of them.

        Rows that are no spans are skipped and counted; links without valid ids lead nowhere and are left out.
        """
        valid = _valid(columns)
        self.input.skipped_spans += len(valid) - int(valid.sum())
        followed = valid[links["link_row"]] & (links["link_span_id"] != 0)
        followed &= links["link_trace_id_high"] | links["link_trace_id_low"] != 0
        links = {name: column[followed] for name, column in links.items()}
        links["link_row"] = (np.cumsum(valid) - 1)[links["link_row"]]
        self.builder.extend({name: column[valid] for name, column in columns.items()} | links)

    def _flush(self) -> None:
        if self._spans:
            self.add_columns(self._span_columns(self._spans), _link_columns(self._spans))
            self._clear()

    def _span_columns(self, spans: list[Span]) -> dict[str, Column]:
        trace_ids = ids([span.trace_id for span in spans], TRACE_DIGITS)
        sources = np.array(self._source_strings, np.int32)[self._span_sources]
        thread, database, destination, peer, subject = np.array(self._traits, np.int64).T
        return {
            "trace_id_high": trace_ids[:, 0],
            "trace_id_low": trace_ids[:, 1],
            "span_id": ids([span.span_id for span in spans], SPAN_DIGITS)[:, 0],
            "parent_id": ids([span.parent_id or ZERO for span in spans], SPAN_DIGITS)[:, 0],
            "start": times([span.start for span in spans]),
            "end": times([span.end for span in spans]),
            "kind": np.array([kind_number(span.kind) for span in spans], np.uint8),
            "name": np.array([self._intern(span.name or "") for span in spans], np.int32),
            "service": sources[:, 0],
            "process": sources[:, 1],
            "library": sources[:, 2],
            "thread": thread,
            "database": database,
            "destination": destination,
            "peer": peer,
            "subject": subject,
        }


def _scalar(value: object) -> str | int | None:
    return value if isinstance(value, str | int) and not isinstance(value, bool) else None


def ids(texts: list[str], digits: int) -> Column:
    """Hexadecimal ids of either case as rows of 64-bit numbers; 0 for what is not an id of so many digits.

    >>> ids(["A3CE929D0E0E47364BF92F3577B34DA6", "4bf92f3577b34da6", "xyz"], 32).tolist() == [
    ...     [0xA3CE929D0E0E4736, 0x4BF92F3577B34DA6], [0, 0x4BF92F3577B34DA6], [0, 0]]
    True
    """
    if not all(map(digits.__eq__, map(len, texts))):
        texts = [_padded(text, digits) for text in texts]
    try:
        raw = binascii.unhexlify("".join(texts))
    except ValueError:
        raw = b"".join(_bytes(text, digits) for text in texts)
    return np.frombuffer(raw, ">u8").astype(np.uint64).reshape(-1, digits // 16)


def _padded(text: str, digits: int) -> str:
    return text if len(text) == digits else text.zfill(digits) if len(text) == 16 else "0" * digits


def _bytes(text: str, digits: int) -> bytes:
    try:
        return binascii.unhexlify(text)
    except ValueError:
        return bytes(digits // 2)


def times(values: list[int]) -> Column:
    """Nanoseconds; 0 for what no clock shows."""
    try:
        return np.array(values, np.int64)
    except OverflowError:
        return np.array([value if 0 < value < TIME_LIMIT else 0 for value in values], np.int64)


@lru_cache(maxsize=1024)
def kind_number(kind: int | str | None) -> int:
    """The kind as OTLP numbers it; 0 for one that is not told or not known.

    >>> [kind_number(kind) for kind in (2, "2", "SPAN_KIND_SERVER", "Server", "server", "sever", 7, None)]
    [2, 2, 2, 2, 2, 0, 0, 0]
    """
    return KINDS.get(str(kind).upper().removeprefix("SPAN_KIND_"), 0)


def _valid(columns: Mapping[str, Column]) -> Column:
    """Which rows are spans: with a trace id, a span id, a start, and an end that is not before it."""
    has_ids = (columns["trace_id_high"] | columns["trace_id_low"] != 0) & (columns["span_id"] != 0)
    whole: Column = has_ids & (columns["start"] > 0) & (columns["end"] >= columns["start"])
    return whole


def _link_columns(spans: list[Span]) -> dict[str, Column]:
    links = [(row, link) for row, span in enumerate(spans) if span.links for link in span.links]
    trace_ids = ids([link.trace_id for _, link in links], TRACE_DIGITS)
    return {
        "link_row": np.array([row for row, _ in links], np.int64),
        "link_trace_id_high": trace_ids[:, 0],
        "link_trace_id_low": trace_ids[:, 1],
        "link_span_id": ids([link.span_id for _, link in links], SPAN_DIGITS)[:, 0],
    }
