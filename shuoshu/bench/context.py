"""One run of bench.py: its data, and the processes that it measures.

Each measurement is a process of its own, `python -m MODULE JOB` with the job as JSON. Its last
line of output is the result as JSON, so every measurement can be repeated by hand.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from shuoshu.bench.measure import BenchReport
from shuoshu.bench.nanogpt import NanoGPT
from shuoshu.bench.settings import BenchSettings
from shuoshu.core.errors import REPO_ROOT, UserError
from shuoshu.text.dataset import read_meta

OURS, THEIRS = "shuoshu.bench.our_worker", "shuoshu.bench.nanogpt_worker"
TRANSFORMERS = "shuoshu.bench.transformers_worker"


def run_command(command: list[str], env: dict[str, str], folder: Path) -> str:
    """The output of a command; UserError with the last line of its errors if it fails."""
    done = subprocess.run(
        command, env=env, cwd=folder, capture_output=True, text=True, encoding="utf-8"
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(f"{shlex.join(command)} ended with code {done.returncode}: {last}")
    return done.stdout


class BenchContext:
    """Settings, report, a temporary folder, and the nanoGPT checkout of --vs."""

    def __init__(
        self,
        settings: BenchSettings,
        report: BenchReport,
        folder: Path,
        run: Callable[[list[str], dict[str, str], Path], str] = run_command,
    ) -> None:
        self.settings, self.report, self.folder, self._run = settings, report, folder, run
        self.part, *self.texts = settings.words
        self.env = {**os.environ, "PYTHONPATH": str(REPO_ROOT)}
        if settings.threads:
            self.env["OMP_NUM_THREADS"] = str(settings.threads)
        self._threads = [f"--threads={settings.threads}"] if settings.threads else []
        self.nanogpt = None
        if settings.vs:
            self.nanogpt = NanoGPT(Path(settings.vs), folder / "nanogpt", self.env)
        default = 512 if self.part == "sample" else 256
        self.shape = {**settings.shape(), "block_size": settings.block_size or default}
        self.dropouts = settings.numbers("dropout", (0.0,))
        machine = {"system": platform.platform(terse=True), "cores": os.cpu_count()}
        if hasattr(os, "getloadavg"):  # figures from a busy machine are unreliable
            machine["load"] = round(os.getloadavg()[0], 1)
        report.note("python", {"version": platform.python_version(), **machine})

    @property
    def tokens_per_step(self) -> int:
        settings = self.settings
        rows = settings.batch_size * settings.gradient_accumulation_steps
        return self.shape["block_size"] * rows

    # ---------------------------------------------------------------- workers

    def ours(self, kind: str, **job: object) -> dict:
        """The result of our_worker.py. Prints the facts about each new job once."""
        return self._work("ours", OURS, self.env, REPO_ROOT, {"kind": kind, **job})

    def theirs(self, kind: str, is_tuned: bool = True, **job: object) -> dict:
        """The result of nanogpt_worker.py, with or without our malloc and OpenMP settings."""
        env = self.env if is_tuned else self.nanogpt.env
        job = {"kind": kind, "is_tuned": is_tuned, **job}
        return self._work("nanogpt", THEIRS, env, self.nanogpt.folder, job)

    def transformers(self, kind: str, **job: object) -> dict:
        """The result of transformers_worker.py, without our malloc settings."""
        job = {"kind": kind, "is_tuned": False, **job}
        return self._work("theirs", TRANSFORMERS, self.env, REPO_ROOT, job)

    def _work(self, about: str, module: str, env: dict, folder: Path, job: dict) -> dict:
        job |= {"device": self.settings.device, "threads": self.settings.threads}
        command = [sys.executable, "-m", module, json.dumps(job)]
        is_new = self.report.command(command)
        result = json.loads(self._run(command, env, folder).splitlines()[-1])
        facts = result.get("facts", {})
        resolved = facts.pop("settings", None)
        if is_new and facts:
            self.report.note(about, facts)
        if is_new and resolved:
            self.report.note("train.py", resolved)
        return result

    # ---------------------------------------------------------------- data and settings

    def command(self, name: str, *arguments: object) -> None:
        """Runs one of our commands; UserError if it fails."""
        command = [sys.executable, str(REPO_ROOT / f"{name}.py"), *map(str, arguments)]
        self.report.command(command)
        self._run(command, self.env, Path.cwd())

    def prepared(self) -> Path:
        """The folder of prepared data: the given one, or one that prepare.py makes."""
        if len(self.texts) == 1 and (Path(self.texts[0]) / "meta.json").is_file():
            out = Path(self.texts[0]).resolve()
        else:
            out = self.folder / "data"
            paths = [Path(text).resolve() for text in self.texts]
            tokenizer = f"--tokenizer={self.settings.tokenizer}"
            self.command("prepare", *paths, f"--out={out}", tokenizer, *self._threads)
        meta = read_meta(out)
        tokens = {split: values["tokens"] for split, values in meta["splits"].items()}
        self.report.note("data", {**tokens, "vocabulary": meta["vocab_size"]})
        return out

    def train_argv(self, data: Path, *more: str) -> list[str]:
        """The arguments of our train.py."""
        settings = self.settings
        values = {**self._common(), "dataset": data, "out_dir": self.folder / "out"}
        values |= {"device": settings.device, "dtype": settings.dtype}
        argv = [f"--{name}={value}" for name, value in values.items()]
        return [*argv, *self._threads, *more, *shlex.split(settings.train_args)]

    def nanogpt_command(self, device: str, compiled: bool, **more: object) -> list[str]:
        """The command of nanoGPT's train.py with our model shape; fp32 on a CPU, bf16 on CUDA."""
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
        values = {**self._common(), "device": device, "dtype": dtype, "compile": compiled}
        values |= {"eval_interval": 10**9, "eval_iters": 1, "max_iters": 10**9, "out_dir": "out"}
        command = self.nanogpt.command(**{**values, **more})
        self.report.command(command)
        return command

    def _common(self) -> dict[str, object]:
        """The settings that both train.py share."""
        rows = ("batch_size", "gradient_accumulation_steps")
        values = {name: getattr(self.settings, name) for name in rows}
        return {**self.shape, "dropout": self.dropouts[0], **values}
