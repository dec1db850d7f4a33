"""shuoshu/training/schedule.py: a run's length, and keeping a time budget at any speed."""

from itertools import pairwise

import pytest
import torch

from shuoshu.core.distributed import Processes
from shuoshu.core.settings import TrainSettings
from shuoshu.training import schedule
from shuoshu.training.schedule import RunClock, RunLength, rate_factor
from shuoshu.training.state import RunState


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(schedule, "time", clock)
    return clock


def simulate(clock, settings, step_seconds, pause_seconds=0.5, state=None, until=None):
    """Runs the plan on a machine whose step takes step_seconds(now).

    Returns (state, rates, evaluations).
    """
    state = state or RunState()
    length = RunLength(settings, 100.0)
    run_clock = RunClock(settings, length, state, Processes(), torch.device("cpu"))
    state.plan = run_clock.initial_plan(state)
    rates, evaluations = [], 0
    while True:
        plan = state.plan
        done = plan is not None and state.step >= plan.max_iters
        if done or state.step == 0 or (plan and state.step % plan.eval_interval == 0):
            with run_clock.pause():
                clock.now += pause_seconds
            evaluations += 1
        if done or state.step == until:
            run_clock.update_state(state)
            return state, rates, evaluations
        rates.append(rate_factor(state.step, state.plan, settings))
        is_compiling = state.step - run_clock.first_step < 2
        clock.now += step_seconds(clock.now) * (20 if is_compiling else 1)
        state.step += 1
        state.plan = run_clock.plan_after(state)


@pytest.mark.parametrize("seconds", [0.002, 0.05, 0.7])
def test_a_time_budget_is_kept_and_the_rate_decays_to_its_end(clock, seconds):
    settings = TrainSettings(max_minutes=2)
    state, rates, evaluations = simulate(clock, settings, lambda now: seconds)
    assert 0.85 * 120 <= state.seconds <= 1.05 * 120
    assert rates[-1] == pytest.approx(0.02) and max(rates) == 1.0
    assert 3 <= evaluations <= 14


@pytest.mark.parametrize("slowdown", [1.5, 3, 10])
@pytest.mark.parametrize("when", [30, 80, 110])
def test_a_machine_that_slows_down_ends_decayed_and_at_most_a_tenth_late(clock, slowdown, when):
    settings = TrainSettings(max_minutes=2)
    state, rates, _ = simulate(clock, settings, lambda now: 0.05 * (slowdown if now > when else 1))
    assert state.seconds <= 1.10 * 120
    assert rates[-1] == pytest.approx(0.02)
    assert all(b <= a + 1e-9 for a, b in pairwise(rates[20:]))  # the rates never rise again


@pytest.mark.parametrize("slow", [(20, 50), (50, 80), (70, 95)])
def test_a_machine_that_is_busy_for_a_while_still_uses_its_budget(clock, slow):
    state, rates, _ = simulate(
        clock, TrainSettings(max_minutes=2), lambda now: 0.25 if slow[0] < now < slow[1] else 0.05
    )
    assert 0.85 * 120 <= state.seconds <= 1.1 * 120
    assert rates[-1] == pytest.approx(0.02)
    assert all(b <= a + 1e-9 for a, b in pairwise(rates[20:]))


def test_a_slow_start_does_not_cut_the_run_short(clock):
    state, _, _ = simulate(
        clock, TrainSettings(max_minutes=2), lambda now: 0.2 if now < 15 else 0.05
    )
    assert state.seconds >= 0.85 * 120


@pytest.mark.parametrize("until", [300, 700])
@pytest.mark.parametrize("pause", [0.5, 1.7, 12])
def test_a_resumed_run_keeps_its_plan_and_its_budget(clock, until, pause):
    settings = TrainSettings(max_minutes=2)
    straight, _, _ = simulate(clock, settings, lambda now: 0.05, pause)
    state, _, _ = simulate(clock, settings, lambda now: 0.05, pause, until=until)
    clock.now += 10_000  # the machine was off
    state, rates, _ = simulate(clock, settings, lambda now: 0.05, pause, state=state)
    assert state.plan == straight.plan
    assert 0.85 * 120 <= state.seconds <= 1.1 * 120 and rates[-1] == pytest.approx(0.02)


def test_the_example_in_the_docstring_is_right(clock):
    settings = TrainSettings(max_minutes=10)
    state, _, _ = simulate(clock, settings, lambda now: 0.09, 2.0, until=4000)
    first = state.plan
    assert first.max_iters == pytest.approx(6400, abs=50)
    assert first.decay_start == first.max_iters // 2
    clock.now = state.seconds
    state, rates, _ = simulate(clock, settings, lambda now: 0.18, 2.0, state=state)
    assert state.plan.max_iters == pytest.approx(5200, abs=50)
    assert rates[0] == pytest.approx(0.75, abs=0.01) and rates[-1] == pytest.approx(0.02)
    assert all(b <= a + 1e-9 for a, b in pairwise(rates))


def test_costly_evaluations_become_rarer(clock):
    state, _, evaluations = simulate(clock, TrainSettings(max_minutes=2), lambda now: 0.05, 8)
    assert evaluations <= 5 and state.seconds <= 1.1 * 120


LEAST = [
    (TrainSettings(max_epochs=1.5, min_iters=30), 150),
    (TrainSettings(max_epochs=1.5, min_iters=310), 310),
]


@pytest.mark.parametrize(
    "settings, steps",
    [(TrainSettings(max_iters=70), 70), (TrainSettings(max_epochs=1.5), 150), *LEAST],
)
def test_steps_and_epochs_are_exact(clock, settings, steps):
    state, rates, evaluations = simulate(clock, settings, lambda now: 1.0)
    assert (
        state.step == len(rates) == steps
        and evaluations == 11
        and state.plan.decay_start == steps // 2
    )
