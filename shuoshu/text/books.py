"""Novels as they are found → books: decoded, cleaned into a file aside, cut at their chapters, never more than a part in memory."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np

from shuoshu.core.errors import UserError
from shuoshu.core.files import error_reason, missing_path_message
from shuoshu.text.cleaning import HEADING, Account, clean_text
from shuoshu.text.encodings import SUFFIXES, TextDecoder, last_line_start, most_of, raw_texts

BLOCK = 1 << 17  # characters of the longest section
ODD = {
    "private-use": re.compile("[\ue000-\uf8ff]"),
    "unreadable (�)": re.compile("�"),
    "rare": re.compile("[\u3400-\u4dbf\uf900-\ufaff\U00020000-\U0003ffff]"),
}


@dataclass
class Section:
    """A run of text; one with a title begins a chapter, one without goes on with it."""

    title: str | None
    text: str


@dataclass
class Book:
    title: str
    source: str  # the file's name, as it was found
    encoding: str
    file: Path  # the cleaned text, in UTF-8
    account: Account = field(default_factory=Account)
    characters: int = 0
    chapters: list[tuple[str, int]] = field(
        default_factory=list
    )  # (title, where it begins in characters)
    odd: Counter = field(
        default_factory=Counter
    )  # kinds of characters that a reader should know of
    fingerprint: set[int] = field(default_factory=set)
    val_from: int = 0  # the character at which the validation text begins

    def cut(self, val_fraction: float) -> None:
        """Puts the validation text at the chapter that comes nearest to leaving this share of the book.

        Where that would be over four times the share asked for (few chapters, or none), it begins at the next line.
        """
        target = round(self.characters * (1 - val_fraction))
        self.val_from = target
        starts = [start for _, start in self.chapters if start > 0]
        if val_fraction and starts:
            nearest = min(starts, key=lambda start: abs(start - target))
            if self.characters - nearest <= 4 * val_fraction * self.characters:
                self.val_from = nearest

    def splits(self) -> Iterator[tuple[str, Section]]:
        """The book's sections in order, each with the split it belongs to."""
        position, split = 0, "train"
        for section in sections(self.file):
            end = position + len(section.text)
            if split == "train" and end > self.val_from:
                at = self.val_from - position
                if at > 0:  # inside a section: at the next line, or right here in the last one
                    line = section.text.find("\n", at - 1) + 1
                    at = (
                        line if line and (line < len(section.text) or end < self.characters) else at
                    )
                    yield "train", Section(section.title, section.text[:at])
                    section = Section(None, section.text[at:])
                split = "val"
            if section.text:
                yield split, section
            position = end


# ---------------------------------------------------------------- finding and reading


def find_files(inputs: Sequence[str]) -> list[Path]:
    """The .txt, .zip and .gz files that the user names, folders searched through, each once and in order."""
    found: dict[Path, Path] = {}
    for name in inputs:
        path = Path(name)
        try:
            files = (
                [path]
                if path.is_file()
                else sorted(
                    p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()
                )
            )
            if not files:
                raise UserError(
                    f"the folder {path} holds no {', '.join(SUFFIXES)} file"
                    if path.is_dir()
                    else missing_path_message(path)
                )
        except OSError as error:
            raise UserError(f"can't look into {path}: {error_reason(error)}") from None
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def read_books(
    files: Sequence[Path], aside: Path, encoding: str | None = None, remove: bool = True
) -> tuple[list[Book], list[tuple[Path, str]]]:
    """(books, each cleaned into a file in the folder `aside`; files that are no text, with the reason)."""
    books: list[Book] = []
    bad: list[tuple[Path, str]] = []
    for path in files:
        try:
            for title, file in raw_texts(path):
                try:
                    books.append(
                        _read_book(
                            title,
                            path,
                            TextDecoder(file, encoding, most_of(path)),
                            aside / f"{len(books):06d}.txt",
                            remove,
                        )
                    )
                except UserError as error:
                    bad.append(
                        (
                            path,
                            f"{title}.txt in it: {error}"
                            if path.suffix.lower() == ".zip"
                            else str(error),
                        )
                    )
        except UserError as error:
            bad.append((path, str(error)))
    return books, bad


def _read_book(title: str, path: Path, decoder: TextDecoder, file: Path, remove: bool) -> Book:
    book = Book(printable(title), printable(path.name), decoder.encoding, file)
    with file.open("w", encoding="utf-8", errors="replace", newline="\n") as cleaned:
        for part in decoder.parts():
            text, account = clean_text(part, remove)
            cleaned.write(text)
            book.account.add(account)
            book.chapters += [
                (" ".join(m[1].split()), book.characters + m.start())
                for m in HEADING.finditer(text)
            ]
            book.characters += len(text)
            book.odd.update({kind: len(pattern.findall(text)) for kind, pattern in ODD.items()})
            book.fingerprint |= _fingerprint(text)
    return book


def printable(name: str) -> str:
    """A name that can be written as UTF-8 and on one line; of a file that isn't called in UTF-8 the odd bytes become �."""
    return "".join(c if c.isprintable() or c == "　" else "�" for c in name)


def _fingerprint(text: str) -> set[int]:
    """About one in 64 of the spans of 8 letters, hashed: two copies of a book share most of them."""
    codes = np.frombuffer(
        "".join(filter(str.isalnum, text)).encode("utf-32-le", "replace"), dtype=np.uint32
    ).astype(np.uint64)
    if len(codes) < 8:
        return set()
    hashes = np.zeros(len(codes) - 7, dtype=np.uint64)
    for k in range(8):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[k : k + len(hashes)]
    hashes ^= hashes >> np.uint64(31)
    return set(hashes[hashes % np.uint64(64) == 0].tolist())


def find_duplicate_books(books: Sequence[Book]) -> list[tuple[Book, Book, float]]:
    """Pairs of which more than half of the shorter one stands in the other, with that share."""
    owners: dict[int, list[int]] = {}
    for number, book in enumerate(books):
        for span in book.fingerprint:
            owners.setdefault(span, []).append(number)
    shared: Counter = Counter()
    for numbers in owners.values():
        if 1 < len(numbers) <= 20:  # what stands in more books than that is a formula
            shared.update(combinations(numbers, 2))
    pairs = []
    for (a, b), count in sorted(shared.items()):
        share = count / min(len(books[a].fingerprint), len(books[b].fingerprint))
        if share > 0.5 and count >= 4:
            pairs.append((books[a], books[b], share))
    return pairs


# ---------------------------------------------------------------- sections


def sections(file: Path) -> Iterator[Section]:
    """A cleaned text, cut at its chapter headings and at lines where it grows long."""
    for block in _blocks(file):
        cuts = [match.start() for match in HEADING.finditer(block)]
        titles: list[str | None] = [" ".join(match[1].split()) for match in HEADING.finditer(block)]
        if not cuts or cuts[0] > 0:
            cuts.insert(0, 0)
            titles.insert(0, None)
        for title, start, end in zip(titles, cuts, [*cuts[1:], len(block)], strict=True):
            yield Section(title, block[start:end])


def _blocks(file: Path) -> Iterator[str]:
    """Text in blocks of about BLOCK characters, each ending where a line ends, the next one beginning with a line that isn't blank."""
    held = ""
    with file.open(encoding="utf-8", newline="\n") as text:
        while chunk := text.read(BLOCK):
            held += chunk
            cut = last_line_start(held) or (
                len(held) if len(held) > 4 * BLOCK else 0
            )  # 0: one endless line
            if cut:
                yield held[:cut]
                held = held[cut:]
    if held:
        yield held
