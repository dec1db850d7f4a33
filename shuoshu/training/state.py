"""RunState: the numbers of a run that a checkpoint stores, with the plan of its length."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from shuoshu.core.files import dataclass_from_json

# Of older plans, in which a time budget was a number of steps.
OLD_PLAN_FIELDS = {"decay_from", "eval_interval", "save_interval"}


@dataclass
class Plan:
    """The length of a run and where its learning rate decays; saved with every checkpoint.

    A run of known length counts in steps, a time budget in shares of itself.
    """

    max_iters: int | None  # None: a time budget whose last step is not known yet
    decay_start: float  # wsd: a number of steps, or a share of the budget
    share: float | None = None  # of the budget, done after the next step; None: no time budget
    paused_share: float | None = None  # the share at the last evaluation or checkpoint


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
    reads: bool = False  # whether the last step trained the texts, not yet their labels
    skipped: int = 0  # steps with a non-finite loss or gradient
    skipped_in_row: int = 0
    step_seconds: float = 0.0  # of a time budget: expected duration of a step; 0: not known yet
    pause_seconds: float = 0.0  # the same for an evaluation and its checkpoint
    scale: float = 65536.0  # GradScaler's loss scale (fp16)
    scale_steps: int = 0  # steps since the scale changed; after 2,000 GradScaler doubles it
    plan: Plan | None = None  # None: not made yet

    def is_finished(self) -> bool:
        """Whether the last step of the plan is done."""
        return self.plan.max_iters is not None and self.step >= self.plan.max_iters

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
    state.plan = _plan_from_json(plan) if plan else None
    if state.step != step or not 0 < state.scale < math.inf:
        raise ValueError("its step or loss scale are out of range")
    return state


def _plan_from_json(values: dict) -> Plan:
    """The plan; without the fields that only older checkpoints have."""
    plan = dataclass_from_json(Plan, {k: v for k, v in values.items() if k not in OLD_PLAN_FIELDS})
    shares = plan.share, plan.paused_share
    if shares == (None, None):
        is_valid = bool(plan.max_iters)
    else:
        is_valid = plan.max_iters != 0 and all(s is not None and 0 <= s <= 1 for s in shares)
    if not is_valid:
        raise ValueError("its plan is out of range")
    return plan


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
