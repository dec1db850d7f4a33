"""How long a run is: steps, epochs, or a time budget that is measured once, turned into steps, and kept to."""

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


def rate_factor(step: int, plan: Plan | None, settings: OptimSettings) -> float:
    """The share of the full rates that step `step` (from 0) uses; without a plan the end is far."""
    warm = min(1.0, (step + 1) / (settings.warmup_iters + 1))
    low = settings.min_lr_fraction
    if settings.schedule == "constant" or plan is None:
        return warm
    if settings.schedule == "cosine":
        done = min(1.0, (step + 1) / plan.max_iters)
        return warm * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done)))
    if step < plan.decay_start:
        return warm
    done = min(
        1.0, (step + 1 - plan.decay_start) / max(1, plan.max_iters - plan.decay_start)
    )  # the last step has the lowest rate
    return warm * (plan.decay_from + (min(low, plan.decay_from) - plan.decay_from) * done)


DEFAULT_MINUTES = 10.0  # where no length is set
EVALUATIONS = 10  # in a run whose eval_interval is not set,
EVALUATION_SHARE = 0.15  # or as many as this share of a time budget pays for
UNMEASURED = 3  # first steps that don't count: compilation, cold caches
MEASURED = 10  # steps at least that the rate is taken from
MEASURED_SHARE = 0.03  # of the budget that the measuring lasts at least
LATE, EARLY = 1.03, 0.90  # a plan is made anew when it would take this much of the budget


class RunClock:
    """The clock of a run and the plan that follows from it. Only the first process's clock counts."""

    def __init__(
        self,
        settings: TrainSettings,
        steps_per_epoch: float,
        processes: Processes,
        device: torch.device,
    ) -> None:
        self.settings, self.processes, self.device = settings, processes, device
        self.steps = settings.max_iters
        if settings.max_epochs is not None:
            self.steps = max(
                math.ceil(settings.max_epochs * steps_per_epoch), settings.min_iters or 1
            )
        has_length = self.steps is not None or settings.max_minutes is not None
        self.budget = (
            60 * (settings.max_minutes if has_length else DEFAULT_MINUTES)
            if self.steps is None
            else None
        )
        self.paused = 0.0  # all of them together

    def begin(self, state: RunState) -> None:
        self.pause_seconds = (
            state.pause_seconds
        )  # of one evaluation and what comes with it, on average
        self._origin = time.perf_counter() - state.seconds
        self._first_step, self._began = state.step, self.elapsed()
        self._window = self._told = (state.step, self.working())
        if state.plan is None and self.steps is not None:
            state.plan = self._plan(state.step, self.steps)

    def elapsed(self) -> float:
        return time.perf_counter() - self._origin

    def note(self, state: RunState) -> None:
        """What the state must remember of the clock, before it is saved."""
        state.seconds, state.pause_seconds = self.elapsed(), self.pause_seconds

    def working(self) -> float:
        """The clock of the steps alone."""
        return self.elapsed() - self.paused

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Around evaluating and saving: time that isn't the steps'."""
        synchronize(self.device)
        began = self.elapsed()
        yield
        last = self.elapsed() - began
        self.paused += last
        self.pause_seconds = last if self.pause_seconds == 0 else 0.5 * (self.pause_seconds + last)

    def plan_after(self, state: RunState) -> Plan | None:
        """The plan to follow from here: the same, or in a time budget a first or a mended one."""
        if self.budget is None:
            return state.plan
        done = state.step - self._first_step - UNMEASURED
        if done == 0:
            synchronize(self.device)
            self._window = (state.step, self.working())
        if done <= 0:
            return state.plan
        if state.plan is None:
            return self._first_plan(state, done)
        every = max(5, state.plan.max_iters // 100)
        if state.step % every or state.step >= state.plan.max_iters:
            return state.plan
        return self.processes.broadcast(
            self._mended(state) if self.processes.is_rank_zero else None
        )

    def _first_plan(self, state: RunState, measured: int) -> Plan | None:
        """None until enough steps are measured."""
        if measured % MEASURED:  # the processes talk only now and then
            return None
        plan = None
        if self.processes.is_rank_zero:
            synchronize(self.device)
            if self.working() - self._window[1] >= MEASURED_SHARE * self.budget:
                plan = self._fit(state.step, self._step_seconds(state.step))
        return self.processes.broadcast(plan)

    def _step_seconds(self, step: int) -> float:
        """How long a step took since this was last asked."""
        before, clock = self._window
        self._window = (step, self.working())
        return (self._window[1] - clock) / (step - before)

    def _fit(self, step: int, step_seconds: float) -> Plan:
        """A plan that ends with the budget, if steps go on taking this long."""
        if self.settings.eval_interval:
            step_seconds += self.pause_seconds / self.settings.eval_interval
            pauses = 0
        else:
            pauses = max(
                2,
                min(
                    EVALUATIONS, int(EVALUATION_SHARE * self.budget / max(1e-9, self.pause_seconds))
                ),
            )
        left = self.budget - self.elapsed() - pauses * self.pause_seconds
        last = step + max(1, int(left / step_seconds))
        return self._plan(step, last, math.ceil(last / pauses) if pauses else None)

    def _mended(self, state: RunState) -> Plan:
        """The plan, shortened or lengthened where the machine no longer keeps the pace that it was made for."""
        plan = state.plan
        synchronize(self.device)
        if state.step == self._window[0]:
            return plan
        step_seconds = self._step_seconds(state.step)
        left = (
            self.budget
            - self.elapsed()
            - self.pause_seconds * (1 + (plan.max_iters - state.step) // plan.eval_interval)
        )
        needed = (plan.max_iters - state.step) * step_seconds
        if left - (1 - EARLY) * self.budget <= needed <= left + (LATE - 1) * self.budget:
            return plan
        last = state.step + max(1, int(left / step_seconds))
        if state.step <= plan.decay_start:
            return self._plan(state.step, last, plan.eval_interval)
        done = (state.step - plan.decay_start) / max(1, plan.max_iters - plan.decay_start)
        low = min(self.settings.min_lr_fraction, plan.decay_from)
        factor = (
            plan.decay_from + (low - plan.decay_from) * done
        )  # from where the rate is now down to the new end
        return Plan(last, state.step, factor, plan.eval_interval, plan.save_interval)

    def _plan(self, step: int, last: int, eval_interval: int | None = None) -> Plan:
        every = self.settings.eval_interval or eval_interval or math.ceil(last / EVALUATIONS)
        start = max(step, last - round(self.settings.decay_fraction * last))
        return Plan(last, start, 1.0, every, self.settings.save_interval or every)

    # -------------------------------------------------------- for the reader

    def steps_at(self, step_seconds: float) -> int:
        """The run's length if a step takes this long."""
        return self.steps if self.steps is not None else max(1, int(self.budget / step_seconds))

    def recent_steps_per_second(self, step: int) -> float:
        """Since this was last asked, pauses left out."""
        before, clock = self._told
        self._told = (step, self.working())
        return (step - before) / max(1e-9, self._told[1] - clock)

    def seconds_left(self, state: RunState) -> float | None:
        if self.budget is not None:
            return max(0.0, self.budget - self.elapsed())
        done = state.step - self._first_step
        return (self.steps - state.step) * (self.elapsed() - self._began) / done if done else None
