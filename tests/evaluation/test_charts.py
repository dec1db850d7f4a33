"""The report's curves: points, thinning and ticks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shuoshu.evaluation.charts import (
    MAX_POINTS,
    points,
    run_charts,
    sureness_charts,
    sureness_points,
    ticks,
)


def test_values_that_are_no_finite_numbers_are_left_out_of_a_curve() -> None:
    odd = [None, float("nan"), float("inf"), "3", True, 1e300]
    records = [{"kind": "step", "step": i, "loss": loss} for i, loss in enumerate([*odd, 2.0])] + [
        {"kind": "step", "step": None, "loss": 1.0},
        {"kind": "step"},
    ]
    assert points(records, "step", "loss") == [(6, 2.0)]


def test_a_long_curve_is_thinned_but_keeps_ends_and_spikes() -> None:
    records = [{"kind": "step", "step": i, "loss": 1 + i % 7} for i in range(20_000)]
    records[12_345]["loss"] = 99.0
    line = points(records, "step", "loss")
    assert (
        len(line) <= MAX_POINTS
        and line[0][0] == 0
        and line[-1][0] == 19_999
        and (12_345, 99.0) in line
    )


@given(values=st.lists(st.floats(-1e15, 1e15), min_size=1, max_size=5))
def test_ticks_are_few_and_enclose_every_value(values: list[float]) -> None:
    marks, slack = ticks(values), 1e-9 * (abs(max(values)) + abs(min(values)) + 1)
    assert (
        2 <= len(marks) <= 8
        and marks[0] <= min(values) + slack
        and marks[-1] >= max(values) - slack
    )


def test_an_untrained_model_is_never_the_best_at_labels():
    records = [
        {"kind": "eval", "step": step, "val_loss": loss, "val_accuracy": accuracy}
        for step, loss, accuracy in ((0, 0.1, 0.9), (10, 0.6, 0.7), (20, 0.5, 0.8))
    ]
    losses, scores = run_charts([*records, {"kind": "step", "step": 5, "reading_loss": 6.0}])
    assert losses.curves[-1].best == (20, 0.5) and scores.curves[-1].best == (20, 0.8)


def test_the_surest_answers_come_first_and_equally_sure_ones_together() -> None:
    rows = [
        {"split": "test", "probability": p, "auto_rouge_l": score}
        for p, score in ((0.2, 0.0), (0.9, 1.0), (0.5, 0.5), (0.5, 0.1))
    ]
    other = [{"split": "val", "probability": 1.0, "auto_rouge_l": 0.0}, {"split": "test"}]
    assert sureness_points([*rows, *other], "test") == [(0.25, 1.0), (0.75, 2 / 3), (1.0, 0.5)]
    [drawn] = sureness_charts(rows)
    assert [curve.label[1] for curve in drawn.curves] == ["test"]
    assert sureness_charts(other[1:]) == []
