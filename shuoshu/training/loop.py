"""The training loop: steps, evaluations and checkpoints until the run ends."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from shuoshu.answering.knowledge import is_current
from shuoshu.core.device import setup_process
from shuoshu.core.distributed import Processes, StopFlag
from shuoshu.core.errors import UserError
from shuoshu.core.files import Lock, error_reason
from shuoshu.core.out_dirs import weights_path
from shuoshu.core.settings import TrainSettings
from shuoshu.core.terminal import ProgressBar, duration, print_line
from shuoshu.evaluation.model_knowledge import describe_knowledge, fit_knowledge
from shuoshu.generation.chat_model import ChatModel
from shuoshu.models.weights import load_model
from shuoshu.training.console import (
    log_progress,
    out_of_memory_message,
    print_result,
    print_run_summary,
)
from shuoshu.training.data import RunData
from shuoshu.training.dry_run import dry_run
from shuoshu.training.run import Run, build_run
from shuoshu.training.schedule import RunClock, RunLength
from shuoshu.training.state import RunState
from shuoshu.training.step import SkippedSteps, train_step
from shuoshu.training.trainer import Trainer
from shuoshu.training.validate import evaluate_run

TakeStep = Callable[[Trainer, RunData, RunState, SkippedSteps], Tensor]  # returns the loss


def train(settings: TrainSettings, draws: bool = True, take_step: TakeStep = train_step) -> int:
    """Runs the training that the settings describe; returns the exit code.

    `draws=False` leaves loss.png out. Tests pass a `take_step` that fails or changes something.
    """
    processes = Processes()
    device = setup_process(settings.device, settings.threads, processes.local_rank, tf32=True)
    start_processes(processes, device)
    run, failed = None, True
    try:
        with Lock(Path(settings.out_dir)) as lock:
            run = build_run(settings, processes, device, lock, draws)
            code = dry_run(run) if settings.dry_run else training_loop(run, take_step)
            if not code and not settings.dry_run and processes.is_rank_zero:
                prepare_answers(run)
        failed = False
        return code
    except torch.OutOfMemoryError as error:
        rows = run.trainer.micro_rows if run else settings.batch_size
        raise UserError(out_of_memory_message(settings, processes, rows)) from error
    except BrokenPipeError:  # the reader of our output closed the pipe
        if run and run.out_dir.saved_step is not None:
            save_or_fail(run)
        raise
    except RuntimeError as error:
        if not processes.is_lost_peer(error):
            raise
        raise UserError(
            f"process {processes.rank}: another process of this run ended; see its own message."
            " The same command with --resume continues from the newest checkpoint"
        ) from error
    finally:
        del run  # the model refers to the process group, which must be free before it is stopped
        processes.stop(failed)


def start_processes(processes: Processes, device: torch.device) -> None:
    """Joins the process group; UserError if the processes can't find each other."""
    try:
        processes.start(device)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the {processes.world_size} processes of this run can't find each other ({error}):"
            " start them with torchrun, as README shows"
        ) from None


class RecentLoss:
    """The mean loss since the last log line. The sum stays on the device until it is read."""

    def __init__(self, device: torch.device) -> None:
        self._sum = torch.zeros((), device=device)
        self._steps = 0

    def add(self, loss: Tensor) -> None:
        self._sum, self._steps = self._sum + loss, self._steps + 1

    def drop(self, skipped: int) -> None:
        """Takes skipped steps out of the mean: each of them added a loss of 0."""
        self._steps -= skipped

    def take(self) -> float | None:
        """The mean, or None if there was no step. Starts a new mean."""
        mean = self._sum.item() / self._steps if self._steps else None
        self._sum, self._steps = torch.zeros_like(self._sum), 0
        return mean


