"""Novels become a data folder: read, cleaned, cut at chapters, encoded; an account of it all."""

from __future__ import annotations

import os
import random
import shlex
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from shuoshu.core.errors import REPO_ROOT, UserError
from shuoshu.core.files import same_path
from shuoshu.core.settings import PrepareSettings
from shuoshu.core.terminal import duration, pad, shorten, table
from shuoshu.text import dataset
from shuoshu.text.books import Account, Book, Section, find_duplicate_books, find_files, read_books
from shuoshu.text.tokenizer import Tokenizer, character_tokenizer, gpt2_tokenizer, train_bpe

SAMPLE_BYTES = (
    8_000_000  # of text that a tokenizer is trained on: more costs seconds and changes little
)
SAMPLE_PIECE = 20_000  # characters drawn together


def prepare(settings: PrepareSettings) -> None:
    """What prepare.py does once its settings are known."""
    began = time.perf_counter()
    inputs = settings.inputs or (str(REPO_ROOT / "data" / "novella"),)
    files = find_files(inputs)
    folder = Path(settings.out or Path("data") / Path(inputs[0]).resolve().stem)
    bundled = REPO_ROOT / "data" / "novella"
    if (
        settings.inputs
        and same_path(folder, bundled)
        and not all(same_path(name, bundled) for name in inputs)
    ):
        raise UserError(
            f"{folder} belongs to the bundled novella: choose another name with --out=data/NAME"
        )

    if settings.threads:
        os.environ["RAYON_NUM_THREADS"] = str(settings.threads)  # for the tokenizer's training
    try:
        with dataset.DatasetWriter(folder) as writer:
            books, bad = read_books(files, writer.aside, settings.encoding, settings.clean)
            check_files(bad, len(files), settings.skip_bad, bool(books))
            for book in books:
                book.cut(settings.val_fraction)
            tokenizer, why = choose_tokenizer(settings, books)
            writer.open(tokenizer)
            encode(books, tokenizer, writer, settings.threads or os.cpu_count() or 1)
            meta = writer.finish(
                books=[book_facts(book) for book in books],
                settings={
                    name: getattr(settings, name)
                    for name in ("tokenizer", "clean", "val_fraction", "seed")
                },
            )
    except OSError as error:
        raise UserError(f"can't write to {folder}: {error.strerror}") from None
    print(summary(books, meta, tokenizer, why, settings.show_removed))
    for path, reason in bad:
        print(f"  left out     {path}: {reason}")
    named = folder.name if folder.parent == Path("data") else folder
    print(f"  written to   {folder} in {duration(time.perf_counter() - began)}")
    print(f"  next         python train.py {shlex.quote(f'--dataset={named}')}")


def check_files(bad: list[tuple[Path, str]], count: int, skip_bad: bool, has_books: bool) -> None:
    """UserError if files are no text, unless they are to be left out."""
    if bad and not (skip_bad and has_books):
        told = "\n".join(f"  {path}: {reason}" for path, reason in bad)
        how = (
            "mend or remove them, or leave them out with --skip_bad"
            if has_books
            else "nothing is left to read"
        )
        raise UserError(
            f"{len(bad)} of {count} files can't be read:\n{told}\n{how}; nothing was written"
        )


def book_facts(book: Book) -> dict:
    """What meta.json says of a book."""
    account = book.account
    rules = {
        rule: [account.places[rule], account.removed[rule], account.added[rule]]
        for rule in account.places
    }
    return {
        "title": book.title,
        "source": book.source,
        "encoding": book.encoding,
        "characters": book.characters,
        "account": {"read": account.read, "kept": account.kept, "rules": rules},
        "odd": {kind: count for kind, count in book.odd.items() if count},
    }


def choose_tokenizer(settings: PrepareSettings, books: list[Book]) -> tuple[Tokenizer, str]:
    """The tokenizer, and in a few words why its vocabulary has this size."""
    characters = sum(book.val_from for book in books)
    if settings.tokenizer == "bpe":
        by_size = 2048 if characters < 250_000 else 4096 if characters < 1_000_000 else 8192
        tokenizer = train_bpe(sample(books, settings.seed), settings.vocab_size or by_size)
        if settings.vocab_size and tokenizer.n_vocab < settings.vocab_size:
            return tokenizer, f"the text has no pair left to merge before {settings.vocab_size:,}"
        return (
            tokenizer,
            "as asked"
            if settings.vocab_size
            else f"for {characters:,} characters of training text",
        )
    if settings.tokenizer == "chars":
        counts: Counter[str] = Counter()
        for text in training_text(books):
            counts.update(text)
        tokenizer = character_tokenizer(counts, settings.vocab_size)
        return tokenizer, f"{len(counts):,} different characters, and the bytes to spell any other"
    if settings.vocab_size:
        raise UserError(
            "--vocab_size goes with --tokenizer=bpe or chars: a finished tokenizer has its size already"
        )
    if settings.tokenizer == "gpt2":
        return gpt2_tokenizer(), "GPT-2's 50,257 and four chat tokens"
    return Tokenizer.load(settings.tokenizer), f"the tokenizer of {settings.tokenizer}"


