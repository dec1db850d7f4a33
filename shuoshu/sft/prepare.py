"""Questions and answers become a data folder: read, split, rendered as rows; an account of it all."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from shuoshu.core import terminal
from shuoshu.core.errors import REPO_ROOT, UserError
from shuoshu.core.files import error_reason, is_count, read_json, same_path
from shuoshu.core.settings import PrepareSftSettings
from shuoshu.core.terminal import duration, shorten
from shuoshu.sft import pairs, question_files
from shuoshu.sft.conversations import parse_pairs
from shuoshu.sft.dataset import QuestionDataset, Row, cut_question, split_long_answer, write_rows
from shuoshu.sft.leaks import find_leaks
from shuoshu.sft.pairs import QUESTION_SPLITS, Pair, RejectedRecords
from shuoshu.text.dataset import read_meta
from shuoshu.text.tokenizer import Tokenizer


def prepare_sft(settings: PrepareSftSettings) -> None:
    """What prepare_sft.py does once its settings are known."""
    began = time.perf_counter()
    bundled = REPO_ROOT / "data" / "novella_qa"
    inputs = settings.inputs or (str(bundled),)
    files = question_files.find_question_files(inputs)
    folder = Path(settings.out or Path("data") / Path(inputs[0]).resolve().stem)
    if (
        settings.inputs
        and same_path(folder, bundled)
        and not all(same_path(name, bundled) for name in inputs)
    ):
        raise UserError(
            f"{folder} belongs to the bundled questions: choose another name with --out=data/NAME"
        )
    tokenizer, block = load_tokenizer(settings)
    check_target(folder, files)

    found, dropped = parse_pairs(files, settings)
    cut = (
        cut_questions(found, tokenizer, block + 1) if settings.too_long == "cut_question" else 0
    )  # before questions are compared
    found = pairs.drop_repeats(found, dropped)
    has_splits = any(pair.split for pair in found)
    pairs.split_pairs(found, settings.val_fraction, settings.test_fraction, settings.seed)
    rendered, told = render(found, tokenizer, block + 1, settings.too_long, dropped)
    told += [f"too long     {cut:,} questions had their middle taken out"] if cut else []
    if not any(pair.split == "train" for pair, _ in rendered):
        raise UserError(
            f"no pair is left to train on, of {dropped.read:,} rows read"
            + "".join(f"\n  {line}" for line in dropped_lines(dropped))
        )
    labels = pairs.closed_set_labels(found) or (
        sorted({pair.answer for pair in found}) if settings.labels else None
    )
    facts = {
        "turns": max(sum(m["role"] == "assistant" for m in pair.messages) for pair, _ in rendered),
        "labels": labels,
        "sources": [str(file) for file in files],
        "read": dropped.read,
        "dropped": dict(dropped.counts),
        "settings": {
            k: getattr(settings, k)
            for k in (
                "question",
                "answer",
                "system",
                "labels",
                "group",
                "too_long",
                "val_fraction",
                "test_fraction",
                "seed",
            )
        },
    }
    try:
        meta = write_rows(folder, tokenizer, rendered, facts)
    except OSError as error:
        raise UserError(f"can't write to {folder}: {error.strerror}") from None

    print(summary(rendered, meta, dropped))
    for line in [*told, *leak_lines([pair for pair, _ in rendered])]:
        print(f"  {line}")
    how = (
        "as the files say"
        if has_splits
        else "by seed, equal questions together" + (", each answer in proportion" if labels else "")
    )
    print(
        f"  splits       {how}"
        + (
            f"; a closed set of {len(labels)} answers: {shorten('、'.join(labels), 60)}"
            if labels
            else ""
        )
    )
    print(f"  written to   {folder} in {duration(time.perf_counter() - began)}")
    named = folder.name if folder.parent == Path("data") else folder
    wanted = [] if str(named) == "novella_qa" else [f"--dataset={named}"]
    wanted += [] if settings.tokenizer == "out-pretrain" else [f"--init_from={settings.tokenizer}"]
    wanted += [f"--block_size={settings.block_size}"] if settings.block_size else []
    if (
        labels or facts["turns"] > 1
    ):  # a look-up seldom tells labels apart, and conversations are not reworded
        wanted += ["--paraphrases=0", "--batch_size=16", "--max_epochs=14"]
    print(f"  next         {shlex.join(['python', 'train.py', 'config/sft.py', *wanted])}")
    if settings.show:
        show(folder, tokenizer, settings.show)


def load_tokenizer(settings: PrepareSftSettings) -> tuple[Tokenizer, int]:
    """The tokenizer, and how many tokens the model beside it reads."""
    home = Path(settings.tokenizer)
    if not (home / "tokenizer.json").is_file():
        how = (
            "pretrain a model first\n  python prepare.py\n  python train.py\nor "
            if settings.tokenizer == "out-pretrain"
            else ""
        )
        raise UserError(
            f"there is no tokenizer in {home}: {how}name the out-dir of the model to fine-tune with --tokenizer=FOLDER"
        )
    block = 256  # of a folder with a tokenizer alone
    if (home / "config.json").exists():
        try:
            block = read_json(home / "config.json")["max_position_embeddings"]
            if not is_count(block) or not block:
                raise ValueError("max_position_embeddings is no length")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{home / 'config.json'} is damaged ({error_reason(error)}): copy the model's folder anew"
            ) from None
    return Tokenizer.load(home), settings.block_size or block


def check_target(folder: Path, files: Sequence[Path]) -> None:
    """UserError where a file of the user's would be written over."""
    is_whole = (folder / "meta.json").is_file()
    ours = is_whole or (folder / "train.mask.bin").is_file()  # or what a killed preparation left
    targets = [
        folder / f"{split}{suffix}"
        for split in QUESTION_SPLITS
        for suffix in (".jsonl", ".bin", ".mask.bin")
    ] + [folder / "tokenizer.json"]
    taken = [
        path
        for path in targets
        if path.exists() and (not ours or path.resolve() in {file.resolve() for file in files})
    ]
    if taken:
        raise UserError(
            f"{taken[0]} would be written over: choose another folder with --out=data/NAME"
        )
    if is_whole and read_meta(folder)["task"] != "questions":
        raise UserError(f"{folder} holds prepared text: choose another folder with --out=data/NAME")


