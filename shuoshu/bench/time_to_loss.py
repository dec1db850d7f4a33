"""Time to nanoGPT's best loss, scored by one evaluator.

nanoGPT trains for a fixed time at several learning rates. Then Shuoshu trains until it is as good.
Every run has the same number of evaluations, and only their times count: none is interpolated.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from shuoshu.bench.context import BenchContext
from shuoshu.bench.throughput import fair_job, faster_command
from shuoshu.core.run_log import RunLog
from shuoshu.text.dataset import read_meta

RATES = (0.0006, 0.002, 0.006)  # learning rates for nanoGPT, from large models' to small ones'
SHARES = (0.1, 0.2, 0.4, 1.0)  # shares of the budget that Shuoshu tries in turn
EVALUATIONS = 12  # per run
LossCurve = list[tuple[float, float]]  # (seconds of training, bits per byte) of each evaluation


def measure_loss(bench: BenchContext) -> None:
    """Measures seconds to nanoGPT's best loss and the best loss of both within the budget."""
    data, report = bench.prepared(), bench.report
    result = bench.ours("train", argv=bench.train_argv(data), seconds=bench.settings.seconds)
    step_seconds = bench.tokens_per_step / result["figures"]["tokens"]
    curves: dict[str, dict[str, LossCurve]] = {"nanogpt": {}, "ours": {}}
    report.content["curves"] = curves
    goal = None
    if bench.nanogpt:
        fair, interval = train_nanogpt(bench, data, result["facts"], curves["nanogpt"])
        goal, theirs, number = best_evaluation(curves["nanogpt"])
        report.figure("loss: seconds of nanoGPT to its best", theirs)
    train_ours(bench, data, step_seconds, goal, curves["ours"])
    for program, by_name in curves.items():
        if by_name:
            bits, name = min((bits, name) for name, c in by_name.items() for _, bits in c)
            report.figure(f"loss: best of {program}, bits per byte", bits, f"  ({name})")
    times = [time_to(curve, goal) for curve in curves["ours"].values()] if goal else []
    if times := [seconds for seconds in times if seconds is not None]:
        best = min(times)
        report.figure("loss: seconds of ours to nanoGPT's best", best)
        report.figure("loss: times shorter than nanoGPT's", theirs / best)
        seconds = number * interval * bench.tokens_per_step / fair
        note = "  its tokens at the speed of the fair nanoGPT"
        report.figure("loss: times shorter than a fair nanoGPT's", seconds / best, note)
    if bench.settings.picture:
        draw(Path(bench.settings.picture), curves)


def best_evaluation(curves: dict[str, LossCurve]) -> tuple[float, float, int]:
    """(bits per byte, seconds, number from 1) of the best evaluation of all curves."""
    return min(
        (bits, seconds, number)
        for curve in curves.values()
        for number, (seconds, bits) in enumerate(curve, start=1)
    )


def time_to(curve: LossCurve, goal: float) -> float | None:
    """Seconds until the first evaluation that reaches the goal; None: never."""
    return next((seconds for seconds, bits in curve if bits <= goal), None)


def steps_for(seconds: float, step_seconds: float) -> tuple[int, int]:
    """(steps, steps between evaluations) of a run of about `seconds`, its last step evaluated."""
    interval = max(1, round(seconds / step_seconds / EVALUATIONS))
    return interval * max(1, round(seconds / step_seconds / interval)), interval


