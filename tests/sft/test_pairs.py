"""Repeated questions, closed sets of answers, splits."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuoshu.core.command_settings import PrepareSftSettings
from shuoshu.core.errors import REPO_ROOT, UserError
from shuoshu.sft.conversations import parse_pairs
from shuoshu.sft.pairs import (
    QUESTION_SPLITS,
    Pair,
    RejectedRecords,
    closed_set_labels,
    drop_repeats,
    normalized,
    split_pairs,
)
from shuoshu.sft.question_files import find_question_files
from tests.sft.helpers import make_pair

# ---------------------------------------------------------------- repeats and closed sets


def test_repeated_questions_are_dropped_within_a_split_only() -> None:
    pairs = [
        make_pair("Who is it？", "I。", "train"),
        make_pair("Ｗｈｏ  is IT?", "i。", "train", source="a.json, row 2"),
        make_pair("who is it?", "You。", "train"),
        make_pair("Who is it？", "I。", "test"),
        make_pair("Who was it？", "I。", "train"),
    ]
    rejected = RejectedRecords()
    assert drop_repeats(pairs, rejected) == [pairs[0], pairs[3], pairs[4]]
    assert rejected.counts == {"duplicate": 1, "contradictory": 1}
    assert rejected.examples["duplicate"] == ["a.json, row 2: Ｗｈｏ is IT? → i。"]


def test_closed_set_has_few_short_answers_with_many_pairs_each() -> None:
    pairs = [make_pair(str(n), "好" if n % 3 else "坏") for n in range(30)]
    assert closed_set_labels(pairs) == ["好", "坏"]
    assert closed_set_labels(pairs[:19]) is None  # fewer than ten pairs per label
    assert closed_set_labels([pair for pair in pairs if pair.answer == "好"]) is None
    assert closed_set_labels([make_pair(str(n), str(n % 21)) for n in range(2000)]) is None
    assert (
        closed_set_labels([make_pair(str(n), "很长的回答" * 5 + str(n % 2)) for n in range(2000)])
        is None
    )
    assert closed_set_labels([Pair(pair.messages + pair.messages, "") for pair in pairs]) is None
    assert closed_set_labels([]) is None


# ---------------------------------------------------------------- splits


def sizes(pairs: list[Pair]) -> Counter:
    return Counter(pair.split for pair in pairs)


def test_split_sizes_match_the_fractions_and_the_seed_decides_the_rows() -> None:
    def drawn(seed: int) -> list[str | None]:
        pairs = [make_pair(f"问题{n}", f"答案{n}") for n in range(1000)]
        split_pairs(pairs, 0.1, 0.2, seed)
        return [pair.split for pair in pairs]

    assert Counter(drawn(1)) == {"train": 700, "val": 100, "test": 200}
    assert drawn(1) == drawn(1) != drawn(2)
    assert len(set(drawn(1)[:50])) == 3  # mixed, not cut off at the end


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 30), st.none() | st.integers(0, 8), st.sampled_from("好坏")),
        min_size=1,
        max_size=80,
    ),
    val=st.sampled_from([0.0, 0.1, 0.4]),
    test=st.sampled_from([0.0, 0.1, 0.5]),
    seed=st.integers(0, 9),
)
def test_equal_questions_and_equal_groups_share_a_split(
    rows: list, val: float, test: float, seed: int
) -> None:
    pairs = [
        make_pair(f"问{' ' * (1 + n % 2)}题 {question}", answer, group=group and str(group))
        for n, (question, group, answer) in enumerate(rows)
    ]
    split_pairs(pairs, val, test, seed)
    for key in (lambda pair: normalized(pair.question), lambda pair: pair.group or id(pair)):
        assert all(
            len({pair.split for pair in pairs if key(pair) == one}) == 1 for one in map(key, pairs)
        )
    counts = sizes(pairs)
    assert counts["train"] and counts.keys() <= {
        "train",
        *(["val"] if val else []),
        *(["test"] if test else []),
    }
    if len({pair.question for pair in pairs if pair.group is None}) > 4:
        assert counts.keys() == {"train", *(["val"] if val else []), *(["test"] if test else [])}


def test_split_sizes_match_the_fractions_with_groups() -> None:
    draw = random.Random(3)
    pairs = [
        make_pair(f"问{fact}-{n}", f"答{fact}", group=str(fact))
        for fact in range(200)
        for n in range(draw.randint(1, 12))
    ]
    split_pairs(pairs, 0.1, 0.1, 1)
    assert all(abs(sizes(pairs)[name] / len(pairs) - 0.1) < 0.01 for name in ("val", "test"))


def test_questions_that_differ_in_case_or_width_share_a_split() -> None:
    pairs = [
        make_pair(f"Who is {name} {n}?", str(n)) for n in range(100) for name in ("ann", "ＡＮＮ ")
    ]
    split_pairs(pairs, 0.3, 0.3, 1)
    assert all(one.split == other.split for one, other in zip(pairs[::2], pairs[1::2], strict=True))


def test_groups_linked_by_a_question_share_a_split() -> None:
    for seed in range(20):
        chained = [make_pair(f"问{n // 2}", str(n), group=f"组{(n + 1) // 2}") for n in range(8)]
        pairs = [*chained, *(make_pair(f"别的{n}", "x") for n in range(30))]
        split_pairs(pairs, 0.3, 0.3, seed)
        assert len(sizes(chained)) == 1


def test_each_answer_of_a_closed_set_is_split_in_proportion() -> None:
    pairs = [make_pair(f"评论{n}", "坏" if n % 10 == 0 else "好") for n in range(1000)]
    split_pairs(pairs, 0.1, 0.1, 5)
    for name, count in {"train": 80, "val": 10, "test": 10}.items():
        assert sum(pair.split == name and pair.answer == "坏" for pair in pairs) == count


def test_split_sizes_match_the_fractions_with_rare_answers() -> None:
    pairs = [make_pair(f"评论{n}", f"类{n % 20}") for n in range(200)]
    split_pairs(pairs, 0.04, 0.04, 5)
    assert sizes(pairs) == {"train": 184, "val": 8, "test": 8}


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, {}),
        (1, {"train": 1}),
        (2, {"train": 1, "val": 1}),
        (3, {"train": 1, "val": 1, "test": 1}),
    ],
)
def test_few_pairs_fill_train_first_then_val_then_test(count: int, expected: dict) -> None:
    pairs = [make_pair(f"问{n}") for n in range(count)]
    split_pairs(pairs, 0.1, 0.1, 1)
    assert sizes(pairs) == expected


def test_given_splits_are_preserved_and_a_missing_one_is_an_error() -> None:
    pairs = [make_pair("一", split="test"), make_pair("二", split="untaught")]
    split_pairs(pairs, 0.5, 0.0, 1)
    assert [pair.split for pair in pairs] == ["test", "untaught"]
    with pytest.raises(UserError, match=r"b\.json, row 9: it has no split"):
        split_pairs([*pairs, make_pair("三", source="b.json, row 9"), make_pair("四")], 0.1, 0.1, 1)


def test_all_bundled_questions_are_read() -> None:
    pairs, rejected = parse_pairs(
        find_question_files([REPO_ROOT / "data" / "novella_qa"]),
        PrepareSftSettings(group="fact"),
    )
    assert (
        len(drop_repeats(pairs, rejected)) == len(pairs) == rejected.read > 2000
        and not rejected.counts
        and not rejected.notes
    )
    assert sizes(pairs).keys() == set(QUESTION_SPLITS) and closed_set_labels(pairs) is None
    assert all(
        pair.extra["fact"] == pair.group and pair.extra["evidence"] is not None for pair in pairs
    )
