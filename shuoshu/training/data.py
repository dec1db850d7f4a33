"""The data of a run: training and validation rows, validation questions and the tokenizer."""

from __future__ import annotations

from collections.abc import Iterator

from shuoshu.core.errors import UserError
from shuoshu.core.settings import TrainSettings
from shuoshu.generation.answers import read_questions
from shuoshu.sft.augment import QuestionNoise
from shuoshu.sft.dataset import QuestionDataset, answer_batches
from shuoshu.text.dataset import (
    PREPARE_AGAIN,
    Batch,
    Dataset,
    TextDataset,
    check_tokenizer,
    find_dataset,
    read_meta,
)
from shuoshu.text.tokenizer import Tokenizer
from shuoshu.text.windows import text_windows

MIN_TOKENS_FOR_ADVICE = 16  # a shorter text is too short for any block_size


class RunData:
    """The dataset that the settings name. UserError if it can't be trained on."""

    def __init__(self, settings: TrainSettings) -> None:
        folder = find_dataset(settings.dataset)
        meta = read_meta(folder)
        self.folder = folder
        self.tokenizer = Tokenizer.load(folder)
        check_tokenizer(
            self.tokenizer,
            meta,
            f"{folder}/tokenizer.json is not the tokenizer that made the data: {PREPARE_AGAIN}",
        )
        self.task: str = meta["task"]
        self.turns: int = meta.get("turns", 0)  # turns of a conversation (questions only)
        self.has_labels = bool(meta.get("labels"))
        self.rows_per_step = settings.batch_size * settings.gradient_accumulation_steps
        self.eval_tokens = settings.eval_tokens
        self.train: Dataset
        self.val: Dataset
        if self.task == "questions":
            self.train = self._training_questions(settings)
            self.val = QuestionDataset(folder, "val")
            self.questions = read_questions(folder, "val", self.tokenizer)
            self.questions = self.questions[: settings.eval_questions]
        else:
            self.train = TextDataset(folder, "train")
            self.val = TextDataset(folder, "val")
            self.questions = []
            _refuse_question_settings(settings, folder)
        self.selects_by_answers = bool(self.questions) and settings.select_by != "loss"

    def _training_questions(self, settings: TrainSettings) -> QuestionDataset:
        noise = None
        if settings.question_drop or settings.question_replace:
            noise = QuestionNoise(self.tokenizer, settings.question_drop, settings.question_replace)
        rows = QuestionDataset(self.folder, "train", self.rows_per_step, noise)
        if settings.paraphrases and len(rows):
            rows.add_paraphrases(self.tokenizer, settings.paraphrases)
        return rows

    @property
    def unit(self) -> str:
        """What len() of a split counts."""
        return "rows" if self.task == "questions" else "tokens"

    @property
    def val_is_complete(self) -> bool:
        """Whether an evaluation scores all validation data."""
        return self.task == "questions" or self.eval_tokens is None

    def hashes(self) -> list[str]:
        """The sha256 of both splits; a checkpoint stores them."""
        return [self.train.sha256, self.val.sha256]

    def val_batches(self, block_size: int, batch_size: int) -> Iterator[Batch]:
        """The batches that an evaluation scores."""
        if self.task == "questions":
            return answer_batches(self.val, batch_size)
        tokens = self.val.tokens[: self.eval_tokens]
        return text_windows(tokens, self.tokenizer.end, block_size, batch_size)

    def steps_per_epoch(self, block_size: int) -> float:
        """The number of steps in an epoch, which need not be whole."""
        return self.train.rows_per_epoch(block_size) / self.rows_per_step

    def tokens_per_step(self, block_size: int) -> float:
        """Trained tokens per step, averaged over an epoch."""
        rows = self.train.rows_per_epoch(block_size)
        return self.train.count_targets(0, rows, block_size, 0) / rows * self.rows_per_step

    def check_sizes(self, block_size: int, world_size: int) -> None:
        """UserError if a row is longer than the block, or the ranks can't share the rows evenly."""
        if self.rows_per_step % world_size:
            raise UserError(
                f"batch_size x gradient_accumulation_steps = {self.rows_per_step} rows per step"
                f" can't be divided evenly among {world_size} processes"
            )
        size = len(self.train)
        if self.task == "questions":
            if not size:
                raise UserError(
                    f"{self.folder} has no training rows:"
                    " prepare it with smaller --val_fraction and --test_fraction"
                )
            width = self.train.width
            if width - 1 > block_size:
                raise UserError(
                    f"the longest row has {width} tokens, but the model reads {block_size}:"
                    f" set --block_size={width - 1}"
                )
        elif size <= block_size:
            shorter = f", or set --block_size={size // 2}" if size >= MIN_TOKENS_FOR_ADVICE else ""
            raise UserError(
                f"the training text has {size:,} tokens,"
                f" but more than one block of {block_size:,} is needed: add text{shorter}"
            )


def _refuse_question_settings(settings: TrainSettings, folder: object) -> None:
    """UserError if a setting that only questions have is used with text."""
    is_noisy = settings.question_drop or settings.question_replace
    if is_noisy or settings.paraphrases or settings.select_by == "rouge":
        raise UserError(
            f"{folder} holds text: question_drop, question_replace, paraphrases and"
            " select_by=rouge need questions and answers (prepare_sft.py)"
        )
