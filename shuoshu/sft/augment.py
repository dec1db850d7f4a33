"""Augmentation: noise on training questions, and synthetic paraphrases of them.

A small model learns the exact words of each training question. If a user asks in other words, it
gives the answer to another question. So both methods change the words, differently in each epoch.

**Noise** (question_drop, question_replace) removes characters of the questions, then replaces
tokens by random ones:

    桥正第十回就送了命，为啥后面还有他的戏？  →  桥正第十回就送了命为啥后面还有他的戏流

**A synthetic paraphrase** (paraphrases) is a question that nobody would write, with words that
point to its answer. It is made of pieces, each up to 5 characters or words long:

    question      铁梁峡的宽度和高度分别是多少丈？
    answer        两岸相距四十六丈，崖顶离江面三十丈。
    paraphrase    度分别是多南崖到北崖江面

1. Pieces of up to three training questions with this answer: 度分别是多, 南崖到北崖. A user may
   combine their words.
2. Pieces of the answer, inserted at random: 江面. Users often know words of the answer, but the
   training questions seldom have them.
3. Pieces of any training questions, inserted at random. The model learns to ignore them.
4. Pieces are removed at random until the result is no longer than the original question.

A TF-IDF index over the training questions judges the result: it is used only if the questions with
its own answer are clearly the most similar ones. So the model learns which words tell the answers
apart. Pieces of the answer aren't shown to the index: they would point to the answer whatever the
question says. After 20 failures the original question is used.

In each epoch, one paraphrase of a question trains the whole answer. The others train only its
beginning, up to where it differs from all other answers: the rest follows from that beginning,
whatever the question is. docs/log has the experiments (2026-11-21 and 2026-11-22).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from shuoshu.sft.tfidf import TfidfIndex
from shuoshu.text.tokenizer import Tokenizer

# A unit: a word or a number with the white space after it, or any other single character. Chinese
# characters (the range from U+2E80) are single, because there are no spaces between words.
TEXT_UNIT = re.compile(r"[^\W\d_\u2e80-\U0003ffff]+\s*|\d+\s*|.", re.DOTALL)
MAX_PIECE_UNITS = 5  # a piece of that length may hold a phrase, but not a whole question
QUESTIONS_PER_PARAPHRASE = (1, 1, 2, 3)  # number of questions to mix; one of these is drawn
# Share of a question's pieces that is used. With n questions it is divided by 0.75 n, so that the
# text grows little with n.
MIN_USED_SHARE, MAX_USED_SHARE = 0.25, 0.8
USED_SHARE_DIVISOR = 0.75
# Upper bounds, relative to the length of the pieces of step 1. Each paraphrase draws a share below
# them. docs/log has other values that were tried.
MAX_ANSWER_SHARE = 0.8  # pieces of the answer; 0 and 0.4 were tried
MAX_FOREIGN_SHARE = 1.0  # pieces of the answer and foreign pieces together; 0.6 and 2 were tried
# The second most similar answer must have less than this share of the first one's similarity. 0.85
# was tried too. Seven in ten tries pass.
MAX_RUNNER_UP = 0.95
MAX_TRIES = 20  # enough unless no part of a question points to its answer
MAX_TRIALS = 100  # questions (about) from which success_rate is estimated

TrainedRow = tuple[np.ndarray, np.ndarray]  # ids, and a mask that is 1 where the token is trained


# ---------------------------------------------------------------- noise


class QuestionNoise:
    """Removes characters of all questions of a row, then replaces tokens by random ones.

    `drop` and `replace` are the probabilities for a character and a token.
    """

    def __init__(self, tokenizer: Tokenizer, drop: float, replace: float) -> None:
        self.tokenizer, self.drop, self.replace = tokenizer, drop, replace
        self.is_special = np.isin(np.arange(tokenizer.n_vocab), list(tokenizer.specials.values()))
        self.ordinary = np.flatnonzero(~self.is_special)

    def __call__(self, ids: np.ndarray, mask: np.ndarray, draw: np.random.Generator) -> TrainedRow:
        """The row with noisy questions; it is never longer than before."""
        new_ids, new_masks, done = [], [], 0
        for start in np.flatnonzero(ids == self.tokenizer.user) + 1:
            end = start + int(self.is_special[ids[start:]].argmax())  # of this question
            question = self._noisy(ids[start:end], draw)
            new_ids += [ids[done:start], question]
            new_masks += [mask[done:start], np.zeros(len(question), mask.dtype)]
            done = end
        return np.concatenate([*new_ids, ids[done:]]), np.concatenate([*new_masks, mask[done:]])

    def _noisy(self, ids: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        text = self.tokenizer.decode(ids.tolist())
        keeps = draw.random(len(text)) >= self.drop
        text = "".join(c for c, keep in zip(text, keeps, strict=True) if keep)
        # Characters that were in one token may need more tokens now, so that the text is cut.
        new = np.array(self.tokenizer.encode(text)[: len(ids)], dtype=ids.dtype)
        is_replaced = draw.random(len(new)) < self.replace
        return np.where(is_replaced, draw.choice(self.ordinary, len(new)), new)


# ---------------------------------------------------------------- paraphrases


class Paraphraser:
    """Makes synthetic paraphrases of rows that hold a single question and its whole answer.

    Other rows (conversations, parts of long answers) are not paraphrased. Their questions are in
    the index, so that no paraphrase points to them.
    """

    def __init__(
        self, tokenizer: Tokenizer, read_row: Callable[[int], TrainedRow], n_rows: int, width: int
    ) -> None:
        self.tokenizer, self.read_row = tokenizer, read_row
        self.questions: dict[int, str] = {}  # of each row that can be paraphrased
        # Tokens that a row has room for: question and trained part of the answer together.
        self.room: dict[int, int] = {}
        rows_by_answer: dict[tuple[int, ...], list[int]] = defaultdict(list)
        other_questions = []
        for number in range(n_rows):
            ids, mask = read_row(number)
            users, answer = np.flatnonzero(ids == tokenizer.user), int(mask.argmax())
            user = int(users[0])
            assistant = user + int((ids[user:] == tokenizer.assistant).argmax())
            question = tokenizer.decode(ids[user + 1 : assistant].tolist())
            is_single = len(users) == 1 and assistant == answer - 1
            is_whole = mask[answer:].all() and ids[-1] == tokenizer.end
            if is_single and is_whole and question.strip():
                self.questions[number] = question
                self.room[number] = width - user - 2  # without the tokens for user and assistant
                rows_by_answer[tuple(ids[answer:].tolist())].append(number)
            else:
                other_questions.append(question)
        self.sources = np.array(list(self.questions), dtype=np.int64)  # the rows' numbers
        answers = list(rows_by_answer)
        self.answer_texts = [tokenizer.decode(list(ids[:-1])) or " " for ids in answers]
        self.rows_of_answer = [np.array(rows) for rows in rows_by_answer.values()]
        self.answer_of = {  # row → index of its answer
            number: index for index, rows in enumerate(rows_by_answer.values()) for number in rows
        }
        lengths = distinguishing_lengths(answers)
        self.distinguishing = {n: lengths[answer] for n, answer in self.answer_of.items()}
        # Questions with the same answer are one document, with the answer's index.
        documents = [" ".join(self.questions[n] for n in rows) for rows in rows_by_answer.values()]
        documents += other_questions
        self.index = TfidfIndex(documents, split_words) if answers else None

    def success_rate(self) -> float:
        """The share of about MAX_TRIALS evenly chosen rows for which a paraphrase is found."""
        sample = self.sources[:: max(1, len(self.sources) // MAX_TRIALS)].tolist()
        counts = [self.distinguishing[number] for number in sample]
        draws = [np.random.default_rng(number) for number in sample]
        texts = self.paraphrase_questions(sample, counts, draws)
        is_new = [text != self.questions[n] for text, n in zip(texts, sample, strict=True)]
        return sum(is_new) / len(sample)

    def paraphrase_rows(
        self, numbers: Sequence[int], counts: Sequence[int], draws: Sequence[np.random.Generator]
    ) -> list[TrainedRow]:
        """A paraphrased row for each row number; it trains `count` tokens of the answer."""
        rows = []
        questions = self.paraphrase_questions(numbers, counts, draws)
        for number, count, question in zip(numbers, counts, questions, strict=True):
            ids, mask = self.read_row(number)
            user, answer = int((ids == self.tokenizer.user).argmax()), int(mask.argmax())
            question_ids = np.array(self.tokenizer.encode(question), dtype=ids.dtype)
            answer_ids = ids[answer - 1 : answer + count]  # with the token for assistant
            new = np.concatenate([ids[: user + 1], question_ids, answer_ids])
            is_trained = np.arange(len(new)) > len(new) - len(answer_ids)
            rows.append((new, is_trained.astype(mask.dtype)))
        return rows

    def paraphrase_questions(
        self, numbers: Sequence[int], counts: Sequence[int], draws: Sequence[np.random.Generator]
    ) -> list[str]:
        """A paraphrase of each row's question, or the question itself if none is found.

        With `count` tokens of the answer, the paraphrase fits into a row.
        """
        result = [self.questions[number] for number in numbers]
        remaining = list(range(len(numbers)))  # indices for which no paraphrase is found yet
        for _ in range(MAX_TRIES):
            if not remaining:
                break
            drafts = [self.draw_paraphrase(numbers[i], draws[i]) for i in remaining]
            is_clear = self._is_clear(
                [judged for judged, _ in drafts], [self.answer_of[numbers[i]] for i in remaining]
            )
            failed = []
            for i, (_, text), clear in zip(remaining, drafts, is_clear, strict=True):
                fits = len(self.tokenizer.encode(text)) + counts[i] <= self.room[numbers[i]]
                if clear and fits:
                    result[i] = text
                else:
                    failed.append(i)
            remaining = failed
        return result

    def _is_clear(self, texts: list[str], answers: list[int]) -> np.ndarray:
        """Whether the questions of each text's own answer are clearly the most similar ones."""
        similarities = self.index.similarities(texts)  # (texts, documents)
        own = np.arange(len(texts)), answers
        own_similarity = similarities[own]
        similarities[own] = 0
        return similarities.max(axis=1) < MAX_RUNNER_UP * own_similarity

    def draw_paraphrase(self, number: int, draw: np.random.Generator) -> tuple[str, str]:
        """(text without pieces of the answer, whole text), no longer than the row's question.

        The numbers are the steps in this file's description.
        """
        answer, max_length = self.answer_of[number], len(self.questions[number])
        same_answer = self.rows_of_answer[answer]

        # 1. Pieces of questions with this answer.
        count = min(int(draw.choice(QUESTIONS_PER_PARAPHRASE)), len(same_answer))
        share = draw.uniform(MIN_USED_SHARE, MAX_USED_SHARE) / max(1, USED_SHARE_DIVISOR * count)
        pieces = [
            piece
            for source in draw.choice(same_answer, count, replace=False)
            for piece in split_into_pieces(self.questions[source], draw)
            if draw.random() < share
        ]
        length = sum(map(len, pieces))

        # 2. Pieces of the answer. They are inserted last, so that the index doesn't see them.
        answer_length = length * draw.uniform(0, MAX_ANSWER_SHARE)
        answer_pieces = random_pieces(lambda: self.answer_texts[answer], answer_length, draw)

        # 3. Pieces of any questions.
        foreign_length = length * draw.uniform(0, MAX_FOREIGN_SHARE) - sum(map(len, answer_pieces))
        foreign_pieces = random_pieces(
            lambda: self.questions[draw.choice(self.sources)], foreign_length, draw
        )
        insert_randomly(pieces, foreign_pieces, draw)

        # 4. No longer than the question, because the dataset sorts rows by their expected length.
        while sum(map(len, pieces + answer_pieces)) > max_length:
            i = draw.integers(len(pieces) + len(answer_pieces))
            if i < len(pieces):
                pieces.pop(i)
            else:
                answer_pieces.pop(i - len(pieces))

        judged = "".join(pieces)
        insert_randomly(pieces, answer_pieces, draw)
        return judged, "".join(pieces)


