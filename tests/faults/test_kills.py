"""Trainings killed with SIGKILL at chosen moments.

Afterwards the newest checkpoint and the model load, no saved step is lost, and the resumed run
ends with the same bytes. Control: the same kills must lose files that are written in place.
"""

import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shuoshu.core import terminal
from shuoshu.core.errors import UserError
from shuoshu.core.files import sha256_of
from shuoshu.models import weights
from shuoshu.training import checkpoints
from tests.faults.shared_state import (
    BEGUN,
    CHECKPOINT,
    EVALUATION,
    MODEL,
    PHASES,
    STEP,
    SharedState,
)

STEPS, SAVED_EVERY = 24, 4
LARGE = [
    "--n_layer=3",
    "--n_head=2",
    "--n_embd=192",
    "--block_size=32",
    "--batch_size=2",
    "--dtype=float32",
    "--device=cpu",
    "--threads=1",
]
LARGE += ["--optimizer=adamw"]  # a checkpoint of 18 MB, and quick steps
LENGTH = [
    f"--max_iters={STEPS}",
    f"--save_interval={SAVED_EVERY}",
    "--eval_interval=8",
    "--eval_tokens=1000",
    "--dropout=0.1",
    "--sample_tokens=4",
]


@dataclass
class Tally:
    """Counts kills and losses by phase, for the table."""

    tried: Counter = field(default_factory=Counter)
    lost: Counter = field(default_factory=Counter)
    steps_lost: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [("killed in", "tried", "survived", "lost")]
        rows += [
            (name, self.tried[p], self.tried[p] - self.lost[p], self.lost[p])
            for p, name in enumerate(PHASES)
            if self.tried[p]
        ]
        rows.append(
            ("all", self.tried.total(), self.tried.total() - self.lost.total(), self.lost.total())
        )
        most = max(self.steps_lost, default=0)
        return f"{terminal.table(rows)}\n  steps lost by a kill: at most {most}"


@dataclass
class Aim:
    """When to kill: after the n-th beginning of a phase, or at a file operation within saves."""

    phase: int
    nth: int
    share: float  # of the usual duration of the phase
    point: int | None

    @classmethod
    def draw(cls, chance: random.Random) -> "Aim":
        phase = chance.choices((STEP, EVALUATION, CHECKPOINT, MODEL), (3, 2, 4, 3))[0]
        point = (
            chance.randrange(1, 120)
            if phase in (CHECKPOINT, MODEL) and chance.random() < 0.5
            else None
        )
        return cls(
            phase,
            chance.randint(1, {STEP: 12, EVALUATION: 2, CHECKPOINT: 3, MODEL: 2}[phase]),
            chance.random(),
            point,
        )


USUAL = {STEP: 0.03, EVALUATION: 0.25, CHECKPOINT: 0.08, MODEL: 0.03}  # seconds


class Harness:
    def __init__(
        self, fork_server, command: list[str], folder: Path, in_place: bool = False
    ) -> None:
        self.fork_server, self.command, self.folder, self.in_place = (
            fork_server,
            command,
            folder,
            in_place,
        )
        self.tally, self.finished = Tally(), []

    def kill(self, times: int, seed: int) -> None:
        """Kills `times` times. Each run is resumed until it ends or a kill loses something."""
        chance = random.Random(seed)
        for number in range(10 * times):
            out_dir = self.folder / f"out{number}"
            while self.tally.tried.total() < times and self.start_and_kill(
                out_dir, Aim.draw(chance)
            ):
                pass
            if self.tally.tried.total() == times:
                return

    def start_and_kill(self, out_dir: Path, aim: Aim) -> bool:
        """Starts or resumes a run and kills it. False if it ended or the kill lost something."""
        path = out_dir.with_suffix(".state")
        path.unlink(missing_ok=True)
        shared, before = SharedState(path), newest_step(out_dir)
        faults = {"shared_state": str(path)}
        if self.in_place:
            faults["saves_in_place"] = True
        if aim.point:
            faults["dies_at_point"] = [str(path), aim.point]
        pid = self.fork_server.start(
            [*self.command, f"--out_dir={out_dir}", "--resume"],
            out_dir.with_suffix(".output"),
            **faults,
        )
        if aim.point is None:
            shoot(pid, shared, aim)
        code = self.fork_server.wait(pid)
        if code != -signal.SIGKILL:
            assert code == 0, out_dir.with_suffix(".output").read_text(encoding="utf-8")
            self.finished.append(out_dir)
            return False
        phase = shared["phase"]
        problem = self.problem_of(out_dir, shared, max(before, shared["saved"]))
        self.tally.tried[phase] += 1
        self.tally.lost[phase] += problem is not None
        assert self.in_place or problem is None, f"{problem} ({aim}, {PHASES[phase]})"
        return problem is None

    def problem_of(self, out_dir: Path, shared: SharedState, saved: int) -> str | None:
        """What the kill lost of a run whose last saved step is `saved` (-1: none), or None."""
        step = newest_step(out_dir)
        if step < saved:
            return f"step {saved} was saved, but {step} is the newest valid one"
        if step >= 0:
            checkpoints.load_checkpoint(checkpoints.newest_checkpoint(out_dir)[0])
            self.tally.steps_lost.append(max(0, shared["step"] - step))
        if (out_dir / "model.safetensors").exists():
            try:
                weights.load_model(out_dir)
            except UserError as error:
                return str(error)
        return None


def newest_step(out_dir: Path) -> int:
    """The step in the newest valid checkpoint's state.json; -1 if there is none."""
    folder, _ = checkpoints.newest_checkpoint(out_dir)
    return -1 if folder is None else checkpoints.load_checkpoint(folder)[2]["step"]


def shoot(pid: int, shared: SharedState, aim: Aim) -> None:
    """Kills the process at the chosen moment, unless the run ends before."""
    until = time.monotonic() + 60
    while shared[BEGUN[aim.phase]] < aim.nth:
        if shared["ended"] or time.monotonic() > until:
            return
        time.sleep(0.0003)
    time.sleep(aim.share * USUAL[aim.phase])
    os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def command(dataset: Path) -> list[str]:
    return [f"--dataset={dataset}", *LARGE, *LENGTH]


def test_a_kill_at_any_moment_loses_nothing_saved(
    fork_server, command, tmp_path, pytestconfig, capsys
):
    times = 200 if pytestconfig.getoption("--long") else 20
    assert fork_server.train(
        [*command, f"--out_dir={tmp_path / 'whole'}"], tmp_path / "output"
    ) == [0]
    harness = Harness(fork_server, command, tmp_path)
    harness.kill(times, seed=8)
    with capsys.disabled():
        print(f"\n{harness.tally}")
    assert harness.tally.tried.total() == times and not harness.tally.lost.total()
    assert sum(harness.tally.tried[phase] for phase in (CHECKPOINT, MODEL)) >= times / 4
    assert max(harness.tally.steps_lost) <= SAVED_EVERY
    assert {sha256_of(out_dir / "model.safetensors") for out_dir in harness.finished} == {
        sha256_of(tmp_path / "whole" / "model.safetensors")
    }


def test_the_same_kills_lose_files_that_are_written_in_place(
    fork_server, command, tmp_path, capsys
):
    harness = Harness(fork_server, command, tmp_path, in_place=True)
    harness.kill(10, seed=8)
    with capsys.disabled():
        print(f"\nwritten in place:\n{harness.tally}")
    assert harness.tally.lost.total() >= 2
