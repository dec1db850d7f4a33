"""Measures of label probabilities, and the corrections that are fitted to them on validation rows.

`log_probabilities` has the shape (rows, labels), `true` holds a label number for each row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from shuoshu.evaluation import metrics
from shuoshu.evaluation.measure_set import Measures, MeasureSet, to_entry
from shuoshu.models.purpose import normalised

N_BINS = 10  # of the calibration error, of equal width
ROUNDS = 500  # of the bootstrap of a measure that is not a mean
WEIGHT_DEVIATION, BIAS_DEVIATION = 1.0, 0.3  # of the fits' priors
LOWEST = -30.0  # log probability, relative to the row's best label: keeps fits and means finite

# ---------------------------------------------------------------- measures


def log_normalized(scores: np.ndarray) -> np.ndarray:
    """Finite log probabilities from scores of any offset; -inf in a whole row: equal labels."""
    best = scores.max(axis=1, keepdims=True)
    return normalised(np.maximum(LOWEST, scores - np.where(np.isfinite(best), best, 0.0)))


def log_losses(log_probabilities: np.ndarray, true: np.ndarray) -> np.ndarray:
    """The nats of each row's true label: their mean is the log-loss."""
    return -log_normalized(log_probabilities)[np.arange(len(true)), true]


def calibration_error(log_probabilities: np.ndarray, true: np.ndarray) -> float:
    """Expected calibration error: the mean gap between the best label's probability and accuracy.

    The rows are grouped by that probability into N_BINS bins of equal width. 0 for no rows.
    """
    if not len(true):
        return 0.0
    probability = np.exp(log_normalized(log_probabilities).max(axis=1))
    right = log_probabilities.argmax(axis=1) == true
    bins = np.minimum(N_BINS - 1, (probability * N_BINS).astype(int))
    return float(np.abs(np.bincount(bins, probability - right)).sum() / len(true))


def roc_auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """The chance that a positive row scores above a negative one, ties half.

    0.5 if one of the two kinds is missing.
    """
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        return 0.5
    _, number, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[number]  # from 1, equal scores share the mean
    above = ranks[positive].sum() - n_positive * (n_positive + 1) / 2
    return float(above / (n_positive * n_negative))


def log_odds(log_probabilities: np.ndarray) -> np.ndarray:
    """Of two labels, how much likelier the second one is than the first, in nats."""
    finite = log_normalized(log_probabilities)
    return finite[:, 1] - finite[:, 0]


def label_intervals(
    chosen: np.ndarray, true: np.ndarray, labels: Sequence[str], seed: int = 0
) -> dict[str, Measures]:
    """Each label's precision, recall and F1 as value, low and high; what is undefined is 0."""
    confusion = metrics.confusion_matrix(chosen, true, len(labels))
    n = len(true)
    shares = confusion.ravel() / max(1, n)
    # Rows that are drawn with replacement fall into the matrix's cells by a multinomial.
    random = np.random.default_rng(seed)
    drawn = random.multinomial(n, shares, ROUNDS) if n else np.zeros((ROUNDS, confusion.size), int)
    rounds = [
        metrics.label_measures(cells.reshape(confusion.shape), labels)
        for cells in (confusion, *drawn)
    ]
    intervals: dict[str, Measures] = {}
    for label in labels:
        intervals[label] = {}
        for name in ("precision", "recall", "f1"):
            value, *resampled = [measures[label][name] for measures in rounds]
            low, high = np.quantile(resampled, [0.025, 0.975])
            intervals[label][name] = to_entry((value, low, high))
    return intervals


def add_probabilities(
    measures: MeasureSet, prefix: str, log_probabilities: np.ndarray, true: np.ndarray
) -> None:
    """Adds log-loss and calibration error, and for two labels the area under the ROC curve."""
    measures.add_mean(prefix + "log_loss", log_losses(log_probabilities, true))
    measures.add_aggregate(
        prefix + "calibration_error",
        true,
        lambda rows: calibration_error(log_probabilities[rows], true[rows]),
        ROUNDS,
    )
    if log_probabilities.shape[1] == 2:
        odds = log_odds(log_probabilities)
        measures.add_aggregate(
            prefix + "roc_auc", true, lambda rows: roc_auc(odds[rows], true[rows] == 1), ROUNDS
        )


# ---------------------------------------------------------------- corrections


class Correction(NamedTuple):
    """A weight for each model's log probabilities, and a bias for each label."""

    weights: np.ndarray  # of one model: the inverse of a temperature
    bias: np.ndarray

    def apply(self, *models: np.ndarray) -> np.ndarray:
        """Log probabilities from those of the models that it was fitted to, in their order."""
        weighted = zip(self.weights, models, strict=True)
        return log_normalized(sum(w * log_normalized(model) for w, model in weighted) + self.bias)


def fit_bias(log_probabilities: np.ndarray, true: np.ndarray) -> Correction:
    """The correction with the lowest log-loss on these rows. Without rows nothing changes."""
    return _fit([log_probabilities], true)


def fit_scale(log_probabilities: np.ndarray, true: np.ndarray) -> Correction:
    """The same without biases: the likeliest label of a row stays the likeliest."""
    return _fit([log_probabilities], true, has_bias=False)


def mix(first: np.ndarray, second: np.ndarray, true: np.ndarray) -> Correction:
    """The mixture of two models with the lowest log-loss on these rows. Without rows their mean."""
    return _fit([first, second], true)


def cross_fitted(
    log_probabilities: np.ndarray,
    true: np.ndarray,
    fit: Callable[[np.ndarray, np.ndarray], Correction] = fit_bias,
    folds: int = 5,
    seed: int = 0,
) -> np.ndarray:
    """Log probabilities, each row corrected by a fit on the other folds' rows.

    A label's rows are spread over the folds. A measure of the result is not flattered by the fit.
    """
    shuffled = np.random.default_rng(seed).permutation(len(true))
    fold = np.empty(len(true), dtype=int)
    fold[shuffled[np.argsort(true[shuffled], kind="stable")]] = np.arange(len(true)) % folds
    corrected = np.empty(log_probabilities.shape)
    for number in range(folds):
        mine = fold == number
        correction = fit(log_probabilities[~mine], true[~mine])
        corrected[mine] = correction.apply(log_probabilities[mine])
    return corrected


def _fit(models: list[np.ndarray], true: np.ndarray, has_bias: bool = True) -> Correction:
    """Weights of 0 or more and biases: the lowest log-loss, which is convex in them.

    The penalty equals normal priors, of the weights around 1 / models and of the biases around 0:
    few rows or a label without rows change little.
    """
    from scipy.optimize import minimize

    models = [log_normalized(model) for model in models]
    n, n_labels = len(models), models[0].shape[1]
    prior = np.array([1 / n] * n + [0.0] * n_labels)
    deviation = np.array([WEIGHT_DEVIATION] * n + [BIAS_DEVIATION] * n_labels)
    actual = np.eye(n_labels)[true]

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        """The loss and its slope in each weight and bias."""
        scores = np.tensordot(x[:n], models, 1) + x[n:]
        fitted = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
        error = np.exp(fitted) - actual
        away = (x - prior) / deviation
        slope = np.concatenate([np.tensordot(models, error, 2), error.sum(axis=0)])
        return (away @ away) / 2 - (fitted * actual).sum(), slope + away / deviation

    limit = None if has_bias else 0
    bounds = [(0, None)] * n + [(limit, limit)] * n_labels
    found = minimize(objective, prior, jac=True, method="L-BFGS-B", bounds=bounds).x
    return Correction(found[:n], found[n:])
