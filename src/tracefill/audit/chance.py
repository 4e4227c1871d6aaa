"""What chance alone would do: so that nobody is accused of a coincidence."""

from __future__ import annotations

from math import exp, lgamma, log, sqrt

import numpy as np

from tracefill.audit.numbering import Array


def chance_of(hits: int, tries: int, share: float) -> float:
    """How likely `tries` blind tries hit at least `hits` times something that covers `share` of the time.

    1.0 where the hits are no more than expected.

    >>> round(chance_of(3, 3, 0.1), 6), round(chance_of(2, 3, 0.1), 6), chance_of(1, 9, 0.2)
    (0.001, 0.028, 1.0)
    """
    if hits <= tries * share:
        return 1.0
    if share <= 0:
        return 0.0
    term = exp(
        lgamma(tries + 1) - lgamma(hits + 1) - lgamma(tries - hits + 1)
        + hits * log(share) + (tries - hits) * log(1 - share)
    )  # fmt: skip
    sum_ = 0.0
    while hits <= tries and term > sum_ * 1e-12:
        sum_ += term
        term *= (tries - hits) / (hits + 1) * share / (1 - share)
        hits += 1
    return min(sum_, 1.0)


def is_steady(places: Array, length: int) -> bool:
    """Whether these places (sorted numbers in 0..length) lie evenly over the whole, or are a burst.

    Kuiper's test at 1/4 %: the largest deviation from an even spread to either side.

    >>> is_steady(np.arange(0, 100, 4), 100), is_steady(np.arange(40, 65), 100)
    (True, False)
    """
    count = len(places)
    even = (places + 0.5) / length
    steps = np.arange(count + 1) / count
    deviation = (steps[1:] - even).max() + (even - steps[:-1]).max()
    return bool(deviation * (sqrt(count) + 0.155 + 0.24 / sqrt(count)) < 2.2)
