"""What prepare_sft.py prints: the splits, what was rejected, leaks, the next command, rows."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from shuoshu.core.command_settings import PrepareSftSettings
from shuoshu.core.errors import UserError
from shuoshu.core.out_dirs import holds_adapter, holds_model, models_here, training_command
from shuoshu.core.terminal import counted, duration, shorten, table
from shuoshu.sft.dataset import QuestionDataset
from shuoshu.sft.labels import conflicts, core_of
from shuoshu.sft.leaks import find_leaks
from shuoshu.sft.pairs import MAX_COLUMNS_SHOWN, Pair, RejectedRecords, preview
from shuoshu.sft.rendering import RenderedPair, without_ends
from shuoshu.sft.splits import Group
from shuoshu.sft.tokenizer_choice import TokenizerChoice
from shuoshu.text.tokenizer import Tokenizer
from shuoshu.text.tokenizer_folder import load_tokenizer

MAX_EXAMPLES_SHOWN = 2  # for each reason to reject a record
MAX_LABELS_SHOWN = 20  # in the table
MAX_TEXT_COLUMNS = 40  # of a question in an example
ANSI_GREEN, ANSI_RESET = "\033[32m", "\033[0m"


@dataclass
class Preparation:
    """What prepare_sft.py made, and how."""

    folder: Path
    meta: dict
    rendered: list[RenderedPair]
    rejected: RejectedRecords
    chosen: TokenizerChoice
    n_cut: int  # questions whose middle was removed
    n_split: int  # answers that are split over several rows
    has_given_splits: bool  # in the files
    n_systems: int  # different system messages of the training pairs
    ends: tuple[str, str]  # of the questions' template
    alike: list[Group]  # of a labelling task: pairs whose texts are nearly equal

    @property
    def labels(self) -> list[str]:
        """The labels; empty if the task is to answer questions."""
        return self.meta["labels"] or []

    def text(self, pair: Pair) -> str:
        """The question without its template, shortened to a line."""
        return preview(without_ends(pair.question, self.ends), MAX_TEXT_COLUMNS)


def questions_summary(result: Preparation, settings: PrepareSftSettings, seconds: float) -> str:
    """The text that prepare_sft.py prints."""
    rejected, n_used = result.rejected, len(result.rendered)
    n_left_out = rejected.read - n_used
    lines = [
        f"read         {counted(rejected.read, 'row')}, {n_used:,} used, {n_left_out:,} left out",
        *rejected_lines(rejected),
        *unused_lines(rejected),
        *(f"note         {note}" for note in rejected.notes),
    ]
    if result.n_split:
        lines.append(f"too long     {counted(result.n_split, 'answer')} split over several rows")
    if result.labels:
        lines += labelling_lines(result)
    elif result.n_cut:
        lines.append(f"too long     {counted(result.n_cut, 'question')} shortened in the middle")
    if system := result.meta["system"]:
        lines.append(f"system       {shorten(' '.join(system.split()), 60)}: before every question")
    elif result.n_systems > 1:
        lines.append(
            f"system       {result.n_systems:,} different messages: the model will answer without"
            " one unless it is given (sample.py --system)"
        )
    if passages := result.meta["passages"]:
        lines.append(
            f"passages     up to {counted(passages, 'passage')} of the book before each question"
        )
    if separator := result.meta["separator"]:
        lines.append(f"answers      are lists separated by {separator}")
    lines += leak_lines(result)
    lines.append(f"splits       {_split_method(result)}")
    lines.append(f"written to   {result.folder} in {duration(seconds)}")
    lines += next_lines(result, settings)
    tables = [split_table(result), ""]
    if result.labels:
        tables += [label_table(result), ""]
    return "\n".join([*tables, *(f"  {line}" for line in lines)])


def split_table(result: Preparation) -> str:
    """A row for each split: its size, and the lengths of its rows."""
    rows: list[list[object]] = [
        ["split", "pairs", "rows", "answer tokens", "row tokens: median", "95%", "longest"]
    ]
    for split, entry in result.meta["splits"].items():
        lengths = [
            len(ids) for pair, made in result.rendered if pair.split == split for ids, _ in made
        ]
        percentiles = [int(value) for value in np.percentile(lengths or [0], [50, 95, 100])]
        rows.append([split, entry["pairs"], entry["rows"], entry["answer_tokens"], *percentiles])
    return table(rows)


def rejected_lines(rejected: RejectedRecords) -> list[str]:
    """For each reason the number of rejected records, and examples."""
    lines = []
    for reason, count in rejected.counts.most_common():
        lines.append(f"left out     {count:,} {reason}, for example")
        examples = rejected.examples[reason][:MAX_EXAMPLES_SHOWN]
        lines += [f"             {example}" for example in examples]
    return lines


def unused_lines(account: RejectedRecords) -> list[str]:
    """One line on the columns that aren't used, with an option that uses one; none if all are."""
    if not account.unused:
        return []
    shown = account.unused.most_common(MAX_COLUMNS_SHOWN)
    columns = [f"{preview(name, 30)} ({counted(count, 'row')})" for name, count in shown]
    if len(account.unused) > len(shown):
        columns.append(f"{len(account.unused) - len(shown):,} more columns")
    advice = f"; to use one: {account.unused_advice}" if account.unused_advice else ""
    return [f"not used     {', '.join(columns)}{advice}"]


