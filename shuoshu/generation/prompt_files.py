"""Files of prompts: reads question files and .txt; writes rows with answers to .csv or .jsonl."""

from __future__ import annotations

import csv
import errno
import json
from dataclasses import dataclass, field
from pathlib import Path

from shuoshu.core.errors import UserError
from shuoshu.core.files import write_atomically, write_synced_text
from shuoshu.sft.pairs import Rejection, preview, scalar_text
from shuoshu.sft.question_files import PROMPT_SUFFIXES, read_rows

# The column with the prompt is the first of these that the row has, in upper or lower case.
PROMPT_COLUMNS = ("prompt", "question", "instruction", "start", "text", "问题")

# ---------------------------------------------------------------- read


@dataclass
class PromptFile:
    """The rows of a file with all their columns, and their prompts."""

    rows: list[dict] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)  # "row 17"
    prompts: list[str | None] = field(default_factory=list)  # None: the row has no usable prompt
    systems: list[str | None] = field(default_factory=list)  # system messages; None: it has none
    problems: list[str] = field(default_factory=list)  # of these rows
    notes: list[str] = field(default_factory=list)


def read_prompts(path: Path) -> PromptFile:
    """All rows of a file of prompts, those without a usable prompt included.

    Raises UserError if the file can't be read or no row has a usable prompt.
    """
    if path.suffix.lower() not in PROMPT_SUFFIXES:
        raise UserError(f"{path}: prompts are read from {', '.join(PROMPT_SUFFIXES)}")
    file = PromptFile()
    for number, row in read_rows(path, None, file.notes):
        source = f"row {number}"
        system = None
        if not isinstance(row, Rejection):
            prompt, problem = _prompt(row)
            if not problem:
                system, problem = _system(row)
        elif row.record is not None:
            row, prompt, problem = row.record, "", f"{row.reason}, {row.detail}"
        else:
            raise UserError(
                f'{path}, {source}: {row.detail}; expected an object like {{"prompt": "…"}}'
            )
        file.rows.append(row)
        file.sources.append(source)
        file.prompts.append(None if problem else prompt)
        file.systems.append(system)
        if problem:
            file.problems.append(f"{source}: {problem}")
    if len(file.problems) == len(file.rows):
        example = f" ({file.problems[0]})" if file.problems else ""
        raise UserError(f"{path} holds no prompt{example}")
    return file


def _prompt(row: dict) -> tuple[str, str]:
    """(a row's prompt, why it has none: "" if it has one)."""
    values = {name.casefold(): value for name, value in row.items()}
    column = next((name for name in PROMPT_COLUMNS if name in values), None)
    if column is None:
        return "", f"it has no column {', '.join(PROMPT_COLUMNS)}, but {preview(', '.join(row))}"
    columns = [column]
    if column == "instruction" and "input" in values:  # Alpaca's
        columns.append("input")
    texts = []
    for name in columns:
        text = scalar_text(values[name])
        if text is None:
            return "", f"its {name} is {preview(values[name])}"
        texts.append(text)
    if not texts[0].strip():
        return "", f"its {column} is empty"
    return "\n".join(text for text in texts if text), ""


def _system(row: dict) -> tuple[str | None, str]:
    """(a row's own system message or None, why it can't be used: "" if it can)."""
    value = next((value for name, value in row.items() if name.casefold() == "system"), None)
    text = scalar_text(value)
    return text or None, "" if text is not None else f"its system is {preview(value)}"


# ---------------------------------------------------------------- write


def require_writable(path: Path) -> None:
    """UserError if rows can't be written to this path. Creates its folder.

    Call it before the texts are generated, which may take an hour.
    """
    if path.suffix.lower() not in WRITERS:
        raise UserError(f"--out={path}: answers are written to .csv or .jsonl")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            raise OSError(errno.EEXIST, "a folder or a device has this name")
        with path.open("ab"):
            pass
        if not path.stat().st_size:
            path.unlink()
    except OSError as error:
        raise UserError(f"can't write {path}: {error.strerror}") from None


def write_prompt_rows(path: Path, rows: list[dict]) -> None:
    """Replaces the file by these rows; UserError if that fails."""
    write = WRITERS[path.suffix.lower()]
    try:
        write_atomically(path, lambda temporary: write(temporary, rows))
    except OSError as error:
        raise UserError(f"can't write {path}: {error.strerror}") from None


def _write_csv(path: Path, rows: list[dict]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([_cell(row.get(name)) for name in columns] for row in rows)


def _cell(value: object) -> str:
    """The cell's text: empty for null, JSON for a value that is not a text."""
    if isinstance(value, str) or value is None:
        return value or ""
    return json.dumps(value, ensure_ascii=False)


def _write_jsonl(path: Path, rows: list[dict]) -> None:
    write_synced_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


WRITERS = {".csv": _write_csv, ".jsonl": _write_jsonl}
