"""The measures inside a ClickHouse cluster: nothing but counts leaves it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tracefill.audit.engines import BUCKET_SECONDS, Measures
from tracefill.audit.engines.sql import Dialect, Run, measure
from tracefill.audit.readers.clickhouse import Query, Server, attribute, column_types, literal, server_of
from tracefill.audit.readers.fetching import shown
from tracefill.audit.readers.records import SourceError
from tracefill.audit.readers.sources import begins

# Of a sharded table the joins run where all of it is seen; what finds no partner is NULL, as everywhere else.
SETTINGS = """
SETTINGS join_use_nulls = 1, distributed_product_mode = 'global', output_format_json_quote_64bit_integers = 0
FORMAT JSONCompactEachRow
"""

SPANS = """
SELECT lower(if(length(TraceId) = 16, concat('0000000000000000', TraceId), TraceId)) AS trace, lower(SpanId) AS span,
    if(match(ParentSpanId, '^[0-9a-fA-F]{{16}}$') AND ParentSpanId != '0000000000000000', lower(ParentSpanId), '') AS parent,
    toString(SpanName) AS name, {kind} AS kind, toString(ServiceName) AS service, ifNull({instance}, '') AS instance,
    ScopeName AS library, {destination} AS destination, {database} AS database,
    toUnixTimestamp64Nano(toDateTime64(Timestamp, 9)) AS start, toInt64(start + Duration) AS stop,
    arrayMap(id -> lower(if(length(id) = 16, concat('0000000000000000', id), id)), Links.TraceId) AS link_traces,
    arrayMap(id -> lower(id), Links.SpanId) AS link_spans, length(Links.TraceId) AS links
FROM {source}
WHERE {condition} AND match(TraceId, '^([0-9a-fA-F]{{16}}){{1,2}}$') AND match(TraceId, '[^0]')
    AND match(SpanId, '^[0-9a-fA-F]{{16}}$') AND match(SpanId, '[^0]')
    AND start > 0 AND Duration <= 9223372036854775807 - start
"""


def measure_url(
    url: str, *, bucket_seconds: int = BUCKET_SECONDS, edge_seconds: float | None = None, shards: int = 0
) -> Measures:
    """The measures of a table in ClickHouse; the URL is that of the reader. Raises `SourceError`."""
    server = server_of(url)
    run = _runner(server.query, shown(url))
    types = column_types(server.query, server.source, shown(url))
    return measure(run, dialect(server, types), bucket_seconds=bucket_seconds, edge_seconds=edge_seconds, shards=shards)


def dialect(server: Server, types: dict[str, str]) -> Dialect:
    """ClickHouse's words for the table of this server."""

    def span_attribute(key: str) -> str:
        return f"ifNull({attribute('SpanAttributes', key, types)}, '')"

    names = "['INTERNAL', 'SERVER', 'CLIENT', 'PRODUCER', 'CONSUMER']"
    new, old = span_attribute("messaging.destination.name"), span_attribute("messaging.destination")
    source = f"{server.source} WHERE {server.condition}"
    return Dialect(
        spans=SPANS.format(
            kind=f"toUInt8(indexOf({names}, upper(replaceRegexpOne(toString(SpanKind), '^(?i)span_kind_', ''))))",
            instance=attribute("ResourceAttributes", "service.instance.id", types),
            destination=f"if({new} != '', {new}, {old})",
            database=f"toUInt8({_has('db.system.name', types)} OR {_has('db.system', types)})",
            source=server.source,
            condition=server.condition,
        ),
        count_rows=f"SELECT count(*) FROM {source} FORMAT JSONCompactEachRow",
        shard="cityHash64({}) % {} = {}",
        divide="intDiv({}, {})",
        each_link="SELECT *, link_trace, link_span FROM {} ARRAY JOIN link_traces AS link_trace, link_spans AS link_span",
        literal=literal,
        settings=SETTINGS,
    )


def _has(key: str, types: dict[str, str]) -> str:
    if types["SpanAttributes"].startswith("JSON"):
        return f"isNotNull({attribute('SpanAttributes', key, types)})"
    return f"mapContains(SpanAttributes, {literal(key)})"


def _runner(query: Query, name: str) -> Run:
    def run(sql: str) -> Sequence[Sequence[Any]]:
        answer = b"".join(query(sql))
        try:
            return [msgspec.json.decode(line, type=list[Any]) for line in answer.splitlines()]
        except msgspec.MsgspecError:
            raise SourceError(f"{name}: expected rows, came {begins(answer)}") from None

    return run
