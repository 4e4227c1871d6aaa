"""Work inside a process that began a trace of its own: the context was not handed on, or its scope was over too soon.

A root inside an open request may be a scheduled job that happens to run just then. So a name is accused only where its
roots lie inside requests more often than chance allows, or where it is a child of requests elsewhere. Of a handful of
requests nothing can be said about chance: there the bare definition holds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from tracefill.audit.causes import ROUNDING_NS, Instances, instances
from tracefill.audit.chance import chance_of
from tracefill.audit.forest import Forest
from tracefill.audit.numbering import Array, combine, dense, group, is_in, look_up, members
from tracefill.audit.pairing import covered, pair_calls, pair_messages
from tracefill.audit.spans import CONSUMER

NEARLY_ALWAYS = 0.9
CHANCE = 0.01
A_HANDFUL = 30
FEW_ARE_AT_HOME = 3
HOMES = 20
RIGHT_AFTER_NS = (10_000_000, 100_000_000, 1_000_000_000)
LITERALLY_RIGHT_AFTER_NS = 100_000_000
ROUNDS = 3  # a loop body may begin several roots, one after the other
STEPS_BACK = 64
NOBODY = -1


def handoffs(forest: Forest, roots: Array) -> Iterator[Instances]:
    """handoff_lost and scope_too_short among these roots, whichever of the two is less of a coincidence."""
    rows = roots[~forest.is_far_kind[roots] & ~forest.is_linked[roots]]
    if not len(rows):
        return
    names = Names(forest, rows)
    inside, after = _inside_requests(forest, names), _after_consumers(forest, names)
    is_after = (after.near >= 0) & (after.chance <= inside.chance) & _is_torn_off(forest, rows, after.near)
    is_inside = (inside.near >= 0) & ~is_after & _is_torn_off(forest, rows, inside.near)
    yield from instances(
        "handoff_lost", rows[is_inside], inside.near[is_inside],
        "{count} of {total} runs of {via} began a new trace while a request was open in the same process",
    )  # fmt: skip
    yield from instances(
        "scope_too_short", rows[is_after], after.near[is_after],
        "{count} spans began a new trace right after the CONSUMER span had ended without children in the same process",
    )  # fmt: skip


def _is_torn_off(forest: Forest, rows: Array, near: Array) -> Array:
    """Whether the trace is another one: a second root in one trace is several_roots."""
    return np.asarray(forest.trace[rows] != forest.trace[near])


class Names:
    """Roots by what they are called: the same service and span name."""

    def __init__(self, forest: Forest, rows: Array) -> None:
        self._forest, self.rows = forest, rows
        self.first, self.counts, self.number = group(forest.label(rows))
        self.children = self._elsewhere(forest)
        self.have_few_requests = self._busiest(forest) < A_HANDFUL

    def __len__(self) -> int:
        return len(self.first)

    def _elsewhere(self, forest: Forest) -> Array:
        """All rows of these names that are children within their process."""
        like = forest.named_like(self.rows[self.first])
        parent = forest.parent[like]
        return np.asarray(like[(parent >= 0) & (forest["process"][like] == forest["process"][parent])])

    def requests_served(self, number: int) -> Array:
        """The requests that have a child of this name: its context was handed on, they miss none."""
        return self._served.get(number, np.empty(0, np.int64))

    @cached_property
    def _served(self) -> dict[int, Array]:
        above = _request_above(self._forest, self.children)
        return {number: above[at] for number, at in members(self.number_of_child)}

    @cached_property
    def number_of_child(self) -> Array:
        """The number of the name of each child."""
        labels = self._forest.label(self.rows[self.first])
        order = np.argsort(labels)
        return np.asarray(order[look_up(labels[order], self._forest.label(self.children))])

    def _busiest(self, forest: Forest) -> Array:
        """For each name, how many requests the busiest of its processes has seen."""
        requests = np.bincount(forest["process"][forest.is_far_kind], minlength=len(forest.spans.strings))
        busiest = np.zeros(len(self), np.int64)
        np.maximum.at(busiest, self.number, requests[forest["process"][self.rows]])
        return busiest


@dataclass
class Suspicion:
    """For each root the near row that it should hang on, or -1, and how likely its name's roots are there by chance."""

    near: Array
    chance: Array


