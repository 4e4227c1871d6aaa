"""How far the clock of each process is off, seen from the calls between them."""

from __future__ import annotations

import numpy as np

from tracefill.audit.forest import Forest
from tracefill.audit.numbering import Array, group
from tracefill.audit.spans import CLIENT, SERVER

Spells = tuple[Array, Array]  # starts and ends

# Clocks that nothing kept tells about are set by what was lost; looked for within these bounds.
OFFSET_AT_MOST_NS = 600_000_000_000
SAMPLES = 200
COMPARISONS = 2_000_000
CLEARLY_BETTER = 0.05
WORTH_A_LOOK = 0.9


class Clocks:
    """The offset of every process, in nanoseconds, against the clocks of the first callers.

    The offset between two processes is the median of (middle of SERVER - middle of its CLIENT) over the calls between
    them. Processes are joined by their busiest calls first, so that each offset goes back to one clock; `island` tells
    which processes are joined: only their clocks are comparable.
    """

    def __init__(self, forest: Forest) -> None:
        size = len(forest.spans.strings)
        self.offset = np.zeros(size, np.int64)
        self.island = np.arange(size)
        self._members: dict[int, list[int]] = {}
        for caller, callee, difference in _busiest_first(forest):
            self.join(caller, callee, difference)

    def join(self, caller: int, callee: int, difference: int) -> None:
        """Both are one island from now on; `difference` is the callee's clock minus the caller's."""
        ours, theirs = int(self.island[caller]), int(self.island[callee])
        if ours != theirs:
            moved = self._members.pop(theirs, [theirs])
            self.offset[moved] += difference + self.offset[caller] - self.offset[callee]
            self.island[moved] = ours
            self._members.setdefault(ours, [ours]).extend(moved)

    def shift(self, process: int, to: int, offset: int) -> None:
        """Takes a further offset off this process and makes it of one island with the other process."""
        self.join(to, process, int(self.offset[process] - self.offset[to]) + offset)

    def start(self, forest: Forest, rows: Array) -> Array:
        """When the spans of these rows started, by one clock."""
        return np.asarray(forest["start"][rows] - self.offset[forest["process"][rows]])

    def end(self, forest: Forest, rows: Array) -> Array:
        return np.asarray(forest["end"][rows] - self.offset[forest["process"][rows]])


def _busiest_first(forest: Forest) -> list[tuple[int, int, int]]:
    """(caller, callee, clock difference) of each pair of processes with calls between them."""
    callee, caller = forest.crossings
    calls = (forest["kind"][callee] == SERVER) & (forest["kind"][caller] == CLIENT)
    calls &= forest["process"][callee] != forest["process"][caller]
    callee, caller = callee[calls], caller[calls]
    start, end = forest["start"], forest["end"]
    difference = _middle((start[callee], end[callee])) - _middle((start[caller], end[caller]))
    pairs = forest["process"][caller].astype(np.int64) << 32 | forest["process"][callee]
    first, counts, numbers = group(pairs)
    order = np.lexsort((difference, numbers))
    begins = np.cumsum(counts) - counts
    medians = (
        difference[order[begins + (counts - 1) // 2]] // 2 + difference[order[begins + counts // 2]] // 2
        if len(order)
        else difference
    )
    rows = zip(
        counts.tolist(),
        forest["process"][caller[first]].tolist(),
        forest["process"][callee[first]].tolist(),
        medians.tolist(),
        strict=True,
    )
    texts = forest.spans.strings
    busiest = sorted(rows, key=lambda row: (-row[0], texts[row[1]], texts[row[2]]))
    return [(caller, callee, median) for _, caller, callee, median in busiest]


def _middle(spells: Spells) -> Array:
    return np.asarray(spells[0] + (spells[1] - spells[0]) // 2)


def offset_of_calls(near: Spells, far: Spells) -> int:
    """How far the callee's clock must be off for most of these far sides to lie inside one of the near sides.

    0 unless another offset encloses clearly more of them.
    """
    far = _sample(far, len(near[0]))
    length = int(np.median(near[1] - near[0]))
    width = min(max(length, 1_000_000), 1_000_000_000)
    offset = _most_frequent(_middle(far)[:, None] - _middle(near)[None, :], width)
    better = _enclosed(near, far, offset) > _enclosed(near, far, 0) + CLEARLY_BETTER
    return offset if better else 0


def offset_of_messages(near: Spells, far: Spells) -> int:
    """How far the consumer's clock must be behind to receive before it is sent; 0 unless most are early that way."""
    far = _sample(far, len(near[0]))
    sent = np.sort(near[0])
    on_time = (np.searchsorted(sent, far[0], "right") > np.arange(len(far[0]))).mean()
    width = 50_000_000
    offset = _most_frequent(far[0][:, None] - near[0][None, :], width)
    return offset - width if on_time < WORTH_A_LOOK and offset < 0 else 0


def _sample(spells: Spells, others: int) -> Spells:
    count = max(min(SAMPLES, COMPARISONS // max(others, 1)), 20)
    order = np.argsort(spells[0], kind="stable")[:: max(len(spells[0]) // count, 1)]
    return spells[0][order], spells[1][order]


def _most_frequent(differences: Array, width: int) -> int:
    """The difference that occurs most, to within a width."""
    near = np.sort(differences[np.abs(differences) < OFFSET_AT_MOST_NS])
    if not len(near):
        return 0
    within = np.searchsorted(near, near + width, "right") - np.arange(len(near))
    begin = int(within.argmax())
    return int(np.median(near[begin : begin + within[begin]]))


def _enclosed(near: Spells, far: Spells, offset: int) -> float:
    start, end = far[0] - offset, far[1] - offset
    inside = (near[0][None, :] <= start[:, None]) & (near[1][None, :] >= end[:, None])
    return float(inside.any(axis=1).mean())
