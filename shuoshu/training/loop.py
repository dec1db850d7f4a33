"""The training loop: batches in order, one step after another, evaluated and saved on the way."""

from __future__ import annotations

from pathlib import Path

import torch

from shuoshu.core.device import pick_device, tune_malloc
from shuoshu.core.distributed import Processes, StopFlag
from shuoshu.core.errors import UserError
from shuoshu.core.files import Lock, error_reason
from shuoshu.core.settings import TrainSettings
from shuoshu.core.terminal import Progress
from shuoshu.training.console import (
    dry_run,
    log_progress,
    out_of_memory,
    print_result,
    print_run_summary,
)
from shuoshu.training.run import Run
from shuoshu.training.schedule import RunClock
from shuoshu.training.step import CHECK_EVERY, train_step
from shuoshu.training.validate import evaluate


def train(settings: TrainSettings) -> int:
    """Trains as the settings say; the exit code."""
    tune_malloc()
    processes = Processes()
    device = pick_device(settings.device, processes.local_rank)
    start_processes(processes, device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what stays in fp32
    run, failed = None, True
    try:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        with Lock(Path(settings.out_dir)) as lock:
            run = Run(settings, processes, device, lock)
            code = dry_run(run) if settings.dry_run else loop(run)
        failed = False
        return code
    except torch.OutOfMemoryError as error:
        raise UserError(
            out_of_memory(settings, processes, run.micro_rows if run else settings.batch_size)
        ) from error
    except BrokenPipeError:  # who read what we print is gone
        if run and run.saved is not None:
            save_or_end(run)
        raise
    except RuntimeError as error:
        if not processes.is_lost_peer(error):
            raise
        told = "another process of this run is gone: its own message says why. The same command with --resume goes on from the newest checkpoint"
        raise UserError(f"process {processes.rank}: {told}") from error
    finally:
        del run  # and with it the last hold on the processes' group
        processes.stop(failed)


def start_processes(processes: Processes, device: torch.device) -> None:
    try:
        processes.start(device)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the {processes.world} processes of this run don't find each other ({error}): start them with torchrun, as README shows"
        ) from None


def loop(run: Run) -> int:
    """Steps until the plan, the user or the patience ends it; the exit code."""
    state, settings = run.state, run.settings
    pace = RunClock(settings, run.steps_per_epoch, run.processes, run.device)
    run.processes.on_rank_zero(run.open_out_dir)
    if run.processes.is_rank_zero:
        print_run_summary(run, pace)
    pace.begin(state)
    loss_sum, loss_steps = torch.zeros((), device=run.device), 0
    bar = Progress(
        state.plan.max_iters if state.plan else 0, state.step, show=run.processes.is_rank_zero
    )
    run.raw.train()
    with StopFlag() as stop:

        def asked_to_stop() -> int | None:
            return run.processes.any_signal(stop.raised)

        while True:
            plan = state.plan
            is_last = plan is not None and state.step >= plan.max_iters
            evaluating = (
                is_last
                or state.step == 0
                or (plan is not None and state.step % plan.eval_interval == 0)
            )
            evaluating = (
                evaluating and state.evaluated != state.step
            )  # a resumed run may begin at a step that is evaluated and saved already
            saving = is_last or (
                plan is not None and state.step > 0 and state.step % plan.save_interval == 0
            )
            saving = saving and (evaluating or run.saved != state.step)
            if evaluating or saving:
                loss_steps -= run.skips.collect(bar.say)
                with pace.pause():
                    if state.step == 0 and run.saved is None:
                        save_or_end(run)  # so that a run killed at any moment can be resumed
                    if evaluating:
                        evaluate(run, pace, bar, stop, asked_to_stop)
                    if (
                        saving and not state.skipped_in_row
                    ):  # weights that lead to nothing shall not push out those that did
                        pace.note(state)
                        with run.warn_on_write_error(
                            f"the checkpoint of step {state.step:,}", bar.say
                        ):
                            run.save()
            stopped = asked_to_stop()
            if is_last and state.evaluated == state.step:
                stopped = None  # too late: it is finished
            out_of_patience = (
                settings.patience is not None and state.worse_evals >= settings.patience
            )
            if is_last or stopped or out_of_patience:
                break
            loss_sum, loss_steps = loss_sum + train_step(run), loss_steps + 1
            state.step += 1
            state.plan = pace.plan_after(state)
            is_told = state.step % settings.log_interval == 0
            if is_told or run.device.type == "cpu" or state.step % CHECK_EVERY == 0:
                loss_steps -= run.skips.collect(bar.say)
            if is_told:
                if loss_steps:
                    log_progress(run, pace, bar, loss_sum.item() / loss_steps)
                loss_sum, loss_steps = torch.zeros_like(loss_sum), 0
        run.skips.collect(bar.say)
        if run.saved != state.step:
            pace.note(state)
            save_or_end(run)
    bar.close()
    if run.processes.is_rank_zero:
        print_result(run, stopped, out_of_patience)
    return 128 + stopped if stopped else 0


def save_or_end(run: Run) -> None:
    """A checkpoint without which there is no going on."""
    try:
        run.save()
    except OSError as error:
        intact = (
            ""
            if run.saved is None
            else f"; the checkpoint of step {run.saved:,} is intact, --resume goes on from it once the disk can be written again"
        )
        raise UserError(
            f"step {run.state.step:,} can't be saved in {run.out_dir}: {error_reason(error)}{intact}"
        ) from None
