"""Configs, settings and their mistakes, for the tests of the command line."""

from __future__ import annotations

from pathlib import Path

from shuoshu.core.cli import parse
from shuoshu.core.settings import TrainSettings


def config(name: str, source: str) -> str:
    """Writes a config file; returns its name."""
    Path(name).write_text(source, encoding="utf-8")
    return name


def train(*argv: str, base: dict | None = None) -> TrainSettings:
    """The settings that train.py reads from these arguments."""
    return parse(TrainSettings, argv, "about", base=base)
