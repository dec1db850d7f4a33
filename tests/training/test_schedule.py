"""shuoshu/training/schedule.py: a run's length, and keeping a time budget at any speed."""

import json
from contextlib import nullcontext
from dataclasses import asdict
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from shuoshu.core.distributed import Processes
from shuoshu.core.settings import TrainSettings
from shuoshu.training import loop, schedule
from shuoshu.training.schedule import RunClock, RunLength, rate_factor
from shuoshu.training.state import RunState, state_from_json

WARM_UP = TrainSettings.warmup_iters + 1


class FakeClock:
    now = 0.0

    def perf_counter(self):
        return self.now


class Machine:
    """A run on a fake clock: the real schedule and the real pauses, without a model.

    A step takes `step(now)` seconds, the first one of a process `compilation` more. The n-th
    evaluation of a process takes `pauses[n]` seconds, or else the last of them.
    """

    def __init__(self, monkeypatch, settings, step, pauses=(0.5,), compilation=0.0, compiled=False):
        self.clock = FakeClock()
        self.settings, self.step, self.pauses = settings, step, list(pauses)
        self.compilation, self.compiled = compilation, compiled
        self.starts, self.rates = [], []  # of the steps
        self.evaluations, self.messages = [], []
        self.checkpoints = {}  # step → state as JSON
        monkeypatch.setattr(schedule, "time", self.clock)
        monkeypatch.setattr(loop, "evaluate_run", self.evaluate)

    def evaluate(self, run, *unused):
        self.clock.now += self.pauses[min(self.evaluations_here, len(self.pauses) - 1)]
        self.evaluations_here += 1
        self.evaluations.append(run.state.step)
        run.state.evaluated = run.state.step

    def run(self, state=None):
        """Runs to the end; returns the state."""
        self.state, self.evaluations_here = state or RunState(), 0
        first_step = self.state.step
        trainer = SimpleNamespace(
            settings=self.settings,
            processes=Processes(),
            device=torch.device("cpu"),
            is_compiled=self.compiled,
        )
        run = SimpleNamespace(state=self.state, settings=self.settings)
        run.out_dir = SimpleNamespace(saved_step=first_step or None)
        run.out_dir.warn_on_write_error = lambda *unused: nullcontext()
        run.save = lambda: self.save(run)
        clock = RunClock(RunLength(self.settings, 100.0), self.state, trainer)
        while True:
            evaluates, saves = loop.due_work(run, clock)
            if evaluates or saves:
                loop.pause_for_evaluation(run, clock, self.messages.append, None, evaluates, saves)
            if self.state.is_finished():
                return self.state
            self.starts.append(self.clock.now)
            self.rates.append(rate_factor(self.state.step, self.state.plan, self.settings))
            is_first = self.state.step == first_step
            self.clock.now += self.step(self.clock.now) + self.compilation * is_first
            self.state.step += 1
            if clock.is_due(self.state):
                clock.read(self.state)

    def save(self, run):
        self.checkpoints[self.state.step] = json.dumps(asdict(self.state))
        run.out_dir.saved_step = self.state.step


def assert_kept(machine, budget, start=0.0):
    """The run ends within 10% of its budget, and its rate falls smoothly to its end."""
    rates = machine.rates
    assert 0.9 * budget <= machine.clock.now - start <= 1.1 * budget
    assert rates[-1] <= machine.settings.min_lr_fraction + 1e-9
    falls = [before - after for before, after in pairwise(rates)]
    assert min(falls[WARM_UP:], default=0.0) >= 0.0  # it never rises again
    assert max(falls, default=0.0) <= 0.2


# ---------------------------------------------------------------- time budgets

# (minutes, first pause, compilation in step 1, step, later pauses), all but the first in seconds
FIRST_PAUSES = [
    (minutes, first, compilation, step, later)
    for minutes, firsts in ((1, (5, 15, 25)), (3, (20, 60, 90)), (5, (40, 70, 120)))
    for first in firsts
    for compilation in (0, 20)
    for step in (0.25, 0.5)
    for later in (0.5, 3)
]


def test_a_long_first_evaluation_does_not_shorten_a_budget(monkeypatch):
    for minutes, first, compilation, seconds, later in FIRST_PAUSES:
        settings, pauses = TrainSettings(max_minutes=minutes), (first, later)

        def step(now, seconds=seconds):
            return seconds

        machine = Machine(monkeypatch, settings, step, pauses, compilation, compiled=True)
        machine.run()
        assert_kept(machine, 60 * minutes)


@pytest.mark.parametrize("factor", [4, 3, 1 / 3, 1 / 4])
@pytest.mark.parametrize("when", [0.2, 0.6, 0.9])
@pytest.mark.parametrize("pause", [0.5, 4])
def test_a_budget_is_kept_when_the_machine_changes_its_speed(monkeypatch, factor, when, pause):
    machine = Machine(
        monkeypatch,
        TrainSettings(max_minutes=1),
        lambda now: 0.1 * (factor if now > 60 * when else 1),
        [pause],
    )
    machine.run()
    assert_kept(machine, 60)


