"""Stands in for the trainings and measurements of an experiment."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from shuoshu.sft.dataset import QuestionDataset

FIGURES = {"accuracy": 0.5, "linear_accuracy": 0.75, "macro_f1": 0.5, "majority_accuracy": 0.5}


class StubCommands:
    """In the place of run_child: a training ends at once, a measurement gives fixed figures."""

    def __init__(self, figures: Callable[[Path], dict] = lambda model: FIGURES) -> None:
        self.figures, self.words = figures, []
        self.fails: dict[int, BaseException] = {}  # by the number of the call

    def __call__(self, words: list[str], log: Path) -> None:
        self.words.append(words)
        if error := self.fails.get(len(self.words)):
            raise error
        options = dict(word[2:].split("=", 1) for word in words if "=" in word)
        if words[0] == "train.py":
            model = Path(options["out_dir"])
            model.mkdir(exist_ok=True)
            (model / "log.jsonl").write_text('{"kind": "end"}\n', encoding="utf-8")
            return
        model, n_test = Path(words[1]), len(QuestionDataset(Path(options["data"]), "test"))
        measures = {name: {"value": value} for name, value in self.figures(model).items()}
        content = {"measures": {"test": measures}, "compare": []}
        (model / "eval.json").write_text(json.dumps(content), encoding="utf-8")
        # The model is right on the first half of the rows, the linear model on three quarters.
        rows = [
            {
                "reference": "好",
                "probabilities": {"好": 0.9 if n < n_test / 2 else 0.1, "差": 0.5},
                "linear_probabilities": {"好": 1.0 if n < n_test * 3 / 4 else 0.1, "差": 0.5},
            }
            for n in range(n_test)
        ]
        lines = [json.dumps(row) + "\n" for row in rows]
        (model / "eval_answers.jsonl").write_text("".join(lines), encoding="utf-8")
        (model / "report.html").write_text("", encoding="utf-8")

    @property
    def scripts(self) -> list[str]:
        return [words[0] for words in self.words]