def training_text(books: list[Book]) -> Iterator[str]:
    return (section.text for book in books for split, section in book.splits() if split == "train")


def sample(books: list[Book], seed: int) -> Iterator[str]:
    """All of the training text, or random pieces of it that come to about SAMPLE_BYTES."""
    share = SAMPLE_BYTES / max(1, sum(book.file.stat().st_size for book in books))
    draw = random.Random(seed)
    for text in training_text(books):
        for start in range(0, len(text), SAMPLE_PIECE):
            if draw.random() < share:
                yield text[start : start + SAMPLE_PIECE]


def encode(
    books: list[Book], tokenizer: Tokenizer, writer: dataset.DatasetWriter, threads: int
) -> None:
    """Every section through the tokenizer, on all cores, into its split, in order."""

    def encoded(item: tuple[int, str, Section]) -> tuple[int, str, Section, np.ndarray, int]:
        book, split, section = item
        return (
            book,
            split,
            section,
            tokenizer.encode_to_numpy(section.text),
            len(section.text.encode("utf-8", "replace")),
        )

    items = (
        (number, split, section)
        for number, book in enumerate(books)
        for split, section in book.splits()
    )
    before = None
    with ThreadPoolExecutor(threads) as pool:
        for number, split, section, ids, n_bytes in ordered_map(
            pool, encoded, items, ahead=4 * threads
        ):
            if before and before != (number, split):
                writer.end_document(before[1])
            before = (number, split)
            if section.title is not None:
                writer.begin_chapter(split, number, section.title)
            writer.add(split, ids, len(section.text), n_bytes)
        writer.end_document(before[1])


def ordered_map(pool: ThreadPoolExecutor, work, items: Iterable, ahead: int) -> Iterator:
    """pool.map that reads only a little ahead, so that memory doesn't grow with the corpus."""
    waiting: deque = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def summary(
    books: list[Book], meta: dict, tokenizer: Tokenizer, why: str, show_removed: bool
) -> str:
    """What was read, what was done to it and what was made, for a person to read."""
    train, val = meta["splits"]["train"], meta["splits"]["val"]
    rows: list[list[object]] = [["book", "encoding", "chapters", "characters", "validation"]]
    shown = sorted(books, key=lambda book: -book.characters)[:12] if len(books) > 12 else books
    rows += [
        [
            shorten(b.title, 40),
            b.encoding,
            len(b.chapters),
            b.characters,
            f"{1 - b.val_from / b.characters:.1%}",
        ]
        for b in shown
    ]
    if len(books) > len(shown):
        rest = [b for b in books if b not in shown]
        rows.append(
            [
                f"{len(rest)} more",
                "",
                sum(len(b.chapters) for b in rest),
                sum(b.characters for b in rest),
                "",
            ]
        )
    splits: list[list[object]] = [["split", "characters", "tokens", "documents"]]
    splits += [
        [name, part["characters"], part["tokens"], part["documents"]]
        for name, part in meta["splits"].items()
    ]
    per_token = (train["characters"] + val["characters"]) / max(1, train["tokens"] + val["tokens"])
    return "\n".join(
        [
            table(rows, left=2),
            "",
            *account_lines(books, show_removed),
            table(splits),
            "",
            *warnings(books),
            f"  vocabulary   {tokenizer.n_vocab:,} ({tokenizer.kind}; {why})",
            f"  a token is   {per_token:.2f} characters on average",
        ]
    )


def account_lines(books: list[Book], show_removed: bool) -> list[str]:
    """Where every character went; a sample, or all, of what was taken out."""
    total = Account()
    for book in books:
        total.add(book.account)
    rows: list[list[object]] = [["account", "places", "characters"], ["read", "", total.read]]
    rows += [
        [rule, total.places[rule], total.added[rule] - total.removed[rule]]
        for rule in sorted(total.places, key=lambda rule: total.added[rule] - total.removed[rule])
    ]
    lines = [table([*rows, ["kept", "", total.kept]]), ""]
    for rule, pieces in total.pieces.items():
        texts = [" ".join(piece.split()) for piece in pieces]
        if show_removed:
            lines += [f"  {rule}", *(f"    {text}" for text in texts if text)]
        elif any(texts):
            sample = max(texts, key=lambda text: min(len(text), 60))
            lines.append(f"  {pad(rule, 18)} {shorten(sample, 78)}")
    return [*lines, ""] if total.pieces else lines


def warnings(books: list[Book]) -> list[str]:
    """What a reader should know before training on this."""
    told = [
        f"  note         {share:.0%} of {a.title} stand in {b.title} too: the same book twice?"
        for a, b, share in find_duplicate_books(books)
    ]
    for book in books:
        if odd := ", ".join(f"{count:,} {kind}" for kind, count in book.odd.items() if count):
            told.append(f"  note         {book.title} has odd characters: {odd}")
    return told[:12] + (
        [f"  note         and {len(told) - 12} more notes"] if len(told) > 12 else []
    )
