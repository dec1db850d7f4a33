"""Arbitrary and damaged question files give pairs or one UserError."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuoshu.core.errors import UserError
from shuoshu.sft import question_files
from shuoshu.sft.leaks import find_leaks
from shuoshu.sft.pairs import drop_repeats
from shuoshu.sft.splits import SplitRule, split_pairs
from tests.sft.helpers import parse

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


def assert_pairs_or_user_error(path: Path, content: object, **settings: str) -> None:
    """Parsing raises a UserError or gives pairs that all further steps accept."""
    try:
        pairs, rejected = parse(path, content, **settings)
        assert len(pairs) + rejected.counts.total() == rejected.read
        pairs = drop_repeats(pairs, rejected)
        assert len(pairs) + rejected.counts.total() == rejected.read
        split_pairs(pairs, SplitRule(0.2, 0.2, 1))
        find_leaks(pairs)
        json.dumps(
            [[vars(pair) for pair in pairs], rejected.examples], ensure_ascii=False, allow_nan=False
        ).encode("utf-8")
    except UserError as error:
        assert 0 < len(str(error)) < 2000


@given(
    document=ANYTHING,
    name=st.sampled_from(["a.json", "a.jsonl"]),
    system=st.none() | st.just("{question}"),
)
def test_any_json_gives_pairs_or_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, document: object, name: str, system: str | None
) -> None:
    assert_pairs_or_user_error(
        tmp_path_factory.getbasetemp() / name, json.dumps(document), system=system
    )


@given(
    data=st.data(),
    rows=st.lists(
        st.fixed_dictionaries({"question": SCALARS, "answer": SCALARS}), min_size=1, max_size=4
    ),
    labels=st.none() | st.text(max_size=5),
)
def test_damaged_rows_give_pairs_or_a_user_error(
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
    assert_pairs_or_user_error(
        tmp_path_factory.getbasetemp() / "a.json",
        json.dumps(damage(data, {"data": data.draw(st.sampled_from([rows, turns]))})),
        labels=labels,
    )


@given(
    content=SOUP | st.binary(max_size=60),
    suffix=st.sampled_from(question_files.QUESTION_SUFFIXES),
    template=st.none() | SOUP,
)
def test_any_bytes_give_pairs_or_a_user_error(
    tmp_path_factory: pytest.TempPathFactory,
    content: str | bytes,
    suffix: str,
    template: str | None,
) -> None:
    assert_pairs_or_user_error(
        tmp_path_factory.getbasetemp() / f"a{suffix}", content, question=template, answer=template
    )
