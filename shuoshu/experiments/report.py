"""The results as tables, results.md and results.png."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from shuoshu.core.files import write_atomically, write_synced_text
from shuoshu.core.terminal import duration, shorten, table
from shuoshu.experiments.results import BEFORE, MEASURED, PREFIXES

TITLES = {
    BEFORE: "before training",
    "model": "model",
    "linear": "linear model",
    "together": "both together",
    "majority": "most frequent label",
}
COLOURS = {
    BEFORE: "#9aa7b5",
    "model": "#b3362c",
    "linear": "#2c6db3",
    "together": "#7aa874",
    "majority": "#c8a951",
}
NOTES = """\
± is the standard error of the mean over the folds; the folds' training rows overlap, so it is
rather too small. Of a difference, [ ] is the 95% bootstrap interval over all rows, each of which
is tested once, and p is from McNemar's exact test on them."""
MAX_QUESTION = 90  # columns of a prompt in the terminal
TextTable = list[list[str]]


def with_error(estimate: dict | None, signed: bool = False) -> str:
    """0.893 ± 0.004; empty for None."""
    if estimate is None:
        return ""
    mean, error = estimate["mean"], estimate["error"]
    text = f"{mean:+.3f}" if signed else f"{mean:.3f}"
    return text if error is None else f"{text} ± {error:.3f}"


def mean_rows(results: dict) -> TextTable:
    """The means as a table with a header."""
    means = [(prompt["prompt"], prompt["means"]) for prompt in results["prompts"]]
    names = [n for n in MEASURED if any(n in m for _, by_who in means for m in by_who.values())]
    rows = [["prompt", "answers of", *(MEASURED[name] for name in names)]]
    for number, by_who in means:
        for who in (BEFORE, *PREFIXES):
            if who in by_who:
                values = [with_error(by_who[who].get(name)) for name in names]
                rows.append([str(number), TITLES[who], *values])
    return rows


def difference_rows(results: dict) -> TextTable:
    """The differences as a table with a header; only the header if there are none."""
    rows = [["prompt", "difference", "accuracy", "over all rows", "p", "macro-F1"]]
    for prompt in results["prompts"]:
        number = str(prompt["prompt"])
        for entry in prompt["differences"]:
            title = f"{TITLES[entry['of']]} − {TITLES[entry['to']]}"
            interval = f"[{entry['low']:+.3f}, {entry['high']:+.3f}]" if "low" in entry else ""
            p = f"{entry['p_value']:.2g}" if "p_value" in entry else ""
            rows.append([number, title, *_two(entry, interval, p)])
        if first := prompt["to_first_prompt"]:
            rows.append([number, "model − model of prompt 1", *_two(first, "", "")])
    return rows


def _two(entry: dict, interval: str, p: str) -> list[str]:
    accuracy, macro_f1 = (with_error(entry.get(n), signed=True) for n in ("accuracy", "macro_f1"))
    return [accuracy, interval, p, macro_f1]


def terminal_report(results: dict) -> str:
    """Both tables and the list of prompts."""
    parts = [table(mean_rows(results), left=2)]
    if len(differences := difference_rows(results)) > 1:
        parts.append(table(differences, left=2))
    prompts = [f"  prompt {p['prompt']}: {_one_line(p['question'])}" for p in results["prompts"]]
    return "\n\n".join([*parts, "\n".join(prompts)])


def _one_line(question: str | None) -> str:
    return shorten(" ".join(question.split()), MAX_QUESTION) if question else "known columns"


# ---------------------------------------------------------------- files


def markdown_report(results: dict, command: str) -> str:
    """results.md."""
    is_complete = results["measured"] == results["planned"]
    folds = [fold for prompt in results["prompts"] for fold in prompt["folds"]]
    rows = sum(fold["rows"] for fold in results["prompts"][0]["folds"])
    seconds = [fold["training_seconds"] or 0.0 for fold in folds]
    parts = [
        "# Experiment",
        f"```bash\n{command}\n```",
        f"{time.strftime('%Y-%m-%d %H:%M')}: {results['measured']} of {results['planned']} runs are"
        f" measured, on {rows:,} rows with the first prompt. A training took"
        f" {duration(sum(seconds) / len(seconds))} on average.",
        _markdown_table(mean_rows(results)),
    ]
    if len(differences := difference_rows(results)) > 1:
        parts.append(_markdown_table(differences))
    parts.append(NOTES)
    for prompt in results["prompts"]:
        text = prompt["question"] or "(known columns)"
        parts.append(f"Prompt {prompt['prompt']}:\n\n" + _quoted(text))
    if is_complete:
        parts.append("![The measures with their standard errors](results.png)")
    return "\n\n".join(parts) + "\n"


def _markdown_table(rows: TextTable) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)


def _quoted(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def write_results_files(folder: Path, results: dict, command: str) -> None:
    """Writes results.json and results.md, and if all runs are measured results.png."""
    texts = {
        "results.json": json.dumps(results, ensure_ascii=False, indent=1),
        "results.md": markdown_report(results, command),
    }
    for name, text in texts.items():
        write_atomically(folder / name, lambda path, text=text: write_synced_text(path, text))
    if results["measured"] == results["planned"]:
        draw_means(results["prompts"], folder / "results.png")


def draw_means(prompts: Sequence[dict], path: Path) -> None:
    """Draws accuracy and macro-F1 of each prompt as points with bars of one standard error."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.6 + 0.8 * len(prompts)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    answering = [who for who in TITLES if any(who in prompt["means"] for prompt in prompts)]
    for axes, name in zip(panels, ("accuracy", "macro_f1"), strict=True):
        for place, who in enumerate(answering):
            shift = 0.6 * (place / max(1, len(answering) - 1) - 0.5)  # apart within a prompt
            points = [
                (prompt["prompt"] + shift, prompt["means"][who][name])
                for prompt in prompts
                if name in prompt["means"].get(who, {})
            ]
            if points:
                heights, estimates = zip(*points, strict=True)
                errors = [estimate["error"] or 0.0 for estimate in estimates]
                means = [estimate["mean"] for estimate in estimates]
                style = {"color": COLOURS[who], "label": TITLES[who], "capsize": 3}
                axes.errorbar(means, heights, xerr=errors, fmt="o", markersize=5, **style)
        axes.set_xlabel(MEASURED[name])
        axes.grid(alpha=0.25, axis="x")
    numbers = [prompt["prompt"] for prompt in prompts]
    panels[0].set_yticks(numbers, [f"prompt {number}" for number in numbers])
    panels[0].invert_yaxis()
    panels[1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    write_atomically(path, lambda staging: figure.savefig(staging, dpi=110, format="png"))
