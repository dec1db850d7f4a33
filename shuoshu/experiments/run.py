"""Runs an experiment: prepares, trains and measures every cell that isn't measured yet."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from shuoshu.core.errors import UserError
from shuoshu.core.files import Lock
from shuoshu.core.out_dirs import holds_data
from shuoshu.core.terminal import counted, duration, print_line
from shuoshu.experiments.plan import EVAL_FILES, ExperimentCell, ExperimentPlan, make_plan
from shuoshu.experiments.report import terminal_report, write_results_files
from shuoshu.experiments.results import collect, read_cell
from shuoshu.experiments.settings import ExperimentSettings
from shuoshu.sft.prepare import prepare_questions
from shuoshu.sft.summary import labelling_lines, rejected_lines

RunChild = Callable[[list[str], Path], None]  # runs `python words…` with its output in a log


def run_experiment(settings: ExperimentSettings, argv: Sequence[str], run: RunChild) -> None:
    """Measures all cells, and prints and writes the results.

    Raises UserError if a setting or a file is wrong, or if a command fails; what is measured stays
    and isn't repeated.
    """
    plan = make_plan(settings)
    created = [path for path in (plan.folder, *plan.folder.parents) if not path.exists()]
    plan.folder.mkdir(parents=True, exist_ok=True)
    with Lock(plan.folder) as lock:
        take(lock, plan.folder)
        try:
            prepare_first_fold(plan)
        except UserError:
            if created:
                shutil.rmtree(created[-1])
            raise
        print_plan(plan)
        command = shlex.join(["python", "experiment.py", *argv])
        measure_cells(plan, command, run)
        results = collect(plan)
        write_results_files(plan.folder, results, command)
    print_line(f"\n{terminal_report(results)}")
    print_line(f"  written to {plan.folder}: results.md, results.json, results.png")


def take(lock: Lock, folder: Path) -> None:
    try:
        lock.take()
    except UserError:
        raise UserError(
            f"another experiment.py works in {folder}: wait for it, or name another folder with"
            " --out"
        ) from None


def print_plan(plan: ExperimentPlan) -> None:
    """What will be done, before it takes its time."""
    settings, n_done = plan.settings, sum(cell.is_measured() for cell in plan.cells)
    n_prompts = len(plan.cells) // settings.folds
    done = f", {n_done:,} of them measured already" if n_done else ""
    print_line(
        f"plan         {counted(n_prompts, 'prompt')} × {settings.folds} folds:"
        f" {counted(len(plan.cells), 'training')} with {settings.config}{done}"
    )
    kept = "are kept" if settings.keep_models else "are deleted once it is measured"
    print_line(f"folder       {plan.folder}; the model and the data of a fold {kept}")


# ---------------------------------------------------------------- one cell


def prepare_first_fold(plan: ExperimentPlan) -> None:
    """Prepares each prompt's first fold: a mistake in one of them must not come late."""
    for cell in plan.cells:
        if cell.fold == 1 and not cell.is_measured():
            prepare_cell(plan, cell)


def prepare_cell(plan: ExperimentPlan, cell: ExperimentCell) -> None:
    """Prepares the cell's data unless it is there; begins anew if the settings have changed.

    Raises UserError if the data can't be prepared or its answers aren't labels.
    """
    if not cell.is_same():
        for folder in (cell.data, cell.model):
            shutil.rmtree(folder, ignore_errors=True)
        cell.folder.mkdir(parents=True, exist_ok=True)
        cell.save_definition()
    if holds_data(cell.data):
        return
    result = prepare_questions(plan.preparation(cell))
    if not result.labels:
        shutil.rmtree(cell.data)
        raise UserError(
            f"the answers of prompt {cell.prompt} are not taken for labels: --answer must be the"
            " template of one, and --labels can name them"
        )
    if cell.fold == 1:
        read, used = result.rejected.read, len(result.rendered)
        print_line(f"prompt {cell.prompt}     {read:,} rows read, {used:,} used")
        notes = [f"note         {note}" for note in result.rejected.notes]
        for line in (*rejected_lines(result.rejected), *notes, *labelling_lines(result)):
            print_line(line)


def measure_cells(plan: ExperimentPlan, command: str, run: RunChild) -> None:
    """Measures the remaining cells, and after each writes the results so far."""
    remaining = [cell for cell in plan.cells if not cell.is_measured()]
    began = time.monotonic()
    for number, cell in enumerate(remaining, 1):
        print_line(f"prompt {cell.prompt}, fold {cell.fold} of {plan.settings.folds}: training")
        try:
            measure_cell(plan, cell, run)
        except KeyboardInterrupt:
            print_line("stopped; the same command continues here")
            raise
        write_results_files(plan.folder, collect(plan), command)
        line, seconds = f"  {cell_line(cell)}", time.monotonic() - began
        if left := len(remaining) - number:
            line += f"; about {duration(seconds / number * left)} left"
        print_line(line)


def measure_cell(plan: ExperimentPlan, cell: ExperimentCell, run: RunChild) -> None:
    """Prepares, trains and measures one cell, from where an earlier command stopped."""
    prepare_cell(plan, cell)
    if not cell.is_trained():
        run(plan.train_command(cell), cell.folder / "train.log")
    run(plan.eval_command(cell), cell.folder / "eval.log")
    shutil.copyfile(cell.model / "log.jsonl", cell.folder / "log.jsonl")
    for name in EVAL_FILES:
        (cell.model / name).replace(cell.folder / name)
    if not plan.settings.keep_models:
        for folder in (cell.model, cell.data):
            shutil.rmtree(folder)


def cell_line(cell: ExperimentCell) -> str:
    """The accuracy of all who answered."""
    measures = read_cell(cell).measures
    figures = [f"{who} {own['accuracy']:.3f}" for who, own in measures.items() if "accuracy" in own]
    return f"accuracy: {', '.join(figures)}"
