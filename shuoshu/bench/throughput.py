"""Training and sampling speed of Shuoshu, nanoGPT and the limit of the machine."""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from shuoshu.bench.measure import BenchReport, Worker, short
from shuoshu.bench.nanogpt import NanoGPT
from shuoshu.bench.settings import BenchSettings
from shuoshu.core.errors import REPO_ROOT, UserError
from shuoshu.text.dataset import read_meta

ROWS = (1, 10)  # texts in one batch
FAIR = "its model.py and optimiser in our loop, with our autocast, malloc and OpenMP settings"


class BenchContext:
    """One run of bench.py: settings, report, a temporary folder, worker processes."""

    def __init__(
        self, settings: BenchSettings, report: BenchReport, folder: Path, stack: ExitStack
    ) -> None:
        self.settings, self.report, self.folder, self.stack = settings, report, folder, stack
        self.part, *self.texts = settings.words
        self.threads = [f"--threads={settings.threads}"] if settings.threads else []
        self.env = dict(os.environ) | (
            {"OMP_NUM_THREADS": str(settings.threads)} if settings.threads else {}
        )
        self.peer = NanoGPT(Path(settings.vs), folder / "peer", self.env) if settings.vs else None
        self.shape = {
            **settings.shape(),
            "block_size": settings.block_size or (512 if self.part == "sample" else 256),
        }
        self.dropouts = settings.numbers("dropout", (0.0,))
        report.facts(
            "python",
            {
                "version": platform.python_version(),
                "system": platform.platform(terse=True),
                "cores": os.cpu_count(),
                **load(),
            },
        )

    def worker(
        self, kind: str, peer: bool = False, tamed: bool = True, again: bool = False, **how: object
    ) -> Worker:
        """Starts a worker for Shuoshu or nanoGPT.

        tamed: with our malloc and OpenMP settings; again: don't print its facts a second time.
        """
        job = {
            "kind": kind,
            "device": self.settings.device,
            "threads": self.settings.threads,
            "tamed": tamed,
            "how": how,
        }
        command = (
            [sys.executable, str(REPO_ROOT / "shuoshu" / "bench" / "nanogpt_worker.py")]
            if peer
            else [sys.executable, "-m", "shuoshu.bench.our_worker"]
        )
        if not again:
            self.report.ran(command, json.dumps(job))
        made = Worker(
            command,
            job,
            self.env if tamed else self.peer.env,
            self.peer.folder if peer else REPO_ROOT,
        )
        self.stack.callback(made.close)
        resolved = made.facts.pop("settings", None)
        if not again:
            self.report.facts("peer" if peer else "ours", made.facts)
        if resolved and not again:
            self.report.facts("train.py", resolved)
        return made

    def run(self, name: str, *words: object) -> None:
        """Runs one of our commands; UserError if it fails."""
        command = self.report.ran([sys.executable, REPO_ROOT / f"{name}.py", *words])
        done = subprocess.run(
            command, env=self.env, capture_output=True, text=True, encoding="utf-8"
        )
        if done.returncode:
            raise UserError(
                f"{shlex.join(command)} ended with code {done.returncode}: {done.stderr.strip()}"
            )

    def prepared(self) -> Path:
        """The folder of prepared data: the given one, or made by prepare.py."""
        out = self.folder / "data"
        if len(self.texts) == 1 and (Path(self.texts[0]) / "meta.json").is_file():
            out = Path(self.texts[0]).resolve()
        else:
            self.run(
                "prepare",
                *map(Path.resolve, map(Path, self.texts)),
                f"--out={out}",
                f"--tokenizer={self.settings.tokenizer}",
                *self.threads,
            )
        meta = read_meta(out)
        self.report.facts(
            "data",
            {
                **{split: part["tokens"] for split, part in meta["splits"].items()},
                "vocabulary": meta["vocab_size"],
            },
        )
        return out

    def common(self) -> dict[str, object]:
        """Settings that both train.py share."""
        names = ("batch_size", "gradient_accumulation_steps")
        return {
            **self.shape,
            "dropout": self.dropouts[0],
            **{name: getattr(self.settings, name) for name in names},
        }

    def words(self, data: Path, *more: str) -> list[str]:
        """The command line of our train.py."""
        own = {
            **self.common(),
            "dataset": data,
            "out_dir": self.folder / "out",
            "device": self.settings.device,
            "dtype": self.settings.dtype,
        }
        return [
            *(f"--{name}={value}" for name, value in own.items()),
            *self.threads,
            *more,
            *shlex.split(self.settings.train_args),
        ]

    def peer_words(self, device: str, compiled: bool, **more: object) -> list[str]:
        """The command of nanoGPT's train.py with our shape: fp32 on a CPU, bf16 on CUDA."""
        own = {
            "device": device,
            "dtype": "bfloat16" if device.startswith("cuda") else "float32",
            "compile": compiled,
        }
        own |= {"eval_interval": 10**9, "eval_iters": 1, "max_iters": 10**9, "out_dir": "out"}
        return self.report.ran(self.peer.command(**{**self.common(), **own, **more}))

    def tokens_per_step(self) -> int:
        return (
            self.shape["block_size"]
            * self.settings.batch_size
            * self.settings.gradient_accumulation_steps
        )


def load() -> dict[str, float]:
    """The load average: on a busy machine the figures mean little."""
    return {"load": round(os.getloadavg()[0], 1)} if hasattr(os, "getloadavg") else {}


