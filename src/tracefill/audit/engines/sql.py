"""The measures as SQL: the same statements for ClickHouse and DuckDB, but for the words that a `Dialect` translates.

Spans are taken in shards by a hash of the lower half of the trace id: a trace, and what was torn from it by a cut id,
lie in one shard, and the joins of a shard fit into memory. What every shard has to know (which operations are called,
which traces run in circles) is asked in a first round.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from tracefill.audit.engines import BUCKET_SECONDS, Bucket, Edge, FarSide, Measures, NearSide
from tracefill.audit.engines.in_memory import edges_of
from tracefill.audit.forest import Forest
from tracefill.audit.spans import SpansBuilder, process_name
from tracefill.audit.window import SECOND, Window

ROWS_A_SHARD = 1 << 24
NEVER = (1 << 63) - 1

Row = tuple[Any, ...]
Operation = tuple[str, str]
Run = Callable[[str], Sequence[Sequence[Any]]]
"""Runs SQL and gives its rows."""


class Dialect(NamedTuple):
    """What the engines say differently.

    `spans` selects the valid rows of the table, with the columns trace, span, parent (hexadecimal in lower case, the
    parent empty where there is none), name, kind (its number in OTLP), service, instance, library, destination,
    database (0 or 1), start, stop (nanoseconds), link_traces and link_spans (lists of ids), links (their number).
    """

    spans: str
    count_rows: str  # a whole statement
    shard: str  # of {0}, one of {1} shards
    divide: str  # {0} by {1}, rounded down
    each_link: str  # all columns of {0}, and one link_trace and link_span of the lists in each row
    literal: Callable[[str], str]
    settings: str = ""


# One row a span, however often it was exported; of spans that share an id the first one's children are all children.
PRELUDE = """
WITH
valid AS ({spans}),
copies AS (
    SELECT trace, span, parent, name, kind, service, instance, start, stop, min(library) AS lib,
        min(destination) AS goal, max(database) AS data, max(links) AS linking, count(*) AS exported
    FROM valid WHERE {in_shard} GROUP BY trace, span, parent, name, kind, service, instance, start, stop
),
placed AS (
    SELECT *, row_number() OVER (
        PARTITION BY trace, span ORDER BY start, stop, parent, name, kind, service, instance
    ) AS place FROM copies
),
ids AS (SELECT * FROM placed WHERE place = 1),
uncut AS (SELECT DISTINCT substring(trace, 17) AS low, span FROM ids WHERE substring(trace, 1, 16) <> {zeros}),
family AS (
    SELECT c.trace AS trace, c.span AS span, c.parent AS parent, c.name AS name, c.kind AS kind, c.service AS service,
        c.instance AS instance, c.lib AS lib, c.goal AS goal, c.linking AS linking, c.start AS start,
        p.start AS near_start, p.kind AS near_kind, p.service AS near_service, p.instance AS near_instance,
        p.goal AS near_goal,
        CASE
            WHEN c.parent = '' THEN 'root'
            WHEN p.span IS NOT NULL THEN 'kept'
            WHEN u.span IS NOT NULL AND substring(c.trace, 1, 16) = {zeros} THEN 'truncated'
            WHEN c.kind IN (2, 5) THEN 'far'
            ELSE 'missing'
        END AS state
    FROM copies AS c
    LEFT JOIN ids AS p ON c.trace = p.trace AND c.parent = p.span
    LEFT JOIN uncut AS u ON substring(c.trace, 17) = u.low AND c.parent = u.span
),
linked AS (
    SELECT l.*, p.kind AS near_kind, p.service AS near_service, p.instance AS near_instance, p.goal AS near_goal,
        p.trace AS near_trace, p.span AS near_span
    FROM (
        SELECT * FROM ({each_link}) AS pointing WHERE {link_in_shard}
    ) AS l
    JOIN ids AS p ON l.link_trace = p.trace AND l.link_span = p.span
)
"""

WINDOW = "SELECT count(*), min(start), max(stop) FROM ({spans}) AS valid"
COPIES = "SELECT count(*), coalesce(sum(exported), 0) FROM copies"

CROSSES = "CASE WHEN near_kind IN (3, 4) OR near_service <> service OR near_instance <> instance THEN 1 ELSE 0 END"
EDGE = "near_service, near_instance, near_kind, near_goal, service, instance, kind, name, {goal}, {library}"
FAR_SIDES = f"""
SELECT state, {EDGE.format(goal="goal", library="lib")}, {CROSSES} AS crosses,
    sum(CASE WHEN state = 'root' AND linking > 0 THEN 0 ELSE 1 END)
