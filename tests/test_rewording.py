"""shuoshu/rewording.py and its rows in RowFile: whose words a made-up question holds, what it trains, how often it comes."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuoshu.batches import IGNORE
from shuoshu.commandline import UserError
from shuoshu.metrics import lookup_joined
from shuoshu.pairs import Pair
from shuoshu.rewording import BEGINNING, LONGEST, UNIT, Rewording, cut
from shuoshu.rows import RowFile, read_pairs, windows, write_rows
from shuoshu.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def own(qa: Path) -> tuple[RowFile, Tokenizer]:
    """The training rows with three times as many reworded ones, and their tokenizer."""
    file, tokenizer = RowFile(qa, "train", 8), Tokenizer.load(qa)
    file.reword(tokenizer, 3)
    return file, tokenizer


def said(ids: np.ndarray, targets: np.ndarray, tokenizer: Tokenizer) -> tuple[str, str]:
    """The question of a row, and what it trains."""
    row = ids.tolist()
    question = row[row.index(tokenizer.user) + 1 : row.index(tokenizer.assistant)]
    return tokenizer.decode(question), tokenizer.decode(targets[targets != IGNORE].tolist())


def epoch(file: RowFile, number: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    size = file.windows(64)
    return [tuple(part[0] for part in file.rows(number * size + n, 1, 64, 1)) for n in range(size)]


def test_an_epoch_has_each_row_once_and_three_times_the_beginning_of_its_answer(own, qa: Path) -> None:
    file, tokenizer = own
    records = read_pairs(qa, "train")
    assert file.windows(64) == 4 * len(records)
    expected, beginnings = Counter(), Counter()
    for record in records:
        expected[record["question"], record["answer"]] += 1
        beginnings[tokenizer.decode([*tokenizer.encode(record["answer"]), tokenizer.end][:BEGINNING])] += 3
    rows = [said(*row, tokenizer) for row in epoch(file)]
    places = file.places(0, file.windows(64), 64, 1)
    assert Counter(row for row, place in zip(rows, places, strict=True) if place < len(file)) == expected
    made = [row for row, place in zip(rows, places, strict=True) if place >= len(file)]
    assert Counter(answer for _, answer in made) == beginnings
    questions = {question for question, _ in made}
    assert len(questions - {question for question, _ in expected}) > 0.7 * len(made), "made up, and anew each time"
    assert len(questions.intersection(said(*row, tokenizer)[0] for row in epoch(file, 1))) < 0.2 * len(made)


def test_most_of_a_made_up_question_is_from_questions_with_its_answer(own) -> None:
    file, _ = own
    rewording, draw = file.rewording, np.random.default_rng(0)
    units = {number: set(UNIT.findall(question)) for number, question in rewording.questions.items()}
    every = set().union(*units.values())
    shares = []
    for alike in rewording.alike:
        theirs = set().union(*(units[number] for number in alike))
        for question in rewording.asked([alike[0]] * 5, [draw] * 5):
            found = UNIT.findall(question)
            assert len(question) <= len(rewording.questions[alike[0]])
            assert found and set(found) <= every
            shares.append(np.mean([unit in theirs for unit in found]))
    assert 0.7 < np.mean(shares) < 0.95


def test_pieces_come_from_several_questions_with_one_answer(tokenizer) -> None:
    """None but them are there: nothing foreign can come between."""
    pairs = [[{"role": "user", "content": question}, {"role": "assistant", "content": "油灯。"}] for question in ("甲" * 12, "乙" * 12)]
    rows = [tuple(map(np.array, tokenizer.render(pair))) for pair in pairs]
    rewording = Rewording(tokenizer, rows.__getitem__, 2, 64)
    made = [rewording.question(seed % 2, np.random.default_rng(seed)) for seed in range(100)]
    assert sum({"甲", "乙"} <= set(text) for text in made) > 20


def test_a_question_counts_only_if_a_look_up_is_sure_of_its_answer(own, qa: Path) -> None:
    file, _ = own
    records = read_pairs(qa, "train")
    first = [alike[0] for alike in file.rewording.alike]
    asked = file.rewording.asked(first, [np.random.default_rng(seed) for seed in first])
    named = lookup_joined([record["question"] for record in records], [record["answer"] for record in records], asked)
    assert named == [records[row]["answer"] for row in first]


def test_where_no_look_up_could_be_sure_the_question_stays_as_it_was_written(tokenizer) -> None:
    pairs = [[{"role": "user", "content": "他是谁？"}, {"role": "assistant", "content": answer}] for answer in ("老船夫。", "沈砚。")]
    rows = [tuple(map(np.array, tokenizer.render(pair))) for pair in pairs]
    rewording = Rewording(tokenizer, rows.__getitem__, 2, 64)
    assert rewording.asked([0, 1, 1], [np.random.default_rng(seed) for seed in range(3)]) == ["他是谁？"] * 3


@given(text=st.text(st.sampled_from("ab1 阿迟，。？é"), min_size=1, max_size=60), seed=st.integers(0, 1000))
def test_pieces_make_up_the_text_and_no_word_or_number_is_torn(text: str, seed: int) -> None:
    pieces = cut(text, np.random.default_rng(seed))
    assert "".join(pieces) == text
    for before, after in pairwise(pieces):
        assert 1 <= len(UNIT.findall(before)) <= LONGEST
        assert not (before[-1] in "abé" and after[0] in "abé") and not (before[-1] == after[0] == "1")


def test_a_row_trains_the_beginning_of_its_answer_and_is_no_wider_than_the_others(own) -> None:
    file, tokenizer = own
    for number in range(0, len(file), 7):
        whole, _ = file.row(number)
        answer = whole[whole.tolist().index(tokenizer.assistant) + 1 :].tolist()
        for seed in range(10):
            [(ids, mask)] = file.rewording.rows([number], [np.random.default_rng(seed)])
            assert ids[mask == 1].tolist() == answer[:BEGINNING] and ids.dtype == whole.dtype
            assert mask.tolist() == sorted(mask.tolist()) and ids[mask.argmax() - 1] == tokenizer.assistant
            assert len(ids) <= file.width


def test_the_count_of_targets_is_that_of_the_rows_and_any_row_is_had_by_itself(own, qa: Path) -> None:
    file, tokenizer = own
    for first in (0, 77, file.windows(64) - 3, 2 * file.windows(64) - 1):
        ids, targets = file.rows(first, 8, 64, 3)
        assert file.targets(first, 8, 64, 3) == (targets != IGNORE).sum()
        fresh = RowFile(qa, "train", 8)
        fresh.reword(tokenizer, 3)
        for n in (7, 2):
            there = fresh.rows(first + n, 1, 64, 3)
            length = there[0].shape[1]
            assert np.array_equal(ids[n, :length], there[0][0]) and np.array_equal(targets[n, :length], there[1][0])


def test_only_single_questions_with_their_whole_answer_are_put_in_other_words(tokenizer, tmp_path: Path) -> None:
    def pair(*said: str, system: str | None = None) -> Pair:
        messages = [{"role": "system", "content": system}] if system else []
        return Pair(messages + [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)], "x, row 1", "train")

    chat, long, plain = pair("谁？", "老船夫。", "还有呢？", "没有了。"), pair("怎样？", "走" * 90), pair("点灯的是谁？", "沈砚。", system="你是老船夫。")
    rendered = [(chat, [tokenizer.render(chat.messages)]), (long, windows(*tokenizer.render(long.messages), 64))]
    assert len(rendered[1][1]) > 1
    write_rows(tmp_path / "some", tokenizer, [*rendered, (plain, [tokenizer.render(plain.messages)])], {"turns": 2})
    file = RowFile(tmp_path / "some", "train")
    file.reword(tokenizer, 5)
    assert file.rewording.sources.tolist() == [len(file) - 1] and file.windows(64) == len(file) + 5
    [(ids, _)] = file.rewording.rows([len(file) - 1], [np.random.default_rng(0)])
    assert tokenizer.decode(ids.tolist()).startswith("你是老船夫。")
    write_rows(tmp_path / "none", tokenizer, rendered, {"turns": 2})
    with pytest.raises(UserError, match=r"reworded=5: no row of .*none is one question"):
        RowFile(tmp_path / "none", "train").reword(tokenizer, 5)
