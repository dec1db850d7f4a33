"""Question files to records: finds the files and reads JSON, JSON Lines and tables."""

from __future__ import annotations

import csv
import errno
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from shuoshu.core.errors import UserError
from shuoshu.core.files import error_reason, find_input_files, open_file
from shuoshu.sft.layouts import known_layout
from shuoshu.sft.pairs import QUESTION_SPLITS, RejectedRecords, clean_field, preview
from shuoshu.text.encodings import MAX_FILE_BYTES, TextDecoder

QUESTION_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv")
DELIMITERS = {".csv": ",\t;", ".tsv": "\t,;"}  # the first one that the header contains is used
MAX_JSON_BYTES = 1 << 30  # a .json file is parsed in one piece
MAX_CELL_CHARACTERS = (1 << 31) - 1  # the csv module's own limit would be 131,072
MAX_INT_DIGITS = 4000  # int() refuses more than 4,300 digits; a longer number stays text
# A line that is added after a table's last one. If the csv module doesn't return it as a row of its
# own, a quotation mark before it is still open.
END_MARK = "\x1cend\x1c"


class Rejection(NamedTuple):
    """Why a row of a file is not a record."""

    reason: str
    detail: str


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
    written = {"meta.json", "tokenizer.json"}
    if (folder / "meta.json").exists():
        written |= {f"{split}.jsonl" for split in QUESTION_SPLITS}
    return [path for path in folder.glob("[!.]*") if path.name not in written]


def read_records(
    path: Path, encoding: str | None = None, rejected: RejectedRecords | None = None
) -> list[tuple[int, dict]]:
    """(row number, record) of each record in a file; other rows go to `rejected`.

    Rows of a JSON list are counted from 1, those of JSON Lines are line numbers, and the header of
    a table is row 1. Raises UserError if the file can't be read or has no records.
    """
    rejected = RejectedRecords() if rejected is None else rejected
    name, suffix = clean_field(path.name), path.suffix.lower()
    records = []
    try:
        with open_file(path, MAX_JSON_BYTES if suffix == ".json" else MAX_FILE_BYTES) as file:
            decoder = TextDecoder(file, encoding)
            read_rows = _table_rows if suffix in DELIMITERS else _json_rows
            for number, row in read_rows(decoder, suffix):
                rejected.read += 1
                if isinstance(row, Rejection):
                    rejected.add(row.reason, f"{name}, row {number}", row.detail)
                else:
                    records.append((number, row))
        if not records:
            raise UserError(
                "it holds no rows (objects in JSON, or lines with as many cells as the header)"
            )
    except OSError as error:
        advice = ""
        if error.errno == errno.EFBIG:
            advice = "; split it into several files, or write it as .jsonl, one object per line"
        raise UserError(f"{path}: it can't be read ({error_reason(error)}){advice}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if decoder.broken:
        rejected.notes.append(
            f"{name}: {decoder.broken:,} places can't be decoded as {decoder.encoding} and became �"
        )
    return records


# ---------------------------------------------------------------- tables


def _table_rows(decoder: TextDecoder, suffix: str) -> Iterator[tuple[int, dict | Rejection]]:
    """Yields (row number, record) of a table with a header; blank rows are skipped."""
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    lines = (line.replace("\0", "") for line in _lines(decoder))
    first = next((line for line in lines if line.strip()), "")
    delimiter = next((sign for sign in DELIMITERS[suffix] if sign in first), ",")
    reader = csv.reader(chain([first], lines, [END_MARK]), delimiter=delimiter)
    try:
        header = [cell.strip() for cell in next(reader)]
        repeated = [name for name, count in Counter(header).items() if name and count > 1]
        if repeated:
            raise UserError(f"several columns are called {preview(repeated[0])}: rename them")
        last_line = reader.line_num  # of the row before
        for number, cells in enumerate(reader, 2):
            if cells == [END_MARK]:
                return
            if cells and cells[-1].endswith(END_MARK):
                break
            if cells and len(cells) == len(header):
                yield number, dict(zip(header, cells, strict=True))
            elif cells:
                detail = f"{len(cells)} cells: {cells[0]} …"
                yield number, Rejection("wrong number of cells", detail)
            last_line = reader.line_num
    except csv.Error as error:
        raise UserError(f"line {reader.line_num}: {error}") from None
    raise UserError(
        f"a quotation mark in the row after line {last_line} is never closed:"
        " close it, or double it if it is part of the text"
    )


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
            rows = enumerate(_list_in(parse_json(text)), 1)
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
            yield number, parse_json(line, number)


def parse_json(text: str, line: int = 1) -> object:
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
