"""Chooses among candidates: fits weights of scores that make the right candidates probable."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def fit_weights(
    scores: np.ndarray,
    right: np.ndarray,
    prior: Sequence[float],
    deviation: Sequence[float],
) -> np.ndarray:
    """The weights, 0 or more, with the lowest log-loss of the right candidate.

    scores: (questions, candidates, names), −inf for all names of one that is no candidate. right:
    (questions,). Normal priors of the weights: few questions change little.
    """
    from scipy.optimize import minimize

    prior, deviation = np.array(prior, float), np.array(deviation, float)
    rows = np.arange(len(right))
    finite = np.where(np.isfinite(scores), scores, 0.0)
    chosen = finite[rows, right].sum(axis=0)
    is_candidate = np.isfinite(scores).all(axis=-1)

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        """The loss and its slope in each weight."""
        log_p = log_softmax(np.where(is_candidate, finite @ weights, -np.inf))
        slope = np.tensordot(np.exp(log_p), finite, axes=2) - chosen
        away = (weights - prior) / deviation
        return (away @ away) / 2 - log_p[rows, right].sum(), slope + away / deviation

    bounds = [(0, None)] * len(prior)
    return minimize(objective, prior, jac=True, method="L-BFGS-B", bounds=bounds).x


def weighted(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(questions, candidates): sums of the weighted scores; −inf for one that is no candidate."""
    is_candidate = np.isfinite(scores).all(axis=-1)
    return np.where(is_candidate, np.where(np.isfinite(scores), scores, 0.0) @ weights, -np.inf)


def log_softmax(totals: np.ndarray) -> np.ndarray:
    """Log-probabilities of the candidates of each row."""
    return totals - np.logaddexp.reduce(totals, axis=1, keepdims=True)