FROM family WHERE kind IN (2, 5) AND state <> 'truncated'
GROUP BY state, {EDGE.format(goal="goal", library="lib")}, crosses
"""
LINKED_EDGES = f"""
SELECT 'kept', {EDGE.format(goal="destination", library="library")}, {CROSSES} AS crosses, count(*) FROM linked
WHERE parent = '' AND kind IN (2, 5) GROUP BY {EDGE.format(goal="destination", library="library")}, crosses
"""

NEAR_SIDES = """
SELECT c.service, c.name, c.lib, c.goal, count(*) FROM placed AS c
LEFT JOIN (SELECT DISTINCT trace, parent FROM copies) AS k ON c.trace = k.trace AND c.span = k.parent
LEFT JOIN (SELECT DISTINCT near_trace, near_span FROM linked) AS l ON c.trace = l.near_trace AND c.span = l.near_span
WHERE c.kind IN (3, 4) AND c.data = 0 AND (c.place > 1 OR (k.trace IS NULL AND l.near_trace IS NULL))
GROUP BY c.service, c.name, c.lib, c.goal
"""

# A circle comes back to where it began, so somewhere in it a child does not start after its parent.
MAY_BE_CIRCLES = """
SELECT trace, span, parent FROM ids WHERE parent <> '' AND trace IN (
    SELECT trace FROM family WHERE state = 'kept' AND start <= near_start
)
"""

OVER_TIME = """
SELECT bucket, count(*), sum(CASE WHEN broken = 0 AND at_edge = 0 THEN 1 ELSE 0 END),
    sum(CASE WHEN broken = 0 AND at_edge > 0 THEN 1 ELSE 0 END), sum(missing), sum(several), sum(repeated), sum(truncated),
    sum(circular), sum(outside)
FROM (
    SELECT *, greatest(missing, several, repeated, truncated, circular) AS broken FROM (
        SELECT {bucket} AS bucket, outside, truncated,
            CASE WHEN t.spans > t.different THEN 1 ELSE 0 END AS repeated,
            CASE WHEN t.roots > CASE WHEN t.begun_here <= t.begun_there THEN 1 ELSE 0 END THEN 1 ELSE 0 END AS several,
            CASE WHEN coalesce(m.held_parents, 0) > 0 THEN 1 ELSE 0 END AS missing,
            CASE WHEN coalesce(m.near_edge, 0) > 0 THEN 1 ELSE 0 END AS at_edge,
            CASE WHEN {is_circular} THEN 1 ELSE 0 END AS circular
        FROM (
            SELECT trace, min(start) AS begun, count(*) AS spans, count(DISTINCT span) AS different,
                sum(CASE WHEN state = 'root' THEN 1 ELSE 0 END) AS roots,
                min(CASE WHEN state = 'root' THEN start ELSE {never} END) AS begun_here,
                min(CASE WHEN {is_outside} THEN start ELSE {never} END) AS begun_there,
                max(CASE WHEN {is_outside} THEN 1 ELSE 0 END) AS outside,
                max(CASE WHEN state = 'truncated' THEN 1 ELSE 0 END) AS truncated
            FROM family GROUP BY trace
        ) AS t
        LEFT JOIN (
            SELECT trace, sum(held) AS held_parents, sum(1 - held) AS near_edge FROM (
                SELECT trace, parent,
                    CASE WHEN min(start) - {start} >= {edge} AND {end} - min(start) >= {edge} THEN 1 ELSE 0 END AS held
                FROM family WHERE state IN ('far', 'missing') AND NOT ({is_outside}) GROUP BY trace, parent
            ) AS parents GROUP BY trace
        ) AS m ON t.trace = m.trace
    ) AS judged
) AS counted GROUP BY bucket
"""


def measure(
    run: Run,
    dialect: Dialect,
    *,
    bucket_seconds: int = BUCKET_SECONDS,
    edge_seconds: float | None = None,
    shards: int = 0,
) -> Measures:
    """The measures of the dialect's table, as `run` finds them; in so many shards, or in as many as memory asks for."""
    return _Survey(run, dialect, shards).measures(bucket_seconds * SECOND, edge_seconds)


