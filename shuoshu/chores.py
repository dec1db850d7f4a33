"""Preparing, ROUGE-L and starting up: what surrounds training, against what it can't be faster than."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from shuoshu.commandline import HOUSE, UserError
from shuoshu.contests import Bench
from shuoshu.text import find_files
from shuoshu.yardstick import exponent

LENGTHS = (100, 400, 500, 1000)  # characters of an answer and its reference
MILLION = 1e6
COMMANDS = ("prepare", "prepare_sft", "train", "sample", "eval_metrics", "app", "bench")


def source_text(bench: Bench) -> str:
    """The texts as one string, or the bundled novella."""
    files = find_files(bench.texts or [str(HOUSE / "data" / "novella")])
    try:
        return "\n".join(path.read_text(encoding="utf-8") for path in files if path.suffix == ".txt")
    except UnicodeDecodeError:
        raise UserError("a corpus is made of UTF-8 texts here") from None


# ---------------------------------------------------------------- prepare


def prepare(bench: Bench) -> None:
    """MB/s of prepare.py and of tiktoken alone, and its peak memory, as a corpus grows."""
    text, ledger = source_text(bench), bench.ledger
    one = len(text.encode()) / MILLION
    sizes, times, held = bench.settings.numbers("megabytes", (1.0, 10.0, 100.0)), [], []
    for size in sizes:
        file, out = bench.folder / "corpus.txt", bench.folder / "corpus"
        with file.open("w", encoding="utf-8", newline="\n") as target:
            for _ in range(int(size / one)):
                target.write(text + "\n")
            target.write(text[: round(size % one / one * len(text))])
        megabytes = file.stat().st_size / MILLION
        command = ledger.ran([sys.executable, HOUSE / "prepare.py", file, f"--out={out}", f"--tokenizer={bench.settings.tokenizer}"])
        first, memory = timed(command, bench.env)  # the tokenizer that tiktoken is measured with
        some = bench.folder / "some.txt"
        some.write_text(text[: int(10 * MILLION)], encoding="utf-8")
        encoder = bench.worker("encode", data=str(out), file=str(some))
        contenders: dict[str, Callable[[], float]] = {"prepare": lambda m=megabytes, c=command: m / timed(c, bench.env)[0]}
        contenders["tiktoken"] = lambda worker=encoder: worker.ask()["rate"] / MILLION
        ledger.compare(f"prepare, {size:g} MB", contenders, bench.settings.pairs, "MB/s")
        ledger.figure(f"prepare, {size:g} MB: peak memory, GB", memory / 1e9)
        encoder.close()
        times.append(first)
        held.append(memory)
    if len(sizes) > 1:
        ledger.figure("prepare: seconds grow with the size to the power", exponent(sizes, times))
        ledger.figure("prepare: memory grows with the size to the power", exponent(sizes, held))


def timed(command: list[str], env: dict[str, str]) -> tuple[float, int]:
    """(seconds, bytes of memory at the peak, 0 where the system doesn't tell) of a command."""
    began = time.perf_counter()
    child = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    told = child.stderr.read().decode("utf-8", "replace")
    memory = 0
    if hasattr(os, "wait4"):
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        memory = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    seconds = (child.wait(), time.perf_counter() - began)[1]
    child.stderr.close()
    if child.returncode:
        raise UserError(f"{' '.join(command)} ended with code {child.returncode}: {told.strip()}")
    return seconds, memory


# ---------------------------------------------------------------- ROUGE-L


def rouge(bench: Bench) -> None:
    """Pairs of texts a second, beside rouge-score by character where that is installed."""
    from shuoshu.metrics import rouge_l

    draw, text = random.Random(7), "".join(source_text(bench).split())
    theirs = None
    with suppress(ImportError):
        from rouge_score import rouge_scorer

        theirs = rouge_scorer.RougeScorer(["rougeL"], tokenizer=Characters())
    for length in LENGTHS:
        pieces = [text[at : at + length] for at in (draw.randrange(max(1, len(text) - length)) for _ in range(40))]
        pairs = list(zip(pieces[::2], pieces[1::2], strict=True))
        contenders = {"ours": partial(pairs_per_second, lambda a, r: rouge_l(a, r)[2], pairs)}
        if theirs:
            contenders["rouge-score"] = partial(pairs_per_second, lambda a, r: theirs.score(r, a)["rougeL"].fmeasure, pairs)
        bench.ledger.compare(f"ROUGE-L, {length} characters", contenders, bench.settings.pairs, "pairs/s")


class Characters:
    """rouge-score's own tokenizer drops all that is not a–z and 0–9."""

    def tokenize(self, text: str) -> list[str]:
        return list(text)


def pairs_per_second(score: Callable[[str, str], float], pairs: list[tuple[str, str]]) -> float:
    began, done = time.perf_counter(), 0
    while not done or time.perf_counter() - began < 0.2:
        for answer, reference in pairs:
            score(answer, reference)
        done += len(pairs)
    return done / (time.perf_counter() - began)


# ---------------------------------------------------------------- starting up


def startup(bench: Bench) -> None:
    """Seconds until a command has said what was asked of it, beside Python and torch alone."""
    out, start = bench.folder / "out", "话说"
    bench.run("prepare", f"--out={bench.folder / 'data'}")
    tiny = ["--n_layer=1", "--n_head=2", "--n_embd=32", "--block_size=32", "--max_iters=1", "--sample_tokens=0", "--device=cpu"]
    bench.run("train", f"--dataset={bench.folder / 'data'}", f"--out_dir={out}", *tiny)
    commands = {"python alone": [sys.executable, "-c", "pass"], "import torch": [sys.executable, "-c", "import torch"]}
    commands |= {f"{name}.py --help": [sys.executable, str(HOUSE / f"{name}.py"), "--help"] for name in COMMANDS}
    first = [sys.executable, str(HOUSE / "sample.py"), f"--out_dir={out}", f"--start={start}", "--max_new_tokens=3", f"--device={bench.settings.device}"]
    contenders = {name: partial(seconds_of, bench.ledger.ran(command), None, bench.env) for name, command in commands.items()}
    contenders["sample.py to its first token"] = partial(seconds_of, bench.ledger.ran(first), len(start.encode()), bench.env)
    rounds = bench.ledger.compare("startup", contenders, bench.settings.pairs, "s")
    bench.ledger.ratio("startup: seconds of sample.py beyond import torch", [r["sample.py to its first token"] - r["import torch"] for r in rounds])


def seconds_of(command: list[str], after: int | None, env: dict[str, str]) -> float:
    """Until a command has ended, or has said more than `after` bytes."""
    began = time.perf_counter()
    if after is None:
        return timed(command, env)[0]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0) as child:
        said = 0
        while said <= after and (new := child.stdout.read(64)):
            said += len(new)
        seconds = time.perf_counter() - began
        child.stdout.read()
    if child.wait() or said <= after:
        raise UserError(f"{' '.join(command)} said nothing")
    return seconds
