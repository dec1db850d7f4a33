"""Splits of questions: sizes, what stays together, folds."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuoshu.core.errors import UserError
from shuoshu.sft.pairs import Pair, normalized
from shuoshu.sft.splits import Fold, SplitRule, split_pairs
from tests.sft.helpers import make_pair


def sizes(pairs: list[Pair]) -> Counter:
    return Counter(pair.split for pair in pairs)


def test_split_sizes_match_the_fractions_and_the_seed_decides_the_rows() -> None:
    def drawn(seed: int) -> list[str | None]:
        pairs = [make_pair(f"问题{n}", f"答案{n}") for n in range(1000)]
        split_pairs(pairs, SplitRule(0.1, 0.2, seed))
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
    split_pairs(pairs, SplitRule(val, test, seed))
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
    split_pairs(pairs, SplitRule(0.1, 0.1, 1))
    assert all(abs(sizes(pairs)[name] / len(pairs) - 0.1) < 0.01 for name in ("val", "test"))


def test_questions_that_differ_in_case_or_width_share_a_split() -> None:
    pairs = [
        make_pair(f"Who is {name} {n}?", str(n)) for n in range(100) for name in ("ann", "ＡＮＮ ")
    ]
    split_pairs(pairs, SplitRule(0.3, 0.3, 1))
    assert all(one.split == other.split for one, other in zip(pairs[::2], pairs[1::2], strict=True))


def test_groups_linked_by_a_question_share_a_split() -> None:
    for seed in range(20):
        chained = [make_pair(f"问{n // 2}", str(n), group=f"组{(n + 1) // 2}") for n in range(8)]
        pairs = [*chained, *(make_pair(f"别的{n}", "x") for n in range(30))]
        split_pairs(pairs, SplitRule(0.3, 0.3, seed))
        assert len(sizes(chained)) == 1


def test_each_answer_of_a_closed_set_is_split_in_proportion() -> None:
    pairs = [make_pair(f"评论{n}", "坏" if n % 10 == 0 else "好") for n in range(1000)]
    split_pairs(pairs, SplitRule(0.1, 0.1, 5, has_labels=True))
    for name, count in {"train": 80, "val": 10, "test": 10}.items():
        assert sum(pair.split == name and pair.answer == "坏" for pair in pairs) == count


def test_split_sizes_match_the_fractions_with_rare_answers() -> None:
    pairs = [make_pair(f"评论{n}", f"类{n % 20}") for n in range(200)]
    split_pairs(pairs, SplitRule(0.04, 0.04, 5, has_labels=True))
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
    split_pairs(pairs, SplitRule(0.1, 0.1, 1))
    assert sizes(pairs) == expected


def test_given_splits_are_preserved_and_a_missing_one_is_an_error() -> None:
    pairs = [make_pair("一", split="test"), make_pair("二", split="untaught")]
    split_pairs(pairs, SplitRule(0.5, 0.0, 1))
    assert [pair.split for pair in pairs] == ["test", "untaught"]
    with pytest.raises(UserError, match=r"b\.json, row 9: it has no split"):
        split_pairs(
            [*pairs, make_pair("三", source="b.json, row 9"), make_pair("四")],
            SplitRule(0.1, 0.1, 1),
        )


# ---------------------------------------------------------------- folds


def in_fold(number: int, count: int, rows: int = 103, **rule: object) -> list[Pair]:
    """Reviews, a third of which is bad, after a split with this fold as the test."""
    pairs = [make_pair(f"评论{n}", "坏" if n % 3 == 0 else "好") for n in range(rows)]
    split_pairs(
        pairs, SplitRule(0.1, 0.5, 7, Fold(number, count), has_labels=True)._replace(**rule)
    )
    return pairs


def test_folds_partition_the_rows_in_equal_parts_and_labels_in_proportion() -> None:
    tests = [[p for p in in_fold(number, 10) if p.split == "test"] for number in range(1, 11)]
    questions = [pair.question for pairs in tests for pair in pairs]
    assert sorted(questions) == sorted(f"评论{n}" for n in range(103))
    for pairs in tests:
        assert len(pairs) in (10, 11) and sum(p.answer == "坏" for p in pairs) in (3, 4)


def test_validation_is_a_fraction_of_the_rows_outside_the_fold() -> None:
    pairs = in_fold(3, 5, rows=1000)
    assert sizes(pairs) == {"test": 200, "val": 80, "train": 720}
    assert [p.split for p in pairs] != [p.split for p in in_fold(3, 5, rows=1000, seed=8)]
    assert sizes(in_fold(3, 5, rows=1000, val_fraction=0.0)) == {"test": 200, "train": 800}


@given(
    rows=st.lists(st.tuples(st.integers(0, 9), st.none() | st.integers(0, 4)), max_size=40),
    count=st.integers(2, 6),
    has_labels=st.booleans(),
)
def test_folds_keep_groups_together_and_none_is_empty(
    rows: list, count: int, has_labels: bool
) -> None:
    def split(number: int) -> list[Pair]:
        pairs = [
            make_pair(f"问{question}", str(question % 3), group=group and str(group))
            for question, group in rows
        ]
        split_pairs(pairs, SplitRule(0.2, 0.2, 1, Fold(number, count), has_labels))
        return pairs

    try:
        folds = [split(number + 1) for number in range(count)]
    except UserError as error:
        assert not rows or "can't make so many folds" in str(error)
        return
    tests = [[pair.split == "test" for pair in pairs] for pairs in folds]
    assert all(any(test) for test in tests)
    assert all(sum(column) == 1 for column in zip(*tests, strict=True))
    for pairs in folds:
        for key in (lambda pair: pair.question, lambda pair: pair.group or id(pair)):
            places: dict = {}
            for pair in pairs:
                places.setdefault(key(pair), set()).add(pair.split)
            assert all(len(splits) == 1 for splits in places.values())


def test_impossible_folds_are_one_message() -> None:
    with pytest.raises(UserError, match="--folds=10: 9 different questions"):
        in_fold(1, 10, rows=9)
    named = [make_pair("一", split="test"), make_pair("二", split="train")]
    with pytest.raises(UserError, match="--folds: the files name the splits already"):
        split_pairs(named, SplitRule(0.1, 0.1, 1, Fold(1, 2)))
