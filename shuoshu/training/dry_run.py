"""--dry_run: measures evaluations and a few steps of a run, prints them and writes no files."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from shuoshu.core.device import peak_memory, synchronize
from shuoshu.core.files import format_bytes
from shuoshu.core.terminal import counted, duration
from shuoshu.training.checkpoints import KEPT_CHECKPOINTS
from shuoshu.training.run import Run
from shuoshu.training.schedule import RunLength
from shuoshu.training.step import SkippedSteps, update_weights
from shuoshu.training.validate import measure_validation

WARM_UP_STEPS = 2  # on text; compilation and cold caches make them slow
MEASURED_STEPS = 8
WIDEST_STEPS = 3  # for the memory
MAX_EVALUATION_SECONDS = 20.0  # a longer evaluation is stopped


@dataclass
class Deadline:
    """Stops an evaluation as a signal would, once the time is over."""

    end: float

    @property
    def raised(self) -> int | None:
        return 1 if time.perf_counter() > self.end else None


def dry_run(run: Run) -> int:
    """Prints size, memory, time and disk of the run; returns the exit code."""
    length = RunLength(run.settings, run.steps_per_epoch)
    run.state.plan = length.new_plan(run.state.step)
    run.trainer.raw.train()
    evaluation_seconds = time_evaluation(run)  # it comes first, as in a run
    step_seconds = mean_step_seconds(run)
    if run.data.task != "text":
        time_evaluation(run)  # the heap of a CPU has gaps by now, so that it takes more memory
    if run.processes.is_rank_zero:
        _print_measures(run, length, step_seconds, evaluation_seconds)
    return 0


def time_evaluation(run: Run) -> float | None:
    """The seconds that an evaluation takes; None if it takes over MAX_EVALUATION_SECONDS."""
    for _ in range(2 if run.trainer.is_compiled else 1):  # the first one compiles the model
        start = time.perf_counter()
        result = measure_validation(run, Deadline(start + MAX_EVALUATION_SECONDS))
    return time.perf_counter() - start if result else None


def mean_step_seconds(run: Run) -> float:
    """The mean over the run, in whose first steps the model may read texts that it labels later."""
    warm_up, measured = choose_steps(run)
    fraction, mean = run.settings.read_fraction, 0.0
    for run.state.reads, share in ((True, fraction), (False, 1 - fraction)):
        if share:
            time_steps(run, warm_up)
            mean += share * sum(time_steps(run, measured)) / len(measured)
    return mean


def time_steps(run: Run, steps: list[int]) -> list[float]:
    """The seconds that each of these steps of the run takes."""
    skips = SkippedSteps(run.trainer, run.data, run.state, run.out_dir)
    seconds = []
    for step in steps:
        run.state.step = step
        start = time.perf_counter()
        update_weights(run.trainer, run.data, run.state, skips)
        synchronize(run.trainer.device)
        seconds.append(time.perf_counter() - start)
    return seconds


def choose_steps(run: Run) -> tuple[list[int], list[int]]:
    """Steps of the first epoch for the warm-up, and steps to measure.

    Each measured step stands for an equal part of the epoch's steps, ordered by width, so their
    mean time is that of the epoch. On questions the warm-up has the same steps, since the first
    step of a width is slow, and the widest steps of the epoch, for the memory.
    """
    count = max(1, int(run.steps_per_epoch))
    places = ((np.arange(MEASURED_STEPS) + 0.5) * count / MEASURED_STEPS).astype(int)
    if run.data.task == "text":
        measured = places.tolist()
        return measured[:WARM_UP_STEPS], measured
    rows, data = run.data.rows_per_step, run.data.train
    entries = data.entries(0, count * rows, run.settings.seed)
    by_width = np.argsort(data.lengths[entries].reshape(count, rows).max(axis=1), kind="stable")
    measured = by_width[places].tolist()
    return [*measured, *by_width[-WIDEST_STEPS:].tolist()], measured


def run_time(
    run: Run, length: RunLength, step_seconds: float, evaluation_seconds: float | None
) -> tuple[int, int, float]:
    """(steps, evaluations, seconds) of the run; without the evaluations' time if it is None."""
    pause, interval = evaluation_seconds or 0.0, run.settings.eval_interval
    parts = length.evaluation_parts(pause)
    steps = length.steps
    if steps is None:
        left = length.budget - pause * (1 if interval else parts + 1)
        steps = max(1, int(left / (step_seconds + (pause / interval if interval else 0.0))))
    evaluations = 1 + math.ceil(steps / (interval or math.ceil(steps / parts)))
    return steps, evaluations, steps * step_seconds + evaluations * pause


def _print_measures(
    run: Run, length: RunLength, step_seconds: float, evaluation_seconds: float | None
) -> None:
    trainer = run.trainer
    tokens = run.tokens_per_step
    total, inner = trainer.raw.count_parameters()
    trained = sum(tensor.numel() for tensor in trainer.raw.tensors().values())
    update = f"; {trained:,} of them are trained" if trainer.adapter else ""
    print(
        f"parameters   {total:,}, {inner:,} without embedding and head{update};"
        f" vocabulary {trainer.raw.config.vocab_size:,}"
    )
    print(
        f"step         {run.data.rows_per_step} rows, {tokens:,.0f} trained tokens"
        f" in {step_seconds:.3f} s, {tokens / step_seconds:,.0f} tokens/s"
    )
    steps, evaluations, total_seconds = run_time(run, length, step_seconds, evaluation_seconds)
    if evaluation_seconds is None:
        evaluation, more = f"over {duration(MAX_EVALUATION_SECONDS)}", "plus the evaluations"
    else:
        more = f"with {counted(evaluations, 'evaluation')}"
        evaluation = duration(evaluation_seconds)
    print(f"evaluation   {evaluation}, without samples and files")
    print(
        f"run          {counted(steps, 'step')}, {steps / run.steps_per_epoch:.2f} epochs,"
        f" {duration(total_seconds)} {more}"
    )
    memory = format_bytes(peak_memory(trainer.device))
    # Batches of many widths leave gaps in the heap of a CPU, which grows for hundreds of steps.
    grows = run.data.task != "text" and trainer.device.type == "cpu"
    more = "; a long run may take half as much again" if grows else ""
    print(f"memory       {memory} at the peak, on {trainer.device} in {run.settings.dtype}{more}")
    checkpoint = format_bytes(trainer.bytes_per_checkpoint())
    kept = "adapter" if trainer.adapter else "model"
    print(
        f"disk         {checkpoint} per checkpoint, {KEPT_CHECKPOINTS} are kept;"
        f" {format_bytes(4 * trained)} for the {kept}"
    )
