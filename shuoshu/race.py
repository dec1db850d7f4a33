"""Loss against time: the peer at its best rate for a budget, then ours until it is as good; one evaluator for both."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

from shuoshu.batches import read_meta
from shuoshu.commandline import UserError
from shuoshu.contests import Bench
from shuoshu.report import Log
from shuoshu.yardstick import short

RATES = (0.0006, 0.002, 0.006)  # of the peer: AdamW's, from large models' to small ones'
SHARES = (0.1, 0.2, 0.4, 1.0)  # of the budget that ours is given, one after the other
POINTS = 12  # evaluations of a training
COMPILING = 30.0  # seconds that are lost to it on a CPU, about
Points = list[tuple[float, float]]  # seconds of training, bits per byte


def loss(bench: Bench) -> None:
    """Time to the peer's final loss, and the best loss of each within its budget."""
    data, settings, ledger = bench.prepared(), bench.settings, bench.ledger
    budget, curves = 60 * settings.minutes, {}
    target = None
    if bench.peer:
        curves |= of_peer(bench, data, budget)
        peer = min(curves, key=lambda name: curves[name][-1][1])
        target = curves[peer][-1][1]
        ledger.figure("loss: bits per byte of the peer at its end", target, f"  {peer}, {curves[peer][-1][0]:.0f} s")
    mine = of_ours(bench, data, budget, target)
    ledger.content["curves"] = curves | mine
    for who, its in (("peer", curves), ("ours", mine)):
        if its:
            best = min((bits, name) for name, points in its.items() for _, bits in points)
            ledger.figure(f"loss: best bits per byte of {who}", best[0], f"  {best[1]}")
    if target is not None:
        times = {name: when for name, points in mine.items() if (when := reached(points, target)) is not None}
        if times:
            name = min(times, key=times.get)
            ledger.figure("loss: seconds of ours to the peer's loss", times[name], f"  {name}")
            ledger.figure("loss: times shorter than the peer", curves[peer][-1][0] / times[name])
        else:
            print("ours did not reach the peer's loss")
    if settings.picture:
        draw(Path(settings.picture), curves, mine)


def reached(points: Points, target: float) -> float | None:
    """The time at which a curve first meets the target, on a straight line between evaluations; none: never."""
    if points[0][1] <= target:
        return points[0][0]
    for (t0, b0), (t1, b1) in itertools.pairwise(points):
        if b1 <= target:
            return t0 + (t1 - t0) * (b0 - target) / (b0 - b1)
    return None


def steps_in(seconds: float, step_seconds: float) -> tuple[int, int]:
    """(steps, steps between evaluations) of a training that lasts so long, the last step evaluated."""
    every = max(1, round(seconds / step_seconds / POINTS))
    return every * max(1, round(seconds / step_seconds / every)), every


def of_peer(bench: Bench, data: Path, budget: float) -> dict[str, Points]:
    """Its own train.py at every rate and dropout; each checkpoint scored by our evaluator."""
    settings, peer, curves = bench.settings, bench.peer, {}
    peer.take_data(data, math.ceil(read_meta(data)["vocab_size"] / 64) * 64)
    compiled, step_seconds = faster(bench, budget)
    steps, every = steps_in(budget, step_seconds)
    scorer = bench.worker("score", peer=True, data=str(data))
    for number, (rate, dropout) in enumerate(itertools.product(settings.numbers("rate", RATES), bench.dropouts)):
        name, warm_up = f"rate {rate:g}, dropout {dropout:g}", min(100, max(1, steps // 20))
        own = {"learning_rate": rate, "min_lr": rate / 10, "warmup_iters": warm_up, "max_iters": steps, "lr_decay_iters": steps, "eval_interval": every}
        command = bench.peer_words(compiled, **own, dropout=dropout)
        trained = peer.train(command, "out", bench.folder / f"peer-{number}", lambda told, name=name: print(f"peer, {name}: {told}", flush=True))
        curves[name] = [(clock, scorer.ask(checkpoint=str(path))["bits_per_byte"]) for clock, path in trained.points]
        bench.ledger.figure(f"loss: bits per byte of the peer, {name}", curves[name][-1][1], f"  after {steps} steps, {trained.points[-1][0]:.0f} s")
    scorer.close()
    return curves


def faster(bench: Bench, budget: float) -> tuple[bool, float]:
    """Whether the peer does more steps in its budget when it is compiled; seconds of a step."""
    ledger, seconds = bench.ledger, bench.settings.seconds
    found = {False: bench.peer.lap(bench.peer_words(False), seconds)}
    try:
        found[True] = bench.peer.lap(bench.peer_words(True), seconds)
    except UserError as error:
        print(f"compiled, the peer doesn't run here: {str(error)[-200:]}")
    done = {compiled: (budget - COMPILING * compiled) / step for compiled, step in found.items()}
    best = max(done, key=done.get)
    ledger.facts(
        "peer", {("compiled" if c else "eager"): f"{short(1000 * s)} ms a step" for c, s in found.items()} | {"taken": "compiled" if best else "eager"}
    )
    return best, found[best]


def of_ours(bench: Bench, data: Path, budget: float, target: float | None) -> dict[str, Points]:
    """train.py for growing shares of the budget, until one ends below the target; all of them at every dropout if there is more than one."""
    settings, curves = bench.settings, {}
    worker = bench.worker("train", words=bench.words(data), pad_to=None)
    step_seconds = bench.tokens_per_step() / worker.ask(seconds=settings.seconds)["rate"]
    worker.close()
    shares = settings.numbers("share", SHARES) if target is not None else (1.0,)
    for share, dropout in itertools.product(shares, bench.dropouts):
        name = f"{share:g} of the budget, dropout {dropout:g}"
        steps, every = steps_in(share * budget, step_seconds)
        out = bench.folder / f"ours-{len(curves)}"
        length = [f"--max_iters={steps}", f"--eval_interval={every}", "--save_interval=1000000000", "--log_interval=1", "--sample_tokens=0"]
        bench.run("train", *bench.words(data, *length, f"--dropout={dropout}", f"--out_dir={out}"))
        curves[name] = from_log(Log(out / "log.jsonl"), data, bench.tokens_per_step())
        bench.ledger.figure(f"loss: bits per byte of ours, {name}", curves[name][-1][1], f"  after {steps} steps, {curves[name][-1][0]:.0f} s")
        if target is not None and len(bench.dropouts) == 1 and curves[name][-1][1] <= target:
            break
    return curves


def from_log(log: Log, data: Path, tokens_per_step: int) -> Points:
    """A run's evaluations over the time of its steps alone, as the peer's are."""
    val = read_meta(data)["splits"]["val"]
    clock, clocks = 0.0, {0: 0.0}
    for record in log.read("step"):
        clock += tokens_per_step / record["tokens_per_second"]
        clocks[record["step"]] = clock
    return [(clocks[r["step"]], r["bits_per_char"] * val["characters"] / val["bytes"]) for r in log.read("eval")]


def draw(path: Path, peer: dict[str, Points], ours: dict[str, Points]) -> None:
    """Both against training time; each one's best in full colour."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for curves, colour, who in ((peer, "#2c6db3", "nanoGPT"), (ours, "#b3362c", "Shuoshu")):
        best = min(curves, key=lambda name: curves[name][-1][1], default=None)
        for name, points in curves.items():
            style = {"alpha": 1.0, "label": f"{who}, {name}"} if name == best else {"alpha": 0.3}
            axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3, **style)
    axes.set_xlabel("seconds of training, evaluations left out")
    axes.set_ylabel("validation bits per byte")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    figure.savefig(path, dpi=110)
