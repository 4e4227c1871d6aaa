"""The measures of the table in memory: what the SQL of the other engines has to agree with."""

from __future__ import annotations

from collections import Counter

import numpy as np

from tracefill.audit.causes.shapes import cycle
from tracefill.audit.chains import Entries
from tracefill.audit.engines import BUCKET_SECONDS, Bucket, Edge, FarSide, Measures, NearSide
from tracefill.audit.forest import Forest
from tracefill.audit.numbering import Array, combine, group
from tracefill.audit.routes import LAYERS, Atlas
from tracefill.audit.spans import Spans
from tracefill.audit.window import SECOND, Window

NEVER = np.iinfo(np.int64).max


def measure(spans: Spans, *, bucket_seconds: int = BUCKET_SECONDS, edge_seconds: float | None = None) -> Measures:
    """The measures of these spans. Takes the table over, as the audit does.

    >>> from tracefill.audit.spans import SpansBuilder
    >>> builder = SpansBuilder()
    >>> builder.append(trace_id_low=1, span_id=1, start=10, end=20)
    >>> measure(builder.build()).over_time[0].whole
    1
    """
    window = Window.of(spans, edge_seconds)
    forest = Forest(spans)
    copies = int(spans["copies"].astype(np.int64).sum())
    return Measures(
        spans=len(spans),
        duplicate_spans=copies - len(spans),
        skipped_spans=spans.input.skipped_spans,
        start_unix_nano=window.start,
        end_unix_nano=window.end,
        over_time=_over_time(forest, window, bucket_seconds * SECOND),
        edges=edges_of(forest, *forest.far_edges),
        far_sides=_far_sides(forest),
        near_sides=_near_sides(forest),
    )


def edges_of(forest: Forest, far: Array, near: Array, weight: Array | None = None) -> list[Edge]:
    """The edges between these rows by the routes of the audit; each counts as many times as its weight."""
    routes = Atlas(forest).routes(far, near)
    weight = np.ones(len(far), np.int64) if weight is None else weight
    texts = forest.spans.strings
    kept: Counter[tuple[str, str, str, str, str]] = Counter()
    first, _, numbers = group(routes.keys)
    counts = np.bincount(numbers, weight, len(first)).astype(np.int64)
    for at, count in zip(first.tolist(), counts.tolist(), strict=True):
        source, target, layer, via, library = (int(column[at]) for column in routes)
        kept[texts[source], texts[target], LAYERS[layer], texts[via], texts[library]] += count
    return sorted(Edge(*route, count) for route, count in kept.items())


def _over_time(forest: Forest, window: Window, bucket_ns: int) -> list[Bucket]:
    if not len(forest):
        return []
    outside, truncated = Entries(forest, ()).outside, forest.truncated_edges[0]
    missing, at_edge = _missing_parents(forest, window, np.concatenate([outside, truncated]))
    faults = {
        "missing_parents": missing,
        "several_roots": _several_roots(forest, outside),
        "duplicate_ids": _traces_of(forest, _repeated(forest)),
        "truncated": _traces_of(forest, truncated),
        "cycles": _traces_of(forest, np.concatenate([np.empty(0, np.int64), *(one.far for one in cycle(forest))])),
    }
    broken = np.logical_or.reduce(list(faults.values()))
    columns = [
        np.ones(forest.trace_count, bool),
        ~broken & ~at_edge,
        ~broken & at_edge,
        *faults.values(),
        _traces_of(forest, outside),
    ]
    begun = np.minimum.reduceat(forest["start"], forest.trace_starts[:-1])
    buckets, numbers = np.unique(begun // bucket_ns, return_inverse=True)
    counts = np.array([np.bincount(numbers, column, len(buckets)) for column in columns]).astype(np.int64).T
    return [Bucket(start * bucket_ns, *row) for start, row in zip(buckets.tolist(), counts.tolist(), strict=True)]


def _traces_of(forest: Forest, rows: Array) -> Array:
    has = np.zeros(forest.trace_count, bool)
    has[forest.trace[rows]] = True
    return has


def _missing_parents(forest: Forest, window: Window, explained: Array) -> tuple[Array, Array]:
    """Which traces miss a parent, and which miss one near the edge of the window, by its earliest child."""
    rows = np.setdiff1d(np.flatnonzero(forest.lacks_parent), explained)
    first, _, numbers = group(combine(forest.trace[rows], forest["parent_id"][rows]))
    start = np.full(len(first), NEVER)
    np.minimum.at(start, numbers, forest["start"][rows])
    held = window.holds(start)
    return _traces_of(forest, rows[first[held]]), _traces_of(forest, rows[first[~held]])


def _several_roots(forest: Forest, outside: Array) -> Array:
    """Which traces have a root besides the first; those of callers outside are first at most, and never besides."""
    begun = np.flatnonzero(forest["parent_id"] == 0)
    count = np.bincount(forest.trace[begun], minlength=forest.trace_count)
    is_first = _earliest(forest, begun) <= _earliest(forest, outside)
    return np.asarray(count > is_first)


def _earliest(forest: Forest, rows: Array) -> Array:
    start = np.full(forest.trace_count, NEVER)
    np.minimum.at(start, forest.trace[rows], forest["start"][rows])
    return start


def _repeated(forest: Forest) -> Array:
    same_trace = forest.trace[1:] == forest.trace[:-1]
    return np.flatnonzero(same_trace & (forest["span_id"][1:] == forest["span_id"][:-1])) + 1


def _far_sides(forest: Forest) -> list[FarSide]:
    entries = Entries(forest, ())
    lost = forest.lacks_parent & forest.is_far_kind
    lost[entries.explained] = False
    anew = forest.is_far_kind & (forest["parent_id"] == 0)
    anew[forest["link_row"]] = False
    anew[anew] = forest.is_called[forest.operation[anew]]
    missing, begun = (_count(forest, rows, "service", "name", "library") for rows in (lost, anew))
    places = sorted(missing.keys() | begun.keys())
    return [FarSide._make((*place, missing[place], begun[place])) for place in places]


def _near_sides(forest: Forest) -> list[NearSide]:
    unanswered = forest.is_near_kind & ~forest["database"] & ~forest.has_child
    unanswered[forest.links[1]] = False
    counts = _count(forest, unanswered, "service", "name", "library", "destination")
    return sorted(NearSide._make((*place, count)) for place, count in counts.items())


def _count(forest: Forest, which: Array, *columns: str) -> Counter[tuple[str, ...]]:
    """How many of the rows there are by the texts of these columns."""
    rows = np.flatnonzero(which)
    first, counts, _ = group(combine(*(forest[name][rows] for name in columns)))
    places = (tuple(forest.spans.text(name, rows[at]) for name in columns) for at in first.tolist())
    return Counter(dict(zip(places, counts.tolist(), strict=True)))
