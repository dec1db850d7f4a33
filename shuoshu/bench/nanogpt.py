"""Runs the user's nanoGPT checkout: copies its scripts, writes our data in its format, reads the
output of its train.py.
"""

from __future__ import annotations

import pickle
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from shuoshu.core.errors import UserError
from shuoshu.text.dataset import TEXT_SPLITS, TextDataset

NEEDED = ("train.py", "model.py", "configurator.py")
SETTLED = 3  # skipped iterations: the first holds an evaluation, the others warm up
ITERATION = re.compile(r"iter (\d+): loss ([\d.naif]+), time ([\d.]+)ms")


class NanoGPT:
    """A copy of the checkout's scripts; the user's folder is only read."""

    def __init__(self, checkout: Path, folder: Path, env: dict[str, str]) -> None:
        missing = [name for name in NEEDED if not (checkout / name).is_file()]
        if missing:
            raise UserError(
                f"--vs={checkout} is not a nanoGPT checkout; missing: {', '.join(missing)}: "
                "git clone https://github.com/karpathy/nanoGPT"
            )
        self.folder = folder
        self.env = {
            name: value for name, value in env.items() if name != "GOMP_SPINCOUNT"
        }  # set by our commands, not by nanoGPT's
        folder.mkdir()
        for path in checkout.glob("*.py"):
            shutil.copyfile(path, folder / path.name)

    def take_data(self, data: Path, vocab_size: int) -> None:
        """Writes the same tokens in the format of its train.py."""
        place = self.folder / "data" / "bench"
        if vocab_size > 1 << 16:
            raise UserError(
                f"nanoGPT reads 16-bit tokens: a vocabulary of {vocab_size:,} is too large for it"
            )
        place.mkdir(parents=True, exist_ok=True)
        for split in TEXT_SPLITS:
            TextDataset(data, split).tokens.astype("<u2").tofile(place / f"{split}.bin")
        (place / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": vocab_size}))

    def command(self, **settings: object) -> list[str]:
        """The command line of its train.py on our data."""
        return [
            sys.executable,
            "-u",
            "train.py",
            "--dataset=bench",
            "--log_interval=1",
            *(f"--{name}={value}" for name, value in settings.items()),
        ]

    def iterations(self, command: list[str]) -> Iterator[tuple[int, float, bool]]:
        """Runs its train.py; yields (number, seconds, has an evaluation). Closing it ends the run."""
        errors = (self.folder / "errors.txt").open("w+", encoding="utf-8", errors="replace")
        child = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
        )
        evaluated = False
        try:
            for line in child.stdout:
                evaluated = evaluated or line.startswith("step ")
                if found := ITERATION.match(line):
                    yield int(found[1]), float(found[3]) / 1000, evaluated
                    evaluated = False
            if child.wait() != 0:
                errors.seek(0)
                last = (errors.read().strip().splitlines() or ["no output"])[-1]
                raise UserError(f"{' '.join(command)} ended with code {child.returncode}: {last}")
        finally:
            child.terminate()
            child.wait()
            child.stdout.close()
            errors.close()

    def lap(self, command: list[str], seconds: float) -> float:
        """Seconds per iteration after warm-up, measured for `seconds`; then the run is stopped."""
        found, going = [], self.iterations(command)
        for number, passed, _ in going:
            found += [passed] if number >= SETTLED else []
            if sum(found) >= seconds:
                break
        going.close()
        if not found:
            raise UserError(f"{' '.join(command)} printed no iteration after the first {SETTLED}")
        return sum(found) / len(found)

    def train(
        self, command: list[str], keep: Path, tell: Callable[[str], None]
    ) -> list[tuple[float, Path]]:
        """A whole training run; returns (seconds without evaluations, checkpoint) pairs.

        Each checkpoint is moved to `keep` before the next one replaces it.
        """
        points, usual, clock, errors = [], [], 0.0, 0.0
        keep.mkdir()
        for number, passed, evaluated in self.iterations(command):
            if evaluated and number:  # the checkpoint was written before this iteration began
                points.append(
                    (clock, (self.folder / "out" / "ckpt.pt").replace(keep / f"{number}.pt"))
                )
            usual.append(statistics.median(usual[-20:]) if evaluated and usual else passed)
            clock += usual[-1]
            if clock > errors + 30:
                errors = clock
                tell(f"iteration {number:,}, {clock:.0f} s")
        return points