def leak_lines(result: Preparation) -> list[str]:
    """The number of leaks of each kind with an example, or that there are none."""
    pairs = [pair for pair, _ in result.rendered]
    noun, aside = "question", ""
    if result.labels:
        noun, aside = "text", ", links and punctuation aside"
        report = find_leaks(pairs, key=lambda text: core_of(without_ends(text, result.ends)))
    else:
        report = find_leaks(pairs)
    lines = []
    if report.compared < report.candidates:
        lines.append(
            "leaks        near duplicates were searched for"
            f" {report.compared:,} of {report.candidates:,} {noun}s"
        )
    for kind, predicate in (
        ("exact", f"are also training {noun}s{aside}"),
        ("near", f"are nearly the same as a training {noun}"),
    ):
        leaks = [leak for leak in report.leaks if leak.kind == kind]
        if leaks:
            lines.append(
                f"leaks        {len(leaks):,} validation or test {noun}s {predicate}, for example"
            )
            pair, train = leaks[0].pair, leaks[0].train
            is_same = pair.question == train.question
            training_question = "" if is_same else f"  train: {result.text(train)}"
            lines.append(f"             {pair.split}: {result.text(pair)}{training_question}")
    if not any(pair.split in ("val", "test") for pair in pairs):
        lines.append(
            f"note         no {noun}s are held out, so the answers can't be measured"
            " or used to choose a checkpoint"
        )
    return lines or [
        f"leaks        none: no held-out {noun} is the same or nearly the same as a training {noun}"
    ]


def _split_method(result: Preparation) -> str:
    labels = result.labels
    method = "named in the files"
    if not result.has_given_splits:
        nouns = "nearly equal texts" if labels else "equal questions"
        method = f"at random by seed, {nouns} together"
        settings = result.meta["settings"]
        if settings["fold"]:
            method = f"test is fold {settings['fold']} of {settings['folds']}, the rest {method}"
        method += ", each label in proportion" if labels else ""
    return method


def next_lines(result: Preparation, settings: PrepareSftSettings) -> list[str]:
    """The command that trains on the data, after a note if there is no model for it here."""
    if result.chosen.folder is None:
        return [f"next         {training_command(result.folder, 'config/labels.py')}"]
    model = model_to_tune(result)
    lines = [f"next         {next_command(result, settings, model)}"]
    if model is None:
        lines.insert(
            0, "note         no model here has this tokenizer: pretrain one and set --init_from"
        )
    return lines


def model_to_tune(result: Preparation) -> Path | None:
    """The model in the tokenizer's folder, else the newest one here with the same tokenizer."""
    if holds_model(result.chosen.folder):
        return result.chosen.folder
    for folder in models_here():
        with suppress(UserError):
            if load_tokenizer(folder).hash == result.meta["tokenizer"]["hash"]:
                return folder
    return None


