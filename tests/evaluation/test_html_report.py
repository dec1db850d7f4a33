"""report.html: complete in both languages, works offline, and safe from what its texts contain."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shuoshu.core.errors import REPO_ROOT
from shuoshu.evaluation.html_report import report_html
from shuoshu.evaluation.measure_names import BASELINES, MEASURES
from shuoshu.evaluation.report_answers import MAX_ANSWERS, mark_copies, worst_and_random

HOSTILE = "</style></script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;\x00\x1b[31m\x85\ud800"


def entry(value: float = 0.5) -> dict:
    return {"value": value, "low": value - 0.05, "high": value + 0.05}


EVALUATION = {
    "format": 1,
    "model": "out-sft",
    "step": 1215,
    "task": "questions",
    "date": "2026-11-21 12:00",
    "data": {"folder": "data/novella_qa"},
    "settings": {"stride": 128},
    "definitions": {"rouge_l": "longest common subsequence"},
    "measures": {
        "train": {"rouge_l": entry(0.99)},
        "test": {
            "rouge_l": entry(0.812),
            "lookup_joined_rouge_l": entry(0.729),
            "lookup_rouge_l": entry(0.52),
        },
    },
    "counts": {"test": {"questions": 162}},
    "compare": [
        {
            "model": "out-pretrain",
            "measures": {"test": {"rouge_l": entry(0.06)}},
            "difference": {"test": {"rouge_l": entry(0.75)}},
        }
    ],
    "classes": {
        "test": {
            "labels": ["正面", "负面"],
            "confusion": [[51, 3], [4, 67]],
            "per_class": {"正面": {"precision": 0.927, "recall": 0.944}},
        }
    },
}
ANSWER = {
    "split": "test",
    "row": 0,
    "question": "谁？",
    "reference": "阿迟。",
    "answer": "阿迟。",
    "rouge_l": 1.0,
    "char_f1": 1.0,
    "exact": True,
    "stop": "end",
}
ANSWERS = [
    {**ANSWER, "row": i, "question": f"第{i}问？", "rouge_l": i / 100, "copied": [[0, 2, "第一章"]]}
    for i in range(100)
]
RECORDS = [{"kind": "step", "step": i, "loss": 5 / i} for i in range(1, 50)]
RECORDS += [
    {
        "kind": "eval",
        "step": i,
        "val_loss": 6 / (i + 1),
        "val_rouge_l": i / 50,
        "val_exact_match": i / 60,
    }
    for i in range(0, 50, 10)
]
RUNS = [("out-sft", RECORDS)]


class Page(HTMLParser):
    """Parses a page: its tags, those that don't close in order, its addresses and visible text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open, self.wrong, self.tags, self.links, self.seen = [], [], [], [], []
        self.feed(page)
        self.close()
        self.wrong += self.open

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append(tag)
        self.links += [
            value
            for name, value in attributes
            if name in ("src", "href", "action", "data", "srcset", "poster")
        ]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & {*self.open}:
            self.seen.append(data)

    @property
    def text(self) -> str:
        return "".join(self.seen)