class _Survey:
    """One table, asked shard by shard."""

    def __init__(self, run: Run, dialect: Dialect, shards: int):
        self._ask, self._dialect = run, dialect
        ((self._rows,),) = run(dialect.count_rows)
        ((self._valid, start, end),) = run(WINDOW.format(spans=dialect.spans) + dialect.settings)
        self._start, self._end = int(start or 0), int(end or 0)
        self._shards = shards or -(-int(self._rows) // ROWS_A_SHARD) or 1

    def measures(self, bucket_ns: int, edge_seconds: float | None) -> Measures:
        if not self._valid:
            return Measures(skipped_spans=int(self._rows))
        spans, exported = (sum(column) for column in zip(*self._run(COPIES), strict=True))
        ways = self._counted(FAR_SIDES) + self._counted(LINKED_EDGES)
        kept = Counter({way[1:]: count for way, count in ways.items() if way[0] == "kept"})
        called = {(service, name) for _, _, _, _, service, _, _, name, _, _, crosses in kept if crosses}
        lost = [(*way, count) for way, count in ways.items() if way[0] != "kept"]
        outside = {(service, name) for state, *_, service, _, _, name, _, _, _, _ in lost if state == "far"} - called
        return Measures(
            spans=spans,
            duplicate_spans=exported - spans,
            skipped_spans=int(self._rows) - int(self._valid),
            start_unix_nano=self._start,
            end_unix_nano=self._end,
            over_time=self._over_time(outside, bucket_ns, edge_seconds),
            edges=_edges(kept),
            far_sides=_far_sides(lost, called),
            near_sides=sorted(NearSide._make((*place, count)) for place, count in self._counted(NEAR_SIDES).items()),
        )

    def _over_time(self, outside: set[Operation], bucket_ns: int, edge_seconds: float | None) -> list[Bucket]:
        edge = self._edge(edge_seconds)
        buckets: Counter[tuple[int, int]] = Counter()
        told = {
            "bucket": self._dialect.divide.format("t.begun", bucket_ns),
            "is_outside": f"state = 'far' AND {self._among('(service, name)', outside)}",
            "is_circular": self._among("t.trace", self._circular()),
            "start": self._start,
            "end": self._end,
            "edge": edge,
            "never": NEVER,
        }
        for bucket, *counts in self._run(OVER_TIME, **told):
            buckets.update({(bucket, place): count for place, count in enumerate(counts)})
        begun = sorted({bucket for bucket, _ in buckets})
        fields = range(len(Bucket._fields) - 1)
        return [Bucket(bucket * bucket_ns, *(buckets[bucket, place] for place in fields)) for bucket in begun]

    def _edge(self, edge_seconds: float | None) -> int:
        """The edge of the window of all spans: that of one span as long as they are together."""
        builder = SpansBuilder()
        builder.append(trace_id_low=1, span_id=1, start=self._start, end=self._end)
        return Window.of(builder.build(), edge_seconds).edge

    def _circular(self) -> set[str]:
        parents = {(trace, span): parent for trace, span, parent in self._run(MAY_BE_CIRCLES)}
        return {trace for trace, _ in _on_circles(parents)}

    def _among(self, what: str, values: Iterable[str | Operation]) -> str:
        """The condition that it is one of the values, for SQL."""
        literal = self._dialect.literal
        texts = [
            literal(value) if isinstance(value, str) else f"({', '.join(map(literal, value))})"
            for value in sorted(values)
        ]
        return f"{what} IN ({', '.join(texts)})" if texts else "1 = 0"

    def _counted(self, statement: str) -> Counter[Row]:
        """The rows of all shards, added up by all but their last column."""
        counted: Counter[Row] = Counter()
        for *key, count in self._run(statement):
            counted[tuple(key)] += count
        return counted

    def _run(self, statement: str, **told: object) -> Iterator[Sequence[Any]]:
        dialect = self._dialect
        for shard in range(self._shards):
            in_shard, link_in_shard = (
                dialect.shard.format(f"substring({trace}, 17)", self._shards, shard) if self._shards > 1 else "1 = 1"
                for trace in ("trace", "link_trace")
            )
            prelude = PRELUDE.format(
                spans=dialect.spans,
                each_link=dialect.each_link.format("(SELECT DISTINCT * FROM valid WHERE links > 0) AS linking"),
                in_shard=in_shard,
                link_in_shard=link_in_shard,
                zeros="'0000000000000000'",
            )
            yield from self._ask(prelude + statement.format(**told) + dialect.settings)


def _on_circles(parents: dict[tuple[str, str], str]) -> Iterator[tuple[str, str]]:
    """The spans that are their own ancestors."""
    done: set[tuple[str, str]] = set()
    for span in parents:
        path: dict[tuple[str, str], None] = {}
        while span in parents and span not in done and span not in path:
            path[span] = None
            span = span[0], parents[span]
        if span in path:
            yield span
        done |= path.keys()


def _far_sides(lost: Iterable[Row], called: set[Operation]) -> list[FarSide]:
    """Of operations that somebody calls; what nobody calls was begun outside, or by itself."""
    counts: Counter[tuple[Row, str]] = Counter()
    for state, *_, service, _, _, name, _, library, _, count in lost:
        if (service, name) in called:
            counts[(service, name, library), state] += count
    places = sorted({place for place, _ in +counts})
    return [FarSide._make((*place, counts[place, "far"], counts[place, "root"])) for place in places]


def _edges(ways: Counter[Row]) -> list[Edge]:
    """The edges by the routes of the audit: told by a table with one pair of spans for each way."""
    builder = SpansBuilder()
    intern = builder.intern
    for trace, way in enumerate(ways, 1):
        near_service, near_instance, near_kind, near_goal, service, instance, kind, name, goal, library, _ = way
        for span_id, its_kind, whose, which, destination in (
            (1, near_kind, near_service, near_instance, near_goal),
            (2, kind, service, instance, goal),
        ):
            builder.append(
                trace_id_low=trace,
                span_id=span_id,
                parent_id=span_id - 1,
                start=1,
                end=1,
                kind=its_kind,
                service=intern(whose),
                process=intern(process_name(whose, which)),
                destination=intern(destination),
                name=intern(name),
                library=intern(library),
            )
    forest = Forest(builder.build())
    far = np.flatnonzero(forest["span_id"] == 2)
    weight = np.array(list(ways.values()), np.int64)[forest["trace_id_low"][far].astype(np.int64) - 1]
    return edges_of(forest, far, forest.parent[far], weight)
