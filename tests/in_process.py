"""Trainings that tests run in their own process, and their logs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import train
from shuoshu.core.cli import command
from shuoshu.core.run_log import RunLog
from shuoshu.training import loop


@command
def train_model(argv: Sequence[str]) -> int:
    """`python train.py` without loss.png, which takes a third of a second to draw."""
    return loop.train(train.parse_settings(argv), draws=False)


def records(out_dir: Path, kind: str) -> list[dict]:
    """The lines of this kind in a run's log.jsonl."""
    return RunLog(out_dir / "log.jsonl").read(kind)
