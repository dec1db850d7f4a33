"""Runs sample.py with a model that labels: its labels to the terminal or to a file."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shuoshu.core.command_settings import SampleSettings
from shuoshu.core.device import setup_process
from shuoshu.core.distributed import StopFlag
from shuoshu.core.errors import UserError
from shuoshu.generation.chat_model import generation_dtype
from shuoshu.generation.judge import Judge
from shuoshu.generation.prompt_files import (
    PromptFile,
    command_line_prompts,
    new_columns,
    read_texts,
    require_writable,
    write_prompt_rows,
)
from shuoshu.models.purpose import Labelling
from shuoshu.models.weights import load_model
from shuoshu.sft.pairs import clean_field, preview

# Settings that change what a model writes. A label doesn't depend on them.
TEXT_SETTINGS = ("num_samples", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
TEXT_SETTINGS += ("stop", "system", "answer_by", "precision", "sources", "book")
DIGITS = 6  # of a probability in a file


def run_labels(settings: SampleSettings, out_dir: Path, labelling: Labelling) -> int:
    """Labels the texts of the settings with the model in `out_dir`; returns the exit code."""
    refuse_text_settings(settings)
    # Inputs come first: a wrong path must not cost the time to load a model.
    if settings.infile:
        file = read_texts(Path(settings.infile), labelling.question)
        require_writable(Path(settings.outfile))
    elif not settings.chat:
        texts = command_line_prompts(settings.start)
    device = setup_process(settings.device, settings.threads)
    dtype = generation_dtype(settings.dtype, device)
    judge = Judge(load_model(out_dir, device, dtype, settings.base))
    if settings.chat:
        return judge_lines(judge)
    if settings.infile:
        return write_labels(judge, settings, file)
    print_labels(judge, texts, settings.batch_size)
    return 0


def refuse_text_settings(settings: SampleSettings) -> None:
    """UserError if a setting is for texts that a model writes."""
    values = {name: getattr(settings, name) for name in TEXT_SETTINGS}
    given = [
        f"--{name}"
        for name, value in values.items()
        if value and value != getattr(SampleSettings, name)
    ]
    if given:
        raise UserError(
            f"{', '.join(given)}: this model labels texts, always with the same probabilities; drop"
            " what is for texts that a model writes, or let it write with --continue_text"
        )


# ---------------------------------------------------------------- to the terminal


def print_labels(judge: Judge, texts: Sequence[str], rows: int) -> None:
    """Prints a line with the labels of each text, with a header if there are several texts."""
    prompts = [text_ids(judge, text) for text in texts]
    for number, values in enumerate(judge.probabilities(prompts, rows)):
        if len(texts) > 1:
            gap = "\n" if number else ""
            print(f"{gap}--- {number + 1}/{len(texts)}  {preview(texts[number])}")
        print(label_line(judge.labelling.labels, values))


def judge_lines(judge: Judge) -> int:
    """Labels lines from the terminal in turn until an empty line; returns the exit code."""
    print("Enter a text to label it. An empty line ends.")
    while True:
        try:
            text = input("\n> ").strip()
        except (EOFError, KeyboardInterrupt):
            text = ""
        if not text:
            return 0
        try:
            [values] = judge.probabilities([text_ids(judge, text)], rows=1)
            print(label_line(judge.labelling.labels, values))
        except UserError as error:
            print(error)


def text_ids(judge: Judge, text: str) -> list[int]:
    """The ids of a text's prompt; UserError if the text is empty or doesn't fit."""
    text = clean_field(text)
    if not text:
        raise UserError("the text is empty: set --start, or --in and --out, or use --chat")
    return judge.prompt_ids(judge.prompt_of(text))


def label_line(labels: Sequence[str], values: np.ndarray) -> str:
    """The labels with their probabilities, the most probable first: 正面 0.93  负面 0.07."""
    order = np.argsort(-values, kind="stable")
    return "  ".join(f"{preview(labels[n])} {values[n]:.2f}" for n in order)


# ---------------------------------------------------------------- to a file


def write_labels(judge: Judge, settings: SampleSettings, file: PromptFile) -> int:
    """Writes the rows with new columns: label, and p_LABEL for each label; returns the exit code.

    The cells of rows without a usable text are empty, and after a signal those not finished.
    """
    prompts = file.usable("label", judge.prompt_ids)
    with StopFlag() as stop:
        probabilities = judge.probabilities(
            list(prompts.values()),
            settings.batch_size,
            lambda: stop.raised,
            lambda done: print(f"\r{done:,}/{len(prompts):,}", end="", file=sys.stderr, flush=True),
        )
    print(file=sys.stderr)
    labels = judge.labelling.labels
    columns = new_columns(file.rows, ["label", *(f"p_{label}" for label in labels)])
    for row in file.rows:
        row.update(dict.fromkeys(columns))
    counts = Counter()
    is_table = Path(settings.outfile).suffix.lower() == ".csv"
    for row, values in zip(prompts, probabilities, strict=True):
        if np.isnan(values).any():  # not read before a signal
            continue
        label = labels[values.argmax()]
        cells = [f"{p:.{DIGITS}f}" if is_table else round(p, DIGITS) for p in values.tolist()]
        file.rows[row].update(zip(columns, [label, *cells], strict=True))
        counts[label] += 1
    write_prompt_rows(Path(settings.outfile), file.rows)
    by_label = ", ".join(f"{preview(label)} {counts[label]:,}" for label in labels)
    print(
        f"{counts.total():,} of {len(prompts):,} texts labelled in {settings.outfile}: {by_label}"
    )
    return 128 + stop.raised if stop.raised else 0
