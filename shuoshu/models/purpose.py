"""What a model was trained for: to continue text, to answer questions, or to label texts."""

from __future__ import annotations

import json
import math
import typing
from dataclasses import asdict, dataclass, replace

import numpy as np

from shuoshu.core.errors import UserError
from shuoshu.core.files import error_reason
from shuoshu.text.tokenizer import Tokenizer


def normalised(scores: np.ndarray) -> np.ndarray:
    """The log-probabilities in each row, moved so that the probabilities add up to one."""
    return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)


@dataclass(frozen=True)
class Labelling:
    """How a model labels a text."""

    labels: tuple[str, ...]  # the most frequent one of the training first
    question: str = ""  # template of the prompt, as in prepare_sft.py; empty: known columns
    # "answer": scores each label by its probability as the answer. "text": scores it by the mean
    # of the votes of all tokens of the text.
    judges_by: str = "answer"
    # The labels' log-probabilities are multiplied by `scale`, then `bias` is added; empty: zeros.
    scale: float = 1.0
    bias: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError if a value is impossible; they may come from a damaged file."""
        is_text = all(isinstance(text, str) for text in (*self.labels, self.question))
        numbers = (self.scale, *self.bias)
        numbers = all(isinstance(x, float | int) and math.isfinite(x) for x in numbers)
        if len(self.labels) < 2 or not is_text or self.judges_by not in ("answer", "text"):
            raise ValueError("the labels are damaged")
        if not numbers or len(self.bias) not in (0, len(self.labels)):
            raise ValueError("the bias of the labels is damaged")

    @property
    def is_corrected(self) -> bool:
        return bool(self.bias) or self.scale != 1

    def correct(self, scores: np.ndarray) -> np.ndarray:
        """(texts, labels) log-probabilities from scores of any offset, with scale and bias."""
        return normalised(self.scale * normalised(scores) + np.array(self.bias or 0.0))

    def uncorrected(self) -> Labelling:
        """The same without scale and bias."""
        return replace(self, scale=1.0, bias=())


class Purpose(typing.NamedTuple):
    """What a model was trained for."""

    task: str = "text"  # "text": it continues text; "questions": it answers; "labels": it labels
    # Successive questions it was trained to answer; 0: it continues text; None: any number.
    turns: int | None = 0
    # Begins each conversation of the training; empty if there is none or if they differ. Without
    # it, the chat template of another model may write a message of its own.
    system: str = ""
    labelling: Labelling | None = None  # only of the task "labels"
    passages: int = 0  # of a book before each question of the training; 0: none


CONTINUES_TEXT, CHATS = Purpose(), Purpose("questions", turns=None)


def purpose_metadata(purpose: Purpose) -> dict[str, str]:
    """The purpose for the metadata of a weights file."""
    metadata = {"task": purpose.task, "system": purpose.system}
    if purpose.turns is not None:
        metadata["turns"] = str(purpose.turns)
    if purpose.passages:
        metadata["passages"] = str(purpose.passages)
    if purpose.labelling:
        metadata["labelling"] = json.dumps(asdict(purpose.labelling), ensure_ascii=False)
    return metadata


def read_purpose(metadata: dict[str, str]) -> Purpose:
    """The purpose in the metadata of a weights file; UserError if it is damaged."""
    # Weights of earlier versions have no task, and the first ones no turns.
    try:
        turns = int(metadata.get("turns", 0))
        passages = int(metadata.get("passages", 0))
        task = metadata.get("task", "questions" if turns else "text")
        labelling = read_labelling(metadata["labelling"]) if task == "labels" else None
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise UserError(
            f"the weights don't say what they were trained for ({error_reason(error)}):"
            " copy the model's folder again"
        ) from None
    is_any = task == "questions" and "turns" not in metadata
    system = metadata.get("system", "")
    return Purpose(task, None if is_any else turns, system, labelling, passages)


def read_labelling(text: str) -> Labelling:
    """The labelling in the metadata of a weights file; ValueError and the like if it is damaged."""
    values = json.loads(text)
    lists = {name: tuple(values[name]) for name in ("labels", "bias")}
    return Labelling(**{**values, **lists})


def foreign_purpose(tokenizer: Tokenizer) -> Purpose:
    """The purpose of a model that another program wrote: one with a chat template answers."""
    return CHATS if tokenizer.kind == "foreign" and tokenizer.has_template else CONTINUES_TEXT


def inherited_purpose(base: Purpose, tokenizer: Tokenizer) -> Purpose:
    """The purpose of an adapter of another program, which may bring a chat template."""
    return foreign_purpose(tokenizer) if base.task == "text" else base
