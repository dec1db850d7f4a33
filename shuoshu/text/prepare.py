"""The prepare.py pipeline: read novels, clean them, cut them at chapters, encode, summarize."""

from __future__ import annotations

import os
import random
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from shuoshu.core.command_settings import PrepareSettings
from shuoshu.core.errors import REPO_ROOT, UserError
from shuoshu.core.out_dirs import holds_model, training_command
from shuoshu.core.terminal import duration, pad, shorten, table
from shuoshu.text.account import Account
from shuoshu.text.books import Book, Section, find_duplicate_books, find_files, read_books
from shuoshu.text.data_folder import DatasetWriter, target_folder
from shuoshu.text.tokenizer import (
    MAX_TRAINING_BYTES,
    Tokenizer,
    character_tokenizer,
    gpt2_tokenizer,
    train_bpe,
    vocab_size_for,
)
from shuoshu.text.tokenizer_folder import load_tokenizer

SAMPLE_PIECE = 20_000  # characters; the sample is drawn in pieces of this length
MAX_BOOKS_SHOWN = 12
MAX_NOTES_SHOWN = 12


def prepare(settings: PrepareSettings) -> None:
    """Runs prepare.py. Raises UserError, and writes nothing, if a file or a setting is unusable."""
    began = time.perf_counter()
    bundled = REPO_ROOT / "data" / "novella"
    inputs = settings.inputs or (str(bundled),)
    files = find_files(inputs)
    folder = target_folder(settings, "text", bundled, files)
    if settings.threads:
        os.environ["RAYON_NUM_THREADS"] = str(settings.threads)  # threads of train_bpe
    try:
        with DatasetWriter(folder) as writer:
            books, rejected = read_books(files, writer.staging, settings.encoding, settings.clean)
            check_files(rejected, len(files), settings.skip_bad, bool(books))
            for book in books:
                book.cut(settings.val_fraction)
            tokenizer, reason = choose_tokenizer(settings, books)
            writer.open(tokenizer)
            encode(books, tokenizer, writer, settings.threads or os.cpu_count() or 1)
            meta = writer.finish(
                books=[book_record(book) for book in books],
                settings={
                    name: getattr(settings, name)
                    for name in ("inputs", "tokenizer", "clean", "val_fraction", "seed")
                },
            )
    except OSError as error:
        raise UserError(f"can't write to {folder}: {error.strerror}") from None
    print(books_summary(books, meta, tokenizer, reason, settings.show_removed))
    for path, error in rejected:
        print(f"  skipped      {path}: {error}")
    print(f"  written to   {folder} in {duration(time.perf_counter() - began)}")
    print(f"  next         {command_for_text(folder, tokenizer, settings)}")


def command_for_text(folder: Path, tokenizer: Tokenizer, settings: PrepareSettings) -> str:
    """The command that trains on the data: a new model, or that of others with its tokenizer."""
    if tokenizer.kind == "foreign" and holds_model(Path(settings.tokenizer)):
        arguments = [f"--init_from={settings.tokenizer}"]
        return training_command(folder, "config/lora.py", arguments)
    return training_command(folder)


def check_files(
    rejected: list[tuple[Path, str]], count: int, skip_bad: bool, has_books: bool
) -> None:
    """UserError that lists the unusable files, unless they may be skipped and a book remains."""
    if not rejected or (skip_bad and has_books):
        return
    lines = "\n".join(f"  {path}: {reason}" for path, reason in rejected)
    advice = (
        "repair or remove them, or skip them with --skip_bad"
        if has_books
        else "no readable file is left"
    )
    raise UserError(
        f"{len(rejected)} of {count} files can't be read:\n{lines}\n{advice}; nothing was written"
    )


def book_record(book: Book) -> dict:
    """The book's entry in meta.json."""
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


# ---------------------------------------------------------------- tokenizer


def choose_tokenizer(settings: PrepareSettings, books: list[Book]) -> tuple[Tokenizer, str]:
    """(tokenizer, reason for the size of its vocabulary)."""
    if settings.tokenizer == "bpe":
        return _train_bpe(books, settings)
    if settings.tokenizer == "chars":
        counts: Counter[str] = Counter()
        for text in training_text(books):
            counts.update(text)
        tokenizer = character_tokenizer(counts, settings.vocab_size)
        return tokenizer, f"{len(counts):,} different characters, all others spelled in bytes"
    if settings.vocab_size:
        raise UserError(
            "--vocab_size needs --tokenizer=bpe or chars: "
            "an existing tokenizer has a fixed vocabulary"
        )
    if settings.tokenizer == "gpt2":
        return gpt2_tokenizer(), "GPT-2's 50,257 and four chat tokens"
    return load_tokenizer(settings.tokenizer), f"the tokenizer in {settings.tokenizer}"


def _train_bpe(books: list[Book], settings: PrepareSettings) -> tuple[Tokenizer, str]:
    characters = sum(book.val_from for book in books)
    vocab_size = settings.vocab_size or vocab_size_for(characters)
    tokenizer = train_bpe(sample_text(books, settings.seed), vocab_size)
    if not settings.vocab_size:
        return tokenizer, f"for {characters:,} characters of training text"
    if tokenizer.n_vocab < settings.vocab_size:
        return tokenizer, f"the text has too few pairs to merge for {settings.vocab_size:,}"
    return tokenizer, "set by --vocab_size"


def training_text(books: list[Book]) -> Iterator[str]:
    """Yields the training text section by section."""
    return (section.text for book in books for split, section in book.splits() if split == "train")


