"""The closed list of causes, each found by one function that looks at the spans and at nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tracefill.audit.numbering import Array

# Whether the cause breaks a chain, in the order of the contract.
BREAKS = {
    "not_propagated": True,
    "not_extracted": True,
    "format_mismatch": True,
    "id_truncated": True,
    "handoff_lost": True,
    "scope_too_short": True,
    "sampled_out": True,
    "not_exported": True,
    "unfinished": True,
    "duplicate_id": True,
    "several_roots": True,
    "cycle": True,
    "glued": False,
    "premature_end": False,
    "clock_skew": False,
    "exported_twice": False,
}
NOWHERE = -1  # the row of a span that is not in the data

# Formats round times to microseconds, start and duration each by itself: an end may seem so much earlier than it was.
ROUNDING_NS = 2_000


@dataclass
class Instances:
    """Spans with one cause: the far span of each instance, and the near span that it should hang on."""

    cause: str
    far: Array
    near: Array
    evidence: str  # may name {count}, {total}, {kept}, {from_}, {to} and {via} of the finding
    also_possible: tuple[str, ...] = ()
    weight: Array | None = None  # how many instances each far span stands for; one each where it is None
    source: Array | None = None  # the services that the near spans belong to, where they are not in the data

    @property
    def breaks(self) -> bool:
        return BREAKS[self.cause]


def nowhere(rows: Array) -> Array:
    """A near side that is not in the data, for each of the rows."""
    return np.full(len(rows), NOWHERE, np.int64)


def instances(
    cause: str, far: Array, near: Array, evidence: str, also_possible: tuple[str, ...] = (), **more: Array
) -> Iterator[Instances]:
    """What was found, or nothing at all."""
    if len(far):
        yield Instances(cause, far, near, evidence, also_possible, **more)
