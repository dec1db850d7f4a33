"""How probably an answer is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from shuoshu.answering.choice import fit_weights, log_softmax, weighted
from shuoshu.answering.recall import Candidates, clipped_log_odds, joint_scores

# Weights fitted to the bundled questions, and how far a fit may go from them: with few validation
# questions the weights stay near these.
LOOKUP_WEIGHTS, LOOKUP_DEVIATIONS = (1.4, 22.0, 10.0, 4.7), (5.0, 20.0, 20.0, 5.0)
JOINT_WEIGHTS, JOINT_DEVIATIONS = (0.9, 0.2), (0.3, 0.2)
RECALL_WEIGHTS, RECALL_DEVIATIONS = (0.6, 1.0, 4.0, 0.8), (0.3, 1.0, 2.0, 1.0)
WRITE_WEIGHTS, WRITE_DEVIATIONS = (1.0, 0.0), (1.0, 2.0)
MAX_WEIGHT = 1e6  # far above what a fit gives


@dataclass(frozen=True)
class AnswerWeights:
    """What is fitted on validation questions."""

    lookups: tuple[float, ...]  # of the similarities, in the order of lookups.NAMES
    joint: tuple[float, ...] = JOINT_WEIGHTS  # of the look-ups' score and of the model's
    recall: tuple[float, ...] = RECALL_WEIGHTS  # of recall_signals
    write: tuple[float, ...] = WRITE_WEIGHTS  # of write_signals

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> AnswerWeights:
        """Raises ValueError, TypeError, AttributeError or OverflowError if they are damaged."""
        weights = cls(**{name: tuple(map(float, numbers)) for name, numbers in values.items()})
        lengths = (len(weights.joint), len(weights.recall), len(weights.write))
        numbers = [*weights.lookups, *weights.joint, *weights.recall, *weights.write]
        if len(weights.lookups) not in (3, 4) or lengths != (2, 4, 2):
            raise ValueError("it has other weights")
        if not all(0 <= number <= MAX_WEIGHT for number in numbers):
            raise ValueError("it has an impossible weight")
        return weights


def choose(candidates: Candidates, weights: AnswerWeights) -> tuple[np.ndarray, np.ndarray]:
    """(place of the best candidate of each question, probability of each candidate to be right)."""
    scores = weighted(joint_scores(candidates, weights.lookups), np.asarray(weights.joint))
    probabilities = accepted(recall_signals(candidates, weights), weights.recall)
    return scores.argmax(axis=1), probabilities


def recall_signals(candidates: Candidates, weights: AnswerWeights) -> np.ndarray:
    """(questions, SHORTLIST, 4): the log-odds against the other candidates, the similarity by the

    book (without one: by pairs), the contrast, and −1 for the bias. −inf where there is no
    candidate.
    """
    totals = weighted(joint_scores(candidates, weights.lookups), np.asarray(weights.joint))
    is_candidate = np.isfinite(totals)
    odds = np.where(is_candidate, clipped_log_odds(log_softmax(totals)), -np.inf)
    book = candidates.similarities[:, :, -1]
    bias = np.where(is_candidate, -1.0, -np.inf)
    contrast = np.where(is_candidate, candidates.contrasts, -np.inf)
    return np.stack((odds, book, contrast, bias), axis=-1)


def write_signals(mean_log_p: np.ndarray) -> np.ndarray:
    """(questions, 2): the log-odds of a token of a written answer, on average, and −1."""
    return np.stack((clipped_log_odds(mean_log_p), np.full(len(mean_log_p), -1.0)), axis=-1)


def accepted(signals: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """The probability from the signals on the last axis; 0 where they are −inf."""
    totals = weighted(signals, np.asarray(weights))
    return np.where(np.isfinite(totals), 1 / (1 + np.exp(-np.clip(totals, -50, 50))), 0.0)


def fit_accepted(
    signals: np.ndarray,
    is_right: np.ndarray,
    prior: Sequence[float],
    deviation: Sequence[float],
) -> tuple[float, ...]:
    """The weights of signals (rows, names) that fit to which answers were right."""
    if not len(signals):
        return tuple(prior)
    pairs = np.stack((np.zeros_like(signals), signals), axis=1)
    return tuple(fit_weights(pairs, is_right.astype(int), prior, deviation).tolist())