def sample_text(books: list[Book], seed: int) -> Iterator[str]:
    """Yields all of the training text, or random pieces of about MAX_TRAINING_BYTES in total."""
    share = MAX_TRAINING_BYTES / max(1, sum(book.file.stat().st_size for book in books))
    draw = random.Random(seed)
    for text in training_text(books):
        for start in range(0, len(text), SAMPLE_PIECE):
            if draw.random() < share:
                yield text[start : start + SAMPLE_PIECE]


# ---------------------------------------------------------------- encoding


def encode(books: list[Book], tokenizer: Tokenizer, writer: DatasetWriter, threads: int) -> None:
    """Encodes all sections in parallel and writes each to its split, in the order of the books."""

    def encode_section(
        item: tuple[int, str, Section],
    ) -> tuple[int, str, Section, np.ndarray, int]:
        text = item[2].text
        return *item, tokenizer.encode_to_numpy(text), len(text.encode("utf-8", "replace"))

    items = (
        (number, split, section)
        for number, book in enumerate(books)
        for split, section in book.splits()
    )
    document = None  # (book, split) of the section before
    with ThreadPoolExecutor(threads) as pool:
        encoded = ordered_map(pool, encode_section, items, ahead=4 * threads)
        for number, split, section, ids, n_bytes in encoded:
            if document and document != (number, split):
                writer.end_document(document[1])
            document = (number, split)
            if section.title is not None:
                writer.begin_chapter(split, number, section.title)
            writer.add(split, ids, len(section.text), n_bytes)
        writer.end_document(document[1])


def ordered_map(pool: ThreadPoolExecutor, work, items: Iterable, ahead: int) -> Iterator:
    """Like pool.map, but takes only `ahead` items in advance, so that memory stays bounded."""
    pending: deque = deque()
    for item in items:
        pending.append(pool.submit(work, item))
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


# ---------------------------------------------------------------- summary


def books_summary(
    books: list[Book], meta: dict, tokenizer: Tokenizer, reason: str, show_removed: bool
) -> str:
    """What prepare.py prints: books, cleaning account, splits, notes, vocabulary."""
    splits: list[list[object]] = [["split", "characters", "tokens", "documents"]]
    splits += [
        [name, split["characters"], split["tokens"], split["documents"]]
        for name, split in meta["splits"].items()
    ]
    characters = sum(split["characters"] for split in meta["splits"].values())
    tokens = sum(split["tokens"] for split in meta["splits"].values())
    return "\n".join(
        [
            book_table(books),
            "",
            *account_lines(books, show_removed),
            table(splits),
            "",
            *notes(books),
            f"  vocabulary   {tokenizer.n_vocab:,} ({tokenizer.kind}; {reason})",
            f"  compression  {characters / max(1, tokens):.2f} characters per token",
        ]
    )


def book_table(books: list[Book]) -> str:
    """A row for each book; of many books, the longest ones and a row for the rest."""
    rows: list[list[object]] = [["book", "encoding", "chapters", "characters", "validation"]]
    shown = books
    if len(books) > MAX_BOOKS_SHOWN:
        shown = sorted(books, key=lambda book: -book.characters)[:MAX_BOOKS_SHOWN]
    for book in shown:
        title, val_share = shorten(book.title, 40), f"{1 - book.val_from / book.characters:.1%}"
        rows.append([title, book.encoding, len(book.chapters), book.characters, val_share])
    if rest := [book for book in books if book not in shown]:
        chapters = sum(len(book.chapters) for book in rest)
        rows.append([f"{len(rest)} more", "", chapters, sum(b.characters for b in rest), ""])
    return table(rows, left=2)


def account_lines(books: list[Book], show_removed: bool) -> list[str]:
    """The cleaning account of all books, then one example of each kind of removed text, or all."""
    total = Account()
    for book in books:
        total.add(book.account)
    change = {rule: total.added[rule] - total.removed[rule] for rule in total.places}
    rows: list[list[object]] = [["account", "places", "characters"], ["read", "", total.read]]
    rows += [[rule, total.places[rule], change[rule]] for rule in sorted(change, key=change.get)]
    lines = [table([*rows, ["kept", "", total.kept]]), ""]
    if not total.pieces:
        return lines
    if not show_removed:
        lines.append("  removed text, one example of each kind (--show_removed lists all)")
    for rule, pieces in total.pieces.items():
        texts = [" ".join(piece.split()) for piece in pieces]
        if show_removed:
            lines += [f"  {rule}", *(f"    {text}" for text in texts if text)]
        elif any(texts):
            example = max(texts, key=lambda text: min(len(text), 60))
            lines.append(f"  {pad(rule, 18)} {shorten(example, 78)}")
    return [*lines, ""]


def notes(books: list[Book]) -> list[str]:
    """What to check before training: duplicate books and odd characters."""
    lines = [
        f"{share:.0%} of {a.title} is also in {b.title}: is it the same book twice?"
        for a, b, share in find_duplicate_books(books)
    ]
    for book in books:
        if odd := ", ".join(f"{count:,} {kind}" for kind, count in book.odd.items() if count):
            lines.append(f"{book.title} has odd characters: {odd}")
    if len(lines) > MAX_NOTES_SHOWN:
        lines[MAX_NOTES_SHOWN:] = [f"and {len(lines) - MAX_NOTES_SHOWN} more notes"]
    return [f"  note         {line}" for line in lines]
