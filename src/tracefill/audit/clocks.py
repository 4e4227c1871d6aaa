"""How far the clock of each process is off, seen from the calls between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tracefill.audit.chance import chance_of
from tracefill.audit.forest import Forest
from tracefill.audit.numbering import Array, group
from tracefill.audit.pairing import covered
from tracefill.audit.spans import CLIENT, SERVER

Spells = tuple[Array, Array]  # starts and ends

# Clocks that nothing kept tells about are set by what was lost; looked for within these bounds.
OFFSET_AT_MOST_NS = 600_000_000_000
SAMPLES = 200
COMPARISONS = 2_000_000
DELAYS_NS = (50_000_000, 500_000_000, 5_000_000_000)
COINCIDENCE = 0.01


class Clocks:
    """The offset of every process, in nanoseconds, against the clocks of the first callers.

    The offset between two processes is the median of (middle of SERVER - middle of its CLIENT) over the calls between
    them. Processes are joined by their busiest calls first, so that each offset goes back to one clock. What no call
    joins is joined by messages, which is far less exact: a message may wait, but it is never received before it is
    sent, so the least delay between two processes is next to none. Processes are of one island when they are joined.
    """

    def __init__(self, forest: Forest) -> None:
        size = len(forest.spans.strings)
        self.offset = np.zeros(size, np.int64)
        self.island = np.arange(size)
        calls, messages = _between(forest)
        self._join(_pairs(forest, *calls, median=True))
        self.island_of_calls = self.island.copy()
        self._join(_pairs(forest, *messages, median=False))

    def _join(self, pairs: Iterator[tuple[int, int, int]]) -> None:
        """Makes one island of both processes of each pair (caller, callee, callee's clock minus the caller's)."""
        members: dict[int, list[int]] = {}
        for island in np.unique(self.island[self.island != np.arange(len(self.island))]).tolist():
            members[island] = np.flatnonzero(self.island == island).tolist()
        for caller, callee, difference in pairs:
            ours, theirs = int(self.island[caller]), int(self.island[callee])
            if ours != theirs:
                moved = members.pop(theirs, [theirs])
                self.offset[moved] += difference + self.offset[caller] - self.offset[callee]
                self.island[moved] = ours
                members.setdefault(ours, [ours]).extend(moved)

    def shift(self, process: int, to: int, offset: int, islands: Array) -> None:
        """Takes a further offset off this process and what is joined with it, and joins them with the other process."""
        moved = islands == islands[process]
        self.offset[moved] += offset
        islands[moved] = islands[to]

    def start(self, forest: Forest, rows: Array) -> Array:
        """When the spans of these rows started, by one clock."""
        return np.asarray(forest["start"][rows] - self.offset[forest["process"][rows]])

    def end(self, forest: Forest, rows: Array) -> Array:
        return np.asarray(forest["end"][rows] - self.offset[forest["process"][rows]])


class _Between(NamedTuple):
    """What leads from one process to another: callers, callees and the differences of their clocks."""

    calls: tuple[Array, Array, Array]
    messages: tuple[Array, Array, Array]


def _between(forest: Forest) -> _Between:
    callee, caller = forest.crossings
    apart = forest["process"][callee] != forest["process"][caller]
    callee, caller = callee[apart], caller[apart]
    calls = (forest["kind"][callee] == SERVER) & (forest["kind"][caller] == CLIENT)
    start, end = forest["start"], forest["end"]
    middles = _middle((start[callee], end[callee])) - _middle((start[caller], end[caller]))
    delays = start[callee] - start[caller]
    return _Between((caller[calls], callee[calls], middles[calls]), (caller[~calls], callee[~calls], delays[~calls]))


def _pairs(
    forest: Forest, caller: Array, callee: Array, difference: Array, median: bool
) -> Iterator[tuple[int, int, int]]:
    """One row for each pair of processes, the busiest first; with the median or the least of their differences."""
    callers, callees = forest["process"][caller], forest["process"][callee]
    first, counts, numbers = group(callers.astype(np.int64) << 32 | callees)
    ordered = difference[np.lexsort((difference, numbers))]
    begins = np.cumsum(counts) - counts
    values = ordered[begins]
    if median:
        lower, upper = ordered[begins + (counts - 1) // 2], ordered[begins + counts // 2]
        values = lower + (upper - lower) // 2
    rows = zip(counts.tolist(), callers[first].tolist(), callees[first].tolist(), values.tolist(), strict=True)
    texts = forest.spans.strings
    for _, ours, theirs, value in sorted(rows, key=lambda row: (-row[0], texts[row[1]], texts[row[2]])):
        yield ours, theirs, value


def offset_of_calls(near: Spells, far: Spells) -> int:
    """How far the callee's clock must be off for most of these far sides to lie inside one of the near sides.

    0 unless another offset encloses so many more of them that it is no coincidence.
    """
    far = _sample(far, len(near[0]))
    width = min(max(int(np.median(near[1] - near[0])), 1_000_000), 1_000_000_000)
    differences = _differences(_middle(near), _middle(far))
    first = _densest(differences, width)
    around = differences[(differences >= first) & (differences <= first + width)]
    offset = int(np.median(around)) if len(around) else 0
    hits = _enclosed(near, far, offset)
    share = covered(*near, (int(near[0].min()), int(near[1].max())))
    return offset if hits > _enclosed(near, far, 0) and _tells(hits, len(far[0]), share, width) else 0


def offset_of_messages(near: Spells, far: Spells) -> int:
    """How far the consumer's clock must be off for most of these messages to arrive soon after they are sent.

    0 where they arrive so unevenly that nothing can be told.
    """
    far = _sample(far, len(near[0]))
    differences = _differences(near[0], far[0])
    sent = np.sort(near[0])
    for width in DELAYS_NS:
        offset = _densest(differences, width)
        soon = np.searchsorted(sent, far[0] - offset, "right") > np.searchsorted(sent, far[0] - offset - width)
        share = covered(sent, sent + width, (int(sent[0]), int(sent[-1]) + width))
        if _tells(int(soon.sum()), len(soon), share, width):
            return offset
    return 0


def _tells(hits: int, tries: int, share: float, width: int) -> bool:
    """Whether an offset that was chosen for its hits among all others has more of them than chance gives the best."""
    return chance_of(hits, tries, share) * (2 * OFFSET_AT_MOST_NS / width) < COINCIDENCE


def _sample(spells: Spells, others: int) -> Spells:
    count = max(min(SAMPLES, COMPARISONS // max(others, 1)), 20)
    order = np.argsort(spells[0], kind="stable")[:: max(len(spells[0]) // count, 1)]
    return spells[0][order], spells[1][order]


def _differences(near: Array, far: Array) -> Array:
    """All that may be the clocks' difference, in order."""
    differences = (far[:, None] - near[None, :]).ravel()
    return np.sort(differences[np.abs(differences) < OFFSET_AT_MOST_NS])


def _densest(differences: Array, width: int) -> int:
    """The first of those that lie within the width where most of them do."""
    if not len(differences):
        return 0
    within = np.searchsorted(differences, differences + width, "right") - np.arange(len(differences))
    return int(differences[within.argmax()])


def _enclosed(near: Spells, far: Spells, offset: int) -> int:
    """How many of the far sides lie inside a near side when the offset is taken off."""
    start, end = far[0] - offset, far[1] - offset
    inside = (near[0][None, :] <= start[:, None]) & (near[1][None, :] >= end[:, None])
    return int(inside.any(axis=1).sum())


def _middle(spells: Spells) -> Array:
    return np.asarray(spells[0] + (spells[1] - spells[0]) // 2)
