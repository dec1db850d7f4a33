"""Bootstrap intervals cover the truth, and paired differences are narrower."""

from __future__ import annotations

import numpy as np
import pytest

from shuoshu.evaluation import intervals


def test_the_interval_is_repeatable_and_around_the_mean():
    values = np.random.default_rng(3).random(200).tolist()
    mean, low, high = intervals.bootstrap_mean(values, seed=5)
    assert (mean, low, high) == intervals.bootstrap_mean(values, seed=5)
    assert (low, high) != intervals.bootstrap_mean(values, seed=6)[1:]
    assert mean == pytest.approx(np.mean(values)) and low < mean < high
    error = np.std(values) / len(values) ** 0.5
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_the_interval_covers_the_truth_nineteen_times_in_twenty():
    random = np.random.default_rng(0)
    samples = [random.random(60) for _ in range(300)]
    covered = sum(
        low <= 0.5 <= high
        for _, low, high in (intervals.bootstrap_mean(sample, rounds=400) for sample in samples)
    )
    assert 0.90 * 300 <= covered <= 0.98 * 300


def test_none_or_one_value_has_a_point_interval():
    assert intervals.bootstrap_mean([]) == intervals.paired_difference([], []) == (0.0,) * 3
    assert intervals.bootstrap_mean([0.25]) == (0.25,) * 3
    assert intervals.bootstrap_mean([True, True]) == (1.0,) * 3


def test_a_paired_difference_shows_what_two_overlapping_intervals_hide():
    random = np.random.default_rng(4)
    hard = random.random(100)
    better = np.clip(hard + 0.05 + 0.01 * random.standard_normal(100), 0, 2)
    (_, _, high), (_, low, _) = intervals.bootstrap_mean(hard), intervals.bootstrap_mean(better)
    assert low < high
    mean, low, high = intervals.paired_difference(better, hard)
    assert 0.04 < low < mean < high < 0.06
    with pytest.raises(ValueError):
        intervals.paired_difference([1.0], [1.0, 2.0])


def test_any_statistic_has_an_interval():
    values = np.random.default_rng(1).random(200)

    def median(rows):
        return np.median(values[rows])

    value, low, high = intervals.bootstrap_statistic(median, len(values), rounds=200)
    assert value == np.median(values) and low < value < high