@pytest.mark.parametrize("pause, evaluations", [(5, 11), (20, 4), (40, 3), (80, 2)])
def test_costly_evaluations_become_rarer(monkeypatch, pause, evaluations):
    machine = Machine(monkeypatch, TrainSettings(max_minutes=5), lambda now: 0.2, [pause])
    machine.run()
    assert len(machine.evaluations) == evaluations
    assert 0.9 * 300 <= machine.clock.now <= 1.1 * 300 and machine.rates[-1] == pytest.approx(0.02)


def test_a_budget_without_time_for_the_evaluations_asked_for_says_so(monkeypatch):
    settings = TrainSettings(max_minutes=1, eval_interval=20)
    machine = Machine(monkeypatch, settings, lambda now: 0.2, [25])
    machine.run()
    assert len(machine.evaluations) == 2 and machine.clock.now <= 1.1 * 60
    [message] = machine.messages
    assert "an evaluation takes 25.0 s" in message


def test_evaluations_and_checkpoints_of_a_budget_come_at_the_intervals_asked_for(monkeypatch):
    settings = TrainSettings(max_minutes=1, eval_interval=100, save_interval=40)
    machine = Machine(monkeypatch, settings, lambda now: 0.2)
    last = machine.run().step
    assert machine.evaluations == [*range(0, last, 100), last]
    assert list(machine.checkpoints) == [*range(0, last, 40), last]


@pytest.mark.parametrize("minutes, step", [(1, 20), (10, 100), (10, 240)])
def test_a_budget_of_a_few_steps_ends_at_most_half_a_step_late(monkeypatch, minutes, step):
    machine = Machine(monkeypatch, TrainSettings(max_minutes=minutes), lambda now: step)
    machine.run()
    pauses = 0.5 * len(machine.evaluations)
    assert machine.clock.now <= 60 * minutes + step / 2 + pauses
    assert machine.rates[-1] <= machine.settings.min_lr_fraction


def test_a_budget_that_is_over_after_the_first_evaluation_trains_one_step(monkeypatch):
    machine = Machine(monkeypatch, TrainSettings(max_minutes=1), lambda now: 0.2, [70])
    assert machine.run().step == 1 and machine.evaluations == [0, 1]


@pytest.mark.parametrize("speed", [1, 3, 1 / 3])
def test_a_run_resumed_from_any_checkpoint_goes_on_from_the_share_reached(monkeypatch, speed):
    settings = TrainSettings(max_minutes=2)
    whole = Machine(monkeypatch, settings, lambda now: 0.2, [8, 2], 5, compiled=True)
    whole.run()
    for step, saved in whole.checkpoints.items():
        machine = Machine(monkeypatch, settings, lambda now: 0.2 * speed, [8, 2], 5, compiled=True)
        machine.clock.now = 10_000  # the machine was off
        state = state_from_json(json.loads(saved), step)
        start = machine.clock.now - state.seconds
        machine.run(state)
        if step == whole.state.step:
            assert not machine.rates and not machine.evaluations  # it was finished
        else:
            assert machine.rates[0] == pytest.approx(whole.rates[step], abs=0.02)
            assert_kept(machine, 120, start)


def test_a_resumed_run_with_a_new_budget_goes_on_from_its_share_of_that(monkeypatch):
    whole = Machine(monkeypatch, TrainSettings(max_minutes=1), lambda now: 0.2)
    state = whole.run()
    state.plan = None  # as a resumed run with other settings does
    longer = Machine(monkeypatch, TrainSettings(max_minutes=2), lambda now: 0.2)
    longer.run(state)
    assert longer.rates[0] == pytest.approx(1.0, abs=0.02)
    assert_kept(longer, 120, -60)


def test_the_example_in_the_docstring_is_right(monkeypatch):
    settings = TrainSettings(max_minutes=10)
    machine = Machine(monkeypatch, settings, lambda now: 0.1 if now < 450 else 0.3, [6])
    machine.run()
    at = {round(start): rate for start, rate in zip(machine.starts, machine.rates, strict=True)}
    assert at[290] == 1.0 and at[303] < 1.0 and at[450] == pytest.approx(0.5, abs=0.01)
    assert machine.rates[-1] == pytest.approx(0.02)
    assert machine.clock.now == pytest.approx(600, abs=1)
    rare = Machine(monkeypatch, settings, lambda now: 1.0, [45])
    rare.run()
    assert len(rare.evaluations) == 4


# ---------------------------------------------------------------- steps and epochs

LEAST = [
    (TrainSettings(max_epochs=1.5, min_iters=30), 150),
    (TrainSettings(max_epochs=1.5, min_iters=310), 310),
]


@pytest.mark.parametrize(
    "settings, steps",
    [(TrainSettings(max_iters=70), 70), (TrainSettings(max_epochs=1.5), 150), *LEAST],
)
def test_steps_and_epochs_are_exact(monkeypatch, settings, steps):
    machine = Machine(monkeypatch, settings, lambda now: 1.0)
    state = machine.run()
    assert state.step == len(machine.rates) == steps and len(machine.evaluations) == 11
    assert state.plan.decay_start == steps // 2
