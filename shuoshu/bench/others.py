"""Speed with models that others trained: Shuoshu beside transformers and PEFT.

Programs of `lora`: `ours`; `same rows`, PEFT on the batches of ours; `own rows`, PEFT on rows in
random order, as its users get them. Those of `generate`: `ours` and `theirs`.
"""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

from shuoshu.bench.context import BenchContext
from shuoshu.bench.measure import interleave
from shuoshu.bench.throughput import TEXTS_AT_ONCE
from shuoshu.core.errors import REPO_ROOT, UserError

LIBRARIES = ("transformers", "peft")
LORA_CONFIG = REPO_ROOT / "config" / "lora.py"


def measure_lora(bench: BenchContext) -> None:
    """Tokens/s and peak memory of training an adapter; counts tokens of rows, without padding."""
    base, data = named_folders(bench, "BASE", "DATA")
    job = {"argv": lora_argv(bench, base, data), "steps": bench.settings.steps}
    dtype = bench.ours("lora", **{**job, "steps": 1})["facts"]["dtype"]
    theirs = partial(bench.transformers, "train", **job, dtype=dtype)
    jobs = {
        "ours": partial(bench.ours, "lora", **job),
        "same rows": partial(theirs, order="ours"),
        "own rows": partial(theirs, order="random"),
    }
    rounds = measured_rounds(bench, jobs)
    for title, kind, unit in (("LoRA", "tokens", "tokens/s"), ("LoRA, peak", "memory", "bytes")):
        bench.report.compare(title, [{name: r[name][kind] for name in jobs} for r in rounds], unit)


def measured_rounds(bench: BenchContext, jobs: dict[str, Callable[[], dict]]) -> list[dict]:
    """For each round, {name: figures} of the jobs."""
    programs = [lambda n=name, j=measure: {n: j()["figures"]} for name, measure in jobs.items()]
    return interleave(programs, bench.settings.pairs)


def lora_argv(bench: BenchContext, base: Path, data: Path) -> list[str]:
    """The arguments of our train.py: config/lora.py on these folders."""
    settings = bench.settings
    values = {"init_from": base, "dataset": data, "out_dir": bench.folder / "out"}
    values |= {name: getattr(settings, name) for name in ("batch_size", "device", "dtype")}
    argv = [str(LORA_CONFIG), *(f"--{name}={value}" for name, value in values.items())]
    return [*argv, *shlex.split(settings.train_args)]


def measure_generation(bench: BenchContext) -> None:
    """Tokens/s of generated text, one text and ten, with the weights of a folder."""
    (base,) = named_folders(bench, "BASE")
    job = {"base": str(base), "tokens": bench.settings.tokens, "dtype": bench.settings.dtype}
    job |= {"batches": TEXTS_AT_ONCE}
    dtype = bench.ours("generate", **{**job, "tokens": 1})["facts"]["dtype"]
    jobs = {
        "ours": partial(bench.ours, "generate", **job),
        "theirs": partial(bench.transformers, "generate", **{**job, "dtype": dtype}),
    }
    rounds = measured_rounds(bench, jobs)
    for rows in map(str, TEXTS_AT_ONCE):
        by_name = [{name: r[name][rows] for name in jobs} for r in rounds]
        bench.report.compare(f"generate, batch {rows}", by_name, "tokens/s")


def named_folders(bench: BenchContext, *names: str) -> list[Path]:
    """The folders after the part's name; UserError if one or a library is missing."""
    usage = f"python bench.py {bench.part} {' '.join(names)}"
    folders = [Path(text).resolve() for text in bench.texts]
    if len(folders) != len(names) or not all(folder.is_dir() for folder in folders):
        what = "which is a folder" if len(names) == 1 else "which are folders"
        raise UserError(f"name {' and '.join(names)}, {what}: {usage}")
    missing = [name for name in LIBRARIES if not is_installed(name)]
    if missing:
        raise UserError(
            f"it measures beside {' and '.join(LIBRARIES)}: pip install {' '.join(missing)}"
        )
    return folders


def is_installed(library: str) -> bool:
    try:
        return importlib.util.find_spec(library) is not None
    except ValueError:  # a module without a specification
        return False
