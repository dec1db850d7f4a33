"""The single questions of a training with their answers: what a model can recall."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import LCSseq

from shuoshu.core.errors import UserError
from shuoshu.core.files import error_reason, read_text
from shuoshu.text.encodings import MAX_FILE_BYTES

COPIED = 0.85  # of the longer text's characters, in the same order: one repeats the other
TAUGHT_FOLDS = 5  # each training question is compared with those outside its fold


@dataclass(frozen=True)
class Taught:
    """Training questions, and for each the index of its answer in `answers`."""

    questions: tuple[str, ...]
    owners: np.ndarray  # (questions,)
    answers: tuple[str, ...]  # all different

    @classmethod
    def of_pairs(cls, pairs: Sequence[tuple[str, str]]) -> Taught:
        """From questions and answers; equal answers become one."""
        answers = list(dict.fromkeys(answer for _, answer in pairs))
        index = {answer: number for number, answer in enumerate(answers)}
        owners = np.array([index[answer] for _, answer in pairs], dtype=np.int64)
        return cls(tuple(question for question, _ in pairs), owners, tuple(answers))

    @cached_property
    def by_question(self) -> dict[str, int]:
        """The answer's index by the question without white space; the first of equal ones."""
        found: dict[str, int] = {}
        for question, owner in zip(self.questions, self.owners.tolist(), strict=True):
            found.setdefault(squeezed(question), owner)
        return found

    def exact(self, question: str) -> int | None:
        """The answer of the very question, if it was taught."""
        return self.by_question.get(squeezed(question))

    def copied(self, text: str) -> int | None:
        """The taught answer that a text repeats, nearly to the letter."""
        found = process.extractOne(
            text, self.answers, scorer=LCSseq.normalized_similarity, score_cutoff=COPIED
        )
        return found and found[2]

    def folds(self) -> np.ndarray:
        """The fold of each question; those of one answer are in different folds in turn."""
        order = np.argsort(self.owners, kind="stable")
        starts = np.searchsorted(self.owners[order], self.owners[order])
        fold = np.empty(len(order), dtype=np.int64)
        fold[order] = (np.arange(len(order)) - starts) % TAUGHT_FOLDS
        return fold

    def subset(self, keep: np.ndarray) -> Taught:
        """The questions of a mask, with all answers."""
        questions = tuple(q for q, kept in zip(self.questions, keep, strict=True) if kept)
        return Taught(questions, self.owners[keep], self.answers)

    def to_lines(self) -> str:
        """The content of taught.jsonl."""
        return "".join(
            json.dumps({"question": q, "answer": self.answers[owner]}, ensure_ascii=False) + "\n"
            for q, owner in zip(self.questions, self.owners.tolist(), strict=True)
        )

    @classmethod
    def read(cls, path: Path) -> Taught:
        """Raises UserError if the file is damaged."""
        try:
            lines = read_text(path, MAX_FILE_BYTES).rstrip("\n").split("\n")
            records = [json.loads(line) for line in lines]
            pairs = [(record["question"], record["answer"]) for record in records]
            if not pairs or not all(isinstance(text, str) for pair in pairs for text in pair):
                raise ValueError("it has no questions")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path} is damaged: {error_reason(error)}") from None
        return cls.of_pairs(pairs)


def squeezed(text: str) -> str:
    """The text without white space."""
    return "".join(text.split())
