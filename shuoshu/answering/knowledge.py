"""What is kept beside a model to recall answers: taught.jsonl and answers.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shuoshu.answering.confidence import AnswerWeights
from shuoshu.answering.lookups import NAMES, AnswerLookups, BookIndex
from shuoshu.answering.taught import Taught
from shuoshu.core.errors import UserError
from shuoshu.core.files import (
    error_reason,
    read_json,
    sha256_of,
    write_atomically,
    write_synced_text,
)
from shuoshu.core.out_dirs import weights_path

ANSWERS, TAUGHT = "answers.json", "taught.jsonl"
FORMAT = 1
WAYS = ("write", "recall", "auto")
# What reading damaged values raises. OverflowError: a whole number of hundreds of digits.
DAMAGES = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError)


@dataclass(frozen=True)
class Fit:
    """Weights, and what came of them on validation questions."""

    weights: AnswerWeights
    # (probability, whether the answer was right) by cross-fitting: each validation question as it
    # is, and once more with its answer left out, as if it had never been taught.
    trials: list[tuple[float, bool]] = field(default_factory=list)
    auto_rouge_l: float = 0.0  # of auto, if it never declined; by cross-fitting
    write_rouge_l: float = 0.0

    @property
    def default(self) -> str:
        """The way that answers validation questions better."""
        return "auto" if self.auto_rouge_l > self.write_rouge_l else "write"

    def threshold(self, precision: float) -> float:
        """The lowest probability above which that share of the trials was right; above 1 if none.

        Half of the trials are questions that were never taught.
        """
        if not precision or not self.trials:
            return 0.0
        trials = sorted(self.trials, key=lambda trial: -trial[0])
        probabilities = np.array([probability for probability, _ in trials])
        right = np.cumsum([is_right for _, is_right in trials])
        is_reached = right >= precision * np.arange(1, len(trials) + 1) - 1e-9
        # Trials with one probability are answered together or not at all.
        is_last = np.append(probabilities[1:] < probabilities[:-1], True)
        reached = probabilities[is_reached & is_last]
        return float(reached[-1]) if len(reached) else 1.1

    def to_json(self) -> dict:
        trials = [[p, bool(is_right)] for p, is_right in self.trials]
        rouge_l = {"auto": self.auto_rouge_l, "write": self.write_rouge_l}
        return {"weights": self.weights.to_json(), "trials": trials, "val_rouge_l": rouge_l}

    @classmethod
    def from_json(cls, values: dict) -> Fit:
        """Raises one of DAMAGES if the values are damaged."""
        trials = [(float(p), bool(is_right)) for p, is_right in values["trials"]]
        rouge_l = [float(values["val_rouge_l"][way]) for way in ("auto", "write")]
        if not all(0 <= number <= 1 for number in (*rouge_l, *(p for p, _ in trials))):
            raise ValueError("it has impossible values")
        return cls(AnswerWeights.from_json(values["weights"]), trials, *rouge_l)


@dataclass(frozen=True)
class Knowledge:
    """The taught answers of a model, how to find them, and how sure to be of them."""

    taught: Taught
    lookups: AnswerLookups
    fit: Fit


def write_knowledge(out_dir: Path, taught: Taught, fits: dict[str, Fit]) -> None:
    """Writes both files. fits: by "book" (with the book's passages) and "alone".

    Raises OSError if they can't be written.
    """
    write_atomically(out_dir / TAUGHT, lambda path: write_synced_text(path, taught.to_lines()))
    content = {
        "format": FORMAT,
        "model_sha256": sha256_of(weights_path(out_dir)),
        "taught_sha256": sha256_of(out_dir / TAUGHT),
        "fits": {name: fit.to_json() for name, fit in fits.items()},
    }
    text = json.dumps(content, ensure_ascii=False, indent=1)
    write_atomically(out_dir / ANSWERS, lambda path: write_synced_text(path, text))


def is_current(out_dir: Path) -> bool:
    """Whether answers.json was made for the model that is in the folder now."""
    try:
        return _is_of_model(_read_answers(out_dir), out_dir)
    except (OSError, UserError):
        return False


def read_knowledge(out_dir: Path, windows: Sequence[str]) -> Knowledge | None:
    """What is kept beside the model; None if there is nothing for the weights that it has now.

    windows: of the book, empty if it isn't there any more. UserError if a file is damaged.
    """
    if not (out_dir / ANSWERS).is_file():
        return None
    content = _read_answers(out_dir)
    path = out_dir / TAUGHT
    try:
        if not _is_of_model(content, out_dir):
            return None
        fits = content["fits"]
        name = "book" if windows and "book" in fits else "alone"
        fit = Fit.from_json(fits[name])
        if len(fit.weights.lookups) != len(NAMES) - (name != "book"):
            raise ValueError("it has other weights")
        if not path.is_file():
            raise ValueError(f"{TAUGHT} is missing")
        if sha256_of(path) != content["taught_sha256"]:
            raise ValueError(f"{TAUGHT} has changed")
    except DAMAGES as error:
        raise damaged(out_dir, error) from None
    taught = Taught.read(path)
    return Knowledge(
        taught, AnswerLookups(taught, BookIndex(windows) if name == "book" else None), fit
    )


def _read_answers(out_dir: Path) -> dict:
    try:
        content = read_json(out_dir / ANSWERS)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError("it has another format")
        if not isinstance(content.get("model_sha256"), str):
            raise ValueError("it does not name its model")
        return content
    except (OSError, ValueError) as error:
        raise damaged(out_dir, error) from None


def _is_of_model(content: dict, out_dir: Path) -> bool:
    """Whether the content of answers.json was made for the weights that the folder has now."""
    path = weights_path(out_dir)
    return path is not None and content["model_sha256"] == sha256_of(path)


def damaged(out_dir: Path, error: Exception) -> UserError:
    return UserError(
        f"{out_dir / ANSWERS} is damaged ({error_reason(error)}): delete it, and"
        f" python eval_metrics.py {out_dir} makes it anew"
    )