def train_nanogpt(
    bench: BenchContext, data: Path, facts: dict, curves: dict[str, LossCurve]
) -> tuple[float, int]:
    """Trains nanoGPT at every rate and dropout, filling `curves`.

    Returns (tokens/s of the fair nanoGPT, steps between evaluations).
    """
    budget = 60 * bench.settings.minutes
    bench.nanogpt.write_data(data, facts["vocabulary"])
    compiled, step_seconds = faster_command(bench, facts["device"], budget)
    steps, interval = steps_for(budget, step_seconds)
    length = {"max_iters": steps, "lr_decay_iters": steps, "eval_interval": interval}
    length |= {"always_save_checkpoint": True, "warmup_iters": min(100, max(1, steps // 20))}
    rates = bench.settings.numbers("rate", RATES)
    for lr, dropout in itertools.product(rates, bench.dropouts):
        name = f"rate {lr:g}, dropout {dropout:g}"
        rate = {"learning_rate": lr, "min_lr": lr / 10, "dropout": dropout}
        command = bench.nanogpt_command(facts["device"], compiled, **length, **rate)
        print(f"nanoGPT, {name}", flush=True)
        points = bench.nanogpt.train(command, bench.folder / f"nanogpt-{len(curves)}")
        paths = [str(path) for _, path in points]
        scores = bench.theirs("score", data=str(data), checkpoints=paths)["bits_per_byte"]
        clocks = [clock for clock, _ in points]
        curves[name] = list(zip(clocks, scores, strict=True))
        note = f"  after {steps:,} steps, {clocks[-1]:.0f} s"
        bench.report.figure(f"loss: nanoGPT, {name}, bits per byte", scores[-1], note)
    _, result = fair_job(bench, facts)
    return result["figures"]["tokens"], interval


def train_ours(
    bench: BenchContext,
    data: Path,
    step_seconds: float,
    goal: float | None,
    curves: dict[str, LossCurve],
) -> None:
    """Trains Shuoshu for growing shares of the budget until the goal, and for the last share."""
    default = SHARES if goal is not None else (1.0,)
    shares, is_there = bench.settings.numbers("share", default), False
    for share in shares:
        if is_there and share != shares[-1]:
            continue
        steps, interval = steps_for(share * 60 * bench.settings.minutes, step_seconds)
        length = [f"--max_iters={steps}", f"--eval_interval={interval}", f"--save_interval={steps}"]
        length += ["--log_interval=1", "--sample_tokens=0"]
        for dropout in bench.dropouts:
            name = f"{share:.0%} of the time, dropout {dropout:g}"
            out = bench.folder / f"ours-{len(curves)}"
            more = (*length, f"--dropout={dropout}", f"--out_dir={out}")
            bench.command("train", *bench.train_argv(data, *more))
            val = read_meta(data)["splits"]["val"]
            curve = curve_of(RunLog(out / "log.jsonl"), val, bench.tokens_per_step)
            note = f"  after {steps:,} steps, {curve[-1][0]:.0f} s"
            bench.report.figure(f"loss: ours, {name}, bits per byte", curve[-1][1], note)
            curves[name] = curve
            is_there = is_there or (goal is not None and time_to(curve, goal) is not None)


def curve_of(log: RunLog, val: dict, tokens_per_step: int) -> LossCurve:
    """The evaluations of one of our runs over its training time, without evaluation time."""
    clocks, last = {0: 0.0}, 0
    for record in log.read("step"):
        # A skipped step has no record: its time is part of the next one's.
        tokens = (record["step"] - last) * tokens_per_step
        clocks[record["step"]] = clocks[last] + tokens / record["tokens_per_second"]
        last = record["step"]
    characters_per_byte = val["characters"] / val["bytes"]
    return [(clocks[r["step"]], r["bits_per_char"] * characters_per_byte) for r in log.read("eval")]


def draw(path: Path, curves: dict[str, dict[str, LossCurve]]) -> None:
    """Draws all curves over training time; the best of each program in full colour."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for program, colour, label in (
        ("nanogpt", "#2c6db3", "nanoGPT"),
        ("ours", "#b3362c", "Shuoshu"),
    ):
        best = min(curves[program].values(), key=lambda c: min(b for _, b in c), default=None)
        for name, curve in curves[program].items():
            style = {"label": f"{label}, {name}"} if curve is best else {"alpha": 0.3}
            axes.plot(*zip(*curve, strict=True), color=colour, marker="o", markersize=3, **style)
    axes.set(xlabel="seconds of training, without evaluations", ylabel="validation bits per byte")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    figure.savefig(path, dpi=110)
