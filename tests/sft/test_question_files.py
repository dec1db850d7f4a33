"""Questions and answers: files as they are found, shapes and templates, what is dropped, splits, leaks."""

from __future__ import annotations

import csv
import io
import json
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuoshu.core.errors import REPO_ROOT, UserError
from shuoshu.sft import pairs as sft_pairs
from shuoshu.sft import question_files
from shuoshu.sft.pairs import (
    Pair,
    RejectedRecords,
    closed_answers,
    drop_repeats,
    leaks,
    split_pairs,
)
from shuoshu.sft.question_files import find_question_files, parse_pairs, read_records

ROWS = [
    {"question": "谁点起了油灯？", "answer": "沈砚。"},
    {"question": "雨停了吗？", "answer": "没有停。"},
]
NOTHING = {
    "question": None,
    "answer": None,
    "system": None,
    "labels": None,
    "group": None,
    "encoding": None,
}
TEMPLATES = {"question": "评论：{review} 是正面还是负面？", "answer": "{label}"}


def write(path: Path, content: object) -> Path:
    """Bytes and text as they are, anything else as JSON."""
    raw = content if isinstance(content, (bytes, str)) else json.dumps(content)
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode("utf-8", "surrogatepass"))
    return path


def read(path: Path, content: object, **settings: str) -> tuple[list[Pair], RejectedRecords]:
    return parse_pairs([write(path, content)], SimpleNamespace(**{**NOTHING, **settings}))


def said(pairs: list[Pair]) -> list[list[str]]:
    """Each conversation as "u: …", "a: …"."""
    return [
        [f"{message['role'][0]}: {message['content']}" for message in pair.messages]
        for pair in pairs
    ]


def plain(
    question: str,
    answer: str = "好。",
    split: str | None = None,
    group: str | None = None,
    source: str = "a.json, row 1",
) -> Pair:
    return Pair(
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        source,
        split,
        group,
    )


# ---------------------------------------------------------------- files


def test_a_folders_files_are_taken_in_order_without_what_was_made_of_them(tmp_path: Path) -> None:
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
    )  # now it is a prepared folder, and train.jsonl was written into it
    assert [
        path.name
        for path in find_question_files([tmp_path, tmp_path / "folder.json" / ".." / "b.json"])
    ] == ["a.CSV", "b.json", "c.jsonl"]


@pytest.mark.parametrize("name", ["missing.json", "book.txt", "empty", "nul\0.json", "长" * 200])
def test_what_holds_no_questions_is_refused_by_name(tmp_path: Path, name: str) -> None:
    write(tmp_path / "book.txt", "文")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=name.replace("\0", "\\0") if name.isascii() else "长长长"):
        find_question_files([tmp_path / name])
    with pytest.raises(UserError):
        find_question_files([])


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
def test_the_same_rows_come_out_of_every_kind_of_file(
    tmp_path: Path, name: str, text: str, encoding: str
) -> None:
    assert [
        record for _, record in read_records(write(tmp_path / name, text.encode(encoding)))
    ] == ROWS


def test_long_cells_and_raw_line_ends_in_json_are_read(tmp_path: Path) -> None:
    assert read_records(write(tmp_path / "a.csv", "question,answer\n谁？," + "长" * 200_000)) == [
        (2, {"question": "谁？", "answer": "长" * 200_000})
    ]
    assert read_records(write(tmp_path / "a.json", '[{"question": "谁\n\t？"}]')) == [
        (1, {"question": "谁\n\t？"})
    ]


def test_rows_are_numbered_as_an_editor_shows_them(tmp_path: Path) -> None:
    assert [n for n, _ in read_records(write(tmp_path / "a.json", ROWS))] == [1, 2]
    assert [n for n, _ in read_records(write(tmp_path / "a.jsonl", "\n" + LINES))] == [2, 3]
    assert [n for n, _ in read_records(write(tmp_path / "a.csv", table(ROWS)))] == [2, 3]


