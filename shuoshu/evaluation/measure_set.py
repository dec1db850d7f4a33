"""Measures with bootstrap intervals, and their differences between two models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from shuoshu.evaluation import metrics
from shuoshu.evaluation.copies import MIN_COPIED, Copies
from shuoshu.evaluation.intervals import (
    Interval,
    bootstrap_mean,
    bootstrap_statistic,
    paired_difference,
)
from shuoshu.evaluation.loss import Score

Measures = dict[str, dict[str, float]]  # name → value, low, high
# A difference of these would compare the data with itself.
SAME_FOR_ALL_MODELS = ("lookup_", "reference_")


class Aggregate(NamedTuple):
    """A statistic of many rows that is not the mean of one value per row."""

    rows: np.ndarray  # equal arrays: two models were measured on the same rows
    statistic: Callable[[np.ndarray], float]  # takes row numbers
    rounds: int  # of the bootstrap


class MeasureSet:
    """The measures of one model on one split, with the values by row that a comparison needs."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.measures: Measures = {}
        self.by_row: dict[str, np.ndarray] = {}
        self.aggregates: dict[str, Aggregate] = {}

    def add_mean(self, name: str, values: Sequence[float]) -> None:
        """Adds the mean of one value per row."""
        self.by_row[name] = np.asarray(values, dtype=np.float64)
        self.add_interval(name, bootstrap_mean(self.by_row[name], self.seed))

    def add_aggregate(
        self,
        name: str,
        rows: np.ndarray,
        statistic: Callable[[np.ndarray], float],
        rounds: int = 2000,
    ) -> None:
        """Adds statistic(row numbers) over all rows."""
        self.aggregates[name] = Aggregate(rows, statistic, rounds)
        self.add_interval(name, bootstrap_statistic(statistic, len(rows), self.seed, rounds))

    def add_difference(self, name: str, other: str) -> None:
        """Adds `name`'s mean minus that of `other`, row by row, as above_<other>."""
        difference = paired_difference(self.by_row[name], self.by_row[other], self.seed)
        self.add_interval(f"above_{other}", difference)

    def add_interval(self, name: str, interval: Interval) -> None:
        """Adds a finished (value, low, high)."""
        self.measures[name] = to_entry(interval)

    def add_perplexities(
        self, scored: Score, characters: int, n_bytes: int, suffix: str = ""
    ) -> None:
        """Adds perplexity with and without end tokens, and bits per character and per byte."""
        rows = scored.rows[scored.rows[:, 1] > 0]
        tokens = rows[:, 1]

        def mean_nats(transform: Callable[[float], float], column: int) -> Callable:
            """The statistic transform(nats / tokens); `column` holds nats, the next one tokens."""
            return lambda chosen: float(
                transform(rows[chosen, column].sum() / max(1.0, rows[chosen, column + 1].sum()))
            )

        self.add_aggregate("perplexity" + suffix, tokens, mean_nats(np.exp, 0))
        if not suffix:
            self.add_aggregate("perplexity_without_end", tokens, mean_nats(np.exp, 2))
        for name, count in (("bits_per_char", characters), ("bits_per_byte", n_bytes)):
            scale = 0.0  # bits per character or byte ÷ nats per token
            if count and scored.text_nats:
                scale = scored.bits_per(count) / scored.text_nats * rows[:, 3].sum()
            self.add_aggregate(name + suffix, tokens, mean_nats(scale.__mul__, 2))

    def add_text_statistics(
        self, prefix: str, texts: Sequence[str], copies: Sequence[Copies]
    ) -> None:
        """Adds length, variety and repetition: measures that need no reference.

        Adds the copies from the training text, too, unless there are none because it is missing.
        """
        self.add_mean(f"{prefix}length" if prefix else "mean_length", [len(text) for text in texts])
        for n in (1, 2):
            self.measures[f"{prefix}distinct_{n}"] = {"value": metrics.distinct(texts, n)}
        self.add_mean(f"{prefix}repetition", [metrics.repetition(text) for text in texts])
        if copies:
            longest = [found.longest for found in copies]
            self.add_mean(f"{prefix}copy_longest", longest)
            self.add_mean(f"{prefix}copy_rate", [length >= MIN_COPIED for length in longest])

    def paired_differences(self, other: MeasureSet) -> Measures:
        """This set's measures minus the other's, for measures of the same rows."""
        differences = {}
        for name, values in self.by_row.items():
            if name in other.by_row and not name.startswith(SAME_FOR_ALL_MODELS):
                differences[name] = paired_difference(values, other.by_row[name], self.seed)
        for name, (rows, mine, rounds) in self.aggregates.items():
            theirs = other.aggregates.get(name)
            if theirs and np.array_equal(rows, theirs.rows):
                differences[name] = bootstrap_statistic(
                    lambda chosen, a=mine, b=theirs.statistic: a(chosen) - b(chosen),
                    len(rows),
                    self.seed,
                    rounds,
                )
        return {name: to_entry(interval) for name, interval in differences.items()}


def to_entry(interval: Interval) -> dict[str, float]:
    return dict(zip(("value", "low", "high"), map(float, interval), strict=True))
