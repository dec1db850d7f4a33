"""The runs of an experiment: one cell for each prompt and fold, with everything that defines it."""

from __future__ import annotations

import json
import shlex
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from shuoshu.core.cli import parse
from shuoshu.core.command_settings import EvalSettings, PrepareSftSettings
from shuoshu.core.errors import UserError
from shuoshu.core.files import read_json, sha256_of, write_atomically, write_synced_text
from shuoshu.core.out_dirs import dataset_name, is_unused, require_model, weights_path
from shuoshu.core.run_log import RunLog
from shuoshu.core.schema import Schema, Settings
from shuoshu.core.settings import TrainSettings
from shuoshu.experiments.settings import ExperimentSettings
from shuoshu.sft.question_files import find_question_files

EVAL_FILES = ("eval_answers.jsonl", "report.html", "eval.json")  # eval.json shows: all are there
# Settings of train.py and eval_metrics.py that the experiment chooses itself.
OWN_SETTINGS = ("dataset", "out_dir", "resume", "overwrite", "dry_run", "data", "split", "compare")
# Settings on which no result depends, or whose files are compared instead.
NOT_DEFINING = {*OWN_SETTINGS, "question", "fold", "inputs", "out", "show", "configs", "out_dirs"}
NOT_DEFINING |= {"init_from", "device", "threads"}


@dataclass(frozen=True)
class ExperimentCell:
    """One prompt and one fold."""

    prompt: int  # number from 1
    question: str | None  # template; None: known columns
    fold: int  # number from 1
    folder: Path
    definition: dict  # the settings and files on which the result depends

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def is_measured(self) -> bool:
        return (self.folder / "eval.json").is_file()

    def is_trained(self) -> bool:
        return bool(RunLog(self.model / "log.jsonl").read("end"))

    def is_same(self) -> bool:
        """Whether the folder's run has this definition."""
        return self.saved_definition() == self.definition

    def saved_definition(self) -> dict | None:
        """The definition of the run in the folder; None without a readable one."""
        try:
            saved = read_json(self.folder / "cell.json")
        except (OSError, ValueError):
            return None
        return saved if isinstance(saved, dict) else None

    def save_definition(self) -> None:
        text = json.dumps(self.definition, ensure_ascii=False, indent=1)
        write_atomically(self.folder / "cell.json", lambda path: write_synced_text(path, text))


@dataclass(frozen=True)
class ExperimentPlan:
    """All runs of an experiment."""

    settings: ExperimentSettings
    folder: Path
    base: Path | None  # folder of the model that is fine-tuned; None: random weights
    cells: list[ExperimentCell]  # fold by fold, so that the prompts can be compared early

    def preparation(self, cell: ExperimentCell) -> PrepareSftSettings:
        """The settings of prepare_sft.py."""
        values = {
            field.name: getattr(self.settings, field.name) for field in fields(PrepareSftSettings)
        }
        values |= {"question": cell.question, "fold": cell.fold, "out": str(cell.data)}
        if self.base and "tokenizer" not in self.settings.given:
            values["tokenizer"] = str(self.base)
        return PrepareSftSettings(**values)

    def train_command(self, cell: ExperimentCell) -> list[str]:
        """The words after `python`."""
        folders = [f"--dataset={dataset_name(cell.data)}", f"--out_dir={cell.model}"]
        return ["train.py", *train_arguments(self.settings), *folders, "--resume"]

    def eval_command(self, cell: ExperimentCell) -> list[str]:
        """The words after `python`."""
        words = ["eval_metrics.py", str(cell.model), f"--data={dataset_name(cell.data)}"]
        words += ["--split=test", *([f"--compare={self.base}"] if self.base else [])]
        return [*words, *shlex.split(self.settings.eval_args)]


