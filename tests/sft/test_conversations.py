"""Records to conversations: layouts, templates, labels; rejected records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shuoshu.core.errors import UserError
from shuoshu.sft.pairs import Pair
from tests.sft.helpers import ROWS, parse, texts

TEMPLATES = {"question": "评论：{review} 是正面还是负面？", "answer": "{label}"}

# ---------------------------------------------------------------- layouts


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
        ({"question": "好吗？", "answer": True}, ["u: 好吗？", "a: true"]),
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
def test_known_columns_become_a_conversation(
    tmp_path: Path, record: dict, expected: list[str]
) -> None:
    pairs, rejected = parse(tmp_path / "a.json", [record])
    assert texts(pairs) == [expected] and not rejected.counts


def test_pair_question_is_everything_before_the_last_answer() -> None:
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
def test_record_without_a_valid_conversation_is_rejected_and_counted(
    tmp_path: Path, record: dict, reason: str
) -> None:
    pairs, rejected = parse(tmp_path / "a.json", [record, *ROWS])
    assert len(pairs) == 2 and rejected.counts == {reason: 1}
    assert rejected.examples[reason][0].startswith("a.json, row 1: ")


def test_last_question_without_an_answer_is_counted_in_a_note(tmp_path: Path) -> None:
    reply = {"role": "assistant", "content": "我。"}
    more = {"role": "user", "content": "还有谁？"}
    rows = [{"messages": [TURN, reply, more]}, {"messages": [TURN, reply]}]
    pairs, account = parse(tmp_path / "a.json", rows)
    assert texts(pairs) == [["u: 谁？", "a: 我。"]] * 2
    assert account.notes == [
        "in 1 conversation the last question has no answer and is left out,"
        " for example a.json, row 1: 还有谁？"
    ]


def test_replaced_system_message_is_counted_in_a_note(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "老"}, TURN, {"role": "assistant", "content": "我。"}]
    rows = [{"messages": turns, "system": system} for system in ("新", "老", None)]
    pairs, account = parse(tmp_path / "a.json", rows)
    assert [pair.messages[0]["content"] for pair in pairs] == ["新", "老", "老"]
    assert account.notes == [
        "in 1 conversation --system or the column system replaces the system message,"
        " for example a.json, row 1: 老"
    ]


def test_unknown_columns_are_shown_with_the_options_to_use(tmp_path: Path) -> None:
    rows = [{"context_text": "长" * 5000, "qas": [{"query": "谁？"}]}]
    with pytest.raises(
        UserError, match=r"(?s)row 1.*context_text: 长长.*qas: a list.*--question=.*--answer="
    ) as error:
        parse(tmp_path / "a.json", rows)
    assert len(str(error.value)) < 700
    rows = [{"context": "长", "question": "谁？", "answers": {"text": ["我"]}}]  # SQuAD's
    with pytest.raises(UserError, match=r"(?s)answers: an object.*must become columns of text"):
        parse(tmp_path / "a.json", rows)


@pytest.mark.parametrize(
    ("record", "settings", "unused"),
    [
        ({"question": "谁？", "answer": "我。"}, {}, []),
        ({"question": "谁？", "answer": "我。", "context": "长"}, {}, ["context"]),
        ({"question": "谁？", "answer": "我。", "n": 0, "list": [1]}, {}, ["n", "list"]),
        ({"question": "谁？", "answer": "我。", "a": None, "b": " ", "c": []}, {}, []),
        (
            {"question": "谁？", "answer": "我。", "split": "train", "fact": 1},
            {"group": "fact"},
            [],
        ),
        ({"prompt": "谁？", "completion": "我。", "input": "雨"}, {}, ["input"]),
        ({"query": "谁？", "response": "我。", "history": "无"}, {}, ["history"]),
        ({"query": "谁？", "response": "我。", "history": [["一", "二"]]}, {}, []),
        ({"review": "好", "label": 1, "hotel": "甲"}, TEMPLATES, ["hotel"]),
        ({"review": "好", "label": 1, "system": "短"}, TEMPLATES, ["system"]),
        (
            {"messages": [{**TURN, "id": 7}, {"role": "assistant", "content": "我。"}], "id": 1},
            {},
            ["id", "messages.id"],
        ),
    ],
)
def test_columns_that_are_not_used_are_counted(
    tmp_path: Path, record: dict, settings: dict, unused: list[str]
) -> None:
    pairs, account = parse(tmp_path / "a.json", [record, record], **settings)
    assert len(pairs) == 2 and account.unused == dict.fromkeys(unused, 2)


def test_other_scalar_fields_are_stored_with_the_pair(tmp_path: Path) -> None:
    row = {
        "question": "谁？",
        "answer": "我。",
        "Split": "Dev",
        "chapter": 3,
        "fact": " c01\ud800",
        "is_hard": False,
    }
    [pair], _ = parse(
        tmp_path / "a.json", [{**row, "none": None, "nan": float("nan"), "list": [1]}], group="fact"
    )
    assert (pair.split, pair.group, pair.source) == ("val", "c01�", "a.json, row 1")
    assert pair.extra == {"chapter": 3, "fact": "c01�", "is_hard": False}


def test_empty_group_field_means_no_group(tmp_path: Path) -> None:
    pairs, _ = parse(
        tmp_path / "a.csv", "question,answer,Fact\n谁？,我。,\n何时？,早上。,1\n", group="fact"
    )
    assert [pair.group for pair in pairs] == [None, "1"]


def test_lone_surrogates_are_replaced_everywhere(tmp_path: Path) -> None:
    row = {"question": "\udc00谁？", "answer": "\udfff", "sp\ud800": "\ud800", "\udbff": 1}
    [pair], rejected = parse(tmp_path / "a.json", [row, {"question": "\ud800"}])
    json.dumps([vars(pair), vars(rejected)], ensure_ascii=False).encode("utf-8")


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
def test_usual_names_of_splits_are_known(tmp_path: Path, value: str, split: str) -> None:
    assert parse(tmp_path / "a.json", [{**ROWS[0], "split": value}])[0][0].split == split
    assert parse(tmp_path / "a.json", [{**ROWS[0], "split": ""}])[0][0].split is None


@pytest.mark.parametrize("value", ["fold 3", 1])
def test_unknown_split_is_an_error_with_its_row(tmp_path: Path, value: object) -> None:
    with pytest.raises(UserError, match=rf"a\.json, row 2: the split {value}"):
        parse(tmp_path / "a.json", [{**ROWS[0], "split": "train"}, {**ROWS[1], "split": value}])


def test_number_of_5000_digits_stays_text(tmp_path: Path) -> None:
    pairs, _ = parse(
        tmp_path / "a.json", f'[{{"question": {"9" * 5000}, "answer": 12345678901234567890}}]'
    )
    assert texts(pairs) == [["u: " + "9" * 5000, "a: 12345678901234567890"]]


# ---------------------------------------------------------------- templates and labels


REVIEWS = "label,review\n1,很好{0}。\n0.0,不好。\n2,一般。\n,没有分。\n1,\n"


def test_templates_form_the_question_and_labels_replace_the_answer(tmp_path: Path) -> None:
    pairs, rejected = parse(
        tmp_path / "a.csv",
        REVIEWS,
        **TEMPLATES,
        labels="1=正面, 0=负面",
        system="你{{只}}答\\n两字",
    )
    asked = ["u: 评论：很好{0}。 是正面还是负面？", "u: 评论：不好。 是正面还是负面？"]
    assert texts(pairs) == [
        ["s: 你{只}答\n两字", asked[0], "a: 正面"],
        ["s: 你{只}答\n两字", asked[1], "a: 负面"],
    ]
    assert rejected.counts == {"not in --labels": 1, "empty": 2}
    assert rejected.examples["not in --labels"] == ["a.csv, row 4: 2"]


def test_templates_accept_text_booleans_and_finite_numbers_only(tmp_path: Path) -> None:
    rows = [
        {"review": "好", "label": label}
        for label in (1, 1.0, 0.5, "1", None, True, [1], {}, float("nan"))
    ] + [{"review": "好"}]
    pairs, rejected = parse(tmp_path / "a.json", rows, **TEMPLATES)
    assert [pair.answer for pair in pairs] == ["1", "1", "0.5", "1", "true"]
    assert rejected.counts == {"empty": 2, "wrong type": 3}


@pytest.mark.parametrize(
    "labels", ["true=正面,false=负面", "1=正面,0=负面", "True=正面,FALSE=负面"]
)
def test_labels_replace_booleans(tmp_path: Path, labels: str) -> None:
    rows = [{"review": "好", "label": value} for value in (True, False, "True", "false", 1, 0.0)]
    pairs, account = parse(tmp_path / "a.json", rows, **TEMPLATES, labels=labels)
    assert [pair.answer for pair in pairs] == ["正面", "负面"] * 3 and not account.counts


@pytest.mark.parametrize(
    ("values", "expected", "note"),
    [
        (
            [1, "1.0", " 1", True, 0, "0.0", "0", False],
            ["1"] * 4 + ["0"] * 4,
            "equal labels are one label: 1.0 → 1 (10 rows), true → 1 (10 rows),"
            " 0.0 → 0 (10 rows), false → 0 (10 rows)",
        ),
        ([True, False], ["true", "false"], None),
        (["1.0", "2.0"], ["1.0", "2.0"], None),
        (["1", "1.0", "好"], ["1", "1.0", "好"], None),  # not all are numbers
        (["1", "1.0"], ["1", "1.0"], None),  # one label is no closed set
    ],
)
def test_equal_labels_of_a_closed_set_become_one(
    tmp_path: Path, values: list, expected: list[str], note: str | None
) -> None:
    rows = [{"review": f"第{n}间", "label": value} for value in values for n in range(10)]
    pairs, account = parse(tmp_path / "a.json", rows, **TEMPLATES)
    assert [pair.answer for pair in pairs[::10]] == expected
    assert account.notes == ([note] if note else [])


def test_answers_that_are_free_numbers_never_change(tmp_path: Path) -> None:
    rows = [{"question": f"第{n}题", "answer": f"{n % 30}.0"} for n in range(300)]
    rows += [{"question": "末题", "answer": "7"}]
    pairs, account = parse(tmp_path / "a.json", rows)
    assert [pair.answer for pair in pairs] == [row["answer"] for row in rows] and not account.notes


@pytest.mark.parametrize("name", ["a:b", "a!r", "a.b", "a[0]", "两 个 字", "0", "?=,"])
def test_column_with_any_name_can_be_used_in_a_template(tmp_path: Path, name: str) -> None:
    rows = [{name: "雨", "label": "停"}]
    pairs, _ = parse(
        tmp_path / "a.json", rows, question=f"{{{{{{{name}}}}}}}\\n{{{name}}}？", answer="{label}"
    )
    assert texts(pairs) == [["u: {雨}\n雨？", "a: 停"]]


def test_exact_column_name_wins_over_other_case(tmp_path: Path) -> None:
    rows = [{"text": "一", "Text": "二", "TEXT": "三", "Label": "四"}]
    assert texts(
        parse(tmp_path / "a.json", rows, question="{text}{Text}{TEXT}", answer="{label}")[0]
    ) == [["u: 一二三", "a: 四"]]


def test_templates_override_known_columns_and_the_records_system_message(tmp_path: Path) -> None:
    row = {"question": "谁？", "answer": "我。", "hint": "短", "system": "老"}
    assert texts(
        parse(tmp_path / "a.json", [row], question="{hint}：{question}", answer="{answer}")[0]
    ) == [["u: 短：谁？", "a: 我。"]]
    assert texts(parse(tmp_path / "a.json", [row], system="新{hint}")[0]) == [
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
def test_braces_accept_a_column_name_only(tmp_path: Path, question: str) -> None:
    with pytest.raises(UserError, match="--question"):
        parse(tmp_path / "a.csv", REVIEWS, question=question, answer="{label}")


@pytest.mark.parametrize(
    "question", ["{", "}", "a {review", "{review}}", "{{review}", "{{review}}}"]
)
def test_brace_without_a_partner_is_named(tmp_path: Path, question: str) -> None:
    with pytest.raises(UserError, match=r"--question: a [{}] has no partner in .*for a brace"):
        parse(tmp_path / "a.csv", REVIEWS, question=question, answer="{label}")


def test_unknown_column_error_lists_the_columns(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.csv.*label, review"):
        parse(tmp_path / "a.csv", REVIEWS, question="{text}", answer="{label}")
    with pytest.raises(UserError, match=r"--group.*label, review"):
        parse(tmp_path / "a.csv", REVIEWS, **TEMPLATES, group="author")
    with pytest.raises(UserError, match="go together"):
        parse(tmp_path / "a.csv", REVIEWS, question="{review}")


@pytest.mark.parametrize("labels", ["1", "1=", "=正面", "1=正面,", "1=正面,1.0=负面", ","])
def test_malformed_labels_are_refused(tmp_path: Path, labels: str) -> None:
    with pytest.raises(UserError, match="--labels"):
        parse(tmp_path / "a.csv", REVIEWS, **TEMPLATES, labels=labels)
