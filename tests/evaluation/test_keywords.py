"""Sets of list items are measured as scikit-learn does; lists are picked from texts by TF-IDF."""

from __future__ import annotations

import math
import random
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score
from sklearn.preprocessing import MultiLabelBinarizer

from shuoshu.evaluation.keywords import KeywordMeasures, set_scores
from shuoshu.evaluation.list_picker import ListPicker, Picking
from shuoshu.evaluation.measure_set import MeasureSet
from shuoshu.generation.answers import Question
from tests.evaluation.helpers import copy_model, measure, prepare_questions, read_answers, value


def question(text: str, reference: str) -> Question:
    return Question([{"role": "user", "content": text}], reference, [], 0, range(0), text)


# ---------------------------------------------------------------- measures


@pytest.mark.parametrize(
    ("answer", "reference", "scores"),
    [
        ("abc", "abcd", (1, 3 / 4, 6 / 7)),
        ("abxy", "ab", (1 / 2, 1, 2 / 3)),
        ("xy", "ab", (0, 0, 0)),
        ("", "ab", (0, 0, 0)),
        ("ab", "", (0, 0, 0)),
        ("", "", (1, 1, 1)),
    ],
)
def test_scores_of_a_list_equal_a_computation_by_hand(answer, reference, scores) -> None:
    assert set_scores(answer, reference) == pytest.approx(scores)


def test_means_over_the_questions_equal_scikit_learn() -> None:
    draw = random.Random(5)
    answers, references = (
        [draw.sample("abcdefgh", draw.randint(1, 5)) for _ in range(50)] for _ in range(2)
    )
    measures = MeasureSet(seed=0)
    asked = [question("", " ; ".join(items).upper()) for items in references]
    lists = KeywordMeasures.choose(";", asked, [])
    by_row = lists.add(measures, [";".join(items + items[:1]) for items in answers], asked)
    binarizer = MultiLabelBinarizer(classes=list("abcdefgh"))
    actual, predicted = binarizer.fit_transform(references), binarizer.transform(answers)
    for name, scorer in (
        ("list_precision", precision_score),
        ("list_recall", recall_score),
        ("list_f1", f1_score),
    ):
        expected = scorer(actual, predicted, average="samples")
        entry = measures.measures[name]
        assert entry["value"] == pytest.approx(expected)
        assert entry["low"] < expected < entry["high"]
    assert np.mean(by_row) == pytest.approx(measures.measures["list_f1"]["value"])


# ---------------------------------------------------------------- picked lists


TEXTS = [
    "Old maps of the river. The river floods the harbour.",
    "A lamp on the river boat; the boat and the lamp.",
    "The harbour pilot waits for the tide.",
]
LISTS = [["river", "old maps"], ["lamp"], ["tide", "harbour pilot"]]
N_OTHERS = 60  # texts of little words, so that the words of TEXTS are rare


def make_picker(lists: list[list[str]]) -> ListPicker:
    return ListPicker([*TEXTS, *["the sky of a day"] * N_OTHERS], [*lists, *[[]] * N_OTHERS])


def test_terms_are_known_items_and_phrases_without_little_words_at_their_ends() -> None:
    terms = make_picker([*LISTS[:2], ["of the river", "river mud"]]).count_terms(
        "The HARBOUR pilot of the\nriver: the harbour-pilot of the river"
    )
    assert terms["of the river"] == 2  # an item
    assert terms["harbour pilot"] == terms["harbour-pilot"] == 1
    assert terms["river"] == 2 and terms["pilot of the"] == 0
    assert not any(":" in term or term.startswith("the ") for term in terms)


def test_a_term_is_scored_by_tfidf_and_by_the_lists_that_have_it() -> None:
    picker = make_picker(LISTS)
    counts = picker.count_terms("the boat, the boat on the river, a quay")
    plain = picker.rank(counts, Picking(3, weighted=False))
    n = len(TEXTS) + N_OTHERS + 1
    tfidf = {
        "boat": 2 * (math.log(n / 2) + 1),
        "quay": math.log(n) + 1,
        "river": math.log(n / 3) + 1,
    }
    expected = sorted(tfidf, key=tfidf.get, reverse=True)
    assert [term for term in plain if term in tfidf] == expected == ["boat", "quay", "river"]
    counts = picker.count_terms("the boat and a lamp")  # both are in one training text
    for weighted, terms in ((False, ["boat", "lamp"]), (True, ["lamp", "boat"])):
        ranked = picker.rank(counts, Picking(2, weighted=weighted))
        assert [term for term in ranked if term in terms] == terms


