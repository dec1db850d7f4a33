"""Measures programs in alternating rounds, each in its own idle process; prints and stores every
figure.
"""

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
    """Measures every program once a round, in reversed order every second round (A B, B A, …).

    A machine that slows down then slows all of them alike.
    """
    rounds = []
    for number in range(count):
        order = list(contenders)[:: -1 if number % 2 else 1]
        found = {name: contenders[name]() for name in order}
        rounds.append({name: found[name] for name in contenders})
    return rounds


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Fits cost ~ size^k by least squares on the logarithms; returns k."""
    return statistics.linear_regression(
        list(map(math.log, sizes)), list(map(math.log, costs))
    ).slope


def short(value: float) -> str:
    """Three significant figures, with thousands separators."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


class BenchReport:
    """What was run and measured: printed line by line, and stored for --json."""

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
        """Prints and stores facts that are needed to repeat the measurement."""
        self.content["facts"].append({"of": name, **facts})
        print(
            f"{name:<10} " + ", ".join(f"{key} {value}" for key, value in facts.items()), flush=True
        )

    def ran(self, command: Sequence[object], read: str = "") -> list[str]:
        """Records a command and its standard input; returns its words."""
        words = [str(word) for word in command]
        self.content["commands"].append(
            shlex.join(words) + (f" <<< {shlex.quote(read)}" if read else "")
        )
        print(f"$ {self.content['commands'][-1]}", flush=True)
        return words

    def measure(
        self, title: str, contenders: dict[str, Callable[[], float]], count: int, unit: str
    ) -> list[Round]:
        """Runs the rounds, prints and stores the medians; returns the rounds."""
        rounds = interleave(contenders, count)
        self.content["rounds"][title] = {"unit": unit, "found": rounds}
        for name in contenders:
            self.median(f"{title}: {name}, {unit}", [found[name] for found in rounds])
        return rounds

    def compare(
        self, title: str, contenders: dict[str, Callable[[], float]], count: int, unit: str
    ) -> list[Round]:
        """Like `measure`, with the median ratio of the first program to each other one."""
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
        """Stores the exponent of a cost; skipped with one size or a missing measurement."""
        if len(set(sizes)) > 1 and min(costs) > 0:
            self.figure(f"{name}, exponent", exponent(sizes, costs))

    def write(self, path: Path) -> None:
        try:
            path.write_text(
                json.dumps(self.content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
            )
        except OSError as error:
            raise UserError(f"can't write {path}: {error.strerror}") from None


# ---------------------------------------------------------------- processes
# Requests and answers are JSON objects, one a line.


class Worker:
    """A worker process as its caller sees it. The first request is the job, its answer `facts`."""

    def __init__(self, command: Sequence[str], job: dict, env: dict[str, str], cwd: Path) -> None:
        self.command, pipe = command, subprocess.PIPE
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
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
        except OSError:  # the process has ended
            line = ""
        if line:
            return json.loads(line)
        self.errors.seek(0)
        told = self.errors.read().strip().splitlines() or ["no output"]
        self.close()
        raise UserError(
            f"{' '.join(self.command)} ended with code {self.process.returncode}: {told[-1]}"
        )

    def close(self) -> None:
        """Ends the process; kills it after 20 seconds."""
        try:
            self.process.communicate(timeout=20)
        except (
            OSError,
            ValueError,
            subprocess.TimeoutExpired,
        ):  # closed already, or stuck
            self.process.kill()
            self.process.wait()
        self.errors.close()


def serve(begin: Callable[[dict], tuple[dict, Measure]]) -> None:
    """The loop of a worker process: `begin(job)` returns its facts and the function that measures.

    Standard output carries the answers, so print() is sent to standard error.
    """
    answers, sys.stdout = sys.stdout, sys.stderr
    facts, measure = begin(json.loads(sys.stdin.readline()))
    print(json.dumps(facts), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(**json.loads(line))), file=answers, flush=True)


def rate_of(step: Callable[[], float], seconds: float) -> float:
    """Units per second of `step`, which returns the units it did; runs at least once."""
    amount, began = 0.0, time.perf_counter()
    while not amount or time.perf_counter() - began < seconds:
        amount += step()
    return amount / (time.perf_counter() - began)
