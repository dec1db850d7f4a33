"""A process that measures when it is told to and holds still in between: JSON objects, one a line, in and out."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from shuoshu.commandline import UserError

Measure = Callable[..., dict]
WARM_UP = 3  # steps before the first measurement: compilation, cold caches


class Worker:
    """The asking end. The first object is the job; its answer, what the worker says of itself, stands in `facts`."""

    def __init__(self, command: Sequence[str], job: dict, env: dict[str, str], cwd: Path) -> None:
        self.command, self.errors = command, tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - it lives as long as the process
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self.errors, env=env, cwd=cwd, text=True, encoding="utf-8")
        self.facts = self.ask(**job)

    def ask(self, **request: object) -> dict:
        line = ""
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:
            pass  # it is gone: told below
        if not line:
            self.close()
            raise UserError(f"{' '.join(self.command)} ended with code {self.process.returncode}: {self.told}")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process; what it said last stays in `told`."""
        if self.errors.closed:
            return
        self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.errors.seek(0)
        self.told = (self.errors.read().strip().splitlines() or ["it said nothing"])[-1]
        self.errors.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def serve(begin: Callable[[dict], tuple[dict, Measure]]) -> None:
    """The answering end: `begin(job)` gives what the worker says of itself and what measures; whatever is printed goes to stderr."""
    answers, sys.stdout = sys.stdout, sys.stderr
    facts, measure = begin(json.loads(sys.stdin.readline()))
    print(json.dumps(facts), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(**json.loads(line))), file=answers, flush=True)


def rate_of(step: Callable[[], float], seconds: float) -> dict:
    """Units per second of `step`, which returns how many it has done; the first one only warms the caches again."""
    step()
    amount, steps, began = 0.0, 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds or not steps:
        amount, steps = amount + step(), steps + 1
    return {"rate": amount / passed, "amount": amount, "steps": steps, "seconds": passed}


def rate_of_one(work: Callable[[], float]) -> dict:
    """Units per second of one go, however long it takes."""
    began = time.perf_counter()
    amount = work()
    passed = time.perf_counter() - began
    return {"rate": amount / passed, "amount": amount, "seconds": passed}
