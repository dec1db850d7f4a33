"""HTML of judgements: bars of probabilities, the text in coloured pieces, a table; and its CSV."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence

import numpy as np

from shuoshu.evaluation.html import escape_html
from shuoshu.generation.label_command import DIGITS
from shuoshu.sft.pairs import preview
from shuoshu.web.judging import JudgedTexts, Judgement
from shuoshu.web.labels import note_html, text_html

MAX_BARS = 20  # of labels; the rest are added up
MIN_DARKEST = 0.5  # log-odds of the darkest shade, if no piece has more
MAX_STRONGEST = 5  # pieces that are listed
MAX_PIECE_COLUMNS = 60  # of a listed piece
MAX_CELL_CHARS = 300  # of a text in the table; the CSV has all


# ---------------------------------------------------------------- bars


def bars_html(labels: Sequence[str], probabilities: np.ndarray, order: Sequence[int]) -> str:
    """A bar for each label in this order; the last one adds up those that are too many."""
    items = [bar_item(escape_html(labels[n]), probabilities[n]) for n in order[:MAX_BARS]]
    if rest := list(order[MAX_BARS:]):
        items.append(bar_item(text_html("other_labels", len(rest)), probabilities[rest].sum()))
    return f'<ol class="bars">{"".join(items)}</ol>'


def bar_item(name: str, probability: float) -> str:
    """A list item: a name in HTML, a percentage and its bar."""
    bar = f'<span class="bar" style="width:{100 * probability:.1f}%"></span>'
    return f"<li><b>{name}</b><small>{probability:.1%}</small><span>{bar}</span></li>"


def judgement_html(judgement: Judgement, linear: str = "") -> str:
    """Bars of the labels, beside them the HTML of the linear model's, below them the pieces."""
    probabilities = np.exp(judgement.scores)
    bars = bars_html(judgement.labels, probabilities, label_order(judgement))
    note = note_html("text_cut") if judgement.is_cut else ""
    pieces = "" if judgement.scores_without is None else evidence_html(judgement)
    return (
        f'<div class="judged"><section><h4>{text_html("this_model")}</h4>{bars}</section>'
        f"<section>{linear}</section></div>"
        f"{note}{pieces}"
    )


def linear_html(judgement: Judgement, name: str, scores: np.ndarray) -> str:
    """The labels' bars of a linear model, in the order of the judgement's."""
    bars = bars_html(judgement.labels, np.exp(scores), label_order(judgement))
    return f"<h4>{text_html('linear_model')} <small>{escape_html(name)}</small></h4>{bars}"


def label_order(judgement: Judgement) -> list[int]:
    """The labels' numbers, the most probable first."""
    return np.argsort(-judgement.scores, kind="stable").tolist()


# ---------------------------------------------------------------- pieces


def evidence_html(judgement: Judgement) -> str:
    """The text with each piece coloured by its evidence, and a list of the strongest pieces."""
    if not judgement.pieces:
        return note_html("single_piece")
    evidence = np.nan_to_num(judgement.evidence)  # 0: not judged before the time limit
    darkest = max(MIN_DARKEST, np.abs(evidence).max())
    shades = evidence / darkest
    spans = [
        piece_span(escape_html(piece), shade)
        for piece, shade in zip(judgement.pieces, shades, strict=True)
    ]
    winner = judgement.labels[judgement.winner]
    legend = piece_span(text_html("speaks_for", winner), 1.0) + " "
    legend += piece_span(text_html("speaks_against", winner), -1.0)
    return (
        f'<p class="soft">{text_html("evidence_legend")}{legend} {text_html("evidence_shade")}</p>'
        f'<p class="pieces">{"".join(spans)}</p>{strongest_html(judgement, evidence)}'
    )


def piece_span(piece: str, shade: float) -> str:
    """The HTML of a piece in the colour of its evidence: from -1, against, to 1, for the label."""
    side = "for" if shade > 0 else "against"
    return f'<span class="evidence {side}" style="--shade:{abs(shade):.2f}">{piece}</span>'


def strongest_html(judgement: Judgement, evidence: np.ndarray) -> str:
    """The winner's probability without each of the strongest pieces."""
    without = np.exp(judgement.scores_without[:, judgement.winner])
    winner, now = judgement.labels[judgement.winner], np.exp(judgement.scores.max())
    strongest = np.argsort(-np.abs(evidence), kind="stable")[:MAX_STRONGEST]
    items = [
        bar_item(escape_html(preview(judgement.pieces[n], MAX_PIECE_COLUMNS)), without[n])
        for n in strongest
        if evidence[n]
    ]
    head = note_html("strongest_pieces", winner, f"{now:.1%}")
    return f'{head}<ol class="bars wide">{"".join(items)}</ol>' if items else ""


# ---------------------------------------------------------------- many texts


def table_html(judged: JudgedTexts) -> str:
    """A table of the texts with their labels; how many have each label above it."""
    done = judged.scores[~np.isnan(judged.scores).any(axis=1)]
    found = [judged.labels[n] for n in done.argmax(axis=1)]
    counts = ", ".join(f"{label} {count:,}" for label, count in Counter(found).most_common())
    head = "".join(
        f'<th scope="col">{text_html(key)}</th>'
        for key in ("line", "text_column", "label_column", "probability_column")
    )
    rows = [
        row_html(number, text, judged.labels, scores)
        for number, (text, scores) in enumerate(zip(judged.texts, judged.scores, strict=True), 1)
    ]
    summary = text_html("judged_lines", len(found), len(judged.texts))
    return (
        f'<p id="judged-lines">{summary}{escape_html(counts)}</p>'
        '<div class="judged-table" role="region" tabindex="0" aria-labelledby="judged-lines">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def row_html(number: int, text: str, labels: Sequence[str], scores: np.ndarray) -> str:
    """A row of the table; without label and probability if the text was not judged."""
    shown = text if len(text) <= MAX_CELL_CHARS else text[:MAX_CELL_CHARS] + "…"
    label, chance, bar = "", "", ""
    if not np.isnan(scores).any():
        label, chance = labels[scores.argmax()], f"{np.exp(scores.max()):.1%}"
        bar = f'<span class="bar" style="width:{chance}"></span>'
    return (
        f"<tr><td>{number}</td><td>{escape_html(shown)}</td><td>{escape_html(label)}</td>"
        f"<td>{chance}{bar}</td></tr>"
    )


def csv_text(judged: JudgedTexts) -> str:
    """CSV: text, label and a column p_LABEL for each label; empty cells if it was not judged."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["text", "label", *(f"p_{label}" for label in judged.labels)])
    for text, scores in zip(judged.texts, judged.scores, strict=True):
        cells = [""] * (1 + len(judged.labels))
        if not np.isnan(scores).any():
            probabilities = [f"{p:.{DIGITS}f}" for p in np.exp(scores)]
            cells = [judged.labels[scores.argmax()], *probabilities]
        writer.writerow([text, *cells])
    return file.getvalue()
