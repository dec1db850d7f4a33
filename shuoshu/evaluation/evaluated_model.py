"""The models that eval_metrics.py measures, and the results of one split."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from shuoshu.core.command_settings import EvalSettings
from shuoshu.core.errors import UserError
from shuoshu.core.files import is_count
from shuoshu.core.out_dirs import flag
from shuoshu.core.run_log import read_settings
from shuoshu.evaluation.copies import Copies
from shuoshu.evaluation.measure_set import Measures, MeasureSet
from shuoshu.models.weights import load_model
from shuoshu.text import dataset

MAX_WINDOW = 1024  # tokens of a text, unless the settings or the training say more
MAX_LOGITS = 1 << 28  # numbers computed at once: 1 GB in float32


class EvaluatedModel:
    """A model folder, loaded for the evaluation."""

    def __init__(self, folder: Path, settings: EvalSettings, device: torch.device) -> None:
        self.folder, self.batch_size = folder, settings.batch_size
        loaded = load_model(folder, device, getattr(torch, settings.dtype), settings.base)
        self.loaded = loaded
        self.model, self.tokenizer, self.step = loaded.model, loaded.tokenizer, loaded.step
        self.purpose = loaded.purpose
        longest = settings.block_size or max(MAX_WINDOW, trained_block_size(folder))
        self.window = min(self.model.config.block_size, longest)

    def rows(self, length: int) -> int:
        """How many rows of this length to score at once, so that their logits fit into memory."""
        return max(1, min(self.batch_size, MAX_LOGITS // (length * self.model.config.vocab_size)))

    def require_readable(self, meta: dict, data: Path) -> None:
        """Raises UserError if the data has another tokenizer or rows longer than the block."""
        command = "prepare_sft.py" if meta["task"] != "text" else "prepare.py"
        advice = (
            f"prepare its files once more, by {command} with {flag('tokenizer', self.folder)} and"
            " another --out, and name that folder with --data"
        )
        dataset.check_tokenizer(
            self.tokenizer,
            meta,
            f"{data} was prepared with another tokenizer than {self.folder}'s: {advice}",
        )
        block = self.model.config.block_size
        if meta.get("width", 0) > block + 1:
            raise UserError(
                f"the longest row of {data} has {meta['width']:,} tokens,"
                f" the model in {self.folder} reads {block:,}: {advice}"
            )


def trained_block_size(folder: Path) -> int:
    """The block_size of the training that wrote the folder, 0 if there was none."""
    size = read_settings(folder).get("settings", {}).get("block_size")
    return size if is_count(size) else 0


@dataclass
class SplitResult:
    """The results of one split; the evaluated model comes first, models to compare with follow."""

    counts: dict[str, int]
    measure_sets: list[MeasureSet] = field(default_factory=list)  # by model
    differences: list[Measures] = field(default_factory=list)  # first model − each other model
    rows: list[dict] = field(default_factory=list)  # for eval_answers.jsonl
    classes: dict = field(default_factory=dict)  # labels, confusion matrix, scores by label
    definitions: dict[str, str] = field(default_factory=dict)  # of measures, the same in all splits

    def add(self, folder: Path, measures: MeasureSet, texts: Sequence[str]) -> None:
        """Adds a model's measures; all but the first are compared with the first."""
        if self.measure_sets:
            self.differences.append(self.measure_sets[0].paired_differences(measures))
            for row, text in zip(self.rows, texts, strict=True):
                row.setdefault("others", {})[str(folder)] = text
        self.measure_sets.append(measures)

    def add_copies(self, copies: Sequence[Copies]) -> None:
        """Adds each answer's copied spans to its row; there are none without a training text."""
        for row, found in zip(self.rows, copies, strict=False):
            row["copied"] = found.spans


def answer_row(split: str, number: int, question: str, reference: str, answer: str) -> dict:
    """A row of eval_answers.jsonl."""
    return {
        "split": split,
        "row": number,
        "question": question,
        "reference": reference,
        "answer": answer,
        "copied": [],
    }


def progress_printer(total: int, title: str = "") -> Callable[[int], None]:
    """Returns a function that prints how many are done, if stderr is a terminal."""
    if not sys.stderr.isatty():
        return lambda done: None
    return lambda done: print(
        f"\r{title} {done:,}/{total:,}",
        end="\n" if done == total else "",
        file=sys.stderr,
        flush=True,
    )
