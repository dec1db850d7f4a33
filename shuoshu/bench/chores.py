"""Preparing, ROUGE-L and starting up: what surrounds training, against what it can't be faster than."""

from __future__ import annotations

import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from shuoshu.bench.measure import rate_of
from shuoshu.bench.throughput import BenchContext
from shuoshu.core.errors import REPO_ROOT, UserError
from shuoshu.text.books import find_files
from shuoshu.text.tokenizer import Tokenizer

MEGABYTES = (1.0, 10.0, 100.0)
ON_DISK = 4  # times the size of a corpus that preparing it takes: it, its text cleaned, its tokens, those of the round before
LENGTHS = (100, 400, 500, 1000)  # characters of an answer and its reference
PIECE = 40_000  # characters that go to the tokenizer at once, about what prepare.py gives it
COMMANDS = ("prepare", "prepare_sft", "train", "sample", "eval_metrics", "app", "bench")


def source_text(bench: BenchContext) -> str:
    """The texts as one string, or the bundled novella."""
    files = find_files(bench.texts or [str(REPO_ROOT / "data" / "novella")])
    try:
        text = "\n".join(
            path.read_text(encoding="utf-8") for path in files if path.suffix == ".txt"
        )
    except UnicodeDecodeError:
        text = ""
    if not text.strip():
        raise UserError("this part wants .txt files in UTF-8")
    return text


def prepare(bench: BenchContext) -> None:
    """MB/s of prepare.py beside tiktoken alone in one thread, and its peak memory, as a corpus grows; the exponents of seconds and memory."""
    text, ledger, held, grown = source_text(bench), bench.ledger, [], []
    pieces = [text[start : start + PIECE] for start in range(0, min(len(text), 100 * PIECE), PIECE)]
    file, out, sizes = (
        bench.folder / "corpus.txt",
        bench.folder / "corpus",
        bench.settings.numbers("megabytes", MEGABYTES),
    )
    command = [
        sys.executable,
        str(REPO_ROOT / "prepare.py"),
        str(file),
        f"--out={out}",
        f"--tokenizer={bench.settings.tokenizer}",
        *bench.threads,
    ]

    def prepared(megabytes: float) -> float:
        passed, told = timed([sys.executable, "-c", SPAWN, *ledger.ran(command)], bench.env)
        held.append(peak_in(told))
        return megabytes / passed

    empty = peak_in(
        timed(
            [sys.executable, "-c", SPAWN, sys.executable, "-c", "import shuoshu.corpus, tiktoken"],
            bench.env,
        )[1]
    )

    for size in sizes:
        free = shutil.disk_usage(bench.folder).free
        if free < ON_DISK * size * 1e6:
            print(
                f"left out: {size:g} MB take {ON_DISK * size / 1e3:g} GB in {bench.folder.parent}, {free / 1e9:.3g} GB are free",
                flush=True,
            )
            continue
        copies = size * 1e6 / len(text.encode())
        with file.open("w", encoding="utf-8", newline="\n") as target:
            target.writelines(text for _ in range(int(copies)))
            target.write(text[: round(copies % 1 * len(text))])
        held.clear()
        contenders = {
            "prepare": partial(prepared, file.stat().st_size / 1e6),
            "tiktoken": partial(encoded, out, pieces),
        }
        rounds = ledger.compare(f"prepare, {size:g} MB", contenders, bench.settings.pairs, "MB/s")
        ledger.median(f"prepare, {size:g} MB: peak memory, MB", [peak / 1e6 for peak in held])
        grown.append(
            (
                size,
                size / statistics.median(found["prepare"] for found in rounds),
                statistics.median(held) - empty,
            )
        )
    if grown:
        megabytes, seconds, memory = zip(*grown, strict=True)
        ledger.grows("prepare: seconds against megabytes", megabytes, seconds)
        ledger.grows(
            "prepare: memory beyond an idle prepare.py's against megabytes", megabytes, memory
        )


def encoded(data: Path, pieces: list[str]) -> float:
    """MB/s of the tokenizer that the data was made with."""
    tokenizer = Tokenizer.load(data)
    tokenizer.encode("话")  # it is built at first use
    began = time.perf_counter()
    for piece in pieces:
        tokenizer.encode_to_numpy(piece)
    return sum(len(piece.encode()) for piece in pieces) / 1e6 / (time.perf_counter() - began)


