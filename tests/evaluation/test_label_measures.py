"""Measures of label probabilities equal scikit-learn's; corrections help and never see their rows."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from shuoshu.evaluation import label_measures as measures
from shuoshu.evaluation import metrics
from shuoshu.evaluation.intervals import bootstrap_statistic, mcnemar
from shuoshu.evaluation.measure_set import MeasureSet


def drawn(n: int, n_labels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Log probabilities and the true labels, drawn by them: perfectly calibrated."""
    random = np.random.default_rng(seed)
    log_probabilities = measures.log_normalized(2 * random.standard_normal((n, n_labels)))
    true = [random.choice(n_labels, p=np.exp(row)) for row in log_probabilities]
    return log_probabilities, np.array(true)


def loss(log_probabilities: np.ndarray, true: np.ndarray) -> float:
    return measures.log_losses(log_probabilities, true).mean()


# ---------------------------------------------------------------- measures


@pytest.mark.parametrize("n_labels", [2, 5])
def test_the_log_loss_equals_scikit_learns(n_labels):
    log_probabilities, true = drawn(200, n_labels)
    expected = sklearn_metrics.log_loss(true, np.exp(log_probabilities), labels=range(n_labels))
    assert loss(log_probabilities, true) == pytest.approx(expected)
    assert loss(log_probabilities + 7, true) == pytest.approx(expected)  # of any offset


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=40))
def test_the_area_under_the_roc_curve_equals_scikit_learns_with_ties(rows):
    scores, positive = (np.array(column) for column in zip(*rows, strict=True))
    expected = 0.5
    if positive.any() and not positive.all():
        expected = sklearn_metrics.roc_auc_score(positive, scores)
    assert measures.roc_auc(scores, positive) == pytest.approx(expected)


def test_certain_rows_keep_their_order_in_the_area_under_the_roc_curve():
    """exp(-40) and exp(-50) are different, 1 - exp(-40) and 1 - exp(-50) aren't."""
    log_probabilities = np.array([[-20.0, 0.0], [-25.0, 0.0]])
    odds = measures.log_odds(log_probabilities)
    assert measures.roc_auc(odds, np.array([False, True])) == 1.0


def test_the_calibration_error_equals_its_definition():
    log_probabilities, true = drawn(300, 3)
    best, right = log_probabilities.argmax(axis=1), []
    probability = np.exp(log_probabilities.max(axis=1))
    gaps = []
    for low in np.arange(10) / 10:
        rows = (probability >= low) & (probability < low + 0.1)
        if rows.any():
            right = (best == true)[rows].mean()
            gaps.append(rows.sum() * abs(probability[rows].mean() - right))
    found = measures.calibration_error(log_probabilities, true)
    assert found == pytest.approx(sum(gaps) / 300)
    assert found < 0.05 < measures.calibration_error(3 * log_probabilities, true)


def test_the_calibration_error_of_certain_answers_is_the_share_of_wrong_ones():
    certain = np.array([[0.0, -np.inf]] * 4)
    assert measures.calibration_error(certain, np.array([0, 0, 0, 1])) == pytest.approx(0.25)
    assert measures.calibration_error(certain[:0], np.array([], dtype=int)) == 0.0


def test_the_intervals_of_the_labels_are_those_of_resampled_rows():
    log_probabilities, true = drawn(150, 3)
    true[true == 2] = 0  # a label without rows
    chosen, labels = log_probabilities.argmax(axis=1), ["甲", "乙", "丙"]
    intervals = measures.label_intervals(chosen, true, labels)
    expected = sklearn_metrics.precision_recall_fscore_support(
        true, chosen, labels=range(3), zero_division=0
    )
    for name, values in zip(("precision", "recall", "f1"), expected, strict=False):
        assert [intervals[label][name]["value"] for label in labels] == pytest.approx(values)

    def f1(rows: np.ndarray) -> float:
        return metrics.label_f1(metrics.confusion_matrix(chosen[rows], true[rows], 3))[1]

    _, low, high = bootstrap_statistic(f1, 150, seed=1)
    assert intervals["乙"]["f1"]["low"] == pytest.approx(low, abs=0.02)
    assert intervals["乙"]["f1"]["high"] == pytest.approx(high, abs=0.02)
    assert intervals == measures.label_intervals(chosen, true, labels)  # repeatable


