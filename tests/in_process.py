"""Trainings that tests run in their own process, and their logs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import train
from shuoshu.core.cli import command
from shuoshu.core.run_log import RunLog
from shuoshu.training import loop
from shuoshu.training.step import train_step


def train_model(argv: Sequence[str], take_step: loop.TakeStep = train_step) -> int:
    """`python train.py` without loss.png, which takes a third of a second to draw."""

    @command
    def main(argv: Sequence[str]) -> int:
        return loop.train(train.parse_settings(argv), draws=False, take_step=take_step)

    return main(argv)


def before_steps(happen: Callable[[int], object]) -> loop.TakeStep:
    """A training step that calls happen(step) first."""

    def take_step(trainer, data, state, skips):
        happen(state.step)
        return train_step(trainer, data, state, skips)

    return take_step


def killed_at(number: int) -> loop.TakeStep:
    """A training step that interrupts the run before the step of this number."""

    def happen(step: int) -> None:
        if step == number:
            raise KeyboardInterrupt

    return before_steps(happen)


def records(out_dir: Path, kind: str) -> list[dict]:
    """The lines of this kind in a run's log.jsonl."""
    return RunLog(out_dir / "log.jsonl").read(kind)