def test_an_object_that_is_a_record_itself_is_one(tmp_path: Path) -> None:
    turns = {
        "messages": [{"role": "user", "content": "谁？"}, {"role": "assistant", "content": "我。"}]
    }
    assert said(read(tmp_path / "a.json", turns)[0]) == [["u: 谁？", "a: 我。"]]
    assert (
        said(read(tmp_path / "a.json", {"conversations": [turns, turns]})[0])
        == [["u: 谁？", "a: 我。"]] * 2
    )


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.json", "", "empty"),
        ("a.json", [], "no rows"),
        ("a.json", [1, None], "no rows"),
        ("a.json", "[" * 200_000, "nested too deeply"),
        ("a.json", '{"a":' * 200_000, "nested too deeply"),
        ("a.json", '[\n{"question": "a"\n"answer": "b"}]', "line 3, column 1"),
        ("a.json", json.dumps(ROWS, indent=1) + "\n]", "line 11, column 1.*Extra data"),
        ("a.json", LINES + "{'question'}", "line 3, column 2"),
        ("a.json", "3", "a list of objects is wanted"),
        ("a.json", {"train": ROWS, "dev": ROWS}, "train, dev"),
        ("a.jsonl", LINES + '\n{"question": ', "line 4"),
        ("a.jsonl", LINES + "[" * 200_000, "line 3"),
        ("a.csv", "question,answer\n", "no rows"),
        ("a.csv", "answer,answer\n1,2\n", "called answer"),
        ("a.csv", 'question,answer\n1,2\n3,"4\n5,6\n', "line 2"),
        ("a.csv", b"question,answer\n" + bytes(range(256)) * 9, "no text"),
        ("a.csv", b"question,answer\n" + b"\0" * 99, "NUL"),
        ("gone.json", None, "can't be read"),
    ],
)
def test_a_file_that_can_not_be_read_is_told_with_its_place(
    tmp_path: Path, name: str, content: object, told: str
) -> None:
    path = tmp_path / name
    if content is not None:
        write(path, content)
    with pytest.raises(UserError, match=told) as error:
        read_records(path)
    assert str(path) in str(error.value) and len(str(error.value)) < 400


def test_a_file_of_over_four_gigabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate((4 << 30) + 1)
    with pytest.raises(UserError, match=r"4\.3 GB, more than"):
        read_records(path)


def test_rows_that_are_no_records_are_counted(tmp_path: Path) -> None:
    pairs, dropped = read(tmp_path / "a.json", [*ROWS, 7, "text", [1]])
    assert (len(pairs), dropped.read, dropped.counts) == (2, 5, {"wrong type": 3})
    pairs, dropped = read(
        tmp_path / "a.csv", "question,answer\n谁？,我。\n谁？,我,们。\n\n谁？\n何时？,早上。\n"
    )
    assert (said(pairs), dropped.counts) == (
        [["u: 谁？", "a: 我。"], ["u: 何时？", "a: 早上。"]],
        {"wrong number of cells": 2},
    )
    assert dropped.examples == {
        "wrong number of cells": ["a.csv, row 3: 3 cells: 谁？ …", "a.csv, row 5: 1 cells: 谁？ …"]
    }


def test_an_example_is_short_and_there_are_three_of_a_reason(tmp_path: Path) -> None:
    _, dropped = read(
        tmp_path / "a.csv", "question,answer\n" + f"{'长' * 100_000}\n" * 9 + "谁？,我。\n"
    )
    assert dropped.counts.total() == 9 and len(dropped.examples["wrong number of cells"]) == 3
    assert max(map(len, dropped.examples["wrong number of cells"])) < 100


def test_undecodable_places_are_told(tmp_path: Path) -> None:
    _, dropped = read(
        tmp_path / "a.json",
        LIST.replace("雨停", "雨�停").encode("utf-8").replace("�".encode(), b"\xff"),
    )
    assert len(dropped.notes) == 1 and "a.json: 1 places" in dropped.notes[0]
    assert read(tmp_path / "a.json", ROWS)[1].notes == []


# ---------------------------------------------------------------- shapes

