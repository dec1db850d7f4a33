"""Repeated questions and closed sets of answers."""

from __future__ import annotations

from shuoshu.core.command_settings import PrepareSftSettings
from shuoshu.core.errors import REPO_ROOT
from shuoshu.sft.conversations import parse_pairs
from shuoshu.sft.pairs import (
    Pair,
    RejectedRecords,
    closed_set_labels,
    drop_repeats,
)
from shuoshu.sft.question_files import find_question_files
from shuoshu.text.dataset import QUESTION_SPLITS
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


# ---------------------------------------------------------------- the bundled questions


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
    assert {pair.split for pair in pairs} == set(QUESTION_SPLITS) and closed_set_labels(
        pairs
    ) is None
    assert all(
        pair.extra["fact"] == pair.group and pair.extra["evidence"] is not None for pair in pairs
    )
