"""Taught questions and look-ups: which taught answer a question means."""

from __future__ import annotations

import numpy as np
import pytest

from shuoshu.answering import lookups as lookups_module
from shuoshu.answering.confidence import LOOKUP_WEIGHTS
from shuoshu.answering.lookups import (
    NAMES,
    AnswerLookups,
    BookIndex,
    held_out_similarities,
    largest_only,
    most_similar,
)
from shuoshu.answering.recall import find_candidates
from shuoshu.answering.taught import TAUGHT_FOLDS, Taught
from shuoshu.core.errors import UserError

ODD_QUESTIONS = ["", " \n", "🐉🏽‍♂️？", "zzz", "?", "e\u0301", "\ud800谁", "谁" * 5_000]


def best_answer(lookups: AnswerLookups, question: str) -> str:
    weights = LOOKUP_WEIGHTS[: len(lookups.names)]
    candidates = find_candidates(lookups, [question], weights)
    return lookups.taught.answers[candidates.answers[0, 0]]


# ---------------------------------------------------------------- taught questions


def test_a_taught_question_is_known_whatever_its_white_space(taught: Taught) -> None:
    number = taught.exact(" 谁是\u3000阿迟的\n师父？")
    assert number is not None and taught.answers[number] == "沈砚。"
    assert taught.exact("谁是阿迟的师傅？") is None and taught.exact("") is None


def test_equal_answers_are_one_and_the_first_of_equal_questions_counts() -> None:
    taught = Taught.of_pairs([("甲？", "一"), ("乙？", "二"), ("丙？", "一"), ("甲 ？", "二")])
    assert taught.answers == ("一", "二") and taught.owners.tolist() == [0, 1, 0, 1]
    assert taught.exact("甲？") == 0


