"""Training, fine-tuning and sampling, ours beside the peer and the machine's limit: one process each, measured in turn."""

from __future__ import annotations

import math
import os
import shlex
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from shuoshu.batches import read_meta
from shuoshu.commandline import HOUSE, UserError
from shuoshu.peer import Peer
from shuoshu.settings import BenchSettings
from shuoshu.worker import Worker
from shuoshu.yardstick import Ledger, Round

ROWS = (1, 10)  # texts side by side in sampling
PADDED = 512  # the one width that fine-tuning is compared with
BILLION = 1e9


class Bench:
    """One run of bench.py: its settings, its folder for all that is only needed meanwhile, its workers."""

    def __init__(self, settings: BenchSettings, ledger: Ledger, folder: Path, stack: ExitStack) -> None:
        self.settings, self.ledger, self.folder, self.stack = settings, ledger, folder, stack
        self.part, *self.texts = settings.words
        self.env = dict(os.environ)
        if settings.threads:
            self.env |= {"OMP_NUM_THREADS": str(settings.threads), "MKL_NUM_THREADS": str(settings.threads)}
        self.peer = Peer(Path(settings.vs), folder / "peer", ledger, sys.executable, self.env) if settings.vs else None
        self.shape = {**settings.shape(), "block_size": settings.block_size or (PADDED if self.part in ("sample", "sft") else 256)}
        self.dropouts = settings.numbers("dropout", (0.0,))
        self.machine = self.worker("machine", dtype=settings.dtype)
        ledger.facts("machine", self.machine.facts)
        self.device = self.machine.facts["device"]

    def worker(self, kind: str, peer: bool = False, tamed: bool = True, **how: object) -> Worker:
        """A process of ours, or one that runs the peer's model.py; `tamed`: with our setting of malloc."""
        job = {"kind": kind, "device": self.settings.device, "threads": self.settings.threads, "how": how}
        command = [sys.executable, "-m", "shuoshu.contenders"] if not peer else [sys.executable, str(HOUSE / "shuoshu" / "peer_runner.py")]
        job |= {"tamed": tamed} if peer else {}
        self.ledger.ran([*command, f"# {kind}: {how}"])
        env = self.env if tamed or not self.peer else self.peer.env
        return self.stack.enter_context(Worker(command, job, env, self.peer.folder if peer else HOUSE))

    def run(self, name: str, *words: object) -> str:
        """One of our commands, to its end; what it printed."""
        command = self.ledger.ran([sys.executable, HOUSE / f"{name}.py", *words])
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, encoding="utf-8")
        if done.returncode:
            raise UserError(f"{shlex.join(command)} ended with code {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def prepared(self) -> Path:
        """The texts as data: a prepared folder as it is, anything else through prepare.py."""
        if len(self.texts) == 1 and (Path(self.texts[0]) / "meta.json").is_file():
            return Path(self.texts[0]).resolve()
        out = self.folder / "data"
        threads = [f"--threads={self.settings.threads}"] if self.settings.threads else []
        self.run("prepare", *(Path(text).resolve() for text in self.texts), f"--out={out}", f"--tokenizer={self.settings.tokenizer}", *threads)
        meta = read_meta(out)
        facts = {split: f"{part['tokens']:,} tokens of {part['bytes']:,} bytes" for split, part in meta["splits"].items()}
        self.ledger.facts("data", {"texts": len(meta["books"]), **facts, "vocabulary": meta["vocab_size"]})
        return out

    def words(self, data: Path, *more: str) -> list[str]:
        """train.py's settings for ours."""
        settings = self.settings
        own = {
            **self.shape,
            "dropout": self.dropouts[0],
            "batch_size": settings.batch_size,
            "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        }
        own |= {"dataset": data, "out_dir": self.folder / "out", "device": settings.device, "dtype": settings.dtype}
        own |= {"threads": settings.threads} if settings.threads else {}
        return [*(f"--{name}={value}" for name, value in own.items()), *more, *shlex.split(settings.ours)]

    def peer_words(self, compiled: bool, **more: object) -> list[str]:
        """nanoGPT's train.py as it comes, but for shape and data: fp32 on a CPU, bf16 on CUDA."""
        settings = self.settings
        own = {
            **self.shape,
            "dropout": self.dropouts[0],
            "batch_size": settings.batch_size,
            "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        }
        own |= {"device": self.device, "dtype": "bfloat16" if self.device.startswith("cuda") else "float32", "compile": compiled}
        own |= {"eval_interval": 10**9, "eval_iters": 1, "max_iters": 10**9, "out_dir": "out"}
        return self.ledger.ran(self.peer.command(**own, **more))

    def tokens_per_step(self) -> int:
        return self.shape["block_size"] * self.settings.batch_size * self.settings.gradient_accumulation_steps


# ---------------------------------------------------------------- the parts


def train(bench: Bench) -> None:
    """Tokens/s with the optimiser included, and the share of the matrix rate that they make up."""
    data, settings, ledger = bench.prepared(), bench.settings, bench.ledger
    seconds, memory = settings.seconds, {}
    ours = bench.worker("train", words=bench.words(data), pad_to=None)
    ledger.facts("ours", ours.facts)

    def rate_of(name: str, worker: Worker) -> float:
        found = worker.ask(seconds=seconds)
        memory[name] = found["memory"]
        return found["rate"]

    contenders = {"ours": lambda: rate_of("ours", ours)}
    if bench.peer:
        on_cuda = bench.device.startswith("cuda")
        bench.peer.take_data(data, ours.facts["vocabulary"])
        shipped, shape = bench.peer_words(on_cuda), {**bench.shape, "vocab_size": bench.peer.vocab_size, "dropout": bench.dropouts[0]}
        loop = {"rows": settings.batch_size, "micro_steps": settings.gradient_accumulation_steps, "rate": 1e-3, "compiled": on_cuda}
        fair = bench.worker("train", peer=True, shape=shape, dtype=ours.facts["dtype"], **loop)
        ledger.facts("peer", fair.facts)
        ledger.facts("fair", {"changed": "its model.py and optimiser in a loop of ours, autocast, malloc and OpenMP's wait set as ours are"})
        contenders["shipped"] = lambda: bench.tokens_per_step() / bench.peer.lap(shipped, seconds)
        contenders["fair"] = lambda: rate_of("fair", fair)
    contenders["limit"] = lambda: bench.machine.ask(what="matrix", seconds=seconds / 4)["rate"] / ours.facts["flops_per_token"]
    ledger.facts("limit", {"tokens/s": "the matrix rate over the floating-point operations of a token", "FLOP a token": ours.facts["flops_per_token"]})
    rounds = ledger.compare("train", contenders, settings.pairs, "tokens/s")
    tell_share(ledger, rounds, ours.facts["flops_per_token"])
    for name, held in memory.items():
        ledger.figure(f"train: peak memory of {name}, GB", held / BILLION)


def tell_share(ledger: Ledger, rounds: list[Round], flops: float) -> None:
    ledger.ratio("train: matrix rate, GFLOP/s", [found["limit"] * flops / BILLION for found in rounds])
    ledger.ratio("train: share of the matrix rate", [found["ours"] / found["limit"] for found in rounds])


def sft(bench: Bench) -> None:
    """Answer tokens/s of the bundled questions, or of files of questions, beside the same rows padded to one width."""
    text, questions = bench.folder / "text", bench.folder / "questions"
    bench.run("prepare", f"--out={text}", f"--tokenizer={bench.settings.tokenizer}")
    files = [Path(name).resolve() for name in bench.texts] or [HOUSE / "data" / "novella_qa"]
    block = bench.shape["block_size"]
    bench.run("prepare_sft", *files, f"--tokenizer={text}", f"--out={questions}", f"--block_size={block}", "--too_long=drop")
    workers = {name: bench.worker("train", words=bench.words(questions), pad_to=pad_to) for name, pad_to in (("ours", None), ("padded", block))}
    bench.ledger.facts("ours", workers["ours"].facts)
    contenders = {name: lambda worker=worker: worker.ask(seconds=bench.settings.seconds)["rate"] for name, worker in workers.items()}
    bench.ledger.compare(f"fine-tuning against rows of {block}", contenders, bench.settings.pairs, "answer tokens/s")


def sample(bench: Bench) -> None:
    """Tokens/s of generated text, alone and in a batch; on CUDA also what memory bandwidth would allow."""
    data, settings, ledger = bench.prepared(), bench.settings, bench.ledger
    vocabulary = math.ceil(read_meta(data)["vocab_size"] / 64) * 64
    for rows in ROWS:
        how = {"rows": rows, "tokens": settings.tokens}
        ours = bench.worker("sample", data=str(data), shape=bench.shape, dtype=settings.dtype, **how)
        contenders = {"ours": ours}
        if bench.peer:
            peers = {"shape": {**bench.shape, "vocab_size": vocabulary}, **how}
            on_cuda = bench.device.startswith("cuda")
            contenders["shipped"] = bench.worker("sample", peer=True, tamed=False, dtype="bfloat16" if on_cuda else "float32", **peers)
            if not on_cuda:
                contenders["fair"] = bench.worker("sample", peer=True, dtype=bench.machine.facts["dtype"], **peers)
        ledger.facts("ours", ours.facts)
        measured = {name: lambda worker=worker: worker.ask()["rate"] for name, worker in contenders.items()}
        if bench.device.startswith("cuda"):
            once_a_token = ours.facts["weights"]
            measured["limit"] = lambda once_a_token=once_a_token, rows=rows: rows * bench.machine.ask(what="memory", seconds=1.0)["rate"] / once_a_token
        found = ledger.compare(f"sample, batch {rows}", measured, settings.pairs, "tokens/s")
        if "limit" in found[0]:
            ledger.ratio(f"sample, batch {rows}: share of the memory bound", [one["ours"] / one["limit"] for one in found])
        for worker in contenders.values():
            worker.close()
