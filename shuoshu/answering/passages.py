"""Finds the passages of a book that speak of a question: BM25 over words and characters.

A passage is a run of whole sentences of one chapter, and one begins at every sentence. Its score is
the sum of three BM25 scores: of the passage itself, and of the passage with two margins around it.
The margins help because a question names people and things that the book names a little earlier.

The index lists the sentences that have a term (a unit or two units in a row). The passages that
contain a sentence are consecutive, so a term's frequency is constant between a few passages. Its
contribution to all passages is written as steps at these places and summed at the end.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shuoshu.answering.sections import BookSection, book_sections, folder_sections
from shuoshu.core.errors import UserError
from shuoshu.text.behind import find_text_folder
from shuoshu.text.dataset import read_meta

# A term's unit: a word, a number, or a single character where words aren't separated by spaces.
TERM_UNIT = re.compile(r"[^\W\d_\u2e80-\U0003ffff]+|\d+|[^\W_]")
SENTENCE_STOP = re.compile(r"(?:[。！？!?…\n]|\.(?=[\s\"'”’)]))+[\s\"'”’」』）)》]*")
CLAUSE_END = re.compile(r"[，、；：,;:\s]")
JOINERS = "\u200d\ufe0e\ufe0f"  # they bind emoji to the character before

# Widths: a Chinese character has 1, a Latin letter less, because a word has about five.
FIRST_WIDE, NARROW_WIDTH = 0x2E80, 0.36
PASSAGE_WIDTH = 250
MARGINS = (0, 250, 600)  # on both sides, within the chapter
K1 = 1.2  # BM25's saturation; its b is 0, because passages are equally long
PAIR_WEIGHT = 0.7  # of two units in a row; both count by themselves, too
MAX_BOOK_CHARACTERS = 5_000_000  # of the text behind a model: two indexes take 230 bytes for each
MAX_TERMS = 200  # of a question and its answer: the rarest ones


class Passage(NamedTuple):
    """A passage of a book."""

    text: str
    source: str | None  # 《book》chapter
    start: int  # offset in the book, in characters
    score: float


class PassageIndex:
    """The passages of books, ranked by what they have in common with a question."""

    def __init__(self, sections: Iterable[BookSection]) -> None:
        self.sections = [section for section in sections if section.text]
        self.text = "".join(section.text for section in self.sections)
        lengths = [len(section.text) for section in self.sections]
        self.section_starts = np.cumsum([0, *lengths])[:-1]
        self.widths = _running_width(self.text)  # before each character
        self.starts = self._sentence_starts()  # of sentences; the last one is the text's length
        self._set_ranges()
        self._set_terms()
        del self.widths

    @classmethod
    def find(cls, out_dir: Path) -> PassageIndex | None:
        """The index of the text behind a model, with its validation part.

        None if the text is missing, has changed since, or is longer than MAX_BOOK_CHARACTERS.
        """
        with suppress(UserError, OSError):  # the text can't be read any more
            folder = find_text_folder(out_dir)
            if folder and _characters(folder) <= MAX_BOOK_CHARACTERS:
                return cls(folder_sections(folder))
        return None

    @classmethod
    def from_texts(cls, books: Iterable[tuple[str | None, str]]) -> PassageIndex:
        """The index of books, given as (title, text)."""
        return cls(section for title, text in books for section in book_sections(title, text))

    def search(self, question: str, answer: str = "", count: int = 3) -> list[Passage]:
        """Up to `count` passages that don't overlap, the best first.

        The words of an answer count like those of the question. Empty if the books have none.
        """
        scores = self._scores((question, answer))
        passages: list[Passage] = []
        while len(passages) < count and scores.any():
            best = int(scores.argmax())
            passages.append(self._passage(best, float(scores[best])))
            scores[self.ranges[0][0][best] : self.ends[best]] = 0  # it and those that overlap it
        return passages

    def windows(self) -> list[str]:
        """The texts of passages that cover the books; each overlaps half of the one before."""
        numbers, number = [], 0
        while number < len(self.ends):
            numbers.append(number)
            middle = (self.starts[number] + self.starts[self.ends[number]]) // 2
            number = max(number + 1, int(np.searchsorted(self.starts, middle)))
        return [self.text[self.starts[n] : self.starts[self.ends[n]]] for n in numbers]

    def _passage(self, number: int, score: float) -> Passage:
        start, end = self.starts[number], self.starts[self.ends[number]]
        raw = self.text[start:end]
        start += len(raw) - len(raw.lstrip())
        section = int(np.searchsorted(self.section_starts, start, side="right")) - 1
        source, book_start, _ = self.sections[section]
        offset = int(start - self.section_starts[section]) + book_start
        return Passage(raw.strip(), source, offset, score)

    # ---------------------------------------------------------------- search

    def _scores(self, texts: Iterable[str]) -> np.ndarray:
        """The score of each passage; 0 if it has no term of these texts."""
        n = len(self.starts) - 1
        terms = self._known_terms(texts)
        total, has_term = np.zeros(n), np.zeros(n, dtype=bool)
        for lo, hi in self.ranges:
            places, steps = [np.zeros(0, dtype=np.int64)], [np.zeros(0)]
            for term in terms:
                sentences = self.postings[self.offsets[term] : self.offsets[term + 1]]
                at, frequency = _step_function(lo[sentences], hi[sentences])
                n_passages = np.diff(at, append=n)[frequency > 0].sum()
                weight = np.log(1 + (n - n_passages + 0.5) / (n_passages + 0.5))
                weight *= PAIR_WEIGHT if self.keys[term] >= self.pair_base else 1
                values = weight * (K1 + 1) * frequency / (frequency + K1)
                places.append(at)
                steps.append(np.diff(values, prepend=0))
            joined = np.concatenate(steps)
            sums = np.bincount(np.concatenate(places), joined, minlength=n + 1)[:n].cumsum()
            if not total.any():
                has_term = sums > 1e-9  # sums of steps are inexact
            total += sums
        return np.where(has_term, total, 0)

    def _known_terms(self, texts: Iterable[str]) -> np.ndarray:
        """The rows of the terms that the index has, at most MAX_TERMS."""
        keys = [np.zeros(0, dtype=np.int64)]
        for text in texts:
            units = np.array(
                [self.unit_ids.get(m[0].lower(), 0) for m in TERM_UNIT.finditer(text)], np.int64
            )
            keys += [units, self._pair_keys(units)]
        wanted = np.unique(np.concatenate(keys))
        rows = np.minimum(np.searchsorted(self.keys, wanted), max(0, len(self.keys) - 1))
        rows = rows[self.keys[rows] == wanted] if len(self.keys) else rows[:0]
        counts = self.offsets[rows + 1] - self.offsets[rows]
        return rows[np.argsort(counts, kind="stable")[:MAX_TERMS]]

    def _pair_keys(self, units: np.ndarray) -> np.ndarray:
        return units[:-1] * self.pair_base + units[1:]

    # ---------------------------------------------------------------- build

    def _set_terms(self) -> None:
        """Sets the terms: unit_ids, and keys with offsets into postings, which are sentences."""
        unit_ids: dict[str, int] = {}  # from 1 on
        ids, places = array("q"), array("q")
        for match in TERM_UNIT.finditer(self.text):
            ids.append(unit_ids.setdefault(match[0].lower(), len(unit_ids) + 1))
            places.append(match.start())
        self.unit_ids, self.pair_base = unit_ids, len(unit_ids) + 1
        units = np.frombuffer(ids, np.int64) if ids else np.zeros(0, np.int64)
        at = np.frombuffer(places, np.int64) if places else np.zeros(0, np.int64)
        sentences = (np.searchsorted(self.starts, at, side="right") - 1).astype(np.int32)
        is_pair = sentences[:-1] == sentences[1:]
        keys = np.concatenate([units, self._pair_keys(units)[is_pair]])
        sentences = np.concatenate([sentences, sentences[:-1][is_pair]])
        order = np.argsort(keys, kind="stable")  # sentences stay in order
        self.postings = sentences[order]
        self.keys, first = np.unique(keys[order], return_index=True)
        self.offsets = np.append(first, len(keys)).astype(np.int32)

    def _sentence_starts(self) -> np.ndarray:
        """Where sentences start; one that is longer than a passage is cut."""
        starts = array("q", [0])
        for start, section in zip(self.section_starts.tolist(), self.sections, strict=True):
            ends = (start + match.end() for match in SENTENCE_STOP.finditer(section.text))
            for end in (*ends, start + len(section.text)):
                while self.widths[end] - self.widths[starts[-1]] > PASSAGE_WIDTH:
                    limit = np.searchsorted(self.widths, self.widths[starts[-1]] + PASSAGE_WIDTH)
                    starts.append(_cut_before(self.text, starts[-1], int(limit)))
                if end > starts[-1]:
                    starts.append(end)
        return np.array(starts, dtype=np.int32)

    def _set_ranges(self) -> None:
        """Sets `ends`, the sentence after each passage, and for each margin its `ranges`.

        These are the first passage that contains a sentence, and the passage after the last one,
        where a passage counts with the margin on both sides.
        """
        n = len(self.starts) - 1
        before, after = self.widths[self.starts[:-1]], self.widths[self.starts[1:]]
        firsts = np.searchsorted(self.starts, self.section_starts)  # of sections, as sentences
        section = np.searchsorted(firsts, np.arange(n), side="right") - 1
        section_end = np.append(firsts, n)[section + 1]
        ends = np.searchsorted(after, before + PASSAGE_WIDTH, side="right")
        self.ends = np.clip(ends, np.arange(n) + 1, section_end)
        self.ranges = []
        for margin in MARGINS:
            left = np.searchsorted(before, before - margin)
            right = np.searchsorted(after, after[self.ends - 1] + margin, side="right")
            left = np.clip(left, firsts[section], np.arange(n))
            right = np.clip(right, self.ends, section_end)
            lo = np.searchsorted(right, np.arange(n), side="right")
            hi = np.searchsorted(left, np.arange(n), side="right")
            self.ranges.append((lo.astype(np.int32), hi.astype(np.int32)))


def _characters(folder: Path) -> int:
    """How many characters of books a data folder holds."""
    return sum(book.get("characters", 0) for book in read_meta(folder)["books"])


def _step_function(lo: np.ndarray, hi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(places, how many of the ranges lo ≤ x < hi contain x from there to the next place)."""
    places = np.concatenate([lo, hi])
    order = np.argsort(places, kind="stable")
    changes = np.repeat([1, -1], len(lo))
    return places[order], changes[order].cumsum()


def _running_width(text: str) -> np.ndarray:
    """The width of the text before each character, and of all of it."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    widths = np.where(points < FIRST_WIDE, NARROW_WIDTH, 1.0)
    return np.concatenate([[0.0], np.cumsum(widths)])


def _cut_before(text: str, start: int, limit: int) -> int:
    """Where to cut a long sentence: after a comma or a space, never before a combining mark."""
    for end in range(limit - 1, start + (limit - start) // 2, -1):
        if CLAUSE_END.match(text[end - 1]) and not _joins(text[end]):
            return end
    end = limit - 1
    while end > start + 1 and (_joins(text[end]) or text[end - 1] == JOINERS[0]):
        end -= 1
    return end if end > start + 1 else max(start + 1, limit - 1)


def _joins(character: str) -> bool:
    """True if the character belongs to the one before."""
    is_skin_tone = "\U0001f3fb" <= character <= "\U0001f3ff"
    return character in JOINERS or is_skin_tone or bool(unicodedata.combining(character))
