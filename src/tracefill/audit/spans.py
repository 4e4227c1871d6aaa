"""The span table: what an audit knows of the spans, one numpy array a column, so that millions fit into memory.

Readers fill a `SpansBuilder`, `SpansBuilder.build` makes the `Spans`, `concat` joins those of several processes.

| column          | type   | what it holds                                                                          |
|-----------------|--------|----------------------------------------------------------------------------------------|
| `trace_id_high` | uint64 | upper half of the trace id; 0 for a 16-digit one                                       |
| `trace_id_low`  | uint64 | lower half                                                                             |
| `span_id`       | uint64 |                                                                                        |
| `parent_id`     | uint64 | 0: no parent (missing, empty or all-zero)                                              |
| `start`, `end`  | int64  | nanoseconds since 1970                                                                 |
| `thread`        | int64  | `thread.id`; `NO_THREAD` where it is not told                                          |
| `kind`          | uint8  | 0 not told, 1 `INTERNAL`, 2 `SERVER`, 3 `CLIENT`, 4 `PRODUCER`, 5 `CONSUMER`, as in OTLP |
| `database`      | bool   | has `db.system.name` or `db.system`                                                    |
| `copies`        | uint16 | how often this very span was exported; builders say 1, `Forest` counts                 |
| `name`          | int32  | number of a string: the span's name                                                    |
| `service`       | int32  | `service.name`                                                                         |
| `process`       | int32  | `service.name` + `service.instance.id`, as `process_name` joins them                   |
| `library`       | int32  | the instrumentation scope's name                                                       |
| `destination`   | int32  | where a message goes: `destination_of`                                                 |
| `peer`          | int32  | whom a CLIENT calls, what a SERVER is called by: `peer_of`                             |
| `subject`       | uint32 | what both sides of one call or message say alike: `subject_of`; 0 where it is not told |

String number 0 is the empty string: not told. Links are columns of their own: `link_row` (the row of the span that has
the link), `link_trace_id_high`, `link_trace_id_low`, `link_span_id`. A span takes 83 bytes, a link 28.
"""

from __future__ import annotations

import re
import zlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

INTERNAL, SERVER, CLIENT, PRODUCER, CONSUMER = 1, 2, 3, 4, 5
NO_THREAD = -1
DAMAGED_NAMED = 10_000  # a file of garbage must not fill the memory: the rest is counted, not named

_SPAN_COLUMNS = {
    "trace_id_high": "uint64",
    "trace_id_low": "uint64",
    "span_id": "uint64",
    "parent_id": "uint64",
    "start": "int64",
    "end": "int64",
    "thread": "int64",
    "kind": "uint8",
    "database": "bool",
    "copies": "uint16",
    "name": "int32",
    "service": "int32",
    "process": "int32",
    "library": "int32",
    "destination": "int32",
    "peer": "int32",
    "subject": "uint32",
}
_LINK_COLUMNS = {
    "link_row": "int32",
    "link_trace_id_high": "uint64",
    "link_trace_id_low": "uint64",
    "link_span_id": "uint64",
}
_STRING_COLUMNS = ("name", "service", "process", "library", "destination", "peer")

# The attributes (of the span, or of its resource for the service) that the functions below read.
ATTRIBUTES = frozenset(
    {
        "db.system.name",
        "db.system",
        "thread.id",
        "messaging.destination.name",
        "messaging.destination",
        "messaging.message.id",
        "messaging.message_id",
        "peer.service",
        "server.address",
        "net.peer.name",
        "net.host.name",
        "http.host",
        "url.full",
        "url.path",
        "http.url",
        "http.target",
        "rpc.service",
        "rpc.method",
    }
)
Attributes = Mapping[str, object]

# A URL that needs no more than cutting up; `urlsplit`, which takes ten times as long, judges all others.
_PLAIN_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://([A-Za-z0-9._-]+)(?::[0-9]*)?((?:/[^?#\t\r\n]*)?)(?:[?#]|\Z)")


@dataclass
class Damaged:
    """A record that is not exactly one document of its format; the first record of a file is 1."""

    file: str
    record: int
    reason: str


@dataclass
class Input:
    """What was read besides whole spans."""

    skipped_spans: int = 0
    damaged_records: int = 0
    damaged: list[Damaged] = field(default_factory=list)

    def add_damaged(self, file: str, record: int, reason: str) -> None:
        self.damaged_records += 1
        if len(self.damaged) < DAMAGED_NAMED:
            self.damaged.append(Damaged(file, record, reason))

    def add(self, other: Input) -> None:
        self.skipped_spans += other.skipped_spans
        self.damaged_records += other.damaged_records
        self.damaged += other.damaged[: DAMAGED_NAMED - len(self.damaged)]