def append_everywhere(value: object, hostile: str) -> object:
    """The same structure with `hostile` appended to every text but keys, splits and stops."""
    if isinstance(value, dict):
        return {
            key: append_everywhere(item, hostile) if key not in ("split", "kind", "stop") else item
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return type(value)(append_everywhere(item, hostile) for item in value)
    return value + hostile if isinstance(value, str) else value


@pytest.fixture(scope="module")
def page() -> str:
    return report_html(EVALUATION, ANSWERS, RUNS)


def test_the_page_needs_no_network(page: str) -> None:
    assert not re.search(r"https?:|//|url\(|@import|src=|href=", page)
    assert Page(page).links == [] and "default-src 'none'" in page


def test_tags_close_in_the_order_they_were_opened(page: str) -> None:
    assert Page(page).wrong == []


def test_the_page_shows_every_section(page: str) -> None:
    shown = Page(page).text
    for part in (
        "ROUGE-L on test 0.812 [0.762–0.862], 0.083 above the strongest baseline",
        "+0.750 [+0.700, +0.800] against out-pretrain",
        "162 questions",
    ):
        assert part in shown
    for part in (
        "51 · 94%",
        "0.927",
        "stride",
        "longest common subsequence",
        "best 0.800 at step 40",
        "data/novella_qa",
        "▲ better",
    ):
        assert part in shown
    assert Page(page).tags.count("figure") == 3  # losses, answers, confusion


def test_every_label_is_in_both_languages(page: str) -> None:
    assert (
        len(re.findall(r'<span lang="zh">[^<]*</span><span lang="en">[^<]', page))
        == page.count('<span lang="zh">') - 1
    )  # the language switch


def test_every_measure_is_shown() -> None:
    names = [
        *MEASURES,
        *(prefix + name for prefix in BASELINES for name in ("rouge_l", "accuracy", "distinct_1")),
        "unheard_of",
        "lookup_unheard_of",
    ]
    values = {name: {"value": 1000.5 + i} for i, name in enumerate(names)}
    shown = Page(
        report_html({**EVALUATION, "measures": {"test": values}, "compare": []}, [], [])
    ).text
    for name, value in values.items():
        forms = [
            f"{value['value'] * 100:.1f}%",
            *(f"{value['value']:{form}}" for form in (",.2f", ".3f", ",.1f")),
        ]
        assert any(form in shown for form in forms), name
    assert "unheard_of" in shown and "lookup_unheard_of" in shown
    for measure in MEASURES.values():
        assert measure.label[1] in shown


def test_the_verdict_admits_a_gap_within_the_interval() -> None:
    near = {
        **EVALUATION,
        "measures": {
            "test": {
                "accuracy": entry(0.9),
                "majority_accuracy": entry(0.6),
                "linear_accuracy": entry(0.92),
            }
        },
        "compare": [],
    }
    shown = Page(report_html(near, [], [])).text
    value = "Accuracy on test 90.0% [85.0%–95.0%]"
    assert f"{value}, 2.0 points below the strongest baseline (the best linear model" in shown
    assert "a gap within the interval" in shown


@pytest.mark.parametrize(
    ("low", "high", "name", "significance"),
    [
        (0.1, 0.2, "perplexity", "worse"),
        (-0.1, 0.2, "perplexity", "no clear difference"),
        (0.1, 0.2, "copy_rate", "differs"),
    ],
)
def test_a_difference_is_judged_by_its_interval_and_its_measure(
    low: float, high: float, name: str, significance: str
) -> None:
    measures = {"test": {name: entry()}}
    compare = [
        {
            "model": "other",
            "measures": measures,
            "difference": {"test": {name: {"value": 0.1, "low": low, "high": high}}},
        }
    ]
    evaluation = {**EVALUATION, "measures": measures, "compare": compare}
    assert significance in Page(report_html(evaluation, [], [])).text


@pytest.mark.parametrize(
    "evaluation",
    [
        EVALUATION,
        {"model": "m", "measures": {}},
        {"model": "m", "measures": {"val": {"loss": {"value": None}}}},
    ],
)
@pytest.mark.parametrize("answers", [[], ANSWERS[:1], [{**ANSWER, "answer": "", "rouge_l": None}]])
@pytest.mark.parametrize(
    "runs", [[], [("empty", [])], [("one", [{"kind": "eval", "step": 0, "val_loss": 0.0}])]]
)
def test_missing_parts_are_left_out(evaluation: dict, answers: list[dict], runs: list) -> None:
    assert Page(report_html(evaluation, answers, runs)).wrong == []


def test_continuations_are_shown_without_scores() -> None:
    row = {
        "split": "val",
        "row": 3,
        "question": "夜深了，",
        "reference": "雨还在下。",
        "answer": "他还在走。",
        "stop": "length",
    }
    shown = Page(
        report_html(
            {**EVALUATION, "task": "text", "measures": {"val": {"perplexity": {"value": 12.345}}}},
            [row],
            [],
        )
    ).text
    assert all(
        part in shown
        for part in (
            "Prompt",
            "True continuation",
            "他还在走。",
            "cut at the length limit",
            "Perplexity on validation 12.35",
            "1 at random",
        )
    )
    assert "worst" not in shown


# ---------------------------------------------------------------- hostile texts


def test_hostile_text_is_shown_as_text(page: str) -> None:
    answers = [
        {**row, "closer_to": "x", "probabilities": {"阿迟。": 0.5}, "others": {"other": "y"}}
        for row in ANSWERS[:30]
    ]
    safe = report_html(EVALUATION, answers, RUNS)
    bad = report_html(*append_everywhere((EVALUATION, answers, RUNS), HOSTILE))
    bad.encode("utf-8")
    assert Page(bad).wrong == [] and Page(bad).tags == Page(safe).tags
    assert "<script>alert(1)</script>" in Page(bad).text and bad.count("<script>") == 1
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", bad) and "␛[31m" in bad


@settings(max_examples=40, deadline=None)
@given(text=st.text(st.characters(exclude_categories=[])))
def test_any_text_leaves_the_page_well_formed(text: str) -> None:
    evaluation = copy.deepcopy(EVALUATION) | {
        "model": text,
        "settings": {text: [text]},
        "measures": {text: {text: entry()}, "test": {"loss": entry()}},
    }
    built = report_html(
        evaluation,
        [{**ANSWER, "answer": text, "copied": [[0, len(text), text]]}],
        [(text, RECORDS)],
    )
    built.encode("utf-8")
    assert Page(built).wrong == []


# ---------------------------------------------------------------- answers


@given(text=st.text("阿迟<&\"'雨\n夜", max_size=30), cuts=st.lists(st.integers(0, 30), max_size=6))
def test_exactly_the_copied_spans_are_marked(text: str, cuts: list[int]) -> None:
    cuts = sorted({min(cut, len(text)) for cut in cuts})
    spans = [[a, b, None] for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    marked = mark_copies(text, spans)
    assert [part for part, number in marked.segments if number] == [text[a:b] for a, b, _ in spans]
    assert "".join(part for part, _ in marked.segments) == text


def test_a_copied_span_names_its_source() -> None:
    answer = {**ANSWER, "copied": [[0, 2, "迟雁记 · 第三章"]]}
    page = report_html(EVALUATION, [answer], [])
    assert "<mark>阿迟<sup>1</sup></mark>。</div>" in page
    assert "1 迟雁记 · 第三章" in Page(page).text


def test_an_empty_answer_is_named() -> None:
    assert "(empty)" in report_html(EVALUATION, [{**ANSWER, "answer": ""}], [])


@pytest.mark.parametrize("spans", [[[2, 9, None], [0, 3, None]], [[-2, 99, None]], [[5, 2, None]]])
def test_overlapping_and_out_of_range_spans_lose_no_text(spans: list) -> None:
    assert "".join(part for part, _ in mark_copies("一二三四五", spans).segments) == "一二三四五"


def test_the_random_answers_are_none_of_the_worst() -> None:
    worst, others = worst_and_random(ANSWERS[::-1], seed=1)
    assert [answer["row"] for answer in worst] == list(range(MAX_ANSWERS))
    assert len(others) == MAX_ANSWERS and not {answer["row"] for answer in others} & set(
        range(MAX_ANSWERS)
    )


def test_the_random_answers_are_repeatable_by_seed() -> None:
    assert (
        worst_and_random(ANSWERS, 1) == worst_and_random(ANSWERS, 1) != worst_and_random(ANSWERS, 2)
    )
    assert report_html(EVALUATION, ANSWERS, RUNS, seed=3) == report_html(
        EVALUATION, ANSWERS, RUNS, seed=3
    )


def test_a_confidently_wrong_label_is_worse_than_a_doubtful_one() -> None:
    rows = [
        {**ANSWER, "row": i, "reference": "正", "probabilities": {"正": p, "负": 1 - p}}
        for i, p in enumerate((0.4, 0.9, 0.1))
    ]
    assert [answer["row"] for answer in worst_and_random(rows, 0)[0]] == [2, 0, 1]


def test_the_report_needs_no_torch_numpy_or_matplotlib() -> None:
    check = "import sys; import shuoshu.evaluation.html_report; sys.exit(bool({'torch', 'numpy', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], cwd=REPO_ROOT).returncode == 0
