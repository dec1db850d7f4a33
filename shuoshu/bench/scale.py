"""Measures how training time and memory grow with model, context and batch.

The measured exponents are compared with those of the arithmetic. Each round of each point is a
process of its own.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from shuoshu.bench.context import BenchContext
from shuoshu.bench.measure import Figures, short
from shuoshu.bench.settings import SIZES
from shuoshu.core.errors import UserError
from shuoshu.core.terminal import table

CONTEXTS = (256, 512, 1024, 2048, 4096, 8192)  # with equal tokens per step: 8192 has one row
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
# The axis of each series, and what the reported cost is seconds of.
AXES = {"size": ("parameters", "token"), "context": ("context", "token"), "batch": ("rows", "step")}
# A point that took this many times --seconds, start included, gets no more rounds.
SLOW = 4
FACTS = ("parameters", "context", "rows", "dtype", "compiled")
FACTS += ("flops_per_token", "optimizer_flops", "estimate")
COLUMNS = ("parameters", "context", "rows", "tokens/s", "s/step", "share", "with Muon")
COLUMNS += ("memory, GB", "estimate", "rounds")


def measure_scale(bench: BenchContext) -> None:
    """Measures all series: tokens/s and memory at each point, and the exponents of both."""
    data = bench.prepared()
    for series in bench.settings.series or AXES:
        points = [summarised(point) for point in measure_series(bench, data, series)]
        bench.report.content.setdefault("series", {})[series] = points
        print_table(series, points)
        report_growth(bench, series, points)


def points_of(series: str) -> dict[str, dict[str, int]]:
    """The points of a series: name → settings of train.py."""
    if series == "size":
        names = ("n_layer", "n_head", "n_embd")
        return {name: dict(zip(names, shape, strict=True)) for name, shape in SIZES.items()}
    if series == "context":
        return {str(c): {"block_size": c, "batch_size": max(CONTEXTS) // c} for c in CONTEXTS}
    return {str(rows): {"batch_size": rows} for rows in BATCH_SIZES}


def measure_series(bench: BenchContext, data: Path, series: str) -> list[dict]:
    """The measured points, each with its rounds. Every second round is in reversed order."""
    points, results = points_of(series), {}
    spent, waiting = dict.fromkeys(points, 0.0), list(points)
    for number in range(bench.settings.pairs):
        for name in waiting[:: -1 if number % 2 else 1]:
            start = time.perf_counter()
            argv = [f"--{key}={value}" for key, value in points[name].items()]
            try:
                facts, figures = measure_point(bench, bench.train_argv(data, *argv))
            except UserError as error:
                if not results:
                    raise
                print(f"skipped: {series} {name}: {error}", flush=True)
                waiting.remove(name)
                continue
            point = results.setdefault(name, {"point": name, **facts, "rounds": []})
            point["rounds"].append(figures)
            speed, memory = short(figures["tokens"]), short(figures["memory"] / 1e9)
            print(f"{series} {name}, round {number + 1}: {speed} tokens/s, {memory} GB", flush=True)
            spent[name] += time.perf_counter() - start
            if spent[name] > SLOW * bench.settings.seconds:
                waiting.remove(name)
    return [results[name] for name in points if name in results]


def measure_point(bench: BenchContext, argv: list[str]) -> tuple[dict, Figures]:
    """(facts, figures) of one round; UserError if memory is short."""
    settings = bench.settings
    result = bench.ours("scale", argv=argv, seconds=settings.seconds / settings.pairs)
    facts = result["facts"]
    if not result["figures"]:
        needed, free = (short(facts[name] / 1e9) for name in ("estimate", "available"))
        raise UserError(f"it needs about {needed} GB of memory, {free} GB are free")
    return {name: facts[name] for name in FACTS}, result["figures"]


def summarised(point: dict) -> dict:
    """The point with the medians of its rounds and its share of the matrix rate.

    `demanded`: floating-point operations of a step, with and without the optimizer.
    """
    rounds, per_step = point["rounds"], point["rows"] * point["context"]
    medians = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    of_model = point["flops_per_token"] * per_step
    demanded = {"the model": of_model, "model and Muon": of_model + point["optimizer_flops"]}
    steps_per_flop = statistics.median(r["tokens"] / r["matrix"] / per_step for r in rounds)
    shares = {part: flops * steps_per_flop for part, flops in demanded.items()}
    return {**point, **medians, "demanded": demanded, "share": shares}


def print_table(series: str, points: list[dict]) -> None:
    """Prints a line per point."""
    rows: list[list[object]] = [[series, *COLUMNS]]
    for point in points:
        step_seconds = point["rows"] * point["context"] / point["tokens"]
        rows.append([point["point"], point["parameters"], point["context"], point["rows"]])
        rows[-1] += [short(point["tokens"]), f"{step_seconds:.3g}"]
        rows[-1] += [f"{share:.0%}" for share in point["share"].values()]
        rows[-1] += [f"{point[name] / 1e9:.2f}" for name in ("memory", "estimate")]
        rows[-1].append(len(point["rounds"]))
    print(table(rows), flush=True)


def report_growth(bench: BenchContext, series: str, points: list[dict]) -> None:
    """Reports the measured exponents, and those expected from the number of operations."""
    axis, per = AXES[series]
    per_step = [point["rows"] * point["context"] for point in points]
    units = per_step if per == "step" else [1] * len(points)  # tokens per unit of cost
    costs = {f"seconds per {per}": [n / p["tokens"] for n, p in zip(units, points, strict=True)]}
    for part in points[0]["demanded"]:
        costs[f"operations per {per}, {part}"] = [
            n * point["demanded"][part] / tokens
            for n, point, tokens in zip(units, points, per_step, strict=True)
        ]
    costs["memory"] = [point["memory"] for point in points]
    costs["estimated memory"] = [point["estimate"] for point in points]
    sizes = [point[axis] for point in points]
    for name, cost in costs.items():
        bench.report.growth(f"scale, {series}: {name} against {axis}", sizes, cost)
