"""The choice among candidates, and how probably the chosen one is right."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from shuoshu.answering.choice import fit_weights, log_softmax, weighted
from shuoshu.answering.confidence import (
    LOOKUP_WEIGHTS,
    RECALL_DEVIATIONS,
    RECALL_WEIGHTS,
    AnswerWeights,
    accepted,
    choose,
    fit_accepted,
    recall_signals,
    write_signals,
)
from shuoshu.answering.recall import Candidates, joint_scores

PRIOR, DEVIATION = (1.0, 0.5), (2.0, 2.0)
WEIGHTS = AnswerWeights(LOOKUP_WEIGHTS)


def drawn_scores(questions: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """(scores of six candidates by two names, the right ones): the first name tells more."""
    draw = np.random.default_rng(5)
    right = draw.integers(0, 6, questions)
    scores = draw.normal(size=(questions, 6, 2))
    scores[np.arange(questions), right] += (1.5, 0.4)
    return scores, right


def posterior(scores: np.ndarray, right: np.ndarray, weights: np.ndarray) -> float:
    """What a fit maximises: the log-likelihood of the right candidates and of the weights."""
    away = (weights - np.array(PRIOR)) / DEVIATION
    chosen = log_softmax(weighted(scores, weights))[np.arange(len(right)), right]
    return float(chosen.sum() - away @ away / 2)


def candidates_of(similarities: np.ndarray, likelihoods: np.ndarray) -> Candidates:
    """similarities (questions, answers): the same by all look-ups."""
    n, m = similarities.shape
    return Candidates(
        np.tile(np.arange(m), (n, 1)),
        np.repeat(similarities[:, :, None], len(LOOKUP_WEIGHTS), axis=2),
        np.zeros((n, m)),
        likelihoods,
    )


# ---------------------------------------------------------------- the weights


def test_no_weights_near_the_fitted_ones_are_more_probable() -> None:
    scores, right = drawn_scores()
    fitted = fit_weights(scores, right, PRIOR, DEVIATION)
    best = posterior(scores, right, fitted)
    assert best > posterior(scores, right, np.array(PRIOR)) and fitted[0] > fitted[1]
    for step in np.eye(2) * 1e-3:
        slope = posterior(scores, right, fitted + step) - posterior(scores, right, fitted - step)
        assert abs(slope) < 1e-6
        assert posterior(scores, right, fitted + 50 * step) < best


def test_without_questions_the_weights_are_the_prior() -> None:
    assert fit_weights(np.zeros((0, 6, 2)), np.zeros(0, int), PRIOR, DEVIATION) == pytest.approx(
        PRIOR
    )
    assert fit_accepted(np.zeros((0, 4)), np.zeros(0, bool), RECALL_WEIGHTS, RECALL_DEVIATIONS) == (
        RECALL_WEIGHTS
    )


def test_few_questions_change_the_weights_little() -> None:
    scores, right = drawn_scores()
    away = [
        np.abs(fit_weights(scores[:n], right[:n], (0, 0), (0.1, 0.1))).max() for n in (1, 10, 60)
    ]
    assert away[0] < 0.05 < away[2] and away[0] < away[1] < away[2]


def test_a_weight_is_never_negative() -> None:
    scores, right = drawn_scores()
    fitted = fit_weights(-scores, right, PRIOR, (10.0, 10.0))  # now the right ones have the lowest
    assert fitted.min() == 0


def test_what_is_no_candidate_changes_nothing() -> None:
    scores, right = drawn_scores()
    more = np.concatenate([scores, np.full((len(scores), 3, 2), -np.inf)], axis=1)
    expected = fit_weights(scores, right, PRIOR, DEVIATION)
    assert fit_weights(more, right, PRIOR, DEVIATION) == pytest.approx(expected, abs=1e-5)
    assert np.isneginf(weighted(more, expected)[:, 6:]).all()


def test_huge_scores_give_finite_weights() -> None:
    scores, right = drawn_scores()
    assert np.isfinite(fit_weights(1e4 * scores, right, PRIOR, DEVIATION)).all()


# ---------------------------------------------------------------- how sure


def test_the_choice_follows_look_ups_and_model_and_is_surer_when_they_agree() -> None:
    similarities = np.array([[0.4, 0.3, 0.1], [0.4, 0.3, 0.1], [0.3, 0.3, 0.1]])
    likelihoods = np.array([[-1.0, -9, -9], [-9, -1, -9], [-9, -1, -9]])
    best, probabilities = choose(candidates_of(similarities, likelihoods), WEIGHTS)
    assert best.tolist() == [0, 0, 1]  # the model alone decides between equal similarities
    p = probabilities[np.arange(3), best]
    assert p[0] > p[1] and p[0] > p[2] and (probabilities >= 0).all() and (probabilities <= 1).all()


def test_a_hidden_answer_is_not_chosen_and_what_remains_is_less_probable() -> None:
    draw = np.random.default_rng(2)
    similarities = draw.uniform(0, 0.4, (5, 4))
    owners = np.array([0, 1, 2, 3, -1])
    similarities[np.arange(4), owners[:4]] = 0.9
    candidates = candidates_of(similarities, np.full((5, 4), -5.0))
    hidden = candidates.hide(owners)
    assert candidates.places_of(owners).tolist() == [0, 1, 2, 3, -1]
    assert hidden.places_of(owners).tolist() == [-1] * 5
    best, p = choose(candidates, WEIGHTS)
    best_hidden, p_hidden = choose(hidden, WEIGHTS)
    rows = np.arange(5)
    assert np.array_equal(best[:4], owners[:4]) and not np.any(best_hidden[:4] == owners[:4])
    assert np.all(p_hidden[rows, best_hidden][:4] < p[rows, best][:4])
    assert p_hidden[4].tolist() == p[4].tolist()
    assert not p_hidden[rows[:4], owners[:4]].any()  # 0 for one that is no candidate


def test_signals_of_certain_and_impossible_candidates_are_finite() -> None:
    candidates = candidates_of(np.array([[1.0, 0, 0]]), np.array([[0.0, -1e5, -1e-300]]))
    signals = recall_signals(candidates, WEIGHTS)
    assert np.isfinite(signals).all() and np.isfinite(joint_scores(candidates, (1e3,) * 4)).all()
    assert np.isfinite(write_signals(np.array([0.0, -1e-300, -1e9]))).all()
    assert accepted(np.array([[1e6, 1.0], [-np.inf, -np.inf]]), (1e6, 1.0)).tolist() == [1.0, 0.0]


def test_a_probability_that_is_fitted_is_calibrated_and_a_shuffled_one_tells_nothing() -> None:
    """The control: shuffled, the same signals must not separate right answers from wrong ones."""
    draw = np.random.default_rng(0)
    signals = np.stack([draw.normal(size=2_000), np.full(2_000, -1.0)], axis=1)
    is_right = draw.random(2_000) < 1 / (1 + np.exp(-2 * signals[:, 0] + 1))
    p = accepted(signals, fit_accepted(signals, is_right, (1.0, 1.0), (5.0, 5.0)))
    for low in np.arange(0, 1, 0.2):
        chosen = (p >= low) & (p < low + 0.2)
        assert is_right[chosen].mean() == pytest.approx(p[chosen].mean(), abs=0.06)
    assert p[is_right].mean() > p[~is_right].mean() + 0.2
    shuffled = draw.permutation(is_right)
    p = accepted(signals, fit_accepted(signals, shuffled, (1.0, 1.0), (5.0, 5.0)))
    assert p[shuffled].mean() == pytest.approx(p[~shuffled].mean(), abs=0.05)


# ---------------------------------------------------------------- kept weights


def test_weights_are_read_as_they_were_written() -> None:
    weights = replace(WEIGHTS, joint=(0.1, 1 / 3), write=(0.0, 1e-30))
    assert AnswerWeights.from_json(json.loads(json.dumps(weights.to_json()))) == weights


@pytest.mark.parametrize(
    "changes",
    [
        {"lookups": [1, 2]},
        {"lookups": [1, 2, 3, 4, 5]},
        {"joint": [1]},
        {"recall": [1, 2, 3, float("nan")]},
        {"write": [float("inf"), 0]},
        {"write": [-1, 0]},
        {"write": [1e300, 0]},
        {"write": [10**400, 0]},
        {"write": None},
        {"write": ["a", 0]},
        {"other": [1]},
    ],
)
def test_damaged_weights_are_refused(changes: dict) -> None:
    with pytest.raises((ValueError, TypeError, OverflowError)):
        AnswerWeights.from_json(WEIGHTS.to_json() | changes)
