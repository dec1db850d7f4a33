"""Time to nanoGPT's final loss: nanoGPT trains for a budget at several rates, then Shuoshu trains
until it is as good. One evaluator scores both.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from shuoshu.bench.throughput import BenchContext, fair_peer, faster
from shuoshu.core.run_log import RunLog
from shuoshu.text.dataset import read_meta

RATES = (0.0006, 0.002, 0.006)  # learning rates for nanoGPT, from large models' to small ones'
SHARES = (0.1, 0.2, 0.4, 1.0)  # shares of the budget that Shuoshu tries in turn
POINTS = 12  # evaluations per run
Points = list[tuple[float, float]]  # seconds of training, bits per byte


def loss(bench: BenchContext) -> None:
    """Measures seconds to nanoGPT's final loss and the best loss of both within the budget."""
    data, report, budget = bench.prepared(), bench.report, 60 * bench.settings.minutes
    ours = bench.worker("train", words=bench.words(data))
    step_seconds = bench.tokens_per_step() / ours.ask(what="train", seconds=bench.settings.seconds)
    ours.close()
    theirs, tokens, goal = (
        *(of_peer(bench, data, ours.facts, budget) if bench.peer else ({}, 0)),
        None,
    )
    if theirs:
        fair = fair_peer(bench, ours.facts)
        pace = fair.ask(what="train", seconds=bench.settings.seconds)
        fair.close()
        end, goal = min((points[-1] for points in theirs.values()), key=lambda point: point[1])
        report.figure("loss: nanoGPT's end, bits per byte", goal, f"  after {end:.0f} s")
    mine = of_ours(bench, data, step_seconds, budget, goal)
    report.content["curves"] = {"peer": theirs, "ours": mine}
    for who, curves in report.content["curves"].items():
        if curves:
            bits, name = min((bits, name) for name, points in curves.items() for _, bits in points)
            report.figure(f"loss: best of {who}, bits per byte", bits, f"  ({name})")
    times = [
        when for points in mine.values() if goal is not None and (when := reached(points, goal))
    ]
    if times:
        report.figure("loss: seconds of ours to nanoGPT's end", min(times))
        report.figure("loss: times shorter than nanoGPT's", end / min(times))
        report.figure(
            "loss: times shorter than a fair nanoGPT's",
            tokens / pace / min(times),
            "  its tokens at the speed of the fair nanoGPT",
        )
    if bench.settings.picture:
        draw(Path(bench.settings.picture), theirs, mine)


def reached(points: Points, goal: float) -> float | None:
    """Seconds until a curve first meets the goal, interpolated linearly; None: never."""
    for (t0, b0), (t1, b1) in itertools.pairwise(points):
        if b1 <= goal:
            return t0 + (t1 - t0) * max(0.0, b0 - goal) / (b0 - b1) if b0 > b1 else t0
    return None


def steps_in(seconds: float, step_seconds: float) -> tuple[int, int]:
    """(steps, steps between evaluations) of a run of about `seconds`, its last step evaluated."""
    every = max(1, round(seconds / step_seconds / POINTS))
    return every * max(1, round(seconds / step_seconds / every)), every


def of_peer(
    bench: BenchContext, data: Path, facts: dict, budget: float
) -> tuple[dict[str, Points], int]:
    """(curves of nanoGPT's train.py at every rate and dropout, tokens of one run)."""
    curves: dict[str, Points] = {}
    bench.peer.take_data(data, facts["vocabulary"])
    compiled, step_seconds = faster(bench, facts["device"], budget)
    steps, every = steps_in(budget, step_seconds)
    length = {
        "always_save_checkpoint": True,
        "max_iters": steps,
        "lr_decay_iters": steps,
        "eval_interval": every,
        "warmup_iters": min(100, max(1, steps // 20)),
    }
    scorer = bench.worker("score", peer=True, data=str(data))
    for lr, dropout in itertools.product(bench.settings.numbers("rate", RATES), bench.dropouts):
        name = f"rate {lr:g}, dropout {dropout:g}"
        command = bench.peer_words(
            facts["device"], compiled, **length, learning_rate=lr, min_lr=lr / 10, dropout=dropout
        )
        points = bench.peer.train(
            command,
            bench.folder / f"peer-{len(curves)}",
            lambda told, name=name: print(f"peer, {name}: {told}", flush=True),
        )
        curves[name] = [
            (clock, scorer.ask(what="score", checkpoint=str(path))) for clock, path in points
        ]
        bench.report.figure(
            f"loss: peer, {name}, bits per byte",
            curves[name][-1][1],
            f"  after {steps:,} steps, {points[-1][0]:.0f} s",
        )
    return curves, steps * bench.tokens_per_step()


def of_ours(
    bench: BenchContext, data: Path, step_seconds: float, budget: float, goal: float | None
) -> dict[str, Points]:
    """Curves of our train.py: growing shares of the budget until the goal, and the last."""
    curves: dict[str, Points] = {}
    shares, is_there = (
        bench.settings.numbers("share", SHARES if goal is not None else (1.0,)),
        False,
    )
    for share in shares:
        if is_there and share != shares[-1]:
            continue
        steps, every = steps_in(share * budget, step_seconds)
        length = [
            f"--max_iters={steps}",
            f"--eval_interval={every}",
            f"--save_interval={steps}",
            "--log_interval=1",
            "--sample_tokens=0",
        ]
        for dropout in bench.dropouts:
            name, out = (
                f"{share:.0%} of the time, dropout {dropout:g}",
                bench.folder / f"ours-{len(curves)}",
            )
            bench.run(
                "train", *bench.words(data, *length, f"--dropout={dropout}", f"--out_dir={out}")
            )
            points = curves[name] = from_log(
                RunLog(out / "log.jsonl"), data, bench.tokens_per_step()
            )
            bench.report.figure(
                f"loss: ours, {name}, bits per byte",
                points[-1][1],
                f"  after {steps:,} steps, {points[-1][0]:.0f} s",
            )
        is_there = goal is not None and min(points[-1][1] for points in curves.values()) <= goal
    return curves


def from_log(log: RunLog, data: Path, tokens_per_step: int) -> Points:
    """The evaluations of one of our runs over its training time, without evaluation time."""
    val = read_meta(data)["splits"]["val"]
    clocks, before = {0: 0.0}, 0
    for record in log.read(
        "step"
    ):  # a skipped step has no record: the next one's speed counts for both
        clocks[record["step"]] = (
            clocks[before]
            + (record["step"] - before) * tokens_per_step / record["tokens_per_second"]
        )
        before = record["step"]
    return [
        (clocks[record["step"]], record["bits_per_char"] * val["characters"] / val["bytes"])
        for record in log.read("eval")
    ]


def draw(path: Path, theirs: dict[str, Points], mine: dict[str, Points]) -> None:
    """Draws all curves over training time; the best of each program in full colour."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for curves, colour, who in ((theirs, "#2c6db3", "nanoGPT"), (mine, "#b3362c", "Shuoshu")):
        best = min(curves, key=lambda name, curves=curves: curves[name][-1][1], default=None)
        for name, points in curves.items():
            style = {"label": f"{who}, {name}"} if name == best else {"alpha": 0.3}
            axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3, **style)
    axes.set(xlabel="seconds of training, without evaluations", ylabel="validation bits per byte")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    figure.savefig(path, dpi=110)