def training_loop(run: Run, take_step: TakeStep) -> int:
    """Trains until the plan ends, a signal comes or patience runs out; returns the exit code."""
    state, trainer, processes = run.state, run.trainer, run.processes
    length = RunLength(run.settings, run.steps_per_epoch)
    processes.on_rank_zero(lambda: run.out_dir.open(trainer, run.data, state))
    if processes.is_rank_zero:
        print_run_summary(run, length)
    clock = RunClock(length, state, trainer)
    skips = SkippedSteps(trainer, run.data, state, run.out_dir)
    recent = RecentLoss(trainer.device)
    bar = ProgressBar(length.steps or 0, state.step, show=processes.is_rank_zero)
    trainer.raw.train()
    with StopFlag() as stop:
        while True:
            is_last = state.is_finished()
            evaluates, saves = due_work(run, clock)
            if evaluates or saves:
                recent.drop(skips.collect(bar.say))
                pause_for_evaluation(run, clock, bar.say, stop, evaluates, saves)
            signal = processes.any_signal(stop.raised)
            if is_last and state.evaluated == state.step:
                signal = None  # the signal came too late: the run is finished
            patience = run.settings.patience
            is_out_of_patience = (
                not is_last and patience is not None and state.worse_evals >= patience
            )
            if is_last or signal or is_out_of_patience:
                break
            read_before = state.reads
            loss = take_step(trainer, run.data, state, skips)
            if state.reads == read_before:
                recent.add(loss)
            else:  # no mean of the losses of texts and of labels
                skips.collect(bar.say)
                recent = RecentLoss(trainer.device)
                recent.add(loss)
                recent.drop(1 if state.skipped_in_row else 0)
            state.step += 1
            if clock.is_due(state):
                recent.drop(skips.collect(bar.say))
                clock.read(state)
            logs = state.step % run.settings.log_interval == 0
            if logs and (loss := recent.take()) is not None:
                log_progress(run, clock, bar, loss)
        skips.collect(bar.say)
        if run.out_dir.saved_step != state.step:
            clock.read(state)
            save_or_fail(run)
    bar.close()
    if processes.is_rank_zero:
        run.out_dir.finish_pictures()
        print_result(run, signal, is_out_of_patience)
    return 128 + signal if signal else 0


def prepare_answers(run: Run) -> None:
    """Fits how the kept model's answers are chosen, after a run on questions; prints what came.

    The run is finished and saved: a failure here is a line, not an error.
    """
    out_dir = run.out_dir.path
    if run.data.task != "questions" or not weights_path(out_dir) or is_current(out_dir):
        return
    try:
        model = ChatModel(load_model(out_dir, run.trainer.device))
        fit = fit_knowledge(out_dir, model, run.trainer.answer_rows)
    except (UserError, OSError) as error:
        print_not_prepared(error_reason(error), out_dir)
    except (MemoryError, torch.OutOfMemoryError):
        print_not_prepared("out of memory", out_dir)
    except KeyboardInterrupt:
        print_not_prepared("interrupted", out_dir)
        raise
    else:
        if fit:
            print_line(f"answers    {describe_knowledge(fit)}")


def print_not_prepared(reason: str, out_dir: Path) -> None:
    command = shlex.join(["python", "eval_metrics.py", str(out_dir)])
    print_line(f"answers    not prepared: {reason}. The run is saved; once more:\n  {command}")


def due_work(run: Run, clock: RunClock) -> tuple[bool, bool]:
    """Whether an evaluation and whether a checkpoint is due before the next step."""
    state = run.state
    is_last, is_first = state.is_finished(), state.step == 0
    evaluates = is_last or is_first or clock.is_evaluation_due(state)
    saves = not is_first and (evaluates and not run.settings.save_interval)
    saves = is_last or saves or (not is_first and clock.is_save_due(state))
    # A resumed run may begin at a step that is already evaluated and saved.
    # While the model reads texts, it knows nothing of their labels.
    evaluates = evaluates and state.evaluated != state.step and not state.reads
    saves = saves and (evaluates or run.out_dir.saved_step != state.step)
    return evaluates, saves


def pause_for_evaluation(
    run: Run,
    clock: RunClock,
    say: Callable[[str], None],
    stop: StopFlag,
    evaluates: bool,
    saves: bool,
) -> None:
    """Evaluates the model and saves a checkpoint, as due."""
    state = run.state
    with clock.pause(state, evaluates):
        if state.step == 0 and run.out_dir.saved_step is None:
            save_or_fail(run)  # from now on, a run killed at any moment can be resumed
        if evaluates:
            evaluate_run(run, clock, say, stop)
        clock.read(state)
        if not evaluates or state.evaluated == state.step:  # else a signal stopped the evaluation
            state.plan.paused_share = state.plan.share
        # Weights whose last step was skipped may be bad: they must not replace good checkpoints.
        if saves and not state.skipped_in_row:
            with run.out_dir.warn_on_write_error(f"the checkpoint of step {state.step:,}", say):
                run.save()
    clock.read(state)
    if state.step == 0 and run.settings.eval_interval and not clock.fits_evaluation(state):
        say(
            f"an evaluation takes {duration(state.pause_seconds)}: max_minutes leaves no time for"
            " one between the first and the last"
        )


def save_or_fail(run: Run) -> None:
    """Saves a checkpoint that the run can't continue without; UserError if it can't be written."""
    try:
        run.save()
    except OSError as error:
        saved_step = run.out_dir.saved_step
        intact = (
            ""
            if saved_step is None
            else f"; the checkpoint of step {saved_step:,} is intact,"
            " --resume continues from it once the disk can be written again"
        )
        raise UserError(
            f"step {run.state.step:,} can't be saved in {run.out_dir.path}:"
            f" {error_reason(error)}{intact}"
        ) from None
