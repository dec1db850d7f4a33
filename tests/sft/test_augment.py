"""Synthetic paraphrases: the words they contain, what they train, how often they come."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuoshu.sft.augment import (
    MAX_PIECE_UNITS,
    TEXT_UNIT,
    Paraphraser,
    distinguishing_lengths,
    split_into_pieces,
    split_words,
)
from shuoshu.sft.dataset import read_pairs
from shuoshu.sft.tfidf import TfidfIndex
from shuoshu.text.tokenizer import Tokenizer
from tests.sft.helpers import REVIEWS, conversation, generators

LAMP_AND_TEAHOUSE = [
    ("清晨，沈砚在渡口做了什么？", "点起一盏油灯。"),
    ("孟婆婆在茶楼等谁呢？", "等老船夫。"),
]
LAMP_AND_RAIN = [("点起油灯的是谁？", "沈砚。"), ("昨天夜里雨停了没有？", "没有停。")]


def render(tokenizer: Tokenizer, question: str, answer: str) -> tuple[list[int], list[int]]:
    return tokenizer.render(conversation(question, answer))


def make_paraphraser(
    tokenizer: Tokenizer, pairs: Iterable[tuple[str, str]], width: int = 64
) -> Paraphraser:
    rows = [tuple(map(np.array, render(tokenizer, *pair))) for pair in pairs]
    return Paraphraser(tokenizer, rows.__getitem__, len(rows), width)


def paraphrase(
    paraphraser: Paraphraser, numbers: list[int], draws: list[np.random.Generator]
) -> list[str]:
    """Paraphrases for rows that train the distinguishing beginnings of their answers."""
    counts = [paraphraser.distinguishing[number] for number in numbers]
    return paraphraser.paraphrase_questions(numbers, counts, draws)


# ---------------------------------------------------------------- the words of a paraphrase


def test_paraphrase_has_mostly_pieces_of_its_answers_questions_and_some_of_the_answer(
    paraphrased, qa: Path
) -> None:
    paraphraser, draw = paraphrased.paraphraser, np.random.default_rng(0)
    question_units = {
        number: set(TEXT_UNIT.findall(question))
        for number, question in paraphraser.questions.items()
    }
    answer_units = {
        number: set(TEXT_UNIT.findall(record["answer"]))
        for number, record in enumerate(read_pairs(qa, "train"))
    }
    all_units = set().union(*question_units.values())
    question_shares, answer_shares, foreign = [], [], set()
    for rows in paraphraser.rows_of_answer:
        first = int(rows[0])
        own = set().union(*(question_units[number] for number in rows))
        for text in paraphrase(paraphraser, [first] * 5, [draw] * 5):
            units = TEXT_UNIT.findall(text)
            assert len(text) <= len(paraphraser.questions[first])
            assert units and set(units) <= all_units | answer_units[first], (
                "no other answer's words"
            )
            foreign |= set(units) - own - answer_units[first]
            question_shares.append(np.mean([unit in own for unit in units]))
            answer_shares.append(np.mean([unit in answer_units[first] - own for unit in units]))
    assert 0.7 < np.mean(question_shares) < 0.85 and 0.1 < np.mean(answer_shares) < 0.3
    with_foreign = sum(not foreign.isdisjoint(units) for units in question_units.values())
    assert with_foreign > len(question_units) / 3, "foreign pieces come from all questions"


def test_pieces_come_from_several_questions_with_the_same_answer(tokenizer) -> None:
    pairs = [("甲" * 12, "油灯。"), ("乙" * 12, "油灯。")]
    paraphraser = make_paraphraser(tokenizer, pairs)
    texts = [
        paraphraser.draw_paraphrase(seed % 2, draw)[0] for seed, draw in enumerate(generators(100))
    ]
    assert sum({"甲", "乙"} <= set(text) for text in texts) > 20


def test_index_judges_without_pieces_of_the_answer(tokenizer) -> None:
    paraphraser = make_paraphraser(tokenizer, REVIEWS)
    texts = paraphrase(paraphraser, list(range(8)) * 5, generators(40))
    assert texts == list(paraphraser.questions.values()) * 5, "the label is no help"
    drafts = [paraphraser.draw_paraphrase(0, draw) for draw in generators(100)]
    assert any("正" in whole for _, whole in drafts)
    assert not any("正" in judged for judged, _ in drafts)


def test_paraphrase_is_used_only_if_the_index_finds_its_answer(paraphrased, qa: Path) -> None:
    class Recording(Paraphraser):
        """Records what was judged for each (row, whole text)."""

        def draw_paraphrase(self, number: int, draw: np.random.Generator) -> tuple[str, str]:
            judged, whole = super().draw_paraphrase(number, draw)
            drafts[number, whole].add(judged)
            return judged, whole

    drafts: dict[tuple[int, str], set[str]] = defaultdict(set)
    tokenizer = paraphrased.paraphraser.tokenizer
    paraphraser = Recording(tokenizer, paraphrased.row, len(paraphrased), paraphrased.width)
    questions_of: dict[str, list[str]] = defaultdict(list)
    for record in read_pairs(qa, "train"):
        questions_of[record["answer"]].append(record["question"])
    index = TfidfIndex([" ".join(questions) for questions in questions_of.values()], split_words)

    numbers = [int(rows[0]) for rows in paraphraser.rows_of_answer] * 5
    texts = paraphrase(paraphraser, numbers, generators(len(numbers)))
    used = [draft for draft in zip(numbers, texts, strict=True) if draft in drafts]
    assert len(used) > 0.9 * len(numbers)
    assert sum(drafts[draft] != {draft[1]} for draft in used) > len(used) / 3
    for draft in used:
        nearest = index.similarities([*drafts[draft]]).argmax(axis=1)
        assert paraphraser.answer_of[draft[0]] in nearest


def test_question_stays_if_the_index_can_not_tell_the_answers_apart(tokenizer) -> None:
    paraphraser = make_paraphraser(tokenizer, [("他是谁？", "老船夫。"), ("他是谁？", "沈砚。")])
    assert paraphrase(paraphraser, [0, 1, 1], generators(3)) == ["他是谁？"] * 3


@pytest.mark.parametrize("second, is_clear", [(0.47, True), (0.48, False)])
def test_second_answer_must_be_less_similar_by_a_twentieth(
    tokenizer, second: float, is_clear: bool
) -> None:
    paraphraser = make_paraphraser(tokenizer, LAMP_AND_RAIN)
    paraphraser.index = SimpleNamespace(
        similarities=lambda texts: np.array([[0.5, second]] * len(texts))
    )
    texts = set(paraphrase(paraphraser, [0] * 50, generators(50)))
    assert len(texts) > 20 if is_clear else texts == {LAMP_AND_RAIN[0][0]}


def test_paraphrase_does_not_point_to_questions_in_conversations(tokenizer) -> None:
    rows = [tokenizer.render(conversation("点灯的人是谁？", "没有人。", "真的？", "真的。"))]
    rows += [
        render(tokenizer, "昨天夜里点灯的人是谁？", "沈砚。"),
        render(tokenizer, "渡口在哪里？", "城南。"),
    ]
    paraphraser = Paraphraser(tokenizer, lambda number: tuple(map(np.array, rows[number])), 3, 64)
    assert paraphraser.sources.tolist() == [1, 2]
    texts = paraphrase(paraphraser, [1] * 200, generators(200))
    assert len(set(texts)) > 50
    assert all(set(text) & set("昨天夜里") for text in texts)


def test_english_words_tell_questions_apart(tokenizer) -> None:
    names = [
        "boat",
        "lamp",
        "stone",
        "letter",
        "ferry",
        "bridge",
        "river",
        "scholar",
        "kettle",
        "ink",
        "market",
        "temple",
    ]
    questions = [
        f"What did the old man do with the {a} when he saw that {b} again?"
        for a, b in zip(names, names[3:] + names[:3], strict=True)
    ]
    pairs = [(question, f"It was number {n}.") for n, question in enumerate(questions)]
    paraphraser = make_paraphraser(tokenizer, pairs, width=200)
    texts = paraphrase(paraphraser, list(range(12)) * 5, generators(60))
    assert sum(text != questions[n % 12] for n, text in enumerate(texts)) > 45


def test_answer_without_text_adds_no_pieces(tokenizer) -> None:
    paraphraser = make_paraphraser(tokenizer, [("点起油灯的是谁？", ""), LAMP_AND_RAIN[1]])
    assert len(set(paraphrase(paraphraser, [0] * 50, generators(50)))) > 20
    assert paraphraser.distinguishing == {0: 1, 1: 2}


# ---------------------------------------------------------------- room in the row


def test_paraphrase_that_does_not_fit_is_not_used(tokenizer) -> None:
    pairs = LAMP_AND_TEAHOUSE
    width = min(len(render(tokenizer, *pair)[0]) for pair in pairs) - 8
    paraphraser, n_paraphrased = make_paraphraser(tokenizer, pairs, width=width), 0
    for seed in range(100):
        counts = [paraphraser.distinguishing[number] + seed % 2 * 20 for number in (0, 1)]
        draws = [np.random.default_rng([seed, n]) for n in (0, 1)]
        rows = paraphraser.paraphrase_rows([0, 1], counts, draws)
        for (ids, _), (question, _) in zip(rows, pairs, strict=True):
            text = tokenizer.decode(ids[1 : ids.tolist().index(tokenizer.assistant)].tolist())
            assert text == question or len(ids) <= width
            n_paraphrased += text != question
    assert n_paraphrased > 50


def test_room_counts_the_trained_tokens_of_each_row(tokenizer) -> None:
    paraphraser = make_paraphraser(tokenizer, LAMP_AND_TEAHOUSE)
    for full in (0, 1):  # this row trains so many tokens that no paraphrase fits
        counts = [1, 1]
        counts[full] = paraphraser.room[full]
        texts = paraphraser.paraphrase_questions([0, 1] * 20, counts * 20, generators(40))
        assert set(texts[full::2]) == {LAMP_AND_TEAHOUSE[full][0]}
        assert len(set(texts[1 - full :: 2])) > 10


def test_paraphrase_row_trains_a_distinguishing_beginning_of_its_answer(
    paraphrased, tokenizer_of_qa
) -> None:
    dataset, tokenizer = paraphrased, tokenizer_of_qa
    rows = [dataset.row(number) for number in range(len(dataset))]
    answers = {tuple(ids[mask == 1].tolist()) for ids, mask in rows}
    for number in range(0, len(dataset), 7):
        row_ids, _ = rows[number]
        answer = row_ids[row_ids.tolist().index(tokenizer.assistant) + 1 :].tolist()
        count = dataset.paraphraser.distinguishing[number]
        for draw in generators(10):
            [(ids, mask)] = dataset.paraphraser.paraphrase_rows([number], [count], [draw])
            trained = ids[mask == 1].tolist()
            assert trained == answer[: len(trained)] and ids.dtype == row_ids.dtype
            matching = [other for other in answers if [*other[: len(trained)]] == trained]
            assert matching == [tuple(answer)]
            assert mask.tolist() == sorted(mask.tolist()), "only the end of the row is trained"
            assert ids[mask.argmax() - 1] == tokenizer.assistant
            assert len(ids) <= dataset.width


# ---------------------------------------------------------------- pieces and beginnings


@given(
    text=st.text(st.sampled_from("ab1 阿迟，。？é"), min_size=1, max_size=60),
    seed=st.integers(0, 1000),
)
def test_pieces_make_up_the_text_and_words_and_numbers_stay_whole(text: str, seed: int) -> None:
    pieces = split_into_pieces(text, np.random.default_rng(seed))
    assert "".join(pieces) == text
    for before, after in pairwise(pieces):
        assert 1 <= len(TEXT_UNIT.findall(before)) <= MAX_PIECE_UNITS
        assert not (before[-1] in "abé" and after[0] in "abé")
        assert not before[-1] == after[0] == "1"


ANSWERS = st.sets(
    st.lists(st.integers(0, 2), max_size=6).map(lambda ids: (*ids, 9)), min_size=1, max_size=12
)


@given(ANSWERS)
def test_distinguishing_length_is_one_more_than_the_shortest_unique_beginning(
    answers: set[tuple[int, ...]],
) -> None:
    answers = list(answers)
    for answer, length in zip(answers, distinguishing_lengths(answers), strict=True):
        others = [other for other in answers if other is not answer]
        shortest = next(
            n for n in range(1, len(answer) + 1) if all(other[:n] != answer[:n] for other in others)
        )
        assert length == min(shortest + 1, len(answer))


def test_answer_that_begins_another_one_is_trained_whole() -> None:
    assert distinguishing_lengths([(1, 2), (1, 2, 3, 4, 5), (7,)]) == [2, 4, 1]
