"""Parents that are in nobody's data: put down to the window, or unfinished, or sampled out, or not exported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tracefill.audit.causes import Instances, instances, nowhere
from tracefill.audit.chance import is_steady
from tracefill.audit.forest import Forest
from tracefill.audit.numbering import Array, combine, earliest, group
from tracefill.audit.routes import Atlas
from tracefill.audit.window import Window

STEADY_SHARE = 0.2
STEADY_LEAST = 5
EXPORT_DELAY_NS = 5_000_000_000  # spans wait this long in a batch, and are lost with the process


@dataclass
class MissingParents:
    """One row for each missing parent: its earliest child, and when its children were first and last seen."""

    child: Array
    first_start: Array
    last_end: Array

    def __len__(self) -> int:
        return len(self.child)

    def only(self, which: Array) -> MissingParents:
        return MissingParents(self.child[which], self.first_start[which], self.last_end[which])


def missing_parents(forest: Forest, explained: Array) -> MissingParents:
    """Every parent that is not in the data, but for those of the `explained` rows (roots, truncated ids)."""
    lacks = forest.lacks_parent.copy()
    lacks[explained] = False
    rows = np.flatnonzero(lacks)
    if not len(rows):
        return MissingParents(rows, forest["start"][rows], forest["end"][rows])
    _, counts, numbers = group(combine(forest.trace[rows], forest["parent_id"][rows]))
    child = rows[earliest(numbers, forest["start"][rows], rows)]
    last_end = np.full(len(counts), np.iinfo(np.int64).min)
    np.maximum.at(last_end, numbers, forest["end"][rows])
    return MissingParents(child, forest["start"][child], last_end)


def find_missing(forest: Forest, atlas: Atlas, missing: MissingParents, window: Window) -> Iterator[Instances]:
    """The cause of each missing parent."""
    callers = atlas.sources(missing.child, nowhere(missing.child))
    unfinished = is_unfinished(forest, missing, callers, window)
    yield from _found(
        "unfinished", missing.only(unfinished), "{count} parents were still open when their process was last heard of"
    )
    missing, callers = missing.only(~unfinished), callers[~unfinished]
    sampled = is_sampled_out(forest, atlas, missing, callers, window)
    remote = forest.is_far_kind[missing.child]
    yield from _found(
        "sampled_out",
        missing.only(sampled),
        "{count} of {total} calls lack their parent, evenly over the time: {from_} drops what {to} keeps",
        ("not_exported",),
    )
    yield from _found(
        "not_exported",
        missing.only(~sampled & remote),
        "{count} of {total} calls lack their parent; no sampler drops so few, or in such bursts",
        ("sampled_out",),
    )
    yield from _found(
        "not_exported", missing.only(~sampled & ~remote), "{count} spans of {to} lack the parent in their own process"
    )


def _found(
    cause: str, missing: MissingParents, evidence: str, also_possible: tuple[str, ...] = ()
) -> Iterator[Instances]:
    yield from instances(cause, missing.child, nowhere(missing.child), evidence, also_possible)


# --- unfinished ---


def is_unfinished(forest: Forest, missing: MissingParents, callers: Array, window: Window) -> Array:
    """Whether the parent was open when its process fell silent, or is still open as far as the window goes."""
    goes_on = missing.last_end >= window.end - window.edge
    return goes_on & (window.edge > 0) | _was_open_at_the_last(forest, missing, callers)


def _was_open_at_the_last(forest: Forest, missing: MissingParents, callers: Array) -> Array:
    last_heard = np.full(len(forest.spans.strings), np.iinfo(np.int64).min)
    np.maximum.at(last_heard, forest["process"], forest["end"])
    longest = _longest_request(forest)
    # A process inside of which the children ran is known. One that called is any of the caller's in this trace.
    remote = forest.is_far_kind[missing.child]
    service = np.where(remote, callers, forest["service"][missing.child])
    silent = np.zeros(len(missing), bool)
    at, process = _suspects(forest, missing, remote, service)
    last = last_heard[process]
    first, end = missing.first_start[at], missing.last_end[at]
    could_last_until = np.maximum(end, first + longest[service[at]])
    heard_before = remote[at] & (last + EXPORT_DELAY_NS >= first)
    silent_after = (last <= could_last_until) & (heard_before | ~remote[at])
    silent[at[silent_after]] = True
    return silent


def _longest_request(forest: Forest) -> Array:
    """For each service how long its longest SERVER or CONSUMER span took: a parent may have been open for so long."""
    longest = np.zeros(len(forest.spans.strings), np.int64)
    rows = np.flatnonzero(forest.is_far_kind)
    np.maximum.at(longest, forest["service"][rows], forest["end"][rows] - forest["start"][rows])
    return longest


def _suspects(forest: Forest, missing: MissingParents, remote: Array, service: Array) -> tuple[Array, Array]:
    """(number of the missing parent, process it may have been in): as many as there are in its trace."""
    local = np.flatnonzero(~remote)
    away = np.flatnonzero(remote)
    trace = forest.trace[missing.child[away]]
    lengths = forest.trace_starts[trace + 1] - forest.trace_starts[trace]
    at = np.repeat(away, lengths)
    rows = np.arange(len(at)) + np.repeat(forest.trace_starts[trace] - (np.cumsum(lengths) - lengths), lengths)
    callers_own = forest["service"][rows] == service[at]
    return (
        np.concatenate([local, at[callers_own]]),
        np.concatenate([forest["process"][missing.child[local]], forest["process"][rows[callers_own]]]),
    )


# --- sampled out ---


def is_sampled_out(forest: Forest, atlas: Atlas, missing: MissingParents, callers: Array, window: Window) -> Array:
    """Whether the calls of the child's operation lack their parent in a steady share: all calls, or those of a caller
    that left no span at all in those traces, as a sampler has it."""
    sampled = np.zeros(len(missing), bool)
    remote = np.flatnonzero(forest.is_far_kind[missing.child])
    calls, near = forest.crossings
    inside = window.holds(forest["start"][calls])
    calls, near = calls[inside], near[inside]
    operation, caller = forest.operation[missing.child], callers
    absent = remote[~atlas.are_in_trace(missing.child[remote], callers[remote])]
    for ours, lost, kept in (
        (remote, operation[remote], forest.operation[calls]),
        (absent, combine(operation[absent], caller[absent]), combine(forest.operation[calls], forest["service"][near])),
    ):
        starts = missing.first_start[ours], forest["start"][calls]
        sampled[ours[_is_steady_share(lost, kept, *starts)]] = True
    return sampled


def _is_steady_share(lost: Array, kept: Array, lost_start: Array, kept_start: Array) -> Array:
    """For each lost call, by what it is a call of: whether those like it are lost in a steady share."""
    steady = np.zeros(len(lost), bool)
    first, counts, numbers = group(lost)
    for number, count in enumerate(counts.tolist()):
        if count < STEADY_LEAST:
            continue
        starts = np.sort(kept_start[kept == lost[first[number]]])
        if count >= STEADY_SHARE * (count + len(starts)):
            ours = numbers == number
            places = np.searchsorted(starts, np.sort(lost_start[ours])) + np.arange(count)
            steady[ours] = is_steady(places, count + len(starts))
    return steady
