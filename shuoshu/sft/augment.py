"""Questions in words that nobody wrote: pieces of those with one answer, and of it, among any, so that a model learns which words tell answers apart."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from shuoshu.sft.tfidf import TfidfIndex
from shuoshu.text.tokenizer import Tokenizer

MAX_PIECE_TOKENS = 5  # units in a piece
MAX_ANSWER_SHARE, MAX_FOREIGN_SHARE = (
    0.8,
    1,
)  # for one part of questions with its answer: about so much at most of the answer, and of it and of other questions together
MAX_RUNNER_UP = 0.95  # of the nearest answer's nearness: so near at most may the next one be
MAX_TRIES = 20  # before a question is taken as it was written
UNIT = re.compile(
    r"[^\W\d_\u2e80-\U0003ffff]+\s*|\d+\s*|.", re.DOTALL
)  # a word or number with the blanks after it, else a character
Row = tuple[np.ndarray, np.ndarray]  # ids and mask


class Paraphraser:
    """Makes up rows for those that hold one question and its whole answer; `sources` are their numbers.

    `telling`: so many tokens of a row's answer say which one it is; `room`: so many a question and what is trained of its answer may have.
    """

    def __init__(
        self, tokenizer: Tokenizer, row: Callable[[int], Row], count: int, width: int
    ) -> None:
        self.tokenizer, self.row = tokenizer, row
        self.questions: dict[int, str] = {}
        self.room: dict[int, int] = {}
        alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
        others = []  # what was asked elsewhere, in conversations or for answers over several rows
        for number in range(count):
            ids, mask = row(number)
            asked, start = np.flatnonzero(ids == tokenizer.user), int(mask.argmax())
            end = int(asked[0] + (ids[asked[0] :] == tokenizer.assistant).argmax())
            question = tokenizer.decode(ids[asked[0] + 1 : end].tolist())
            if (
                len(asked) == 1
                and end == start - 1
                and mask[start:].all()
                and ids[-1] == tokenizer.end
                and question.strip()
            ):
                self.questions[number], self.room[number] = question, width - int(asked[0]) - 2
                alike[tuple(ids[start:].tolist())].append(number)
            else:
                others.append(question)
        self.sources = np.array(list(self.questions), dtype=np.int64)
        self.alike = [np.array(rows) for rows in alike.values()]  # the rows of each answer
        self.answer = {
            number: answer for answer, rows in enumerate(alike.values()) for number in rows
        }
        counts = distinguishing_lengths(list(alike))
        self.telling = {number: counts[answer] for number, answer in self.answer.items()}
        self.answers = [tokenizer.decode(list(ids[:-1])) or " " for ids in alike]
        documents = [" ".join(self.questions[number] for number in rows) for rows in alike.values()]
        self.index = TfidfIndex([*documents, *others], split_words) if alike else None

    def rows(
        self, numbers: Sequence[int], counts: Sequence[int], draws: Sequence[np.random.Generator]
    ) -> list[Row]:
        """For each of these rows one with a question made up and so many tokens of the answer."""
        made = []
        for number, count, question in zip(
            numbers, counts, self.paraphrases(numbers, counts, draws), strict=True
        ):
            ids, mask = self.row(number)
            start, first = int(mask.argmax()), int((ids == self.tokenizer.user).argmax()) + 1
            answer = ids[start - 1 : start + count]
            new = np.concatenate(
                [ids[:first], np.array(self.tokenizer.encode(question), dtype=ids.dtype), answer]
            )
            made.append((new, (np.arange(len(new)) > len(new) - len(answer)).astype(mask.dtype)))
        return made

    def paraphrases(
        self, numbers: Sequence[int], counts: Sequence[int], draws: Sequence[np.random.Generator]
    ) -> list[str]:
        """A question made up for each of these rows; it counts only if it fits and if a look-up in all that was asked is sure of the row's answer."""
        found, left = [self.questions[number] for number in numbers], list(range(len(numbers)))
        for _ in range(MAX_TRIES):
            if not left:
                break
            tried = [self.draw_paraphrase(numbers[n], draws[n]) for n in left]
            own = range(len(left)), [self.answer[numbers[n]] for n in left]
            others = self.index.similarities([without for without, _ in tried])
            nearness = others[own]
            others[own] = 0
            is_sure = others.max(axis=1) < MAX_RUNNER_UP * nearness
            is_sure &= [
                len(self.tokenizer.encode(text)) + counts[n] <= self.room[numbers[n]]
                for n, (_, text) in zip(left, tried, strict=True)
            ]
            for n, (_, text), sure in zip(left, tried, is_sure, strict=True):
                found[n] = text if sure else found[n]
            left = [n for n, sure in zip(left, is_sure, strict=True) if not sure]
        return found

    def draw_paraphrase(self, number: int, draw: np.random.Generator) -> tuple[str, str]:
        """(without the answer's words, with them): pieces of one to three questions with this row's answer, of any, of it; no longer than its own."""
        answer, own = self.answer[number], self.questions[number]
        alike = self.alike[answer]
        count = min(int(draw.choice((1, 1, 2, 3))), len(alike))
        keep = draw.uniform(0.25, 0.8) / max(1, 0.75 * count)
        asked = [
            piece
            for n in draw.choice(alike, count, replace=False)
            for piece in split_into_pieces(self.questions[n], draw)
            if draw.random() < keep
        ]
        length = sum(map(len, asked))
        said = random_pieces(
            lambda: self.answers[answer], length * draw.uniform(0, MAX_ANSWER_SHARE), draw
        )
        insert_randomly(
            asked,
            random_pieces(
                lambda: self.questions[draw.choice(self.sources)],
                length * draw.uniform(0, MAX_FOREIGN_SHARE) - sum(map(len, said)),
                draw,
            ),
            draw,
        )
        while sum(map(len, asked + said)) > len(own):
            n = draw.integers(len(asked) + len(said))
            _ = asked.pop(n) if n < len(asked) else said.pop(n - len(asked))
        without = "".join(asked)
        insert_randomly(asked, said, draw)
        return without, "".join(asked)


