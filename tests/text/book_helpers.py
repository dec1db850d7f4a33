"""Files and books, for the tests of sections and books."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st

from shuoshu.text.books import Book, read_books

# Every kind of line end, indents, headings, characters of one to four bytes: any cut is critical.
PROSE = st.lists(
    st.sampled_from(
        [
            "\n",
            "\r\n",
            "\r",
            "\n\n",
            " ",
            "　",
            "第一回 风起",
            "第12章",
            "Chapter 3",
            "a",
            "é",
            "雨",
            "𠮷",
            "👩‍👧",
            "。",
            "\u2028",
            "\x85",
            "\x1c",
        ]
    )
    | st.text(max_size=3),
    max_size=40,
).map("".join)


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


def read(path: Path, text: str | bytes, val_fraction: float = 0.0, **settings: object) -> Book:
    """A text, written to a file and read as a book."""
    staging = path.parent / "staging"
    staging.mkdir(exist_ok=True)
    books, bad = read_books([write(path, text)], staging, **settings)
    assert bad == [] and len(books) == 1
    books[0].cut(val_fraction)
    return books[0]
