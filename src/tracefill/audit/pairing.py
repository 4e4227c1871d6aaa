"""Who belongs to whom, of the near sides without a far side and the far sides that began anew.

These sweeps walk over what was lost, not over all spans. Both find as many pairs as there can be.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict, deque
from collections.abc import Callable

import numpy as np

from tracefill.audit.numbering import Array

NOBODY = -1
Fits = Callable[[int, int], bool]  # whether a near side may belong to a far side, both by number


def pair_calls(
    near: tuple[Array, Array], far: tuple[Array, Array], near_key: Array, far_key: Array, fits: Fits | None = None
) -> Array:
    """For each far side the number of a near side of the same key that encloses it, or -1; each near side once.

    `near` and `far` are starts and ends. Far sides are taken by their start and get the near side that ends first (and
    that `fits`): whoever comes later can use those that are left as well, so none is wasted.

    >>> near, far = (np.array([0, 10]), np.array([100, 60])), (np.array([12, 15]), np.array([90, 50]))
    >>> pair_calls(near, far, np.zeros(2), np.zeros(2)).tolist()
    [0, 1]
    """
    pairs = np.full(len(far[0]), NOBODY)
    useful = _meets(np.sort(far[0]), *near)
    useful = useful[np.argsort(near[0][useful], kind="stable")]
    columns = (near[0][useful], near[1][useful], near_key[useful], useful)
    waiting = deque(zip(*(column.tolist() for column in columns), strict=True))
    open_by_key: dict[object, list[tuple[int, int]]] = defaultdict(list)
    order = np.flatnonzero(open_at(near, far[0]))
    order = order[np.lexsort((far[1][order], far[0][order]))]
    columns = (order, far[0][order], far[1][order], far_key[order])
    for at, start, end, key in zip(*(column.tolist() for column in columns), strict=True):
        while waiting and waiting[0][0] <= start:
            _, near_end, its_key, number = waiting.popleft()
            insort(open_by_key[its_key], (near_end, number))
        candidates = open_by_key[key]
        del candidates[: bisect_left(candidates, (start, NOBODY))]
        for place in range(bisect_left(candidates, (end, NOBODY)), len(candidates)):
            if fits is None or fits(candidates[place][1], at):
                pairs[at] = candidates.pop(place)[1]
                break
    return pairs


def open_at(spells: tuple[Array, Array], times: Array) -> Array:
    """How many of the spells are open at each time.

    >>> open_at((np.array([0, 10]), np.array([20, 30])), np.array([5, 15, 40])).tolist()
    [1, 2, 0]
    """
    begun = np.searchsorted(np.sort(spells[0]), times, "right")
    return np.asarray(begun - np.searchsorted(np.sort(spells[1]), times))


def pair_messages(sent: Array, received: Array, sent_key: Array, received_key: Array, longest: int) -> Array:
    """For each message received the number of one sent before, under the same key, at most `longest` before; or -1.

    First in, first out.

    >>> pair_messages(np.array([0, 5]), np.array([3, 4, 9]), np.zeros(2), np.zeros(3), 10).tolist()
    [0, -1, 1]
    """
    pairs = np.full(len(received), NOBODY)
    useful = _meets(np.sort(received), sent, sent + longest)
    useful = useful[np.argsort(sent[useful], kind="stable")]
    waiting = deque(zip(sent[useful].tolist(), sent_key[useful].tolist(), useful.tolist(), strict=True))
    on_the_way: dict[object, deque[tuple[int, int]]] = defaultdict(deque)
    for at in np.argsort(received, kind="stable").tolist():
        now, key = int(received[at]), received_key[at]
        while waiting and waiting[0][0] <= now:
            time, its_key, number = waiting.popleft()
            on_the_way[its_key].append((time, number))
        queue = on_the_way[key]
        while queue and queue[0][0] < now - longest:
            queue.popleft()
        if queue:
            pairs[at] = queue.popleft()[1]
    return pairs


def _meets(times: Array, starts: Array, ends: Array) -> Array:
    """Numbers of the spells in which one of the (sorted) times lies: all others need no walking over."""
    return np.flatnonzero(np.searchsorted(times, ends, "right") > np.searchsorted(times, starts))


def covered(starts: Array, ends: Array, whole: tuple[int, int]) -> float:
    """The share of the whole time that these intervals cover together.

    >>> covered(np.array([0, 5, 40]), np.array([10, 20, 50]), (0, 100))
    0.3
    """
    if not len(starts) or whole[1] <= whole[0]:
        return float(len(starts) > 0)
    order = np.argsort(starts)
    starts = np.clip(starts[order], *whole)
    reached = np.maximum.accumulate(np.clip(ends[order], *whole))
    from_where = np.maximum(starts, np.concatenate([starts[:1], reached[:-1]]))
    return float(np.maximum(reached - from_where, 0).sum() / (whole[1] - whole[0]))
