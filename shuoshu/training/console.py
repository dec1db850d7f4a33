"""What the user reads of a training: its beginning, progress and end, and the dry run."""

from __future__ import annotations

import math
import shlex
import signal
import time

from shuoshu.core.device import peak_flops, peak_memory, synchronize
from shuoshu.core.distributed import Processes
from shuoshu.core.files import format_bytes
from shuoshu.core.settings import TrainSettings
from shuoshu.core.terminal import Progress, duration, print_line
from shuoshu.training import checkpoints
from shuoshu.training.run import Run
from shuoshu.training.schedule import RunClock
from shuoshu.training.step import train_step


def out_of_memory(settings: TrainSettings, processes: Processes, rows: int) -> str:
    """What to turn when the GPU's memory is not enough."""
    halve = f"--batch_size={settings.batch_size // 2} --gradient_accumulation_steps={2 * settings.gradient_accumulation_steps} (the same training); "
    return (
        f"out of memory in process {processes.rank}: "
        + (
            halve
            if settings.batch_size > 1 and processes.world > 1
            else "even one row at a time is too much; "
            if rows == 1
            else ""
        )
        + "else a shorter --block_size, or a smaller model: --n_layer, --n_embd"
    )


# ---------------------------------------------------------------- what the user reads


def print_run_summary(run: Run, pace: RunClock) -> None:
    total, inner = run.raw.count_parameters()
    guess = math.log(run.tokenizer.n_vocab)
    rates: dict[float, int] = {}
    for group in (group for optimizer in run.optimizers for group in optimizer.param_groups):
        rates[group["full_lr"]] = rates.get(group["full_lr"], 0) + sum(
            p.numel() for p in group["params"]
        )
    compiled = ", compiled" if run.machine["compiled"] else ""
    print_line(
        f"model      {total:,} parameters, {inner:,} of them outside embedding and head; a blind guess would have a loss of {guess:.2f}"
    )
    print_line(
        f"optimiser  {run.settings.optimizer}: "
        + ", ".join(f"{count:,} parameters at {rate:g}" for rate, count in rates.items())
    )
    unit = "rows" if run.task == "questions" else "tokens"
    more = (
        f" and {len(run.data.numbers) - len(run.data):,} reworded"
        if run.settings.paraphrases
        else ""
    )
    sizes = f"{len(run.data):,} training{more} and {len(run.val):,} validation {unit}"
    print_line(f"data       {run.data.folder}: {sizes}, {run.steps_per_epoch:.1f} steps an epoch")
    epochs = run.settings.max_epochs
    if epochs is not None and pace.steps > (fewer := math.ceil(epochs * run.steps_per_epoch)):
        told = f"{pace.steps:,} steps, {pace.steps / run.steps_per_epoch:.1f} epochs, since min_iters says so"
        print_line(
            f"length     {told}; max_epochs={epochs:g} alone (--min_iters=none) would be {fewer:,} steps"
        )
    print_line(
        f"machine    {run.device}, {run.settings.dtype}, torch {run.machine['torch']}{compiled}"
    )


def log_progress(run: Run, pace: RunClock, bar: Progress, loss: float) -> None:
    """The loss of the last steps and the speed, to the bar and the log."""
    state = run.state
    lr = run.optimizers[0].param_groups[0]["lr"]
    rate = pace.recent_steps_per_second(state.step) * run.tokens_per_step
    peak = (
        None if run.task == "questions" else peak_flops(run.device)
    )  # of questions only a part of the work is counted
    mfu = rate * run.raw.flops_per_token() / (peak * run.processes.world) if peak else None
    left = pace.seconds_left(state)
    told = [f"loss {loss:.3f}", f"lr {lr:.2g}", f"{rate:,.0f} tok/s"]
    told[1:1] = [f"best val {abs(state.best):.3f}"] if state.best is not None else []
    told += [f"MFU {mfu:.0%}"] if mfu else []
    told += [f"{duration(left)} left"] if left is not None else []
    bar.update(state.step, state.plan.max_iters if state.plan else 0, "  ".join(told))
    if run.processes.is_rank_zero:
        epoch = round(state.step / run.steps_per_epoch, 3)
        speed = {"tokens_per_second": round(rate)} | ({"mfu": round(mfu, 4)} if mfu else {})
        run.record("step", step=state.step, epoch=epoch, loss=loss, lr=lr, **speed)


def print_result(run: Run, stopped: int | None, out_of_patience: bool) -> None:
    state, settings = run.state, run.settings
    if stopped:
        again = f"python train.py --resume {shlex.quote(f'--out_dir={settings.out_dir}')}"
        print_line(
            f"stopped by {signal.Signals(stopped).name} after step {state.step:,}; everything is saved. Go on with\n  {again}"
        )
        return
    early = (
        f", stopped early after {state.worse_evals} evaluations without a better one"
        if out_of_patience
        else ""
    )
    best = (
        {}
        if state.best is None
        else {"best_rouge_l": -state.best}
        if run.selects_by_answers
        else {"best_loss": state.best}
    )
    run.record(
        "end",
        step=state.step,
        best_step=state.best_step,
        **best,
        kept_step=state.kept_step,
        seconds=round(state.seconds, 2),
    )
    left_out = f", {state.skipped:,} of them left out" if state.skipped else ""
    print_line(
        f"done       {state.step:,} steps{left_out}, {state.step / run.steps_per_epoch:.2f} epochs in {duration(state.seconds)}{early}"
    )
    for name, value in best.items():
        what = name.removeprefix("best_").replace("rouge_l", "ROUGE-L")
        kept = (
            "that model"
            if state.kept_step == state.best_step
            else f"that of step {state.kept_step:,}, as good but for chance,"
        )
        print_line(
            f"best       val {what} {value:.4f} at step {state.best_step:,}: {kept} is in {run.out_dir}, its curve in loss.png"
        )
    print_line(
        f'next       python sample.py {shlex.quote(f"--out_dir={settings.out_dir}")} --start="…"'
    )


def dry_run(run: Run) -> int:
    """Size, memory, time and disk, measured on a few real steps; writes nothing."""
    run.raw.train()
    seconds = []
    for _ in range(8):
        began = time.perf_counter()
        train_step(run)
        synchronize(run.device)
        seconds.append(time.perf_counter() - began)
    per_step = sorted(seconds[3:])[2]
    steps = RunClock(run.settings, run.steps_per_epoch, run.processes, run.device).steps_at(
        per_step
    )
    total, inner = run.raw.count_parameters()
    if run.processes.is_rank_zero:
        rows = f"{run.rows_per_step} rows, {run.tokens_per_step:,.0f} trained tokens"
        print(
            f"parameters   {total:,}, {inner:,} of them outside embedding and head; vocabulary {run.raw.config.vocab_size:,}"
        )
        print(
            f"step         {rows} in {per_step:.3f} s, {run.tokens_per_step / per_step:,.0f} tokens/s"
        )
        print(
            f"run          {steps:,} steps, {steps / run.steps_per_epoch:.2f} epochs, {duration(steps * per_step)} and the evaluations"
        )
        print(
            f"memory       {format_bytes(peak_memory(run.device))} at the peak, on {run.device} in {run.settings.dtype}"
        )
        print(
            f"disk         {format_bytes(run.bytes_per_checkpoint())} a checkpoint, {checkpoints.KEPT_CHECKPOINTS} are kept; {format_bytes(4 * total)} the model"
        )
    return 0