TURN = {"role": "user", "content": "谁？"}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"question": "谁？", "answer": "我。"}, ["u: 谁？", "a: 我。"]),
        ({"Question": " 谁？\r\n几个？ ", "ANSWER": "我。\0"}, ["u: 谁？\n几个？", "a: 我。"]),
        ({"instruction": "译", "input": "雨", "output": "rain"}, ["u: 译\n雨", "a: rain"]),
        ({"instruction": "译", "input": "", "output": "rain"}, ["u: 译", "a: rain"]),
        (
            {"instruction": "译", "input": None, "output": "rain", "system": "你是译者"},
            ["s: 你是译者", "u: 译", "a: rain"],
        ),
        (
            {"instruction": "二", "output": "2", "history": [["一", "1"], ["〇", 0]]},
            ["u: 一", "a: 1", "u: 〇", "a: 0", "u: 二", "a: 2"],
        ),
        ({"input": "雨", "output": "rain"}, ["u: 雨", "a: rain"]),
        ({"prompt": "雨", "completion": 3.0}, ["u: 雨", "a: 3"]),
        ({"query": 7, "response": 0.5, "history": "no list"}, ["u: 7", "a: 0.5"]),
        ({"问题": "谁？", "答案": "我。"}, ["u: 谁？", "a: 我。"]),
        (
            {
                "prompt": "a",
                "completion": "b",
                "messages": [TURN, {"role": "assistant", "content": "我。"}],
            },
            ["u: 谁？", "a: 我。"],
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "谁？"},
                    {"from": "gpt", "value": "我。"},
                ],
                "system": "短",
            },
            ["s: 短", "u: 谁？", "a: 我。"],
        ),
        (
            {
                "messages": [
                    {"role": r, "content": r[0]}
                    for r in ("system", "user", "assistant", "user", "assistant", "user")
                ]
            },
            ["s: s", *["u: u", "a: a"] * 2],
        ),
        (
            {
                "messages": [
                    {"role": r, "content": c}
                    for r, c in (("system", ""), ("User", "1"), ("assistant", "2"))
                ]
            },
            ["u: 1", "a: 2"],
        ),
        ({"question": "9" * 20, "answer": "\ud83d!"}, ["u: " + "9" * 20, "a: �!"]),
    ],
)
def test_a_known_shape_becomes_a_conversation(
    tmp_path: Path, record: dict, expected: list[str]
) -> None:
    pairs, dropped = read(tmp_path / "a.json", [record])
    assert said(pairs) == [expected] and not dropped.counts


def test_question_is_all_before_the_last_answer() -> None:
    pair = Pair(
        [
            {"role": r, "content": c}
            for r, c in (
                ("system", "短"),
                ("user", "一"),
                ("assistant", "1"),
                ("user", "二"),
                ("assistant", "2"),
            )
        ],
        "",
    )
    assert (pair.question, pair.answer) == ("短\n一\n1\n二", "2")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"question": "谁？"}, "empty"),
        ({"question": "谁？", "answer": None}, "empty"),
        ({"question": " \u3000\ufeff", "answer": "我"}, "empty"),
        ({"question": "谁？", "answer": ["我"]}, "wrong type"),
        ({"question": "谁？", "answer": {"text": "我"}}, "wrong type"),
        ({"question": "谁？", "answer": True}, "wrong type"),
        ({"question": "谁？", "answer": float("nan")}, "wrong type"),
        ({"question": "谁？", "answer": float("inf")}, "wrong type"),
        ({"instruction": "译", "output": "rain", "history": ["ab"]}, "wrong type"),
        ({"messages": []}, "empty"),
        ({"messages": None}, "wrong type"),
        ({"messages": "[]"}, "wrong type"),
        ({"messages": ["谁？"]}, "wrong type"),
        ({"messages": [TURN]}, "empty"),
        ({"messages": [TURN, {"role": "assistant", "content": " "}]}, "empty"),
        ({"messages": [TURN, {"role": "assistant", "content": None}]}, "wrong type"),
        ({"messages": [TURN, {"role": "assistant", "content": [{"text": "我"}]}]}, "wrong type"),
        ({"messages": [TURN, {"role": "tool", "content": "我"}]}, "wrong type"),
        ({"messages": [TURN, {"role": ["assistant"], "content": "我"}]}, "wrong type"),
        ({"messages": [TURN, TURN, {"role": "assistant", "content": "我"}]}, "wrong type"),
        ({"messages": [{"role": "assistant", "content": "我"}, TURN]}, "wrong type"),
    ],
)
def test_a_record_that_is_no_conversation_is_dropped_and_counted(
    tmp_path: Path, record: dict, reason: str
) -> None:
    pairs, dropped = read(tmp_path / "a.json", [record, *ROWS])
    assert len(pairs) == 2 and dropped.counts == {reason: 1}
    assert dropped.examples[reason][0].startswith("a.json, row 1: ")


