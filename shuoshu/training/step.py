"""One optimiser step: its micro-batches, its gradients, and whether it counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from shuoshu.training.run import Run
from shuoshu.core.device import autocast, seed_step
from shuoshu.core.errors import UserError
from shuoshu.core.terminal import print_line
from shuoshu.training.optimizers import set_rates, step_unless
from shuoshu.training.schedule import rate_factor

Result = TypeVar("Result")

MAX_SKIPPED_IN_A_ROW = 10  # steps that don't count, one after another, end the run
FREE_FP16_SKIPS = 16  # of fp16's that are nobody's fault: halved at each, the loss scale comes down from 65536 to 1
CHECK_EVERY = 10  # steps, at most, between asking a GPU which of them counted: the answer makes the host wait for it


def train_step(run: Run) -> Tensor:
    """One optimiser step; the mean loss over all processes, 0 if the step doesn't count, left on the device."""
    step, processes = run.state.step, run.processes
    set_rates(run.optimizers, rate_factor(step, run.state.plan, run.settings), step)
    total = halve_batch_on_oom(run, lambda: gradients(run))
    for optimizer in run.optimizers:
        run.scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(run.raw.parameters(), run.settings.grad_clip or math.inf)
    processes.sum_(total)
    is_bad = ~torch.isfinite(
        norm + total
    )  # the same on all processes: they share gradients and losses
    step_unless(is_bad, run.optimizers)
    run.scaler.update()
    run.skips.record(step, is_bad)
    return total.masked_fill(is_bad, 0)


def halve_batch_on_oom(run: Run, work: Callable[[], Result]) -> Result:
    """What `work` gives. Micro-batches that don't fit into a GPU are halved for good."""
    while True:
        try:
            return work()
        except torch.OutOfMemoryError:
            if run.processes.world > 1 or run.micro_rows == 1:
                raise
        run.raw.zero_grad(set_to_none=True)
        if run.device.type == "cuda":
            torch.cuda.empty_cache()
        run.micro_rows = (run.micro_rows + 1) // 2
        print_line(
            f"out of memory: from step {run.state.step:,} on, {run.micro_rows} rows at a time, and as many a step as before: the same training"
        )


def gradients(run: Run) -> Tensor:
    """Leaves this step's gradients in the model; this process's part of the mean loss."""
    processes = run.processes
    seed_step(run.settings.seed, run.state.step, processes.rank)
    total = torch.zeros((), device=run.device)
    for ids, targets, count, is_last in micro_batches(run):
        is_quiet = processes.world > 1 and not is_last  # gradients travel once a step
        with run.forward.no_sync() if is_quiet else nullcontext():
            with autocast(run.device, run.dtype):
                loss = run.forward(ids, targets, reduction="sum") / count
            run.scaler.scale(
                loss * processes.world
            ).backward()  # DDP takes the mean of the processes, we want their sum
        total += loss.detach()
    return total


def micro_batches(run: Run) -> Iterator[tuple[Tensor, Tensor, int, bool]]:
    """This process's part of the step, on its way to the device: ids, targets, the number of targets in the whole step, whether it is the last."""
    mine, size, seed = run.rows_per_step // run.processes.world, run.micro_rows, run.settings.seed
    first = run.state.step * run.rows_per_step
    count = run.data.count_targets(first, run.rows_per_step, run.block, seed)
    first += run.processes.rank * mine
    pinned = run.device.type == "cuda"
    for start in range(0, mine, size):
        rows = run.data.rows(first + start, min(size, mine - start), run.block, seed)
        ids, targets = (torch.from_numpy(part) for part in rows)
        if pinned:
            ids, targets = ids.pin_memory(), targets.pin_memory()
        yield (
            ids.to(run.device, non_blocking=pinned),
            targets.to(run.device, non_blocking=pinned),
            count,
            start + size >= mine,
        )


class SkippedSteps:
    """The steps that don't count, since their loss or gradient was not finite: weights and optimisers stayed as they were."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._pending: list[tuple[int, Tensor]] = []

    def record(self, step: int, is_bad: Tensor) -> None:
        self._pending.append((step, is_bad))

    def collect(self, say: Callable[[str], None]) -> int:
        """Asks the device about the steps noted since this was last called, tells of those that don't count and returns their number; UserError
        if there are too many in a row."""
        if not self._pending:
            return 0
        state, free = self.run.state, FREE_FP16_SKIPS if self.run.scaler.is_enabled() else 0
        flags = torch.stack([flag for _, flag in self._pending]).tolist()
        steps = [step for step, _ in self._pending]
        self._pending.clear()
        for step, is_bad in zip(steps, flags, strict=True):
            state.skipped_in_row = state.skipped_in_row + 1 if is_bad else 0
            if state.skipped_in_row > free:
                state.skipped += 1
                self._tell(step, say)
            if state.skipped_in_row >= free + MAX_SKIPPED_IN_A_ROW:
                raise UserError(
                    f"{state.skipped_in_row} steps in a row had a loss or a gradient that is not finite, the last one step {step:,}: lower --learning_rate "
                    f"(it is {self.run.rate:g}), or look at the rows that log.jsonl names; earlier checkpoints are intact, --resume uses them"
                )
        return sum(flags)

    def _tell(self, step: int, say: Callable[[str], None]) -> None:
        run = self.run
        if not run.processes.is_rank_zero:
            return
        places = run.data.row_ids(
            step * run.rows_per_step, run.rows_per_step, run.block, run.settings.seed
        ).tolist()
        what = "rows" if run.task == "questions" else "tokens from"
        few = ", ".join(f"{place:,}" for place in places[:4]) + (" …" if len(places) > 4 else "")
        say(
            f"step {step:,} left out: its loss or gradient is not finite ({what} {few} of {run.data.folder}; all in log.jsonl)"
        )
        run.record("skip", step=step, rows=places)
