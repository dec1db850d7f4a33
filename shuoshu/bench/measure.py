"""Fair comparison: contenders measured in turn, each in a process that holds still in between; all of it told and kept."""

from __future__ import annotations

import json
import math
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import typing
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from shuoshu.bench.settings import BenchSettings
from shuoshu.core.errors import UserError

Round = dict[str, float]
Measure = Callable[..., float]
WARM_UP = 3  # steps before the first measurement: compilation, cold caches


def interleave(contenders: dict[str, Callable[[], float]], count: int) -> list[Round]:
    """Every contender once a round, each second round in reversed order (A B, B A, …): a machine that slows down slows all alike."""
    rounds = []
    for number in range(count):
        order = list(contenders)[:: -1 if number % 2 else 1]
        found = {name: contenders[name]() for name in order}
        rounds.append({name: found[name] for name in contenders})
    return rounds


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The power of size that cost grows with: the least squares slope of one logarithm against the other."""
    return statistics.linear_regression(
        list(map(math.log, sizes)), list(map(math.log, costs))
    ).slope


def short(value: float) -> str:
    """Three figures, thousands apart."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


class BenchReport:
    """What a bench ran and found: told line by line, and kept for --json."""

    def __init__(self, part: str, settings: BenchSettings) -> None:
        self.content: dict = {
            "part": part,
            "settings": asdict(settings),
            "complete": False,
            "facts": [],
            "commands": [],
            "rounds": {},
            "figures": {},
        }
        self.facts(
            "settings",
            {
                name: value
                for name, value in asdict(settings).items()
                if value not in (None, (), "")
            },
        )

    def facts(self, name: str, facts: dict) -> None:
        """What must be known to repeat this."""
        self.content["facts"].append({"of": name, **facts})
        print(
            f"{name:<10} " + ", ".join(f"{key} {value}" for key, value in facts.items()), flush=True
        )

    def ran(self, command: Sequence[object], read: str = "") -> list[str]:
        """Notes a command and what it reads."""
        words = [str(word) for word in command]
        self.content["commands"].append(
            shlex.join(words) + (f" <<< {shlex.quote(read)}" if read else "")
        )
        print(f"$ {self.content['commands'][-1]}", flush=True)
        return words

    def measure(
        self, title: str, contenders: dict[str, Callable[[], float]], count: int, unit: str
    ) -> list[Round]:
        """Rounds of these contenders, and their medians."""
        rounds = interleave(contenders, count)
        self.content["rounds"][title] = {"unit": unit, "found": rounds}
        for name in contenders:
            self.median(f"{title}: {name}, {unit}", [found[name] for found in rounds])
        return rounds

    def compare(
        self, title: str, contenders: dict[str, Callable[[], float]], count: int, unit: str
    ) -> list[Round]:
        """As `measure`, and the first one's ratio to each other, round by round."""
        rounds = self.measure(title, contenders, count, unit)
        first, *others = contenders
        for name in others:
            self.median(
                f"{title}: {first} / {name}", [found[first] / found[name] for found in rounds]
            )
        return rounds

    def median(self, name: str, values: Sequence[float]) -> None:
        self.figure(name, statistics.median(values), f"  (rounds: {' '.join(map(short, values))})")

    def figure(self, name: str, value: float, note: str = "") -> None:
        self.content["figures"][name] = value
        print(f"= {name}: {short(value)}{note}", flush=True)

    def grows(self, name: str, sizes: Sequence[float], costs: Sequence[float]) -> None:
        """The exponent of a cost, where there are two sizes or more and the system told it of all."""
        if len(set(sizes)) > 1 and min(costs) > 0:
            self.figure(f"{name}, exponent", exponent(sizes, costs))

    def write(self, path: Path) -> None:
        try:
            path.write_text(
                json.dumps(self.content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
            )
        except OSError as error:
            raise UserError(f"can't write {path}: {error.strerror}") from None


# ---------------------------------------------------------------- processes: JSON objects, one a line, in and out


class Worker:
    """The asking end. The first object is the job; what the worker says of itself stands in `facts`."""

    def __init__(self, command: Sequence[str], job: dict, env: dict[str, str], cwd: Path) -> None:
        self.command, self.errors, pipe = (
            command,
            tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace"),
            subprocess.PIPE,
        )  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            stderr=self.errors,
            env=env,
            cwd=cwd,
            text=True,
            encoding="utf-8",
        )
        self.facts = self.ask(**job)

    def ask(self, **request: object) -> typing.Any:
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except OSError:  # it is gone
            line = ""
        if line:
            return json.loads(line)
        self.errors.seek(0)
        told = self.errors.read().strip().splitlines() or ["it said nothing"]
        self.close()
        raise UserError(
            f"{' '.join(self.command)} ended with code {self.process.returncode}: {told[-1]}"
        )

    def close(self) -> None:
        """Ends the process."""
        try:
            self.process.communicate(timeout=20)
        except (
            OSError,
            ValueError,
            subprocess.TimeoutExpired,
        ):  # closed before, or it doesn't end by itself
            self.process.kill()
            self.process.wait()
        self.errors.close()


def serve(begin: Callable[[dict], tuple[dict, Measure]]) -> None:
    """The answering end: `begin(job)` gives what the worker says of itself and what measures; whatever is printed goes to stderr."""
    answers, sys.stdout = sys.stdout, sys.stderr
    facts, measure = begin(json.loads(sys.stdin.readline()))
    print(json.dumps(facts), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(**json.loads(line))), file=answers, flush=True)


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def rate_of(step: Callable[[], float], seconds: float, clock: str = "wall") -> float:
    """Units per second of `step`, which returns how many it has done: as often as the time allows, at least once."""
    amount, now = 0.0, CLOCKS[clock]
    began = now()
    while not amount or now() - began < seconds:
        amount += step()
    return amount / (now() - began)
