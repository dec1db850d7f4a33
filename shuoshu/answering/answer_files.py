"""Answers the questions of a file, or continues its texts, and writes the rows with the results."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from shuoshu.answering.answerer import Answer
from shuoshu.answering.reading import numbered_passages
from shuoshu.answering.terminal_chat import Prompt, TerminalChat, text_seed
from shuoshu.core.distributed import StopFlag
from shuoshu.core.terminal import counted
from shuoshu.generation.prompt_files import PromptFile, new_columns, write_prompt_rows

PROBABILITY_DIGITS = 4


def write_answers(terminal: TerminalChat, file: PromptFile) -> int:
    """Writes the rows with their texts in new columns, see `row_cells`; returns the exit code.

    The texts of rows without a usable prompt are empty, and after a signal those not finished.
    """
    settings, samples = terminal.settings, terminal.settings.num_samples
    usable: list[Prompt] = []

    def encode(text: str, system: str | None) -> list[int]:
        usable.append(terminal.prompt(text, system=system))
        return usable[-1].ids

    rows = list(file.usable("answer", encode))
    prompts = [prompt for prompt in usable for _ in range(samples)]
    seeds = [text_seed(settings.seed, row * samples + n) for row in rows for n in range(samples)]
    with StopFlag() as stop:
        answers = answer_prompts(terminal, prompts, seeds, lambda: stop.raised)
    names = [f"answer_{n}" if n > 1 else "answer" for n in range(1, samples + 1)]
    names += ["answered_by", "probability"] if terminal.answerer.knowledge else []
    names += ["sources"] if terminal.shows_sources else []
    columns = dict(zip(names, new_columns(file.rows, names), strict=True))
    for row in file.rows:
        row.update((columns[name], None if name == "probability" else "") for name in names)
    for n, row in enumerate(rows):
        cells = row_cells(terminal, usable[n], answers[n * samples : (n + 1) * samples])
        file.rows[row].update((columns[name], cells[name]) for name in names if name in cells)
    write_prompt_rows(Path(settings.outfile), file.rows)
    print_summary(terminal, usable, answers)
    return 128 + stop.raised if stop.raised else 0


def answer_prompts(
    terminal: TerminalChat,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    should_stop: Callable[[], object],
) -> list[Answer | None]:
    """The answers, in batches of prompts of similar length; None for those that were stopped."""
    answers: list[Answer | None] = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n].ids))
    for start in range(0, len(order), terminal.settings.batch_size):
        batch = order[start : start + terminal.settings.batch_size]
        some, own_seeds = [prompts[n] for n in batch], [seeds[n] for n in batch]
        done = terminal.answers(some, terminal.write_batch(some, own_seeds, should_stop))
        for n, answer in zip(batch, done, strict=True):
            answers[n] = answer
        if should_stop():
            break
        progress = f"\r{start + len(batch):,}/{len(order):,}"
        print(progress, end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return answers


def row_cells(
    terminal: TerminalChat, prompt: Prompt, answers: Sequence[Answer | None]
) -> dict[str, object]:
    """The cells of a row's answers.

    answer, answer_2 …; of one answer also answered_by and probability. A declined answer is empty.
    """
    cells: dict[str, object] = {}
    for number, answer in enumerate(answers, 1):
        if answer is not None:
            name = f"answer_{number}" if number > 1 else "answer"
            cells[name] = "" if answer.way == "decline" else answer.text
            cells["answered_by"] = answer.way
            if answer.probability is not None:
                cells["probability"] = round(answer.probability, PROBABILITY_DIGITS)
            if terminal.shows_sources:
                cells["sources"] = "\n\n".join(numbered_passages(terminal.sources(prompt, answer)))
    return cells


def print_summary(
    terminal: TerminalChat, prompts: Sequence[Prompt], answers: Sequence[Answer | None]
) -> None:
    settings = terminal.settings
    finished = [answer for answer in answers if answer]
    kind = "answers" if terminal.is_answering else "continuations"
    ways = Counter(answer.way for answer in finished)
    words = {"recall": "recalled", "write": "written", "decline": "declined"}
    by_way = ", ".join(f"{ways[way]:,} {word}" for way, word in words.items())
    by_way = f": {by_way}" if terminal.answerer.knowledge else ""
    print(f"{len(finished):,} of {len(answers):,} {kind} in {settings.outfile}{by_way}")
    cut = sum(bool(a.completion and a.completion.reason == "length") for a in finished)
    if cut and terminal.is_answering:
        print(f"{cut:,} of them were cut at --max_new_tokens={settings.max_new_tokens}")
    unread = sum(len(prompt.passages or ()) < prompt.n_found for prompt in prompts)
    if unread:
        print(
            f"{counted(unread, 'question')} came with fewer passages than were found: no more fit"
            f" into the {terminal.block:,} tokens that this model reads"
        )
