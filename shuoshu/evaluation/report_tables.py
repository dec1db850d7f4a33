"""The tables and the verdict of report.html, as rows of formatted values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from shuoshu.evaluation.html import finite_number
from shuoshu.evaluation.measure_names import (
    AUTO_PREFIX,
    BASELINES,
    MEASURES,
    QUOTE_PREFIX,
    REFERENCE_PREFIX,
    TOGETHER_PREFIX,
    Bilingual,
    measure_of,
    split_label,
)

# The verdict is about the first one measured.
MAIN_MEASURES = ("accuracy", "list_f1", "rouge_l", "perplexity")
SIGNIFICANCE = {
    "same": ("≈ 无明显差别", "≈ no clear difference"),
    "better": ("▲ 更好", "▲ better"),
    "different": ("≠ 不同", "≠ differs"),
    "worse": ("▼ 更差", "▼ worse"),
}


class Cell(NamedTuple):
    value: str
    interval: str = ""
    significance: Bilingual | None = None


class TableRow(NamedTuple):
    label: Bilingual
    cells: list[Cell]
    note: Bilingual | None = None
    is_baseline: bool = False


def format_value(value: object, form: str, sign: str = "") -> str:
    """A number in this format; — for any other value. `sign` "+" also marks positive numbers."""
    number = finite_number(value)
    if number is None:
        return "—"
    text = f"{100 * number:{sign}.1f}%" if form == "%" else f"{number:{sign}{form}}"
    return text.replace("-", "−")


def format_interval(entry: dict, form: str, sign: str = "") -> str:
    """[low–high]; empty if the entry has no interval."""
    low, high = (format_value(entry.get(key), form, sign) for key in ("low", "high"))
    if "—" in (low, high):
        return ""
    return f"[{low}{', ' if sign else '–'}{high}]"


def cell(
    entry: dict | None, form: str, sign: str = "", significance: Bilingual | None = None
) -> Cell:
    entry = entry or {}
    value = format_value(entry.get("value"), form, sign)
    return Cell(value, format_interval(entry, form, sign), significance)


def split_baseline_prefix(name: str) -> tuple[str, str]:
    """(prefix, measure) of a baseline's measure, ("", name) of any other."""
    if name not in MEASURES:
        for prefix in BASELINES:
            if name.startswith(prefix) and name.removeprefix(prefix) in MEASURES:
                return prefix, name.removeprefix(prefix)
    return "", name


def sort_measures(names: Iterable[str]) -> list[str]:
    """In the order of MEASURES, each followed by its baselines; unknown ones last."""
    order = [prefix + name for name in MEASURES for prefix in ("", *BASELINES)]
    places = {name: place for place, name in enumerate(order)}
    return sorted(set(names), key=lambda name: (places.get(name, len(order)), name))


def measure_rows(measures: dict[str, dict]) -> list[TableRow]:
    """A row per measure and a cell per split."""
    rows = []
    for name in sort_measures(name for split in measures.values() for name in split):
        prefix, base = split_baseline_prefix(name)
        measure = measure_of(base)
        (zh, en), note = measure.label, measure.note
        if prefix:
            zh_baseline, en_baseline = BASELINES[prefix]
            (zh, en), note = (f"{zh}（{zh_baseline}）", f"{en} ({en_baseline})"), None
        cells = [cell(split.get(name), measure.form) for split in measures.values()]
        rows.append(TableRow((zh, en), cells, note, bool(prefix)))
    return rows


def comparison_rows(before: dict, after: dict, changes: dict) -> list[TableRow]:
    """Before, after and difference on one split, without baselines and references."""
    rows = []
    for name in sort_measures(before.keys() & after.keys()):
        if split_baseline_prefix(name)[0] or name == "reference_length":
            continue
        label, form, *_ = measure_of(name)
        change = changes.get(name) or {}
        cells = [
            cell(before[name], form),
            cell(after[name], form),
            cell(change, form, "+", significance(name, change)),
        ]
        rows.append(TableRow(label, cells))
    return rows


def significance(name: str, change: dict) -> Bilingual | None:
    """Whether a paired difference is an improvement; "same" while its interval contains 0."""
    low, high = finite_number(change.get("low")), finite_number(change.get("high"))
    if low is None or high is None:
        return None
    if low <= 0 <= high:
        return SIGNIFICANCE["same"]
    better = measure_of(name).better
    if not better:
        return SIGNIFICANCE["different"]
    return SIGNIFICANCE["better" if (low > 0) == (better > 0) else "worse"]


def verdict(evaluation: dict, split: str) -> Bilingual:
    """One sentence: the main measure, compared with the strongest baseline and other models."""
    measures = evaluation["measures"].get(split, {})
    name = next((name for name in MAIN_MEASURES if name in measures), None)
    if name is None:
        command = f"python eval_metrics.py {evaluation['model']}"
        return f"还没有评测：{command}", f"Not measured yet: {command}"
    (zh, en), form, *_ = MEASURES[name]
    zh_split, en_split = split_label(split)
    value = " ".join(cell(measures[name], form)[:2]).strip()
    zh, en = f"{zh}（{zh_split}） {value}", f"{en} on {en_split} {value}"
    zh_gap, en_gap = gap_to_baseline(measures, name, form)
    zh, en = zh + zh_gap, en + en_gap
    for other in evaluation.get("compare") or []:
        if change := other.get("difference", {}).get(split, {}).get(name):
            value = " ".join(cell(change, form, "+")[:2]).strip()
            zh += f"；与 {other['model']} 相差 {value}"
            en += f"; {value} against {other['model']}"
    return zh + "。", en + "."


def gap_to_baseline(measures: dict, name: str, form: str) -> Bilingual:
    """The distance to the strongest baseline, as the continuation of a sentence."""
    value, low, high = (finite_number(measures[name].get(key)) for key in ("value", "low", "high"))
    baselines = [
        (baseline, prefix)
        for prefix in BASELINES
        if prefix not in (REFERENCE_PREFIX, TOGETHER_PREFIX, AUTO_PREFIX, QUOTE_PREFIX)
        and (baseline := finite_number(measures.get(prefix + name, {}).get("value"))) is not None
    ]
    if not baselines or value is None:
        return "", ""
    baseline, prefix = max(baselines)
    gap = format_value(abs(value - baseline), form)
    zh_gap, en_gap = gap.replace("%", " 个百分点"), gap.replace("%", " points")
    zh_name, en_name = BASELINES[prefix]
    zh = f"，比最强的基线（{zh_name}）{'高' if value >= baseline else '低'} {zh_gap}"
    side = "above" if value >= baseline else "below"
    en = f", {en_gap} {side} the strongest baseline ({en_name})"
    if low is not None and high is not None and low <= baseline <= high:
        zh, en = zh + "，差距在区间之内", en + ", a gap within the interval"
    return zh, en