@dataclass
class Spans:
    """The table (columns: see the module). Pickles; `len(spans)` is the number of rows."""

    columns: dict[str, npt.NDArray[Any]]
    strings: list[str]
    input: Input = field(default_factory=Input)

    def __len__(self) -> int:
        return len(self.columns["span_id"])

    def __getitem__(self, column: str) -> npt.NDArray[Any]:
        return self.columns[column]

    def text(self, column: str, row: int) -> str:
        """The string in a row: `spans.text("service", 7)`."""
        return self.strings[int(self.columns[column][row])]


class SpansBuilder:
    """Collects spans one by one or by columns, then builds the table.

    >>> builder = SpansBuilder()
    >>> builder.append(trace_id_low=0xA3, span_id=0xB7, start=10, end=20, kind=SERVER, name=builder.intern("GET /"))
    >>> builder.append_link(0, 0xA3, 0xB7)
    >>> spans = builder.build()
    >>> len(spans), spans.text("name", 0), spans["link_row"].tolist()
    (1, 'GET /', [0])
    """

    def __init__(self) -> None:
        self.input = Input()
        self._columns = {
            name: array(np.dtype("uint8" if dtype == "bool" else dtype).char)
            for name, dtype in (_SPAN_COLUMNS | _LINK_COLUMNS).items()
        }
        self._numbers = {"": 0}

    def __len__(self) -> int:
        return len(self._columns["span_id"])

    def intern(self, text: str) -> int:
        """The number of a string, the same for the same string."""
        return self._numbers.setdefault(text, len(self._numbers))

    def append(
        self,
        *,
        trace_id_high: int = 0,
        trace_id_low: int,
        span_id: int,
        parent_id: int = 0,
        start: int,
        end: int,
        thread: int = NO_THREAD,
        kind: int = 0,
        database: bool = False,
        name: int = 0,
        service: int = 0,
        process: int = 0,
        library: int = 0,
        destination: int = 0,
        peer: int = 0,
        subject: int = 0,
    ) -> None:
        """One span; strings as numbers from `intern`. Raises OverflowError, and adds nothing, for what does not fit."""
        columns = self._columns
        ids = (trace_id_high, trace_id_low, span_id, parent_id)
        row = (*ids, start, end, thread, kind, database, 1, name, service, process, library, destination, peer, subject)
        length = len(self)
        try:
            for column, value in zip(_SPAN_COLUMNS, row, strict=True):
                columns[column].append(value)
        except (OverflowError, TypeError):
            for column in _SPAN_COLUMNS:
                del columns[column][length:]
            raise

    def append_link(self, trace_id_high: int, trace_id_low: int, span_id: int) -> None:
        """A link of the span that was appended last."""
        columns = self._columns
        columns["link_row"].append(len(self) - 1)
        columns["link_trace_id_high"].append(trace_id_high)
        columns["link_trace_id_low"].append(trace_id_low)
        columns["link_span_id"].append(span_id)

    def extend(self, columns: Mapping[str, Sequence[int] | npt.NDArray[Any]]) -> None:
        """Many spans at once: columns of one length by name; those left out are not told. `link_row` counts from the
        first of these spans. Raises KeyError for a column that is not one of the module's table."""
        first, more = len(self), len(columns["span_id"])
        defaults = {"thread": NO_THREAD, "copies": 1}
        for name in _SPAN_COLUMNS:
            self._extend_column(name, columns.get(name, np.full(more, defaults.get(name, 0))))
        for name in _LINK_COLUMNS:
            values = np.asarray(columns.get(name, ()), dtype=_LINK_COLUMNS[name])
            self._extend_column(name, values + np.int32(first) if name == "link_row" else values)
        if unknown := columns.keys() - self._columns.keys():
            raise KeyError(f"no such columns: {sorted(unknown)}")

    def _extend_column(self, name: str, values: Sequence[int] | npt.NDArray[Any]) -> None:
        dtype = (_SPAN_COLUMNS | _LINK_COLUMNS)[name]
        self._columns[name].frombytes(np.ascontiguousarray(values, dtype=dtype).tobytes())

    def build(self) -> Spans:
        """The table; the builder is empty afterwards, its memory is the table's."""
        kinds = _SPAN_COLUMNS | _LINK_COLUMNS
        columns = {name: np.frombuffer(values, kinds[name]) for name, values in self._columns.items()}
        spans = Spans(columns, list(self._numbers), self.input)
        SpansBuilder.__init__(self)
        return spans