def test_the_questions_of_an_answer_are_in_different_folds() -> None:
    owners = np.random.default_rng(0).permutation(np.repeat(np.arange(7), TAUGHT_FOLDS))
    taught = Taught.of_pairs([(f"{n}？", f"答{owner}") for n, owner in enumerate(owners)])
    folds = taught.folds()
    for owner in range(7):
        assert sorted(folds[taught.owners == owner]) == list(range(TAUGHT_FOLDS))


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "7", '{"question": "谁？"}', '{"question": 1, "answer": "他"}', "[" * 100_000],
)
def test_damaged_taught_questions_are_an_error_that_names_the_file(tmp_path, content) -> None:
    (tmp_path / "taught.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"taught\.jsonl is damaged"):
        Taught.read(tmp_path / "taught.jsonl")


def test_taught_questions_are_read_as_they_were_written(tmp_path) -> None:
    pairs = [('"甲"\n乙\u2028？', "一\r\n二"), ("🐉？", "\\"), ("丙？", "一\r\n二")]
    (tmp_path / "taught.jsonl").write_text(Taught.of_pairs(pairs).to_lines(), encoding="utf-8")
    taught = Taught.read(tmp_path / "taught.jsonl")
    owned = [taught.answers[owner] for owner in taught.owners]
    assert list(zip(taught.questions, owned, strict=True)) == pairs


# ---------------------------------------------------------------- similarities


@pytest.mark.parametrize("has_book", [True, False])
@pytest.mark.parametrize(
    "question, answer",
    [
        ("请问阿迟的师父是哪一位？", "沈砚。"),
        ("渡口撑船的是什么人？", "老陆。"),
        ("那座桥哪天断的？", "雨停之后。"),
    ],
)
def test_a_reworded_question_finds_its_answer(taught, book, has_book, question, answer) -> None:
    assert best_answer(AnswerLookups(taught, book if has_book else None), question) == answer


def test_the_book_finds_an_answer_whose_words_only_the_book_has(taught, book) -> None:
    question = "篙公？"  # no taught question and no answer has one of these characters
    with_book, without = AnswerLookups(taught, book), AnswerLookups(taught)
    assert best_answer(with_book, question) == "老陆。"
    [similarities] = with_book.similarities([question])
    assert similarities[:, NAMES.index("book")].argmax() == taught.answers.index("老陆。")
    without_question_mark = without.similarities(["篙公"])
    assert not without_question_mark.any()


def test_similarities_are_cosines_in_the_order_of_their_names(taught, book) -> None:
    lookups = AnswerLookups(taught, book)
    similarities = lookups.similarities(list(taught.questions))
    assert similarities.shape == (len(taught.questions), len(taught.answers), len(NAMES))
    assert similarities.min() >= 0 and similarities.max() < 1 + 1e-6
    own = similarities[np.arange(len(taught.questions)), taught.owners, NAMES.index("question")]
    assert own == pytest.approx(1)


def test_held_out_similarities_never_use_the_question_itself(taught, book) -> None:
    chosen = np.arange(len(taught.questions))
    held_out = held_out_similarities(taught, book, chosen)
    with_itself = AnswerLookups(taught, book).similarities(list(taught.questions))
    own = (chosen, taught.owners)
    assert np.all(held_out[own][:, 0] < 0.9) and np.allclose(with_itself[own][:, 0], 1)
    # A question's words are changed in all its own rows at once, and nothing else is seen to change.
    changed = Taught(("篙公的鹅？", *taught.questions[1:]), taught.owners, taught.answers)
    others = np.flatnonzero(taught.folds() == taught.folds()[0])[1:]
    assert len(others)
    again = held_out_similarities(changed, book, chosen)
    assert np.array_equal(again[others], held_out[others])


def test_the_contrast_is_lower_for_a_question_that_was_not_taught(taught, book) -> None:
    lookups = AnswerLookups(taught, book)
    questions = ["阿迟的师父是哪一位？", "铁梁堡的堡主姓什么？"]
    weights = LOOKUP_WEIGHTS
    best = find_candidates(lookups, questions, weights).contrasts[:, 0]
    assert best[1] < -0.1 < 0.1 < best[0]
    assert not AnswerLookups(taught).contrasts(questions, np.zeros((2, 3), int)).any()


def test_a_nearest_question_is_the_most_similar_one_of_each_answer(taught) -> None:
    nearest = AnswerLookups(taught).nearest_questions("谁是阿迟的师父呢？", [0, 3])
    assert nearest[0] == "谁是阿迟的师父？" and nearest[1] in taught.questions[6:]


@pytest.mark.parametrize("has_book", [True, False])
def test_any_question_has_finite_similarities_and_contrasts(taught, book, has_book) -> None:
    lookups = AnswerLookups(taught, book if has_book else None)
    similarities = lookups.similarities(ODD_QUESTIONS)
    answers = np.tile(np.arange(len(taught.answers)), (len(ODD_QUESTIONS), 1))
    assert np.isfinite(similarities).all()
    assert np.isfinite(lookups.contrasts(ODD_QUESTIONS, answers)).all()
    assert not similarities[0].any()


@pytest.mark.parametrize(
    "pairs, passages",
    [
        ([("谁？", "他。")], ["他来了。"]),
        ([("谁？", "他。"), ("🐉", "龙")], ["一"]),
        ([("谁？", "他。"), ("何时？", "")], ["", "夜里。"]),
        ([(" ", "空"), ("\ud800", "半")], ["\udfff", "。"]),
    ],
)
def test_one_answer_one_passage_and_empty_texts_are_compared(pairs, passages) -> None:
    taught = Taught.of_pairs(pairs)
    lookups = AnswerLookups(taught, BookIndex(passages))
    candidates = find_candidates(lookups, ["谁？", ""], LOOKUP_WEIGHTS)
    assert candidates.answers.shape == (2, len(taught.answers))
    assert np.isfinite(candidates.similarities).all() and np.isfinite(candidates.contrasts).all()


# ---------------------------------------------------------------- large books


def test_a_large_book_is_compared_in_parts_and_keeps_the_best_passages(
    taught, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(1)
    signs = sorted(set("".join([*taught.questions, *taught.answers])))
    passages = ["".join(draw.choice(signs, 12)) for _ in range(400)]
    questions = ["阿迟的师父？", "桥断了吗？", "船夫"]
    index = BookIndex(passages)
    exact = AnswerLookups(taught, index).similarities(questions)
    monkeypatch.setattr(lookups_module, "DOCUMENTS_AT_ONCE", 3)
    in_parts = AnswerLookups(taught, index).similarities(questions)
    assert in_parts == pytest.approx(exact, abs=1e-6)
    monkeypatch.setattr(lookups_module, "MAX_PLACES", 200)
    lookups = AnswerLookups(taught, index)
    assert lookups.places.nnz <= 200 * len(taught.answers)
    assert lookups.similarities(questions) == pytest.approx(exact, abs=0.02)


def test_the_largest_numbers_of_each_row_are_kept() -> None:
    rows = np.array([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])
    assert largest_only(rows, 2).tolist() == [[3, 0, 2], [0, 5, 4]]
    assert np.array_equal(largest_only(rows, 9), rows)
    assert [sorted(row) for row in most_similar(rows, 2).tolist()] == [[0, 2], [1, 2]]
    assert most_similar(rows, 9).shape == (2, 3)
