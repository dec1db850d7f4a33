"""shuoshu/training/state.py: a state is read, an older one translated, a damaged one refused."""

import json
import math
from dataclasses import asdict

import pytest

from shuoshu.training.state import Plan, RunState, state_from_json

PLAN = Plan(max_iters=20, decay_start=10)
BUDGET = Plan(max_iters=None, decay_start=0.5, share=0.3, paused_share=0.2)
OLD_PLAN = {"max_iters": 20, "decay_start": 10}
OLD_PLAN |= {"decay_from": 1.0, "eval_interval": 5, "save_interval": 5}
BEST = {"best_measure": "val_accuracy", "best_value": 0.7, "best_loss": 2.5, "best_step": 5}
STATE = RunState(step=7, **BEST, kept_step=5, evaluated=5, plan=PLAN)


def with_older_best(**older):
    """A state.json with the fields in which an older version kept the best measure."""
    values = {name: value for name, value in asdict(STATE).items() if name not in BEST}
    return values | {"best_step": 5} | older


@pytest.mark.parametrize("plan", [PLAN, BUDGET, None])
@pytest.mark.parametrize("best", [{}, {"best_measure": "val_loss", "best_value": None}])
def test_a_state_is_read_as_it_was_written(best, plan):
    state = RunState(**{**asdict(STATE), **best, "plan": plan})
    assert state_from_json(json.loads(json.dumps(asdict(state))), 7) == state


@pytest.mark.parametrize(
    "older, expected",
    [
        ({"best": 2.5, "loss_at_best": 2.5}, ("val_loss", 2.5, 2.5)),
        ({"best": -0.7, "loss_at_best": 3.5}, ("val_rouge_l", 0.7, 3.5)),
        ({"best": -0.0, "loss_at_best": 3.5}, ("val_rouge_l", 0.0, 3.5)),
        ({"best": None, "loss_at_best": math.inf}, ("val_loss", None, None)),
        ({"best_loss": 2.5, "best_rouge_l": None}, ("val_loss", 2.5, 2.5)),
        ({"best_loss": 3.5, "best_rouge_l": 0.7}, ("val_rouge_l", 0.7, 3.5)),
        ({"best_loss": None, "best_rouge_l": None}, ("val_loss", None, None)),
    ],
)
def test_the_best_measure_of_an_older_state_is_translated(older, expected):
    state = state_from_json(with_older_best(**older), 7)
    assert (state.best_measure, state.best_value, state.best_loss) == expected
    assert state.has_best() == (expected[1] is not None)


def test_an_older_plan_is_read_without_its_further_fields():
    older = asdict(STATE) | {"plan": OLD_PLAN}
    del older["step_seconds"]
    assert state_from_json(older, 7) == STATE


@pytest.mark.parametrize(
    "change",
    [
        {"step": 8},
        {"scale": 0.0},
        {"best_loss": math.nan},
        {"best_value": "0.7"},
        {"unknown": 1},
        {"plan": {**asdict(PLAN), "max_iters": 0}},
        {"plan": {**asdict(PLAN), "max_iters": None}},
        {"plan": {**asdict(BUDGET), "share": 1.5}},
        {"plan": {**asdict(BUDGET), "paused_share": None}},
    ],
)
def test_a_damaged_state_is_refused(change):
    with pytest.raises((ValueError, TypeError)):
        state_from_json(asdict(STATE) | change, 7)
