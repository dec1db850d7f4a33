"""Novels in, tokens out: data/<name>/{train,val}.bin, tokenizer.json and meta.json.

python prepare.py [FILE|FOLDER ...] [--out=data/<name>] [--tokenizer=bpe|chars|gpt2|FOLDER] [--key=value ...]
With no input it prepares the bundled novella.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from shuoshu import batches, report
from shuoshu.commandline import HOUSE, UserError, command, parse
from shuoshu.settings import PrepareSettings
from shuoshu.text import Book, Section, find_books
from shuoshu.tokenizer import Tokenizer, character_tokenizer, gpt2_tokenizer, train_bpe

SAMPLE_BYTES = 8_000_000  # of text that a tokenizer is trained on: more costs seconds and changes little
SAMPLE_PIECE = 20_000  # characters drawn together


@command
def main(argv: Sequence[str]) -> None:
    settings = parse(PrepareSettings, argv, __doc__)
    began = time.perf_counter()
    inputs = settings.inputs or (str(HOUSE / "data" / "novella"),)
    folder = Path(settings.out or Path("data") / Path(inputs[0]).resolve().stem)
    bundled = (HOUSE / "data" / "novella").resolve()
    if settings.inputs and folder.resolve() == bundled and any(Path(name).resolve() != bundled for name in inputs):
        raise UserError(f"{folder} belongs to the bundled novella: choose another name with --out=data/NAME")

    books = find_books(inputs)
    for book in books:
        book.survey()
        book.cut(settings.val_fraction)
    tokenizer, why = choose_tokenizer(settings, books)
    try:
        with batches.DatasetWriter(folder, tokenizer) as writer:
            encode(books, tokenizer, writer, settings.threads or os.cpu_count() or 1)
            meta = writer.finish(
                books=[{"title": b.title, "source": b.path.name, "characters": b.characters} for b in books],
                settings={"tokenizer": settings.tokenizer, "val_fraction": settings.val_fraction, "seed": settings.seed},
            )
    except OSError as error:
        raise UserError(f"can't write to {folder}: {error.strerror}; nothing there has changed") from None
    print(summary(books, meta, tokenizer, why, folder, time.perf_counter() - began))


def choose_tokenizer(settings: PrepareSettings, books: list[Book]) -> tuple[Tokenizer, str]:
    """The tokenizer, and in a few words why its vocabulary has this size."""
    characters = sum(book.val_from if settings.val_fraction else book.characters for book in books)
    if settings.tokenizer == "bpe":
        by_size = 2048 if characters < 250_000 else 4096 if characters < 1_000_000 else 8192
        tokenizer = train_bpe(sample(books, settings.seed), settings.vocab_size or by_size)
        if settings.vocab_size and tokenizer.n_vocab < settings.vocab_size:
            return tokenizer, f"the text has no pair left to merge before {settings.vocab_size:,}"
        return tokenizer, "as asked" if settings.vocab_size else f"for {characters:,} characters of training text"
    if settings.tokenizer == "chars":
        counts: Counter[str] = Counter()
        for text in training_text(books):
            counts.update(text)
        tokenizer = character_tokenizer(counts, settings.vocab_size)
        return tokenizer, f"{len(counts):,} different characters, and the bytes to spell any other"
    if settings.vocab_size:
        raise UserError("--vocab_size goes with --tokenizer=bpe or chars: a finished tokenizer has its size already")
    if settings.tokenizer == "gpt2":
        return gpt2_tokenizer(), "GPT-2's 50,257 and four chat tokens"
    return Tokenizer.load(settings.tokenizer), f"the tokenizer of {settings.tokenizer}"


def training_text(books: list[Book]) -> Iterator[str]:
    return (section.text for book in books for split, section in book.splits() if split == "train")


def sample(books: list[Book], seed: int) -> Iterator[str]:
    """All of the training text, or random pieces of it that come to about SAMPLE_BYTES."""
    share = SAMPLE_BYTES / max(1, sum(book.path.stat().st_size for book in books))
    draw = random.Random(seed)
    for text in training_text(books):
        for start in range(0, len(text), SAMPLE_PIECE):
            if draw.random() < share:
                yield text[start : start + SAMPLE_PIECE]


def encode(books: list[Book], tokenizer: Tokenizer, writer: batches.DatasetWriter, threads: int) -> None:
    """Every section through the tokenizer, on all cores, into its split, in order."""

    def encoded(item: tuple[int, str, Section]) -> tuple[int, str, Section, np.ndarray, int]:
        book, split, section = item
        return book, split, section, tokenizer.encode_to_numpy(section.text), len(section.text.encode("utf-8", "replace"))

    items = ((number, split, section) for number, book in enumerate(books) for split, section in book.splits())
    before = None
    with ThreadPoolExecutor(threads) as pool:
        for number, split, section, ids, n_bytes in in_order(pool, encoded, items, ahead=4 * threads):
            if before and before != (number, split):
                writer.end_document(before[1])
            before = (number, split)
            if section.title is not None:
                writer.begin_chapter(split, number, section.title)
            writer.add(split, ids, len(section.text), n_bytes)
        writer.end_document(before[1])


def in_order(pool: ThreadPoolExecutor, work, items: Iterable, ahead: int) -> Iterator:
    """pool.map that reads only a little ahead, so that memory doesn't grow with the corpus."""
    waiting: deque = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def summary(books: list[Book], meta: dict, tokenizer: Tokenizer, why: str, folder: Path, seconds: float) -> str:
    """What was made, for a person to read."""
    train, val = meta["splits"]["train"], meta["splits"]["val"]
    rows: list[list[object]] = [["book", "chapters", "characters", "validation"]]
    shown = sorted(books, key=lambda book: -book.characters)[:12] if len(books) > 12 else books
    rows += [[report.shorten(b.title, 40), len(b.chapters), b.characters, f"{1 - b.val_from / b.characters:.1%}"] for b in shown]
    if len(books) > len(shown):
        rest = [b for b in books if b not in shown]
        rows.append([f"{len(rest)} more", sum(len(b.chapters) for b in rest), sum(b.characters for b in rest), ""])
    tokens = train["tokens"] + val["tokens"]
    characters = train["characters"] + val["characters"]
    splits: list[list[object]] = [["split", "characters", "tokens", "documents"]]
    splits += [[name, part["characters"], part["tokens"], part["documents"]] for name, part in meta["splits"].items()]
    return "\n".join(
        [
            report.table(rows),
            "",
            report.table(splits),
            "",
            f"  vocabulary   {tokenizer.n_vocab:,} ({tokenizer.kind}; {why})",
            f"  a token is   {characters / max(1, tokens):.2f} characters on average",
            f"  written to   {folder} in {report.duration(seconds)}",
            f"  next         python train.py --dataset={folder.name if folder.parent == Path('data') else folder}",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
