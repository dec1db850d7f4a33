"""Commands that tests run in their own process."""

from __future__ import annotations

from collections.abc import Sequence

import train
from shuoshu.core.cli import command
from shuoshu.training import loop


@command
def train_model(argv: Sequence[str]) -> int:
    """`python train.py` without loss.png, which takes a third of a second to draw."""
    return loop.train(train.parse_settings(argv), draws=False)
