"""The prepare_sft.py pipeline: read questions, reject, split, render as rows, write, summarize."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from shuoshu.core.command_settings import PrepareSftSettings
from shuoshu.core.errors import REPO_ROOT, UserError
from shuoshu.sft.answer_lists import list_separator
from shuoshu.sft.conversations import parse_pairs
from shuoshu.sft.dataset import write_rows
from shuoshu.sft.labels import alike_groups, core_of, label_notes, labels_of
from shuoshu.sft.layouts import template_ends
from shuoshu.sft.pairs import Pair, RejectedRecords, drop_repeats, is_short
from shuoshu.sft.question_files import find_question_files
from shuoshu.sft.rendering import (
    RenderedPair,
    cut_long_questions,
    is_split,
    render_pairs,
    without_ends,
)
from shuoshu.sft.splits import Fold, SplitRule, split_pairs
from shuoshu.sft.summary import Preparation, questions_summary, rejected_lines, show_rows
from shuoshu.sft.tokenizer_choice import (
    default_tokenizer,
    not_labels_note,
    tokenizer_of,
)
from shuoshu.text.data_folder import target_folder

BUNDLED = REPO_ROOT / "data" / "novella_qa"
RECORDED_SETTINGS = (
    "inputs",
    "question",
    "answer",
    "system",
    "labels",
    "group",
    "too_long",
    "val_fraction",
    "test_fraction",
    "folds",
    "fold",
    "seed",
    "passages",
    "book",
)
# From the settings, a function that puts passages of a book before a question.
OpenBook = Callable[[PrepareSftSettings], Callable[[str], str]]


def prepare_sft(settings: PrepareSftSettings, open_book: OpenBook) -> None:
    """Runs prepare_sft.py. `open_book` is called for --passages only.

    Raises UserError, and writes nothing, if a file or a setting is unusable.
    """
    began = time.perf_counter()
    result = prepare_questions(settings, open_book)
    print(questions_summary(result, settings, time.perf_counter() - began))
    if settings.show:
        show_rows(result.folder, settings.show)


def prepare_questions(
    settings: PrepareSftSettings, open_book: OpenBook | None = None
) -> Preparation:
    """Writes the data folder; returns what the summary needs."""
    inputs = settings.inputs or (str(BUNDLED),)
    files = find_question_files(inputs)
    folder = target_folder(settings, "questions", BUNDLED, files)
    chosen = tokenizer_of(Path(settings.tokenizer), settings) if settings.tokenizer else None

    pairs, rejected = parse_pairs(files, settings)
    pairs = drop_repeats(pairs, rejected)
    _require_training(pairs, rejected)
    labels = labels_of(pairs, settings.labels)
    has_given_splits = any(pair.split for pair in pairs)
    ends = template_ends(settings.question or "")
    split_pairs(pairs, split_rule(settings, bool(labels), ends))
    alike = alike_groups(pairs, ends) if labels else []
    if labels:
        rejected.notes += label_notes(pairs, settings.labels)
    elif settings.answer and all(is_short(pair.answer) for pair in pairs):
        rejected.notes.append(not_labels_note(pairs))

    chosen = chosen or default_tokenizer(pairs, bool(labels), settings)
    tokenizer, width = chosen.tokenizer, chosen.block_size + 1  # targets are shifted by one token
    too_long = settings.too_long or ("cut_question" if labels else "error")
    n_cut = 0
    if too_long == "cut_question":
        n_cut = cut_long_questions(pairs, tokenizer, width, ends, labels or ())
    if n_cut:  # cutting can make questions equal
        pairs = drop_repeats(pairs, rejected, within_splits=has_given_splits)
    if settings.passages and open_book:
        add_passages(pairs, labels, settings, open_book)
    rendered = render_pairs(pairs, tokenizer, width, too_long, rejected)
    _require_training([pair for pair, _ in rendered], rejected)
    content = {
        **task_fields(rendered, labels),
        "passages": settings.passages,
        "block_size": chosen.block_size,
        "sources": [str(file) for file in files],
        "read": rejected.read,
        "dropped": dict(rejected.counts),
        "settings": {name: getattr(settings, name) for name in RECORDED_SETTINGS},
    }
    try:
        meta = write_rows(folder, tokenizer, rendered, content)
    except OSError as error:
        raise UserError(f"can't write to {folder}: {error.strerror}") from None
    return Preparation(
        folder=folder,
        meta=meta,
        rendered=rendered,
        rejected=rejected,
        chosen=chosen,
        n_cut=n_cut,
        n_split=sum(is_split(rows, tokenizer) for _, rows in rendered),
        has_given_splits=has_given_splits,
        n_systems=len(system_messages(rendered)),
        ends=ends,
        alike=alike,
    )


def split_rule(settings: PrepareSftSettings, has_labels: bool, ends: tuple[str, str]) -> SplitRule:
    """How the settings split the pairs; `ends` are those of the questions' template."""
    rule = SplitRule(settings.val_fraction, settings.test_fraction, settings.seed)
    if settings.fold and settings.folds:
        rule = rule._replace(fold=Fold(settings.fold, settings.folds))
    if has_labels:
        rule = rule._replace(has_labels=True, key=lambda text: core_of(without_ends(text, ends)))
    return rule


def add_passages(
    pairs: Sequence[Pair],
    labels: Sequence[str] | None,
    settings: PrepareSftSettings,
    open_book: OpenBook,
) -> None:
    """Puts passages of a book before each question.

    Raises UserError if there is no book, or if the pairs are not single questions with answers.
    """
    passages = f"passages={settings.passages}"
    if labels:
        raise UserError(f"{passages}: these answers are labels, which are not read from a book")
    for pair in pairs:
        if sum(message["role"] == "user" for message in pair.messages) > 1:
            raise UserError(
                f"{passages}: {pair.source} is a conversation, but passages are put before single"
                " questions only"
            )
    write_message = open_book(settings)
    for pair in pairs:
        pair.reading = write_message(pair.messages[-2]["content"])


def _require_training(pairs: Sequence[Pair], rejected: RejectedRecords) -> None:
    """UserError if no pair is for training, or can become one for it."""
    if any(pair.split in ("train", None) for pair in pairs):
        return
    lines = "".join(f"\n  {line}" for line in rejected_lines(rejected))
    advice = ""
    if "too long" in rejected.counts:
        advice = "\nset a longer --block_size, or shorten the template of the question"
    raise UserError(f"no pair is left to train on, of {rejected.read:,} rows read{lines}{advice}")


def task_fields(rendered: Sequence[RenderedPair], labels: list[str] | None) -> dict:
    """The fields of meta.json that say what a model learns from these pairs."""
    systems = system_messages(rendered)
    return {
        "task": "labels" if labels else "questions",
        "turns": max(_count_answers(pair) for pair in rendered),
        "labels": labels,
        "separator": None if labels else list_separator([pair.answer for pair, _ in rendered]),
        "system": systems[0] if len(systems) == 1 else "",
    }


def system_messages(rendered: Sequence[RenderedPair]) -> list[str]:
    """The different system messages of the training pairs; "" stands for none."""
    first = [pair.messages[0] for pair, _ in rendered if pair.split == "train"]
    return list(
        {message["content"] if message["role"] == "system" else "": None for message in first}
    )


def _count_answers(rendered: RenderedPair) -> int:
    return sum(message["role"] == "assistant" for message in rendered.pair.messages)
