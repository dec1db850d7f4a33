"""A nanoGPT checkout: copies its scripts, converts our data, reads the output of its train.py."""

from __future__ import annotations

import pickle
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from shuoshu.core.errors import UserError
from shuoshu.text.dataset import TEXT_SPLITS, TextDataset

NEEDED = ("train.py", "model.py", "configurator.py")
WARM_UP_ITERATIONS = 3  # iterations: the first holds an evaluation, the others warm up
MAX_VOCAB_SIZE = 1 << 16  # it reads 16-bit tokens
ITERATION = re.compile(r"iter (\d+): loss ([\d.naif]+), time ([\d.]+)ms")
RECENT = 20  # iterations whose median replaces the time of one with an evaluation
LINE_INTERVAL = 30  # seconds of training between progress lines


class NanoGPT:
    """A copy of the checkout's scripts. The user's folder is only read."""

    def __init__(self, checkout: Path, folder: Path, env: dict[str, str]) -> None:
        if missing := [name for name in NEEDED if not (checkout / name).is_file()]:
            raise UserError(
                f"--vs={checkout} is not a nanoGPT checkout; missing: {', '.join(missing)}:"
                " git clone https://github.com/karpathy/nanoGPT"
            )
        self.folder = folder
        # Our commands set GOMP_SPINCOUNT, nanoGPT's don't.
        self.env = {name: value for name, value in env.items() if name != "GOMP_SPINCOUNT"}
        folder.mkdir()
        for path in checkout.glob("*.py"):
            shutil.copyfile(path, folder / path.name)

    def write_data(self, data: Path, vocab_size: int) -> None:
        """Writes our tokens in the format of its train.py; UserError if they don't fit."""
        if vocab_size > MAX_VOCAB_SIZE:
            raise UserError(
                f"nanoGPT reads 16-bit tokens: a vocabulary of {vocab_size:,} is too large for it"
            )
        folder = self.folder / "data" / "bench"
        folder.mkdir(parents=True, exist_ok=True)
        for split in TEXT_SPLITS:
            TextDataset(data, split).tokens.astype("<u2").tofile(folder / f"{split}.bin")
        (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": vocab_size}))

    def command(self, **settings: object) -> list[str]:
        """The command line of its train.py on our data."""
        given = [f"--{name}={value}" for name, value in settings.items()]
        return [sys.executable, "-u", "train.py", "--dataset=bench", "--log_interval=1", *given]

    def iterations(self, command: list[str]) -> Iterator[tuple[int, float, bool]]:
        """Runs its train.py; yields (number, seconds, has an evaluation). Stops it when closed."""
        path = self.folder / "errors.txt"
        with path.open("w", encoding="utf-8") as errors:
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
                if match := ITERATION.match(line):
                    yield int(match[1]), float(match[3]) / 1000, evaluated
                    evaluated = False
            if child.wait():
                lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                last = lines[-1] if lines else "no output"
                raise UserError(f"{' '.join(command)} ended with code {child.returncode}: {last}")
        finally:
            child.terminate()
            child.wait()
            child.stdout.close()

    def seconds_per_step(self, command: list[str], seconds: float) -> float:
        """Seconds per iteration after warm-up, measured for `seconds`; then the run is stopped."""
        times: list[float] = []
        run = self.iterations(command)
        for number, passed, _ in run:
            times += [passed] if number >= WARM_UP_ITERATIONS else []
            if sum(times) >= seconds:
                break
        run.close()
        if not times:
            raise UserError(
                f"{' '.join(command)} printed no iteration after the first {WARM_UP_ITERATIONS}"
            )
        return sum(times) / len(times)

    def train(self, command: list[str], out: Path) -> list[tuple[float, Path]]:
        """A whole training; returns (seconds without evaluations, checkpoint) pairs.

        Each checkpoint is moved to `out` before the next one replaces it.
        """
        checkpoints, times, clock, printed = [], [], 0.0, 0.0
        out.mkdir()
        for number, passed, evaluated in self.iterations(command):
            if evaluated and number:  # the checkpoint was written before this iteration began
                path = (self.folder / "out" / "ckpt.pt").replace(out / f"{number}.pt")
                checkpoints.append((clock, path))
            # The time of an iteration with an evaluation includes the evaluation.
            times.append(statistics.median(times[-RECENT:]) if evaluated and times else passed)
            clock += times[-1]
            if clock > printed + LINE_INTERVAL:
                printed = clock
                print(f"nanoGPT: iteration {number:,}, {clock:.0f} s", flush=True)
        return checkpoints
