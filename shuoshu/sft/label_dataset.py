"""Texts with labels, for models whose tokens vote: rows to judge, and the same rows to read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shuoshu.core.errors import UserError
from shuoshu.sft.augment import TrainedRow
from shuoshu.sft.dataset import QuestionDataset, pad_batch
from shuoshu.text.dataset import IGNORE, PREPARE_AGAIN, Batch
from shuoshu.text.tokenizer import Tokenizer


class TokenNoise:
    """Drops tokens of a text, then replaces some by tokens of other texts.

    `drop` and `replace` are the probabilities for a token. The answer and special tokens stay.
    """

    def __init__(self, tokenizer: Tokenizer, tokens: np.ndarray, drop: float, replace: float):
        self.drop, self.replace = drop, replace
        self.is_special = np.isin(np.arange(tokenizer.n_vocab), list(tokenizer.specials.values()))
        tokens = np.asarray(tokens).ravel()
        self.tokens = tokens[~self.is_special[tokens]]  # frequent ones are drawn more often

    def __call__(self, ids: np.ndarray, mask: np.ndarray, draw: np.random.Generator) -> TrainedRow:
        """The row with a noisy text; it is never longer than before."""
        is_text = (mask == 0) & ~self.is_special[ids]
        stays = ~is_text | (draw.random(len(ids)) >= self.drop)
        ids, mask, is_text = ids[stays], mask[stays], is_text[stays]
        is_replaced = is_text & (draw.random(len(ids)) < self.replace)
        return np.where(is_replaced, draw.choice(self.tokens, len(ids)), ids), mask


def parse_weights(text: str) -> dict[str, float]:
    """Parses "好=1,坏=2.5". UserError if a weight is not a positive number."""
    weights = {}
    for part in text.split(","):
        label, _, number = part.rpartition("=")
        try:
            weights[label.strip()] = float(number)
        except ValueError:
            weights[label.strip()] = math.nan
    if not all(0 < weight < math.inf for weight in weights.values()):
        raise UserError(
            f'label_weights={text}: write a positive number for each label, as in "好=1,坏=2.5",'
            " or balanced; a label with a comma needs another name (prepare_sft.py --labels)"
        )
    return weights


class LabelDataset(QuestionDataset):
    """One split of texts with labels. Implements Dataset, with rows of different lengths."""

    def __init__(
        self,
        folder: Path,
        split: str,
        answers: Sequence[Sequence[int]],
        marks: Sequence[int],
        step_rows: int = 1,
    ) -> None:
        """`answers` are the ids of the labels as answers, `marks` the token of each label.

        UserError if a row has another answer.
        """
        super().__init__(folder, split, step_rows)
        numbers = {tuple(ids): number for number, ids in enumerate(answers)}
        try:
            rows = [self.row(number) for number in range(len(self))]
            self.labels = np.array([numbers[tuple(ids[mask == 1].tolist())] for ids, mask in rows])
        except KeyError:
            raise UserError(
                f"{folder} has {split} rows with other answers than its labels: {PREPARE_AGAIN}"
            ) from None
        self.marks = np.array(marks)
        self.trained = np.ones_like(self.trained)
        self.weights: list[float] | None = None  # of the labels in the loss; None: all are 1

    def set_weights(self, labels: Sequence[str], weights: str | None) -> None:
        """Sets the weights as the setting label_weights says; the rows' mean weight becomes 1.

        UserError if a label has no weight or if there is no such label.
        """
        if not weights:
            return
        counts = np.bincount(self.labels, minlength=len(labels))
        if weights == "balanced":
            values = 1 / np.maximum(1, counts)
        else:
            given = parse_weights(weights)
            if set(given) != set(labels):
                raise UserError(
                    f"label_weights={weights}: it must give a number to each of the labels"
                    f" {', '.join(labels)}, or be balanced"
                )
            values = np.array([given[label] for label in labels])
        self.weights = (values * counts.sum() / (values * counts).sum()).tolist()

    def rows(self, first: int, count: int, block_size: int, seed: int) -> Batch:
        """As QuestionDataset.rows, but the only target of a row is its label's mark."""
        ids, answers = super().rows(first, count, block_size, seed)
        labels = self.labels[self.row_ids(first, count, block_size, seed)]
        targets = np.full_like(answers, IGNORE)
        targets[np.arange(count), (answers != IGNORE).argmax(axis=1)] = self.marks[labels]
        return ids, targets


class ReadingRows:
    """The rows of a LabelDataset without their answers: every token after the first is a target."""

    def __init__(self, labelled: LabelDataset) -> None:
        self._labelled = labelled
        self._targets = labelled.lengths - labelled.mask.sum(axis=1, dtype=np.int64) - 1

    def count_targets(self, first: int, count: int, block_size: int, seed: int) -> int:
        """Number of trained tokens in these rows."""
        return int(self._targets[self._labelled.row_ids(first, count, block_size, seed)].sum())

    def rows(self, first: int, count: int, block_size: int, seed: int) -> Batch:
        """As LabelDataset.rows, but the targets are the texts, which have no noise."""
        self._labelled.check_files()
        numbers = self._labelled.row_ids(first, count, block_size, seed).tolist()
        texts = [ids[mask == 0] for ids, mask in map(self._labelled.row, numbers)]
        width = self._labelled.padded_width(max(map(len, texts)))
        return pad_batch([(ids, np.ones_like(ids)) for ids in texts], width)
