"""Measures programs in alternating rounds; prints and stores every figure."""

from __future__ import annotations

import json
import math
import shlex
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from shuoshu.bench.settings import BenchSettings
from shuoshu.core.errors import UserError

Figures = dict[str, float]  # name → value of one measurement


def interleave(programs: Sequence[Callable[[], Figures]], count: int) -> list[Figures]:
    """Measures every program once per round, in reversed order every second round: A B, B A, …

    A machine that slows down slows all of them alike.
    """
    rounds = []
    for number in range(count):
        figures: Figures = {}
        for measure in programs[:: -1 if number % 2 else 1]:
            figures |= measure()
        rounds.append(figures)
    return rounds


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The k of cost ~ size^k, fitted by least squares on the logarithms."""
    logs = [list(map(math.log, values)) for values in (sizes, costs)]
    return statistics.linear_regression(*logs).slope


def short(value: float) -> str:
    """Three significant figures, with thousands separators."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


class BenchReport:
    """The commands, figures and notes of a run: printed line by line, and stored for --json."""

    def __init__(self, part: str, settings: BenchSettings) -> None:
        self.content: dict = {"part": part, "settings": asdict(settings), "complete": False}
        self.content |= {"notes": [], "commands": [], "rounds": {}, "figures": {}}
        given = {name: v for name, v in asdict(settings).items() if v not in (None, (), "")}
        self.note("settings", given)

    def note(self, about: str, values: dict) -> None:
        """Prints and stores what is needed to repeat the measurement."""
        self.content["notes"].append({"about": about, **values})
        print(f"{about:<10} " + ", ".join(f"{k} {v}" for k, v in values.items()), flush=True)

    def command(self, words: Sequence[object]) -> bool:
        """Prints and stores a command; False if it has been run before."""
        line = shlex.join(map(str, words))
        if line in self.content["commands"]:
            return False
        self.content["commands"].append(line)
        print(f"$ {line}", flush=True)
        return True

    def figure(self, name: str, value: float, note: str = "") -> None:
        """Prints and stores a result."""
        self.content["figures"][name] = value
        print(f"= {name}: {short(value)}{note}", flush=True)

    def median(self, name: str, values: Sequence[float]) -> None:
        """The figure is the median of the rounds."""
        self.figure(name, statistics.median(values), f"  (rounds: {' '.join(map(short, values))})")

    def compare(self, title: str, rounds: list[Figures], unit: str) -> None:
        """Stores the rounds, the medians, and the median ratios of the first name to the others."""
        self.content["rounds"][title] = {"unit": unit, "figures": rounds}
        first, *others = rounds[0]
        for name in (first, *others):
            self.median(f"{title}: {name}, {unit}", [figures[name] for figures in rounds])
        for name in others:
            ratios = [figures[first] / figures[name] for figures in rounds]
            self.median(f"{title}: {first} / {name}", ratios)

    def growth(self, name: str, sizes: Sequence[float], costs: Sequence[float]) -> None:
        """The figure is the exponent of a cost; none with one size or a missing measurement."""
        if len(set(sizes)) > 1 and min(costs) > 0:
            self.figure(f"{name}, exponent", exponent(sizes, costs))

    def write(self, path: Path) -> None:
        """Writes everything as JSON; UserError if that fails."""
        text = json.dumps(self.content, ensure_ascii=False, indent=1) + "\n"
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"can't write {path}: {error.strerror}") from None
