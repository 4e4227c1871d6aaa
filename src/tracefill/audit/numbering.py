"""Numbers for things, a whole column at a time: hashing, dense numbering, sorted look-ups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

TABLE_LIMIT = 1 << 24  # up to here a table of all possible values is quicker than sorting, and still small
_MULTIPLIER = np.uint64(0xBF58476D1CE4E5B9)


def mix(values: Array, salt: int = 0) -> Array:
    """64 bits in, 64 well mixed bits out, one to one (the finaliser of splitmix64)."""
    mixed = values.astype(np.uint64) + np.uint64((0x9E3779B97F4A7C15 * (salt + 1)) % (1 << 64))
    for shift in (30, 27):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= _MULTIPLIER
    mixed ^= mixed >> np.uint64(31)
    return mixed


def combine(*columns: Array) -> Array:
    """One 64-bit number for each row: the same for equal rows, another (but for 1 in 2**64) for others."""
    combined = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        combined = mix(combined ^ column.astype(np.int64).view(np.uint64))
    return combined


def dense(values: Array, size: int) -> tuple[Array, Array]:
    """Numbers 0, 1, 2... for the values that occur, and the values by number; values are in 0..size."""
    if size > TABLE_LIMIT:
        distinct, numbers = np.unique(values, return_inverse=True)
        return numbers, distinct
    occurs = np.zeros(size, bool)
    occurs[values] = True
    return (np.cumsum(occurs, dtype=np.int32) - 1)[values], np.flatnonzero(occurs)


def group(keys: Array) -> tuple[Array, Array, Array]:
    """For each distinct key the position of a row that has it and how many do; for each row the number of its key."""
    _, first, numbers, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    return first, counts, numbers


def members(keys: Array) -> Iterator[tuple[int, Array]]:
    """Each distinct key with the positions of the rows that have it."""
    order = np.argsort(keys, kind="stable")
    ends = np.flatnonzero(np.diff(keys[order], append=keys[order[-1:]] + 1)) + 1
    begin = 0
    for end in ends.tolist():
        yield int(keys[order[begin]]), order[begin:end]
        begin = end


def look_up(sorted_keys: Array, wanted: Array) -> Array:
    """The first position of each wanted key; -1 where there is none."""
    if not len(sorted_keys):
        return np.full(len(wanted), -1, np.int64)
    position = np.minimum(np.searchsorted(sorted_keys, wanted), len(sorted_keys) - 1)
    return np.where(sorted_keys[position] == wanted, position, -1)


def is_in(values: Array, wanted: Array) -> Array:
    """Whether each value is among the wanted ones."""
    return look_up(np.sort(wanted), values) >= 0


def earliest(groups: Array, *order: Array) -> Array:
    """The position of the first row of each group, by the given order (the first column counts most)."""
    position = np.lexsort((*order[::-1], groups))
    return position[np.flatnonzero(np.diff(groups[position], prepend=-1))] if len(groups) else position
