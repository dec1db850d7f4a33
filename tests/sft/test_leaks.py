"""Leaks: held-out questions that are the same or nearly the same as a training question."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuoshu.sft.leaks import MAX_CHARACTERS, NEAR_SIMILARITY, Leak, find_leaks
from shuoshu.sft.pairs import Pair, normalized
from tests.sft.helpers import make_pair

LONG = "沈砚点起一盏油灯，望着河面出神，柳青禾在渡口等了一夜也没有等到船。"


def leaks_in(pairs: list[Pair]) -> list[Leak]:
    return find_leaks(pairs).leaks


def test_exact_and_near_leaks_are_found_but_none_of_untaught_questions() -> None:
    train = [
        make_pair(LONG, split="train", source="t"),
        make_pair("Who lit the lamp?", split="train"),
    ]
    held = [
        make_pair("who  lit the LAMP？", split="val"),
        make_pair(LONG.replace("一夜", "半夜"), split="test"),
        make_pair(LONG[::-1], split="test"),
        make_pair(LONG, split="untaught"),
    ]
    exact, near = leaks_in([*held, *train])
    assert exact == ("exact", held[0], train[1], 1.0)
    assert near[:3] == ("near", held[1], train[0]) and 0.8 <= near.similarity < 1
    assert leaks_in(train) == leaks_in(held) == leaks_in([]) == []


def test_near_leak_names_the_most_similar_training_question() -> None:
    train = [
        make_pair(text, split="train")
        for text in (
            LONG.replace("船", "马"),
            LONG.replace("。", ""),
            LONG.replace("河面出", "海面出"),
        )
    ]
    held = [
        make_pair(LONG.replace("河面出", "湖面出"), split="test"),
        make_pair(LONG + "！", split="val"),
    ]
    first, second = leaks_in([*train, *held])
    assert (
        first[1:3] == (held[1], train[1])
        and second[1:3] == (held[0], train[2])
        and first.similarity > second.similarity
    )


def test_only_the_ends_of_long_questions_are_compared() -> None:
    draw = random.Random(1)
    ends = "".join(chr(draw.randrange(0x4E00, 0x9FA5)) for _ in range(MAX_CHARACTERS))
    train = make_pair("".join(map(str, range(999))) + ends, split="train")
    assert len(leaks_in([train, make_pair("丙" + ends, split="val")])) == 1


def test_shared_template_alone_is_no_leak() -> None:
    draw = random.Random(1)

    def asked(length: int) -> str:
        review = "".join(chr(draw.randrange(0x4E00, 0x9FA5)) for _ in range(length))
        return f"下面是一条酒店评论，请先仔细读一遍，再判断它的态度。评论内容：{review}。这条评论是正面还是负面？只答两个字，不要解释。"

    pairs = [make_pair(asked(3), split="test" if n < 10 else "train") for n in range(60)]
    assert (
        overlap(pairs[0].question, pairs[-1].question) > NEAR_SIMILARITY and leaks_in(pairs) == []
    )
    long = asked(30)
    pairs += [make_pair(long, split="train"), make_pair(long.replace("。这", "！这"), split="val")]
    assert [leak[:3] for leak in leaks_in(pairs)] == [("near", pairs[-1], pairs[-2])]


def overlap(a: str, b: str) -> float:
    first, second = (
        {f" {normalized(text)} "[i : i + 3] for i in range(len(normalized(text)))}
        for text in (a, b)
    )
    return len(first & second) / len(first | second)


@given(
    base=st.text("雨夜灯河桥船风月山水a1 ", min_size=12, max_size=30),
    edits=st.lists(
        st.lists(st.tuples(st.integers(0, 29), st.sampled_from(["", "甲", "雨乙"])), max_size=2),
        min_size=2,
        max_size=19,
    ),
    cut=st.integers(1, 18),
)
def test_near_leaks_equal_brute_force_comparison(base: str, edits: list, cut: int) -> None:
    texts = [base] * len(edits)
    for n, places in enumerate(edits):
        for at, news in places:
            texts[n] = texts[n][:at] + news + texts[n][at + 1 :]
    pairs = [
        make_pair(f"问{text}", split="train" if n < cut else "val") for n, text in enumerate(texts)
    ]
    train = [pair for pair in pairs if pair.split == "train"]
    same = {normalized(pair.question) for pair in train}
    expected = {
        id(pair): best
        for pair in pairs
        if pair.split == "val" and normalized(pair.question) not in same
        if (best := max(overlap(pair.question, other.question) for other in train))
        >= NEAR_SIMILARITY
    }
    assert {
        id(leak.pair): leak.similarity for leak in leaks_in(pairs) if leak.kind == "near"
    } == pytest.approx(expected)


def test_of_many_held_out_questions_a_sample_is_compared() -> None:
    texts = [
        "".join(draw.sample("一二三四五六七八九十甲乙丙丁戊己庚辛壬癸", 18))
        for draw in map(random.Random, range(10))
    ]
    pairs = [
        make_pair(text + end, split=split)
        for text in texts
        for end, split in (("？", "train"), ("", "test"))
    ]
    many, few = find_leaks(pairs, max_compared=4), find_leaks(pairs[:8], max_compared=4)
    assert (len(many.leaks), many.compared, many.candidates) == (4, 4, 10)
    assert (len(few.leaks), few.compared, few.candidates) == (4, 4, 4)
