"""95% bootstrap intervals, which resample rows with replacement, and McNemar's test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb
from typing import NamedTuple

import numpy as np

Interval = tuple[float, float, float]  # value, low, high


def bootstrap_statistic(
    statistic: Callable[[np.ndarray], float], n: int, seed: int = 0, rounds: int = 2000
) -> Interval:
    """Returns statistic(numbers of all n rows) and its 95% percentile interval.

    Zeros for no rows. For one row the interval is a point, which says nothing.
    """
    if not n:
        return 0.0, 0.0, 0.0
    random = np.random.default_rng(seed)
    low, high = np.quantile(
        [statistic(random.integers(0, n, n)) for _ in range(rounds)], [0.025, 0.975]
    )
    return float(statistic(np.arange(n))), float(low), float(high)


def bootstrap_mean(values: Sequence[float], seed: int = 0, rounds: int = 2000) -> Interval:
    """The mean of one value per row, with its interval."""
    array = np.asarray(values, dtype=np.float64)
    return bootstrap_statistic(lambda rows: array[rows].mean(), len(array), seed, rounds)


def paired_difference(
    a: Sequence[float], b: Sequence[float], seed: int = 0, rounds: int = 2000
) -> Interval:
    """The mean of a − b with its interval; raises ValueError if the numbers of rows differ."""
    return bootstrap_mean([x - y for x, y in zip(a, b, strict=True)], seed, rounds)


class McNemar(NamedTuple):
    """Two classifiers on the same rows: on how many only one is right, and the exact p-value."""

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first_right: Sequence[bool], second_right: Sequence[bool]) -> McNemar:
    """McNemar's exact test, two-sided: is one of the classifiers right more often?"""
    first, second = np.asarray(first_right, dtype=bool), np.asarray(second_right, dtype=bool)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    n = only_first + only_second
    tail = sum(comb(n, k) for k in range(min(only_first, only_second) + 1))
    return McNemar(only_first, only_second, min(1.0, 2 * tail / 2**n))
