"""Settings of experiment.py: those of prepare_sft.py, but with several prompts, and its own."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import ClassVar

from shuoshu.core.command_settings import PrepareSftSettings
from shuoshu.core.schema import setting


@dataclass
class ExperimentSettings(PrepareSftSettings):
    """experiment"""

    REPLACED_BY: ClassVar[dict[str, str]] = {
        "fold": "every fold is measured in turn",
        "test_fraction": "--folds=5 makes a fifth of the rows the test of each fold",
        "show": "prepare_sft.py shows rows",
        "passages": "labels are not read from a book",
        "book": "labels are not read from a book",
        "dataset": "the table is prepared for each fold",
        "out_dir": "--out is the folder of the experiment",
    }
    # Settings of prepare_sft.py that an experiment chooses itself.
    fold: ClassVar[int] = 1
    test_fraction: ClassVar[float] = 0.1
    show: ClassVar[int] = 0
    passages: ClassVar[int] = 0
    book: ClassVar[tuple[str, ...]] = ()

    question: tuple[str, ...] = setting(
        (), 'template that makes the question: "{review}"; repeatable: the prompts are compared'
    )
    folds: int = setting(
        5,
        "parts of the table; each one is the test of a model that is trained on the others",
        low=2,
    )
    out: str | None = setting(
        None, "folder of the runs and results (none: experiments/<stem of the first input>)"
    )
    config: str = setting("config/labels.py", "config file of the trainings")
    init_from: str | None = setting(
        None,
        "folder of the model to start from; it is measured before training, too (none: the one of"
        " the config file)",
    )
    train_args: str = setting("", 'more settings for train.py: "--max_epochs=3 --n_layer=2"')
    eval_args: str = setting("", 'more settings for eval_metrics.py: "--batch_size=16"')
    keep_models: bool = setting(False, "keep the model and the data of each fold")

    def problems(self) -> list[str]:
        problems = []
        for name in ("train_args", "eval_args"):
            try:
                shlex.split(getattr(self, name))
            except ValueError as error:
                problems.append(f"{name}={getattr(self, name)}: {str(error).lower()}")
        if repeated := [text for text in self.question if self.question.count(text) > 1]:
            problems.append(f"question={repeated[0]}: it is there twice")
        return problems
