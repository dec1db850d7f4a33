"""Which question files are found, and which records are read from them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from shuoshu.core.errors import UserError
from shuoshu.sft.question_files import find_question_files, read_records
from tests.sft.helpers import ROWS, parse, texts, write

# ---------------------------------------------------------------- files


def test_folder_files_come_sorted_without_those_that_prepare_sft_wrote(tmp_path: Path) -> None:
    for name in (
        "b.json",
        "a.CSV",
        "c.jsonl",
        "train.jsonl",
        "notes.md",
        "._b.json",
        "tokenizer.json",
    ):
        write(tmp_path / name, ROWS)
    (tmp_path / "folder.json").mkdir()
    assert [path.name for path in find_question_files([tmp_path])] == [
        "a.CSV",
        "b.json",
        "c.jsonl",
        "train.jsonl",
    ]
    write(
        tmp_path / "meta.json", {}
    )  # now it is a prepared folder, so prepare_sft.py wrote its train.jsonl
    assert [
        path.name
        for path in find_question_files([tmp_path, tmp_path / "folder.json" / ".." / "b.json"])
    ] == ["a.CSV", "b.json", "c.jsonl"]


@pytest.mark.parametrize("name", ["missing.json", "book.txt", "empty", "nul\0.json", "长" * 200])
def test_path_without_question_files_is_refused_by_name(tmp_path: Path, name: str) -> None:
    write(tmp_path / "book.txt", "文")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=name.replace("\0", "\\0") if name.isascii() else "长长长"):
        find_question_files([tmp_path / name])


# ---------------------------------------------------------------- records


def table(rows: list[dict], delimiter: str = ",") -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
LIST = json.dumps(ROWS, ensure_ascii=False)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", LIST),
        (
            "a.json",
            json.dumps({"version": "1", "sources": ["x"], "data": ROWS}, ensure_ascii=False),
        ),
        ("a.json", LINES),
        ("a.jsonl", LINES.replace("\n", "\r\n\n")),
        ("a.jsonl", json.dumps(ROWS, ensure_ascii=False, indent=1)),
        ("a.csv", table(ROWS)),
        ("a.csv", table(ROWS, ";")),
        ("a.csv", table(ROWS, "\t")),
        ("a.csv", table(ROWS).replace("\r\n", "\r")),
        ("a.tsv", table(ROWS, "\t")),
    ],
)
def test_every_format_and_encoding_gives_the_same_records(
    tmp_path: Path, name: str, text: str, encoding: str
) -> None:
    assert [
        record for _, record in read_records(write(tmp_path / name, text.encode(encoding)))
    ] == ROWS


def test_long_cells_and_line_ends_within_json_strings_are_read(tmp_path: Path) -> None:
    assert read_records(write(tmp_path / "a.csv", "question,answer\n谁？," + "长" * 200_000)) == [
        (2, {"question": "谁？", "answer": "长" * 200_000})
    ]
    assert read_records(write(tmp_path / "a.json", '[{"question": "谁\n\t？"}]')) == [
        (1, {"question": "谁\n\t？"})
    ]


def test_row_numbers_are_those_that_an_editor_shows(tmp_path: Path) -> None:
    assert [n for n, _ in read_records(write(tmp_path / "a.json", ROWS))] == [1, 2]
    assert [n for n, _ in read_records(write(tmp_path / "a.jsonl", "\n" + LINES))] == [2, 3]
    assert [n for n, _ in read_records(write(tmp_path / "a.csv", table(ROWS)))] == [2, 3]


def test_json_object_with_a_conversation_is_one_record(tmp_path: Path) -> None:
    turns = {
        "messages": [{"role": "user", "content": "谁？"}, {"role": "assistant", "content": "我。"}]
    }
    assert texts(parse(tmp_path / "a.json", turns)[0]) == [["u: 谁？", "a: 我。"]]
    assert (
        texts(parse(tmp_path / "a.json", {"conversations": [turns, turns]})[0])
        == [["u: 谁？", "a: 我。"]] * 2
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "", "empty"),
        ("a.json", [], "no rows"),
        ("a.json", [1, None], "no rows"),
        ("a.json", "[" * 200_000, "nested too deeply"),
        ("a.json", '{"a":' * 200_000, "nested too deeply"),
        ("a.json", '[\n{"question": "a"\n"answer": "b"}]', "line 3, column 1"),
        ("a.json", json.dumps(ROWS, indent=1) + "\n]", "line 11, column 1.*Extra data"),
        ("a.json", LINES + "{'question'}", "line 3, column 2"),
        ("a.json", "3", "a list of objects is expected"),
        ("a.json", {"train": ROWS, "dev": ROWS}, "train, dev"),
        ("a.jsonl", LINES + '\n{"question": ', "line 4"),
        ("a.jsonl", LINES + "[" * 200_000, "line 3"),
        ("a.csv", "question,answer\n", "no rows"),
        ("a.csv", "answer,answer\n1,2\n", "called answer"),
        (
            "a.csv",
            'question,answer\n1,2\n3,"4\n5,6,7\n',
            "line 3, a quotation mark is never closed",
        ),
        ("a.csv", b"question,answer\n" + bytes(range(256)) * 9, "is not a text file"),
        ("a.csv", b"question,answer\n" + b"\0" * 99, "NUL"),
        ("gone.json", None, "can't be read"),
    ],
)
def test_unreadable_file_is_an_error_with_the_place(
    tmp_path: Path, name: str, content: object, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        write(path, content)
    with pytest.raises(UserError, match=message) as error:
        read_records(path)
    assert str(path) in str(error.value) and len(str(error.value)) < 400


def test_file_over_the_size_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate((4 << 30) + 1)
    with pytest.raises(UserError, match=r"4\.3 GB; the limit is 1\.1 GB"):
        read_records(path)


def test_rows_that_are_no_records_are_counted(tmp_path: Path) -> None:
    pairs, rejected = parse(tmp_path / "a.json", [*ROWS, 7, "text", [1]])
    assert (len(pairs), rejected.read, rejected.counts) == (2, 5, {"wrong type": 3})
    pairs, rejected = parse(
        tmp_path / "a.csv", "question,answer\n谁？,我。\n谁？,我,们。\n\n谁？\n何时？,早上。\n"
    )
    assert (texts(pairs), rejected.counts) == (
        [["u: 谁？", "a: 我。"], ["u: 何时？", "a: 早上。"]],
        {"wrong number of cells": 2},
    )
    assert rejected.examples == {
        "wrong number of cells": ["a.csv, row 3: 3 cells: 谁？ …", "a.csv, row 5: 1 cell: 谁？ …"]
    }


def test_three_short_examples_are_stored_per_reason(tmp_path: Path) -> None:
    _, rejected = parse(
        tmp_path / "a.csv", "question,answer\n" + f"{'长' * 100_000}\n" * 9 + "谁？,我。\n"
    )
    assert rejected.counts.total() == 9 and len(rejected.examples["wrong number of cells"]) == 3
    assert max(map(len, rejected.examples["wrong number of cells"])) < 100


def test_undecodable_places_are_counted_in_a_note(tmp_path: Path) -> None:
    _, rejected = parse(
        tmp_path / "a.json",
        LIST.replace("雨停", "雨�停").encode("utf-8").replace("�".encode(), b"\xff"),
    )
    assert len(rejected.notes) == 1 and "a.json: 1 place " in rejected.notes[0]
    assert parse(tmp_path / "a.json", ROWS)[1].notes == []
