"""Fair comparison: contenders in turn, ratios of what was measured side by side, everything told and kept."""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from shuoshu.commandline import UserError
from shuoshu.settings import BenchSettings

Round = dict[str, float]


def interleave(contenders: dict[str, Callable[[], float]], count: int, tell: Callable[[int, Round], None]) -> list[Round]:
    """Every contender once a round; each second round in reversed order (A B, B A, …), so that a machine that slows down slows all alike."""
    rounds = []
    for number in range(count):
        order = list(contenders) if number % 2 == 0 else list(contenders)[::-1]
        found = {name: contenders[name]() for name in order}
        rounds.append({name: found[name] for name in contenders})
        tell(number, rounds[-1])
    return rounds


def ratios(rounds: Sequence[Round], one: str, other: str) -> list[float]:
    """one / other, round by round."""
    return [found[one] / found[other] for found in rounds]


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """k of cost ~ size**k, by least squares on logarithms."""
    import numpy as np

    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def short(value: float) -> str:
    """Three figures, thousands apart."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


class Ledger:
    """What a bench ran and found: told line by line, and kept for --json."""

    def __init__(self, part: str, settings: BenchSettings) -> None:
        self.content: dict = {"part": part, "settings": asdict(settings), "facts": {}, "commands": [], "rounds": {}, "figures": {}}
        self.facts("settings", {name: value for name, value in asdict(settings).items() if value not in (None, (), "")})

    def facts(self, name: str, facts: dict) -> None:
        """What must be known to repeat this."""
        self.content["facts"][name] = facts
        print(f"{name:<10} " + ", ".join(f"{key} {value}" for key, value in facts.items()), flush=True)

    def ran(self, command: Sequence[object]) -> list[str]:
        words = [str(word) for word in command]
        self.content["commands"].append(shlex.join(words))
        print(f"$ {shlex.join(words)}", flush=True)
        return words

    def compare(self, title: str, contenders: dict[str, Callable[[], float]], count: int, unit: str) -> list[Round]:
        """Rounds of these contenders, each told with its ratios to the first, then the medians."""
        first, *others = contenders

        def tell(number: int, found: Round) -> None:
            against = "".join(f"  {first}/{name} {short(found[first] / found[name])}" for name in others)
            print(f"{title}, round {number + 1}: " + "  ".join(f"{name} {short(value)}" for name, value in found.items()) + f" {unit}{against}", flush=True)

        rounds = interleave(contenders, count, tell)
        self.content["rounds"][title] = {"unit": unit, "found": rounds}
        for name in contenders:
            self.figure(f"{title}: {name}, {unit}", statistics.median(found[name] for found in rounds))
        for name in others:
            self.ratio(f"{title}: {first} / {name}", ratios(rounds, first, name))
        return rounds

    def ratio(self, name: str, values: Sequence[float]) -> None:
        """The median of a ratio over the rounds."""
        self.figure(name, statistics.median(values), f"  (of {len(values)}: {short(min(values))} to {short(max(values))})")

    def figure(self, name: str, value: float, note: str = "") -> None:
        self.content["figures"][name] = value
        print(f"= {name}: {short(value)}{note}", flush=True)

    def write(self, path: Path) -> None:
        try:
            path.write_text(json.dumps(self.content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"can't write {path}: {error.strerror}") from None
