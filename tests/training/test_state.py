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
STATE = RunState(step=7, best_loss=2.5, best_step=5, kept_step=5, evaluated=5, plan=PLAN)


def with_best(best, loss_at_best):
    """A state.json whose best measure is one number: a loss, or a negated ROUGE-L."""
    values = asdict(STATE) | {"best": best, "loss_at_best": loss_at_best}
    del values["best_loss"], values["best_rouge_l"]
    return values


@pytest.mark.parametrize("rouge, plan", [(None, PLAN), (0.7, PLAN), (None, BUDGET), (None, None)])
def test_a_state_is_read_as_it_was_written(rouge, plan):
    state = RunState(**{**asdict(STATE), "best_rouge_l": rouge, "plan": plan})
    assert state_from_json(json.loads(json.dumps(asdict(state))), 7) == state


@pytest.mark.parametrize(
    "best, loss_at_best, expected",
    [
        (2.5, 2.5, (2.5, None)),
        (-0.7, 3.5, (3.5, 0.7)),
        (-0.0, 3.5, (3.5, 0.0)),
        (None, math.inf, (None, None)),
    ],
)
def test_a_single_best_number_is_translated(best, loss_at_best, expected):
    state = state_from_json(with_best(best, loss_at_best), 7)
    assert (state.best_loss, state.best_rouge_l) == expected
    assert state.has_best() == (best is not None)


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
        {"best_rouge_l": "0.7"},
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
