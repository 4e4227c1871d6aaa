"""Chains that are whole, but wrong in time: glued runs, premature ends, skewed clocks, spans exported twice."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracefill.audit.causes import ROUNDING_NS, Instances, instances
from tracefill.audit.clocks import Clocks
from tracefill.audit.forest import Forest
from tracefill.audit.numbering import Array, combine, group
from tracefill.audit.spans import CLIENT, NO_THREAD, SERVER

GLUED_AFTER_NS = 30_000_000_000
GLUED_RUNS = 3


def late_children(forest: Forest) -> Array:
    """Rows that begin after their parent has ended in the same process."""
    rows = np.flatnonzero(forest.parent >= 0)
    parent = forest.parent[rows]
    late = forest["start"][rows] > forest["end"][parent] + ROUNDING_NS
    late &= forest["process"][rows] == forest["process"][parent]
    return rows[late]


def glued(forest: Forest, late: Array) -> Iterator[Instances]:
    """Three or more runs of one name, each long after the parent that all of them hang under."""
    rows = late[forest["start"][late] > forest["end"][forest.parent[late]] + GLUED_AFTER_NS]
    if len(rows):
        _, counts, numbers = group(combine(forest.parent[rows], forest["name"][rows]))
        runs = rows[counts[numbers] >= GLUED_RUNS]
        yield from instances(
            "glued", runs, forest.parent[runs], "{count} runs of {via} hang under a span that had ended long before"
        )


def premature_end(forest: Forest, late: Array, clocks: Clocks) -> Iterator[Instances]:
    """Children that their parent, or whoever waits for it, should have waited for."""
    parent = forest.parent[late]
    told = (forest["thread"][late] != NO_THREAD) & (forest["thread"][parent] != NO_THREAD)
    same_thread = told & (forest["thread"][late] == forest["thread"][parent])
    waited_for = ~told & _is_waited_for(forest, late, clocks)
    yield from _premature(forest, late[same_thread], "{count} spans begin after their parent has ended, on its thread")
    yield from _premature(
        forest, late[waited_for], "{count} spans begin after their SERVER has ended; its CLIENT waits"
    )


def _premature(forest: Forest, rows: Array, evidence: str) -> Iterator[Instances]:
    yield from instances("premature_end", rows, forest.parent[rows], evidence)


def _is_waited_for(forest: Forest, rows: Array, clocks: Clocks) -> Array:
    """Whether the parent is a SERVER whose CLIENT ends no sooner than this child."""
    server = forest.parent[rows]
    client = forest.parent[server]
    waits = (forest["kind"][server] == SERVER) & (client >= 0) & (forest["kind"][client] == CLIENT)
    waits[waits] = clocks.end(forest, rows[waits]) <= clocks.end(forest, client[waits]) + ROUNDING_NS
    return np.asarray(waits)


def clock_skew(forest: Forest) -> Iterator[Instances]:
    """A SERVER that starts before its CLIENT starts or after it ends."""
    server, client = forest.far_edges
    calls = (forest["kind"][server] == SERVER) & (forest["kind"][client] == CLIENT)
    calls &= forest.parent[server] == client
    server, client = server[calls], client[calls]
    start = forest["start"][server]
    skewed = (start < forest["start"][client]) | (start > forest["end"][client])
    yield from instances(
        "clock_skew",
        server[skewed],
        client[skewed],
        "{count} of {kept} calls arrive, by the clock of {to}, before they are sent or after they are answered",
    )


def exported_twice(forest: Forest) -> Iterator[Instances]:
    """The same span more than once."""
    rows = np.flatnonzero(forest["copies"] > 1)
    yield from instances(
        "exported_twice",
        rows,
        forest.parent[rows],
        "{count} identical copies of {via}",
        weight=forest["copies"][rows] - 1,
    )
