"""The chapters of books as plain text, from a data folder or from the books themselves."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shuoshu.core.errors import UserError
from shuoshu.text.books import find_files, read_books
from shuoshu.text.data_folder import prepared_meta
from shuoshu.text.dataset import TEXT_SPLITS, TextDataset, task_of
from shuoshu.text.headings import HEADING
from shuoshu.text.tokenizer_folder import load_tokenizer


class BookSection(NamedTuple):
    """A chapter, or the text of a book before its first one."""

    source: str | None  # 《book》chapter
    start: int  # offset in the book, in characters
    text: str


def book_sections(title: str | None, text: str) -> list[BookSection]:
    """The chapters of one book, which begin at its headings."""
    headings = {match.start(): " ".join(match[1].split()) for match in HEADING.finditer(text)}
    cuts = sorted({0, *headings, len(text)})
    return [
        BookSection(_source(title, headings.get(start)), start, text[start:end])
        for start, end in pairwise(cuts)
    ]


def file_sections(named: str) -> list[BookSection]:
    """The chapters of the books in a file or a folder, read and cleaned as by prepare.py.

    The folder may be one that prepare.py wrote. Raises UserError if a file can't be read.
    """
    meta = prepared_meta(Path(named))
    if meta and task_of(meta) == "text":
        return folder_sections(Path(named))
    sections: list[BookSection] = []
    with tempfile.TemporaryDirectory() as folder:
        books, rejected = read_books(find_files([named]), Path(folder))
        for path, reason in rejected:
            raise UserError(f"can't read the book {path}: {reason}")
        for book in books:
            sections += book_sections(book.title, book.file.read_text(encoding="utf-8"))
    if not sections:
        raise UserError(f"the book {named} holds no text")
    return sections


def folder_sections(folder: Path) -> list[BookSection]:
    """The chapters of a data folder's books: of each its training text, then its validation text.

    Raises UserError if a file is missing or damaged.
    """
    token_bytes = np.array(load_tokenizer(folder).token_bytes, dtype=object)
    train, val = (_documents(TextDataset(folder, split), token_bytes) for split in TEXT_SPLITS)
    books = TextDataset(folder, "train").meta["books"]
    # Every book has training text. Those with validation text are the ones that it doesn't fill.
    lengths = [sum(len(text) for _, text in document) for document in train]
    missing = [book.get("characters", 0) - n for book, n in zip(books, lengths, strict=False)]
    with_val = sorted(np.argsort(-np.array(missing), kind="stable")[: len(val)].tolist())
    for number, document in zip(with_val, val, strict=False):
        train[number] += document
    sections: list[BookSection] = []
    for book, document in zip(books, train, strict=False):
        sections += _joined(book["title"], document)
    return sections


def _documents(data: TextDataset, token_bytes: np.ndarray) -> list[list[tuple[str | None, str]]]:
    """The split's part of each book, as (chapter, text); None continues the chapter before."""
    end_token = load_tokenizer(data.folder).end
    titles = {
        chapter["token"]: chapter["title"]
        for chapter in data.meta["chapters"]
        if data.path.stem == chapter["split"]
    }
    documents, first = [], 0
    for end in np.flatnonzero(data.tokens == end_token).tolist():
        cuts = sorted({first, end, *(token for token in titles if first < token < end)})
        documents.append(
            [
                (titles.get(a), b"".join(token_bytes[data.tokens[a:b]]).decode("utf-8", "replace"))
                for a, b in pairwise(cuts)
            ]
        )
        first = end + 1
    return documents


def _joined(title: str, document: Iterable[tuple[str | None, str]]) -> list[BookSection]:
    sections: list[BookSection] = []
    start = 0
    for chapter, text in document:
        if chapter is None and sections:
            sections[-1] = sections[-1]._replace(text=sections[-1].text + text)
        else:
            sections.append(BookSection(_source(title, chapter), start, text))
        start += len(text)
    return sections


def _source(title: str | None, chapter: str | None) -> str | None:
    book = f"《{title}》" if title else ""
    return book + (chapter or "") or None
