"""How time and memory of training grow with model, context and batch, beside the growth that the
arithmetic demands. Each point runs in its own process.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from shuoshu.bench.measure import short
from shuoshu.bench.settings import SIZES
from shuoshu.bench.throughput import BenchContext
from shuoshu.core.errors import UserError
from shuoshu.core.terminal import table

CONTEXTS = (
    256,
    512,
    1024,
    2048,
    4096,
    8192,
)  # with equal tokens per step: the longest is one row
ROWS = (1, 2, 4, 8, 16, 32, 64)
AGAINST = {
    "size": ("parameters", "token"),
    "context": ("context", "token"),
    "batch": ("rows", "step"),
}  # x axis; the reported cost is seconds per this unit
SLOW = 4  # a point that took SLOW x --seconds, start included, gets no more rounds
COLUMNS = (
    "parameters",
    "context",
    "rows",
    "tokens/s",
    "s/step",
    "share",
    "with Muon",
    "memory, GB",
    "estimate",
    "rounds",
)


def scale(bench: BenchContext) -> None:
    """Measures all series: tokens/s and memory at each point, and the exponents of both."""
    data = bench.prepared()
    for series in bench.settings.series or AGAINST:
        grow(bench, data, series)


def points_of(bench: BenchContext, series: str) -> dict[str, dict[str, int]]:
    """The points of a series: name → settings of train.py."""
    if series == "size":
        return {
            name: dict(zip(("n_layer", "n_head", "n_embd"), shape, strict=True))
            for name, shape in SIZES.items()
        }
    if series == "context":
        return {
            str(context): {"block_size": context, "batch_size": max(CONTEXTS) // context}
            for context in CONTEXTS
        }
    return {str(rows): {"batch_size": rows} for rows in ROWS}


def grow(bench: BenchContext, data: Path, series: str) -> None:
    """Measures one series, in reversed order every second round; prints its table and exponents."""
    points, found = points_of(bench, series), {}
    spent, waiting = dict.fromkeys(points, 0.0), list(points)
    for number in range(bench.settings.pairs):
        for name in waiting[:: -1 if number % 2 else 1]:
            began = time.perf_counter()
            try:
                facts, round_ = measured(
                    bench,
                    bench.words(data, *(f"--{key}={value}" for key, value in points[name].items())),
                    again=number > 0,
                )
            except UserError as error:
                if not found:
                    raise
                print(f"skipped: {series} {name}: {error}", flush=True)
                waiting.remove(name)
                continue
            found.setdefault(name, {"point": name, **facts, "found": []})["found"].append(round_)
            told = (
                f"{short(round_['tokens_per_second'])} tokens/s, {short(round_['memory'] / 1e9)} GB"
            )
            print(f"{series} {name}, round {number + 1}: {told}", flush=True)
            spent[name] += time.perf_counter() - began
            if spent[name] > SLOW * bench.settings.seconds:
                waiting.remove(name)
    tell(bench, series, [with_medians(found[name]) for name in points if name in found])


def measured(bench: BenchContext, words: list[str], again: bool) -> tuple[dict, dict[str, float]]:
    """One round of one point in a new process: (facts, figures). UserError if memory is short."""
    settings = bench.settings
    worker = bench.worker("scale", again=again, words=words, patience=settings.seconds / 2)
    try:
        if worker.facts["estimate"] > worker.facts["available"]:
            raise UserError(
                f"it needs about {short(worker.facts['estimate'] / 1e9)} GB of memory, "
                f"{short(worker.facts['available'] / 1e9)} GB are free"
            )
        seconds = settings.seconds / settings.pairs
        found = {
            "tokens_per_second": worker.ask(what="scale", seconds=seconds),
            "memory": max(0, worker.ask(what="peak") - worker.facts["before"]),
        }
        found["matrix"] = worker.ask(
            what="matrix", seconds=seconds / 4, dtype=worker.facts["dtype"]
        )
    finally:
        worker.close()
    names = (
        "parameters",
        "context",
        "rows",
        "dtype",
        "compiled",
        "flops_per_token",
        "optimizer_flops",
        "estimate",
    )
    return {name: worker.facts[name] for name in names}, found


def with_medians(point: dict) -> dict:
    """The point with medians over its rounds and its share of the matrix rate.

    `demanded`: floating-point operations of a step, with and without the optimiser.
    """
    tokens, rounds = point["rows"] * point["context"], point["found"]
    point |= {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}
    point["demanded"] = {
        "the model": point["flops_per_token"] * tokens,
        "model and Muon": point["flops_per_token"] * tokens + point["optimizer_flops"],
    }
    per_operation = [found["tokens_per_second"] / found["matrix"] / tokens for found in rounds]
    point["share"] = {
        of: flops * statistics.median(per_operation) for of, flops in point["demanded"].items()
    }
    return point


def tell(bench: BenchContext, series: str, points: list[dict]) -> None:
    """Prints the table and the measured exponents beside those of the arithmetic."""
    bench.report.content.setdefault("series", {})[series] = points
    rows: list[list[object]] = [[series, *COLUMNS]]
    for point in points:
        tokens, shares = (
            point["rows"] * point["context"],
            [f"{share:.0%}" for share in point["share"].values()],
        )
        speed = (short(point["tokens_per_second"]), f"{tokens / point['tokens_per_second']:.3g}")
        memory = (f"{point['memory'] / 1e9:.2f}", f"{point['estimate'] / 1e9:.2f}")
        rows.append(
            [
                point["point"],
                point["parameters"],
                point["context"],
                point["rows"],
                *speed,
                *shares,
                *memory,
                len(point["found"]),
            ]
        )
    print(table(rows), flush=True)
    axis, per = AGAINST[series]
    tokens = [point["rows"] * point["context"] if per == "step" else 1 for point in points]
    costs = {
        f"seconds per {per}": [
            count / point["tokens_per_second"] for count, point in zip(tokens, points, strict=True)
        ]
    }
    for of in points[0]["demanded"]:
        demanded = [
            count * point["demanded"][of] / (point["rows"] * point["context"])
            for count, point in zip(tokens, points, strict=True)
        ]
        costs[f"operations per {per}, {of}"] = demanded
    costs |= {
        "memory": [point["memory"] for point in points],
        "estimated memory": [point["estimate"] for point in points],
    }
    for of, cost in costs.items():
        bench.report.grows(
            f"scale, {series}: {of} against {axis}", [point[axis] for point in points], cost
        )
