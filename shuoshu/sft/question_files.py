"""Question files to records: finds the files and reads JSON, JSON Lines and tables."""

from __future__ import annotations

import errno
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from shuoshu.core.errors import UserError
from shuoshu.core.files import error_reason, find_input_files, open_file
from shuoshu.core.terminal import counted
from shuoshu.sft.layouts import known_layout
from shuoshu.sft.pairs import (
    RejectedRecords,
    Rejection,
    clean_field,
    preview,
)
from shuoshu.sft.tables import DELIMITERS, table_rows
from shuoshu.text.dataset import QUESTION_SPLITS
from shuoshu.text.encodings import MAX_FILE_BYTES, TextDecoder
from shuoshu.text.tokenizer_folder import TOKENIZER_FILES

QUESTION_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv")
PROMPT_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".txt")
MAX_JSON_BYTES = 1 << 30  # a .json file is parsed in one piece
MAX_INT_DIGITS = 4000  # int() refuses more than 4,300 digits; a longer number stays text

# ---------------------------------------------------------------- files


def find_question_files(inputs: Sequence[str | Path]) -> list[Path]:
    """The question files that the user names and those in folders, each once.

    Files that prepare_sft.py wrote into a folder are left out. Raises UserError if a path doesn't
    exist, has another suffix, or is a folder without question files.
    """
    files = find_input_files(inputs, QUESTION_SUFFIXES, _users_files)
    for file in files:
        if file.suffix.lower() not in QUESTION_SUFFIXES:
            raise UserError(
                f"{file}: questions and answers are read from {', '.join(QUESTION_SUFFIXES)}"
                " (save a spreadsheet as CSV)"
            )
    return files


def _users_files(folder: Path) -> list[Path]:
    """The files in a folder, without hidden ones and those that prepare_sft.py wrote."""
    written = {"meta.json", *TOKENIZER_FILES}
    if (folder / "meta.json").exists():
        written |= {f"{split}.jsonl" for split in QUESTION_SPLITS}
    return [path for path in folder.glob("[!.]*") if path.name not in written]


def read_records(
    path: Path, encoding: str | None = None, rejected: RejectedRecords | None = None
) -> list[tuple[int, dict]]:
    """(row number, record) of each record in a file; other rows go to `rejected`.

    Raises UserError if the file can't be read or has no records.
    """
    rejected = RejectedRecords() if rejected is None else rejected
    name = clean_field(path.name)
    records = []
    for number, row in read_rows(path, encoding, rejected.notes):
        rejected.read += 1
        if isinstance(row, Rejection):
            rejected.add(row.reason, f"{name}, row {number}", row.detail)
        else:
            records.append((number, row))
    if not records:
        raise UserError(
            f"{path}: it holds no rows (objects in JSON, or lines with as many cells as the header)"
        )
    return records


def read_rows(
    path: Path, encoding: str | None, notes: list[str]
) -> Iterator[tuple[int, dict | Rejection]]:
    """Yields (row number, record, or why it is none) of each row of a file.

    Rows of a JSON list are counted from 1, those of JSON Lines are line numbers, and the header of
    a table is row 1. A .txt file has a prompt in each line that isn't blank. Doubts about what was
    read go to `notes`. Raises UserError if the file can't be read.
    """
    suffix = path.suffix.lower()
    own_notes: list[str] = []
    try:
        with open_file(path, MAX_JSON_BYTES if suffix == ".json" else MAX_FILE_BYTES) as file:
            decoder = TextDecoder(file, encoding)
            if suffix in DELIMITERS:
                yield from table_rows(_lines(decoder), suffix, own_notes)
            elif suffix == ".txt":
                lines = (line.rstrip("\r\n") for line in _lines(decoder))
                yield from (
                    (n, {"prompt": line}) for n, line in enumerate(lines, 1) if line.strip()
                )
            else:
                yield from _json_rows(decoder, suffix)
    except OSError as error:
        advice = ""
        if error.errno == errno.EFBIG:
            advice = "; split it into several files, or write it as .jsonl, one object per line"
        raise UserError(f"{path}: it can't be read ({error_reason(error)}){advice}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if decoder.broken:
        places = counted(decoder.broken, "place")
        own_notes.append(f"{places} can't be decoded as {decoder.encoding}: replaced by �")
    notes += [f"{clean_field(path.name)}: {note}" for note in own_notes]


def _lines(decoder: TextDecoder) -> Iterator[str]:
    """Yields the lines of a text with their line ends, while it is read."""
    for part in decoder.parts():
        yield from io.StringIO(part, newline="")


# ---------------------------------------------------------------- JSON


def _json_rows(decoder: TextDecoder, suffix: str) -> Iterator[tuple[int, dict | Rejection]]:
    """Yields (row number, record) of a JSON document or of JSON Lines, whatever the suffix says."""
    start = decoder.head[decoder.bom_bytes :].lstrip(b"\0\t\r\n ")  # \0: of UTF-16
    if suffix == ".jsonl" and not start.startswith(b"["):
        rows = _json_lines(_lines(decoder))
    else:
        text = "".join(decoder.parts())
        try:
            rows = enumerate(_list_in(_parse_json(text)), 1)
        except UserError as error:
            if "(Extra data)" not in str(error) or not text[:1000].lstrip().startswith("{"):
                raise
            rows = _json_lines(text.split("\n"))
    for number, row in rows:
        if isinstance(row, dict):
            yield number, row
        else:
            yield number, Rejection("wrong type", f"the row is {preview(row)}")


def _json_lines(lines: Iterable[str]) -> Iterator[tuple[int, object]]:
    """Yields (line number, value) of each line that isn't blank."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, _parse_json(line, number)


def _parse_json(text: str, line: int = 1) -> object:
    """Parses a JSON document that begins at this line of a file.

    Raises UserError, with the place, if the text is not JSON or an object has a field twice.
    """
    try:
        return json.loads(
            text,
            strict=False,  # allows line ends within strings
            parse_int=lambda digits: int(digits) if len(digits) < MAX_INT_DIGITS else digits,
            object_pairs_hook=_unique_fields,
        )
    except json.JSONDecodeError as error:
        raise UserError(
            f"line {line + error.lineno - 1}, column {error.colno}:"
            f" this is not JSON ({error.msg}); correct the file there"
        ) from None
    except _RepeatedField as error:
        raise UserError(
            f"line {line}: an object has two fields called {preview(str(error))}: remove one"
        ) from None
    except RecursionError:
        raise UserError(
            f"line {line}: brackets are nested too deeply for questions and answers"
        ) from None


class _RepeatedField(Exception):
    """An object has two fields of this name."""


def _unique_fields(pairs: list[tuple[str, object]]) -> dict:
    """The object with these fields."""
    result = dict(pairs)
    if len(result) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise _RepeatedField(next(name for name, count in counts.items() if count > 1))
    return result


def _list_in(document: object) -> list:
    """The list of records in a JSON document: the document itself, or the only list in an object.

    An object that is a record itself becomes a list of one. Raises UserError if there is no list.
    """
    if isinstance(document, list):
        return document
    content = document if isinstance(document, dict) else {}
    lists = {
        name: rows
        for name, rows in content.items()
        if isinstance(rows, list) and rows and isinstance(rows[0], dict)
    }
    holds_records = any(known_layout(rows[0]) for rows in lists.values())
    if known_layout(content) and not holds_records:
        return [document]
    if len(lists) == 1:
        return next(iter(lists.values()))
    content = f"several ({preview(', '.join(lists))}): leave one in the file" if lists else "none"
    raise UserError(f"a list of objects is expected, but the file holds {content}")