def timed(command: list[str], env: dict[str, str], after: int | None = None) -> tuple[float, bytes]:
    """(seconds, what it said) of a command to its end, or the seconds until it had said more than `after` bytes."""
    began = time.perf_counter()
    child = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, bufsize=0)
    seconds, said = None, b""
    while new := child.stdout.read(1 << 16):
        said += new
        if seconds is None and after is not None and len(said) > after:
            seconds = time.perf_counter() - began
    child.stdout.close()
    if child.wait():
        raise UserError(f"{' '.join(command)} ended with code {child.returncode}")
    return seconds or time.perf_counter() - began, said


# A small process between us and a command: Linux counts what a process's parent holds as the process's own.
SPAWN = """
import subprocess, sys
code = subprocess.call(sys.argv[1:])
try:
    import resource
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
except ImportError:  # Windows
    print(0)
sys.exit(code)
"""


def peak_in(told: bytes) -> int:
    """The bytes of memory that SPAWN says were held at the peak."""
    return int(told.split()[-1])


def rouge(bench: BenchContext) -> None:
    """Pairs of texts a second, beside rouge-score by character where that is installed."""
    from shuoshu.evaluation.metrics import rouge_l

    draw, text, scores = (
        random.Random(7),
        "".join(source_text(bench).split()),
        {"ours": lambda answer, reference: rouge_l(answer, reference)[2]},
    )
    with suppress(ImportError):
        from rouge_score.rouge_scorer import RougeScorer

        theirs = RougeScorer(
            ["rougeL"], tokenizer=SimpleNamespace(tokenize=list)
        )  # its own drops all that is not a–z and 0–9
        scores["rouge-score"] = lambda answer, reference: (
            theirs.score(reference, answer)["rougeL"].fmeasure
        )
    for length in LENGTHS:
        pieces = [
            text[at : at + length]
            for at in (draw.randrange(max(1, len(text) - length)) for _ in range(40))
        ]
        pairs = list(zip(pieces[::2], pieces[1::2], strict=True))
        contenders = {
            name: partial(rate_of, partial(scored, score, pairs), 0.2)
            for name, score in scores.items()
        }
        bench.ledger.compare(
            f"ROUGE-L, {length} characters", contenders, bench.settings.pairs, "pairs/s"
        )


def scored(score: Callable[[str, str], float], pairs: list[tuple[str, str]]) -> int:
    """How many pairs it has scored."""
    for answer, reference in pairs:
        score(answer, reference)
    return len(pairs)


def startup(bench: BenchContext) -> None:
    """Seconds until a command has said what was asked of it, beside Python and torch alone."""
    data, out, start = bench.folder / "data", bench.folder / "out", "话说"
    bench.run("prepare", f"--out={data}")
    bench.run(
        "train",
        f"--dataset={data}",
        f"--out_dir={out}",
        "--n_layer=1",
        "--n_head=2",
        "--n_embd=32",
        "--max_iters=1",
        "--sample_tokens=0",
    )
    commands = {
        "python alone": ["-c", "print()"],
        "import torch": ["-c", "import torch; print(flush=True)"],
    }
    commands |= {f"{name}.py --help": [REPO_ROOT / f"{name}.py", "--help"] for name in COMMANDS}
    contenders = {
        name: partial(
            seconds_of, bench, [sys.executable, *words], 0 if name == "import torch" else None
        )
        for name, words in commands.items()
    }
    first = [
        sys.executable,
        REPO_ROOT / "sample.py",
        f"--out_dir={out}",
        f"--start={start}",
        "--max_new_tokens=3",
        f"--device={bench.settings.device}",
    ]
    contenders["first token"] = partial(seconds_of, bench, first, len(start.encode()))
    rounds = bench.ledger.measure("startup", contenders, bench.settings.pairs, "s")
    bench.ledger.median(
        "startup: sample.py's first token less import torch, s",
        [found["first token"] - found["import torch"] for found in rounds],
    )


def seconds_of(bench: BenchContext, command: list[object], after: int | None) -> float:
    return timed(bench.ledger.ran(command), bench.env, after)[0]
