"""What a checkpoint remembers: the state of a run and its plan."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class Plan:
    """How long a run is and when its rates fall: settled once, saved with every checkpoint."""

    max_iters: int
    decay_start: int  # wsd: the step at which the decay begins
    decay_from: float  # wsd: the factor it begins with
    eval_interval: int
    save_interval: int


@dataclass
class RunState:
    """What a checkpoint remembers beside weights and optimiser."""

    step: int = 0
    seconds: float = 0.0  # of training so far, evaluation and saving included
    best: float | None = None  # validation loss, or ROUGE-L of the answers
    best_step: int = 0
    best_scores: list[float] = field(default_factory=list)  # the ROUGE-L of each answer then
    loss_at_best: float = (
        math.inf
    )  # breaks ties: before a model answers anything, all ROUGE-L are the same
    kept_step: int = 0  # of the model in the folder: the best one's, or a later one's that is as good but for chance
    worse_evals: int = 0  # since the best one
    evaluated: int | None = None  # the last step that was, from beginning to end
    skipped: int = 0  # steps that didn't count
    skipped_in_row: int = 0
    pause_seconds: float = 0.0  # that an evaluation takes
    scale: float = 65536.0  # of the loss in fp16
    plan: Plan | None = None  # none: a time budget that is still measuring
