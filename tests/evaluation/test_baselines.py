"""The TF-IDF look-ups find the nearest question and are as strong as they can be."""

from __future__ import annotations

import json

import numpy as np
import pytest

from shuoshu.core.command_settings import EvalSettings
from shuoshu.core.errors import REPO_ROOT
from shuoshu.evaluation import baselines
from shuoshu.evaluation.baselines import LOOKUPS, VARIANTS, Lookups, lookup_documents
from shuoshu.generation.answers import Question

QUESTIONS = [
    "沈砚在渡口等谁？",
    "渡口等着沈砚的人是谁？",
    "顾三娘的药铺在哪里？",
    "药铺开在哪条街？",
]
ANSWERS = ["老船夫。", "老船夫。", "在城南。", "在城南。"]
BY_CHARACTER = VARIANTS[0]


def look_up(
    name: str, questions: list[str], answers: list[str], asked: list[str], variant=BY_CHARACTER
) -> list[str]:
    return baselines.look_up(*lookup_documents(name, questions, answers), asked, variant)


def question(text: str, reference: str) -> Question:
    return Question([{"role": "user", "content": text}], reference, [], 0, range(0), text)


@pytest.mark.parametrize("name", LOOKUPS)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_lookup_gives_the_answer_of_the_nearest_question(name, variant):
    asked = ["谁在渡口等沈砚？", "顾三娘把药铺开在哪里？", *QUESTIONS]
    found = look_up(name, QUESTIONS, ANSWERS, asked, variant)
    assert found == ["老船夫。", "在城南。", *ANSWERS]


@pytest.mark.parametrize("name", LOOKUPS)
def test_a_lookup_without_questions_or_documents_is_empty(name):
    assert look_up(name, QUESTIONS, ANSWERS, []) == []
    assert look_up(name, [], [], ["甲"]) == [""]


def test_without_any_text_a_lookup_is_empty():
    assert look_up("lookup_", [""], ["乙"], ["甲"]) == [""]
    assert look_up("lookup_joined_", [""], ["乙"], ["甲"]) == [""]


def test_joined_questions_of_an_answer_are_one_document():
    questions, answers = ["子丑寅", "卯辰巳", "子卯午未"], ["甲", "甲", "乙"]
    assert look_up("lookup_", questions, answers, ["卯子"]) == ["乙"]
    joined = ["子丑", "卯辰", "子午未申"]
    assert look_up("lookup_joined_", joined, answers, ["卯子"]) == ["甲"]


def test_a_lookup_with_answers_reads_the_answers():
    questions, answers = ["子丑？", "寅卯？"], ["午未。", "申酉。"]
    assert look_up("lookup_joined_", questions, answers, ["谁申酉？"]) == ["午未。"]
    assert look_up("lookup_answers_", questions, answers, ["谁申酉？"]) == ["申酉。"]


def test_lookups_in_blocks_give_the_same_answers():
    random = np.random.default_rng(2)
    words = ["".join(random.choice(list("子丑寅卯辰巳午未申酉戌亥"), 9)) for _ in range(3000)]
    answers = [str(number) for number in range(3000)]
    asked = [words[i] for i in random.permutation(3000)[:2900]]
    assert len(asked) * len(words) > baselines.MAX_SIMILARITIES
    expected = [answers[words.index(word)] for word in asked]
    assert look_up("lookup_", words, answers, asked, VARIANTS[2]) == expected


# ---------------------------------------------------------------- chosen on validation


# The order of the characters decides: only pairs of characters tell the questions apart.
ORDERED = [question("子丑寅", "甲"), question("寅丑子", "乙"), question("丑子寅", "丙")]


def test_the_variant_is_the_best_one_on_the_validation_questions():
    asked = [question("午寅丑子", "乙"), question("午丑子寅", "丙")]
    lookups = Lookups.choose(EvalSettings(), ORDERED, asked)
    assert all(variant.max_ngram > 1 for variant in lookups.variants.values())
    for name, variant in lookups.variants.items():
        assert lookups.scores(EvalSettings(), name, variant, asked) == [1.0, 1.0]
    assert lookups.definition.startswith("TF-IDF, chosen on 2 validation questions: lookup: 1 to 2")


def test_without_validation_questions_the_variant_is_the_default():
    lookups = Lookups.choose(EvalSettings(), ORDERED, [])
    assert set(lookups.variants.values()) == {BY_CHARACTER}
    assert lookups.definition.startswith(
        "TF-IDF, the default: lookup: 1 character, logarithmic counts; lookup_joined: 1 character"
    )


def test_the_lookups_over_the_bundled_questions_are_as_strong_as_measured():
    """A weaker baseline would flatter the model."""
    rows = [
        row
        for path in sorted((REPO_ROOT / "data" / "novella_qa").glob("chapters-*.json"))
        for row in json.loads(path.read_text(encoding="utf-8"))
    ]
    training, validation, asked = (
        [question(row["question"], row["answer"]) for row in rows if row["split"] == split]
        for split in ("train", "val", "test")
    )
    lookups = Lookups.choose(EvalSettings(), training, validation)
    means = {
        name: np.mean(lookups.scores(EvalSettings(), name, variant, asked))
        for name, variant in lookups.variants.items()
    }
    expected = {"lookup_": 0.636, "lookup_joined_": 0.771, "lookup_answers_": 0.815}  # in README
    assert means == pytest.approx(expected, abs=0.001)
