"""Finds the longest spans of answers that occur in a text, which is read once, in slices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

FIRST_SLICE, MAX_SLICE = 1 << 8, 1 << 18  # characters; each slice is twice as long as the last
MAX_PAIRS = 1 << 18  # places in an answer and in the text that are compared at once
MAX_TABLE_BITS = 22  # of the hash table
GRAM_FACTOR = np.uint32(0x9E3779B1)  # 2^32 / golden ratio (Knuth's multiplicative hash)
END_OF_ANSWER, END_OF_SLICE = 0xFFFFFFFF, 0xFFFFFFFE  # code points that no text has


class CopySearch:
    """The longest span from each place of each answer that occurs in the text read so far.

    A longer span must end with an n-gram that the answer has there, n a power of two. A hash table
    finds these n-grams in the text. Then the characters are compared, so that the result is exact.
    Memory grows with the answers, not with the text.
    """

    def __init__(self, answers: Sequence[str], min_length: int) -> None:
        """Places with no span of `min_length` are only searched for their answer's longest span."""
        self.min_length = min_length
        lengths = np.array([len(answer) for answer in answers], np.int64)
        self.first = np.cumsum(lengths + 1) - lengths - 1  # by answer: its place in all answers
        self.ends = self.first + lengths
        # By place in all answers; an answer has one place more than characters.
        self.codes = np.full(int((lengths + 1).sum()), END_OF_ANSWER, np.uint32)
        for start, end, answer in zip(self.first, self.ends, answers, strict=True):
            self.codes[start:end] = code_points(answer)
        self.owners = np.repeat(np.arange(len(answers)), lengths + 1)
        self.room = self.ends[self.owners] - np.arange(len(self.codes))  # characters to the end
        self.lengths = np.zeros(len(self.codes), np.int64)  # of the longest span from the place
        self.places = np.zeros(len(self.codes), np.int64)  # of that span in the text, the first
        self.longest = np.zeros(len(answers), np.int64)  # by answer

    def spans(self, number: int) -> list[tuple[int, int, int]]:
        """(start, end, first place in the text) of an answer's copied spans, from left to right.

        Each span is as long as possible and no shorter than `min_length`.
        """
        answer = slice(self.first[number], self.ends[number])
        lengths, places = self.lengths[answer].tolist(), self.places[answer].tolist()
        start, spans = 0, []
        while start < len(lengths):
            is_copied = lengths[start] >= self.min_length
            if is_copied:
                spans.append((start, start + lengths[start], places[start]))
            start += lengths[start] if is_copied else 1
        return spans

    def read(self, pieces: Iterable[str]) -> None:
        """Searches a text that comes in pieces."""
        overlap = int(self.room.max(initial=0))  # the longest answer
        for offset, text, n_starts in overlapping_slices(pieces, overlap):
            self._read_slice(offset, text, n_starts)

    def _read_slice(self, offset: int, text: np.ndarray, n_starts: int) -> None:
        """Looks for longer spans that begin in the first `n_starts` characters of a slice."""
        known = np.minimum(self.longest[self.owners], self.min_length - 1)
        wanted = np.maximum(self.lengths, known) + 1
        wanted[wanted > self.room] = 0
        grams, text_grams, width = self.codes, text, 1
        while np.any(wanted >= width):
            at = np.flatnonzero((wanted >= width) & (wanted < 2 * width))
            before = wanted[at] - width  # characters of the span before its last n-gram
            for number, end in equal_pairs(grams[at + before], text_grams):
                places = end - before[number]
                is_inside = (places >= 0) & (places < n_starts)
                self._compare(at[number[is_inside]], places[is_inside], offset, text)
            grams, text_grams = (double_grams(numbers, width) for numbers in (grams, text_grams))
            width *= 2

    def _compare(self, at: np.ndarray, places: np.ndarray, offset: int, text: np.ndarray) -> None:
        """Records how long the answers from `at` equal the text from `places` (ascending)."""
        lengths, equal, length = np.zeros(len(at), np.int64), np.arange(len(at)), 0
        while len(equal):
            lengths[equal] = length
            equal = equal[self.codes[at[equal] + length] == text[places[equal] + length]]
            length += 1
        is_longer = lengths > self.lengths[at]
        at, places, lengths = at[is_longer], places[is_longer], lengths[is_longer]
        np.maximum.at(self.lengths, at, lengths)
        np.maximum.at(self.longest, self.owners[at], lengths)
        is_longest = lengths == self.lengths[at]
        # The first of equal spans is assigned last.
        self.places[at[is_longest][::-1]] = offset + places[is_longest][::-1]


def overlapping_slices(
    pieces: Iterable[str], overlap: int
) -> Iterator[tuple[int, np.ndarray, int]]:
    """Yields slices of a text: place of the first character, code points, characters of its own.

    After its own characters a slice has `overlap` characters of the next one, then END_OF_SLICE.
    """
    size, offset, waiting = FIRST_SLICE, 0, np.empty(0, np.uint32)
    for piece in pieces:
        waiting = np.concatenate([waiting, code_points(piece)])
        while len(waiting) >= size + overlap:
            yield offset, np.append(waiting[: size + overlap], np.uint32(END_OF_SLICE)), size
            waiting, offset, size = waiting[size:], offset + size, min(2 * size, MAX_SLICE)
    for start in range(0, len(waiting), size):
        text = np.append(waiting[start : start + size + overlap], np.uint32(END_OF_SLICE))
        yield offset + start, text, min(size, len(waiting) - start)


def equal_pairs(
    grams: np.ndarray, text_grams: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the indices of equal n-grams in both arrays, ascending in the text, in blocks."""
    order = np.argsort(grams, kind="stable")
    bits = min(MAX_TABLE_BITS, (16 * len(grams)).bit_length())
    is_used = np.zeros(1 << bits, bool)
    is_used[slots(grams, bits)] = True
    found = np.flatnonzero(is_used[slots(text_grams, bits)])
    first, after = (
        np.searchsorted(grams, text_grams[found], side, sorter=order) for side in ("left", "right")
    )
    totals = np.cumsum(after - first)
    for start in range(0, int(totals.max(initial=0)), MAX_PAIRS):
        pairs = np.arange(start, min(start + MAX_PAIRS, totals[-1]))
        which = np.searchsorted(totals, pairs, "right")
        yield order[after[which] - (totals[which] - pairs)], found[which]


def slots(grams: np.ndarray, bits: int) -> np.ndarray:
    """Places of n-grams in a hash table of 2^bits."""
    return (grams * GRAM_FACTOR) >> np.uint32(32 - bits)


def double_grams(grams: np.ndarray, width: int) -> np.ndarray:
    """Hashes of the n-grams of twice the width, which are `width` fewer."""
    return grams[:-width] * GRAM_FACTOR + grams[width:]


def code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
