"""Measures with bootstrap intervals, kept by row so that models can be compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from shuoshu.evaluation import metrics
from shuoshu.evaluation.copies import MIN_COPIED, TrainingText
from shuoshu.evaluation.loss import Score

Measures = dict[str, dict[str, float]]


# ---------------------------------------------------------------- figures with intervals


class MeasureSet:
    """The measures of one model on one split; values by row are kept, so that models can be compared row by row."""

    def __init__(self, seed: int) -> None:
        self.seed, self.measures, self.by_row, self.together = seed, {}, {}, {}

    def mean(self, name: str, values: Sequence[float]) -> None:
        self.by_row[name] = np.asarray(values, dtype=np.float64)
        self.put(name, bootstrap(self.by_row[name], self.seed))

    def of_all(
        self,
        name: str,
        rows: np.ndarray,
        statistic: Callable[[np.ndarray], float],
        rounds: int = 2000,
    ) -> None:
        """A figure of rows taken together, statistic(their numbers); what `rows` holds tells whether another model's are the same."""
        self.together[name] = rows, statistic, rounds
        self.put(name, bootstrap_of(statistic, len(rows), self.seed, rounds))

    def put(self, name: str, interval: tuple[float, float, float]) -> None:
        self.measures[name] = dict(zip(("value", "low", "high"), map(float, interval), strict=True))

    def perplexities(self, scored: Score, characters: int, n_bytes: int, suffix: str = "") -> None:
        """Of all tokens, without end tokens, and per character and byte of the text."""
        rows = scored.rows[scored.rows[:, 1] > 0]
        tokens = rows[:, 1]

        def ratio(over: Callable[[float], float], nats: int) -> Callable[[np.ndarray], float]:
            return lambda chosen: float(
                over(rows[chosen, nats].sum() / max(1.0, rows[chosen, nats + 1].sum()))
            )

        self.of_all("perplexity" + suffix, tokens, ratio(np.exp, 0))
        if not suffix:
            self.of_all("perplexity_without_end", tokens, ratio(np.exp, 2))
        for name, count in (("bits_per_char", characters), ("bits_per_byte", n_bytes)):
            scale = (
                scored.bits_per(count) / scored.text_nats * rows[:, 3].sum()
                if count and scored.text_nats
                else 0.0
            )
            self.of_all(
                name + suffix, tokens, ratio(scale.__mul__, 2)
            )  # the same nats, over another count

    def texts(self, prefix: str, texts: Sequence[str], sources: TrainingText | None) -> None:
        """What can be said of texts by themselves."""
        self.mean(f"{prefix}length" if prefix else "mean_length", [len(text) for text in texts])
        for n in (1, 2):
            self.measures[f"{prefix}distinct_{n}"] = {"value": metrics.distinct(texts, n)}
        self.mean(f"{prefix}repetition", [metrics.repetition(text) for text in texts])
        if sources:
            longest = [sources.copies.longest(text) for text in texts]
            self.mean(f"{prefix}copy_longest", longest)
            self.mean(f"{prefix}copy_rate", [length >= MIN_COPIED for length in longest])

    def minus(self, other: MeasureSet) -> Measures:
        """The paired differences of what both have of the same rows."""
        both = [
            name
            for name in self.by_row
            if name in other.by_row and not name.startswith(("lookup_", "reference_"))
        ]
        pairs = {name: paired(self.by_row[name], other.by_row[name], self.seed) for name in both}
        for name, (rows, mine, rounds) in self.together.items():
            same, theirs, _ = other.together.get(name, (None, None, 0))
            if np.array_equal(rows, same):
                pairs[name] = bootstrap_of(
                    lambda chosen, a=mine, b=theirs: a(chosen) - b(chosen),
                    len(rows),
                    self.seed,
                    rounds,
                )
        return {
            name: dict(zip(("value", "low", "high"), interval, strict=True))
            for name, interval in pairs.items()
        }


# ---------------------------------------------------------------- how sure a figure is


def bootstrap_of(
    statistic: Callable[[np.ndarray], float], n: int, seed: int = 0, rounds: int = 2000
) -> tuple[float, float, float]:
    """(value, low, high): statistic(numbers of all rows) and the 95% percentile interval over n rows drawn with replacement.

    Zeros for no rows; for one row the interval is a point, which says nothing.
    """
    if not n:
        return 0.0, 0.0, 0.0
    random = np.random.default_rng(seed)
    low, high = np.quantile(
        [statistic(random.integers(0, n, n)) for _ in range(rounds)], [0.025, 0.975]
    )
    return float(statistic(np.arange(n))), float(low), float(high)


def bootstrap(
    values: Sequence[float], seed: int = 0, rounds: int = 2000
) -> tuple[float, float, float]:
    """(mean, low, high) of one value a row."""
    array = np.asarray(values, dtype=np.float64)
    return bootstrap_of(lambda rows: array[rows].mean(), len(array), seed, rounds)


def paired(
    a: Sequence[float], b: Sequence[float], seed: int = 0, rounds: int = 2000
) -> tuple[float, float, float]:
    """(mean, low, high) of a − b, two measures of the same rows."""
    return bootstrap([x - y for x, y in zip(a, b, strict=True)], seed, rounds)
