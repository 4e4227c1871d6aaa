"""What a service decides with: its sampler, the traces that this keeps, and what is left where two samplers decide.

A sampler that looks at the trace id keeps the same traces wherever it runs, so what it keeps is a set: intervals of the
lower 64 bits of the id, counted from 0 to 1. ``traceidratio`` (of Python and Go) keeps the ids below its rate. The
consistent samplers look at the lower 56 bits only, and keep the highest of them: 256 intervals. The share of traces
that two services both keep is the length of what their sets have in common.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from tracefill.audit.sampling.strategies import DEFAULT_PROBABILITY, Answer

PARENT_BASED = "parentbased_"
INITIAL_RATE = DEFAULT_PROBABILITY  # of a remote sampler that nobody has answered yet, in Go and Java alike

# Jaeger's own clients always follow the caller's decision.
_JAEGER_NAMES = {
    "const": "parentbased_traceidratio",
    "probabilistic": "parentbased_traceidratio",
    "ratelimiting": "parentbased_ratelimiting",
    "remote": "parentbased_jaeger_remote",
}
_CONSISTENT = re.compile("consistent|compos|probability|parent_?threshold")
_SLICES = 256  # the byte above the 56 bits that a consistent sampler looks at

Intervals = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Kept:
    """The traces that a decision keeps: those with an id in the intervals, and of them at most `per_second`."""

    ids: Intervals
    per_second: float | None = None

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.ids, self.per_second))

    @cached_property
    def rate(self) -> float:
        """The share of all traces; for a limit, the share of those within it."""
        return 0.0 if self.per_second is not None and self.per_second <= 0 else _length(self.ids)


ALL, NONE = Kept(((0.0, 1.0),)), Kept(())


def by_ratio(rate: float) -> Kept:
    """What ``TraceIdRatioBased`` keeps.

    >>> by_ratio(0.25).ids
    ((0.0, 0.25),)
    """
    rate = min(max(rate, 0.0), 1.0)
    return Kept(((0.0, rate),)) if rate else NONE


def by_threshold(rate: float) -> Kept:
    """What a consistent sampler keeps (``ot=th:``).

    >>> len(by_threshold(0.25).ids), by_threshold(0.25).rate
    (256, 0.25)
    """
    rate = min(max(rate, 0.0), 1.0)
    if rate in (0, 1):
        return ALL if rate else NONE
    return Kept(tuple(((byte + 1 - rate) / _SLICES, (byte + 1) / _SLICES) for byte in range(_SLICES)))


def by_limit(per_second: float) -> Kept:
    """What a rate limiter keeps: whichever come first, whatever their ids."""
    return Kept(ALL.ids, per_second)


def both(one: Kept, other: Kept) -> float | None:
    """The share of all traces that both decisions keep; None where a limit decides, which depends on the traffic.

    >>> round(both(by_ratio(0.1), by_threshold(0.1)), 4)
    0.0098
    >>> both(by_ratio(0.1), by_ratio(0.5))
    0.1
    """
    if 0 in (one.rate, other.rate):
        return 0.0
    if one.per_second is not None or other.per_second is not None:
        return None
    return _length(common(one.ids, other.ids))


def lost(kept: Kept, shared: float | None) -> float | None:
    """The share of what one decision keeps that another drops, from what `both` keep. 0 where the one keeps nothing.

    >>> lost(by_ratio(0.5), 0.125)
    0.75
    """
    if shared is None or not kept.rate:
        return shared
    return max(0.0, 1 - shared / kept.rate)


def common(one: Intervals, other: Intervals) -> Intervals:
    """Where the intervals of both overlap.

    >>> common(((0.0, 0.5), (0.75, 1.0)), ((0.25, 0.8),))
    ((0.25, 0.5), (0.75, 0.8))
    """
    found, i, j = [], 0, 0
    while i < len(one) and j < len(other):
        begin, end = max(one[i][0], other[j][0]), min(one[i][1], other[j][1])
        if begin < end:
            found.append((begin, end))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return tuple(found)


def _length(ids: Intervals) -> float:
    return math.fsum(end - begin for begin, end in ids)


# --- settings --------------------------------------------------------------------------------------------------------


class Fault(NamedTuple):
    """What is wrong with a setting, and what a service does instead."""

    cause: str
    text: str


@dataclass(frozen=True)
class Sampler:
    """One setting, understood. A remote sampler has no rate of its own but the one it starts with."""

    setting: str
    parent_based: bool
    kept: Kept
    remote: bool = False
    has_rate: bool = False  # whether the setting names a rate or a limit
    fault: Fault | None = None


def sampler(setting: str) -> Sampler:
    """The sampler of a setting ``TYPE`` or ``TYPE:PARAM``.

    TYPE is a value of ``OTEL_TRACES_SAMPLER``, ``consistent`` or ``parentbased_consistent``, or one of Jaeger's client
    (``const``, ``probabilistic``, ``ratelimiting``, ``remote``). Whatever an SDK would not understand has a `fault`,
    and keeps what the SDK then keeps: everything.

    >>> sampler("parentbased_traceidratio:0.25").kept.rate, sampler("traceidratio:25").kept.rate
    (0.25, 1.0)
    """
    name, _, argument = setting.partition(":")
    name = name.strip().lower()
    name = _JAEGER_NAMES.get(name, name)
    parent_based, kind = name.startswith(PARENT_BASED), name.removeprefix(PARENT_BASED)
    if kind in ("always_on", "always_off"):
        return Sampler(setting, parent_based, ALL if kind == "always_on" else NONE)
    if kind == "jaeger_remote":
        return Sampler(setting, parent_based, by_ratio(_initial_rate(argument)), remote=True)
    if kind == "ratelimiting":
        return _with_number(setting, parent_based, argument, math.inf, by_limit)
    if kind == "traceidratio":
        return _with_number(setting, parent_based, argument, 1, by_ratio)
    if _CONSISTENT.search(kind):
        return _with_number(setting, "parent" in name, argument, 1, by_threshold)
    what = f"no SDK knows the sampler {name or 'with an empty name'}; it takes parentbased_always_on and logs a warning"
    return Sampler(setting, True, ALL, fault=Fault("sampler_unknown", what))


def _with_number(
    setting: str, parent_based: bool, argument: str, most: float, keep: Callable[[float], Kept]
) -> Sampler:
    number = number_in(argument)
    if number is None or not 0 <= number <= most:
        return Sampler(setting, parent_based, ALL, fault=_bad_argument(argument, most))
    return Sampler(setting, parent_based, keep(number), has_rate=True)


def _bad_argument(argument: str, most: float) -> Fault:
    if not argument.strip():
        return Fault("argument_missing", "the sampler has no argument, so that it keeps every trace")
    expected = "a number from 0 to 1" if most == 1 else "a number of traces per second"
    return Fault("argument_invalid", f"{argument!r} is not {expected}; the SDK logs a warning and keeps every trace")


def _initial_rate(argument: str) -> float:
    pairs = dict(part.partition("=")[::2] for part in argument.replace(" ", "").split(","))
    number = number_in(pairs.get("initialSamplingRate", argument))
    return INITIAL_RATE if number is None or not 0 <= number <= 1 else number


def number_in(text: str) -> float | None:
    """The number that a setting gives; None where it gives none, or none that is finite."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


# --- what a remote sampler makes of an answer ------------------------------------------------------------------------


def told(answer: Answer, operation: str | None, initial: Kept) -> Kept:
    """What a remote sampler keeps of the traces that begin with an operation (None: one that no list names).

    A list of operations comes before everything else. An answer that is none, or a probability that is none, leaves
    the sampler as it was: at the rate it started with, `initial`.
    """
    if answer.is_error:
        return initial
    if answer.operations is not None:
        return by_ratio(answer.operations.rate(operation))
    if answer.per_second is not None:
        return by_limit(answer.limit_on_page)
    assert answer.probability is not None
    return by_ratio(answer.probability) if 0 <= answer.probability <= 1 else initial
