"""Calls and messages whose far side began a trace of its own: not propagated, not extracted, or another format.

A CLIENT or PRODUCER without a far side is paired with a root SERVER or CONSUMER that was there at that time for the
same target. Who is to blame is told by whom both sides work with otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tracefill.audit.causes import Instances, instances
from tracefill.audit.chance import chance_of
from tracefill.audit.clocks import Clocks, Spells, offset_of_calls, offset_of_messages
from tracefill.audit.forest import Forest
from tracefill.audit.numbering import Array, combine, group, is_in, look_up, members
from tracefill.audit.pairing import NOBODY, Fits, covered, open_at, pair_calls, pair_messages
from tracefill.audit.targets import METHODS, Targets
from tracefill.audit.window import Window

CHANCE = 0.0001
A_HANDFUL = 5  # of fewer far sides little can be said about chance
CHANCE_OF_A_HANDFUL = 0.05
MOST = 0.5
MISTAKEN = 0.02  # of the calls that stand alone at most so many are paired with somebody else's
CLOCKS_DIFFER_NS = 5_000_000  # what clocks may still differ after their offset is taken off
SENDERS_DIFFER_NS = 1_000_000_000  # the same where only messages tell the offset
DELAYS_LONGER = 10
SECOND = 1_000_000_000


def far_sides(forest: Forest, targets: Targets, clocks: Clocks, window: Window, roots: Array) -> Iterator[Instances]:
    """The causes of all root SERVER and CONSUMER spans among `roots` that somebody in the data called."""
    far = roots[forest.is_far_kind[roots] & ~forest.is_linked[roots]]
    if len(far):
        near_of = Meetings(forest, targets, clocks, window).near_sides(far)
        yield from blame(forest, far[near_of >= 0], near_of[near_of >= 0])


# --- who is to blame ---


def blame(forest: Forest, far: Array, near: Array) -> Iterator[Instances]:
    """One cause for each pair, by whom the caller reaches and whom the callee continues."""
    caller, callee = _side(forest, near), _side(forest, far)
    kept_far, kept_near = forest.crossings
    kept = is_in(combine(caller, callee), combine(_side(forest, kept_near), _side(forest, kept_far)))
    reaches = is_in(caller, _side(forest, kept_near))
    continues = is_in(callee, _side(forest, np.flatnonzero(_continues(forest))))
    several = _callers_at(caller, callee) > 1

    yield from _pairs(
        "not_propagated", kept, far, near, "{count} of {total} began a new trace; this very edge is kept at times",
        ("not_extracted",),
    )  # fmt: skip
    yield from _pairs(
        "not_propagated", ~kept & ~reaches & continues, far, near,
        "{count} of {total} began a new trace; {to} continues the context of others, {from_} reaches nobody",
        ("not_extracted",),
    )  # fmt: skip
    yield from _pairs(
        "not_propagated", ~reaches & ~continues & ~several, far, near,
        "{count} of {total} began a new trace; {from_} reaches nobody and {to} continues nobody",
        ("not_extracted", "format_mismatch"),
    )  # fmt: skip
    yield from _pairs(
        "not_extracted", ~continues & several, far, near,
        "{count} of {total} began a new trace; {to} continues nobody, though several call it",
    )  # fmt: skip
    yield from _pairs(
        "not_extracted", reaches & ~continues & ~several, far, near,
        "{count} of {total} began a new trace; {to} continues nobody, {from_} is continued elsewhere",
        ("format_mismatch",),
    )  # fmt: skip
    yield from _pairs(
        "format_mismatch", ~kept & reaches & continues, far, near,
        "{count} of {total} began a new trace; both sides work with others, only not with each other",
    )  # fmt: skip


def _pairs(
    cause: str, which: Array, far: Array, near: Array, evidence: str, also_possible: tuple[str, ...] = ()
) -> Iterator[Instances]:
    yield from instances(cause, far[which], near[which], evidence, also_possible)


def _side(forest: Forest, rows: Array) -> Array:
    """A caller or callee is a service and a library."""
    return combine(forest["service"][rows], forest["library"][rows])


def _continues(forest: Forest) -> Array:
    """Whether each SERVER or CONSUMER shows that it read the context of somebody, in the data or not."""
    parent = forest.parent
    within = (parent >= 0) & (forest["process"] == forest["process"][parent]) & ~forest.is_near_kind[parent]
    continues = (forest["parent_id"] != 0) & ~within
    continues[forest["link_row"]] = True
    return np.asarray(continues & forest.is_far_kind)


def _callers_at(caller: Array, callee: Array) -> Array:
    """For each pair, how many different callers fail at its callee."""
    first, _, _ = group(combine(caller, callee))
    _, _, numbers = group(callee)
    return np.bincount(numbers[first], minlength=numbers.max(initial=-1) + 1)[numbers]


# --- who met whom ---


@dataclass
class Place:
    """Where far sides wait: a service, or a service at the end of a topic; and who may have called there."""

    far: Array
    near: Array
    longest_ns: int | None = None  # of messages: how long they may be under way; None where nothing is known


class Meetings:
    """Pairs the near sides without a far side with the far sides that began anew."""

    def __init__(self, forest: Forest, targets: Targets, clocks: Clocks, window: Window) -> None:
        self.forest, self.targets, self.clocks, self.window = forest, targets, clocks, window

    def near_sides(self, far: Array) -> Array:
        """For each far row the near row that called it, or -1."""
        near_of = np.full(len(self.forest), NOBODY)
        by_message = self.targets.is_of_message(far)
        taken = np.zeros(len(self.forest), bool)
        for place in self._services(far[~by_message]):
            place.near = place.near[~taken[place.near]]
            self._align_clocks(place, self.clocks.island_of_calls, offset_of_calls)
            near_of[place.far] = pairs = self._pair_service(place)
            taken[pairs[pairs >= 0]] = True
        for place in self._topics(far[by_message]):
            self._align_clocks(place, self.clocks.island, offset_of_messages)
            near_of[place.far] = self._pair_topic(place)
        return near_of[far]

    def _senders(self, *, of_messages: bool) -> Array:
        senders = self.forest.senders
        return np.asarray(senders[self.targets.is_of_message(senders) == of_messages])

    def _without_far_side_in(self, near: Array, service: int) -> Array:
        """Those of the near rows that nobody in the service continues, not even a span that was lost since."""
        reached = look_up(self._reached_by, _pair(near, service)) >= 0
        orphaned = look_up(self._orphaned_in, _pair(self.forest.trace[near], service)) >= 0
        return near[~reached & ~orphaned]

    @cached_property
    def _reached_by(self) -> Array:
        """Each sender together with each service that continues it."""
        return np.sort(_pair(*self.forest.reached))

    @cached_property
    def _orphaned_in(self) -> Array:
        """Each trace together with each service that has spans without their parent there."""
        orphans = np.flatnonzero(self.forest.lacks_parent)
        return np.sort(_pair(self.forest.trace[orphans], self.forest["service"][orphans]))

    # --- messages ---

    def _topics(self, far: Array) -> Iterator[Place]:
        """Far sides by service and topic, each with the senders to a topic that leads there."""
        senders = self._senders(of_messages=True)
        sent_to = dict(members(self.targets.topic(senders)))
        topics = self.targets.topic(far)
        for _, at in members(_pair(topics, self.forest["service"][far])):
            service, topic = int(self.forest["service"][far[at[0]]]), int(topics[at[0]])
            leading = {topic} | self.targets.topics_leading_to.get(topic, set())
            near = [senders[sent_to[one]] for one in sorted(leading) if one in sent_to]
            if near:
                longest = self._longest_delays.get((service, topic))
                yield Place(far[at], self._without_far_side_in(np.concatenate(near), service), longest)

    @cached_property
    def _longest_delays(self) -> dict[tuple[int, int], int]:
        """How long messages to a service by a topic may be under way, where some are seen to arrive."""
        far, near = self.targets.kept_messages
        delays = self.clocks.start(self.forest, far) - self.clocks.start(self.forest, near)
        services, topics = self.forest["service"][far], self.targets.topic(far)
        return {
            (int(services[at[0]]), int(topics[at[0]])): DELAYS_LONGER * max(int(delays[at].max()), 0) + SECOND
            for _, at in members(_pair(topics, services))
        }

    def _pair_topic(self, place: Place) -> Array:
        forest, clocks = self.forest, self.clocks
        received, sent = clocks.start(forest, place.far) + SENDERS_DIFFER_NS, clocks.start(forest, place.near)
        longest = (place.longest_ns or self.window.end - self.window.start) + SENDERS_DIFFER_NS
        pairs = np.full(len(place.far), NOBODY)
        for near_key, far_key in ((forest["subject"][place.near], forest["subject"][place.far]), _no_keys(place)):
            free_far, free_near = _free(pairs, near_key, far_key)
            found = pair_messages(sent[free_near], received[free_far], near_key[free_near], far_key[free_far], longest)
            pairs[free_far[found >= 0]] = free_near[found[found >= 0]]
        if place.longest_ns is not None:
            share = covered(sent, sent + longest, (self.window.start, self.window.end))
            pairs = self._without_coincidences(place, pairs, share)
        return np.where(pairs >= 0, place.near[pairs] if len(place.near) else NOBODY, NOBODY)

    # --- calls ---

    def _services(self, far: Array) -> Iterator[Place]:
        """Far sides by service, each with the CLIENT spans that call it, by all that they tell of their target."""
        forest = self.forest
        senders = self._senders(of_messages=False)
        senders = senders[~is_in(senders, forest.reached[0])]
        for service in np.unique(forest["service"][far]).tolist():
            rows = far[forest["service"][far] == service]
            near = senders[self.targets.may_call(senders, service, rows)]
            yield Place(rows, self._without_far_side_in(near, service))

    def _pair_service(self, place: Place) -> Array:
        """Pairs; operations that have a caller only by coincidence are left out of the search."""
        searched = np.ones(len(place.far), bool)
        share = covered(*self._time(place.near), (self.window.start, self.window.end))
        while True:
            pairs = np.full(len(place.far), NOBODY)
            pairs[searched] = self._search(Place(place.far[searched], place.near))
            kept = self._without_coincidences(place, pairs, share)
            if (kept == pairs).all():
                return np.where(pairs >= 0, place.near[pairs] if len(place.near) else NOBODY, NOBODY)
            searched &= ~is_in(self.forest.operation[place.far], self.forest.operation[place.far[kept != pairs]])

    def _time(self, rows: Array) -> Spells:
        return self.clocks.start(self.forest, rows), self.clocks.end(self.forest, rows)

    def _search(self, place: Place) -> Array:
        """Pairs; where a call that stands alone tells who calls which operation, calls that overlap follow it."""
        near, far = self._time(place.near), self._time(place.far)
        pairs = self._sweep(place, near, far)
        found = np.flatnonzero(pairs >= 0)
        _, _, caller = group(self._caller(place.near))
        _, _, operation = group(self.forest.operation[place.far])
        met = _pair(caller[pairs[found]], operation[found])
        alone = open_at(near, far[0][found]) == 1
        first, counts, _ = group(met[alone])
        of_operation = np.bincount(operation[found][alone], minlength=1)[met[alone][first] & 0xFFFFFFFF]
        usual = met[alone][first][counts > MISTAKEN * of_operation]
        if is_in(met, usual).all():
            return pairs
        known = set(usual.tolist())
        return self._sweep(place, near, far, lambda one, other: int(caller[one]) << 32 | int(operation[other]) in known)

    def _caller(self, near: Array) -> Array:
        """Who calls: a number of all that a CLIENT always says alike."""
        return combine(*(self.forest[column][near] for column in ("service", "library", "name", "peer")))

    def _sweep(self, place: Place, near: Spells, far: Spells, fits: Fits | None = None) -> Array:
        """Those that fit before the others; those that say the same, then those of the same method, then any; enclosed
        before begun inside, and that by clocks that agree before clocks that differ a little."""
        pairs = np.full(len(place.far), NOBODY)
        subjects = self.forest["subject"][place.near], self.forest["subject"][place.far]
        methods = self._methods[self.forest["name"][place.near]], self._methods[self.forest["name"][place.far]]
        for which in (fits, None) if fits else (None,):
            for near_key, far_key in (subjects, methods, _no_keys(place)):
                for ends in (far[1], far[0]):
                    for more in (0, CLOCKS_DIFFER_NS):
                        wider = near[0] - more, near[1] + more
                        self._add_pairs(pairs, wider, (far[0], ends), near_key, far_key, which)
        return pairs

    @staticmethod
    def _add_pairs(pairs: Array, near: Spells, far: Spells, near_key: Array, far_key: Array, fits: Fits | None) -> None:
        """Pairs what is free yet, and has a key."""
        free_far, free_near = _free(pairs, near_key, far_key)
        if not len(free_far) or not len(free_near):
            return
        found = pair_calls(
            (near[0][free_near], near[1][free_near]),
            (far[0][free_far], far[1][free_far]),
            near_key[free_near],
            far_key[free_far],
            (lambda one, other: fits(int(free_near[one]), int(free_far[other]))) if fits else None,
        )
        pairs[free_far[found >= 0]] = free_near[found[found >= 0]]

    @cached_property
    def _methods(self) -> Array:
        """For each string, a number of the HTTP method that it begins with; 0 for none."""
        strings = self.forest.spans.strings
        methods = np.zeros(len(strings), np.int64)
        known = {method: number for number, method in enumerate(sorted(METHODS), 1)}
        for number in np.flatnonzero(np.bincount(self.forest["name"], minlength=len(strings))).tolist():
            methods[number] = known.get(strings[number].partition(" ")[0].lower(), 0)
        return methods

    # --- both ---

    def _without_coincidences(self, place: Place, pairs: Array, share: float) -> Array:
        """The pairs, without those of operations whose far sides meet a near side no more often than by chance."""
        first, counts, numbers = group(self.forest.operation[place.far])
        found = np.flatnonzero(pairs >= 0)
        met = np.bincount(numbers[found], minlength=len(first))
        strange = np.bincount(numbers[found], self._is_strange(place, pairs, found), minlength=len(first)) > 0
        all_found = len(found) >= MOST * len(place.near)
        real = [
            _is_real(hits, tries, chance_of(hits, tries, share), is_strange=odd, explains_most=all_found)
            for hits, tries, odd in zip(met.tolist(), counts.tolist(), strange.tolist(), strict=True)
        ]
        return np.where(np.array(real, bool)[numbers], pairs, NOBODY)

    def _is_strange(self, place: Place, pairs: Array, found: Array) -> Array:
        """For each pair, whether nobody is seen calling the far operation, though this caller is seen to reach others
        of the same service: it may be a health check."""
        far, near = place.far[found], place.near[pairs[found]]
        services = _pair(self.forest["service"][near], self.forest["service"][far])
        return ~self.forest.is_called[self.forest.operation[far]] & is_in(services, self._kept_services)

    @cached_property
    def _kept_services(self) -> Array:
        """Each service together with each that is seen to continue it."""
        far, near = self.forest.crossings
        pairs = _pair(self.forest["service"][near], self.forest["service"][far])
        return pairs[group(pairs)[0]]

    def _align_clocks(self, place: Place, islands: Array, offset_of: Callable[[Spells, Spells], int]) -> None:
        """Sets the clocks of processes that nobody is seen calling by what began anew in them."""
        forest, clocks = self.forest, self.clocks
        callers, callees = forest["process"][place.near], forest["process"][place.far]
        for process in np.unique(callees).tolist():
            if len(callers) and (islands[callers] != islands[process]).all():
                offset = offset_of(self._time(place.near), self._time(place.far[callees == process]))
                clocks.shift(process, int(callers[0]), offset, islands)


def _is_real(hits: int, tries: int, chance: float, *, is_strange: bool, explains_most: bool) -> bool:
    """Whether so many far sides of an operation met one of the callers because they were called."""
    few = tries < A_HANDFUL
    if is_strange:
        return chance < CHANCE
    if explains_most and (few or hits == tries):
        return True
    return chance < (CHANCE_OF_A_HANDFUL if few else CHANCE)


def _pair(row: Array, service: Array | int) -> Array:
    return row.astype(np.int64) << 32 | service


def _no_keys(place: Place) -> tuple[Array, Array]:
    return np.ones(len(place.near), np.int64), np.ones(len(place.far), np.int64)


def _free(pairs: Array, near_key: Array, far_key: Array) -> tuple[Array, Array]:
    """Numbers of the far and near sides that are not paired yet, and have a key."""
    free_near = near_key != 0
    free_near[pairs[pairs >= 0]] = False
    return np.flatnonzero((pairs < 0) & (far_key != 0)), np.flatnonzero(free_near)
