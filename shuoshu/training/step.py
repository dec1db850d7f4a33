"""One optimizer step: its micro-batches, its gradients, and whether it is skipped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from shuoshu.core.device import autocast, seed_step
from shuoshu.core.errors import UserError
from shuoshu.core.parts import even_batch_size
from shuoshu.core.terminal import print_line
from shuoshu.text.dataset import IGNORE
from shuoshu.training.data import RunData
from shuoshu.training.optimizers import set_rates, step_unless
from shuoshu.training.out_dir import OutDir
from shuoshu.training.schedule import is_reading, rate_factor
from shuoshu.training.state import RunState
from shuoshu.training.trainer import Trainer

T = TypeVar("Result")

MAX_SKIPPED_IN_A_ROW = 10  # more consecutive non-finite steps end the run
# Non-finite fp16 steps to ignore while GradScaler halves its scale from 65536 to 1.
FREE_FP16_SKIPS = 16
ROWS_IN_MESSAGE = 4  # row numbers that a message about a skipped step names
# Of the learning rates, while texts are read: they are not known by heart as soon as labels.
RATE_WHILE_READING = 10 / 3
# On a GPU, the number of trained positions is a multiple of this: few sizes of logits leave fewer
# gaps in its memory.
PAD_POSITIONS_TO = 64


def train_step(trainer: Trainer, data: RunData, state: RunState, skips: SkippedSteps) -> Tensor:
    """Does one optimizer step.

    Returns the mean loss over all ranks, left on the device; 0 if the step is skipped.
    """
    state.reads = is_reading(state, trainer.settings.read_fraction)
    return update_weights(trainer, data, state, skips)


def update_weights(trainer: Trainer, data: RunData, state: RunState, skips: SkippedSteps) -> Tensor:
    """As train_step; `state.reads` says what is trained."""
    step, settings = state.step, trainer.settings
    rate = RATE_WHILE_READING if state.reads else 1.0
    set_rates(trainer.optimizers, rate * rate_factor(step, state.plan, settings), step)
    loss = halve_batch_on_oom(
        trainer, step, lambda: accumulate_gradients(trainer, data, step, state.reads)
    )
    for optimizer in trainer.optimizers:
        trainer.scaler.unscale_(optimizer)
    max_norm = settings.grad_clip or math.inf
    norm = torch.nn.utils.clip_grad_norm_(trainer.raw.parameters(), max_norm)
    trainer.processes.sum_(loss)
    # All ranks agree on this, because they share the gradients and the loss.
    is_bad = ~torch.isfinite(norm + loss)
    step_unless(is_bad, trainer.optimizers)
    trainer.scaler.update()
    skips.record(step, is_bad)
    return loss.masked_fill(is_bad, 0)


def halve_batch_on_oom(
    trainer: Trainer, step: int, work: Callable[[], T], name: str = "micro_rows"
) -> T:
    """Returns work(). While it runs out of GPU memory, halves this size of the trainer for good.

    Raises OutOfMemoryError if it is one row, or if it is micro_rows and there are several
    processes: all of them must do the same forward passes.
    """
    while True:
        try:
            return work()
        except torch.OutOfMemoryError:
            is_shared = name == "micro_rows" and trainer.processes.world_size > 1
            if is_shared or getattr(trainer, name) == 1:
                raise
        # Outside the except block, where the exception no longer holds the failed tensors.
        trainer.raw.zero_grad(set_to_none=True)
        if trainer.device.type == "cuda":
            torch.cuda.empty_cache()
        rows = (getattr(trainer, name) + 1) // 2
        setattr(trainer, name, rows)
        change = f"each forward pass takes up to {rows} rows; the rows per step and the result"
        if name == "answer_rows":
            change = f"up to {rows} questions are answered at once; the answers"
        print_line(f"out of memory: from step {step:,} on, {change} stay the same")


def accumulate_gradients(trainer: Trainer, data: RunData, step: int, reads: bool) -> Tensor:
    """Leaves the step's gradients in the model; returns this rank's share of the mean loss."""
    processes = trainer.processes
    seed_step(trainer.settings.seed, step, processes.rank)
    total = torch.zeros((), device=trainer.device)
    for batch in micro_batches(trainer, data, step, reads):
        # DDP all-reduces the gradients once per step, with the last micro-batch.
        skips_sync = processes.world_size > 1 and not batch.is_last
        with trainer.forward.no_sync() if skips_sync else nullcontext():
            with autocast(trainer.device, trainer.dtype):
                loss = trainer.forward(*batch.inputs) / batch.count
            # DDP averages over the processes; the product makes it a sum.
            trainer.scaler.scale(loss * processes.world_size).backward()
        total += loss.detach()
    return total


@dataclass
class MicroBatch:
    """The rows of one forward pass."""

    inputs: tuple  # of the forward pass, which returns the sum of the losses of its targets
    count: int  # targets of the whole step, over all ranks
    is_last: bool  # of the step


def micro_batches(
    trainer: Trainer, data: RunData, step: int, reads: bool = False
) -> Iterator[MicroBatch]:
    """The rows of a step that this rank trains."""
    rows_to_train = data.reading if reads else data.train
    rows_per_step, block_size = data.rows_per_step, trainer.block_size
    rows_here = rows_per_step // trainer.processes.world_size
    size, seed = even_batch_size(rows_here, trainer.micro_rows), trainer.settings.seed
    first = step * rows_per_step
    count = rows_to_train.count_targets(first, rows_per_step, block_size, seed)
    first += trainer.processes.rank * rows_here
    for start in range(0, rows_here, size):
        rows = min(size, rows_here - start)
        ids, targets = rows_to_train.rows(first + start, rows, block_size, seed)
        if data.votes and not reads:
            inputs = to_device(ids, trainer.device), to_device(targets, trainer.device)
        else:
            inputs = question_inputs(ids, targets, trainer.device)
        yield MicroBatch(inputs, count, is_last=start + size >= rows_here)


def question_inputs(ids: np.ndarray, targets: np.ndarray, device: torch.device) -> tuple:
    """The arguments of GPT.forward for the sum of the losses."""
    targets, positions = select_trained(targets, device)
    if positions is not None:
        positions = to_device(positions, device)
    return to_device(ids, device), to_device(targets, device), "sum", positions


def select_trained(
    targets: np.ndarray, device: torch.device
) -> tuple[np.ndarray, np.ndarray | None]:
    """(targets (N), their positions among all (N)), or (targets, None) if all are trained.

    They are found here, where no GPU has to wait.
    """
    positions = np.flatnonzero(targets != IGNORE)
    if len(positions) == targets.size:
        return targets, None
    padding = -len(positions) % PAD_POSITIONS_TO if device.type == "cuda" else 0
    selected = np.pad(targets.flat[positions], (0, padding), constant_values=IGNORE)
    return selected, np.pad(positions, (0, padding))


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cuda":  # pinned, so that the copy overlaps with computation
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class SkippedSteps:
    """Counts and logs skipped steps: those with a non-finite loss or gradient."""

    def __init__(self, trainer: Trainer, data: RunData, state: RunState, out_dir: OutDir) -> None:
        self._trainer = trainer
        self._data = data
        self._state = state
        self._out_dir = out_dir
        self._free = FREE_FP16_SKIPS if trainer.scaler.is_enabled() else 0
        self._pending: list[tuple[int, Tensor]] = []  # flags still on the device

    def record(self, step: int, is_bad: Tensor) -> None:
        """Remembers a step's flag without waiting for the device."""
        self._pending.append((step, is_bad))

    def collect(self, say: Callable[[str], None]) -> int:
        """Reads the recorded flags, reports skipped steps and returns their number.

        UserError if too many consecutive steps were skipped.
        """
        if not self._pending:
            return 0
        state = self._state
        flags = torch.stack([flag for _, flag in self._pending]).tolist()
        steps = [step for step, _ in self._pending]
        self._pending.clear()
        for step, is_bad in zip(steps, flags, strict=True):
            state.skipped_in_row = state.skipped_in_row + 1 if is_bad else 0
            if state.skipped_in_row > self._free:
                state.skipped += 1
                self._report(step, say)
            if state.skipped_in_row >= self._free + MAX_SKIPPED_IN_A_ROW:
                raise UserError(
                    f"{state.skipped_in_row} steps in a row had a loss or a gradient that is not"
                    f" finite, the last one step {step:,}: lower --learning_rate (it is"
                    f" {self._trainer.learning_rate:g}), or look at the rows that log.jsonl names;"
                    " earlier checkpoints are intact, --resume uses them"
                )
        return sum(flags)

    def _report(self, step: int, say: Callable[[str], None]) -> None:
        """Prints and logs which rows a skipped step had."""
        if not self._trainer.processes.is_rank_zero:
            return
        data, block_size = self._data, self._trainer.block_size
        first, count = step * data.rows_per_step, data.rows_per_step
        rows = data.train.row_ids(first, count, block_size, self._trainer.settings.seed).tolist()
        what = "rows" if data.task != "text" else "rows from token"
        examples = ", ".join(f"{row:,}" for row in rows[:ROWS_IN_MESSAGE])
        examples += " …" if len(rows) > ROWS_IN_MESSAGE else ""
        say(
            f"step {step:,} skipped: its loss or gradient is not finite"
            f" ({what} {examples} of {data.folder}; log.jsonl lists all)"
        )
        self._out_dir.record("skip", step=step, rows=rows)
