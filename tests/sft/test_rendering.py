"""Rows of a conversation: the mask, answers split over several rows, questions cut in the middle."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shuoshu.sft.dataset import pad_batch
from shuoshu.sft.rendering import cut_question, split_long_answer
from shuoshu.text.dataset import IGNORE
from tests.sft.helpers import conversation

TEXTS = st.lists(  # with the names of special tokens spelt out
    st.sampled_from(
        [
            "？",
            "<|endoftext|>",
            "<|assistant|>",
            "<|user|>",
            "<|pad|>",
            "沈砚",
            "在渡口",
            "\n",
            "é🙂",
            "a1",
        ]
    ),
    min_size=1,
    max_size=8,
).map("".join)


def runs(mask: list[int]) -> list[tuple[int, int]]:
    """(begin, end) of each run of ones."""
    edges = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(mask)]
    return [(a, b) for a, b in pairwise(edges) if mask[a]]


# ---------------------------------------------------------------- the mask


@given(turns=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4), system=st.none() | TEXTS)
def test_answers_and_their_end_tokens_are_trained_and_nothing_else(
    turns, system, tokenizer
) -> None:
    messages = ([{"role": "system", "content": system}] if system else []) + conversation(
        *(text for turn in turns for text in turn)
    )
    ids, mask = tokenizer.render(messages)
    assert len(ids) == len(mask)
    trained = [ids[a:b] for a, b in runs(mask)]
    assert trained == [[*tokenizer.encode(answer), tokenizer.end] for _, answer in turns]
    assert [tokenizer.decode(part) for part in trained] == [answer for _, answer in turns]
    assert all(ids[a - 1] == tokenizer.assistant for a, _ in runs(mask))
    specials = [token for token in ids if token in tokenizer.specials.values()]
    roles = [tokenizer.system] * bool(system) + [
        tokenizer.user,
        tokenizer.assistant,
        tokenizer.end,
    ] * len(turns)
    assert specials == roles  # text never becomes a special token


@given(rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5))
def test_targets_are_the_answer_and_its_end_token_and_never_padding(rows, tokenizer) -> None:
    rendered = [tuple(map(np.array, tokenizer.render(conversation(*row)))) for row in rows]
    ids, targets = pad_batch(rendered)
    assert ids.shape == targets.shape == (len(rows), max(len(ids) for ids, _ in rendered) - 1)
    for (question, answer), row_ids, row_targets in zip(rows, ids, targets, strict=True):
        places = np.flatnonzero(row_targets != IGNORE)
        expected = [*tokenizer.encode(answer), tokenizer.end]
        assert row_targets[places].tolist() == expected
        begin = len(tokenizer.encode(question)) + 1  # of the token for assistant
        assert places.tolist() == list(range(begin, begin + len(expected)))
        assert row_ids[places[0]] == tokenizer.assistant
        assert row_ids[places[1:]].tolist() == expected[:-1]


# ---------------------------------------------------------------- long answers


@given(
    before=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 6)), max_size=2),
    question=st.integers(1, 20),
    answer=st.integers(1, 400),
    width=st.integers(20, 90),
)
def test_split_answer_is_trained_once_and_only_its_last_row_has_the_end_token(
    before, question, answer, width
) -> None:
    count = iter(range(1000, 10_000))
    ids, mask = [], []
    for question_size, answer_size in [*before, (question, answer)]:
        ids += [next(count) for _ in range(question_size + answer_size + 3)]
        mask += [0] * (question_size + 2) + [1] * (answer_size + 1)
    end, start = ids[-1], len(ids) - answer - 1
    if len(ids) <= width:
        return
    rows = split_long_answer(ids, mask, width)
    if rows is None:
        assert width - start < max(16, width // 8)
        return
    assert all(len(row) == len(row_mask) <= width for row, row_mask in rows)
    trained = [
        token
        for row, row_mask in rows
        for token, is_trained in zip(row, row_mask, strict=True)
        if is_trained
    ]
    expected = [token for token, is_trained in zip(ids, mask, strict=True) if is_trained]
    assert trained == expected  # each once, in order
    assert [row[-1] == end for row, _ in rows] == [False] * (len(rows) - 1) + [True]
    for row, row_mask in rows:
        assert row[:start] == ids[:start]  # each row has the whole question
        new = len(row_mask) - row_mask[::-1].index(1) - 1 - sum(row_mask[start:]) + 1
        first = ids.index(row[start])
        assert (
            row[start:] == ids[first : first + len(row) - start]
        )  # then the answer, without a gap
        assert row_mask[start:new] == [0] * (new - start) and row_mask[-1] == 1
    for _, row_mask in rows[1:]:
        assert row_mask[start] == 0, "a later row has the end of the row before as context"


# ---------------------------------------------------------------- long questions


@given(
    begin=st.text("甲乙丙", min_size=20, max_size=200),
    end=st.text("丁戊己", min_size=20, max_size=200),
    width=st.integers(100, 160),
)
def test_cut_question_fits_and_has_its_beginning_and_end(begin, end, width, tokenizer) -> None:
    messages = conversation("短问？", "短答。", begin + end, "油灯。")
    if len(tokenizer.render(messages)[0]) <= width:
        return
    cut = cut_question(tokenizer, messages, width)
    assert cut is not None
    assert len(tokenizer.render(cut)[0]) <= width
    assert [*cut[:2], cut[3]] == [*messages[:2], messages[3]]  # the rest is unchanged
    head, _, tail = cut[2]["content"].partition("…")
    assert (begin + end).startswith(head) and (begin + end).endswith(tail)
    assert 0 <= len(head) - len(tail) <= 1
    assert len(tokenizer.render(cut)[0]) > width - 16, "no more is cut than necessary"


def test_question_is_not_cut_below_the_minimum(tokenizer) -> None:
    assert cut_question(tokenizer, conversation("问" * 100, "答" * 19), 64) is None
    assert cut_question(tokenizer, conversation("问" * 100, "答" * 100), 64) is None
