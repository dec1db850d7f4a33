"""Copied spans equal a brute-force search, in slices of any size."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuoshu.evaluation import copy_search
from shuoshu.evaluation.copy_search import CopySearch

# An emoji, and the two surrogates of one.
SIGNS = st.text(alphabet="甲乙ab\U0001f600\ud83d\ude00 \n", max_size=40)


def search(answers: list[str], text: str, min_length: int = 8) -> CopySearch:
    found = CopySearch(answers, min_length)
    found.read([text])
    return found


def spans(answer: str, text: str, min_length: int) -> list[tuple[int, int, int]]:
    return search([answer], text, min_length).spans(0)


def longest(answer: str, text: str) -> int:
    return search([answer], text).longest[0]


def longest_from(answer: str, start: int, text: str) -> int:
    """The length of the longest span from `start` that occurs in the text."""
    return next(n for n in range(len(answer) - start, -1, -1) if answer[start : start + n] in text)


def plain_longest(answer: str, text: str) -> int:
    return max((longest_from(answer, start, text) for start in range(len(answer))), default=0)


def plain_spans(answer: str, text: str, min_length: int) -> list[tuple[int, int, int]]:
    """CopySearch.spans by substring search."""
    start, spans = 0, []
    while start < len(answer):
        length = longest_from(answer, start, text)
        if length >= min_length:
            spans.append((start, start + length, text.find(answer[start : start + length])))
        start += length if length >= min_length else 1
    return spans


@given(SIGNS, st.lists(SIGNS, max_size=3), st.integers(1, 12), st.data())
def test_copies_equal_brute_force(text, answers, min_length, data):
    if text:  # puts a piece of the text and an unknown character into each answer
        starts = [data.draw(st.integers(0, len(text))) for _ in answers]
        unknown = data.draw(st.sampled_from(["", "丁", "\uffff"]))
        answers = [
            answer[:10] + text[start : start + 15] + unknown + answer[10:]
            for answer, start in zip(answers, starts, strict=True)
        ]
    found = search(answers, text, min_length)
    for number, answer in enumerate(answers):
        assert found.longest[number] == plain_longest(answer, text)
        assert found.spans(number) == plain_spans(answer, text, min_length)


@given(st.text("甲乙丙", max_size=150), st.lists(st.integers(0, 150)), st.integers(1, 9), st.data())
def test_slices_and_pieces_cut_no_copy(text, cuts, size, data):
    starts = [data.draw(st.integers(0, len(text))) for _ in range(3)]
    answers = [f"丁{text[start : start + 40]}丁甲" for start in starts]
    cuts = sorted(min(cut, len(text)) for cut in [0, *cuts, len(text)])
    found = CopySearch(answers, 8)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("FIRST_SLICE", 1), ("MAX_SLICE", size), ("MAX_PAIRS", size)):
            patch.setattr(copy_search, name, value)
        found.read(text[start:end] for start, end in pairwise(cuts))
    for number, answer in enumerate(answers):
        assert found.longest[number] == plain_longest(answer, text)
        assert found.spans(number) == plain_spans(answer, text, 8)


@given(st.text(max_size=60), st.text(max_size=20))
def test_copies_equal_brute_force_in_any_script(text, answer):
    answer = text[7:19] + answer + text[:5]
    assert longest(answer, text) == plain_longest(answer, text)
    assert spans(answer, text, 3) == plain_spans(answer, text, 3)


def test_copies_in_a_book_are_found_at_their_first_place(text):
    middle = text[15_000:15_040]
    assert spans(f"甲甲{middle}甲甲", text, 20) == [(2, 42, text.find(middle))]
    assert longest(f"甲甲{middle}甲甲", text) == 40
    assert longest(text[-9:] + "甲", text) == 9 and longest("\U0001f600", text) == 0
    assert spans(text[:3000], text, 20) == [(0, 3000, 0)]
    for repeated in ("甲乙，甲丙", "甲丙，甲乙"):
        assert spans("甲", repeated, 1) == [(0, 1, 0)]
    found = search([text[9000 : 9000 + n] for n in range(40)], text)
    assert found.longest.tolist() == list(range(40))


def test_the_longest_copy_may_overlap_an_earlier_span():
    text = "子丑寅卯辰巳午未。辰巳午未申酉戌亥甲乙"
    answer = "子丑寅卯辰巳午未申酉戌亥甲乙"
    assert spans(answer, text, 8) == [(0, 8, 0)]  # the rest of the second one is too short
    assert longest(answer, text) == 10


def test_empty_texts_have_no_copies():
    assert spans("甲乙丙丁甲乙丙丁", "", 8) == [] and longest("甲", "") == 0
    assert spans("", "甲乙丙", 8) == [] and longest("", "甲乙丙") == 0
    assert search([], "甲乙丙").longest.tolist() == []


def test_a_span_does_not_begin_before_the_text():
    assert spans("甲" * 40 + "乙", "甲" * 10 + "乙", 35) == []


def test_a_short_copy_is_measured_but_not_marked():
    assert longest("甲乙丙丁", "甲乙丙") == 3 and spans("甲乙丙丁", "甲乙丙", 8) == []
