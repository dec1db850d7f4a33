"""The curves of report.html: points, axes and paths in the units of an SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from shuoshu.core.parts import evenly
from shuoshu.evaluation.html import finite_number
from shuoshu.evaluation.measure_names import RIGHT, Bilingual, split_label

MAX_POINTS = 400  # of a curve, roughly
TICK_STEPS = 4  # on an axis, roughly
LEFT, TOP, WIDTH, HEIGHT = 54, 18, 400, 204  # the plot inside the SVG

Point = tuple[float, float]  # step, value


@dataclass
class Curve:
    style: str  # class in report.css
    label: Bilingual
    points: list[Point]
    pick_best: Callable | None = None  # min or max; None: no best point is marked
    first_best: int = 0  # the first step that may be the best


@dataclass
class DrawnCurve:
    style: str
    label: Bilingual
    path: str
    best: Point | None  # step, value
    best_at: Point | None  # x, y


@dataclass
class Chart:
    title: Bilingual
    y_ticks: list[tuple[str, str]]  # y, text
    x_ticks: list[tuple[str, str]]  # x, text
    curves: list[DrawnCurve]

    @property
    def description(self) -> str:
        return f"{' · '.join(self.title)}: {', '.join(curve.label[1] for curve in self.curves)}"


def run_charts(records: list[dict]) -> list[Chart]:
    """The charts of a run's log: losses, and the scores of the validation answers."""
    # An untrained model is never the best at labels, which alone have an accuracy.
    first_best = 1 if points(records, "eval", "val_accuracy") else 0
    losses = [
        Curve("thin", ("训练", "training"), points(records, "step", "loss")),
        Curve("a", ("验证", "validation"), points(records, "eval", "val_loss"), min, first_best),
    ]
    scores = [
        Curve(style, label, points(records, "eval", name), max, first_best)
        for style, name, label in (
            ("b", "val_rouge_l", ("ROUGE-L", "ROUGE-L")),
            ("c", "val_exact_match", ("完全一致", "exact match")),
            ("a", "val_accuracy", ("准确率", "accuracy")),
        )
    ]
    titles = ("损失", "Loss"), ("验证集回答", "Validation answers")
    charts = [chart(title, curves) for title, curves in zip(titles, (losses, scores), strict=True)]
    return [drawn for drawn in charts if drawn]


def sureness_charts(answers: list[dict]) -> list[Chart]:
    """How many answers are right among the surest ones, by split; empty without probabilities."""
    styles = {"test": "a", "val": "b", "untaught": "c", "train": "thin"}
    curves = [
        Curve(style, split_label(split), sureness_points(answers, split))
        for split, style in styles.items()
    ]
    title = (
        "横：作答的比例，最有把握的先答；纵：其中答对的比例",
        "Share right (up) among the surest answers (across: share answered)",
    )
    drawn = chart(title, curves)
    return [drawn] if drawn else []


def sureness_points(answers: list[dict], split: str) -> list[Point]:
    """(share answered, share right among these). Equally sure answers are given together."""
    pairs = [
        (finite_number(answer.get("probability")), finite_number(answer.get("auto_rouge_l")))
        for answer in answers
        if answer.get("split") == split
    ]
    pairs = sorted(((p, s >= RIGHT) for p, s in pairs if None not in (p, s)), reverse=True)
    curve, right = [], 0
    for number, (probability, is_right) in enumerate(pairs, 1):
        right += is_right
        if number == len(pairs) or pairs[number][0] < probability:
            curve.append((number / len(pairs), right / number))
    return [curve[n] for n in evenly(len(curve), MAX_POINTS)]


def points(records: Iterable[dict], kind: str, name: str) -> list[Point]:
    """A curve's points by step. A long curve is thinned but keeps its ends and its extremes."""
    pairs = [
        (finite_number(record.get("step")), finite_number(record.get(name)))
        for record in records
        if record.get("kind") == kind
    ]
    pairs = sorted((step, value) for step, value in pairs if step is not None and value is not None)
    if len(pairs) <= MAX_POINTS:
        return sorted(set(pairs))
    size = math.ceil(4 * len(pairs) / MAX_POINTS)  # a piece gives four points
    chosen = set()
    for start in range(0, len(pairs), size):
        piece = pairs[start : start + size]
        low, high = (pick(piece, key=lambda point: point[1]) for pick in (min, max))
        chosen |= {piece[0], piece[-1], low, high}
    return sorted(chosen)


def ticks(values: Sequence[float]) -> list[float]:
    """Round numbers at equal distances that enclose all values."""
    low, high = min(values), max(values)
    min_step = max(high - low, 1e-6 * abs(high), 1e-9) / TICK_STEPS
    power = 10.0 ** math.floor(math.log10(min_step))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= min_step)
    first = math.floor(low / step)
    last = max(math.ceil(high / step), first + 1)
    return [number * step for number in range(first, last + 1)]


def chart(title: Bilingual, curves: Sequence[Curve]) -> Chart | None:
    """Places curves on common axes; None if all are empty."""
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return None
    steps, values = ([point[axis] for curve in curves for point in curve.points] for axis in (0, 1))
    first, last, y_values = min(steps), max(steps), ticks(values)
    low, high = y_values[0], y_values[-1]

    def place(step: float, value: float) -> Point:
        x = LEFT + WIDTH * (step - first) / (last - first or 1)
        return x, TOP + HEIGHT - HEIGHT * (value - low) / (high - low)

    drawn = []
    for curve in curves:
        corners = "L".join(f"{x:.1f} {y:.1f}" for x, y in (place(*point) for point in curve.points))
        trained = [point for point in curve.points if point[0] >= curve.first_best]
        best = None
        if curve.pick_best and trained:
            best = curve.pick_best(trained, key=lambda point: point[1])
        # h0 makes a curve of one point visible.
        drawn.append(
            DrawnCurve(curve.style, curve.label, f"M{corners}h0", best, best and place(*best))
        )
    y_ticks = [(f"{place(first, value)[1]:.1f}", f"{value:.6g}") for value in y_values]
    x_ticks = [
        (f"{place(step, low)[0]:.1f}", f"{step:,.6g}")
        for step in ticks(steps)
        if first <= step <= last
    ]
    return Chart(title, y_ticks, x_ticks, drawn)
