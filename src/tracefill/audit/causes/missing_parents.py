"""Parents that are in nobody's data: put down to the window, or unfinished, or sampled out, or not exported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tracefill.audit.causes import NOWHERE, Instances, instances, nowhere
from tracefill.audit.chance import is_steady
from tracefill.audit.clocks import Clocks
from tracefill.audit.forest import Forest
from tracefill.audit.numbering import Array, combine, earliest, group, members
from tracefill.audit.routes import Atlas
from tracefill.audit.window import Window

CALLS_PER_LOST = 5
STEADY_LEAST = 5
EXPORT_DELAY_NS = 5_000_000_000  # spans wait this long in a batch, and are lost with the process
MISSED, CLEARLY_MISSED = 1, 8  # traces that a process should have had a part in, had it not fallen silent
EDGE_TO_THE_VERY_END = 10


@dataclass
class MissingParents:
    """One row for each missing parent: its earliest child, and when its children were first and last seen; and all of
    the children, with the number of their parent."""

    child: Array
    first_start: Array
    last_end: Array
    children: Array
    parent: Array

    def __len__(self) -> int:
        return len(self.child)

    def only(self, which: Array) -> MissingParents:
        number = np.cumsum(which) - 1
        kept = which[self.parent]
        return MissingParents(
            self.child[which],
            self.first_start[which],
            self.last_end[which],
            self.children[kept],
            number[self.parent[kept]],
        )


def missing_parents(forest: Forest, clocks: Clocks, explained: Array) -> MissingParents:
    """Every parent that is not in the data, but for those of the `explained` rows (roots, truncated ids)."""
    lacks = forest.lacks_parent.copy()
    lacks[explained] = False
    rows = np.flatnonzero(lacks)
    _, counts, number = group(combine(forest.trace[rows], forest["parent_id"][rows]))
    child = rows[earliest(number, clocks.start(forest, rows), rows)]
    last_end = np.full(len(counts), np.iinfo(np.int64).min)
    np.maximum.at(last_end, number, forest["end"][rows])
    return MissingParents(child, forest["start"][child], last_end, rows, number)


def find_missing(
    forest: Forest, atlas: Atlas, clocks: Clocks, missing: MissingParents, window: Window
) -> Iterator[Instances]:
    """The cause of each missing parent."""
    callers = atlas.sources(missing.child, nowhere(missing.child))
    silent = Silence(forest, atlas, clocks, window).callers(missing, callers)
    unfinished = (silent != NOWHERE) | goes_on_to_the_end(missing, window)
    yield from _found(
        "unfinished",
        missing.only(unfinished),
        np.where(silent != NOWHERE, silent, callers)[unfinished],
        "{count} parents were still open when their process was last heard of, or when the window ends",
    )
    missing, callers = missing.only(~unfinished), callers[~unfinished]
    sampled = is_sampled_out(forest, atlas, missing, callers, window)
    remote = forest.is_far_kind[missing.child]
    yield from _found(
        "sampled_out",
        missing.only(sampled),
        callers[sampled],
        "{count} of {total} calls lack their parent, evenly over the time: {from_} drops what {to} keeps",
        ("not_exported",),
    )
    yield from _found(
        "not_exported",
        missing.only(~sampled & remote),
        callers[~sampled & remote],
        "{count} of {total} calls lack their parent; no sampler drops so few, or in such bursts",
        ("sampled_out",),
    )
    yield from _found(
        "not_exported",
        missing.only(~sampled & ~remote),
        callers[~sampled & ~remote],
        "{count} spans of {to} lack the parent in their own process",
    )


def _found(
    cause: str, missing: MissingParents, source: Array, evidence: str, also_possible: tuple[str, ...] = ()
) -> Iterator[Instances]:
    yield from instances(cause, missing.child, nowhere(missing.child), evidence, also_possible, source=source)


# --- unfinished ---


def goes_on_to_the_end(missing: MissingParents, window: Window) -> Array:
    """Whether the children go on as far as the window does: to its very end, or over a whole edge into the last one."""
    rest = window.end - missing.last_end
    within_edge = (rest <= window.edge) & (missing.last_end - missing.first_start >= window.edge)
    return np.asarray((rest <= window.edge // EDGE_TO_THE_VERY_END) | within_edge)


class Silence:
    """Processes that were not heard of again, and what was open in them then."""

    def __init__(self, forest: Forest, atlas: Atlas, clocks: Clocks, window: Window) -> None:
        self.forest, self.atlas, self.clocks = forest, atlas, clocks
        self._last = forest.lives[1]
        self._is_over = window.end - self._last > window.edge
        self._missed = self._count_missed()

    def _count_missed(self) -> Array:
        """For each process, how many traces it would have had a part in since, at the rate it had before."""
        forest = self.forest
        first, last = (times - self.clocks.offset for times in forest.lives)
        starts = forest["start"] - self.clocks.offset[forest["process"]]
        begun = np.sort(np.minimum.reduceat(starts, forest.trace_starts[:-1]))
        before = np.searchsorted(begun, last, "right")
        alive = before - np.searchsorted(begun, first)
        took_part = np.bincount(self._taking_part[1], minlength=len(last))
        return np.asarray(took_part * (len(begun) - before) / np.maximum(alive, took_part).clip(1))

    @cached_property
    def _taking_part(self) -> tuple[Array, Array]:
        """Each trace, in order, with each of the processes that have a part in it."""
        pairs = np.sort(self.forest.trace.astype(np.int64) << 32 | self.forest["process"])
        pairs = pairs[np.diff(pairs, prepend=-1) > 0]
        return pairs >> 32, pairs & 0xFFFFFFFF

    def callers(self, missing: MissingParents, usual: Array) -> Array:
        """For each missing parent the service in a silent process of which it was open; -1 where there is none."""
        silent_process = np.full(len(missing), NOWHERE, np.int64)
        for suspects in (self._inside, self._in_trace, self._elsewhere):
            at, process = suspects(missing, usual, silent_process)
            silent = self._fell_silent(missing, at, process) & (silent_process[at] < 0)
            silent_process[at[silent]] = process[silent]
        return np.where(silent_process >= 0, self._service_of[silent_process], NOWHERE)

    def _fell_silent(self, missing: MissingParents, at: Array, process: Array) -> Array:
        """Whether the process was last heard of while the parent was open, as far as can be told: not after its last
        child; or, if its silence is clear, not after the longest of requests would have ended."""
        own = self.forest["process"][missing.child[at]]
        missed = self._missed[process]
        last = self._last[process] - self.clocks.offset[process] + self.clocks.offset[own]
        first, end = missing.first_start[at], missing.last_end[at]
        inside = own == process
        heard_of = inside | ((missed >= CLEARLY_MISSED) & (last + EXPORT_DELAY_NS >= first))
        longest = first + self._longest_request[self._service_of[process]]
        was_open = ((last <= end) & (missed >= MISSED)) | ((last <= longest) & (missed >= CLEARLY_MISSED))
        return np.asarray(self._is_over[process] & heard_of & was_open)

    @cached_property
    def _service_of(self) -> Array:
        """The service of each process."""
        services = np.zeros(len(self.forest.spans.strings), np.int64)
        services[self.forest["process"]] = self.forest["service"]
        return services

    @cached_property
    def _longest_request(self) -> Array:
        """For each service how long its requests take at most, but for one in a hundred."""
        forest = self.forest
        rows = np.flatnonzero(forest.is_far_kind)
        service, duration = forest["service"][rows], forest["end"][rows] - forest["start"][rows]
        order = np.lexsort((duration, service))
        services, begins, counts = np.unique(service[order], return_index=True, return_counts=True)
        longest = np.zeros(len(forest.spans.strings), np.int64)
        longest[services] = duration[order][begins + counts - 1 - counts // 100]
        return longest

    # Each gives pairs: the number of a missing parent, and a process that it may have been in.

    def _inside(self, missing: MissingParents, usual: Array, silent: Array) -> tuple[Array, Array]:
        """Parents inside a process are in that of their children."""
        local = np.flatnonzero(~self.forest.is_far_kind[missing.child])
        return local, self.forest["process"][missing.child[local]]

    def _in_trace(self, missing: MissingParents, usual: Array, silent: Array) -> tuple[Array, Array]:
        """Whoever called may be any process of the trace that is seen to call the operation."""
        remote = np.flatnonzero(self.forest.is_far_kind[missing.child])
        traces, processes = self._taking_part
        trace = self.forest.trace[missing.child[remote]]
        begins, ends = np.searchsorted(traces, trace), np.searchsorted(traces, trace, "right")
        lengths = ends - begins
        at = np.repeat(remote, lengths)
        process = processes[np.arange(len(at)) + np.repeat(begins - (np.cumsum(lengths) - lengths), lengths)]
        calls = self.atlas.usually_calls(self._service_of[process], missing.child[at])
        return at[calls], process[calls]

    def _elsewhere(self, missing: MissingParents, usual: Array, silent: Array) -> tuple[Array, Array]:
        """If the usual caller has no span in the trace, it may be one of its processes that left others unfinished."""
        remote = np.flatnonzero(self.forest.is_far_kind[missing.child])
        remote = remote[~self.atlas.are_in_trace(missing.child[remote], usual[remote])]
        processes = np.unique(silent[silent >= 0])
        pairs = np.nonzero(usual[remote][:, None] == self._service_of[processes][None, :])
        return remote[pairs[0]], processes[pairs[1]]


# --- sampled out ---


def is_sampled_out(forest: Forest, atlas: Atlas, missing: MissingParents, callers: Array, window: Window) -> Array:
    """Whether the calls of the child's operation lack their parent in a steady share: all calls, or those of a caller
    that left no span at all in those traces, as a sampler has it."""
    lost = np.flatnonzero(forest.is_far_kind[missing.children])
    lost = lost[window.holds(forest["start"][missing.children[lost]])]
    child, caller = missing.children[lost], callers[missing.parent[lost]]
    calls, near = forest.crossings
    inside = window.holds(forest["start"][calls])
    calls, near = calls[inside], near[inside]

    steady = _is_steady_share(forest, child, calls, forest.operation[child], forest.operation[calls])
    absent = ~atlas.are_in_trace(child, caller)
    of_caller = combine(forest.operation[child], caller, absent)
    kept_of_caller = combine(forest.operation[calls], forest["service"][near], np.ones(len(calls), bool))
    steady |= _is_steady_share(forest, child, calls, of_caller, kept_of_caller) & absent

    sampled = np.zeros(len(missing), bool)
    sampled[missing.parent[lost[steady & (child == missing.child[missing.parent[lost]])]]] = True
    return sampled


def _is_steady_share(forest: Forest, lost: Array, kept: Array, lost_key: Array, kept_key: Array) -> Array:
    """For each lost call, by what it is a call of: whether those like it are lost in a steady share."""
    steady = np.zeros(len(lost), bool)
    kept_at = dict(members(kept_key))
    for key, ours in members(lost_key):
        others = kept_at.get(key, ours[:0])
        if len(ours) >= STEADY_LEAST and len(ours) * CALLS_PER_LOST >= len(ours) + len(others):
            # A trace is sampled or is not, however many calls it has.
            lost_starts, kept_starts = _first_starts(forest, lost[ours]), _first_starts(forest, kept[others])
            places = np.searchsorted(kept_starts, lost_starts) + np.arange(len(lost_starts))
            steady[ours] = is_steady(places, len(lost_starts) + len(kept_starts))
    return steady


def _first_starts(forest: Forest, rows: Array) -> Array:
    """When the first of these calls started in each of their traces, in order."""
    return np.sort(forest["start"][rows[earliest(forest.trace[rows], forest["start"][rows])]])
