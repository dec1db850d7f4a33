"""A run's curves as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from shuoshu.evaluation.html import bilingual, escape_html, number

POINTS = 400  # of a curve, about


def points(records: Iterable[dict], kind: str, name: str) -> list[tuple[float, float]]:
    """(step, value) in order; of many those that keep the shape and lose no spike."""
    found = [(number(r.get("step")), number(r.get(name))) for r in records if r.get("kind") == kind]
    found = sorted((step, value) for step, value in found if step is not None and value is not None)
    size = math.ceil(4 * len(found) / POINTS) if len(found) > POINTS else 1
    parts = [found[i : i + size] for i in range(0, len(found), size)]
    return sorted(
        {
            p
            for part in parts
            for p in (
                part[0],
                part[-1],
                min(part, key=lambda p: p[1]),
                max(part, key=lambda p: p[1]),
            )
        }
    )


def ticks(values: Sequence[float]) -> list[float]:
    """Round numbers, the first not above and the last not below any value."""
    low, high = min(values), max(values)
    least = max(high - low, 1e-6 * abs(high), 1e-9) / 4
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)
    return [
        i * step
        for i in range(
            math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1) + 1
        )
    ]


def panel(unit: tuple[str, str], curves: list[tuple]) -> str:
    """Curves (class, name, points, min or max: which one is best) over the steps, and what they are."""
    curves = [curve for curve in curves if curve[2]]
    if not curves:
        return ""
    steps, values = ([point[i] for curve in curves for point in curve[2]] for i in (0, 1))
    first, last, ys, parts, keys = min(steps), max(steps), ticks(values), [], []

    def place(x: float, y: float) -> tuple[float, float]:
        return 54 + 400 * (x - first) / (last - first or 1), 222 - 204 * (y - ys[0]) / (
            ys[-1] - ys[0]
        )

    for y in ys:
        at = place(first, y)[1]
        parts.append(
            f'<path class="grid" d="M54 {at:.1f}h400"/><text x="48" y="{at + 4:.1f}" text-anchor="end">{y:.6g}</text>'
        )
    parts += [
        f'<text x="{place(x, 0)[0]:.1f}" y="242" text-anchor="middle">{x:,.6g}</text>'
        for x in ticks(steps)
        if first <= x <= last
    ]
    for kind, words, line, best in curves:
        parts.append(
            f'<path class="curve {kind}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in (place(*point) for point in line))}h0"/>'
        )
        key, extra = (
            f'<svg class="key" viewBox="0 0 26 10" aria-hidden="true"><path class="curve {kind}" d="M1 5h24"/></svg>',
            "",
        )
        if best:
            step, value = best(line, key=lambda point: point[1])
            x, y = place(step, value)
            parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
            extra = bilingual(
                f"，最佳 {value:.3f}（第 {step:,.0f} 步）",
                f", best {value:.3f} at step {step:,.0f}",
            )
        keys.append(f"<span>{key}{bilingual(*words)}{extra}</span>")
    name = escape_html(" · ".join(unit) + ": " + ", ".join(curve[1][1] for curve in curves))
    drawn = f'<svg viewBox="0 0 480 250" role="img" aria-label="{name}">{"".join(parts)}</svg>'
    return f'<figure><figcaption class="soft"><b>{bilingual(*unit)}</b> {"".join(keys)}</figcaption>{drawn}</figure>'


def run_panels(name: str, records: list[dict]) -> str:
    losses = [
        ("thin", ("训练", "training"), points(records, "step", "loss"), None),
        ("a", ("验证", "validation"), points(records, "eval", "val_loss"), min),
    ]
    named = (
        ("b", "val_rouge_l", ("ROUGE-L", "ROUGE-L")),
        ("c", "val_exact_match", ("完全一致", "exact match")),
        ("a", "val_accuracy", ("准确率", "accuracy")),
    )
    scores = [(kind, words, points(records, "eval", key), max) for kind, key, words in named]
    panels = panel(("损失", "Loss"), losses) + panel(("验证集回答", "Validation answers"), scores)
    return f'<h3>{escape_html(name)}</h3><div class="charts">{panels}</div>\n' if panels else ""