# ---------------------------------------------------------------- the parts


def train(bench: BenchContext) -> None:
    """Tokens/s of training, optimiser included, and the share of the measured matrix rate."""
    data, settings, report, seconds = (
        bench.prepared(),
        bench.settings,
        bench.report,
        bench.settings.seconds,
    )
    ours = bench.worker("train", words=bench.words(data))
    facts, memory = ours.facts, {"ours": ours.facts["memory"]}
    contenders = {"ours": partial(ours.ask, what="train", seconds=seconds)}
    if bench.peer:
        bench.peer.take_data(data, facts["vocabulary"])
        fair = fair_peer(bench, facts)
        memory["fair"] = fair.facts["memory"]
        command = bench.peer_words(facts["device"], faster(bench, facts["device"])[0])
        contenders["shipped"] = lambda: bench.tokens_per_step() / bench.peer.lap(command, seconds)
        contenders["fair"] = partial(fair.ask, what="train", seconds=seconds)
    contenders["limit"] = lambda: (
        ours.ask(what="matrix", seconds=seconds / 4, dtype=facts["dtype"])
        / facts["flops_per_token"]
    )
    report.facts("limit", {"is": "the matrix rate over a token's floating-point operations"})
    rounds = report.compare("train", contenders, settings.pairs, "tokens/s")
    report.median(
        "train: matrix rate, GFLOP/s",
        [found["limit"] * facts["flops_per_token"] / 1e9 for found in rounds],
    )
    for name, held in memory.items():
        report.figure(f"train: peak memory of {name}, GB", held / 1e9)


def loop_of_peer(bench: BenchContext, facts: dict, compiled: bool) -> dict:
    """Arguments of nanogpt_worker.training for our loop."""
    shape = {**bench.shape, "vocab_size": facts["vocabulary"], "dropout": bench.dropouts[0]}
    steps = {
        "rows": bench.settings.batch_size,
        "micro_steps": bench.settings.gradient_accumulation_steps,
    }
    return {"shape": shape, "dtype": facts["dtype"], **steps, "compiled": compiled}


def fair_peer(bench: BenchContext, facts: dict) -> Worker:
    """nanoGPT's model with our settings, eager or compiled, whichever is faster."""
    found: dict[float, tuple[str, Worker]] = {}
    for compiled in (False, True):
        try:
            made = bench.worker("train", peer=True, **loop_of_peer(bench, facts, compiled))
            found[made.ask(what="train", seconds=bench.settings.seconds)] = (
                "compiled" if compiled else "eager",
                made,
            )
        except UserError as error:
            print(f"nanoGPT doesn't run this way here: {str(error)[-200:]}")
    if not found:
        raise UserError("nanoGPT's model.py runs neither eager nor compiled")
    told = {how: f"{short(rate)} tokens/s" for rate, (how, _) in found.items()}
    how, best = found[max(found)]
    bench.report.facts("fair", {"is": FAIR, **told, "taken": how})
    for _, worker in found.values():
        if worker is not best:
            worker.close()
    return best


COMPILING = 30.0  # approximate seconds of compiling nanoGPT on a CPU


def faster(bench: BenchContext, device: str, budget: float = math.inf) -> tuple[bool, float]:
    """(whether compiling gives nanoGPT more steps in its budget, seconds per step)."""
    found = {}
    for compiled in (False, True):
        try:
            found[compiled] = bench.peer.lap(
                bench.peer_words(device, compiled), bench.settings.seconds
            )
        except UserError as error:
            print(f"nanoGPT doesn't run this way here: {str(error)[-200:]}")
    if not found:
        raise UserError("nanoGPT's train.py runs neither eager nor compiled")
    best = min(
        found, key=lambda compiled: found[compiled] / max(1e-9, 1 - COMPILING * compiled / budget)
    )
    told = {
        "compiled" if compiled else "eager": f"{short(1000 * seconds)} ms a step"
        for compiled, seconds in found.items()
    }
    bench.report.facts("peer", {**told, "taken": "compiled" if best else "eager"})
    return best, found[best]


def sample(bench: BenchContext) -> None:
    """Tokens/s of generated text, one and ten at a time; on CUDA beside the memory bound."""
    data, settings, shape = bench.prepared(), bench.settings, bench.shape
    ours = bench.worker(
        "sample", data=str(data), shape=shape, tokens=settings.tokens, dtype=settings.dtype
    )
    workers, on_cuda = {"ours": ours}, ours.facts["device"].startswith("cuda")
    if bench.peer:
        how = {
            "shape": {**shape, "vocab_size": ours.facts["vocabulary"]},
            "tokens": settings.tokens,
        }
        workers["shipped"] = bench.worker(
            "sample", peer=True, tamed=False, dtype="auto" if on_cuda else "float32", **how
        )
        if not on_cuda:
            workers["fair"] = bench.worker("sample", peer=True, dtype="auto", **how)
    for rows in ROWS:
        contenders = {
            name: partial(worker.ask, what="sample", rows=rows) for name, worker in workers.items()
        }
        if on_cuda:
            contenders["limit"] = lambda rows=rows: (
                rows * ours.ask(what="memory", seconds=1.0) / ours.facts["weights"]
            )
        bench.report.compare(f"sampling, batch {rows}", contenders, settings.pairs, "tokens/s")