def test_labels_without_any_row_have_zeros():
    nothing = np.array([], dtype=int)
    entry = {"value": 0.0, "low": 0.0, "high": 0.0}
    assert measures.label_intervals(nothing, nothing, ["甲"])["甲"]["recall"] == entry


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30))
def test_mcnemars_p_value_counts_the_outcomes_of_fair_coins(rows):
    first, second = [a for a, _ in rows], [b for _, b in rows]
    result = mcnemar(first, second)
    assert result.only_first == sum(a and not b for a, b in rows)
    assert result.only_second == sum(b and not a for a, b in rows)
    n = result.only_first + result.only_second
    larger = max(result.only_first, result.only_second)
    as_far = sum(comb(n, k) for k in range(n + 1) if max(k, n - k) >= larger)
    assert result.p_value == pytest.approx(as_far / 2**n)


def test_mcnemars_test_ignores_the_rows_on_which_both_are_right_or_wrong():
    first, second = [True] * 9 + [False], [False] * 9 + [True]
    p_value = mcnemar(first, second).p_value
    assert p_value == pytest.approx(2 * 11 / 2**10)
    both = [True, False] * 50
    assert mcnemar(first + both, second + both).p_value == p_value
    assert mcnemar(both, both).p_value == 1.0


@pytest.mark.parametrize("n_labels", [2, 3])
def test_a_measure_set_has_the_measures_of_probabilities_with_intervals(n_labels):
    log_probabilities, true = drawn(120, n_labels)
    log_probabilities[0, 1 - true[0]] = -np.inf  # every entry of eval.json stays finite
    found = MeasureSet(seed=0)
    measures.add_probabilities(found, "linear_", log_probabilities, true)
    names = {"linear_log_loss", "linear_calibration_error"}
    assert set(found.measures) == names | ({"linear_roc_auc"} if n_labels == 2 else set())
    for entry in found.measures.values():
        assert entry["low"] <= entry["value"] <= entry["high"] < np.inf
    differences = found.paired_differences(found)
    assert all(entry["value"] == 0 for entry in differences.values())


# ---------------------------------------------------------------- corrections


def test_infinite_log_probabilities_become_finite():
    hostile = np.array([[-np.inf, -np.inf], [-np.inf, 0.0], [0.0, -1e9]])
    finite = measures.log_normalized(hostile)
    assert np.isfinite(finite).all()
    assert np.exp(finite).sum(axis=1) == pytest.approx(1)
    assert finite[0].tolist() == pytest.approx([np.log(0.5)] * 2)
    assert finite[1, 1] > finite[1, 0] and finite[2, 0] > finite[2, 1]


@pytest.mark.parametrize("n_labels", [2, 4])
def test_a_correction_undoes_a_scale_and_biases(n_labels):
    right, true = drawn(3000, n_labels)
    distorted = measures.log_normalized(right * 3 + 2 * np.eye(n_labels)[0])
    correction = measures.fit_bias(distorted, true)
    assert correction.weights[0] == pytest.approx(1 / 3, rel=0.1)
    assert correction.bias[0] - correction.bias[1:].mean() == pytest.approx(-2 / 3, abs=0.15)
    assert loss(correction.apply(distorted), true) < loss(right, true) + 0.002
    assert loss(distorted, true) > loss(right, true) + 0.2


def test_a_correction_has_the_lowest_penalised_loss():
    """No step away from it is better: the slope that the fit was given is right."""
    log_probabilities, true = drawn(40, 3)
    other, _ = drawn(40, 3, seed=1)

    def penalised(correction: measures.Correction) -> float:
        weights = (correction.weights - 1 / 2) / measures.WEIGHT_DEVIATION
        bias = correction.bias / measures.BIAS_DEVIATION
        nats = measures.log_losses(correction.apply(log_probabilities, other), true).sum()
        return nats + (weights @ weights + bias @ bias) / 2

    found = measures.mix(log_probabilities, other, true)
    lowest = penalised(found)
    for step in 0.005 * np.vstack([np.eye(5), -np.eye(5)]):
        moved = measures.Correction(np.maximum(0, found.weights + step[:2]), found.bias + step[2:])
        assert penalised(moved) >= lowest - 1e-9


def test_without_rows_nothing_changes():
    log_probabilities, _ = drawn(5, 3)
    nothing = np.array([], dtype=int)
    correction = measures.fit_bias(log_probabilities[:0], nothing)
    assert correction.apply(log_probabilities) == pytest.approx(log_probabilities)