def test_unknown_columns_are_shown_with_the_way_out(tmp_path: Path) -> None:
    rows = [{"context_text": "长" * 5000, "qas": [{"query": "谁？"}]}]
    with pytest.raises(
        UserError, match=r"(?s)row 1.*context_text: 长长.*qas: a list.*--question=.*--answer="
    ) as error:
        read(tmp_path / "a.json", rows)
    assert len(str(error.value)) < 700


def test_the_further_fields_are_kept(tmp_path: Path) -> None:
    row = {
        "question": "谁？",
        "answer": "我。",
        "Split": "Dev",
        "chapter": 3,
        "fact": " c01\ud800",
        "is_hard": False,
    }
    [pair], _ = read(
        tmp_path / "a.json", [{**row, "none": None, "nan": float("nan"), "list": [1]}], group="fact"
    )
    assert (pair.split, pair.group, pair.source) == ("val", "c01�", "a.json, row 1")
    assert pair.facts == {"chapter": 3, "fact": "c01�", "is_hard": False}


def test_rows_without_a_group_are_no_group(tmp_path: Path) -> None:
    pairs, _ = read(
        tmp_path / "a.csv", "question,answer,Fact\n谁？,我。,\n何时？,早上。,1\n", group="fact"
    )
    assert [pair.group for pair in pairs] == [None, "1"]


def test_whatever_is_read_can_be_written_as_utf8(tmp_path: Path) -> None:
    row = {"question": "\udc00谁？", "answer": "\udfff", "sp\ud800": "\ud800", "\udbff": 1}
    [pair], dropped = read(tmp_path / "a.json", [row, {"question": "\ud800"}])
    json.dumps([vars(pair), vars(dropped)], ensure_ascii=False).encode("utf-8")


@pytest.mark.parametrize(
    ("value", "split"),
    [
        ("TRAIN", "train"),
        ("training", "train"),
        ("valid", "val"),
        ("validation", "val"),
        ("test", "test"),
    ],
)
def test_the_splits_usual_names_are_known(tmp_path: Path, value: str, split: str) -> None:
    assert read(tmp_path / "a.json", [{**ROWS[0], "split": value}])[0][0].split == split
    assert read(tmp_path / "a.json", [{**ROWS[0], "split": ""}])[0][0].split is None


@pytest.mark.parametrize("value", ["fold 3", 1])
def test_an_unknown_split_is_told_with_its_row(tmp_path: Path, value: object) -> None:
    with pytest.raises(UserError, match=rf"a\.json, row 2: the split {value}"):
        read(tmp_path / "a.json", [{**ROWS[0], "split": "train"}, {**ROWS[1], "split": value}])


def test_a_number_of_5000_digits_is_taken_as_text(tmp_path: Path) -> None:
    pairs, _ = read(
        tmp_path / "a.json", f'[{{"question": {"9" * 5000}, "answer": 12345678901234567890}}]'
    )
    assert said(pairs) == [["u: " + "9" * 5000, "a: 12345678901234567890"]]


# ---------------------------------------------------------------- templates and labels

REVIEWS = "label,review\n1,很好{0}。\n0.0,不好。\n2,一般。\n,没有分。\n1,\n"


def test_templates_put_the_question_and_labels_name_the_answer(tmp_path: Path) -> None:
    pairs, dropped = read(
        tmp_path / "a.csv",
        REVIEWS,
        **TEMPLATES,
        labels="1=正面, 0=负面",
        system="你{{只}}答\\n两字",
    )
    asked = ["u: 评论：很好{0}。 是正面还是负面？", "u: 评论：不好。 是正面还是负面？"]
    assert said(pairs) == [
        ["s: 你{只}答\n两字", asked[0], "a: 正面"],
        ["s: 你{只}答\n两字", asked[1], "a: 负面"],
    ]
    assert dropped.counts == {"not in --labels": 1, "empty": 2}
    assert dropped.examples["not in --labels"] == ["a.csv, row 4: 2"]


