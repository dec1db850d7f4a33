"""The learning-rate schedule, and the length of a run: steps, epochs or a time budget.

The learning rate decays over the last part of a run, so the number of steps must be known before
the run ends. A time budget becomes a number of steps once the step time is measured. Example:
--max_minutes=10, a step of 0.09 s, an evaluation of 2 s.

1. Until 3% of the budget (18 s) are measured there is no plan. The rate warms up and stays full.
2. The first plan: ten evaluations cost 20 s, so (600 - 24 - 20) / 0.09 = 6,200 steps are left, and
   the run has about 6,400. With decay_fraction=0.5 the decay begins at step 3,200.
3. Every 1% of the steps the plan is checked. It stays while the run would end between 90% and
   103% of its budget.
4. From step 4,000 on another program slows each step down to 0.18 s. The plan would now end after
   800 s, so it is shortened to about 5,200 steps. At step 4,000 the decay has brought the rate to
   0.75 of the full one. It continues from there to the new end and never rises again.

Plans are part of RunState, so a resumed run keeps its plan.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from shuoshu.core.device import synchronize
from shuoshu.core.distributed import Processes
from shuoshu.core.settings import OptimSettings, TrainSettings
from shuoshu.training.state import Plan, RunState

DEFAULT_MINUTES = 10.0  # of a run without a length
DEFAULT_EVALUATIONS = 10  # of a run without eval_interval
MIN_EVALUATIONS = 2
MAX_EVALUATION_SHARE = 0.15  # of a time budget; costly evaluations become rarer
WARM_UP_STEPS = 3  # not measured: compilation and cold caches make them slow
STEPS_PER_MEASUREMENT = 10  # processes exchange the step time only this often
MIN_MEASURED_SHARE = 0.03  # of a time budget, before its first plan is made
# A plan stays while the run would end between these shares of its budget. A new plan for every
# small change would move the decay again and again.
EARLIEST_END, LATEST_END = 0.90, 1.03
CHECKS = 100  # of the plan in a run
MIN_CHECK_INTERVAL = 5  # steps between two checks, at least
EPSILON_SECONDS = 1e-9  # avoids a division by zero


def rate_factor(step: int, plan: Plan | None, settings: OptimSettings) -> float:
    """The learning rate of step `step` (from 0) as a fraction of the peak.

    Without a plan the length is not known yet, so there is no decay. Example: wsd with
    warmup_iters=4, max_iters=100, decay_start=50, min_lr_fraction=0.02:

        step    0    1    2    3    4 … 49   50    74    99
        factor  0.2  0.4  0.6  0.8  1.0      0.98  0.51  0.02
    """
    warmup = min(1.0, (step + 1) / (settings.warmup_iters + 1))
    low = settings.min_lr_fraction
    if settings.schedule == "constant" or plan is None:
        return warmup
    if settings.schedule == "cosine":
        progress = min(1.0, (step + 1) / plan.max_iters)
        return warmup * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))
    # wsd: warm-up, stable, linear decay. The last step has the lowest rate.
    if step < plan.decay_start:
        return warmup
    decay_steps = max(1, plan.max_iters - plan.decay_start)
    progress = min(1.0, (step + 1 - plan.decay_start) / decay_steps)
    return warmup * (plan.decay_from + (min(low, plan.decay_from) - plan.decay_from) * progress)


class RunLength:
    """The length that the settings ask for: `steps`, or `budget` in seconds; the other is None."""

    def __init__(self, settings: TrainSettings, steps_per_epoch: float) -> None:
        self.steps = settings.max_iters
        if settings.max_epochs is not None:
            epoch_steps = math.ceil(settings.max_epochs * steps_per_epoch)
            self.steps = max(epoch_steps, settings.min_iters or 1)
        minutes = DEFAULT_MINUTES if settings.max_minutes is None else settings.max_minutes
        self.budget = 60 * minutes if self.steps is None else None

    def steps_at(self, step_seconds: float) -> int:
        """The number of steps if each takes this long."""
        return self.steps if self.steps is not None else max(1, int(self.budget / step_seconds))


class RunClock:
    """Measures a run's time and plans its remaining steps. It starts when it is constructed.

    Rank 0 measures and plans; it broadcasts its plans to the other ranks.
    """

    def __init__(
        self,
        settings: TrainSettings,
        length: RunLength,
        state: RunState,
        processes: Processes,
        device: torch.device,
    ) -> None:
        self.settings = settings
        self.length = length
        self.processes = processes
        self.device = device
        self.total_pause_seconds = 0.0  # of evaluations and saves since this start
        self.pause_seconds = state.pause_seconds  # of one pause, a running average
        self._origin = time.perf_counter() - state.seconds
        self.first_step = state.step
        self._first_elapsed = self.elapsed()
        # (step, step_time()) at the last measurement: one for planning, one for the progress line
        self._measured = self._shown = (state.step, self.step_time())

    def elapsed(self) -> float:
        """Seconds of training so far, over all resumptions."""
        return time.perf_counter() - self._origin

    def step_time(self) -> float:
        """Seconds without evaluations and saves."""
        return self.elapsed() - self.total_pause_seconds

    def update_state(self, state: RunState) -> None:
        """Copies the times into the state, before a checkpoint is saved."""
        state.seconds, state.pause_seconds = self.elapsed(), self.pause_seconds

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Excludes evaluating and saving from the step time."""
        synchronize(self.device)
        start = self.elapsed()
        yield
        seconds = self.elapsed() - start
        self.total_pause_seconds += seconds
        is_first = self.pause_seconds == 0
        self.pause_seconds = seconds if is_first else 0.5 * (self.pause_seconds + seconds)

    # ---------------------------------------------------------------- planning

    def initial_plan(self, state: RunState) -> Plan | None:
        """The plan of the state or a new one; None for a time budget that has no plan yet."""
        if state.plan is None and self.length.steps is not None:
            return self._make_plan(state.step, self.length.steps)
        return state.plan

    def plan_after(self, state: RunState) -> Plan | None:
        """The plan for the next step. Only the plan of a time budget ever changes."""
        if self.length.budget is None:
            return state.plan
        measured_steps = state.step - self.first_step - WARM_UP_STEPS
        if measured_steps == 0:
            synchronize(self.device)
            self._measured = (state.step, self.step_time())
        if measured_steps <= 0:
            return state.plan
        if state.plan is None:
            return self._first_plan(state, measured_steps)
        interval = max(MIN_CHECK_INTERVAL, state.plan.max_iters // CHECKS)
        if state.step % interval or state.step >= state.plan.max_iters:
            return state.plan
        plan = self._corrected_plan(state) if self.processes.is_rank_zero else None
        return self.processes.broadcast(plan)

    def _first_plan(self, state: RunState, measured_steps: int) -> Plan | None:
        """A plan from the measured step time; None until enough time was measured."""
        if measured_steps % STEPS_PER_MEASUREMENT:
            return None
        plan = None
        if self.processes.is_rank_zero:
            synchronize(self.device)
            measured_seconds = self.step_time() - self._measured[1]
            if measured_seconds >= MIN_MEASURED_SHARE * self.length.budget:
                plan = self._plan_for_budget(state.step, self._measure_step_seconds(state.step))
        return self.processes.broadcast(plan)

    def _measure_step_seconds(self, step: int) -> float:
        """Seconds per step since the last measurement."""
        last_step, last_time = self._measured
        self._measured = (step, self.step_time())
        return (self._measured[1] - last_time) / (step - last_step)

    def _plan_for_budget(self, step: int, step_seconds: float) -> Plan:
        """A plan that uses up the budget if each step takes this long.

        Without eval_interval the evaluations get at most MAX_EVALUATION_SHARE of the budget.
        """
        if self.settings.eval_interval:
            step_seconds += self.pause_seconds / self.settings.eval_interval
            pauses = 0
        else:
            affordable = int(
                MAX_EVALUATION_SHARE * self.length.budget / max(EPSILON_SECONDS, self.pause_seconds)
            )
            pauses = max(MIN_EVALUATIONS, min(DEFAULT_EVALUATIONS, affordable))
        left = self.length.budget - self.elapsed() - pauses * self.pause_seconds
        last = step + max(1, int(left / step_seconds))
        return self._make_plan(step, last, math.ceil(last / pauses) if pauses else None)

    def _corrected_plan(self, state: RunState) -> Plan:
        """The same plan, or one with another length if the run would end too early or too late."""
        plan = state.plan
        synchronize(self.device)
        if state.step == self._measured[0]:
            return plan
        step_seconds = self._measure_step_seconds(state.step)
        steps_left = plan.max_iters - state.step
        pauses_left = 1 + steps_left // plan.eval_interval
        budget = self.length.budget
        left = budget - self.elapsed() - self.pause_seconds * pauses_left
        needed = steps_left * step_seconds
        if left - (1 - EARLIEST_END) * budget <= needed <= left + (LATEST_END - 1) * budget:
            return plan
        last = state.step + max(1, int(left / step_seconds))
        if state.step <= plan.decay_start:
            return self._make_plan(state.step, last, plan.eval_interval)
        # The decay has begun. It continues from its present factor to the new end, so that the
        # rate never rises again.
        progress = (state.step - plan.decay_start) / max(1, plan.max_iters - plan.decay_start)
        low = min(self.settings.min_lr_fraction, plan.decay_from)
        factor = plan.decay_from + (low - plan.decay_from) * progress
        return Plan(last, state.step, factor, plan.eval_interval, plan.save_interval)

    def _make_plan(self, step: int, last: int, eval_interval: int | None = None) -> Plan:
        """A plan that ends with step `last`; its decay begins after `step` at the earliest."""
        default_interval = eval_interval or math.ceil(last / DEFAULT_EVALUATIONS)
        interval = self.settings.eval_interval or default_interval
        decay_start = max(step, last - round(self.settings.decay_fraction * last))
        return Plan(last, decay_start, 1.0, interval, self.settings.save_interval or interval)

    # ---------------------------------------------------------------- for the progress line

    def recent_steps_per_second(self, step: int) -> float:
        """Steps per second since the last call, without pauses."""
        last_step, last_time = self._shown
        self._shown = (step, self.step_time())
        return (step - last_step) / max(EPSILON_SECONDS, self._shown[1] - last_time)

    def seconds_left(self, state: RunState) -> float | None:
        """Estimated seconds to the end of the run; None before the first step."""
        if self.length.budget is not None:
            return max(0.0, self.length.budget - self.elapsed())
        done = state.step - self.first_step
        if not done:
            return None
        seconds = self.elapsed() - self._first_elapsed
        return (self.length.steps - state.step) * seconds / done
