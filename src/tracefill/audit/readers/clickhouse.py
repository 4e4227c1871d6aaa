"""ClickHouse: the table ``otel_traces`` of the Collector's exporter, read through the HTTP interface.

``clickhouse://user:password@host:8123/database?table=otel_traces&since=2026-01-01T00:00:00Z&until=...``, with
``clickhouses`` for TLS; or ``http://host:8123/...``. A row is a record, and no row is damaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from tracefill.audit.readers.batch import Link, Span, SpanBatch, Tick
from tracefill.audit.readers.fetching import fetch, shown
from tracefill.audit.readers.records import SourceError, lines
from tracefill.audit.readers.sources import begins, counted
from tracefill.audit.spans import ATTRIBUTES, Spans

SCHEMES = ("clickhouse", "clickhouses")
COLUMNS = (
    "Timestamp", "TraceId", "SpanId", "ParentSpanId", "SpanName", "SpanKind", "ServiceName", "ResourceAttributes",
    "ScopeName", "SpanAttributes", "Duration", "Links.TraceId", "Links.SpanId",
)  # fmt: skip

Query = Callable[[str], Iterable[bytes]]
"""Runs SQL and gives its answer as blocks of bytes."""


class Row(msgspec.Struct, gc=False, array_like=True):
    """A row of the answer, in the order of `_select`."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: str
    service: str
    instance: str | None
    library: str
    start: int
    duration: int
    attributes: dict[str, str | None]
    link_trace_ids: list[str]
    link_span_ids: list[str]


class Server(NamedTuple):
    """Where the table is, and which part of it is asked for."""

    url: str
    user: str = "default"
    password: str = ""
    database: str = "default"
    table: str = "otel_traces"
    since: str = ""
    until: str = ""

    @property
    def source(self) -> str:
        """The table, for SQL."""
        return f"{identifier(self.database)}.{identifier(self.table)}"

    @property
    def condition(self) -> str:
        """Which rows, for SQL."""
        return " AND ".join(
            f"Timestamp {operator} parseDateTime64BestEffort({literal(time)}, 9)"
            for operator, time in ((">=", self.since), ("<", self.until))
            if time
        ) or "1"  # fmt: skip

    def query(self, sql: str) -> Iterator[bytes]:
        """Runs the SQL. Raises `SourceError`."""
        headers = {"X-ClickHouse-User": self.user, "X-ClickHouse-Key": self.password}
        yield from fetch(self.url, f"ClickHouse's table {self.source}", headers=headers, data=sql.encode())


def server_of(url: str) -> Server:
    """What a URL says of the server.

    >>> server_of("clickhouse://reader:s%40fe@db/otel?table=spans")[:5]
    ('http://db:8123', 'reader', 's@fe', 'otel', 'spans')
    """
    parts = urlsplit(url)
    told = dict(parse_qsl(parts.query))
    secure = parts.scheme in ("clickhouses", "https") or told.get("secure") in ("1", "true")
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or "localhost"
    return Server(
        url=f"http{'s' * secure}://{host}:{parts.port or (8443 if secure else 8123)}",
        user=unquote(parts.username or told.get("user") or "default"),
        password=unquote(parts.password or told.get("password") or ""),
        database=parts.path.strip("/") or told.get("database") or "default",
        table=told.get("table") or "otel_traces",
        since=told.get("since", ""),
        until=told.get("until", ""),
    )


def identifier(name: str) -> str:
    """A name, for SQL."""
    escaped = name.replace("\\", "\\\\").replace("`", "\\`")
    return f"`{escaped}`"


def literal(text: str) -> str:
    """A string, for SQL."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def read_url(url: str, tick: Tick) -> Spans:
    """The spans of the table. Raises `SourceError` when it is not there, or not such a table."""
    server = server_of(url)
    return read_table(server.query, server.source, server.condition, shown(url), tick)


def read_table(query: Query, source: str, condition: str, name: str, tick: Tick) -> Spans:
    """The spans of a table behind any engine that speaks ClickHouse's SQL."""
    types = column_types(query, source, name)
    batch = SpanBatch()
    decoder = msgspec.json.Decoder(Row, strict=False)
    sql = f"SELECT {_select(types)} FROM {source} WHERE {condition} FORMAT JSONCompactEachRow"
    for line in lines(counted(query(sql), batch.teller(tick))):
        _add(_row(line, decoder, name), batch)
    return batch.build()


def column_types(query: Query, source: str, name: str) -> dict[str, str]:
    """The types of the table's columns by name. Raises `SourceError` when it is not a table of spans."""
    answer = b"".join(query(f"DESCRIBE TABLE {source} FORMAT JSONCompactEachRow"))
    try:
        types = {row[0]: row[1] for row in map(_json_list, answer.splitlines())}
    except (msgspec.MsgspecError, IndexError):
        raise SourceError(f"{name}: expected ClickHouse's columns of {source}, came {begins(answer)}") from None
    if missing := [column for column in COLUMNS if column not in types]:
        raise SourceError(
            f"{name}: expected the Collector's layout of spans, but {source} has no {', '.join(missing)}; "
            f"it has {', '.join(types)}"
        )
    return types


def _json_list(line: bytes) -> list[str]:
    return msgspec.json.decode(line, type=list[str])


def _select(types: dict[str, str]) -> str:
    """The columns of `Row`, for SQL."""
    return ", ".join(
        (
            "TraceId, SpanId, ParentSpanId, SpanName, SpanKind, ServiceName",
            attribute("ResourceAttributes", "service.instance.id", types),
            "ScopeName, toUnixTimestamp64Nano(toDateTime64(Timestamp, 9)), Duration",
            _attributes(types),
            "Links.TraceId, Links.SpanId",
        )
    )


def attribute(column: str, key: str, types: dict[str, str]) -> str:
    """One attribute, for SQL; NULL or empty where it is not told."""
    if types[column].startswith("JSON"):
        return f"CAST({column}.{identifier(key)}, 'Nullable(String)')"
    return f"{column}[{literal(key)}]"


def _attributes(types: dict[str, str]) -> str:
    keys = sorted(ATTRIBUTES)
    if types["SpanAttributes"].startswith("JSON"):
        pairs = (f"{literal(key)}, {attribute('SpanAttributes', key, types)}" for key in keys)
        return f"mapFilter((k, v) -> isNotNull(v), map({', '.join(pairs)}))"
    return f"mapFilter((k, v) -> k IN ({', '.join(map(literal, keys))}), SpanAttributes)"


def _row(line: bytes, decoder: msgspec.json.Decoder[Row], name: str) -> Row:
    try:
        return decoder.decode(line)
    except UnicodeDecodeError:
        return decoder.decode(line.decode(errors="replace"))
    except msgspec.MsgspecError:  # an error that ClickHouse met on the way is the last line of its answer
        raise SourceError(f"{name}: expected rows, came {begins(line)}") from None


def _add(row: Row, batch: SpanBatch) -> None:
    span = Span(
        trace_id=row.trace_id,
        span_id=row.span_id,
        parent_id=row.parent_id,
        name=row.name,
        kind=row.kind,
        start=row.start,
        end=row.start + row.duration,
        links=[Link(*ids) for ids in zip(row.link_trace_ids, row.link_span_ids, strict=False)],
    )
    batch.add_one(span, row.service, row.instance or "", row.library, row.attributes)