def random_pieces(text: Callable[[], str], length: float, draw: np.random.Generator) -> list[str]:
    """Pieces from anywhere in a text, which is asked for each time, until they have this length."""
    pieces = []
    while sum(map(len, pieces)) < length:
        units = UNIT.findall(text())
        start = draw.integers(len(units))
        pieces.append("".join(units[start : start + draw.integers(1, MAX_PIECE_TOKENS + 1)]))
    return pieces


def insert_randomly(pieces: list[str], others: Sequence[str], draw: np.random.Generator) -> None:
    """Puts the others anywhere between these."""
    for piece in others:
        pieces.insert(draw.integers(len(pieces) + 1), piece)


def distinguishing_lengths(answers: Sequence[Sequence[int]]) -> list[int]:
    """How many tokens of each of these answers tell it from every other, and one more where there is one."""
    counts = [1] * len(answers)
    for one, other in pairwise(sorted(range(len(answers)), key=answers.__getitem__)):
        apart = (
            n for n, (a, b) in enumerate(zip(answers[one], answers[other], strict=False)) if a != b
        )
        same = next(apart, len(answers[one]))
        counts[one], counts[other] = max(counts[one], same + 1), max(counts[other], same + 1)
    return [min(count + 1, len(answer)) for count, answer in zip(counts, answers, strict=True)]


def split_into_pieces(text: str, draw: np.random.Generator) -> list[str]:
    """The text in pieces of 1 to LONGEST units."""
    units = UNIT.findall(text)
    pieces = []
    while units:
        size = int(draw.integers(1, MAX_PIECE_TOKENS + 1))
        pieces.append("".join(units[:size]))
        units = units[size:]
    return pieces


def split_words(text: str) -> list[str]:
    """The units without their blanks."""
    return [unit for unit in map(str.strip, UNIT.findall(text)) if unit]


class QuestionNoise:
    """What questions suffer in training, so that answers don't hang on their every word: characters left out, then tokens swapped for any others."""

    def __init__(self, tokenizer: Tokenizer, drop: float, swap: float) -> None:
        self.tokenizer, self.drop, self.swap = tokenizer, drop, swap
        self.special = np.isin(np.arange(tokenizer.n_vocab), list(tokenizer.specials.values()))
        self.ordinary = np.flatnonzero(~self.special)

    def __call__(
        self, ids: np.ndarray, mask: np.ndarray, draw: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        parts, masks, done = [], [], 0
        for start in np.flatnonzero(ids == self.tokenizer.user) + 1:
            end = start + int(self.special[ids[start:]].argmax())  # an assistant's turn follows
            text = self.tokenizer.decode(ids[start:end].tolist())
            kept = "".join(
                c
                for c, chance in zip(text, draw.random(len(text)), strict=True)
                if chance >= self.drop
            )
            new = np.array(
                self.tokenizer.encode(kept)[: end - start], dtype=ids.dtype
            )  # odd characters may take more tokens by themselves
            new = np.where(
                draw.random(len(new)) < self.swap, draw.choice(self.ordinary, len(new)), new
            )
            parts += [ids[done:start], new]
            masks += [mask[done:start], np.zeros(len(new), mask.dtype)]
            done = end
        return np.concatenate([*parts, ids[done:]]), np.concatenate([*masks, mask[done:]])