class Lanes:
    """Spells of time in lanes (one a process, or one a process and operation), to ask what goes on at a moment."""

    def __init__(self, rows: Array, lane: Array, start: Array, end: Array) -> None:
        self._zero = int(start.min(initial=0)) if len(start) else 0
        time_bits = int((end.max() if len(end) else 0) - self._zero).bit_length() + 1
        self._shift = max(time_bits + int(lane.max(initial=0)).bit_length() - 63, 0)
        self._time_bits = time_bits - self._shift
        order = np.argsort(self._moment(lane, start), kind="stable")
        self.rows, self.lane, self.start, self.end = rows[order], lane[order], start[order], end[order]
        self._starts = self._moment(self.lane, self.start)
        self._reached = np.maximum.accumulate(self._moment(self.lane, self.end)) if len(order) else self._starts

    def _moment(self, lane: Array, time: Array) -> Array:
        """One number that is ordered by lane, then by time."""
        since = np.clip((time - self._zero) >> self._shift, 0, (1 << self._time_bits) - 1)
        return np.asarray((lane.astype(np.int64) << self._time_bits) | since)

    def before(self, lane: Array, time: Array) -> Array:
        """The position of the last spell of the lane that had begun by then; -1 where there is none."""
        at = np.searchsorted(self._starts, self._moment(lane, time), "right") - 1
        at[at >= 0] = np.where(self.lane[at[at >= 0]] == lane[at >= 0], at[at >= 0], -1)
        return at

    def is_open(self, lane: Array, time: Array) -> Array:
        at = self.before(lane, time)
        is_open = at >= 0
        is_open[is_open] = self._reached[at[is_open]] >= self._moment(lane, time)[is_open]
        return is_open

    def latest_open(self, lane: Array, time: Array) -> Array:
        """The row of the spell that began last of those open; -1 where there is none among the last 64."""
        at = self.before(lane, time)
        found = np.full(len(at), NOBODY)
        for back in range(STEPS_BACK):
            step = at - back
            looks = np.flatnonzero((found < 0) & (step >= 0))
            looks = looks[self.lane[step[looks]] == lane[looks]]
            if not len(looks):
                break
            is_open = looks[self.end[step[looks]] >= time[looks]]
            found[is_open] = self.rows[step[is_open]]
        return found

    def within(self, lanes: Array) -> Array:
        """The positions of all spells of these lanes."""
        begins, ends = np.searchsorted(self.lane, lanes), np.searchsorted(self.lane, lanes, "right")
        return np.concatenate(
            [np.empty(0, np.int64), *(np.arange(*limits) for limits in zip(begins, ends, strict=True))]
        )

    def rows_of(self, lanes: Array) -> Array:
        return np.asarray(self.rows[self.within(lanes)])

    def share_of_time(self, lane: int, whole: tuple[int, int]) -> float:
        """The share of the time that the lane's spells cover."""
        ours = slice(*np.searchsorted(self.lane, [lane, lane + 1]))
        return covered(self.start[ours], self.end[ours], whole)


# --- inside a request ---


def _inside_requests(forest: Forest, names: Names) -> Suspicion:
    requests = Requests(forest, names)
    near, chance = np.full(len(names.rows), NOBODY), np.ones(len(names.rows))
    for number, ours in members(names.number):
        verdict = requests.judge(number, ours)
        if verdict.is_accused:
            chance[ours] = verdict.chance
            lost = ours[requests.is_open[ours]]
            near[lost] = requests.near_of(names.rows[lost], verdict.home, names.requests_served(number))
    return Suspicion(near, chance)


class Verdict(NamedTuple):
    """On the roots of one name: the chance of their being inside requests, and the operation they are at home in."""

    is_accused: bool
    chance: float
    home: int = NOBODY


