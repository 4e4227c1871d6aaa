"""What the spans themselves show of the samplers: who calls whom, where traces begin, and which ids were kept.

A sampler that draws from the trace id leaves its mark in what was exported: of the traces that begin at a service
with ``traceidratio:0.1`` every id (its lower 64 bits) lies in the lowest tenth; where a service drops what its caller
records, the ids of the calls that were answered lie on one side of a bound, the others on the other side. Losses of any
other kind do not sort by id, so nothing is put down to a sampler that the ids do not show.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from tracefill.audit.forest import Forest
from tracefill.audit.numbering import Array, combine
from tracefill.audit.sampling.finding import Finding, percent
from tracefill.audit.sampling.samplers import Intervals, Kept, by_ratio, by_threshold, common
from tracefill.audit.sampling.service_findings import Rule, Service
from tracefill.audit.sampling.strategy_findings import dropped
from tracefill.audit.spans import Spans

FEWEST = 20  # spans on either side of a bound, before it is called one
CHANCE = 1e-9  # how probable a pattern may be without a sampler behind it
STRAYS = 0.05  # of the spans beyond a bound, lost for another reason

# The two ways to draw from an id; smaller numbers are kept by lower rates.
_VIEWS: list[tuple[Callable[[Array], Array], Callable[[float], Kept]]] = [
    (lambda ids: ids.astype(np.float64) / 2**64, by_ratio),
    (lambda ids: 1 - (ids & np.uint64(2**56 - 1)).astype(np.float64) / 2**56, by_threshold),
]


class Begun(NamedTuple):
    """Traces that begin at a service with an operation: the lower halves of their ids."""

    service: str
    operation: str
    ids: Array


class Crossing(NamedTuple):
    """The calls of one service to another: ids of those with the spans of both, and of those without one side's."""

    caller: str
    callee: str
    both: Array
    lone: Array


class Seen:
    """The spans of an export, read for what they say about sampling."""

    def __init__(self, spans: Spans) -> None:
        self.count = len(spans)
        self._forest = Forest(spans)
        self._strings = self._forest.spans.strings
        self.services = {self._strings[number] for number in np.unique(self._forest["service"])} - {""}
        self.begun = list(self._begun())
        self.roots = {begun.service for begun in self.begun}
        self.calls = self._calls()

    def operations(self, service: str) -> set[str]:
        """The names of the spans that begin traces at a service."""
        return {begun.operation for begun in self.begun if begun.service == service}

    def _begun(self) -> Iterator[Begun]:
        forest = self._forest
        rows = np.flatnonzero(forest["parent_id"] == 0)
        for group in _groups(rows, forest.label(rows)):
            service, operation = (self._strings[forest[column][group[0]]] for column in ("service", "name"))
            if service:
                yield Begun(service, operation, np.unique(forest["trace_id_low"][group]))

    def _calls(self) -> dict[str, set[str]]:
        far, near = self._forest.crossings
        service = self._forest["service"]
        pairs = np.unique(np.stack([service[near], service[far]], axis=1), axis=0)
        calls: dict[str, set[str]] = defaultdict(set)
        for caller, callee in pairs:
            if caller != callee and caller and callee:
                calls[self._strings[caller]].add(self._strings[callee])
        return dict(calls)

    def unanswered(self) -> Iterator[Crossing]:
        """Calls from places that are answered at times: with the callee's span, and without."""
        forest = self._forest
        near = np.flatnonzero(forest.is_near_kind & ~forest["database"])
        callee = self._callee()
        places = combine(*(forest[column][near] for column in ("service", "name", "peer", "destination")))
        for group in _groups(near, places):
            answered = group[callee[group] > 0]
            if len(answered) and len(np.unique(callee[answered])) == 1:
                yield self._crossing(group[0], answered[0], answered, group[~forest.has_child[group]], callee)

    def _callee(self) -> Array:
        """For each span the service of a far side below it, another than its own; 0 without."""
        forest = self._forest
        far, near = forest.crossings
        callee = np.zeros(len(forest), np.int32)
        other = forest["service"][far] != forest["service"][near]
        callee[near[other]] = forest["service"][far[other]]
        return callee

    def _crossing(self, caller: int, answered: int, both: Array, lone: Array, callee: Array) -> Crossing:
        ids = self._forest["trace_id_low"]
        names = self._strings[self._forest["service"][caller]], self._strings[callee[answered]]
        return Crossing(*names, ids[both], ids[lone])

    def torn(self) -> Iterator[Crossing]:
        """The far sides of calls, with the caller's span, and without although they name it."""
        forest = self._forest
        far, near = forest.crossings
        caller = np.zeros(len(forest), np.int32)
        caller[far] = forest["service"][near]
        rows = np.flatnonzero(forest.is_far_kind & (forest["parent_id"] != 0))
        ids = forest["trace_id_low"]
        for group in _groups(rows, forest.label(rows)):
            whole, lone = group[caller[group] > 0], group[forest.lacks_parent[group]]
            if len(whole) and len(np.unique(caller[whole])) == 1:
                names = self._strings[caller[whole[0]]], self._strings[forest["service"][group[0]]]
                yield Crossing(*names, ids[whole], ids[lone])


def _groups(rows: Array, keys: Array) -> list[Array]:
    """The rows of each distinct key."""
    order = np.argsort(keys, kind="stable")
    bounds = np.flatnonzero(np.diff(keys[order])) + 1
    return [group for group in np.split(rows[order], bounds) if len(group)]


