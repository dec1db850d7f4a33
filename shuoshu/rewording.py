"""Questions in words that nobody wrote: pieces of those with one answer among pieces of any, so that a model learns which words tell answers apart."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from shuoshu.metrics import LookUp
from shuoshu.tokenizer import Tokenizer

BEGINNING = 12  # tokens of the answer that such a row trains: by then it is said which one it is
LONGEST = 5  # units in a piece
SURE = 0.95  # of the nearest answer's nearness: so near at most may the next one be
TRIES = 10  # before a question is taken as it was written
UNIT = re.compile(r"[^\W\d_\u2e80-\U0003ffff]+\s*|\d+\s*|.", re.DOTALL)  # a word or number with the blanks after it, else a character
Row = tuple[np.ndarray, np.ndarray]  # ids and mask


class Rewording:
    """Makes up rows for those that hold one question and its whole answer; `sources` are their numbers."""

    def __init__(self, tokenizer: Tokenizer, row: Callable[[int], Row], count: int, width: int) -> None:
        self.tokenizer, self.row = tokenizer, row
        self.questions: dict[int, str] = {}
        self.room: dict[int, int] = {}  # tokens that a question may have
        alike: dict[bytes, list[int]] = defaultdict(list)
        others = []  # what was asked elsewhere, in conversations or for answers over several rows
        for number in range(count):
            ids, mask = row(number)
            asked, start = np.flatnonzero(ids == tokenizer.user), int(mask.argmax())
            end = int(asked[0] + (ids[asked[0] :] == tokenizer.assistant).argmax())
            question = tokenizer.decode(ids[asked[0] + 1 : end].tolist())
            if len(asked) == 1 and end == start - 1 and mask[start:].all() and ids[-1] == tokenizer.end and question.strip():
                self.questions[number], self.room[number] = question, width - (asked[0] + 1) - (1 + min(BEGINNING, len(ids) - start))
                alike[ids[start:].tobytes()].append(number)
            else:
                others.append(question)
        self.sources = np.array(list(self.questions), dtype=np.int64)
        self.alike = [np.array(rows) for rows in alike.values()]  # the rows of each answer
        self.answer = {number: answer for answer, rows in enumerate(alike.values()) for number in rows}
        documents = [" ".join(self.questions[number] for number in rows) for rows in alike.values()]
        self.index = LookUp([*documents, *others], words) if alike else None

    def rows(self, numbers: Sequence[int], draws: Sequence[np.random.Generator]) -> list[Row]:
        """For each of these rows one with a question made up and the beginning of the answer."""
        made = []
        for number, question in zip(numbers, self.asked(numbers, draws), strict=True):
            ids, mask = self.row(number)
            start, first = int(mask.argmax()), int((ids == self.tokenizer.user).argmax()) + 1
            answer = ids[start - 1 : start + BEGINNING]
            new = np.concatenate([ids[:first], np.array(self.tokenizer.encode(question), dtype=ids.dtype), answer])
            made.append((new, (np.arange(len(new)) > len(new) - len(answer)).astype(mask.dtype)))
        return made

    def asked(self, numbers: Sequence[int], draws: Sequence[np.random.Generator]) -> list[str]:
        """A question made up for each of these rows; it counts only if it fits and a look-up in all that was asked is sure of the row's answer."""
        found, left = [self.questions[number] for number in numbers], list(range(len(numbers)))
        for _ in range(TRIES):
            if not left:
                break
            tried, own = [self.question(numbers[n], draws[n]) for n in left], (range(len(left)), [self.answer[numbers[n]] for n in left])
            others = self.index.nearness(tried)
            nearness = others[own]
            others[own] = 0
            is_sure = others.max(axis=1) < SURE * nearness
            is_sure &= [len(self.tokenizer.encode(text)) <= self.room[numbers[n]] for n, text in zip(left, tried, strict=True)]
            for n, text, sure in zip(left, tried, is_sure, strict=True):
                found[n] = text if sure else found[n]
            left = [n for n, sure in zip(left, is_sure, strict=True) if not sure]
        return found

    def question(self, number: int, draw: np.random.Generator) -> str:
        """Pieces of one to three questions with the answer of this row's, and up to 0.6 times as much of any others between; as long as its own at most."""
        alike, own = self.alike[self.answer[number]], self.questions[number]
        count = min(int(draw.choice((1, 1, 2, 3))), len(alike))
        keep = draw.uniform(0.25, 0.8) / max(1, 0.75 * count)
        pieces = [piece for n in draw.choice(alike, count, replace=False) for piece in cut(self.questions[n], draw) if draw.random() < keep]
        length = sum(map(len, pieces))
        whole = length * (1 + draw.uniform(0, 0.6))
        while length < whole:
            units = UNIT.findall(self.questions[draw.choice(self.sources)])
            start = draw.integers(len(units))
            piece = "".join(units[start : start + draw.integers(1, LONGEST + 1)])
            pieces.insert(draw.integers(len(pieces) + 1), piece)
            length += len(piece)
        while length > len(own):
            length -= len(pieces.pop(draw.integers(len(pieces))))
        return "".join(pieces) or own


def cut(text: str, draw: np.random.Generator) -> list[str]:
    """The text in pieces of 1 to LONGEST units."""
    units = UNIT.findall(text)
    pieces = []
    while units:
        size = int(draw.integers(1, LONGEST + 1))
        pieces.append("".join(units[:size]))
        units = units[size:]
    return pieces


def words(text: str) -> list[str]:
    """The units without their blanks."""
    return [unit for unit in map(str.strip, UNIT.findall(text)) if unit]