def cut_questions(found: Sequence[Pair], tokenizer: Tokenizer, width: int) -> int:
    """Takes the middle out of the questions of pairs that are too long, where that helps; how many there were."""
    cut = 0
    for pair in found:
        if len(tokenizer.render(pair.messages)[0]) > width and (
            messages := cut_question(tokenizer, pair.messages, width)
        ):
            pair.messages, cut = messages, cut + 1
    return cut


def render(
    found: Sequence[Pair], tokenizer: Tokenizer, width: int, too_long: str, dropped: RejectedRecords
) -> tuple[list[tuple[Pair, list[Row]]], list[str]]:
    """Each pair's rows, none cut in silence; and what was done to those that are too long."""
    rendered: list[tuple[Pair, list[Row]]] = []
    long: list[tuple[int, Pair]] = []
    windowed = 0
    for pair in found:
        ids, mask = tokenizer.render(pair.messages)
        made: list[Row] | None = [(ids, mask)]
        if len(ids) > width:
            long.append((len(ids), pair))
            made = split_long_answer(ids, mask, width) if too_long == "window" else None
            windowed += made is not None
            if made is None:
                dropped.add("too long", pair.source, f"{len(ids):,} tokens: {pair.question}")
                continue
        rendered.append((pair, made))
    if long and too_long == "error":
        length, pair = max(long, key=lambda item: item[0])
        raise UserError(
            f"{len(long):,} of {len(found):,} pairs are longer than the model's {width - 1:,} tokens. The longest, {pair.source}, has {length:,}:\n"
            f"  {shorten(' '.join(pair.question.split()), 90)}\n"
            f"choose --block_size={length - 1} (and train with it), which fits all, or\n"
            "  --too_long=drop          leaves these pairs out\n"
            "  --too_long=cut_question  takes the middle out of their questions\n"
            "  --too_long=window        lets their answers go on over several rows"
        )
    told = [f"too long     {windowed:,} answers go on over several rows"] if windowed else []
    return rendered, told