def drawn(ids: Array) -> Kept | None:
    """The sampler that kept these ids and no others; None where they lie everywhere.

    >>> round(drawn(np.arange(0, 2**63, 2**57, dtype=np.uint64)).rate, 2)
    0.5
    """
    for view, keep in _VIEWS:
        highest = float(view(ids).max(initial=0.0))
        if len(ids) >= FEWEST and highest ** len(ids) < CHANCE:
            return keep(min(1.0, highest * (len(ids) + 1) / len(ids)))
    return None


def bound_between(both: Array, lone: Array) -> Kept | None:
    """The sampler that kept the first ids and dropped the others; None where no bound on the ids parts them."""
    if min(len(both), len(lone)) < FEWEST:
        return None
    for view, keep in _VIEWS:
        kept, beyond = view(both).max(), np.sort(view(lone))
        beyond = beyond[beyond > kept]
        if len(beyond) >= (1 - STRAYS) * len(lone):
            return keep(float(kept + beyond[0]) / 2)
    return None


def _is_legacy(kept: Kept) -> bool:
    return len(kept.ids) == 1


def _named(kept: Kept) -> str:
    return f"{'traceidratio' if _is_legacy(kept) else 'a consistent sampler'} of about {percent(round(kept.rate, 3))}"


def seen_findings(seen: Seen, known: Mapping[str, Service]) -> Iterator[Finding]:
    """What the ids show that the settings do not say."""
    yield from _other_rates(seen, known)
    yield from _own_decisions(seen, known)
    yield from _torn(seen, known)


def _other_rates(seen: Seen, known: Mapping[str, Service]) -> Iterator[Finding]:
    for service, rule, ids in _begun_by_rule(seen, known):
        found = drawn(ids)
        if found is None or rule.kept.per_second is not None or _agrees(found.ids, rule.kept.ids, len(ids)):
            continue
        yield Finding(
            "seen_other_rate",
            f"the {len(ids)} traces that begin at {service.name} have only ids that {_named(found)} keeps; "
            f"{service.sampler.setting} should keep {percent(rule.kept.rate)}",
            "find out what the service really runs with: another setting, another file, or code that sets a sampler",
            service=service.name,
            operation=rule.operation,
            rule=service.setting,
            share_dropped=dropped(rule.kept.rate, found.rate),
            evidence={"traces": len(ids), "rate_seen": found.rate, "rate": rule.kept.rate},
        )


def _begun_by_rule(seen: Seen, known: Mapping[str, Service]) -> Iterator[tuple[Service, Rule, Array]]:
    for service in known.values():
        rules = {rule.operation: rule for rule in service.rules}
        ids = defaultdict(list)
        for begun in seen.begun:
            if begun.service == service.name:
                ids[begun.operation if begun.operation in rules else None].append(begun.ids)
        for operation, arrays in ids.items():
            yield service, rules[operation], np.unique(np.concatenate(arrays))


def _agrees(found: Intervals, rule: Intervals, count: int) -> bool:
    """Whether a rule may well have left ids in the found intervals only."""
    shared = Kept(common(found, rule)).rate
    rate = Kept(rule).rate
    inside = shared >= 0.98 * Kept(found).rate
    return inside and rate > 0 and (shared / rate) ** count > CHANCE


def _own_decisions(seen: Seen, known: Mapping[str, Service]) -> Iterator[Finding]:
    for crossing in _joined(seen.unanswered()):
        found = bound_between(crossing.both, crossing.lone)
        service = known.get(crossing.callee)
        if found is None or service is None:
            continue
        total = len(crossing.both) + len(crossing.lone)
        yield Finding(
            "seen_own_decision",
            f"{crossing.callee} has no span for {len(crossing.lone)} of {total} calls of {crossing.caller}, and has "
            f"one exactly where {_named(found)} keeps the id: it does not follow its caller",
            f"let {crossing.callee} follow its caller",
            service=crossing.callee,
            caller=crossing.caller,
            rule=service.setting,
            share_dropped=len(crossing.lone) / total,
            evidence={"calls": total, "without": len(crossing.lone), "rate_seen": found.rate},
            config=f"OTEL_TRACES_SAMPLER=parentbased_{'traceidratio' if _is_legacy(found) else 'consistent'}",
        )


def _torn(seen: Seen, known: Mapping[str, Service]) -> Iterator[Finding]:
    for crossing in _joined(seen.torn()):
        found = bound_between(crossing.both, crossing.lone)
        service = known.get(crossing.callee)
        if found is None or service is None:
            continue
        total = len(crossing.both) + len(crossing.lone)
        yield Finding(
            "seen_torn",
            f"{crossing.callee} records {total} calls of {crossing.caller}, {len(crossing.lone)} of them without its "
            f"span, exactly where {_named(found)} drops the id: {crossing.callee} does not follow its caller",
            f"let {crossing.callee} follow its caller",
            service=crossing.callee,
            caller=crossing.caller,
            rule=service.setting,
            share_dropped=0.0,
            evidence={"calls": total, "without": len(crossing.lone), "share_torn": len(crossing.lone) / total}
            | {"rate_seen": found.rate},
            config="OTEL_TRACES_SAMPLER=parentbased_always_on",
        )


def _joined(crossings: Iterator[Crossing]) -> Iterator[Crossing]:
    """One crossing for each pair of services."""
    pairs = defaultdict(list)
    for crossing in crossings:
        pairs[crossing.caller, crossing.callee].append(crossing)
    for (caller, callee), parts in pairs.items():
        both, lone = (np.concatenate([part[side] for part in parts]) for side in (2, 3))
        yield Crossing(caller, callee, both, lone)