class Requests:
    """The SERVER and CONSUMER spans of the processes that have suspicious roots."""

    def __init__(self, forest: Forest, names: Names) -> None:
        self.forest, self.names = forest, names
        _, processes = dense(forest["process"][names.rows], len(forest.spans.strings))
        self._number_of = np.full(len(forest.spans.strings), NOBODY)
        self._number_of[processes] = np.arange(len(processes))
        rows = np.flatnonzero(forest.is_far_kind)
        rows = rows[self._number_of[forest["process"][rows]] >= 0]
        self.rows, self._operations = rows, int(forest.operation.max(initial=0)) + 1
        spells = forest["start"][rows], forest["end"][rows]
        self.by_process = Lanes(rows, self.process_of(rows), *spells)
        self.by_operation = Lanes(rows, self._lane(rows, forest.operation[rows]), *spells)
        self._lives = _lives(forest, processes)

    def process_of(self, rows: Array) -> Array:
        return np.asarray(self._number_of[self.forest["process"][rows]])

    def _lane(self, rows: Array, operation: Array | int) -> Array:
        return np.asarray(self.process_of(rows) * self._operations + operation)

    # --- who is accused ---

    @cached_property
    def is_open(self) -> Array:
        """For each root, whether it begins while a request is open in its process."""
        roots = self.names.rows
        return self.by_process.is_open(self.process_of(roots), self.forest["start"][roots])

    def judge(self, number: int, ours: Array) -> Verdict:
        """Whether the roots of a name are inside requests as the contract asks for, and by no coincidence: nearly
        always; or all of them, or more than by chance, inside of those where the name is a child elsewhere."""
        roots, hits, tries = self.names.rows[ours], int(self.is_open[ours].sum()), len(ours)
        if not hits:
            return Verdict(False, 1.0)
        few = bool(self.names.have_few_requests[number])
        nearly_always = hits >= NEARLY_ALWAYS * tries
        chance = chance_of(hits, tries, float(self._busy[self.process_of(roots)].mean()))
        homes = self._homes.get(number, [])
        if homes:
            at_home, chance_there = self._at_home(roots, homes)
            accused = few or at_home == tries or chance_there < CHANCE or (nearly_always and chance < CHANCE)
            return Verdict(accused, min(chance, chance_there), homes[0])
        home, chance_there = self._home_of(roots) if nearly_always and tries >= FEW_ARE_AT_HOME else (NOBODY, 1.0)
        accused = nearly_always and (few or chance < CHANCE or home != NOBODY)
        return Verdict(accused, min(chance, chance_there), home)

    @cached_property
    def _busy(self) -> Array:
        """For each process, the share of its life in which a request is open."""
        return np.array([self.by_process.share_of_time(number, life) for number, life in enumerate(self._lives)])

    def _share(self, roots: Array, lane: Array) -> float:
        """How much of its process's life the operation of each root's lane is open, on average."""
        first, counts, _ = group(lane)
        lives = [self._lives[process] for process in self.process_of(roots[first]).tolist()]
        lanes = zip(lane[first].tolist(), lives, strict=True)
        return float(np.average([self.by_operation.share_of_time(*one) for one in lanes], weights=counts))

    def _at_home(self, roots: Array, homes: list[int]) -> tuple[int, float]:
        """How many roots are inside a request of one of these operations, and the chance of it."""
        start = self.forest["start"][roots]
        is_open, share = np.zeros(len(roots), bool), 0.0
        for operation in homes[:HOMES]:
            lane = self._lane(roots, operation)
            is_open |= self.by_operation.is_open(lane, start)
            share += self._share(roots, lane)
        hits = int(is_open.sum())
        return hits, chance_of(hits, len(roots), min(share, 1.0))

    @cached_property
    def _homes(self) -> dict[int, list[int]]:
        """For each name that is a child elsewhere, the operations under which it is, the most frequent first."""
        forest, names = self.forest, self.names
        operation = forest.operation[_request_above(forest, names.children)]
        found = np.flatnonzero(operation >= 0)
        number = names.number_of_child[found]
        first, counts, _ = group(combine(number, operation[found]))
        homes: dict[int, list[int]] = defaultdict(list)
        for at in first[np.lexsort((operation[found[first]], -counts))].tolist():
            homes[int(number[at])].append(int(operation[found[at]]))
        return homes

    def _home_of(self, roots: Array) -> tuple[int, float]:
        """The operation that is open at nearly all of these roots, if that is no coincidence; and the chance of it.

        In a busy process some request is always open, but one operation seldom is."""
        forest = self.forest
        operations = np.unique(forest.operation[self.by_process.rows_of(np.unique(self.process_of(roots)))])
        best, least = NOBODY, CHANCE / len(operations)
        for operation in operations.tolist():
            lane = self._lane(roots, operation)
            hits = int(self.by_operation.is_open(lane, forest["start"][roots]).sum())
            if hits >= NEARLY_ALWAYS * len(roots):
                chance = chance_of(hits, len(roots), self._share(roots, lane))
                best, least = (operation, chance) if chance < least else (best, least)
        return best, least if best != NOBODY else 1.0

    # --- where they belong ---

    def near_of(self, roots: Array, home: int, served: Array) -> Array:
        """The open request that each root of one name should hang on: of the operation where the name is at home, one
        that has no child of the name yet, and each once where that is possible; else the one that began last."""
        start = self.forest["start"][roots]
        process = self.process_of(roots)
        near = np.full(len(roots), NOBODY)
        if home >= 0:
            lane = self._lane(roots, home)
            near = self._one_each(self.by_operation, lane, start, served)
            near = np.where(near >= 0, near, self.by_operation.latest_open(lane, start))
        else:
            near = self._one_each(self.by_process, process, start, served)
        return np.where(near >= 0, near, self.by_process.latest_open(process, start))

    def _one_each(self, lanes: Lanes, lane: Array, start: Array, served: Array) -> Array:
        at = lanes.within(np.unique(lane))
        starts = np.sort(start)
        holds_root = np.searchsorted(starts, lanes.end[at], "right") > np.searchsorted(starts, lanes.start[at])
        at = at[holds_root & ~is_in(lanes.rows[at], served)]
        pairs = pair_calls((lanes.start[at], lanes.end[at]), (start, start), lanes.lane[at], lane)
        return np.where(pairs >= 0, lanes.rows[at[pairs]] if len(at) else NOBODY, NOBODY)


