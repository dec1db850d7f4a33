"""Finds which spans of an answer were copied verbatim from the model's training text."""

from __future__ import annotations

from bisect import bisect_right
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shuoshu.core.errors import UserError
from shuoshu.core.run_log import read_settings
from shuoshu.text import dataset
from shuoshu.text.tokenizer import Tokenizer

MIN_COPIED = 20  # consecutive characters: an answer with such a span counts as copied
MIN_MARKED = 8  # consecutive characters: the report marks such a span
MAX_INIT_FROM = 8  # steps from a fine-tuned model back to the pretrained one
N_CODE_POINTS = 0x110000


class TrainingText:
    """The text that a model was pretrained on, with its books and chapters."""

    def __init__(self, folder: Path) -> None:
        data, tokenizer = dataset.TextDataset(folder, "train"), Tokenizer.load(folder)
        books = [f"《{book['title']}》" for book in data.meta["books"]]
        titles = {
            chapter["token"]: books[chapter["book"]] + chapter["title"]
            for chapter in data.meta["chapters"]
            if chapter["split"] == "train"
        }
        pieces, n_characters = [], 0
        self.chapters: list[tuple[int, str | None]] = []  # (first character, title)
        for start, end in pairwise(sorted({0, *titles, len(data)})):
            self.chapters.append((n_characters, titles.get(start)))
            pieces.append(tokenizer.decode(data.tokens[start:end].tolist()))
            n_characters += len(pieces[-1])
        self.folder, self.copies = folder, CopyIndex("".join(pieces))

    @classmethod
    def find(cls, out_dir: Path) -> TrainingText | None:
        """The text behind a model, or behind the model that it was fine-tuned from.

        None if the folder is missing or its text has changed since.
        """
        # UserError: the folder now holds something else; OSError: its path is impossible.
        with suppress(UserError, OSError):
            for _ in range(MAX_INIT_FROM):
                saved = read_settings(out_dir)
                folder = Path(str(saved.get("data", {}).get("folder")))
                if (folder / "meta.json").is_file():
                    meta = dataset.read_meta(folder)
                    if meta["task"] == "text":
                        is_same = meta["splits"]["train"]["sha256"] == saved["data"].get("train")
                        return cls(folder) if is_same else None
                init_from = saved.get("settings", {}).get("init_from", "scratch")
                if init_from == "scratch":
                    return None
                out_dir = Path(str(init_from))
        return None

    def spans(self, text: str) -> list[tuple[int, int, str | None]]:
        """(start, end, book and chapter) of each copied span of MIN_MARKED characters or more."""
        return [
            (start, end, self._chapter_at(place))
            for start, end, place in self.copies.spans(text, MIN_MARKED)
        ]

    def _chapter_at(self, place: int) -> str | None:
        number = bisect_right(self.chapters, place, key=lambda chapter: chapter[0]) - 1
        return self.chapters[number][1]


class GramMatches(NamedTuple):
    """An answer as numbers, and where its n-grams occur in CopyIndex.table."""

    numbers: np.ndarray
    width: int  # n of the n-grams
    first: list[int]  # by position in the answer: the gram's first entry in the table
    counts: list[int]  # by position in the answer: how often the gram occurs


class CopyIndex:
    """Finds verbatim spans in a text, by a sorted array of its n-grams: 8 bytes per character.

    An entry holds an n-gram in its high bits, as many characters as fit, and the n-gram's place in
    the text in its low bits. The places of an n-gram are therefore neighbours.
    """

    def __init__(self, text: str) -> None:
        codes, used = _code_points(text), np.zeros(N_CODE_POINTS, np.uint32)
        used[codes] = 1
        # Code point → 1, 2, …; 0: the text lacks it.
        self.numbers = used * np.cumsum(used, dtype=np.uint32)
        end = int(self.numbers.max()) + 1  # follows the text and occurs in no answer
        self.bits, self.place_bits = end.bit_length(), len(text).bit_length()
        self.width = min(8, (64 - self.place_bits) // self.bits)
        self.text = np.append(self.numbers[codes], np.full(self.width, end, np.uint32))
        self.table = np.zeros(len(text), np.uint64)
        for i in range(self.width):
            self.table <<= self.bits
            self.table |= self.text[i : i + len(text)]
        self.table <<= self.place_bits
        self.table |= np.arange(len(text), dtype=np.uint64)
        self.table.sort()

    def spans(self, answer: str, min_length: int = MIN_MARKED) -> list[tuple[int, int, int]]:
        """(start, end, first place in the text) of the copied spans, from left to right.

        Each span is as long as possible and no shorter than `min_length`.
        """
        grams = self._find_grams(answer, min(self.width, min_length))
        start, spans = 0, []
        while start + min_length <= len(answer):
            length, place = self._longest_at(start, min_length, grams)
            if length:
                spans.append((start, start + length, place))
            start += max(1, length)
        return spans

    def longest(self, answer: str) -> int:
        """The length of the longest span of the answer that occurs in the text."""
        best = 0
        for width in range(self.width, 0, -1):
            if any(self._find_grams(answer, width).counts):
                best = width
                break
        if best < self.width:
            return best
        grams = self._find_grams(answer, self.width)
        for start in range(len(answer)):
            if best < len(answer) - start:
                best = max(best, self._longest_at(start, best + 1, grams)[0])
        return best

    def _find_grams(self, answer: str, width: int) -> GramMatches:
        numbers = self.numbers[_code_points(answer)]
        grams = np.zeros(max(0, len(answer) - width + 1), np.uint64)
        for i in range(width):
            grams = (grams << self.bits) | numbers[i : i + len(grams)]
        low_bits = self.bits * (self.width - width) + self.place_bits
        first = np.searchsorted(self.table, grams << low_bits)
        after = np.searchsorted(self.table, (grams + 1) << low_bits)
        return GramMatches(numbers, width, first.tolist(), (after - first).tolist())

    def _longest_at(self, start: int, min_length: int, grams: GramMatches) -> tuple[int, int]:
        """(length, first place) of the longest span from `start`; zeros below `min_length`.

        Only the places of the rarest n-gram among the first `min_length` characters are tried.
        """
        last = start + min_length - grams.width
        rarest = min(range(start, last + 1), key=grams.counts.__getitem__)
        first = grams.first[rarest]
        entries = self.table[first : first + grams.counts[rarest]]
        places = (entries & ((1 << self.place_bits) - 1)).astype(np.int64) - (rarest - start)
        places = places[places >= 0]
        length = 0
        while start + length < len(grams.numbers):
            longer = places[self.text[places + length] == grams.numbers[start + length]]
            if not len(longer):
                break
            places, length = longer, length + 1
        return (length, int(places.min())) if length >= min_length else (0, 0)


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
