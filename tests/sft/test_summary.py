"""What prepare_sft.py prints: rejected rows, leaks, the next command, rows, messages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import prepare_sft
from shuoshu.sft.dataset import read_pairs
from shuoshu.text import dataset as text_dataset

ROWS = [{"question": f"第{n}问：谁在渡口？", "answer": f"第{n}个人在渡口。"} for n in range(30)]


def test_rejected_rows_are_counted_by_reason_with_examples(prepare) -> None:
    bad = [
        {"question": "第1问：谁在渡口？", "answer": "第1个人在渡口。"},
        {"question": "第2问：谁在渡口？", "answer": "没有人。"},
        {"question": "", "answer": "空。"},
    ]
    bad += [{"question": ["列"], "answer": "表。"}]
    printed = prepare([*ROWS, *bad])
    assert "34 rows, 30 used, 4 left out" in printed
    for reason, row in (
        ("duplicate", 31),
        ("contradictory", 32),
        ("empty", 33),
        ("wrong type", 34),
    ):
        assert re.search(rf"1 {reason}, for example\n.*row {row}", printed), reason


def test_unused_columns_are_one_line_with_an_option_that_uses_one(prepare) -> None:
    rows = [{**row, "id": f"{n}", "context": f"第{n}天有雨。"} for n, row in enumerate(ROWS)]
    printed = prepare(rows)
    option = '--question="{context}\\n{question}" --answer="{answer}"'
    assert f"  not used     id (30 rows), context (30 rows); to use one: {option}\n" in printed
    printed = prepare(rows, "--question={context}\\n{question}", "--answer={answer}")
    assert "  not used     id (30 rows)\n" in printed
    assert "not used" not in prepare(ROWS)
    printed = prepare([{**row, "id": f"{n}000"} for n, row in enumerate(ROWS)])
    assert "  not used     id (30 rows)\n" in printed


def test_leaks_between_splits_are_printed(prepare) -> None:
    question = "清晨的时候，沈砚在城南的渡口到底做了什么事情呢？"
    split = [
        {"question": question, "answer": "等船。", "split": "train"},
        {"question": question, "answer": "等船。", "split": "val"},
    ]
    printed = prepare([*split, {"question": "那" + question, "answer": "等船。", "split": "test"}])
    assert (
        "1 validation or test questions are also training questions" in printed
        and "1 validation or test questions are nearly the same" in printed
    )
    assert "no questions are held out" in prepare(ROWS[:1])


def test_templates_and_labels_make_a_closed_set(prepare, tmp_path: Path) -> None:
    reviews = [
        {"review": f"茶{'好' if n % 3 else '凉'}，第{n}回来", "label": int(n % 3 > 0)}
        for n in range(60)
    ]
    printed = prepare(
        reviews,
        "--question=评论：{review} 是正面还是负面？",
        "--answer={label}",
        "--labels=1=正面,0=负面",
    )
    meta = text_dataset.read_meta(tmp_path / "out")
    assert meta["task"] == "labels" and meta["labels"] == ["正面", "负面"]
    assert "  正面      32    4     4\n  负面      16    2     2\n" in printed
    for split in ("train", "val", "test"):  # a third of each is negative
        answers = [pair["answer"] for pair in read_pairs(tmp_path / "out", split)]
        assert abs(answers.count("负面") - len(answers) / 3) <= 1


def test_shown_rows_mark_the_trained_tokens(prepare) -> None:
    rows = [
        {"question": "<|endoftext|>是🙂什么？", "answer": "“一个记号。”", "split": "train"},
        {**ROWS[0], "split": "val"},
    ]
    assert prepare(rows, "--show=3").endswith(
        "\nrow 0  <|user|><|endoftext|>是🙂什么？<|assistant|>⟦“一个记号。”<|endoftext|>⟧\n"
    )


def test_next_command_names_the_folder(prepare, tmp_path: Path) -> None:
    assert f"python train.py config/sft.py --dataset={tmp_path / 'out'}" in prepare(ROWS)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--tokenizer=nowhere"], "no tokenizer in nowhere"),
        (["--val_fraction=0.5", "--test_fraction=0.5"], "leave nothing to train on"),
        (["--question={question}"], "go together"),
        (["--block_size=16", "--too_long=drop"], "no pair is left to train on, of 30 rows read"),
        (["--too_long=cut"], "one of error, drop, cut_question, window"),
    ],
)
def test_wrong_setting_is_one_message_and_nothing_is_written(
    prepare, tmp_path: Path, arguments: list[str], message: str
) -> None:
    assert message in prepare(ROWS, *arguments, code=2) and not (tmp_path / "out").exists()


def test_missing_model_error_names_the_commands_that_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert prepare_sft.main([]) == 2
    assert "python prepare.py\n  python train.py" in capsys.readouterr().err


def test_without_input_all_bundled_questions_are_prepared(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert prepare_sft.main([f"--tokenizer={pretrained}", "--block_size=512"]) == 0
    printed = capsys.readouterr().out
    assert "0 left out" in printed and "too long" not in printed and "leaks        none" in printed
    assert (
        f"config/sft.py --dataset=novella_qa --init_from={pretrained} --block_size=512" in printed
        and (tmp_path / "data" / "novella_qa" / "meta.json").is_file()
    )


def test_questions_that_cutting_makes_equal_are_dropped(prepare) -> None:
    rows = [
        {"question": "甲" * 100 + f"{n}" + "乙" * 100, "answer": f"第{n}个答案。"}
        for n in range(10)
    ]
    printed = prepare([*rows, *ROWS], "--too_long=cut_question")
    assert (
        "9 contradictory" in printed
        and "questions shortened in the middle" in printed
        and "leaks        none" in printed
    )


def test_labels_make_a_closed_set_even_of_few_rows(prepare, tmp_path: Path) -> None:
    reviews = [{"review": f"第{n}间房", "label": n % 2} for n in range(14)]
    prepare(reviews, "--question={review}", "--answer={label}", "--labels=1=正面,0=负面")
    assert text_dataset.read_meta(tmp_path / "out")["labels"] == ["负面", "正面"]
