"""loss.png and samples.md, made from the log."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from shuoshu.core.files import write_atomically, write_synced_text
from shuoshu.core.run_log import RunLog

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.axes import Axes

GREY, RED, BLUE, GREEN = "#9aa7b5", "#b3362c", "#2c6db3", "#7aa874"
DRAW_INTERVAL = 10.0  # seconds between pictures; one takes a third of a second


class CurvePlotter:
    """Redraws loss.png at the first evaluation, then every `interval` seconds, and at the end."""

    def __init__(self, log: RunLog, path: Path, interval: float = DRAW_INTERVAL) -> None:
        self._log = log
        self._path = path
        self._interval = interval
        self._drawn_at: float | None = None  # time of the last picture
        self._is_stale = False  # the log has evaluations that the picture lacks

    def update(self) -> None:
        """Draws the picture if it is due. Called after each evaluation."""
        self._is_stale = True
        if self._drawn_at is None or time.monotonic() - self._drawn_at >= self._interval:
            self.finish()

    def finish(self) -> None:
        """Draws the picture if it is out of date."""
        if self._is_stale:
            draw_curves(self._log, self._path)
            self._drawn_at, self._is_stale = time.monotonic(), False


def write_samples(log: RunLog, path: Path) -> None:
    """Writes samples.md: each evaluation's sample text, or its answers to a few questions."""
    parts, title = ["# Samples\n"], None
    for record in log.read("sample"):
        if not {"title", "prompt", "text"} <= record.keys():
            continue
        if record["title"] != title:
            title = record["title"]
            parts.append(f"## {title}\n")
        if "reference" in record:  # a question
            text = f"{record['prompt']}\n▸ {record['text']}\n✓ {record['reference']}"
        else:
            text = f"{record['prompt']}▸{record['text']}"
        parts.append("  \n".join(f"> {line}" for line in text.splitlines()) + "\n")
    write_atomically(path, lambda staging: write_synced_text(staging, "\n".join(parts)))


def draw_curves(log: RunLog, path: Path) -> None:
    """Writes loss.png: losses over the steps, the answers' scores if there are any, and the
    learning rate. Writes nothing if the log holds no losses."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [r for r in log.read("step") if {"step", "lr"} <= r.keys()]
    evals = [r for r in log.read("eval") if r.get("val_loss") is not None and "step" in r]
    if not steps and not evals:
        return
    score = score_name(evals)
    answers = [r for r in evals if r.get(score) is not None]
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    heights = (5, 3, 1) if answers else (5, 1)
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    _draw_losses(panels[0], steps, evals)
    if answers:
        if score == "val_rouge_l":
            panels[0].set_yscale("log")  # fine-tuning goes from a few nats to hundredths
        _draw_answers(panels[1], answers)
    _draw_rates(panels[-1], steps)
    write_atomically(path, lambda staging: figure.savefig(staging, dpi=110, format="png"))


def score_name(evals: list[dict]) -> str:
    """The score beside the loss: accuracy of labels, else ROUGE-L."""
    is_labels = any(r.get("val_accuracy") is not None for r in evals)
    return "val_accuracy" if is_labels else "val_rouge_l"


def _draw_losses(axes: Axes, steps: list[dict], evals: list[dict]) -> None:
    """Training and validation loss. Where texts were read before their labels, a shaded part."""
    if read := [r["step"] for r in steps if "reading_loss" in r]:
        axes.axvspan(0, read[-1], color=GREY, alpha=0.2, label="reading")
    if trained := [r for r in steps if r.get("loss") is not None]:
        axes.plot(*_series(trained, "loss"), color=GREY, linewidth=0.8, label="training loss")
    if evals:
        style = {"color": RED, "marker": "o", "markersize": 3}
        axes.plot(*_series(evals, "val_loss"), label="validation loss", **style)
        _mark_best(axes, evals, "val_loss", RED)
    is_labels = score_name(evals) == "val_accuracy"
    axes.set_ylabel("nats per text" if is_labels else "nats per token")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)


def _draw_answers(axes: Axes, answers: list[dict]) -> None:
    """ROUGE-L and the share of exact answers; of labels, accuracy and macro-F1."""
    titles = {"val_rouge_l": "ROUGE-L of the answers", "val_exact_match": "exact answers"}
    if score_name(answers) == "val_accuracy":
        titles = {"val_accuracy": "accuracy", "val_macro_f1": "macro-F1"}
    for (name, title), colour in zip(titles.items(), (BLUE, GREEN), strict=True):
        axes.plot(*_series(answers, name), color=colour, marker="o", markersize=3, label=title)
    _mark_best(axes, answers, next(iter(titles)), BLUE)
    axes.set_ylim(0, 1.05)
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)


def _draw_rates(axes: Axes, steps: list[dict]) -> None:
    if steps:
        axes.plot(*_series(steps, "lr"), color=GREY, linewidth=1)
    axes.set_ylabel("rate")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    axes.grid(alpha=0.25)


def _series(records: list[dict], name: str) -> tuple[list, list]:
    """(x, y) of a curve over the steps."""
    return [r["step"] for r in records], [r.get(name) for r in records]


def _mark_best(axes: Axes, records: list[dict], name: str, colour: str) -> None:
    """Marks the best value as keep_if_best finds it: an untrained model never labels best."""
    if score_name(records) == "val_accuracy":
        records = [r for r in records if r["step"]]
    if not records:
        return
    sign = 1 if name == "val_loss" else -1
    best = min(records, key=lambda r: (sign * r[name], r["val_loss"]))
    axes.annotate(
        f"best {best[name]:.3f}",
        (best["step"], best[name]),
        textcoords="offset points",
        xytext=(0, 8),
        ha="right",
        color=colour,
    )
