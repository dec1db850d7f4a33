"""Prompts from the command line and from files; rows with what a model made of them to files."""

from __future__ import annotations

import csv
import errno
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shuoshu.core.errors import UserError
from shuoshu.core.files import error_reason, read_text, write_atomically, write_synced_text
from shuoshu.core.terminal import counted
from shuoshu.sft.conversations import UnusableRecord, fill_template
from shuoshu.sft.layouts import Template, TemplatePiece, parse_template, template_columns
from shuoshu.sft.pairs import MAX_EXAMPLES, Rejection, clean_field, preview, scalar_text
from shuoshu.sft.question_files import PROMPT_SUFFIXES, read_rows

# The column with the prompt is the first of these that the row has, in upper or lower case.
PROMPT_COLUMNS = ("prompt", "question", "instruction", "start", "text", "query", "input", "q")
PROMPT_COLUMNS += ("问题", "提问", "问")

# ---------------------------------------------------------------- the command line


def command_line_prompts(starts: Sequence[str]) -> list[str]:
    """The texts of --start, with the content of its files; else a pipe's, else an empty one.

    UserError if a file can't be read.
    """
    if not starts:
        is_pipe = sys.stdin is not None and not sys.stdin.isatty()
        starts = (sys.stdin.read().rstrip("\n") if is_pipe else "",)
    return [_read_start(start) for start in starts]


def _read_start(start: str) -> str:
    if not start.startswith("FILE:"):
        return start
    path = Path(start.removeprefix("FILE:"))
    try:
        return read_text(path).rstrip("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"can't read the prompt in {path}: {error_reason(error)}") from None


def prompt_of_text(text: str, template: str) -> str:
    """The prompt of a text that is not empty: the template's if that has one column, else itself.

    UserError if the template can't be parsed.
    """
    columns = template_columns(template)
    if len(columns) != 1:
        return text
    columns = {columns[0]: columns[0]}
    parsed = parse_template("question", template, columns, Path())
    return fill_template(dict.fromkeys(columns, text), parsed)


# ---------------------------------------------------------------- read


@dataclass
class PromptFile:
    """The rows of a file with all their columns, and their prompts."""

    path: Path
    rows: list[dict] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)  # "row 17"
    prompts: list[str | None] = field(default_factory=list)  # None: the row has no usable prompt
    systems: list[str | None] = field(default_factory=list)  # system messages; None: it has none
    problems: list[str] = field(default_factory=list)  # of these rows
    notes: list[str] = field(default_factory=list)

    def usable(
        self, result: str, encode: Callable[[str, str | None], list[int]]
    ) -> dict[int, list[int]]:
        """The prompt's ids of each row by `encode`, which gets its prompt and system message.

        Prints how many rows get no `result` ("answer") because they have no usable prompt or
        `encode` raises UserError. Raises UserError if these are all rows.
        """
        ids, problems = {}, list(self.problems)
        for row, prompt in enumerate(self.prompts):
            try:
                if prompt is not None:
                    ids[row] = encode(prompt, self.systems[row])
            except UserError as error:
                problems.append(f"{self.sources[row]}: {error}")
        for note in self.notes:
            print(f"note: {note}", file=sys.stderr)
        if not ids:
            raise UserError(f"no row of {self.path} can get a {result} ({problems[0]})")
        if problems:
            examples = "".join(f"\n  {problem}" for problem in problems[:MAX_EXAMPLES])
            rows = counted(len(problems), "row")
            print(f"no {result} for {rows}, for example{examples}", file=sys.stderr)
        return ids


FileRow = tuple[int, dict | Rejection]  # a row's number, and its values or why it has none
# A row → its prompt, and its system message or None. Raises UnusableRecord.
ReadPrompt = Callable[[dict], tuple[str, str | None]]


def read_prompts(path: Path) -> PromptFile:
    """All rows of a file of prompts, those without a usable prompt included.

    Raises UserError if the file can't be read or no row has a usable prompt.
    """
    file = PromptFile(path)
    return _add_rows(file, _file_rows(file), _known_prompt)


def read_texts(path: Path, template: str) -> PromptFile:
    """All rows of a file of texts to label; their prompts are those that the training would make.

    template: of the training's questions; empty if known columns made them. Raises UserError as
    read_prompts, and if the file lacks a column of the template.
    """
    file = PromptFile(path)
    rows = _file_rows(file)
    if not template:
        return _add_rows(file, rows, _known_text)
    rows = list(rows)
    if path.suffix.lower() == ".txt":
        rows = _renamed_column(path, rows, template)
    parsed = _fitting_template(path, rows, template)
    return _add_rows(file, rows, lambda row: (fill_template(row, parsed), None))


def _file_rows(file: PromptFile) -> Iterator[FileRow]:
    """Yields the rows of a file of prompts; doubts about them go to its notes."""
    if file.path.suffix.lower() not in PROMPT_SUFFIXES:
        raise UserError(f"{file.path}: prompts are read from {', '.join(PROMPT_SUFFIXES)}")
    return read_rows(file.path, None, file.notes)