def next_command(result: Preparation, settings: PrepareSftSettings, model: Path | None) -> str:
    """The command that fine-tunes the model on the data; None: there is none here."""
    is_foreign = result.meta["tokenizer"]["kind"] == "foreign"
    arguments = [f"--init_from={model or ('MODEL' if is_foreign else 'scratch')}"]
    if settings.block_size or model != result.chosen.folder:
        arguments.append(f"--block_size={result.chosen.block_size}")
    if is_foreign or (model and holds_adapter(model)):
        return training_command(result.folder, "config/lora.py", arguments)
    if result.labels or result.meta["turns"] > 1 or not _can_be_paraphrased(result):
        # Labels seldom have questions whose words tell the answers apart, and conversations aren't
        # paraphrased.
        arguments += ["--paraphrases=0", "--batch_size=16", "--max_epochs=14"]
    if result.meta["passages"]:
        arguments += ["--question_drop=0", "--question_replace=0"]
    if result.labels:
        arguments.append("--min_iters=none")  # 900 steps of few reviews gained nothing: docs/log
    return training_command(result.folder, "config/sft.py", arguments)


def _can_be_paraphrased(result: Preparation) -> bool:
    """Whether the questions can be paraphrased, as config/sft.py does."""
    if result.meta["passages"]:
        return False
    try:
        QuestionDataset(result.folder, "train").add_paraphrases(load_tokenizer(result.folder), 1)
    except UserError:
        return False
    return True


# ---------------------------------------------------------------- labels


def label_table(result: Preparation) -> str:
    """A row for each label with its number of pairs in each split."""
    splits = list(result.meta["splits"])
    counts = Counter((pair.answer, pair.split) for pair, _ in result.rendered)
    rows: list[list[object]] = [["label", *splits]]
    shown = result.labels[:MAX_LABELS_SHOWN]
    for label in shown:
        rows.append([preview(label, 30), *(counts[label, split] for split in splits)])
    if rest := result.labels[len(shown) :]:
        numbers = [sum(counts[label, split] for label in rest) for split in splits]
        rows.append([f"{len(rest)} more labels", *numbers])
    return table(rows)


def labelling_lines(result: Preparation) -> list[str]:
    """Texts that are cut or nearly the same, texts with several labels, and the tokenizer."""
    n_texts, block_size = len(result.rendered), result.chosen.block_size
    lines = []
    if result.n_cut:
        lines.append(
            f"too long     {result.n_cut:,} of {n_texts:,} texts shortened in the middle"
            f" to fit into {block_size:,} tokens"
        )
    if result.alike:
        n_alike, n_groups = sum(map(len, result.alike)), counted(len(result.alike), "group")
        lines.append(
            f"alike        {n_alike:,} texts in {n_groups} differ only in links, punctuation, case"
            " and blanks"
        )
    if groups := conflicts(result.alike):
        lines.append(
            f"conflict     {sum(map(len, groups)):,} of these texts, in"
            f" {counted(len(groups), 'group')}, have several labels, for example"
        )
        for group in groups[:MAX_EXAMPLES_SHOWN]:
            counts = Counter(pair.answer for pair in group).most_common()
            labels = ", ".join(f"{preview(label, 20)} ({count})" for label, count in counts)
            lines.append(f"             {result.text(group[0])}: {labels}")
    tokenizer = result.chosen.tokenizer
    origin = f"that of {result.chosen.folder}"
    if result.chosen.folder is None:
        origin = f"{tokenizer.n_vocab:,} tokens, trained on the training texts"
    lines.append(f"tokenizer    {origin}; up to {block_size:,} tokens for a text with its label")
    return lines


# ---------------------------------------------------------------- rows


def show_rows(folder: Path, count: int) -> None:
    """Prints training rows as the model reads them, trained tokens in green (else in ⟦ ⟧)."""
    begin, end = (ANSI_GREEN, ANSI_RESET) if sys.stdout.isatty() else ("⟦", "⟧")
    tokenizer = load_tokenizer(folder)
    dataset = QuestionDataset(folder, "train")
    for number in range(min(count, len(dataset))):
        ids, mask = dataset.row(number)
        edges = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(ids)]
        text = ""
        for first, last in pairwise(edges):
            run = visible_text(ids[first:last].tolist(), tokenizer)
            text += f"{begin}{run}{end}" if mask[first] else run
        print(f"\nrow {number}  {text}")


def visible_text(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """The text of tokens, with the names of special tokens.

    Ordinary tokens are decoded together, because a character may have several tokens.
    """
    names = {number: name for name, number in tokenizer.specials.items()}
    text, ordinary = "", []
    for token in ids:
        if token in names:
            text += tokenizer.decode(ordinary) + names[token]
            ordinary = []
        else:
            ordinary.append(token)
    return text + tokenizer.decode(ordinary)