def test_templates_take_numbers_and_nothing_else(tmp_path: Path) -> None:
    rows = [
        {"review": "好", "label": label}
        for label in (1, 1.0, 0.5, "1", None, True, [1], {}, float("nan"))
    ] + [{"review": "好"}]
    pairs, dropped = read(tmp_path / "a.json", rows, **TEMPLATES)
    assert [pair.answer for pair in pairs] == ["1", "1", "0.5", "1"]
    assert dropped.counts == {"empty": 2, "wrong type": 4}


def test_a_columns_own_letters_come_before_its_name_in_others(tmp_path: Path) -> None:
    rows = [{"text": "一", "Text": "二", "TEXT": "三", "Label": "四"}]
    assert said(
        read(tmp_path / "a.json", rows, question="{text}{Text}{TEXT}", answer="{label}")[0]
    ) == [["u: 一二三", "a: 四"]]


def test_templates_win_over_a_known_shape_and_system_over_the_files(tmp_path: Path) -> None:
    row = {"question": "谁？", "answer": "我。", "hint": "短", "system": "老"}
    assert said(
        read(tmp_path / "a.json", [row], question="{hint}：{question}", answer="{answer}")[0]
    ) == [["u: 短：谁？", "a: 我。"]]
    assert said(read(tmp_path / "a.json", [row], system="新{hint}")[0]) == [
        ["s: 新短", "u: 谁？", "a: 我。"]
    ]


@pytest.mark.parametrize(
    "question",
    [
        "{reviews}",
        "{}",
        "{review.__class__}",
        "{review[0]}",
        "{review!r}",
        "{review:>10}",
        "{review:{label}}",
        "{0}",
        "{",
        "}",
        "a {review",
        "no column",
    ],
)
def test_braces_hold_a_columns_name_and_nothing_more(tmp_path: Path, question: str) -> None:
    with pytest.raises(UserError, match="--question"):
        read(tmp_path / "a.csv", REVIEWS, question=question, answer="{label}")


