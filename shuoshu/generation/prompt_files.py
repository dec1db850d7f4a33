"""Files of prompts: reads .csv, .jsonl and .txt; writes rows with answers to .csv or .jsonl."""

from __future__ import annotations

import csv
import errno
import io
import json
from pathlib import Path

from shuoshu.core.errors import UserError
from shuoshu.core.files import error_reason, read_text, write_atomically, write_synced_text
from shuoshu.sft.question_files import parse_json

# The column with the prompts is the first of these that the file has.
PROMPT_COLUMNS = ("prompt", "question", "instruction", "start", "text", "问题")
MAX_PROMPT_CHARACTERS = 1 << 17  # a longer cell is the sign of a missing quotation mark

# ---------------------------------------------------------------- read


def read_prompts(path: Path) -> tuple[list[dict], list[str]]:
    """(rows with all columns, prompts) of a file. UserError says what is wrong and where."""
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".txt": _read_lines}
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise UserError(f"can't read {path}: {error_reason(error)}") from None
    if path.suffix.lower() not in readers:
        raise UserError(f"{path}: prompts are read from .csv, .jsonl and .txt")
    rows = readers[path.suffix.lower()](path, text)
    if not rows:
        raise UserError(f"{path} holds no prompt")
    column = next((name for name in PROMPT_COLUMNS if name in rows[0]), None)
    if column is None:
        expected = f"{', '.join(PROMPT_COLUMNS[:-1])} or {PROMPT_COLUMNS[-1]}"
        raise UserError(
            f"{path} has no column {expected}; its columns are {', '.join(map(str, rows[0]))}"
        )
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get(column), str):
            raise UserError(f"{path}: row {number} has no text in its column {column}")
    return rows, [row[column] for row in rows]


def _read_lines(path: Path, text: str) -> list[dict]:
    return [{"prompt": line} for line in text.split("\n") if line.strip()]


def _read_csv(path: Path, text: str) -> list[dict]:
    csv.field_size_limit(MAX_PROMPT_CHARACTERS)  # the csv module has one limit for all readers
    source = io.StringIO(text, newline="")
    reader = csv.DictReader(source, restkey="more", restval="", strict=True)
    try:
        return [dict(row) for row in reader]
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: {error}"
            " (is a quotation mark not closed, or not doubled?)"
        ) from None


def _read_jsonl(path: Path, text: str) -> list[dict]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line, number)
        except UserError as error:
            raise UserError(f"{path}, {error}") from None
        if not isinstance(row, dict):
            raise UserError(f'{path}, line {number}: expected an object like {{"prompt": "…"}}')
        rows.append(row)
    return rows


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
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def _write_jsonl(path: Path, rows: list[dict]) -> None:
    write_synced_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


WRITERS = {".csv": _write_csv, ".jsonl": _write_jsonl}