# ---------------------------------------------------------------- pieces


def split_into_pieces(text: str, draw: np.random.Generator) -> list[str]:
    """Cuts a text into pieces of random length, 1 to MAX_PIECE_UNITS units."""
    units = TEXT_UNIT.findall(text)
    pieces = []
    while units:
        size = int(draw.integers(1, MAX_PIECE_UNITS + 1))
        pieces.append("".join(units[:size]))
        units = units[size:]
    return pieces


def random_pieces(
    draw_text: Callable[[], str], length: float, draw: np.random.Generator
) -> list[str]:
    """Pieces of at least `length` characters in total. Each comes from a text drawn at random."""
    pieces = []
    while sum(map(len, pieces)) < length:
        units = TEXT_UNIT.findall(draw_text())
        start = draw.integers(len(units))
        pieces.append("".join(units[start : start + draw.integers(1, MAX_PIECE_UNITS + 1)]))
    return pieces


def insert_randomly(pieces: list[str], others: Sequence[str], draw: np.random.Generator) -> None:
    """Inserts the other pieces into `pieces` at random places."""
    for piece in others:
        pieces.insert(draw.integers(len(pieces) + 1), piece)


def split_words(text: str) -> list[str]:
    """The units of a text without white space: the terms of the index."""
    return [unit for unit in map(str.strip, TEXT_UNIT.findall(text)) if unit]


def distinguishing_lengths(answers: Sequence[Sequence[int]]) -> list[int]:
    """For each answer, the length of its shortest beginning that no other answer has, plus one.

    The answers are token ids, all different. The result is at most the answer's length: an answer
    that is the beginning of another one has to be trained to its end.
    """
    lengths = [1] * len(answers)
    # In sorted order, an answer has the longest common beginning with one of its neighbours.
    for one, other in pairwise(sorted(range(len(answers)), key=answers.__getitem__)):
        pairs = enumerate(zip(answers[one], answers[other], strict=False))
        common = next((n for n, (a, b) in pairs if a != b), len(answers[one]))
        lengths[one] = max(lengths[one], common + 1)
        lengths[other] = max(lengths[other], common + 1)
    return [min(length + 1, len(answer)) for length, answer in zip(lengths, answers, strict=True)]
