"""What a run tells: tables, the progress bar, log.jsonl, the curves, the samples."""

from __future__ import annotations

import json
import sys
import time
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

from shuoshu.core.saving import write_text, write_whole


def width(text: str) -> int:
    """Columns that a terminal gives to a text: two for a Chinese character."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def pad(text: str, columns: int, right: bool = False) -> str:
    space = " " * max(0, columns - width(text))
    return space + text if right else text + space


def table(rows: Sequence[Sequence[object]], left: int = 1) -> str:
    """Rows in aligned columns, the first one a header; the first `left` columns flush left, numbers flush right."""
    texts = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    columns = [max(width(row[i]) for row in texts) for i in range(len(texts[0]))]
    lines = ["  " + "  ".join(pad(cell, columns[i], right=i >= left) for i, cell in enumerate(row)).rstrip() for row in texts]
    lines.insert(1, "  " + "  ".join("─" * c for c in columns))
    return "\n".join(lines)


def shorten(text: str, columns: int) -> str:
    """The text, or as much of its beginning as fits, with an ellipsis."""
    if width(text) <= columns:
        return text
    while text and width(text) > columns - 1:
        text = text[:-1]
    return text + "…"


def duration(seconds: float) -> str:
    """3.2 s, 4 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


TYPES = {"kind": str, "step": int, "lr": (int, float), **dict.fromkeys(("title", "prompt", "text", "reference"), str)}
TYPES |= dict.fromkeys(("loss", "val_loss", "val_rouge_l", "val_exact_match"), (int, float, type(None)))


def say(line: str, write: Callable[[str], None] | None = None) -> None:
    """A line for the reader. That it goes to a file on a full disk is no reason to end a training."""
    try:
        write(line) if write else print(line, flush=True)
    except BrokenPipeError:
        raise
    except OSError:
        pass


class Log:
    """log.jsonl: one object a line, flushed as it is written; the single source of the curves."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, kind: str, **values: object) -> None:
        line = json.dumps({"kind": kind, "time": round(time.time(), 3), **values}, ensure_ascii=False)
        with self.path.open("a+b") as file:
            if file.tell() and (file.seek(-1, 2), file.read(1))[1] != b"\n":
                file.write(b"\n")  # a crash tore the line before
            file.write((line + "\n").encode())

    def read(self, kind: str | None = None) -> list[dict]:
        """Its records in order; a line torn by a crash, or damaged, is left out."""
        if not self.path.is_file():
            return []
        records = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if _is_sound(record) and kind in (None, record.get("kind")):
                records.append(record)
        return records

    def rewind(self, step: int, evaluated: int) -> None:
        """Drops what lies after `step`, of evaluations what lies after `evaluated`, so that a resumed run doesn't tell of it twice."""
        kept = [r for r in self.read() if r.get("step", 0) <= (evaluated if r.get("kind") in ("eval", "sample") else step)]
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept)
        write_whole(self.path, lambda aside: write_text(aside, text))


def _is_sound(record: object) -> bool:
    return isinstance(record, dict) and all(isinstance(value, TYPES.get(name, object)) for name, value in record.items())


def write_samples(log: Log, path: Path) -> None:
    """samples.md: what each evaluation's model made of one prompt, or answered to a few questions."""
    parts, title = ["# Samples\n"], None
    for record in log.read("sample"):
        if not {"title", "prompt", "text"} <= record.keys():
            continue
        if record["title"] != title:
            title = record["title"]
            parts.append(f"## {title}\n")
        asked = "reference" in record  # a question
        text = f"{record['prompt']}\n▸ {record['text']}\n✓ {record['reference']}" if asked else record["prompt"] + "▸" + record["text"]
        parts.append("  \n".join(f"> {line}" for line in text.splitlines()) + "\n")
    write_whole(path, lambda aside: write_text(aside, "\n".join(parts)))


class Progress:
    """A bar on a terminal, a plain line now and then in a file; silent where `show` is false."""

    def __init__(self, total: int, start: int = 0, show: bool = True, every: float = 10.0) -> None:
        self.total, self.show, self.every = total, show, every
        self.bar, self._last_line = None, -every
        if show and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=start, dynamic_ncols=True, smoothing=0.05, unit="step")

    def update(self, step: int, total: int, facts: str) -> None:
        """Tells that `step` of `total` is done."""
        if self.bar is not None:
            self.bar.total = total
            self.bar.set_postfix_str(facts, refresh=False)
            self.bar.update(step - self.bar.n)
        elif self.show and (time.monotonic() - self._last_line > self.every or step == total):
            self._last_line = time.monotonic()
            say(f"step {step:,}" + (f"/{total:,}" if total else "") + f"  {facts}")

    def say(self, line: str) -> None:
        """A line above the bar."""
        if self.bar is not None:
            say(line, self.bar.write)
        elif self.show:
            say(line)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def draw_curves(log: Log, path: Path) -> None:
    """loss.png: training and validation loss over the steps, the answers' ROUGE-L where questions are asked, the rate below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [r for r in log.read("step") if r.get("loss") is not None and {"step", "lr"} <= r.keys()]
    evals = [r for r in log.read("eval") if r.get("val_loss") is not None and "step" in r]
    if not steps and not evals:
        return
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    asked = [r for r in evals if r.get("val_rouge_l") is not None]
    panels = figure.subplots(3 if asked else 2, 1, sharex=True, height_ratios=(5, 3, 1) if asked else (5, 1))
    losses, rates = panels[0], panels[-1]
    if steps:
        losses.plot([r["step"] for r in steps], [r["loss"] for r in steps], color="#9aa7b5", linewidth=0.8, label="training loss")
        rates.plot([r["step"] for r in steps], [r["lr"] for r in steps], color="#9aa7b5", linewidth=1)
    if evals:
        best = min(evals, key=lambda r: r["val_loss"])
        losses.plot([r["step"] for r in evals], [r["val_loss"] for r in evals], color="#b3362c", marker="o", markersize=3, label="validation loss")
        losses.annotate(
            f"best {best['val_loss']:.3f}", (best["step"], best["val_loss"]), textcoords="offset points", xytext=(0, 8), ha="right", color="#b3362c"
        )
    if asked:
        answers, best = panels[1], max(asked, key=lambda r: r["val_rouge_l"])
        for name, label, colour in (("val_rouge_l", "ROUGE-L of the answers", "#2c6db3"), ("val_exact_match", "exact answers", "#7aa874")):
            answers.plot([r["step"] for r in asked], [r.get(name) for r in asked], color=colour, marker="o", markersize=3, label=label)
        answers.annotate(
            f"best {best['val_rouge_l']:.3f}", (best["step"], best["val_rouge_l"]), textcoords="offset points", xytext=(0, 8), ha="right", color="#2c6db3"
        )
        answers.set_ylim(0, 1.05)
        losses.set_yscale("log")  # from a few nats down to hundredths
        answers.legend(frameon=False)
        answers.grid(alpha=0.25)
    losses.set_ylabel("nats per token")
    losses.legend(frameon=False)
    losses.grid(alpha=0.25)
    rates.set_ylabel("rate")
    rates.set_ylim(bottom=0)
    rates.set_xlabel("step")
    rates.grid(alpha=0.25)
    write_whole(path, lambda aside: figure.savefig(aside, dpi=110, format="png"))
