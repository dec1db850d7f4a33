"""Training and sampling speed of Shuoshu, nanoGPT and the limit of the machine.

Programs: `ours`; `shipped`, nanoGPT's own command; `fair`, nanoGPT's model.py with our precision
and memory settings; `limit`, what the machine could do at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from shuoshu.bench.context import BenchContext
from shuoshu.bench.measure import Figures, interleave, short
from shuoshu.core.errors import UserError

T = TypeVar("Result")
TEXTS_AT_ONCE = (1, 10)  # texts sampled at the same time
FAIR = "its model.py and optimizer in our loop, with our autocast, malloc and OpenMP settings"
COMPILE_SECONDS = 30.0  # approximate time of compiling nanoGPT on a CPU
EPSILON = 1e-9  # avoids a division by zero


def measure_training(bench: BenchContext) -> None:
    """Tokens/s of training, optimizer included, and the limit by the rate of matrix products."""
    data, seconds, report = bench.prepared(), bench.settings.seconds, bench.report
    job = {"argv": bench.train_argv(data), "seconds": seconds}
    facts = bench.ours("train", **job)["facts"]
    memory = {"ours": facts["memory"]}

    def ours() -> Figures:
        figures = bench.ours("train", **job)["figures"]
        return {"ours": figures["tokens"], "limit": figures["matrix"] / facts["flops_per_token"]}

    programs = [ours]
    if bench.nanogpt:
        bench.nanogpt.write_data(data, facts["vocabulary"])
        fair, result = fair_job(bench, facts)
        memory["fair"] = result["facts"]["memory"]
        compiled, _ = faster_command(bench, facts["device"])
        command = bench.nanogpt_command(facts["device"], compiled)

        def shipped() -> Figures:
            step_seconds = bench.nanogpt.seconds_per_step(command, seconds)
            return {"shipped": bench.tokens_per_step / step_seconds}

        programs += [
            shipped,
            lambda: {"fair": bench.theirs("train", **fair)["figures"]["tokens"]},
        ]
    report.note("limit", {"is": "the matrix rate over a token's floating-point operations"})
    rounds = interleave(programs, bench.settings.pairs)
    report.compare("train", rounds, "tokens/s")
    rates = [figures["limit"] * facts["flops_per_token"] / 1e9 for figures in rounds]
    report.median("train: matrix rate, GFLOP/s", rates)
    for name, count in memory.items():
        report.figure(f"train: peak memory of {name}, GB", count / 1e9)


def measure_sampling(bench: BenchContext) -> None:
    """Tokens/s of generated text, one and ten at a time; on CUDA also the memory bound."""
    data, settings = bench.prepared(), bench.settings
    job = {"shape": bench.shape, "tokens": settings.tokens, "batches": TEXTS_AT_ONCE}
    ours = {**job, "data": str(data), "dtype": settings.dtype}
    jobs = {"ours": partial(bench.ours, "sample", **ours)}
    if bench.nanogpt:
        facts = bench.ours("sample", **ours)["facts"]
        on_cuda = facts["device"].startswith("cuda")
        job["shape"] = {**bench.shape, "vocab_size": facts["vocabulary"]}
        theirs = partial(bench.theirs, "sample", **job)
        jobs["shipped"] = partial(theirs, is_tuned=False, dtype="auto" if on_cuda else "float32")
        if not on_cuda:
            jobs["fair"] = partial(theirs, dtype="auto")
    programs = [lambda n=name, j=measure: {n: j()["figures"]} for name, measure in jobs.items()]
    rounds = interleave(programs, settings.pairs)
    for rows in map(str, TEXTS_AT_ONCE):
        by_name = [{name: figures[rows] for name, figures in r.items()} for r in rounds]
        for figures, r in zip(by_name, rounds, strict=True):
            if f"{rows} limit" in r["ours"]:
                figures["limit"] = r["ours"][f"{rows} limit"]
        bench.report.compare(f"sampling, batch {rows}", by_name, "tokens/s")


# ---------------------------------------------------------------- nanoGPT, eager or compiled


def both_ways(measure: Callable[[bool], T]) -> dict[bool, T]:
    """measure(False), eager, and measure(True), compiled; UserError if neither works."""
    results = {}
    for compiled in (False, True):
        try:
            results[compiled] = measure(compiled)
        except UserError as error:
            print(f"nanoGPT doesn't run {way(compiled)} here: {str(error)[-200:]}")
    if not results:
        raise UserError("nanoGPT runs neither eager nor compiled")
    return results


def way(compiled: bool) -> str:
    return "compiled" if compiled else "eager"


def fair_job(bench: BenchContext, facts: dict) -> tuple[dict, dict]:
    """The job of nanogpt_worker.train that is faster, eager or compiled, and its first result."""
    settings = bench.settings
    job = {
        "shape": {**bench.shape, "vocab_size": facts["vocabulary"], "dropout": bench.dropouts[0]},
        "dtype": facts["dtype"],
        "batch": (settings.batch_size, settings.gradient_accumulation_steps),
        "seconds": settings.seconds,
    }
    results = both_ways(lambda compiled: bench.theirs("train", **job, compiled=compiled))
    rates = {compiled: result["figures"]["tokens"] for compiled, result in results.items()}
    best = max(rates, key=rates.get)
    speeds = {way(compiled): f"{short(rate)} tokens/s" for compiled, rate in rates.items()}
    bench.report.note("fair", {"is": FAIR, **speeds, "used": way(best)})
    return {**job, "compiled": best}, results[best]


def faster_command(
    bench: BenchContext, device: str, budget: float = math.inf
) -> tuple[bool, float]:
    """(whether compiling gives nanoGPT's train.py more steps in its budget, seconds per step)."""
    seconds = both_ways(
        lambda compiled: bench.nanogpt.seconds_per_step(
            bench.nanogpt_command(device, compiled), bench.settings.seconds
        )
    )

    def cost(compiled: bool) -> float:
        share_left = 1 - (COMPILE_SECONDS / budget if compiled else 0.0)
        return seconds[compiled] / max(EPSILON, share_left)

    best = min(seconds, key=cost)
    speeds = {way(c): f"{short(1000 * value)} ms a step" for c, value in seconds.items()}
    bench.report.note("nanogpt", {**speeds, "used": way(best)})
    return best, seconds[best]