@pytest.mark.parametrize("n", [1, 3, 20, 700])
def test_a_correction_by_few_rows_or_without_one_label_stays_near(n):
    log_probabilities, true = drawn(n, 3)
    true[true == 2] = 1
    correction = measures.fit_bias(log_probabilities, true)
    assert np.isfinite(correction.bias).all() and correction.weights[0] >= 0
    assert np.abs(correction.bias).max() < (0.3 if n < 4 else 2.5)
    assert correction.bias[2] <= max(correction.bias)
    certain = np.where(np.eye(3)[true] == 1, 0.0, -np.inf)  # no error at all
    assert loss(measures.fit_bias(certain, true).apply(certain), true) < 1e-6
    assert np.isfinite(measures.fit_bias(certain[:, ::-1], true).apply(certain)).all()


def test_a_cross_fitted_row_is_never_seen_by_its_fit():
    log_probabilities, true = drawn(53, 3)
    fitted, applied = [], []

    class Spy:
        def __init__(self, rows: np.ndarray, numbers: np.ndarray) -> None:
            assert np.bincount(numbers, minlength=3) == pytest.approx(
                0.8 * np.bincount(true), abs=1
            )
            fitted.append({tuple(row) for row in rows})

        def apply(self, rows: np.ndarray) -> np.ndarray:
            applied.append({tuple(row) for row in rows})
            return rows + len(applied)

    found = measures.cross_fitted(log_probabilities, true, Spy)
    assert len(fitted) == 5 and all(not f & a for f, a in zip(fitted, applied, strict=True))
    assert all(len(f | a) == 53 for f, a in zip(fitted, applied, strict=True))
    by_fold = np.bincount(np.round(found - log_probabilities)[:, 0].astype(int))
    assert by_fold.tolist() == [0, 11, 11, 11, 10, 10]


def test_cross_fitting_shows_that_a_fit_to_noise_is_worth_nothing():
    random = np.random.default_rng(0)
    noise, true = (
        measures.log_normalized(random.standard_normal((40, 6))),
        random.integers(0, 6, 40),
    )
    flattered = loss(measures.fit_bias(noise, true).apply(noise), true)
    honest = loss(measures.cross_fitted(noise, true), true)
    assert flattered < np.log(6) < honest


@pytest.mark.parametrize("n", [0, 1, 3])
def test_cross_fitting_fewer_rows_than_folds_gives_a_row_for_each(n):
    log_probabilities, true = drawn(n, 2) if n else (np.zeros((0, 2)), np.array([], dtype=int))
    assert measures.cross_fitted(log_probabilities, true).shape == (n, 2)


def test_a_mixture_of_two_models_that_err_apart_beats_both():
    random = np.random.default_rng(0)
    true = random.integers(0, 2, 4000)
    signal = np.where(true == 1, 1.0, -1.0)
    first, second = (  # evidence with an independent error each
        measures.log_normalized(np.outer(signal + random.standard_normal(4000), [-1, 1]))
        for _ in range(2)
    )
    fitted, rest = np.arange(4000) < 1000, np.arange(4000) >= 1000
    mixture = measures.mix(first[fitted], second[fitted], true[fitted])
    together = mixture.apply(first[rest], second[rest])
    assert mixture.weights == pytest.approx([1, 1], rel=0.15)
    assert loss(together, true[rest]) < 0.8 * loss(first[rest], true[rest])


def test_a_mixture_leaves_out_a_model_that_knows_nothing():
    log_probabilities, true = drawn(1000, 3)
    noise, _ = drawn(1000, 3, seed=5)
    mixture = measures.mix(log_probabilities, noise, true)
    assert mixture.weights == pytest.approx([1, 0], abs=0.1)
    with pytest.raises(ValueError):
        mixture.apply(log_probabilities)


def test_a_scale_alone_changes_no_decision_and_lowers_the_loss():
    draw = np.random.default_rng(0)
    true = draw.integers(0, 3, 300)
    scores = measures.log_normalized(4 * (draw.normal(size=(300, 3)) + np.eye(3)[true]))
    correction = measures.fit_scale(scores, true)
    fitted = correction.apply(scores)
    assert not correction.bias.any() and 0 < correction.weights[0] < 0.9
    assert (fitted.argmax(axis=1) == scores.argmax(axis=1)).all()
    assert measures.log_losses(fitted, true).mean() < measures.log_losses(scores, true).mean()
