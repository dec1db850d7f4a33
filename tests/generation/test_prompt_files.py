"""Files of prompts: sample.py --in reads what prepare_sft.py reads, and no row is lost."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

import sample
from shuoshu.generation.prompt_files import read_prompts, write_prompt_rows

TEXTS = ["清晨，沈砚走了。", "谁在渡口？"]
TABLE = "id;question\n1;清晨，沈砚走了。\n2;谁在渡口？\n"
JSON = json.dumps([{"id": n, "Question": text} for n, text in enumerate(TEXTS)], ensure_ascii=False)


def file_of(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def csv_rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", TABLE),
        ("a.csv", TABLE.replace(";", ",")),
        ("a.tsv", TABLE.replace(";", "\t")),
        ("a.json", JSON),
        ("a.jsonl", JSON[1:-1].replace("}, ", "}\r\n")),
        ("a.txt", "\r\n\r\n".join(TEXTS)),
    ],
)
def test_prompts_are_read_from_every_format_and_encoding(
    tmp_path: Path, name: str, content: str, encoding: str
) -> None:
    assert read_prompts(file_of(tmp_path / name, content.encode(encoding))).prompts == TEXTS


def test_a_row_may_have_its_own_system_message(tmp_path: Path) -> None:
    rows = [{"System": "你是老船夫。", "prompt": "谁？"}, {"system": "", "prompt": "谁？"}]
    file = read_prompts(file_of(tmp_path / "a.json", json.dumps([*rows, {"prompt": "谁？"}])))
    assert file.systems == ["你是老船夫。", None, None]


def test_a_system_message_that_is_no_text_is_a_problem_of_its_row(tmp_path: Path) -> None:
    rows = [{"prompt": "谁？", "system": value} for value in (["你是老船夫。"], None, 5)]
    file = read_prompts(file_of(tmp_path / "a.json", json.dumps(rows)))
    assert file.prompts == [None, "谁？", "谁？"] and file.systems == [None, None, "5"]
    assert file.problems == ["row 1: its system is a list"]


def test_numbers_and_booleans_are_prompts_and_an_input_follows_its_instruction(
    tmp_path: Path,
) -> None:
    rows = [{"prompt": value} for value in (3, 0.5, 2.0, True)]
    assert read_prompts(file_of(tmp_path / "a.json", json.dumps(rows))).prompts == [
        "3",
        "0.5",
        "2",
        "true",
    ]
    rows = [{"instruction": "译", "input": text} for text in ("雨", "", None)]
    assert read_prompts(file_of(tmp_path / "a.json", json.dumps(rows))).prompts == [
        "译\n雨",
        "译",
        "译",
    ]


def test_each_row_has_its_own_column_of_the_prompt(tmp_path: Path) -> None:
    rows = [{"question": "甲"}, {"question": "乙", "prompt": "丙"}, {"other": "丁"}]
    file = read_prompts(file_of(tmp_path / "a.json", json.dumps(rows)))
    assert file.prompts == ["甲", "丙", None] and file.rows == rows
    assert "row 3: it has no column prompt" in file.problems[0]


def test_rows_without_a_usable_prompt_stay_and_are_named(tmp_path: Path) -> None:
    file = read_prompts(file_of(tmp_path / "a.csv", "id,question\n1,甲\n2,\n3,乙,丙\n4\n5,丁\n"))
    assert [list(row.values()) for row in file.rows] == [
        ["1", "甲"],
        ["2", ""],
        ["3", "乙", "丙"],
        ["4", ""],
        ["5", "丁"],
    ]
    assert file.prompts == ["甲", None, None, None, "丁"]
    assert file.problems == [
        "row 3: its question is empty",
        "row 4: wrong number of cells, 3 cells: 3 …",
        "row 5: wrong number of cells, 1 cell: 4 …",
    ]


def test_stray_marks_and_undecodable_places_are_notes(tmp_path: Path) -> None:
    file = read_prompts(file_of(tmp_path / "a.csv", 'id,question\n1,"甲\n2,乙"丙\n'))
    assert file.prompts == ['"甲', '乙"丙'] and "quotation marks are read as text" in file.notes[0]
    file = read_prompts(file_of(tmp_path / "a.txt", TEXTS[0].encode() + b"\xff" + "？".encode()))
    assert "1 place can't be decoded" in file.notes[0]


def test_written_cells_hold_json_and_no_python(tmp_path: Path) -> None:
    row = {"a": [1, "二"], "b": {"c": True}, "d": None, "e": False, "f": 1.5, "g": "文"}
    write_prompt_rows(tmp_path / "o.csv", [row, {"g": "末", "h": "新"}])
    assert csv_rows(tmp_path / "o.csv") == [
        [*row, "h"],
        ['[1, "二"]', '{"c": true}', "", "false", "1.5", "文", ""],
        ["", "", "", "", "", "末", "新"],
    ]


def test_unanswerable_rows_keep_their_place_with_an_empty_answer(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = ["谁？", "", "长" * 100, "谁？"]
    rows = [{"question": text, "n": [n]} for n, text in enumerate(questions)]
    path = file_of(tmp_path / "in.json", json.dumps(rows))
    argv = [f"--out_dir={tuned}", f"--in={path}", "--max_new_tokens=4", "--threads=1"]
    argv.append("--answer_by=write")
    assert sample.main([*argv, f"--out={tmp_path / 'o.csv'}"]) == 0
    header, *written = csv_rows(tmp_path / "o.csv")
    assert header == ["question", "n", "answer", "answered_by", "probability"]
    assert [row[:2] for row in written] == [[text, f"[{n}]"] for n, text in enumerate(questions)]
    assert [bool(row[2]) for row in written] == [True, False, False, True]
    output = capsys.readouterr()
    assert "2 of 2 answers" in output.out
    assert "no answer for 2 rows, for example\n  row 2: its question is empty\n" in output.err
    assert "row 3: a question of" in output.err


def test_no_column_of_the_file_is_replaced(tuned: Path, tmp_path: Path) -> None:
    path = file_of(tmp_path / "in.csv", "question,answer,model_answer\n谁？,甲,乙\n")
    argv = [f"--out_dir={tuned}", f"--in={path}", "--max_new_tokens=4", "--threads=1"]
    argv.append("--answer_by=write")
    assert sample.main([*argv, f"--out={tmp_path / 'o.csv'}"]) == 0
    header, row = csv_rows(tmp_path / "o.csv")
    assert header[:4] == ["question", "answer", "model_answer", "model_model_answer"]
    assert row[:3] == ["谁？", "甲", "乙"] and row[3]
