"""The measures as tables for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from shuoshu.core.terminal import counted, display_width, duration, table
from shuoshu.evaluation.copies import TrainingText
from shuoshu.evaluation.measure_set import Measures

MAX_COLUMNS = 100  # of the terminal
MAX_MODELS = 3  # side by side in a table
MAX_TITLE = 24  # columns of a title
NOTE_INDENT = 15  # columns before a note
DEFINITIONS = {  # in eval.json, and their titles; a text's are not printed
    "rouge_l": "ROUGE-L",
    "lookups": "look-ups",
    "ways": "auto",
    "lists": "lists",
    "linear": "linear model",
}

Column = tuple[str, Measures]  # title, measures


def format_results(evaluation: dict, source: TrainingText | None) -> str:
    """The tables of measures and the notes below them; `source` is where copies were searched."""
    columns = list(evaluation["measures"].items())
    for other in evaluation["compare"]:
        name = Path(other["model"]).name
        columns += [(f"{name} {split}", values) for split, values in other["measures"].items()]
        columns += [
            (f"difference {split}", values) for split, values in other["difference"].items()
        ]
    notes = [("data", evaluation["data"]["folder"])]
    for split, counts in evaluation["counts"].items():
        notes.append((split, ", ".join(count_phrase(*item) for item in counts.items())))
    if evaluation["task"] != "text":
        for name, title in DEFINITIONS.items():
            definition = evaluation["definitions"].get(name, "")
            lines = textwrap.wrap(definition, MAX_COLUMNS - NOTE_INDENT)
            notes += zip((title, *[""] * len(lines)), lines, strict=False)
    for split, classes in evaluation["classes"].items():
        notes.append(("McNemar", mcnemar_note(split, classes["mcnemar"])))
    if evaluation["task"] != "labels":
        missing = "not measured: the pretraining text is not here, or has changed"
        notes.append(("copies", f"from {source.folder}" if source else missing))
    files = f"{evaluation['model']}/eval.json, eval_answers.jsonl, report.html"
    notes.append(("written to", f"{files} in {duration(evaluation['seconds'])}"))
    return "\n".join([*measure_tables(columns), *(f"  {name:<12} {note}" for name, note in notes)])


def mcnemar_note(split: str, test: dict) -> str:
    """McNemar's test of the model and the linear model on a split."""
    return (
        f"{split}: only the model is right about {counted(test['only_first'], 'text')}, only the"
        f" linear model about {test['only_second']:,}; p = {test['p_value']:.2g}"
    )


def count_phrase(name: str, count: int) -> str:
    """5,584 tokens, 1 prompt, window 64."""
    is_length = name in ("window", "stride")
    return f"{name} {count:,}" if is_length else counted(count, name.removesuffix("s"))


def measure_tables(columns: Sequence[Column]) -> list[str]:
    """One row per measure; as many columns side by side as fit into the terminal."""
    names = list(dict.fromkeys(name for _, measures in columns for name in measures))
    tables = []
    while columns:
        for count in range(MAX_MODELS, 0, -1):
            text = measure_table(names, columns[:count])
            if max(map(display_width, text.split("\n"))) <= MAX_COLUMNS:
                break
        tables.append(text)
        columns = columns[count:]
    return tables


def measure_table(names: Sequence[str], columns: Sequence[Column]) -> str:
    rows = [["measure", *(shorten_from_left(title, MAX_TITLE) for title, _ in columns)]]
    for name in names:
        entries = [measures.get(name) for _, measures in columns]
        if any(entries):
            rows.append([name, *map(format_with_interval, entries)])
    return table(rows)


def shorten_from_left(title: str, columns: int) -> str:
    """The title, or its end, which names the split."""
    while display_width(title) > columns:
        title = "…" + title.lstrip("…")[1:]
    return title


def format_with_interval(entry: dict[str, float] | None) -> str:
    """0.812 [0.760, 0.863]; empty without an entry."""
    if entry is None:
        return ""
    size = abs(entry["value"])
    digits = 1 if size >= 100 else 2 if size >= 10 else 3
    text = f"{entry['value']:,.{digits}f}"
    if "low" in entry:
        text += f" [{entry['low']:,.{digits}f}, {entry['high']:,.{digits}f}]"
    return text