def test_a_wrong_column_is_answered_with_the_columns(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.csv.*label, review"):
        read(tmp_path / "a.csv", REVIEWS, question="{text}", answer="{label}")
    with pytest.raises(UserError, match=r"--group.*label, review"):
        read(tmp_path / "a.csv", REVIEWS, **TEMPLATES, group="author")
    with pytest.raises(UserError, match="go together"):
        read(tmp_path / "a.csv", REVIEWS, question="{review}")


@pytest.mark.parametrize("labels", ["1", "1=", "=正面", "1=正面,", "1=正面,1.0=负面", ","])
def test_malformed_labels_are_told(tmp_path: Path, labels: str) -> None:
    with pytest.raises(UserError, match="--labels"):
        read(tmp_path / "a.csv", REVIEWS, **TEMPLATES, labels=labels)


# ---------------------------------------------------------------- repeats and closed sets


def test_repeats_are_dropped_within_a_split_only() -> None:
    pairs = [
        plain("Who is it？", "I。", "train"),
        plain("Ｗｈｏ  is IT?", "i。", "train", source="a.json, row 2"),
        plain("who is it?", "You。", "train"),
        plain("Who is it？", "I。", "test"),
        plain("Who was it？", "I。", "train"),
    ]
    dropped = RejectedRecords()
    assert drop_repeats(pairs, dropped) == [pairs[0], pairs[3], pairs[4]]
    assert dropped.counts == {"duplicate": 1, "contradictory": 1}
    assert dropped.examples["duplicate"] == ["a.json, row 2: Ｗｈｏ is IT? → i。"]


def test_a_closed_set_is_few_short_answers_given_often() -> None:
    pairs = [plain(str(n), "好" if n % 3 else "坏") for n in range(30)]
    assert closed_answers(pairs) == ["好", "坏"]
    assert closed_answers(pairs[:19]) is None  # fewer than ten of a kind
    assert closed_answers([pair for pair in pairs if pair.answer == "好"]) is None
    assert closed_answers([plain(str(n), str(n % 21)) for n in range(2000)]) is None
    assert (
        closed_answers([plain(str(n), "很长的回答" * 5 + str(n % 2)) for n in range(2000)]) is None
    )
    assert closed_answers([Pair(pair.messages + pair.messages, "") for pair in pairs]) is None
    assert closed_answers([]) is None


# ---------------------------------------------------------------- splits


def sizes(pairs: list[Pair]) -> Counter:
    return Counter(pair.split for pair in pairs)


def test_the_splits_have_the_sizes_asked_for_and_depend_on_the_seed() -> None:
    def drawn(seed: int) -> list[str | None]:
        pairs = [plain(f"问题{n}", f"答案{n}") for n in range(1000)]
        split_pairs(pairs, 0.1, 0.2, seed)
        return [pair.split for pair in pairs]

    assert Counter(drawn(1)) == {"train": 700, "val": 100, "test": 200}
    assert drawn(1) == drawn(1) != drawn(2)
    assert len(set(drawn(1)[:50])) == 3  # they are mixed, not cut off at the end


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
def test_what_belongs_together_stays_on_one_side(
    rows: list, val: float, test: float, seed: int
) -> None:
    pairs = [
        plain(f"问{' ' * (1 + n % 2)}题 {question}", answer, group=group and str(group))
        for n, (question, group, answer) in enumerate(rows)
    ]
    split_pairs(pairs, val, test, seed)
    for key in (lambda pair: sft_pairs.normal(pair.question), lambda pair: pair.group or id(pair)):
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


def test_groups_are_split_near_the_fractions() -> None:
    draw = random.Random(3)
    pairs = [
        plain(f"问{fact}-{n}", f"答{fact}", group=str(fact))
        for fact in range(200)
        for n in range(draw.randint(1, 12))
    ]
    split_pairs(pairs, 0.1, 0.1, 1)
    assert all(abs(sizes(pairs)[name] / len(pairs) - 0.1) < 0.01 for name in ("val", "test"))


def test_the_same_question_in_other_letters_stays_on_one_side() -> None:
    pairs = [
        plain(f"Who is {name} {n}?", str(n)) for n in range(100) for name in ("ann", "ＡＮＮ ")
    ]
    split_pairs(pairs, 0.3, 0.3, 1)
    assert all(one.split == other.split for one, other in zip(pairs[::2], pairs[1::2], strict=True))


def test_groups_linked_through_a_question_stay_together() -> None:
    for seed in range(20):
        chained = [plain(f"问{n // 2}", str(n), group=f"组{(n + 1) // 2}") for n in range(8)]
        pairs = [*chained, *(plain(f"别的{n}", "x") for n in range(30))]
        split_pairs(pairs, 0.3, 0.3, seed)
        assert len(sizes(chained)) == 1


def test_each_answer_of_a_closed_set_has_its_share_of_every_split() -> None:
    pairs = [plain(f"评论{n}", "坏" if n % 10 == 0 else "好") for n in range(1000)]
    split_pairs(pairs, 0.1, 0.1, 5)
    for name, count in {"train": 80, "val": 10, "test": 10}.items():
        assert sum(pair.split == name and pair.answer == "坏" for pair in pairs) == count


def test_a_share_is_met_though_every_answer_is_rare() -> None:
    pairs = [plain(f"评论{n}", f"类{n % 20}") for n in range(200)]
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
def test_few_pairs_go_to_training_first(count: int, expected: dict) -> None:
    pairs = [plain(f"问{n}") for n in range(count)]
    split_pairs(pairs, 0.1, 0.1, 1)
    assert sizes(pairs) == expected


def test_splits_of_the_files_stay_and_half_given_ones_are_told() -> None:
    pairs = [plain("一", split="test"), plain("二", split="untaught")]
    split_pairs(pairs, 0.5, 0.0, 1)
    assert [pair.split for pair in pairs] == ["test", "untaught"]
    with pytest.raises(UserError, match=r"b\.json, row 9: it has no split"):
        split_pairs([*pairs, plain("三", source="b.json, row 9"), plain("四")], 0.1, 0.1, 1)


def test_the_bundled_questions_are_read_whole() -> None:
    pairs, dropped = parse_pairs(
        find_question_files([REPO_ROOT / "data" / "novella_qa"]),
        SimpleNamespace(**{**NOTHING, "group": "fact"}),
    )
    assert (
        len(drop_repeats(pairs, dropped)) == len(pairs) == dropped.read > 2000
        and not dropped.counts
        and not dropped.notes
    )
    assert sizes(pairs).keys() == set(sft_pairs.QUESTION_SPLITS) and closed_answers(pairs) is None
    assert all(
        pair.facts["fact"] == pair.group and pair.facts["evidence"] is not None for pair in pairs
    )


# ---------------------------------------------------------------- leaks

LONG = "沈砚点起一盏油灯，望着河面出神，柳青禾在渡口等了一夜也没有等到船。"


def test_exact_and_near_leaks_are_found_and_untaught_ones_are_none() -> None:
    train = [plain(LONG, split="train", source="t"), plain("Who lit the lamp?", split="train")]
    held = [
        plain("who  lit the LAMP？", split="val"),
        plain(LONG.replace("一夜", "半夜"), split="test"),
        plain(LONG[::-1], split="test"),
        plain(LONG, split="untaught"),
    ]
    exact, near = leaks([*held, *train])
    assert exact == ("exact", held[0], train[1], 1.0)
    assert near[:3] == ("near", held[1], train[0]) and 0.8 <= near.similarity < 1
    assert leaks(train) == leaks(held) == leaks([]) == []


def test_a_near_leak_names_the_nearest_training_question() -> None:
    train = [
        plain(text, split="train")
        for text in (
            LONG.replace("船", "马"),
            LONG.replace("。", ""),
            LONG.replace("河面出", "海面出"),
        )
    ]
    held = [plain(LONG.replace("河面出", "湖面出"), split="test"), plain(LONG + "！", split="val")]
    first, second = leaks([*train, *held])
    assert (
        first[1:3] == (held[1], train[1])
        and second[1:3] == (held[0], train[2])
        and first.similarity > second.similarity
    )


def test_of_very_long_questions_the_ends_are_compared() -> None:
    draw = random.Random(1)
    ends = "".join(chr(draw.randrange(0x4E00, 0x9FA5)) for _ in range(sft_pairs.MAX_CHARACTERS))
    assert (
        len(
            leaks(
                [
                    plain("".join(map(str, range(999))) + ends, split="train"),
                    plain("丙" + ends, split="val"),
                ]
            )
        )
        == 1
    )


def test_a_template_alone_is_no_leak() -> None:
    draw = random.Random(1)

    def asked(length: int) -> str:
        review = "".join(chr(draw.randrange(0x4E00, 0x9FA5)) for _ in range(length))
        return f"下面是一条酒店评论，请先仔细读一遍，再判断它的态度。评论内容：{review}。这条评论是正面还是负面？只答两个字，不要解释。"

    pairs = [plain(asked(3), split="test" if n < 10 else "train") for n in range(60)]
    assert (
        overlap(pairs[0].question, pairs[-1].question) > sft_pairs.NEAR_SIMILARITY
        and leaks(pairs) == []
    )
    long = asked(30)
    pairs += [plain(long, split="train"), plain(long.replace("。这", "！这"), split="val")]
    assert [leak[:3] for leak in leaks(pairs)] == [("near", pairs[-1], pairs[-2])]


def overlap(a: str, b: str) -> float:
    first, second = (
        {f" {sft_pairs.normal(text)} "[i : i + 3] for i in range(len(sft_pairs.normal(text)))}
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
def test_near_leaks_are_those_of_the_definition(base: str, edits: list, cut: int) -> None:
    texts = [base] * len(edits)
    for n, places in enumerate(edits):
        for at, news in places:
            texts[n] = texts[n][:at] + news + texts[n][at + 1 :]
    pairs = [
        plain(f"问{text}", split="train" if n < cut else "val") for n, text in enumerate(texts)
    ]
    train = [pair for pair in pairs if pair.split == "train"]
    same = {sft_pairs.normal(pair.question) for pair in train}
    expected = {
        id(pair): best
        for pair in pairs
        if pair.split == "val" and sft_pairs.normal(pair.question) not in same
        if (best := max(overlap(pair.question, other.question) for other in train))
        >= sft_pairs.NEAR_SIMILARITY
    }
    assert {
        id(leak.pair): leak.similarity for leak in leaks(pairs) if leak.kind == "near"
    } == pytest.approx(expected)


def test_of_very_many_held_out_questions_some_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sft_pairs, "COMPARED", 4)
    texts = [
        "".join(draw.sample("一二三四五六七八九十甲乙丙丁戊己庚辛壬癸", 18))
        for draw in map(random.Random, range(10))
    ]
    pairs = [
        plain(text + end, split=split)
        for text in texts
        for end, split in (("？", "train"), ("", "test"))
    ]
    assert len(leaks(pairs)) == 4 and "4 of 10" in leaks(pairs).note
    assert len(leaks(pairs[:8])) == 4 and leaks(pairs[:8]).note == ""


# ---------------------------------------------------------------- anything at all

WORDS = st.sampled_from(
    [
        "question",
        "answer",
        "instruction",
        "output",
        "messages",
        "conversations",
        "role",
        "from",
        "content",
        "value",
        "user",
        "assistant",
    ]
)
CHARACTERS = st.characters()  # lone surrogates too
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(CHARACTERS, max_size=6)
    | WORDS
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(WORDS | st.text(CHARACTERS, max_size=3), inner, max_size=5)
    ),
)
SOUP = st.lists(
    st.sampled_from([*'",;[]{}:\n\r\t\0\ufeffa雨', "question", "answer"]), max_size=30
).map("".join)


