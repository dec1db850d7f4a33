"""The learning-rate schedule, and the length of a run: steps, epochs or a time budget.

The learning rate is a function of the share of the run that is done. With a known number of steps
the share is counted in steps. With a time budget it is read from the clock, so it needs no forecast
of the number of steps. Example: --max_minutes=10, evaluations of 6 s, decay_fraction=0.5.

1. The last evaluation needs 6 s, so training ends after 594 s: that is share 1.
2. The rate warms up over the first steps and stays full until share 0.5, after 297 s. From there it
   falls in a straight line.
3. After 450 s (share 0.76) half of the rate is left. Another program begins, and a step takes 0.3 s
   instead of 0.1 s. The rate falls three times as fast per step, and reaches its end after 594 s.
4. A step that would end within half a step of share 1 is the last one. It has the lowest rate.
5. Evaluations come at shares 0.1, 0.2 … If they took 45 s each, they would come at 0.33 and 0.67,
   because those before the last one get at most 15% of the budget.

Rank 0 reads the clock and broadcasts the numbers. The ranks compute the rest from them.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from shuoshu.core.device import synchronize
from shuoshu.core.settings import OptimSettings, TrainSettings
from shuoshu.training.state import Plan, RunState
from shuoshu.training.trainer import Trainer

DEFAULT_MINUTES = 10.0  # of a run without a length
DEFAULT_EVALUATIONS = 10  # of a run without eval_interval
MAX_EVALUATION_SHARE = 0.15  # of a time budget, for the evaluations before the last one
MAX_COMPILED_SHARE = 0.09  # of a time budget, that the first evaluation of a compiled model counts
# Steps between two moments at which the host waits for a GPU, to read the clock and the flags of
# skipped steps. If they take more than this share of a time budget, it waits after every step.
CHECK_EVERY = 10
MAX_UNREAD_SHARE = 0.005
# The shortest of the last measurements counts, because a compilation or a full disk makes single
# steps and evaluations long.
REMEMBERED_STEPS = 3
REMEMBERED_PAUSES = 2
EPSILON_SECONDS = 1e-9  # avoids a division by zero


def rate_factor(step: int, plan: Plan, settings: OptimSettings) -> float:
    """The learning rate of step `step` (from 0) as a fraction of the peak.

    Example: wsd with warmup_iters=4, max_iters=100, decay_start=50, min_lr_fraction=0.02:

        step    0    1    2    3    4 … 49   50    74    99
        factor  0.2  0.4  0.6  0.8  1.0      0.98  0.51  0.02
    """
    warmup = min(1.0, (step + 1) / (settings.warmup_iters + 1))
    low = settings.min_lr_fraction
    end = plan.max_iters if plan.share is None else 1.0
    done = min(end, step + 1 if plan.share is None else plan.share)
    if settings.schedule == "cosine":
        return warmup * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * (done / end))))
    if settings.schedule == "constant" or done <= plan.decay_start:
        return warmup
    # wsd: warm-up, stable, linear decay. The last step has the lowest rate.
    progress = (done - plan.decay_start) / (end - plan.decay_start)
    return warmup * (1.0 + (low - 1.0) * progress)


def is_reading(state: RunState, read_fraction: float) -> bool:
    """Whether the next step trains the texts, not yet their labels. Its run never returns to it."""
    step, plan = state.step, state.plan
    if step and not state.reads:
        return False
    is_last = plan.max_iters is not None and step + 1 >= plan.max_iters
    done = step / plan.max_iters if plan.share is None else plan.share
    return done < read_fraction and not is_last


class RunLength:
    """The length that the settings ask for: `steps`, or `budget` in seconds; the other is None."""

    def __init__(self, settings: TrainSettings, steps_per_epoch: float) -> None:
        self.steps = settings.max_iters
        self._decay_fraction = settings.decay_fraction
        if settings.max_epochs is not None:
            epoch_steps = math.ceil(settings.max_epochs * steps_per_epoch)
            self.steps = max(epoch_steps, settings.min_iters or 1)
        minutes = DEFAULT_MINUTES if settings.max_minutes is None else settings.max_minutes
        self.budget = 60 * minutes if self.steps is None else None

    def new_plan(self, step: int) -> Plan:
        """The plan of a run that has done `step` steps; no decay begins before these."""
        if self.steps is None:
            return Plan(None, 1.0 - self._decay_fraction, share=0.0)
        return Plan(self.steps, max(step, self.steps - round(self._decay_fraction * self.steps)))

    def evaluation_parts(self, pause_seconds: float) -> int:
        """The number of equal parts of the run that end with an evaluation, without eval_interval.

        `pause_seconds` is the expected duration of one. They are fewer if a budget is too short.
        """
        if self.budget is None:
            return DEFAULT_EVALUATIONS
        affordable = MAX_EVALUATION_SHARE * self.budget / max(EPSILON_SECONDS, pause_seconds)
        return min(DEFAULT_EVALUATIONS, 1 + int(affordable))


class RunClock:
    """Measures a run's time and keeps its plan up to date. It starts when it is constructed."""

    def __init__(self, length: RunLength, state: RunState, trainer: Trainer) -> None:
        self.length = length
        self.settings = trainer.settings
        self.processes = trainer.processes
        self.device = trainer.device
        self.total_pause_seconds = 0.0  # of evaluations and saves since this start
        known_steps = [state.step_seconds] if state.step_seconds else []
        self._step_seconds = deque(known_steps, REMEMBERED_STEPS)
        known_pauses = [state.pause_seconds] if state.pause_seconds else []
        self._pause_seconds = deque(known_pauses, REMEMBERED_PAUSES)
        self._is_compiled = trainer.is_compiled
        self._origin = time.perf_counter() - state.seconds
        self.first_step = state.step
        self._first_elapsed = self.elapsed()
        # (step, step_time()) at the last measurement: one for the plan, one for the progress line
        self._measured = self._shown = (state.step, self.step_time())
        if state.plan is None or (state.plan.share is None) != (length.budget is None):
            state.plan = length.new_plan(state.step)
            self.read(state)
            state.plan.paused_share = state.plan.share

    def elapsed(self) -> float:
        """Seconds of training so far, over all resumptions."""
        return time.perf_counter() - self._origin

    def step_time(self) -> float:
        """Seconds without evaluations and saves."""
        return self.elapsed() - self.total_pause_seconds

    @contextmanager
    def pause(self, state: RunState, evaluates: bool) -> Iterator[None]:
        """Excludes evaluating and saving from the step time."""
        synchronize(self.device)
        self.read(state)
        start = self.elapsed()
        yield
        seconds = self.elapsed() - start
        self.total_pause_seconds += seconds
        if not evaluates:
            return
        if self._is_compiled and not self._pause_seconds and self.length.budget is not None:
            # Most of this time may be the compilation of the model.
            seconds = min(seconds, MAX_COMPILED_SHARE * self.length.budget)
        self._pause_seconds.append(seconds)

    # ---------------------------------------------------------------- planning

    def is_due(self, state: RunState) -> bool:
        """Whether the host waits for the device after this step; then read() may be called."""
        budget = self.length.budget
        is_slow = budget is not None and not (
            0 < CHECK_EVERY * state.step_seconds < MAX_UNREAD_SHARE * budget
        )
        is_check = state.step % CHECK_EVERY == 0 or state.step % self.settings.log_interval == 0
        return is_slow or is_check or self.device.type == "cpu"

    def read(self, state: RunState) -> None:
        """Updates the times in the state and, with a time budget, the plan.

        With a time budget, all ranks must call this together when their device is idle.
        """
        if self.length.budget is None:
            state.seconds = self.elapsed()
            return
        if state.step > self._measured[0]:
            (last_step, last_time), now = self._measured, self.step_time()
            if last_step > self.first_step:  # the first step may compile the model
                self._step_seconds.append((now - last_time) / (state.step - last_step))
            self._measured = (state.step, now)
        step_seconds = min(self._step_seconds, default=0.0)
        times = self.elapsed(), step_seconds, min(self._pause_seconds, default=0.0)
        state.seconds, state.step_seconds, state.pause_seconds = self.processes.broadcast(times)
        plan = state.plan
        if plan.max_iters is not None:
            return
        seconds_of_steps = self.length.budget - state.pause_seconds
        if state.seconds + 1.5 * state.step_seconds >= seconds_of_steps:
            plan.share, plan.max_iters = 1.0, state.step + 1
        else:
            share = (state.seconds + state.step_seconds) / seconds_of_steps
            plan.share = max(plan.share, share)

    def is_evaluation_due(self, state: RunState) -> bool:
        """Whether an evaluation besides the first and the last one is due at the state's step."""
        is_budget = self.length.budget is not None
        if is_budget and (state.plan.max_iters is not None or not self.fits_evaluation(state)):
            return False
        parts = self.length.evaluation_parts(state.pause_seconds)
        return _is_due(state, self.settings.eval_interval, parts)

    def is_save_due(self, state: RunState) -> bool:
        """Whether a checkpoint is due at the state's step, besides the last one."""
        interval = self.settings.save_interval or self.settings.eval_interval
        return _is_due(state, interval, DEFAULT_EVALUATIONS)

    def fits_evaluation(self, state: RunState) -> bool:
        """Whether the budget has time for another evaluation besides the last one."""
        budget = self.length.budget
        return budget is None or state.seconds + 2 * state.pause_seconds <= budget

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


def _is_due(state: RunState, interval: int | None, parts: int) -> bool:
    """Whether `interval` steps have ended, or without it, one of equal parts of the run."""
    plan = state.plan
    if plan.share is None:
        interval = interval or math.ceil(plan.max_iters / parts)
    if interval:
        return state.step % interval == 0
    return plan.max_iters is None and int(parts * plan.share) > int(parts * plan.paused_share)