def make_plan(settings: ExperimentSettings) -> ExperimentPlan:
    """The cells of the experiment; writes nothing.

    Raises UserError if a setting is wrong, a file or a model is missing, or the folder holds
    anything but cells of this experiment.
    """
    if not settings.inputs:
        raise UserError('name a table: python experiment.py FILE --question="…" --answer="…"')
    words = shlex.split(settings.eval_args)
    evaluation = parse_arguments(EvalSettings, "eval_args", settings.eval_args, words)
    words = train_arguments(settings)
    training = parse_arguments(TrainSettings, "train_args", settings.train_args, words)
    base = None if training.init_from == "scratch" else Path(training.init_from)
    if base:
        require_model(base)
    folder = Path(settings.out or Path("experiments") / Path(settings.inputs[0]).resolve().stem)
    definition = {
        "preparation": _defining(settings, PrepareSftSettings),
        "training": _defining(training, TrainSettings),
        "evaluation": _defining(evaluation, EvalSettings),
        "files": [sha256_of(file) for file in find_question_files(settings.inputs)],
        "base": sha256_of(weights_path(base)) if base else None,
    }
    cells = list(_make_cells(settings, folder, definition))
    _require_own_folder(folder, cells)
    return ExperimentPlan(settings, folder, base, cells)


def train_arguments(settings: ExperimentSettings) -> list[str]:
    """The config file and settings for train.py, without a cell's folders."""
    words = [settings.config]
    for name in ("init_from", "block_size"):
        if (value := getattr(settings, name)) is not None:
            words.append(f"--{name}={value}")
    return [*words, *shlex.split(settings.train_args)]


def parse_arguments(cls: type, name: str, text: str, words: Sequence[str]) -> typing.Any:
    """The settings of `cls` in `words`, among which is `text`, the value of the setting `name`.

    Raises UserError if a setting is wrong or one that the experiment chooses itself.
    """
    flags, _, _ = Schema(cls).split(shlex.split(text), [])
    if own := [key for key in OWN_SETTINGS if key in flags]:
        raise UserError(f"{name}={text}: the experiment chooses {own[0]} itself")
    try:
        return parse(cls, words, "")
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _defining(settings: Settings, cls: type) -> dict:
    """The settings of `cls` on which a result depends, as JSON gives them back."""
    names = [field.name for field in fields(cls) if field.name not in NOT_DEFINING]
    return json.loads(json.dumps({name: getattr(settings, name) for name in names}))


def _make_cells(
    settings: ExperimentSettings, folder: Path, definition: dict
) -> Iterator[ExperimentCell]:
    for fold in range(1, settings.folds + 1):
        for number, question in enumerate(settings.question or (None,), 1):
            place = folder / f"prompt-{number}" / f"fold-{fold}"
            own = {"question": question, "fold": fold}
            yield ExperimentCell(number, question, fold, place, {**own, **definition})


def _require_own_folder(folder: Path, cells: Sequence[ExperimentCell]) -> None:
    """UserError if the folder holds anything but this experiment."""
    another = "name another folder with --out"
    if is_unused(folder):
        return
    if not any((cell.folder / "cell.json").is_file() for cell in cells):
        raise UserError(f"{folder} is not empty and holds no experiment: {another}")
    for cell in cells:
        if cell.is_measured() and not cell.is_same():
            change = _first_change(cell.saved_definition(), cell.definition)
            raise UserError(f"{folder} holds results of another experiment ({change}): {another}")


def _first_change(before: dict | None, now: dict) -> str:
    """What differs first between two definitions."""
    if before is None:
        return "cell.json is damaged"
    for part, value in now.items():
        old = before.get(part)
        if isinstance(value, dict) and isinstance(old, dict):
            name = next((name for name in value if value[name] != old.get(name)), None)
            if name:
                return f"{name} was {old.get(name)}, is {value[name]}"
        elif old != value:
            what = {"files": "the input has changed", "base": "the model of init_from has changed"}
            return what.get(part, f"{part} was {old}, is {value}")
    return "of an earlier version"