def survives(path: Path, content: object, **settings: str) -> None:
    """A UserError, or pairs that go all the way."""
    try:
        pairs, dropped = read(path, content, **settings)
        assert len(pairs) + dropped.counts.total() == dropped.read
        kept = drop_repeats(pairs, dropped)
        split_pairs(kept, 0.2, 0.2, 1)
        leaks(kept)
        json.dumps(
            [[vars(pair) for pair in kept], dropped.examples], ensure_ascii=False, allow_nan=False
        ).encode("utf-8")
    except UserError as error:
        assert 0 < len(str(error)) < 2000


@given(
    document=ANYTHING,
    name=st.sampled_from(["a.json", "a.jsonl"]),
    system=st.none() | st.just("{question}"),
)
def test_any_json_gives_pairs_or_one_message(
    tmp_path_factory: pytest.TempPathFactory, document: object, name: str, system: str | None
) -> None:
    survives(tmp_path_factory.getbasetemp() / name, json.dumps(document), system=system)


@given(
    data=st.data(),
    rows=st.lists(
        st.fixed_dictionaries({"question": SCALARS, "answer": SCALARS}), min_size=1, max_size=4
    ),
    labels=st.none() | st.text(max_size=5),
)
def test_damaged_rows_give_pairs_or_one_message(
    tmp_path_factory: pytest.TempPathFactory,
    damage,
    data: st.DataObject,
    rows: list,
    labels: str | None,
) -> None:
    turns = [
        {
            "messages": [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": row["answer"]},
            ]
        }
        for row in rows
    ]
    survives(
        tmp_path_factory.getbasetemp() / "a.json",
        json.dumps(damage(data, {"data": data.draw(st.sampled_from([rows, turns]))})),
        labels=labels,
    )


@given(
    content=SOUP | st.binary(max_size=60),
    suffix=st.sampled_from(question_files.SUFFIXES),
    template=st.none() | SOUP,
)
def test_any_bytes_give_pairs_or_one_message(
    tmp_path_factory: pytest.TempPathFactory,
    content: str | bytes,
    suffix: str,
    template: str | None,
) -> None:
    survives(
        tmp_path_factory.getbasetemp() / f"a{suffix}", content, question=template, answer=template
    )
