"""What an evaluation is made of: figures with their intervals, and the text that a model may have copied from."""

from __future__ import annotations

from bisect import bisect_right
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np

from shuoshu.core.errors import UserError
from shuoshu.core.run_log import read_settings
from shuoshu.text import dataset
from shuoshu.text.tokenizer import Tokenizer

MIN_COPIED = 20  # characters in succession that count as copied from the training text
MIN_MARKED = 8  # characters in succession that the report marks


class TrainingText:
    """What a model was pretrained on, as text: where its answers may be copied from."""

    def __init__(self, folder: Path) -> None:
        file, tokenizer = dataset.TextDataset(folder, "train"), Tokenizer.load(folder)
        books = [f"《{book['title']}》" for book in file.meta["books"]]
        titles = {
            c["token"]: books[c["book"]] + c["title"]
            for c in file.meta["chapters"]
            if c["split"] == "train"
        }
        edges, pieces, self.places, length = sorted({0, *titles, len(file)}), [], [], 0
        for start, end in pairwise(edges):
            self.places.append((length, titles.get(start)))
            pieces.append(tokenizer.decode(file.tokens[start:end].tolist()))
            length += len(pieces[-1])
        self.folder, self.copies = folder, CopyIndex("".join(pieces))

    @classmethod
    def find(cls, out_dir: Path) -> TrainingText | None:
        """The text behind a model, back through the models that it was fine-tuned from; none where it is no longer there."""
        with suppress(UserError):  # the folder holds something else by now
            for _ in range(8):
                saved = read_settings(out_dir)
                folder, before = (
                    Path(str(saved.get("data", {}).get("folder"))),
                    saved.get("settings", {}).get("init_from", "scratch"),
                )
                if (folder / "meta.json").is_file() and (meta := dataset.read_meta(folder))[
                    "task"
                ] == "text":
                    return (
                        cls(folder)
                        if meta["splits"]["train"]["sha256"] == saved["data"].get("train")
                        else None
                    )
                if before == "scratch":
                    return None
                out_dir = Path(str(before))
        return None

    def spans(self, text: str) -> list[tuple[int, int, str | None]]:
        """(start, end, book and chapter) of what stands verbatim in it, MARKED characters or more."""
        return [
            (start, end, self.places[bisect_right(self.places, at, key=lambda p: p[0]) - 1][1])
            for start, end, at in self.copies.spans(text, MIN_MARKED)
        ]


class CopyIndex:
    """Finds what stands verbatim in a text, by a sorted table with an entry of 8 bytes for each of its characters.

    An entry holds the numbers of as many characters as fit, a few, and behind them their place, so that all places of a gram stand together.
    """

    def __init__(self, text: str) -> None:
        codes, used = _codes(text), np.zeros(0x110000, np.uint32)
        used[codes] = 1
        self.numbers = used * np.cumsum(
            used, dtype=np.uint32
        )  # of each code point: 1, 2 …, 0 where the text lacks it
        end = int(self.numbers.max()) + 1  # stands behind the text and in no answer
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

    def spans(self, answer: str, least: int = 8) -> list[tuple[int, int, int]]:
        """(start, end, first place in the text) of what is copied, left to right: each as long as can be, none shorter than `least`."""
        grams, start, found = self._grams(answer, min(self.width, least)), 0, []
        while start + least <= len(answer):
            length, place = self._longest_at(start, least, *grams)
            if length:
                found.append((start, start + length, place))
            start += max(1, length)
        return found

    def longest(self, answer: str) -> int:
        """The length of the longest span that stands in the text too."""
        best = next(
            (width for width in range(self.width, 0, -1) if any(self._grams(answer, width)[-1])), 0
        )
        grams = self._grams(answer, self.width)
        for start in range(len(answer)):
            if self.width <= best < len(answer) - start:
                best = max(best, self._longest_at(start, best + 1, *grams)[0])
        return best

    def _grams(self, answer: str, width: int) -> tuple[np.ndarray, int, list[int], list[int]]:
        """(the answer's characters as numbers, width, where in the table each of its grams begins, how often each stands there)."""
        numbers = self.numbers[_codes(answer)]
        grams = np.zeros(max(0, len(answer) - width + 1), np.uint64)
        for i in range(width):
            grams = (grams << self.bits) | numbers[i : i + len(grams)]
        rest = self.bits * (self.width - width) + self.place_bits
        first, after = (
            np.searchsorted(self.table, grams << rest),
            np.searchsorted(self.table, (grams + 1) << rest),
        )
        return numbers, width, first.tolist(), (after - first).tolist()

    def _longest_at(
        self,
        start: int,
        least: int,
        numbers: np.ndarray,
        width: int,
        first: list[int],
        counts: list[int],
    ) -> tuple[int, int]:
        """(length, place) of the longest span from `start`, zeros if it is shorter than `least`; tries the places of the rarest gram in it."""
        rarest = min(range(start, start + least - width + 1), key=counts.__getitem__)
        entries = self.table[first[rarest] : first[rarest] + counts[rarest]]
        places, length = (
            (entries & ((1 << self.place_bits) - 1)).astype(np.int64) - (rarest - start),
            0,
        )
        places = places[places >= 0]
        while start + length < len(numbers):
            longer = places[self.text[places + length] == numbers[start + length]]
            if not len(longer):
                break
            places, length = longer, length + 1
        return (length, int(places.min())) if length >= least else (0, 0)


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
