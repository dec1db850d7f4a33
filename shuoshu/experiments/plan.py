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
from shuoshu.text.dataset import read_meta

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
        """The words after `python`; the cell's data must be there."""
        words = ["train.py", *base_arguments(self.settings)]
        if self.base is None or self.settings.block_size:  # else the model's own
            words.append(f"--block_size={read_meta(cell.data)['block_size']}")
        words += shlex.split(self.settings.train_args)
        folders = [f"--dataset={dataset_name(cell.data)}", f"--out_dir={cell.model}"]
        return [*words, *folders, "--resume"]

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
    evaluation = parse_arguments(EvalSettings, "eval_args", settings.eval_args)
    words = base_arguments(settings)
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


def base_arguments(settings: ExperimentSettings) -> list[str]:
    """The config file for train.py and the model to start from."""
    return [settings.config, *([f"--init_from={settings.init_from}"] if settings.init_from else [])]


def parse_arguments(cls: type, name: str, text: str, first: Sequence[str] = ()) -> typing.Any:
    """The settings of `cls` in the words `first` and in `text`, the value of the setting `name`.

    Raises UserError if a setting is wrong or one that the experiment chooses itself.
    """
    words = shlex.split(text)
    flags, _, _ = Schema(cls).split(words, [])
    if own := [key for key in OWN_SETTINGS if key in flags]:
        raise UserError(f"{name}={text}: the experiment chooses {own[0]} itself")
    try:
        return parse(cls, [*first, *words], "")
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _defining(settings: Settings, cls: type) -> dict:
    """The settings of `cls` on which a result depends, as JSON gives them back."""
    names = [field.name for field in fields(cls) if field.name not in NOT_DEFINING]
    return json.loads(json.dumps({name: getattr(settings, name) for name in names}))


def _make_cells(
    settings: ExperimentSettings, folder: Path, definition: dict
) -> Iterator[ExperimentCell]:
    digits = len(str(settings.folds))
    for fold in range(1, settings.folds + 1):
        for number, question in enumerate(settings.question or (None,), 1):
            place = folder / f"prompt-{number}" / f"fold-{fold:0{digits}}"
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
        if cell.is_measured() and (
            change := _first_change(cell.saved_definition(), cell.definition)
        ):
            raise UserError(f"{folder} holds results of another experiment ({change}): {another}")


def _first_change(before: dict | None, now: dict) -> str | None:
    """What differs first between two definitions; None if nothing does."""
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
    return None
