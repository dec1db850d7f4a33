"""shuoshu/rewording.py and its rows in RowFile: whose words a made-up question holds, what it trains, how often it comes."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuoshu.core.errors import UserError
from shuoshu.sft.augment import (
    MAX_PIECE_TOKENS,
    UNIT,
    Paraphraser,
    QuestionNoise,
    distinguishing_lengths,
    split_into_pieces,
    split_words,
)
from shuoshu.sft.dataset import QuestionDataset, read_pairs, write_rows
from shuoshu.sft.pairs import Pair
from shuoshu.sft.rendering import split_long_answer
from shuoshu.sft.tfidf import TfidfIndex
from shuoshu.text.dataset import IGNORE
from shuoshu.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def own(qa: Path) -> tuple[QuestionDataset, Tokenizer]:
    """The training rows with three times as many reworded ones, and their tokenizer."""
    file, tokenizer = QuestionDataset(qa, "train", 8), Tokenizer.load(qa)
    file.add_paraphrases(tokenizer, 3)
    return file, tokenizer


def rendered(tokenizer: Tokenizer, question: str, answer: str) -> tuple[list[int], list[int]]:
    return tokenizer.render(
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    )


def made_of(tokenizer: Tokenizer, *pairs: tuple[str, str], width: int = 64) -> Paraphraser:
    rows = [tuple(map(np.array, rendered(tokenizer, *pair))) for pair in pairs]
    return Paraphraser(tokenizer, rows.__getitem__, len(rows), width)


def asked_by(
    rewording: Paraphraser, numbers: list[int], draws: list[np.random.Generator]
) -> list[str]:
    return rewording.paraphrases(numbers, [rewording.telling[number] for number in numbers], draws)


def said(ids: np.ndarray, targets: np.ndarray, tokenizer: Tokenizer) -> tuple[str, str]:
    """The question of a row, and what it trains."""
    row = ids.tolist()
    question = row[row.index(tokenizer.user) + 1 : row.index(tokenizer.assistant)]
    return tokenizer.decode(question), tokenizer.decode(targets[targets != IGNORE].tolist())


def epoch(file: QuestionDataset, number: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    size = file.rows_per_epoch(64)
    return [tuple(part[0] for part in file.rows(number * size + n, 1, 64, 1)) for n in range(size)]


def test_an_epoch_has_each_row_once_and_reworded_once_with_the_whole_answer_and_else_with_its_beginning(
    own, qa: Path
) -> None:
    file, tokenizer = own
    records = read_pairs(qa, "train")
    assert file.rows_per_epoch(64) == 4 * len(records)
    expected, beginnings, answers = (
        Counter(),
        Counter(),
        {record["answer"]: None for record in records},
    )
    needed = dict(
        zip(
            answers,
            distinguishing_lengths(
                [[*tokenizer.encode(answer), tokenizer.end] for answer in answers]
            ),
            strict=True,
        )
    )
    for record in records:
        expected[record["question"], record["answer"]] += 1
        whole = [*tokenizer.encode(record["answer"]), tokenizer.end]
        beginnings[tokenizer.decode(whole)] += 1
        beginnings[tokenizer.decode(whole[: needed[record["answer"]]])] += 2
    rows = [said(*row, tokenizer) for row in epoch(file)]
    assert Counter(file.row_ids(0, file.rows_per_epoch(64), 64, 1).tolist()) == dict.fromkeys(
        range(len(file)), 4
    )
    places = file._places(0, file.rows_per_epoch(64), 1)
    assert (
        Counter(row for row, place in zip(rows, places, strict=True) if place < len(file))
        == expected
    )
    made = [row for row, place in zip(rows, places, strict=True) if place >= len(file)]
    assert Counter(answer for _, answer in made) == beginnings
    questions = {question for question, _ in made}
    assert len(questions - {question for question, _ in expected}) > 0.7 * len(made), (
        "made up, and anew each time"
    )
    assert len(
        questions.intersection(said(*row, tokenizer)[0] for row in epoch(file, 1))
    ) < 0.2 * len(made)


def test_most_of_a_made_up_question_is_from_questions_with_its_answer_and_some_from_the_answer(
    own, qa: Path
) -> None:
    file, _ = own
    rewording, draw = file.paraphraser, np.random.default_rng(0)
    units = {
        number: set(UNIT.findall(question)) for number, question in rewording.questions.items()
    }
    answers = {
        number: set(UNIT.findall(record["answer"]))
        for number, record in enumerate(read_pairs(qa, "train"))
    }
    every = set().union(*units.values())
    asked, said, foreign = [], [], set()
    for alike in rewording.alike:
        theirs = set().union(*(units[number] for number in alike))
        for question in asked_by(rewording, [alike[0]] * 5, [draw] * 5):
            found = UNIT.findall(question)
            assert len(question) <= len(rewording.questions[alike[0]])
            assert found and set(found) <= every | answers[alike[0]], (
                "nothing of another one's answer"
            )
            foreign |= set(found) - theirs - answers[alike[0]]
            asked.append(np.mean([unit in theirs for unit in found]))
            said.append(np.mean([unit in answers[alike[0]] - theirs for unit in found]))
    assert 0.7 < np.mean(asked) < 0.85 and 0.1 < np.mean(said) < 0.3
    assert sum(not foreign.isdisjoint(found) for found in units.values()) > len(units) / 3, (
        "from questions of any"
    )


def test_pieces_come_from_several_questions_with_one_answer(tokenizer) -> None:
    """None but them are there: nothing foreign can come between."""
    rewording = made_of(tokenizer, ("甲" * 12, "油灯。"), ("乙" * 12, "油灯。"))
    made = [
        rewording.draw_paraphrase(seed % 2, np.random.default_rng(seed))[0] for seed in range(100)
    ]
    assert sum({"甲", "乙"} <= set(text) for text in made) > 20


def test_the_answers_words_are_no_reason_to_be_sure(tokenizer) -> None:
    rewording = made_of(
        tokenizer, *((f"味道{word}？", label) for word in "甲乙丙丁" for label in ("正面", "负面"))
    )
    asked = asked_by(
        rewording, list(range(8)) * 5, [np.random.default_rng(seed) for seed in range(40)]
    )
    assert asked == list(rewording.questions.values()) * 5
    made = [rewording.draw_paraphrase(0, np.random.default_rng(seed)) for seed in range(100)]
    assert any("正" in whole for _, whole in made) and not any(
        "正" in without for without, _ in made
    )


def test_a_question_counts_only_if_a_look_up_is_sure_of_its_answer_without_the_answers_words(
    own, qa: Path, monkeypatch
) -> None:
    rewording, tried, question = own[0].paraphraser, defaultdict(set), Paraphraser.draw_paraphrase
    asked_for: dict[str, list[str]] = defaultdict(list)
    for record in read_pairs(qa, "train"):
        asked_for[record["answer"]].append(record["question"])
    look_up = TfidfIndex([" ".join(questions) for questions in asked_for.values()], split_words)

    def recorded(self, number: int, draw: np.random.Generator) -> tuple[str, str]:
        without, whole = question(self, number, draw)
        tried[number, whole].add(without)
        return without, whole

    monkeypatch.setattr(Paraphraser, "draw_paraphrase", recorded)
    first = [alike[0] for alike in rewording.alike] * 5
    asked = asked_by(rewording, first, [np.random.default_rng(seed) for seed in range(len(first))])
    taken = [(row, text) for row, text in zip(first, asked, strict=True) if (row, text) in tried]
    assert (
        len(taken) > 0.9 * len(first)
        and sum(tried[one] != {one[1]} for one in taken) > len(taken) / 3
    )
    for row, text in taken:
        assert rewording.answer[row] in look_up.similarities([*tried[row, text]]).argmax(axis=1)


def test_where_no_look_up_could_be_sure_the_question_stays_as_it_was_written(tokenizer) -> None:
    rewording = made_of(tokenizer, ("他是谁？", "老船夫。"), ("他是谁？", "沈砚。"))
    assert (
        asked_by(rewording, [0, 1, 1], [np.random.default_rng(seed) for seed in range(3)])
        == ["他是谁？"] * 3
    )


@pytest.mark.parametrize("second, is_sure", [(0.47, True), (0.48, False)])
def test_the_look_up_is_sure_where_the_next_answer_is_a_twentieth_less_near(
    tokenizer, second: float, is_sure: bool
) -> None:
    rewording = made_of(
        tokenizer, ("点起油灯的是谁？", "沈砚。"), ("昨天夜里雨停了没有？", "没有停。")
    )
    rewording.index = SimpleNamespace(
        similarities=lambda texts: np.array([[0.5, second]] * len(texts))
    )
    asked = asked_by(rewording, [0] * 50, [np.random.default_rng(seed) for seed in range(50)])
    assert (len(set(asked)) > 20) == is_sure and (set(asked) == {"点起油灯的是谁？"}) != is_sure


def test_what_was_asked_in_conversations_is_no_question_for_another_answer(tokenizer) -> None:
    conversation = [
        ("user", "点灯的人是谁？"),
        ("assistant", "没有人。"),
        ("user", "真的？"),
        ("assistant", "真的。"),
    ]
    rows = [tokenizer.render([{"role": role, "content": text} for role, text in conversation])]
    rows += [
        rendered(tokenizer, "昨天夜里点灯的人是谁？", "沈砚。"),
        rendered(tokenizer, "渡口在哪里？", "城南。"),
    ]
    rewording = Paraphraser(tokenizer, lambda number: tuple(map(np.array, rows[number])), 3, 64)
    assert rewording.sources.tolist() == [1, 2]
    asked = asked_by(rewording, [1] * 200, [np.random.default_rng(seed) for seed in range(200)])
    assert len(set(asked)) > 50
    assert all(set(text) & set("昨天夜里") for text in asked)


def test_words_tell_english_questions_apart(tokenizer) -> None:
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
    rewording = made_of(
        tokenizer,
        *((question, f"It was number {number}.") for number, question in enumerate(questions)),
        width=200,
    )
    asked = asked_by(
        rewording, list(range(12)) * 5, [np.random.default_rng(seed) for seed in range(60)]
    )
    assert sum(text != questions[n % 12] for n, text in enumerate(asked)) > 45


def test_a_question_that_does_not_fit_is_not_taken(tokenizer) -> None:
    pairs = [
        ("清晨，沈砚在渡口做了什么？", "点起一盏油灯。"),
        ("孟婆婆在茶楼等谁呢？", "等老船夫。"),
    ]
    width = min(len(rendered(tokenizer, *pair)[0]) for pair in pairs) - 8
    rewording, made = made_of(tokenizer, *pairs, width=width), 0
    for seed in range(100):
        counts = [rewording.telling[number] + seed % 2 * 20 for number in (0, 1)]
        for (ids, _), (question, _) in zip(
            rewording.rows([0, 1], counts, [np.random.default_rng([seed, n]) for n in (0, 1)]),
            pairs,
            strict=True,
        ):
            text = tokenizer.decode(ids[1 : ids.tolist().index(tokenizer.assistant)].tolist())
            assert text == question or len(ids) <= width
            made += text != question
    assert made > 50


def test_each_row_has_room_for_what_it_trains_itself(tokenizer) -> None:
    """One of the two trains so much that nothing made up would fit."""
    pairs = [
        ("清晨，沈砚在渡口做了什么？", "点起一盏油灯。"),
        ("孟婆婆在茶楼等谁呢？", "等老船夫。"),
    ]
    rewording = made_of(tokenizer, *pairs)
    for full in (0, 1):
        counts, draws = [1, 1], [np.random.default_rng(seed) for seed in range(40)]
        counts[full] = rewording.room[full]
        asked = rewording.paraphrases([0, 1] * 20, counts * 20, draws)
        assert set(asked[full::2]) == {pairs[full][0]} and len(set(asked[1 - full :: 2])) > 10


def test_an_answer_without_a_word_adds_none(tokenizer) -> None:
    rewording = made_of(tokenizer, ("点起油灯的是谁？", ""), ("昨天夜里雨停了没有？", "没有停。"))
    asked = asked_by(rewording, [0] * 50, [np.random.default_rng(seed) for seed in range(50)])
    assert len(set(asked)) > 20 and rewording.telling == {0: 1, 1: 2}


def test_the_files_own_rows_have_noise_and_the_made_up_ones_none(qa: Path) -> None:
    tokenizer = Tokenizer.load(qa)
    file = QuestionDataset(qa, "train", 8, QuestionNoise(tokenizer, 0.0, 0.5))
    file.add_paraphrases(tokenizer, 1)
    written = set(file.paraphraser.questions.values())
    every, own, made = (
        {unit for text in {*written, *file.paraphraser.answers} for unit in UNIT.findall(text)},
        [],
        [],
    )
    for (question, _), place in zip(
        (said(*row, tokenizer) for row in epoch(file)),
        file._places(0, file.rows_per_epoch(64), 1),
        strict=True,
    ):
        (own if place < len(file) else made).append(question)
    assert np.mean([question in written for question in own]) < 0.1
    assert all(set(UNIT.findall(question)) <= every for question in made)


def test_what_is_made_up_depends_on_the_seed_and_the_epoch_though_the_order_were_the_same(
    qa: Path, monkeypatch
) -> None:
    file, tokenizer = QuestionDataset(qa, "train", 8), Tokenizer.load(qa)
    file.add_paraphrases(tokenizer, 1)
    size = file.rows_per_epoch(64)
    monkeypatch.setattr(file, "_epoch", lambda seed, epoch: np.arange(size))

    def asked(number: int, seed: int) -> list[str]:
        return [
            said(*row, tokenizer)[0]
            for row in zip(*file.rows(number * size + len(file), 30, 64, seed), strict=True)
        ]

    one, other_seed, other_epoch = asked(0, 1), asked(0, 2), asked(1, 1)
    assert one == asked(0, 1)
    for others in (other_seed, other_epoch):
        assert sum(a == b for a, b in zip(one, others, strict=True)) < 12


def test_rows_are_sorted_by_about_the_length_that_they_get(own) -> None:
    file, _ = own
    draws = [np.random.default_rng(place) for place in range(len(file), file.rows_per_epoch(64))]
    made = file.paraphraser.rows(
        file.numbers[len(file) :].tolist(), file.trained[len(file) :].tolist(), draws
    )
    assert np.mean(np.abs([len(ids) for ids, _ in made] - file.lengths[len(file) :])) < 5


@given(
    text=st.text(st.sampled_from("ab1 阿迟，。？é"), min_size=1, max_size=60),
    seed=st.integers(0, 1000),
)
def test_pieces_make_up_the_text_and_no_word_or_number_is_torn(text: str, seed: int) -> None:
    pieces = split_into_pieces(text, np.random.default_rng(seed))
    assert "".join(pieces) == text
    for before, after in pairwise(pieces):
        assert 1 <= len(UNIT.findall(before)) <= MAX_PIECE_TOKENS
        assert not (before[-1] in "abé" and after[0] in "abé") and not (
            before[-1] == after[0] == "1"
        )


@given(
    st.sets(
        st.lists(st.integers(0, 2), max_size=6).map(lambda ids: (*ids, 9)), min_size=1, max_size=12
    )
)
def test_so_many_tokens_tell_an_answer_from_the_others_and_one_follows(
    answers: set[tuple[int, ...]],
) -> None:
    answers = list(answers)
    for answer, count in zip(answers, distinguishing_lengths(answers), strict=True):
        others = [other for other in answers if other is not answer]
        assert 1 <= count <= len(answer)
        needed = next(
            n for n in range(1, len(answer) + 1) if all(other[:n] != answer[:n] for other in others)
        )
        assert count == min(needed + 1, len(answer))


def test_an_answer_that_another_one_begins_with_is_trained_whole() -> None:
    assert distinguishing_lengths([(1, 2), (1, 2, 3, 4, 5), (7,)]) == [2, 4, 1]


def test_a_row_trains_the_beginning_of_its_answer_and_is_no_wider_than_the_others(own) -> None:
    file, tokenizer = own
    all_answers = {
        tuple(file.row(number)[0][file.row(number)[1] == 1].tolist()) for number in range(len(file))
    }
    for number in range(0, len(file), 7):
        whole, _ = file.row(number)
        answer = whole[whole.tolist().index(tokenizer.assistant) + 1 :].tolist()
        for seed in range(10):
            [(ids, mask)] = file.paraphraser.rows(
                [number], [file.paraphraser.telling[number]], [np.random.default_rng(seed)]
            )
            trained = ids[mask == 1].tolist()
            assert trained == answer[: len(trained)] and ids.dtype == whole.dtype
            assert [other for other in all_answers if [*other[: len(trained)]] == trained] == [
                tuple(answer)
            ], "it is said which one it is"
            assert (
                mask.tolist() == sorted(mask.tolist())
                and ids[mask.argmax() - 1] == tokenizer.assistant
            )
            assert len(ids) <= file.width


def test_the_count_of_targets_is_that_of_the_rows_and_any_row_is_had_by_itself(
    own, qa: Path
) -> None:
    file, tokenizer = own
    for first in (0, 77, file.rows_per_epoch(64) - 3, 2 * file.rows_per_epoch(64) - 1):
        ids, targets = file.rows(first, 8, 64, 3)
        assert file.count_targets(first, 8, 64, 3) == (targets != IGNORE).sum()
        fresh = QuestionDataset(qa, "train", 8)
        fresh.add_paraphrases(tokenizer, 3)
        for n in (7, 2):
            there = fresh.rows(first + n, 1, 64, 3)
            length = there[0].shape[1]
            assert np.array_equal(ids[n, :length], there[0][0]) and np.array_equal(
                targets[n, :length], there[1][0]
            )


def test_only_single_questions_with_their_whole_answer_are_put_in_other_words(
    tokenizer, tmp_path: Path
) -> None:
    def pair(*said: str, system: str | None = None) -> Pair:
        messages = [{"role": "system", "content": system}] if system else []
        return Pair(
            messages
            + [
                {"role": ("user", "assistant")[n % 2], "content": text}
                for n, text in enumerate(said)
            ],
            "x, row 1",
            "train",
        )

    chat, long, plain = (
        pair("谁？", "老船夫。", "还有呢？", "没有了。"),
        pair("怎样？", "走" * 90),
        pair("点灯的是谁？", "沈砚。", system="你是老船夫。"),
    )
    some = [
        (chat, [tokenizer.render(chat.messages)]),
        (long, split_long_answer(*tokenizer.render(long.messages), 64)),
    ]
    assert len(some[1][1]) > 1
    write_rows(
        tmp_path / "some",
        tokenizer,
        [*some, (plain, [tokenizer.render(plain.messages)])],
        {"turns": 2},
    )
    file = QuestionDataset(tmp_path / "some", "train")
    file.add_paraphrases(tokenizer, 5)
    assert (
        file.paraphraser.sources.tolist() == [len(file) - 1]
        and file.rows_per_epoch(64) == len(file) + 5
    )
    [(ids, _)] = file.paraphraser.rows([len(file) - 1], [1], [np.random.default_rng(0)])
    assert tokenizer.decode(ids.tolist()).startswith("你是老船夫。")
    labelled = [
        Pair(pair(f"味道{word}？", label).messages, "x, row 1", "train")
        for word in "甲乙丙丁"
        for label in ("正面", "负面")
    ]
    write_rows(
        tmp_path / "labelled",
        tokenizer,
        [(one, [tokenizer.render(one.messages)]) for one in labelled],
        {"turns": 1},
    )
    with pytest.raises(
        UserError,
        match=r"paraphrases=2: too few rows of .*labelled hold words that tell whose answer is asked for.*--paraphrases=0",
    ):
        QuestionDataset(tmp_path / "labelled", "train").add_paraphrases(tokenizer, 2)
    write_rows(tmp_path / "none", tokenizer, some, {"turns": 2})
    with pytest.raises(UserError, match=r"paraphrases=5: no row of .*none is one question"):
        QuestionDataset(tmp_path / "none", "train").add_paraphrases(tokenizer, 5)
