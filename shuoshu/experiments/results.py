"""The figures of an experiment: means over the folds, and paired differences over all rows."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from shuoshu.core.errors import UserError
from shuoshu.core.files import error_reason, read_json
from shuoshu.core.run_log import RunLog
from shuoshu.evaluation.intervals import mcnemar, paired_difference
from shuoshu.experiments.plan import ExperimentCell, ExperimentPlan

MEASURED = {"accuracy": "accuracy", "macro_f1": "macro-F1", "log_loss": "log-loss"}
# Who answers, and how the names of its measures begin in eval.json.
PREFIXES = {"model": "", "linear": "linear_", "together": "together_", "majority": "majority_"}
BEFORE = "before"  # the model that was fine-tuned; its measures are those of --compare
COMPARED = (("model", "linear"), ("together", "linear"), ("model", BEFORE))

Values = dict[str, float]


class Estimate(NamedTuple):
    """A mean over folds."""

    mean: float
    error: float | None  # its standard error; None with a single fold


@dataclass
class FoldResult:
    """What was measured on one fold with one prompt."""

    fold: int
    rows: int
    seconds: float | None  # of the training
    measures: dict[str, Values]  # by who answers
    right: dict[str, list[bool]]  # by who answers, for each row


def mean_over_folds(values: Sequence[float]) -> Estimate:
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    error = None if spread is None else spread / math.sqrt(len(values))
    return Estimate(float(np.mean(values)), error)


# ---------------------------------------------------------------- reading


def read_cell(cell: ExperimentCell) -> FoldResult:
    """The measures of a finished cell; UserError if its files are damaged."""
    try:
        evaluation = read_json(cell.folder / "eval.json")
        own = evaluation["measures"]["test"]
        measures = {who: _figures(own, prefix) for who, prefix in PREFIXES.items()}
        if evaluation["compare"]:
            measures[BEFORE] = _figures(evaluation["compare"][0]["measures"]["test"], "")
        text = (cell.folder / "eval_answers.jsonl").read_text(encoding="utf-8")
        # Not splitlines(): a text may hold other line ends, such as U+2028.
        rows = [json.loads(line) for line in text.split("\n") if line]
        right = {who: _right(rows, who) for who in (BEFORE, *PREFIXES)}
        measures, right = ({k: v for k, v in d.items() if v} for d in (measures, right))
        ends = RunLog(cell.folder / "log.jsonl").read("end")
        seconds = ends[-1].get("seconds") if ends else None
        return FoldResult(cell.fold, len(rows), seconds, measures, right)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(
            f"the results in {cell.folder} are damaged ({error_reason(error)}): remove that folder,"
            " and the same command measures it again"
        ) from None


def _figures(measures: dict, prefix: str) -> Values:
    """The values of the measures that are there."""
    found = {name: measures.get(prefix + name) for name in MEASURED}
    return {name: float(entry["value"]) for name, entry in found.items() if entry}


def _right(rows: Sequence[dict], who: str) -> list[bool]:
    """Whether each row's label is right; empty if the rows don't have that label."""
    labels = [_label(row, who) for row in rows]
    if None in labels:
        return []
    return [label == row["reference"] for label, row in zip(labels, rows, strict=True)]


def _label(row: dict, who: str) -> str | None:
    """The label of a row of eval_answers.jsonl."""
    if who == BEFORE:
        return next(iter(row.get("others", {}).values()), None)
    probabilities = row.get(PREFIXES[who] + "probabilities")
    return max(probabilities, key=probabilities.get) if probabilities else None


# ---------------------------------------------------------------- the whole


def collect(plan: ExperimentPlan) -> dict:
    """The content of results.json: for each prompt its folds, means and differences."""
    prompts: dict[int, dict] = {}
    results: dict[int, list[FoldResult]] = {}
    for cell in plan.cells:
        prompts.setdefault(cell.prompt, {"prompt": cell.prompt, "question": cell.question})
        folds = results.setdefault(cell.prompt, [])
        if cell.is_measured():
            folds.append(read_cell(cell))
    for number, folds in results.items():
        prompts[number] |= {
            "folds": [
                {"fold": r.fold, "rows": r.rows, "training_seconds": r.seconds, **r.measures}
                for r in folds
            ],
            "means": _means(folds),
            "differences": _differences(folds),
            "to_first_prompt": _to_first_prompt(folds, results[1]) if number > 1 else {},
        }
    return {
        "format": 1,
        "measured": sum(map(len, results.values())),
        "planned": len(plan.cells),
        "prompts": list(prompts.values()),
    }


def _means(folds: Sequence[FoldResult]) -> dict:
    """{who answers: {measure: mean and standard error}}, of what all folds have."""
    means: dict[str, dict] = {}
    for who in (BEFORE, *PREFIXES):
        for name in MEASURED:
            values = [fold.measures.get(who, {}).get(name) for fold in folds]
            if values and None not in values:
                means.setdefault(who, {})[name] = mean_over_folds(values)._asdict()
    return means


def _differences(folds: Sequence[FoldResult]) -> list[dict]:
    """The paired comparisons of those who answer the same rows."""
    differences = []
    for first, second in COMPARED:
        pairs = [(f.measures.get(first, {}), f.measures.get(second, {})) for f in folds]
        if by_fold := _difference_by_fold(pairs):
            rows = _difference_by_row(folds, first, second)
            differences.append({"of": first, "to": second, **by_fold, **rows})
    return differences


def _to_first_prompt(folds: Sequence[FoldResult], first: Sequence[FoldResult]) -> dict:
    """The model's difference to the one with the first prompt, over the folds that both have."""
    others = {fold.fold: fold.measures.get("model", {}) for fold in first}
    pairs = [(fold.measures.get("model", {}), others.get(fold.fold)) for fold in folds]
    return _difference_by_fold([pair for pair in pairs if pair[1] is not None])


def _difference_by_fold(pairs: Sequence[tuple[Values, Values]]) -> dict:
    """{measure: mean difference and its standard error}, of the measures that all pairs have."""
    names = [name for name in MEASURED if all(name in a and name in b for a, b in pairs)]
    if not pairs:
        return {}
    return {
        name: mean_over_folds([a[name] - b[name] for a, b in pairs])._asdict() for name in names
    }


def _difference_by_row(folds: Sequence[FoldResult], first: str, second: str) -> dict:
    """McNemar's test and the bootstrap interval of accuracy; empty without the rows' labels."""
    if not all(fold.right.get(first) and fold.right.get(second) for fold in folds):
        return {}
    a, b = ([value for fold in folds for value in fold.right[who]] for who in (first, second))
    test, (_, low, high) = mcnemar(a, b), paired_difference(a, b)
    return {"rows": len(a), **test._asdict(), "low": low, "high": high}
