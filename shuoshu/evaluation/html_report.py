"""report.html: the evaluation as one file for a browser, in Chinese and English, offline."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from shuoshu.core.terminal import shorten
from shuoshu.evaluation.charts import run_charts, sureness_charts
from shuoshu.evaluation.html import VISIBLE, bilingual, finite_number
from shuoshu.evaluation.measure_names import Bilingual, split_label
from shuoshu.evaluation.report_answers import answer_card, sampled_steps, worst_and_random
from shuoshu.evaluation.report_tables import (
    Cell,
    TableRow,
    comparison_rows,
    format_value,
    measure_rows,
    verdict,
)

LABEL_COLUMNS = 15  # of a label in the confusion matrix
DETAILS = {  # fields of eval.json at the end of the report
    "definitions": ("定义", "Definitions"),
    "data": ("数据", "Data"),
    "counts": ("数量", "Counts"),
    "settings": ("评测设置", "Settings of the evaluation"),
    "training": ("训练设置", "Settings of the training"),
    "machine": ("机器", "Machine"),
}


class Comparison(NamedTuple):
    """Two models on the same rows."""

    before: str
    after: str
    splits: list[tuple[Bilingual, list[TableRow]]]


class Confusion(NamedTuple):
    """The confusion matrix of one split, and each label's scores."""

    split: Bilingual
    labels: list[str]  # shortened
    rows: list[tuple[str, list[tuple[int, float]]]]  # actual label: count, share of the row
    by_label: list[TableRow]


def report_html(
    evaluation: dict, answers: list[dict], runs: list[tuple[str, list[dict]]], seed: int = 0
) -> str:
    """Renders eval.json, eval_answers.jsonl and the runs' logs (folder, records).

    `seed` chooses the random answers. What is missing in `evaluation` is left out.
    """
    main_split = next((s for s in ("test", "val") if s in evaluation["measures"]), "")
    main_split = main_split or next(iter(evaluation["measures"]), "")
    # The main split comes first: it is the column that a telephone shows.
    measures = {main_split: evaluation["measures"][main_split]} if main_split else {}
    measures |= evaluation["measures"]
    has_answers = list(dict.fromkeys(answer["split"] for answer in answers))
    answer_split = main_split if main_split in has_answers else next(iter(has_answers), "")
    worst, others = worst_and_random(
        [answer for answer in answers if answer["split"] == answer_split], seed
    )
    data = evaluation.get("data") or {}
    origin = evaluation.get("step", "—"), data.get("folder"), evaluation.get("date")
    page = report_template().render(
        model=evaluation["model"],
        origin=[value for value in origin if value not in (None, "")],
        verdict=verdict(evaluation, main_split),
        splits=[split_heading(split, evaluation) for split in measures],
        measures=measure_rows(measures),
        comparisons=comparisons(evaluation, measures),
        charts=[(name, run_charts(records)) for name, records in runs],
        sureness=sureness_charts(answers),
        confusions=confusions(evaluation),
        samples=sampled_steps(runs[0][1]) if runs else [],
        answer_split=split_label(answer_split),
        worst=[answer_card(answer) for answer in worst],
        others=[answer_card(answer) for answer in others],
        details=details(evaluation),
    )
    return page.translate(VISIBLE)


@cache
def report_template() -> Template:
    """report.html.j2 compiled, which takes a tenth of a second. It escapes every value."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["both"] = lambda label: Markup(bilingual(*label))  # bilingual escapes
    return environment.get_template("report.html.j2")


def split_heading(split: str, evaluation: dict) -> tuple[Bilingual, Bilingual | None]:
    """A split's label and its number of questions, None for a text."""
    counts = (evaluation.get("counts") or {}).get(split, {})
    n_questions = finite_number(counts.get("questions"))
    if not n_questions:
        return split_label(split), None
    return split_label(split), (f"{n_questions:,.0f} 问", f"{n_questions:,.0f} questions")


def comparisons(evaluation: dict, measures: dict[str, dict]) -> list[Comparison]:
    result = []
    for other in evaluation.get("compare") or []:
        splits = []
        for split, before in other["measures"].items():
            changes = other.get("difference", {}).get(split, {})
            rows = comparison_rows(before, measures.get(split, {}), changes)
            splits.append((split_label(split), rows))
        result.append(Comparison(other["model"], evaluation["model"], splits))
    return result


def confusions(evaluation: dict) -> list[Confusion]:
    result = []
    forms = {"precision": ".3f", "recall": ".3f", "f1": ".3f", "support": ",.0f"}
    for split, classes in (evaluation.get("classes") or {}).items():
        labels = [shorten(label, LABEL_COLUMNS) for label in classes["labels"]]
        rows = []
        for label, counts in zip(labels, classes["confusion"], strict=True):
            rows.append((label, [(count, count / (sum(counts) or 1)) for count in counts]))
        by_label = []
        for label in classes["labels"]:
            scores = classes.get("per_class", {}).get(label, {})
            cells = [Cell(format_value(scores.get(name), form)) for name, form in forms.items()]
            by_label.append(TableRow((label, label), cells))
        result.append(Confusion(split_label(split), labels, rows, by_label))
    return result


def details(evaluation: dict) -> list[tuple[Bilingual, list[tuple[str, str]]]]:
    """The fields of DETAILS that eval.json has, as names and values."""
    result = []
    for field, label in DETAILS.items():
        values = [
            (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
            for name, value in (evaluation.get(field) or {}).items()
        ]
        if values:
            result.append((label, values))
    return result
