"""The lines that a training prints: start, progress, result."""

from __future__ import annotations

import math
import shlex
import signal

import torch

from shuoshu.core.device import peak_flops
from shuoshu.core.distributed import Processes
from shuoshu.core.out_dirs import flag
from shuoshu.core.settings import TrainSettings
from shuoshu.core.terminal import ProgressBar, counted, duration, print_line
from shuoshu.training.run import Run
from shuoshu.training.schedule import RunClock, RunLength
from shuoshu.training.state import RunState


def out_of_memory_message(settings: TrainSettings, processes: Processes, rows: int) -> str:
    """The error message when the GPU's memory is too small; names the settings that help."""
    advice = "use a shorter --block_size, or a smaller model: --n_layer, --n_embd"
    if settings.batch_size > 1 and processes.world_size > 1:
        size, steps = settings.batch_size // 2, 2 * settings.gradient_accumulation_steps
        advice = (
            f"use --batch_size={size} --gradient_accumulation_steps={steps}"
            f" (the result is the same); or {advice}"
        )
    elif rows == 1:
        advice = f"even one row doesn't fit; {advice}"
    return f"out of memory in process {processes.rank}: {advice}"


# ---------------------------------------------------------------- start


def print_run_summary(run: Run, length: RunLength) -> None:
    """Model, optimizer, data, length and machine, before the first step."""
    trainer, data = run.trainer, run.data
    total, inner = trainer.raw.count_parameters()
    choices = len(data.labels) if data.votes else data.tokenizer.n_vocab
    print_line(
        f"model      {total:,} parameters, {inner:,} without embedding and head;"
        f" loss of a uniform guess {math.log(choices):.2f}"
    )
    _print_adapter(run)
    parameters: dict[float, int] = {}  # by learning rate
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            count = sum(p.numel() for p in group["params"])
            parameters[group["full_lr"]] = parameters.get(group["full_lr"], 0) + count
    groups = ", ".join(f"{count:,} parameters at {lr:g}" for lr, count in parameters.items())
    print_line(f"optimizer  {run.settings.optimizer}: {groups}")
    paraphrases = (
        f" + {len(data.train.sources) - len(data.train):,} paraphrased"
        if run.settings.paraphrases
        else ""
    )
    print_line(
        f"data       {data.folder}: {len(data.train):,} training{paraphrases} and"
        f" {len(data.val):,} validation {data.unit}, {run.steps_per_epoch:.1f} steps per epoch"
    )
    context = trainer.raw.config.max_context
    if context:
        print_line(
            f"rows       {trainer.block_size:,} tokens of the {context:,} that the model can read;"
            " --block_size sets another length"
        )
    _print_length(run, length)
    if run.settings.read_fraction:
        share = f"{run.settings.read_fraction:.0%}"
        print_line(f"reading    {share} of the run: it learns to write the texts, then the labels")
    compiled = ", compiled" if trainer.is_compiled else ""
    print_line(
        f"machine    {trainer.device}, {run.settings.dtype}, torch {torch.__version__}{compiled}"
    )


def _print_adapter(run: Run) -> None:
    """One line on what LoRA trains, if it is used."""
    if not run.trainer.adapter:
        return
    lora = run.trainer.adapter.lora
    trained = sum(tensor.numel() for tensor in run.trainer.raw.tensors().values())
    print_line(
        f"adapter    {trained:,} parameters: LoRA of rank {lora.rank} on {', '.join(lora.targets)};"
        f" the weights of {run.trainer.adapter.base} stay as they are"
    )


def _print_length(run: Run, length: RunLength) -> None:
    """One line, if min_iters makes the run longer than max_epochs."""
    epochs = run.settings.max_epochs
    if epochs is None:
        return
    epoch_steps = math.ceil(epochs * run.steps_per_epoch)
    if length.steps > epoch_steps:
        print_line(
            f"length     {counted(length.steps, 'step')} (min_iters),"
            f" {length.steps / run.steps_per_epoch:.1f} epochs;"
            f" without it (--min_iters=none) max_epochs={epochs:g} gives"
            f" {counted(epoch_steps, 'step')}"
        )


# ---------------------------------------------------------------- progress


