"""The TF-IDF look-ups find the nearest question and are as strong as measured."""

from __future__ import annotations

import json

import numpy as np

from shuoshu.core.errors import REPO_ROOT
from shuoshu.evaluation import baselines
from tests.evaluation.helpers import (
    f1,
)

QUESTIONS = [
    "沈砚在渡口等谁？",
    "渡口等着沈砚的人是谁？",
    "顾三娘的药铺在哪里？",
    "药铺开在哪条街？",
]
ANSWERS = ["老船夫。", "老船夫。", "在城南。", "在城南。"]


def test_a_lookup_gives_the_answer_of_the_nearest_question():
    asked = ["谁在渡口等沈砚？", "顾三娘把药铺开在哪里？", *QUESTIONS]
    for look_up in (baselines.lookup_nearest, baselines.lookup_joined):
        assert look_up(QUESTIONS, ANSWERS, asked) == ["老船夫。", "在城南。", *ANSWERS]


def test_a_lookup_without_questions_or_documents_is_empty():
    for look_up in (baselines.lookup_nearest, baselines.lookup_joined):
        assert look_up(QUESTIONS, ANSWERS, []) == []
        assert look_up([], [], ["甲"]) == look_up([""], ["乙"], ["甲"]) == [""]


def test_joined_questions_of_an_answer_are_one_document():
    questions, answers = ["子丑寅", "卯辰巳", "子卯午未"], ["甲", "甲", "乙"]
    assert baselines.lookup_nearest(questions, answers, ["卯子"]) == ["乙"]
    assert baselines.lookup_joined(["子丑", "卯辰", "子午未申"], answers, ["卯子"]) == ["甲"]


def test_lookups_in_blocks_give_the_same_answers():
    random = np.random.default_rng(2)
    words = ["".join(random.choice(list("子丑寅卯辰巳午未申酉戌亥"), 9)) for _ in range(3000)]
    answers = [str(number) for number in range(3000)]
    asked = [words[i] for i in random.permutation(3000)[:2900]]
    assert len(asked) * len(words) > baselines.MAX_SIMILARITIES
    expected = [answers[words.index(word)] for word in asked]
    assert baselines.lookup_nearest(words, answers, asked) == expected


def test_the_lookups_are_as_strong_as_measured_before():
    rows = [
        row
        for path in sorted((REPO_ROOT / "data" / "novella_qa").glob("chapters-*.json"))
        for row in json.loads(path.read_text(encoding="utf-8"))
    ]
    training, asked = ([row for row in rows if row["split"] == split] for split in ("train", "val"))

    def score(look_up):
        answers = look_up(
            [row["question"] for row in training],
            [row["answer"] for row in training],
            [row["question"] for row in asked],
        )
        pairs = zip(answers, asked, strict=True)
        return np.mean([f1(answer, row["answer"]) for answer, row in pairs])

    # Plain counts instead of their logarithms give 0.623 and 0.740.
    # A weaker baseline would flatter the model.
    assert score(baselines.lookup_nearest) >= 0.62
    assert score(baselines.lookup_joined) >= 0.76
