"""Novel files to books: finds and cleans files, splits off validation text, detects duplicates.

A book's cleaned text is stored in a file; only a part of it is in memory at a time.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np

from shuoshu.core.errors import UserError
from shuoshu.core.files import find_input_files
from shuoshu.text.account import Account
from shuoshu.text.cleaning import clean_text
from shuoshu.text.encodings import (
    TEXT_SUFFIXES,
    TextDecoder,
    last_line_start,
    max_unpacked_bytes,
    raw_texts,
)
from shuoshu.text.headings import HEADING

BLOCK_CHARACTERS = 1 << 17  # read at once; a longer section is cut
MAX_LINE_BLOCKS = 4  # blocks after which a line without an end is cut
MAX_VAL_FACTOR = 4  # a chapter's start may make the validation text this many times too large
# Characters that the user should check before training. They are counted, not removed.
ODD_CHARACTERS = {
    "private-use": re.compile("[\ue000-\uf8ff]"),
    "unreadable (�)": re.compile("�"),
    "rare": re.compile("[\u3400-\u4dbf\uf900-\ufaff\U00020000-\U0003ffff]"),
}


@dataclass
class Section:
    """A piece of a book's text. One with a title begins a chapter, one without continues it."""

    title: str | None
    text: str


@dataclass
class Book:
    """A cleaned text in a file, with its chapters and counts."""

    title: str
    source: str  # the name of the original file
    encoding: str
    file: Path  # the cleaned text in UTF-8
    account: Account = field(default_factory=Account)
    characters: int = 0
    chapters: list[tuple[str, int]] = field(default_factory=list)  # (title, offset in characters)
    odd: Counter = field(default_factory=Counter)  # kind of ODD_CHARACTERS → count
    fingerprint: set[int] = field(default_factory=set)
    val_from: int = 0  # character at which the validation text begins

    def cut(self, val_fraction: float) -> None:
        """Sets `val_from` to the chapter start nearest to this fraction of the book's end.

        `splits` cuts at the next line instead if there are no chapters, or if that one would make
        the validation text more than four times too large.
        """
        target = round(self.characters * (1 - val_fraction))
        self.val_from = target
        starts = [start for _, start in self.chapters if start > 0]
        if val_fraction and starts:
            nearest = min(starts, key=lambda start: abs(start - target))
            if self.characters - nearest <= MAX_VAL_FACTOR * val_fraction * self.characters:
                self.val_from = nearest

    def splits(self, block_characters: int = BLOCK_CHARACTERS) -> Iterator[tuple[str, Section]]:
        """Yields (split, section) in the book's order; the section at `val_from` is cut in two."""
        position, split = 0, "train"
        for section in sections(self.file, block_characters):
            end = position + len(section.text)
            if split == "train" and end > self.val_from:
                at = self.val_from - position
                if at > 0:
                    at = _line_start_from(section.text, at, is_last=end == self.characters)
                    yield "train", Section(section.title, section.text[:at])
                    section = Section(None, section.text[at:])
                split = "val"
            if section.text:
                yield split, section
            position = end


def _line_start_from(text: str, at: int, is_last: bool) -> int:
    """Start of the first line at or after `at`; `at` itself if no text would remain."""
    start = text.find("\n", at - 1) + 1
    leaves_text = start < len(text) or not is_last
    return start if start and leaves_text else at


# ---------------------------------------------------------------- find and read files


def find_files(inputs: Sequence[str]) -> list[Path]:
    """The .txt, .zip and .gz files that the user names, each once; folders are searched.

    Raises UserError if a path doesn't exist or a folder has no such file.
    """
    return find_input_files(inputs, TEXT_SUFFIXES, lambda folder: folder.rglob("*"))


def read_books(
    files: Sequence[Path], folder: Path, encoding: str | None = None, remove: bool = True
) -> tuple[list[Book], list[tuple[Path, str]]]:
    """(books, unusable files with the reason). Cleans each text into a file in `folder`."""
    books: list[Book] = []
    rejected: list[tuple[Path, str]] = []
    for path in files:
        is_zip = path.suffix.lower() == ".zip"
        try:
            for title, file in raw_texts(path):
                cleaned = folder / f"{len(books):06d}.txt"
                try:
                    decoder = TextDecoder(file, encoding, max_unpacked_bytes(path))
                    books.append(_read_book(title, path, decoder, cleaned, remove))
                except UserError as error:
                    reason = f"{title}.txt in it: {error}" if is_zip else str(error)
                    rejected.append((path, reason))
        except UserError as error:
            rejected.append((path, str(error)))
    return books, rejected


