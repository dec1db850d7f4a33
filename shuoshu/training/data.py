"""The data of a run: training and validation rows, validation questions and the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Iterator

from shuoshu.core.errors import UserError
from shuoshu.core.settings import TrainSettings
from shuoshu.generation.answers import limit_questions, read_questions
from shuoshu.models.purpose import Labelling, Purpose
from shuoshu.models.votes import label_marks
from shuoshu.sft.augment import QuestionNoise
from shuoshu.sft.dataset import QuestionDataset, answer_batches
from shuoshu.sft.label_dataset import LabelDataset, ReadingRows, TokenNoise
from shuoshu.text.dataset import (
    PREPARE_AGAIN,
    Batch,
    Dataset,
    TextDataset,
    check_tokenizer,
    find_dataset,
    read_meta,
)
from shuoshu.text.foreign_tokenizer import ForeignTokenizer
from shuoshu.text.tokenizer_folder import load_tokenizer
from shuoshu.text.windows import text_windows

# Validation questions that an evaluation answers, and texts that it labels, which is faster.
MAX_ASKED, MAX_JUDGED = 200, 2000
MIN_TOKENS_FOR_ADVICE = 16  # a shorter text is too short for any block_size

# Why questions can't be changed in training, after the data's folder.
FOREIGN_ROWS = (
    "has another model's tokenizer, with which questions can't be changed in training: use"
    " config/lora.py, or"
)
READ_ROWS = "has passages before its questions, which can't be changed in training:"

# What select_by can name, by task, and its name in log.jsonl; the first one is the default.
SELECTING_MEASURES = {
    "text": {"loss": "val_loss"},
    "questions": {"rouge": "val_rouge_l", "loss": "val_loss"},
    "labels": {"accuracy": "val_accuracy", "macro_f1": "val_macro_f1", "loss": "val_loss"},
}


class RunData:
    """The dataset that the settings name. UserError if it can't be trained on."""

    def __init__(self, settings: TrainSettings) -> None:
        folder = find_dataset(settings.dataset)
        meta = read_meta(folder)
        self.folder = folder
        self.tokenizer = load_tokenizer(folder)
        check_tokenizer(
            self.tokenizer,
            meta,
            f"{folder}/tokenizer.json is not the tokenizer that made the data: {PREPARE_AGAIN}",
        )
        self.task: str = meta["task"]
        self.turns: int = meta.get("turns", 0)  # turns of a conversation (questions only)
        self.system: str = meta.get("system", "")  # of every training conversation
        self.passages: int = meta.get("passages", 0)  # of a book before each question
        self.labels: list[str] = meta.get("labels") or []  # the closed set of answers
        self.labelling: Labelling | None = None  # how the model labels texts
        # Longest row, which a new model's context equals: it labels texts cut to this length.
        self.label_block: int | None = meta.get("block_size") if self.labels else None
        if self.labels:
            question = (meta.get("settings") or {}).get("question") or ""
            self.labelling = Labelling(tuple(self.labels), question, settings.judge_by)
        elif settings.judge_by == "text" or settings.label_weights:
            raise UserError(
                f"{folder} holds {self.task}: judge_by=text and label_weights need labels, a few"
                " short answers that all rows share; prepare such a table with prepare_sft.py"
            )
        # Whether the tokens of a text vote for its label. Their loss needs a VotingModel.
        self.votes = bool(self.labels) and settings.judge_by == "text"
        if settings.label_weights and not self.votes:
            raise UserError(f"label_weights={settings.label_weights} needs --judge_by=text")
        if settings.read_fraction and not self.votes:
            raise UserError(
                f"read_fraction={settings.read_fraction:g} needs labels and --judge_by=text:"
                " leave it out"
            )
        self.rows_per_step = settings.batch_size * settings.gradient_accumulation_steps
        self.eval_tokens = settings.eval_tokens
        self.train: Dataset
        self.reading: ReadingRows | None = None  # the same rows, while the model reads them
        self.val: Dataset
        self.val_is_complete: bool  # whether an evaluation measures the whole text or all questions
        if self.task != "text":
            self.train = self._training_rows(settings)
            if settings.read_fraction:
                self.reading = ReadingRows(self.train)
            self.val = QuestionDataset(folder, "val")
            limit = settings.eval_questions or (MAX_JUDGED if self.labels else MAX_ASKED)
            questions = read_questions(folder, "val", self.tokenizer)
            self.questions = limit_questions(questions, limit)
            self.val_is_complete = len(self.questions) == len(questions)
        else:
            self.train = TextDataset(folder, "train")
            self.val = TextDataset(folder, "val")
            self.questions = []
            self.val_is_complete = self.eval_tokens is None or self.eval_tokens >= len(self.val)
            _refuse_question_settings(settings, folder)
        self.measure = self._selecting_measure(settings.select_by)

    def _selecting_measure(self, select_by: str) -> str:
        """The measure in log.jsonl that selects the model. UserError if the task hasn't got it."""
        measures = SELECTING_MEASURES[self.task]
        if select_by not in (*measures, "auto"):
            raise UserError(
                f"select_by={select_by}: {self.folder} holds {self.task}, for which it is one of"
                f" auto, {', '.join(measures)}"
            )
        if self.task != "text" and not self.questions:
            return "val_loss"
        return next(iter(measures.values())) if select_by == "auto" else measures[select_by]

    def _training_rows(self, settings: TrainSettings) -> QuestionDataset:
        if not self.votes:
            return self._training_questions(settings)
        if settings.paraphrases:
            raise UserError(
                f"paraphrases={settings.paraphrases}: labelled texts have none;"
                " use config/labels.py"
            )
        if isinstance(self.tokenizer, ForeignTokenizer):
            _refuse_augmentation(settings, self.folder, FOREIGN_ROWS)
        answers = [self.tokenizer.encode_answer(label) for label in self.labels]
        marks = label_marks(self.tokenizer, len(self.labels))
        rows = LabelDataset(self.folder, "train", answers, marks, self.rows_per_step)
        rows.set_weights(self.labels, settings.label_weights)
        if settings.question_drop or settings.question_replace:
            noise = settings.question_drop, settings.question_replace
            rows.noise = TokenNoise(self.tokenizer, rows.ids[rows.mask == 0], *noise)
        return rows

    def _training_questions(self, settings: TrainSettings) -> QuestionDataset:
        noise = None
        if isinstance(self.tokenizer, ForeignTokenizer):
            _refuse_augmentation(settings, self.folder, FOREIGN_ROWS)
        if self.passages:
            _refuse_augmentation(settings, self.folder, READ_ROWS)
        if settings.question_drop or settings.question_replace:
            noise = QuestionNoise(self.tokenizer, settings.question_drop, settings.question_replace)
        rows = QuestionDataset(self.folder, "train", self.rows_per_step, noise)
        if settings.paraphrases and len(rows):
            rows.add_paraphrases(self.tokenizer, settings.paraphrases)
        return rows

    @property
    def end(self) -> int:
        """The token that ends documents or answers; measures per character leave it out."""
        return self.tokenizer.answer_end if self.task != "text" else self.tokenizer.end

    @property
    def purpose(self) -> Purpose:
        """What a model is good for that was trained on this data."""
        return Purpose(self.task, self.turns, self.system, self.labelling, self.passages)

    @property
    def unit(self) -> str:
        """What len() of a split counts."""
        return "rows" if self.task != "text" else "tokens"

    def hashes(self) -> list[str]:
        """The sha256 of both splits; a checkpoint stores them."""
        return [self.train.sha256, self.val.sha256]

    def val_batches(self, block_size: int, batch_size: int) -> Iterator[Batch]:
        """The batches that an evaluation scores."""
        if self.task != "text":
            return answer_batches(self.val, batch_size)
        count = math.ceil(self.eval_tokens / block_size) if self.eval_tokens else None
        start = self.tokenizer.start
        return text_windows(self.val.tokens, start, block_size, batch_size, count=count)

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
        if self.task != "text":
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


def _refuse_augmentation(settings: TrainSettings, folder: object, reason: str) -> None:
    """UserError with the reason if questions are to be changed."""
    names = [
        name
        for name in ("question_drop", "question_replace", "paraphrases")
        if getattr(settings, name)
    ]
    if names:
        raise UserError(f"{folder} {reason} set {' '.join(f'--{name}=0' for name in names)}")


def _refuse_question_settings(settings: TrainSettings, folder: object) -> None:
    """UserError if a setting that only questions have is used with text."""
    if settings.question_drop or settings.question_replace or settings.paraphrases:
        raise UserError(
            f"{folder} holds text: question_drop, question_replace and paraphrases need questions"
            " and answers; prepare some with prepare_sft.py and name their folder with --dataset,"
            " or train on text without config/sft.py"
        )