def _add_rows(file: PromptFile, rows: Iterable[FileRow], read: ReadPrompt) -> PromptFile:
    """The file with these rows, and the prompts that `read` makes of them."""
    for number, row in rows:
        source = f"row {number}"
        prompt = system = None
        if isinstance(row, Rejection) and row.record is None:
            raise UserError(
                f'{file.path}, {source}: {row.detail}; expected an object like {{"prompt": "…"}}'
            )
        if isinstance(row, Rejection):
            file.problems.append(f"{source}: {row.reason}, {row.detail}")
            row = row.record
        else:
            try:
                prompt, system = read(row)
            except UnusableRecord as error:
                _, detail = error.args
                file.problems.append(f"{source}: {detail}")
        file.rows.append(row)
        file.sources.append(source)
        file.prompts.append(prompt)
        file.systems.append(system)
    if len(file.problems) == len(file.rows):
        example = f" ({file.problems[0]})" if file.problems else ""
        raise UserError(f"{file.path} holds no prompt{example}")
    return file


# ---------------------------------------------------------------- known columns


def _known_prompt(row: dict) -> tuple[str, str | None]:
    """The prompt in a row's known columns as it stands there, and its system message."""
    pieces = _known_template(row)
    texts = [_text(row, piece.column, f"its {piece.column}") for piece in pieces]
    if not texts[0].strip():
        raise UnusableRecord("empty", f"its {pieces[0].column} is empty")
    return "\n".join(text for text in texts if text), _system(row)


def _known_text(row: dict) -> tuple[str, str | None]:
    """The prompt in a row's known columns, cleaned as in the training, and its system message."""
    return fill_template(row, _known_template(row)), _system(row)


def _known_template(row: dict) -> Template:
    """The template that a row's known columns are. Raises UnusableRecord if it has none."""
    names = {name.casefold(): name for name in row}
    column = next((name for name in PROMPT_COLUMNS if name in names), None)
    if column is None:
        known = ", ".join(PROMPT_COLUMNS)
        raise UnusableRecord("empty", f"it has no column {known}, but {preview(', '.join(row))}")
    template = [TemplatePiece("", names[column])]
    if column == "instruction" and "input" in names:  # Alpaca's
        template.append(TemplatePiece("\n", names["input"], is_required=False))
    return template


def _system(row: dict) -> str | None:
    """A row's own system message, None if it has none. Raises UnusableRecord if it is no text."""
    column = next((name for name in row if name.casefold() == "system"), None)
    return clean_field(_text(row, column, "its system")) or None


def _text(row: dict, column: str | None, what: str) -> str:
    text = scalar_text(row.get(column))
    if text is None:
        raise UnusableRecord("wrong type", f"{what} is {preview(row[column])}")
    return text


# ---------------------------------------------------------------- columns of a template


def _fitting_template(path: Path, rows: Sequence[FileRow], template: str) -> Template:
    """The parsed template; UserError, with the file's columns, if one that it needs is missing."""
    names = dict.fromkeys(name for _, row in rows if isinstance(row, dict) for name in row)
    if not names:  # no row can be used: the caller says why
        return ()
    columns = {**{name.casefold(): name for name in names}, **{name: name for name in names}}
    try:
        return parse_template("question", template, columns, path)
    except UserError:
        needed = ", ".join(template_columns(template))
        raise UserError(
            f"{path} doesn't fit this model, which reads a text as {preview(template, 100)!r}:"
            f" it needs {needed} (rename the column of the texts); the file's columns are:"
            f" {preview(', '.join(names), 400)}"
        ) from None


def _renamed_column(path: Path, rows: Sequence[FileRow], template: str) -> list[FileRow]:
    """The rows of a .txt file with the template's column; UserError if it doesn't have just one."""
    columns = template_columns(template)
    if len(columns) != 1:
        raise UserError(
            f"{path}: this model reads a text as {preview(template, 100)!r}: give it a table with"
            f" the columns {', '.join(columns)}"
        )
    return [(number, {columns[0]: row["prompt"]}) for number, row in rows]


# ---------------------------------------------------------------- write


def require_writable(path: Path) -> None:
    """UserError if rows can't be written to this path. Creates its folder.

    Call it before the texts are generated, which may take an hour.
    """
    if path.suffix.lower() not in WRITERS:
        raise UserError(f"--out={path}: rows are written to .csv or .jsonl")
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


def new_columns(rows: list[dict], names: list[str]) -> list[str]:
    """Names for new columns: these, with model_ before them until no row has one of them."""
    own = {column for row in rows for column in row}
    while own.intersection(names):
        names = [f"model_{name}" for name in names]
    return names


WRITERS = {".csv": _write_csv, ".jsonl": _write_jsonl}