def test_only_items_of_training_lists_are_picked_if_so_chosen() -> None:
    picker = ListPicker(TEXTS, LISTS)
    assert set(picker.pick("A new quay, a lamp and old  Maps.", Picking(9, items_only=True))) == {
        "lamp",
        "old maps",
    }
    assert picker.pick("A new quay.", Picking(9, items_only=True)) == []


def test_items_are_found_in_a_text_without_spaces() -> None:
    picker = ListPicker(["渡口有一盏油灯。", "雨夜的渡口。"], [["油灯", "渡口"], ["雨夜"]])
    assert set(picker.pick("又是雨夜，油灯灭了。", Picking(5))) == {"雨夜", "油灯"}


def test_the_picking_is_the_best_one_on_the_validation_texts() -> None:
    words = [f"word{n}" for n in range(20)]
    training = [question(f"{word} new{n} rare{n}", word) for n, word in enumerate(words * 2)]
    new = [question(f"{word} gem{n}", f"gem{n}") for n, word in enumerate(words)]
    assert KeywordMeasures.choose(";", training, new).picking == Picking(1)
    asked = [question(f"{a} unseen {b} strange", f"{a}; {b}") for a, b in pairwise(words)]
    lists = KeywordMeasures.choose(";", training, asked)
    assert lists.picking == Picking(2, items_only=True)
    assert lists.definition.endswith("(chosen on 19 validation questions)")
    measures = MeasureSet(seed=0)
    lists.add(measures, ["word0"] * 19, asked)
    lists.add_baseline(measures, asked)
    assert measures.measures["tfidf_list_f1"]["value"] == 1
    above = measures.measures["above_tfidf_list_f1"]["value"]
    assert above == pytest.approx(measures.measures["list_f1"]["value"] - 1) and above < -0.9


def test_without_validation_questions_the_picking_is_as_long_as_the_training_lists() -> None:
    training = [question(text, ";".join(items)) for text, items in zip(TEXTS, LISTS, strict=True)]
    lists = KeywordMeasures.choose(";", training, [])
    assert lists.picking == Picking(2) and lists.definition.endswith("(the default)")


# ---------------------------------------------------------------- eval_metrics.py


@pytest.fixture(scope="module")
def measured(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    folder = tmp_path_factory.mktemp("lists")
    words = ["油灯", "渡口", "雨夜", "船票", "药铺", "缆绳"]
    rows = [
        {"question": f"第{n}回：{'、'.join(three)}", "answer": f"{'；'.join(three[::-1])}。"}
        for n, three in enumerate([*combinations(words, 3)] * 2)
    ]
    data = prepare_questions(folder, "lists", rows, pretrained)
    out_dir = copy_model(pretrained, folder / "out")
    options = (f"--data={data}", f"--compare={pretrained}", "--max_new_tokens=4")
    return measure(out_dir, *options), out_dir


def test_lists_are_measured_beside_picked_ones(measured: tuple[dict, Path]) -> None:
    evaluation, out_dir = measured
    names = ("list_precision", "list_recall", "list_f1")
    assert {*names, *("tfidf_" + name for name in names)} <= evaluation["measures"]["test"].keys()
    assert value(evaluation, "test", "tfidf_list_f1") == 1
    model_f1 = value(evaluation, "test", "list_f1")
    assert value(evaluation, "test", "above_tfidf_list_f1") == pytest.approx(model_f1 - 1)
    assert "separated by ；" in evaluation["definitions"]["lists"]
    assert [row["list_f1"] for row in read_answers(out_dir)] == [model_f1] * 4
    assert evaluation["compare"][0]["difference"]["test"]["list_f1"]["value"] == 0


def test_the_report_is_about_the_lists(measured: tuple[dict, Path]) -> None:
    report = (measured[1] / "report.html").read_text(encoding="utf-8")
    assert "List F1 on test" in report and "below the strongest baseline (terms picked" in report
    assert "列表 F1（TF-IDF 挑选的词）" in report and "List F1 0.000" in report


def test_other_answers_have_no_measures_of_lists(evaluated) -> None:
    assert "list" not in " ".join(evaluated.evaluation["measures"]["test"])
    assert "lists" not in evaluated.evaluation["definitions"]
