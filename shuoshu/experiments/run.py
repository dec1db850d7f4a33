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
from shuoshu.experiments.plan import EVAL_FILES, Cell, Plan, make_plan
from shuoshu.experiments.report import terminal_report, write_results_files
from shuoshu.experiments.results import collect, read_cell
from shuoshu.experiments.settings import ExperimentSettings
from shuoshu.sft.prepare import prepare_questions
from shuoshu.sft.summary import rejected_lines
from shuoshu.text.dataset import read_meta

RunChild = Callable[[list[str], Path], None]  # runs `python words…` with its output in a log


def run_experiment(settings: ExperimentSettings, argv: Sequence[str], run: RunChild) -> None:
    """Measures all cells, and prints and writes the results.

    Raises UserError if a setting or a file is wrong, or if a command fails; what is measured stays
    and isn't repeated.
    """
    plan = make_plan(settings)
    is_new = not plan.folder.exists()
    plan.folder.mkdir(parents=True, exist_ok=True)
    with Lock(plan.folder) as lock:
        lock.take()
        try:
            prepare_first_fold(plan)
        except UserError:
            if is_new:
                shutil.rmtree(plan.folder)
            raise
        print_plan(plan)
        command = shlex.join(["python", "experiment.py", *argv])
        measure_cells(plan, command, run)
        results = collect(plan)
        write_results_files(plan.folder, results, command)
    print_line(f"\n{terminal_report(results)}")
    print_line(f"  written to {plan.folder}: results.md, results.json, results.png")


def print_plan(plan: Plan) -> None:
    """What will be done, before it takes its time."""
    settings, n_done = plan.settings, sum(cell.is_measured() for cell in plan.cells)
    n_prompts = len(plan.cells) // settings.folds
    done = f", {n_done:,} of them measured already" if n_done else ""
    print_line(
        f"plan       {counted(n_prompts, 'prompt')} × {settings.folds} folds:"
        f" {counted(len(plan.cells), 'training')} with {settings.config}{done}"
    )
    kept = "are kept" if settings.keep_models else "are deleted once it is measured"
    print_line(f"folder     {plan.folder}; the model and the data of a fold {kept}")


# ---------------------------------------------------------------- one cell


def prepare_first_fold(plan: Plan) -> None:
    """Prepares each prompt's first fold and says what was left out of its data.

    Raises UserError if the data can't be prepared or isn't labelled.
    """
    for cell in plan.cells:
        if cell.fold == 1 and not cell.is_measured():
            prepare(plan, cell)
            if read_meta(cell.data)["task"] != "labels":
                raise UserError(
                    f"the answers of prompt {cell.prompt} are no labels, which are few, short and"
                    " frequent: --answer must be the template of a label"
                )


def prepare(plan: Plan, cell: Cell) -> None:
    """Prepares the cell's data unless it is there; begins anew if the settings have changed."""
    if not cell.is_same():
        for folder in (cell.data, cell.model):
            shutil.rmtree(folder, ignore_errors=True)
        cell.folder.mkdir(parents=True, exist_ok=True)
        cell.save_definition()
    if holds_data(cell.data):
        return
    result = prepare_questions(plan.preparation(cell))
    if cell.fold == 1:
        used = f"{result.rejected.read:,} rows read, {len(result.rendered):,} used"
        cut = f", {result.n_cut:,} shortened in the middle" if result.n_cut else ""
        print_line(f"prompt {cell.prompt}   {used}{cut}")
        for line in (*rejected_lines(result.rejected), *result.rejected.notes):
            print_line(f"           {line}")


def measure_cells(plan: Plan, command: str, run: RunChild) -> None:
    """Measures the remaining cells; writes the results so far after each."""
    remaining = [cell for cell in plan.cells if not cell.is_measured()]
    began = time.monotonic()
    for number, cell in enumerate(remaining, 1):
        print_line(f"prompt {cell.prompt}, fold {cell.fold} of {plan.settings.folds}: training")
        measure_cell(plan, cell, run)
        write_results_files(plan.folder, collect(plan), command)
        seconds = time.monotonic() - began
        left = seconds / number * (len(remaining) - number)
        print_line(f"  {cell_line(cell)}; {duration(seconds)} so far, about {duration(left)} left")


def measure_cell(plan: Plan, cell: Cell, run: RunChild) -> None:
    """Prepares, trains and measures one cell, from where an earlier command stopped."""
    prepare(plan, cell)
    if not cell.is_trained():
        run(plan.train_command(cell), cell.folder / "train.log")
    run(plan.eval_command(cell), cell.folder / "eval.log")
    for name in EVAL_FILES:
        (cell.model / name).replace(cell.folder / name)
    if not plan.settings.keep_models:
        for folder in (cell.model, cell.data):
            shutil.rmtree(folder)


def cell_line(cell: Cell) -> str:
    """The accuracy of all who answered."""
    measures = read_cell(cell).measures
    figures = [f"{who} {own['accuracy']:.3f}" for who, own in measures.items() if "accuracy" in own]
    return f"accuracy: {', '.join(figures)}"