def _lives(forest: Forest, processes: Array) -> list[tuple[int, int]]:
    """From its first span to the end of its last, for each process."""
    first, last = forest.lives
    return list(zip(first[processes].tolist(), last[processes].tolist(), strict=True))


def _request_above(forest: Forest, rows: Array) -> Array:
    """The nearest SERVER or CONSUMER above each row; the row itself, which is none, where there is none."""
    above = forest.parent[rows]
    for _ in range(STEPS_BACK):
        climbs = (above >= 0) & ~forest.is_far_kind[above]
        if not climbs.any():
            break
        above[climbs] = forest.parent[above[climbs]]
    return np.where((above >= 0) & forest.is_far_kind[above], above, rows)


# --- right after a consumer ---


def _after_consumers(forest: Forest, names: Names) -> Suspicion:
    consumers = np.flatnonzero((forest["kind"] == CONSUMER) & ~forest.has_child)
    consumers = consumers[is_in(forest["process"][consumers], forest["process"][names.rows])]
    near, chance = np.full(len(names.rows), NOBODY), np.ones(len(names.rows))
    ended, stands_for = consumers, consumers  # rows after whose end a root may begin, and the CONSUMER of each
    for _ in range(ROUNDS if len(consumers) else 0):
        found, likelihood = Endings(forest, names, ended).followed_by(near < 0)
        new = found >= 0
        if not new.any():
            break
        near[new], chance[new] = stands_for[found[new]], likelihood[new]
        ended, stands_for = np.append(ended, names.rows[new]), np.append(stands_for, near[new])
    return Suspicion(near, chance)


def _mean(values: Array, names: Names) -> Array:
    return np.asarray(np.bincount(names.number, values, minlength=len(names)) / names.counts)


class Endings:
    """Ends of spans, and the roots that begin right after them in the same process."""

    def __init__(self, forest: Forest, names: Names, ended: Array) -> None:
        self.names = names
        self._end, self._start = forest["end"][ended], forest["start"][names.rows] + ROUNDING_NS
        both = np.concatenate([forest["process"][ended], forest["process"][names.rows]])
        number, processes = dense(both, len(forest.spans.strings))
        self._process, self._process_of_root = number[: len(ended)], number[len(ended) :]
        self._lives = _lives(forest, processes)

    def followed_by(self, free: Array) -> tuple[Array, Array]:
        """For each free root the number of the end it follows, or -1, and the chance of it; by the narrowest gap that
        tells anything."""
        found, chance = np.full(len(free), NOBODY), np.ones(len(free))
        for gap in RIGHT_AFTER_NS:
            followed, likelihood = self._within(gap, free & (found < 0))
            found, chance = np.where(followed >= 0, followed, found), np.where(followed >= 0, likelihood, chance)
        return found, chance

    def _within(self, gap: int, free: Array) -> tuple[Array, Array]:
        names = self.names
        lanes = Lanes(np.arange(len(self._end)), self._process, self._end, self._end + gap)
        latest = lanes.latest_open(self._process_of_root, self._start)
        latest[~free] = NOBODY
        shares = np.array([lanes.share_of_time(number, life) for number, life in enumerate(self._lives)])
        means = _mean(shares[self._process_of_root], names)
        tries = np.bincount(names.number[free], minlength=len(names))
        hits = np.bincount(names.number[latest >= 0], minlength=len(names))
        chance = np.ones(len(names))
        for number in np.flatnonzero(hits).tolist():
            chance[number] = chance_of(int(hits[number]), int(tries[number]), means[number])
        literally = names.have_few_requests & (gap <= LITERALLY_RIGHT_AFTER_NS)
        latest[~((chance < CHANCE) | literally)[names.number]] = NOBODY
        return self._in_turn(latest, gap), chance[names.number]

    def _in_turn(self, latest: Array, gap: int) -> Array:
        """Ends are followed in the order they came, each by one root where that is possible."""
        follows = np.flatnonzero(latest >= 0)
        pairs = pair_messages(self._end, self._start[follows], self._process, self._process_of_root[follows], gap)
        latest[follows] = np.where(pairs >= 0, pairs, latest[follows])
        return latest
