"""A text is split into clauses, or a single clause into words; the pieces are the whole text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuoshu.web.text_pieces import MAX_PIECES, split_pieces


@pytest.mark.parametrize(
    "text, pieces",
    [
        ("房间很好，早餐太差！！不来了", ["房间很好，", "早餐太差！！", "不来了"]),
        ("他说：“不错。”走了。", ["他说：", "“不错。”", "走了。"]),
        (
            'It was clean, but 1,000 yen at 9:30. "Never!" he said.',
            ["It was clean, ", "but 1,000 yen at 9:30. ", '"Never!" ', "he said."],
        ),
        ("first line\nsecond line", ["first line\n", "second line"]),
        ("房间差。", ["房", "间", "差。"]),
        ("it's a well-known U2 song", ["it's ", "a ", "well-known ", "U2 ", "song"]),
        ("good", ["g", "o", "o", "d"]),
        ("\n 好 \n", ["\n 好 \n"]),
        ("好", ["好"]),
        ("", []),
    ],
)
def test_clauses_are_pieces_and_words_if_there_is_one_clause(text, pieces):
    assert split_pieces(text) == pieces


def test_sentences_are_pieces_if_there_are_too_many_clauses():
    sentence = "好，好，好，好。"
    assert split_pieces(sentence * 12) == [sentence] * 12
    many = split_pieces(sentence * 1000)
    assert len(many) == MAX_PIECES and all(piece.endswith("。") for piece in many)


def test_of_one_sentence_with_too_many_clauses_neighbours_are_joined():
    pieces = split_pieces("好，" * 90)
    assert len(pieces) == MAX_PIECES and {len(piece) // 2 for piece in pieces} == {2, 3}


@pytest.mark.parametrize("unit", ["a", "，", "好", "\n", " ", '"', "a-", '."', "\x0b ", "\u202e。"])
def test_a_hostile_text_is_split_at_once(unit):
    pieces = split_pieces(unit * 20_000)
    assert "".join(pieces) == unit * 20_000 and len(pieces) <= MAX_PIECES


@given(st.text(st.sampled_from("好坏ab1 \n，。.!,:'\"…\u0301\U0001f469\u200d"), max_size=200))
def test_the_pieces_are_the_text_and_none_of_several_is_blank(text):
    pieces = split_pieces(text)
    assert "".join(pieces) == text and len(pieces) <= MAX_PIECES
    assert len(pieces) < 2 or all(piece.strip() for piece in pieces)
