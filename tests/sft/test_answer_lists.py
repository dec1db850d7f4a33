"""Answers that are lists are recognised by their separator, and prose is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shuoshu.core.errors import UserError
from shuoshu.sft.answer_lists import MIN_LISTS, list_items, list_separator
from shuoshu.text.dataset import read_meta

LISTS = [f"油灯{n}; 渡口; 雨" for n in range(MIN_LISTS)]
PROSE = ["他点起油灯，等着天亮。", "雨停了。"]


@pytest.mark.parametrize(
    ("answer", "items"),
    [
        ("Deep Learning; ROS.", ["deep learning", "ros"]),
        ("a；ｂ; a ;; c  d\n;", ["a", "b", "c d"]),
        ("渡口；油灯。", ["渡口", "油灯"]),
        ("one", ["one"]),
        (" ; .", []),
        ("", []),
    ],
)
def test_items_are_normalized_and_unique_and_never_empty(answer: str, items: list[str]) -> None:
    assert list_items(answer, ";") == list_items(answer, "；") == items


def test_a_bar_separates_items_only_where_it_is_the_separator() -> None:
    assert list_items("a|b ｜ c", "|") == ["a", "b", "c"]
    assert list_items("a|b", ";") == ["a|b"]


@pytest.mark.parametrize("sign", [";", "；", "|"])
def test_the_separator_is_the_sign_in_the_answers(sign: str) -> None:
    assert list_separator([answer.replace(";", sign) for answer in LISTS]) == sign


@pytest.mark.parametrize("sign", [",", "、", " ", "/"])
def test_signs_of_sentences_separate_no_items(sign: str) -> None:
    assert list_separator([answer.replace(";", sign) for answer in LISTS]) is None


def test_four_answers_of_five_must_be_lists() -> None:
    other = MIN_LISTS // 4  # a fifth of all
    assert list_separator([*LISTS, *PROSE[:1] * other]) == ";"
    assert list_separator([*LISTS, *PROSE[:1] * (other + 1)]) is None


def test_a_few_lists_are_not_enough() -> None:
    assert list_separator(LISTS[1:]) is None
    assert list_separator([]) is None


def test_long_clauses_are_no_items() -> None:
    clause = "他点起油灯，等着天亮，河上的雾一直没有散去，远处的船夫也一直没有回来"
    assert list_separator([f"{clause}；{clause[::-1]}。"] * MIN_LISTS) is None


def test_preparing_records_the_separator_and_says_so(prepare, tmp_path: Path) -> None:
    rows = [{"question": f"第{n}回有什么？", "answer": LISTS[n % MIN_LISTS]} for n in range(30)]
    assert "  answers      are lists separated by ;\n" in prepare(rows)
    assert read_meta(tmp_path / "out")["separator"] == ";"


def test_other_answers_have_no_separator(prepare, tmp_path: Path) -> None:
    rows = [{"question": f"第{n}回有什么？", "answer": f"{n}盏油灯，雨。"} for n in range(30)]
    assert "are lists" not in prepare(rows)
    assert read_meta(tmp_path / "out")["separator"] is None


def test_labels_that_look_like_lists_remain_labels(prepare, tmp_path: Path) -> None:
    labels = ["雨; 渡口", "油灯; 雨"]
    rows = [{"question": f"第{n}回有什么？", "answer": labels[n % 2]} for n in range(40)]
    assert "are lists" not in prepare(rows)
    meta = read_meta(tmp_path / "out")
    assert meta["labels"] and meta["separator"] is None


@pytest.mark.parametrize("separator", [1, [";"], " "])
def test_a_damaged_separator_is_named(prepare, tmp_path: Path, separator: object) -> None:
    prepare([{"question": "谁？", "answer": "船夫。"}])
    path = tmp_path / "out" / "meta.json"
    meta = json.loads(path.read_text(encoding="utf-8")) | {"separator": separator}
    path.write_text(json.dumps(meta), encoding="utf-8")
    with pytest.raises(UserError, match="the field separator is invalid"):
        read_meta(tmp_path / "out")
