"""loss.png and samples.md, drawn from the log."""

from __future__ import annotations

from pathlib import Path

from shuoshu.core.files import write_atomically, write_synced_text
from shuoshu.core.run_log import RunLog


def write_samples(log: RunLog, path: Path) -> None:
    """samples.md: what each evaluation's model made of one prompt, or answered to a few questions."""
    parts, title = ["# Samples\n"], None
    for record in log.read("sample"):
        if not {"title", "prompt", "text"} <= record.keys():
            continue
        if record["title"] != title:
            title = record["title"]
            parts.append(f"## {title}\n")
        asked = "reference" in record  # a question
        text = (
            f"{record['prompt']}\n▸ {record['text']}\n✓ {record['reference']}"
            if asked
            else record["prompt"] + "▸" + record["text"]
        )
        parts.append("  \n".join(f"> {line}" for line in text.splitlines()) + "\n")
    write_atomically(path, lambda aside: write_synced_text(aside, "\n".join(parts)))


def draw_curves(log: RunLog, path: Path) -> None:
    """loss.png: training and validation loss over the steps, the answers' ROUGE-L where questions are asked, the rate below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [
        r for r in log.read("step") if r.get("loss") is not None and {"step", "lr"} <= r.keys()
    ]
    evals = [r for r in log.read("eval") if r.get("val_loss") is not None and "step" in r]
    if not steps and not evals:
        return
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    asked = [r for r in evals if r.get("val_rouge_l") is not None]
    panels = figure.subplots(
        3 if asked else 2, 1, sharex=True, height_ratios=(5, 3, 1) if asked else (5, 1)
    )
    losses, rates = panels[0], panels[-1]
    if steps:
        losses.plot(
            [r["step"] for r in steps],
            [r["loss"] for r in steps],
            color="#9aa7b5",
            linewidth=0.8,
            label="training loss",
        )
        rates.plot(
            [r["step"] for r in steps], [r["lr"] for r in steps], color="#9aa7b5", linewidth=1
        )
    if evals:
        best = min(evals, key=lambda r: r["val_loss"])
        losses.plot(
            [r["step"] for r in evals],
            [r["val_loss"] for r in evals],
            color="#b3362c",
            marker="o",
            markersize=3,
            label="validation loss",
        )
        losses.annotate(
            f"best {best['val_loss']:.3f}",
            (best["step"], best["val_loss"]),
            textcoords="offset points",
            xytext=(0, 8),
            ha="right",
            color="#b3362c",
        )
    if asked:
        answers, best = panels[1], max(asked, key=lambda r: r["val_rouge_l"])
        for name, label, colour in (
            ("val_rouge_l", "ROUGE-L of the answers", "#2c6db3"),
            ("val_exact_match", "exact answers", "#7aa874"),
        ):
            answers.plot(
                [r["step"] for r in asked],
                [r.get(name) for r in asked],
                color=colour,
                marker="o",
                markersize=3,
                label=label,
            )
        answers.annotate(
            f"best {best['val_rouge_l']:.3f}",
            (best["step"], best["val_rouge_l"]),
            textcoords="offset points",
            xytext=(0, 8),
            ha="right",
            color="#2c6db3",
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
    write_atomically(path, lambda aside: figure.savefig(aside, dpi=110, format="png"))
