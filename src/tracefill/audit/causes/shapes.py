"""Traces that are not trees: one id for two spans, several roots, circles, ids cut to 64 bits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracefill.audit.causes import Instances, instances, nowhere
from tracefill.audit.clocks import Clocks
from tracefill.audit.forest import Forest
from tracefill.audit.numbering import Array, earliest, look_up
from tracefill.audit.routes import Atlas


def duplicate_id(forest: Forest, clocks: Clocks) -> Iterator[Instances]:
    """Two different spans of one trace with one id: the later one is named."""
    begins = np.ones(len(forest), bool)
    begins[1:] = (forest.trace[1:] != forest.trace[:-1]) | (forest["span_id"][1:] != forest["span_id"][:-1])
    rows = np.flatnonzero(~begins | np.append(~begins[1:], False))
    first = earliest(np.cumsum(begins)[rows], clocks.start(forest, rows), rows)
    later = np.delete(rows, first)
    yield from instances(
        "duplicate_id", later, forest.parent[later], "{count} spans have the id of another span of their trace"
    )


def several_roots(forest: Forest, atlas: Atlas, clocks: Clocks, roots: Array, outside: Array) -> Iterator[Instances]:
    """Roots besides the earliest of their trace; those that continue a caller outside are nobody's fault."""
    first = first_roots(forest, clocks, roots)
    extra = np.setdiff1d(np.setdiff1d(roots, first), outside)
    of_trace = np.zeros(forest.trace_count, np.int64)
    of_trace[forest.trace[first]] = first
    yield from instances(
        "several_roots",
        extra,
        of_trace[forest.trace[extra]],
        "{count} spans without a parent in a trace that had begun",
        source=atlas.sources(extra, nowhere(extra)),
    )


def first_roots(forest: Forest, clocks: Clocks, roots: Array) -> Array:
    """The earliest root of each trace that has one."""
    return np.asarray(roots[earliest(forest.trace[roots], clocks.start(forest, roots), roots)])


def cycle(forest: Forest) -> Iterator[Instances]:
    """Circles of parents: the earliest span of each is named."""
    members = _on_cycles(forest)
    if len(members):
        named = _earliest_of_each(forest, members)
        yield from instances("cycle", named, forest.parent[named], "{count} spans are their own ancestors")


def _on_cycles(forest: Forest) -> Array:
    """Rows of all spans on a circle of parents."""
    ancestor, rows = forest.parent, np.flatnonzero(forest.parent >= 0)
    steps = 1
    while len(rows) and steps <= len(forest):
        ancestor = _doubled(ancestor, rows)
        rows = rows[ancestor[rows] >= 0]
        steps *= 2
    # After as many steps as there are spans whoever is still below somebody has come to a circle.
    return np.unique(ancestor[rows])


def _doubled(ancestor: Array, rows: Array) -> Array:
    """The ancestors twice as many steps away, for the given rows; the others have none."""
    further = np.full(len(ancestor), -1, ancestor.dtype)
    further[rows] = ancestor[ancestor[rows]]
    return further


def _earliest_of_each(forest: Forest, members: Array) -> Array:
    """One row for each circle: every member is led to the earliest by asking ever further ahead."""
    order = np.lexsort((members, forest["start"][members]))
    rank = np.empty(len(members), np.int64)
    rank[order] = np.arange(len(members))
    ahead = look_up(members, forest.parent[members])
    for _ in range(len(members).bit_length()):
        rank = np.minimum(rank, rank[ahead])
        ahead = ahead[ahead]
    return members[order[np.unique(rank)]]


def id_truncated(forest: Forest) -> Iterator[Instances]:
    """Spans whose parent is in the trace that has the lower half of its id in common with theirs."""
    far, near = forest.truncated_edges
    yield from instances(
        "id_truncated",
        far,
        near,
        "{count} spans continue a trace under the lower 64 bits of its id, their parents are there",
    )
