"""RunState: the numbers of a run that a checkpoint stores, with the plan of its length."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from shuoshu.core.files import dataclass_from_json


@dataclass
class Plan:
    """The length of a run and its learning-rate decay; saved with every checkpoint."""

    max_iters: int
    decay_start: int  # wsd: the step at which the decay begins
    decay_from: float  # wsd: the rate factor at decay_start
    eval_interval: int
    save_interval: int


@dataclass
class RunState:
    """The numbers that a resumed run needs."""

    step: int = 0  # steps done
    seconds: float = 0.0  # training time so far, including evaluations and saves
    best_measure: str = "val_loss"  # the measure that selects the model
    best_value: float | None = None  # the best model's value of it
    best_loss: float | None = None  # the best model's validation loss
    best_step: int = 0
    best_scores: list[float] = field(default_factory=list)  # ROUGE-L per answer at best_step
    kept_step: int = 0  # step of the model in out_dir: the best one, or a later one within noise
    worse_evals: int = 0  # evaluations since the best one
    evaluated: int | None = None  # step of the last complete evaluation
    skipped: int = 0  # steps with a non-finite loss or gradient
    skipped_in_row: int = 0
    pause_seconds: float = 0.0  # average duration of one evaluation and save
    scale: float = 65536.0  # GradScaler's loss scale (fp16)
    scale_steps: int = 0  # steps since the scale changed; after 2,000 GradScaler doubles it
    plan: Plan | None = None  # None while a time budget is still measuring the step time

    def has_best(self) -> bool:
        return self.best_value is not None

    def forget_best(self) -> None:
        """Makes the next evaluation the best one, because another measure selects the model now."""
        self.best_value = None


def state_from_json(values: dict, step: int) -> RunState:
    """The state in a checkpoint of `step`; ValueError, KeyError or TypeError if it is damaged."""
    # Defaults for fields that some checkpoints of this format lack.
    values = {"evaluated": step, "kept_step": values["best_step"], **values}
    if "best_measure" not in values:
        values |= _translate_best(values)
    plan = values.pop("plan")
    scores = [float(score) for score in values.pop("best_scores", [])]
    state = dataclass_from_json(RunState, values)
    state.best_scores = scores
    state.plan = dataclass_from_json(Plan, plan) if plan else None
    intervals = (
        [state.plan.max_iters, state.plan.eval_interval, state.plan.save_interval]
        if state.plan
        else []
    )
    if state.step != step or min(intervals, default=1) < 1 or not 0 < state.scale < math.inf:
        raise ValueError("its step, intervals or loss scale are out of range")
    return state


def _translate_best(values: dict) -> dict[str, object]:
    """The fields of the best model for the fields that older checkpoints have, which it removes.

    These are `best_loss` and `best_rouge_l`; before them there was one number `best`, a validation
    loss (positive) or a negated ROUGE-L (at most zero).
    """
    rouge, loss = values.pop("best_rouge_l", None), values.get("best_loss")
    if "best" in values:
        best, loss_at_best = values.pop("best"), values.pop("loss_at_best", math.inf)
        is_rouge = best is not None and best <= 0
        rouge, loss = (-best, loss_at_best) if is_rouge else (None, best)
    measure, value = ("val_loss", loss) if rouge is None else ("val_rouge_l", rouge)
    return {"best_measure": measure, "best_value": value, "best_loss": loss}