def concat(parts: Iterable[Spans]) -> Spans:
    """One table of several. The parts lose their columns on the way, one after the other: nothing is held twice."""
    parts = list(parts)
    numbers = {"": 0}
    renumbered = [_renumber(part.strings, numbers) for part in parts]
    first_rows = np.cumsum([0, *(len(part) for part in parts)])
    columns = {}
    for name in _SPAN_COLUMNS | _LINK_COLUMNS:
        pieces = [part.columns.pop(name) for part in parts]
        if name in _STRING_COLUMNS:
            pieces = [new[piece] for new, piece in zip(renumbered, pieces, strict=True)]
        if name == "link_row":
            pieces = [piece + np.int32(first) for first, piece in zip(first_rows, pieces, strict=False)]
        columns[name] = np.concatenate(pieces) if pieces else np.empty(0, (_SPAN_COLUMNS | _LINK_COLUMNS)[name])
    joined = Spans(columns, list(numbers))
    for part in parts:
        joined.input.add(part.input)
    return joined


def _renumber(strings: list[str], numbers: dict[str, int]) -> npt.NDArray[np.int32]:
    return np.array([numbers.setdefault(text, len(numbers)) for text in strings], dtype=np.int32)


# --- what the columns are made of; every reader asks these, so that each format tells the same ---


def process_name(service: str, instance: str = "") -> str:
    """A process is a service and one of its instances."""
    return f"{service}\0{instance}" if instance else service


def destination_of(attributes: Attributes) -> str:
    """The topic or queue of a message, by the new name or the old one.

    >>> destination_of({"messaging.destination": "orders.placed"})
    'orders.placed'
    """
    told = attributes.get
    return str(told("messaging.destination.name") or told("messaging.destination") or "")


def peer_of(attributes: Attributes) -> str:
    """The host or service called, without the port; for a SERVER the name it was called by. Empty when not told.

    >>> peer_of({"url.full": "http://orders:8080/v1/orders/7?x=1"})
    'orders'
    """
    told = attributes.get
    named = told("peer.service") or told("server.address") or told("net.peer.name") or told("net.host.name")
    if named := named or told("http.host"):
        return _without_port(str(named))
    url = told("url.full") or told("http.url")
    return _split_url(str(url))[0] if url else ""


def subject_of(attributes: Attributes) -> int:
    """CRC-32 of what both sides of one call or message say alike; 0 when neither is told:
    the message's id, else the path of the URL, else the RPC's service and method.

    >>> subject_of({"http.url": "http://orders/v1?x=1"}) == subject_of({"url.path": "/v1"}) != 0
    True
    >>> subject_of({"rpc.service": "a.B", "rpc.method": "C"}) == subject_of({"rpc.method": "a.B/C"}) != 0
    True
    """
    return zlib.crc32(_subject(attributes).encode("utf-8", "surrogatepass"))


def is_database(attributes: Attributes) -> bool:
    return "db.system.name" in attributes or "db.system" in attributes


def thread_of(attributes: Attributes) -> int:
    """`thread.id`, a number or its decimal text; `NO_THREAD` when it is not told, or not such a number."""
    try:
        number = int(attributes.get("thread.id", NO_THREAD))  # type: ignore[call-overload]
    except (TypeError, ValueError):
        return NO_THREAD
    return number if -(1 << 63) <= number < 1 << 63 else NO_THREAD


def _subject(attributes: Attributes) -> str:
    told = attributes.get
    if message := told("messaging.message.id") or told("messaging.message_id"):
        return str(message)
    if path := told("url.path") or told("http.target") or _url_path(told("url.full") or told("http.url")):
        return str(path).partition("?")[0]
    method = str(told("rpc.method") or "")
    return method if "/" in method or not method else f"{told('rpc.service') or ''}/{method}"


def _url_path(url: object) -> str:
    return _split_url(str(url))[1] if url else ""


@lru_cache(maxsize=1024)
def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() and ":" not in name else host


@lru_cache(maxsize=64)  # asked twice a span: for the host and for the path
def _split_url(url: str) -> tuple[str, str]:
    if plain := _PLAIN_URL.match(url):
        return plain[1].lower(), plain[2]
    try:
        parts = urlsplit(url)
        return parts.hostname or "", parts.path
    except ValueError:
        return "", ""