def summary(
    rendered: Sequence[tuple[Pair, list[Row]]], meta: dict, dropped: RejectedRecords
) -> str:
    """What was read, what was left out and what was made, for a person to read."""
    table: list[list[object]] = [
        ["split", "pairs", "rows", "answer tokens", "row tokens: median", "95%", "longest"]
    ]
    for split, facts in meta["splits"].items():
        lengths = [
            len(ids) for pair, made in rendered if pair.split == split for ids, _ in made
        ] or [0]
        middle, high, most = (int(value) for value in np.percentile(lengths, [50, 95, 100]))
        table.append(
            [split, facts["pairs"], facts["rows"], facts["answer_tokens"], middle, high, most]
        )
    used = len(rendered)
    lines = [
        terminal.table(table),
        "",
        f"  read         {dropped.read:,} rows, {used:,} used, {dropped.read - used:,} left out",
    ]
    return "\n".join(
        [
            *lines,
            *(f"  {line}" for line in dropped_lines(dropped)),
            *(f"  note         {note}" for note in dropped.notes),
        ]
    )


def dropped_lines(dropped: RejectedRecords) -> list[str]:
    lines = []
    for reason, count in dropped.counts.most_common():
        lines.append(f"left out     {count:,} {reason}, for example")
        lines += [f"             {example}" for example in dropped.examples[reason][:2]]
    return lines


def leak_lines(used: Sequence[Pair]) -> list[str]:
    """Held-out questions that the training questions give away."""
    report = find_leaks(list(used))
    found, lines = report.leaks, []
    if report.compared < report.candidates:
        lines.append(
            f"leaks        near duplicates were looked for of {report.compared:,} of {report.candidates:,} questions"
        )
    for kind, what in (
        ("exact", "stand among the training questions too"),
        ("near", "are nearly the same as a training question"),
    ):
        these = [leak for leak in found if leak.kind == kind]
        if these:
            lines.append(
                f"leaks        {len(these):,} validation or test questions {what}, for example"
            )
            short = [
                shorten(" ".join(pair.question.split()), 40)
                for pair in (these[0].pair, these[0].train)
            ]
            lines.append(
                f"             {these[0].pair.split}: {short[0]}"
                + (f"  train: {short[1]}" if kind == "near" else "")
            )
    if not any(pair.split in ("val", "test") for pair in used):
        lines.append(
            "note         no questions are held out: no checkpoint can be chosen by what it answers, and nothing measured"
        )
    return lines or [
        "leaks        none: no held-out question is the same or nearly the same as a training question"
    ]


def show(folder: Path, tokenizer: Tokenizer, count: int) -> None:
    """Prints training rows as the model gets them, what is trained in green (where there is no colour: in ⟦ ⟧)."""
    begin, end = ("\033[32m", "\033[0m") if sys.stdout.isatty() else ("⟦", "⟧")
    names = {number: name for name, number in tokenizer.specials.items()}
    file = QuestionDataset(folder, "train")
    for number in range(min(count, len(file))):
        ids, mask = file.row(number)
        edges = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(ids)]
        runs = [(int(mask[a]), ids[a:b].tolist()) for a, b in pairwise(edges)]
        texts = [
            (trained, "".join(names.get(i) or piece for i, piece in spelt(run, tokenizer, names)))
            for trained, run in runs
        ]
        print(
            f"\nrow {number}  "
            + "".join(f"{begin}{text}{end}" if trained else text for trained, text in texts)
        )


def spelt(ids: list[int], tokenizer: Tokenizer, names: dict[int, str]) -> list[tuple[int, str]]:
    """(id, text) of a run: ordinary tokens together, so that their characters are whole."""
    parts: list[tuple[int, str]] = []
    plain: list[int] = []
    for token in [*ids, -1]:
        if token in names or token == -1:
            parts += [(-1, tokenizer.decode(plain))] if plain else []
            parts += [(token, "")] if token in names else []
            plain = []
        else:
            plain.append(token)
    return parts
