"""The measures inside DuckDB, of Parquet files and databases of any size."""

from __future__ import annotations

from pathlib import Path

from tracefill.audit.engines import BUCKET_SECONDS, Measures
from tracefill.audit.engines.sql import Dialect, measure
from tracefill.audit.readers.columns import TableSql, literal, opened
from tracefill.audit.readers.records import SourceError
from tracefill.audit.readers.sources import TABLES, head_of, recognise

KINDS = ["INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"]

SPANS = """
SELECT lower(CASE WHEN length(trace_id) = 16 THEN repeat('0', 16) || trace_id ELSE trace_id END) AS trace,
    lower(span_id) AS span,
    CASE WHEN short(parent_id) > 0 THEN lower(parent_id) ELSE '' END AS parent, name, kind, service, instance, library,
    destination, database, start, stop, link_traces, link_spans, links
FROM (
    SELECT {trace_id} AS trace_id, {span_id} AS span_id, coalesce({parent_id}, '') AS parent_id,
        coalesce({name}, '') AS name, {kind} AS kind, coalesce({service}, '') AS service,
        coalesce({instance}, '') AS instance, coalesce({library}, '') AS library,
        coalesce(nullif({destination}, ''), {old_destination}, '') AS destination,
        CASE WHEN {database} IS NULL AND {old_database} IS NULL THEN 0 ELSE 1 END AS database,
        {start} AS start, {end} AS stop, {link_traces} AS link_traces, {link_spans} AS link_spans,
        len({link_traces}) AS links
    FROM {relation}
) AS told
WHERE high(trace_id) + low(trace_id)::HUGEINT > 0 AND short(span_id) > 0 AND start > 0 AND stop >= start
"""


def measure_file(
    path: Path, *, bucket_seconds: int = BUCKET_SECONDS, edge_seconds: float | None = None, shards: int = 0
) -> Measures:
    """The measures of a Parquet file or of a database with one table of spans. Raises `SourceError`."""
    kind = recognise(head_of(path))
    if kind not in TABLES:
        raise SourceError(f"{path}: expected {' or '.join(TABLES)}, came {kind or 'something else'}")
    with opened(path, kind) as (connection, tables):
        if len(tables) > 1:
            raise SourceError(
                f"{path}: expected one table of spans, came {', '.join(one.relation.sql for one in tables)}"
            )
        words = dialect(tables[0])
        connection.execute(f"CREATE TEMP TABLE kept AS {words.spans}")  # read once; it is asked for again and again
        return measure(
            lambda sql: connection.execute(sql).fetchall(),
            words._replace(spans="SELECT * FROM kept"),
            bucket_seconds=bucket_seconds,
            edge_seconds=edge_seconds,
            shards=shards,
        )


def dialect(sql: TableSql) -> Dialect:
    """DuckDB's words for this table."""
    kind = f"upper(regexp_replace({sql.text('kind')}, '^span_kind_', '', 'i'))"
    numbers = [str(number) for number in range(1, len(KINDS) + 1)]
    link_traces, link_spans = sql.link_ids() or ("[]::VARCHAR[]", "[]::VARCHAR[]")
    return Dialect(
        spans=SPANS.format(
            trace_id=sql.id("trace_id"),
            span_id=sql.id("span_id"),
            parent_id=sql.id("parent_id"),
            name=sql.text("name"),
            kind=f"coalesce(list_position({KINDS}, {kind}), list_position({numbers}, {kind}), 0)",
            service=sql.text("service"),
            instance=sql.attribute("resource", "service.instance.id"),
            library=sql.text("library"),
            destination=sql.attribute("attributes", "messaging.destination.name"),
            old_destination=sql.attribute("attributes", "messaging.destination"),
            database=sql.attribute("attributes", "db.system.name"),
            old_database=sql.attribute("attributes", "db.system"),
            start=sql.time("start"),
            end=sql.end(),
            link_traces=link_traces,
            link_spans=link_spans,
            relation=sql.relation.sql,
        ),
        count_rows=f"SELECT count(*) FROM {sql.relation.sql}",
        shard="hash({}) % {} = {}",
        divide="{} // {}",
        each_link=(
            "SELECT * REPLACE (lower(CASE WHEN length(link_trace) = 16 THEN repeat('0', 16) || link_trace "
            "ELSE link_trace END) AS link_trace, lower(link_span) AS link_span) "
            "FROM (SELECT *, unnest(link_traces) AS link_trace, unnest(link_spans) AS link_span FROM {}) AS linking"
        ),
        literal=literal,
    )