def _read_book(title: str, path: Path, decoder: TextDecoder, cleaned: Path, remove: bool) -> Book:
    book = Book(printable(title), printable(path.name), decoder.encoding, cleaned)
    with cleaned.open("w", encoding="utf-8", errors="replace", newline="\n") as file:
        for number, part in enumerate(decoder.parts()):
            text, account = clean_text(part, remove, is_beginning=number == 0)
            file.write(text)
            book.account.add(account)
            book.chapters += [
                (" ".join(match[1].split()), book.characters + match.start())
                for match in HEADING.finditer(text)
            ]
            book.characters += len(text)
            book.odd.update(
                {k: len(pattern.findall(text)) for k, pattern in ODD_CHARACTERS.items()}
            )
            book.fingerprint |= _fingerprint(text)
    book.encoding = decoder.encoding  # of a long text that begins with ASCII it is known only now
    return book


def printable(name: str) -> str:
    """A file name on one line; unprintable and undecodable bytes become �."""
    return "".join(c if c.isprintable() or c == "　" else "�" for c in name)


# ---------------------------------------------------------------- duplicates

SPAN_LETTERS = 8  # long enough that different books rarely share a span by chance
SPANS_PER_HASH = 64  # one span in 64 is compared, chosen by its hash
MAX_OWNERS = 20  # a span in more books is a common phrase
MIN_DUPLICATE_SHARE = 0.5  # of the shorter book's spans
MIN_SHARED_SPANS = 4  # fewer are no evidence
HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio (Knuth's multiplicative hash)


def _fingerprint(text: str) -> set[int]:
    """Hashes of about one in 64 of the 8-letter spans: copies of a book share most of them."""
    letters = "".join(filter(str.isalnum, text)).encode("utf-32-le", "replace")
    codes = np.frombuffer(letters, dtype=np.uint32).astype(np.uint64)
    if len(codes) < SPAN_LETTERS:
        return set()
    hashes = np.zeros(len(codes) - SPAN_LETTERS + 1, dtype=np.uint64)
    for k in range(SPAN_LETTERS):
        hashes = hashes * HASH_FACTOR + codes[k : k + len(hashes)]
    hashes ^= hashes >> np.uint64(31)
    return set(hashes[hashes % np.uint64(SPANS_PER_HASH) == 0].tolist())


def find_duplicate_books(books: Sequence[Book]) -> list[tuple[Book, Book, float]]:
    """(book, book, share) for each pair that shares over half of the shorter book's spans."""
    owners: dict[int, list[int]] = {}  # span → indices of the books that contain it
    for number, book in enumerate(books):
        for span in book.fingerprint:
            owners.setdefault(span, []).append(number)
    shared: Counter = Counter()
    for numbers in owners.values():
        if 1 < len(numbers) <= MAX_OWNERS:
            shared.update(combinations(numbers, 2))
    pairs = []
    for (a, b), count in sorted(shared.items()):
        share = count / min(len(books[a].fingerprint), len(books[b].fingerprint))
        if share > MIN_DUPLICATE_SHARE and count >= MIN_SHARED_SPANS:
            pairs.append((books[a], books[b], share))
    return pairs


# ---------------------------------------------------------------- sections


def sections(file: Path, block_characters: int = BLOCK_CHARACTERS) -> Iterator[Section]:
    """Yields a cleaned text in sections, cut at headings and after a block of this length."""
    for block in _blocks(file, block_characters):
        headings = list(HEADING.finditer(block))
        starts = [match.start() for match in headings]
        titles: list[str | None] = [" ".join(match[1].split()) for match in headings]
        if not starts or starts[0] > 0:
            starts.insert(0, 0)
            titles.insert(0, None)
        for title, start, end in zip(titles, starts, [*starts[1:], len(block)], strict=True):
            yield Section(title, block[start:end])


def _blocks(file: Path, characters: int) -> Iterator[str]:
    """Yields blocks of about this many characters that end at a line end.

    The next block begins with a non-blank line, so that the tokenizer gives the same ids as for the
    whole text.
    """
    buffer = ""
    with file.open(encoding="utf-8", newline="\n") as text:
        while chunk := text.read(characters):
            buffer += chunk
            cut = last_line_start(buffer)
            if not cut and len(buffer) > MAX_LINE_BLOCKS * characters:
                cut = len(buffer)
            if cut:
                yield buffer[:cut]
                buffer = buffer[cut:]
    if buffer:
        yield buffer
