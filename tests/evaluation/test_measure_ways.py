"""How sure a model is of its answers: hand-made cases, with a shuffled confidence as a control."""

from __future__ import annotations

import numpy as np
import pytest

from shuoshu.evaluation.evaluated_model import SplitResult
from shuoshu.evaluation.measure_set import MeasureSet
from shuoshu.evaluation.measure_ways import add_untaught, probability_error


def result(rows: list[tuple[float, float]]) -> SplitResult:
    """A split with answers of these (probability, ROUGE-L)."""
    found = SplitResult({}, [MeasureSet(0)])
    found.rows = [{"probability": p, "auto_rouge_l": score} for p, score in rows]
    return found


def untaught_measures(test: list, untaught: list) -> dict[str, float]:
    results = {"test": result(test), "untaught": result(untaught)}
    add_untaught(results)
    measures = results["untaught"].measure_sets[0].measures
    return {name: entry["value"] for name, entry in measures.items()}


def test_the_calibration_error_is_the_mean_gap_of_the_bins() -> None:
    probability, is_right = np.array([0.95, 0.95, 0.05, 1.0]), np.array([1, 0, 0, 1])
    # Bin 9: probabilities 2.9 in all, 2 right. Bin 0: 0.05, none right.
    assert probability_error(probability, is_right) == pytest.approx((0.9 + 0.05) / 4)
    share = np.array([0.0, 1.0, 0.0, 0.0])
    assert probability_error(probability, is_right, share) == pytest.approx(0.95)
    assert probability_error(np.zeros(0), np.zeros(0)) == 0


def test_untaught_questions_are_told_from_right_answers_only_by_a_sound_confidence() -> None:
    draw = np.random.default_rng(1)
    test = [(p, 1.0) for p in draw.uniform(0.7, 1, 90)] + [(0.6, 0.0)] * 10
    untaught = [(p, 0.1) for p in draw.uniform(0, 0.5, 100)]
    sound = untaught_measures(test, untaught)
    assert sound["untaught_auroc"] == 1 and sound["untaught_declined"] == 1
    mixed = draw.permutation([p for p, _ in (*test, *untaught)])
    shuffled = untaught_measures(
        [(p, score) for p, (_, score) in zip(mixed[:100], test, strict=True)],
        [(p, score) for p, (_, score) in zip(mixed[100:], untaught, strict=True)],
    )
    assert 0.35 < shuffled["untaught_auroc"] < 0.65 and shuffled["untaught_declined"] < 0.3


def test_test_and_untaught_questions_count_half_each_in_the_mixed_error() -> None:
    test, untaught = [(0.5, 1.0)] * 10, [(0.5, 0.0)] * 30
    assert untaught_measures(test, untaught)["mixed_calibration_error"] == pytest.approx(0)
    surer = untaught_measures([(1.0, 1.0)] * 10, untaught)
    assert surer["mixed_calibration_error"] == pytest.approx(0.25)


def test_without_test_questions_nothing_is_measured() -> None:
    results = {"untaught": result([(0.5, 0.0)])}
    add_untaught(results)
    assert results["untaught"].measure_sets[0].measures == {}