def measure_name(measure: str) -> str:
    """The name of a measure in log.jsonl, for the terminal: val_macro_f1 is "val macro-F1"."""
    names = {"val_rouge_l": "ROUGE-L", "val_macro_f1": "val macro-F1"}
    return names.get(measure, measure.replace("_", " "))


def best_measure(state: RunState) -> tuple[str, float] | None:
    """(name, value) of what selects the model; None before the first evaluation."""
    if not state.has_best():
        return None
    return measure_name(state.best_measure), state.best_value


def log_progress(run: Run, clock: RunClock, bar: ProgressBar, loss: float) -> None:
    """Writes the mean loss of the last steps and the speed to the bar and the log."""
    state, trainer = run.state, run.trainer
    lr = trainer.optimizers[0].param_groups[0]["lr"]
    tokens_per_second = clock.recent_steps_per_second(state.step) * run.tokens_per_step
    # Only the answers' tokens are counted for questions, so their MFU would be too low.
    peak = None if run.data.task != "text" else peak_flops(trainer.device)
    mfu = None
    if peak:
        flops = tokens_per_second * trainer.raw.flops_per_token()
        mfu = flops / (peak * run.processes.world_size)
    left = clock.seconds_left(state)
    columns = [f"{'reading, ' if state.reads else ''}loss {loss:.3f}"]
    if state.plan.share is not None:
        columns.insert(0, f"{state.plan.share:.0%} of {duration(clock.length.budget)}")
    if best := best_measure(state):
        columns.append(f"best {best[0]} {best[1]:.3f}")
    unit = "texts/s" if run.data.votes else "tok/s"
    columns += [f"lr {lr:.2g}", f"{tokens_per_second:,.0f} {unit}"]
    columns += [f"MFU {mfu:.0%}"] if mfu else []
    columns += [f"{duration(left)} left"] if left is not None else []
    bar.update(state.step, state.plan.max_iters or 0, "  ".join(columns))
    if run.processes.is_rank_zero:
        epoch = round(state.step / run.steps_per_epoch, 3)
        speed = {"tokens_per_second": round(tokens_per_second)}
        speed |= {"mfu": round(mfu, 4)} if mfu else {}
        losses = {"reading_loss" if state.reads else "loss": loss}
        run.out_dir.record("step", step=state.step, epoch=epoch, **losses, lr=lr, **speed)


# ---------------------------------------------------------------- end


def print_result(run: Run, stopped: int | None, is_out_of_patience: bool) -> None:
    """How the run ended, its best model and the next command. `stopped` is a signal's number."""
    state, out_dir = run.state, run.out_dir.path
    folder = flag("out_dir", run.settings.out_dir)
    if stopped:
        print_line(
            f"stopped by {signal.Signals(stopped).name} after step {state.step:,};"
            f" everything is saved. To continue:\n  python train.py --resume {folder}"
        )
        return
    _log_end(run)
    skipped = f" ({state.skipped:,} skipped)" if state.skipped else ""
    early = (
        f", stopped early after {counted(state.worse_evals, 'evaluation')} without a better model"
        if is_out_of_patience
        else ""
    )
    print_line(
        f"done       {counted(state.step, 'step')}{skipped},"
        f" {state.step / run.steps_per_epoch:.2f} epochs in {duration(state.seconds)}{early}"
    )
    if best := best_measure(state):
        kept = "that model is"
        if state.kept_step != state.best_step:
            may_be_noise = state.best_measure == "val_rouge_l"
            why = "within noise of it" if may_be_noise else "from the lost part of the run"
            kept = f"the model of step {state.kept_step:,}, {why}, is"
        print_line(
            f"best       {best[0]} {best[1]:.4f} at step {state.best_step:,}:"
            f" {kept} in {out_dir}, the run's curves are in loss.png"
        )
    if run.data.labels:
        print_line(f"next       python eval_metrics.py {shlex.quote(run.settings.out_dir)}")
    else:
        print_line(f'next       python sample.py {folder} --start="…"')


def _log_end(run: Run) -> None:
    state = run.state
    best = {}
    if state.has_best():
        best = {state.best_measure.replace("val", "best"): state.best_value}
    run.out_dir.record(
        "end",
        step=state.step,
        best_step=state.best_step,
        **best,
        kept_step=state.kept_step,
        seconds=round(state.seconds, 2),
    )
