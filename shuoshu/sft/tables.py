"""Tables to records: finds the delimiter, reads quotation marks, names each row's cells."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from shuoshu.core.errors import UserError
from shuoshu.core.terminal import counted
from shuoshu.sft.pairs import MAX_EXAMPLES, Rejection, preview

DELIMITERS = {".csv": ",\t;", ".tsv": "\t,;"}  # the first one that the header contains is used
MAX_CELL_CHARACTERS = (1 << 31) - 1  # the csv module's own limit would be 131,072
DOUBLE_IT = (
    "double a quotation mark that is part of the text,"
    ' and put its cell into quotation marks: "He said ""yes"""'
)


class PlacedRow(NamedTuple):
    """A row's cells, and the numbers of its first and last line in the file."""

    cells: list[str]
    first: int
    last: int


def table_rows(
    lines: Iterable[str], suffix: str, notes: list[str]
) -> Iterator[tuple[int, dict | Rejection]]:
    """Yields (row number, record) of a table with a header; empty lines are skipped.

    Doubtful quotation marks go to `notes`. Raises UserError if a row can't be told from the next.
    """
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    lines = [line.replace("\0", "") for line in lines]
    start = next((n for n, line in enumerate(lines) if line.strip()), 0)  # index of the header
    lines[:start] = ["\n"] * start
    rows = _split_rows(lines, start, _find_delimiter(lines[start], suffix), notes)
    names = _column_names(rows[start].cells)
    for number, (cells, _, _) in enumerate(rows[start + 1 :], start + 2):
        if cells and len(cells) == len(names):
            yield number, dict(zip(names, cells, strict=True))
        elif cells:
            missing = [""] * (len(names) - len(cells))
            more = [f"column {n + 1}" for n in range(len(names), len(cells))]
            record = dict(zip([*names, *more], [*cells, *missing], strict=True))
            detail = f"{counted(len(cells), 'cell')}: {cells[0]} …"
            yield number, Rejection("wrong number of cells", detail, record)


def _find_delimiter(header: str, suffix: str) -> str:
    outside = re.sub('"[^"]*"', "", header)
    return next((sign for sign in DELIMITERS[suffix] if sign in outside), ",")


def _column_names(header: Sequence[str]) -> list[str]:
    """The header's names; a column without a name is called by its number.

    Raises UserError if two columns have one name.
    """
    names = [cell.strip() or f"column {number}" for number, cell in enumerate(header, 1)]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"several columns are called {preview(repeated[0])}: rename them")
    return names


# ---------------------------------------------------------------- quotation marks


def _split_rows(
    lines: Sequence[str], start: int, delimiter: str, notes: list[str]
) -> list[PlacedRow]:
    """The rows of a table whose header is in `lines[start]`.

    Quotation marks enclose cells, as csv writers use them. They are text if every line has as many
    cells as the header only then. Raises UserError if neither is certain.
    """
    rows: list[PlacedRow] = []
    problem = None
    try:
        for row in _quoted_rows(lines, delimiter):
            rows.append(row)
    except UserError as error:
        problem = error
    width = len(rows[start].cells) if len(rows) > start else 0
    joined = [row for row in rows if row.last > row.first]
    ragged = [row for row in rows if row.cells and len(row.cells) != width]
    if not (problem or ragged or joined):
        return rows
    if not _fits_without_quotes(lines[start:], delimiter):
        if problem:
            raise problem
        notes += _joined_notes(joined, lines, delimiter, width)
        return rows
    if not (problem or ragged) and delimiter != "\t":
        raise UserError(_two_readings_message(joined[0]))
    first = min((row.first for row in (*ragged, *joined)), default=rows[-1].last + 1)
    notes.append(
        "quotation marks are read as text, because every line has as many cells as the header"
        f" only then, for example line {first}: {preview(lines[first - 1])}"
    )
    reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    return [PlacedRow(cells, number, number) for number, cells in enumerate(reader, 1)]


def _quoted_rows(lines: Sequence[str], delimiter: str) -> Iterator[PlacedRow]:
    """Yields the rows, with quotation marks as csv writers use them.

    Raises UserError at a mark that is never closed or is followed by text.
    """
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    first = 1
    try:
        for cells in reader:
            yield PlacedRow(cells, first, reader.line_num)
            first = reader.line_num + 1
    except csv.Error as error:
        problem = f"text follows the closing quotation mark of a cell in line {reader.line_num}"
        if "unexpected end" in str(error):
            problem = "a quotation mark is never closed"
        raise UserError(f"in the row that begins in line {first}, {problem}: {DOUBLE_IT}") from None


def _fits_without_quotes(lines: Sequence[str], delimiter: str) -> bool:
    """Whether a table is regular if quotation marks are text; its header is the first line.

    Every line has as many cells as the header, of which there are two or more, and no cell is
    quoted as csv writers do it.
    """
    count = lines[0].count(delimiter)
    return (
        count > 0
        and '"' not in lines[0]
        and all(line.count(delimiter) == count for line in lines if line.strip("\r\n"))
        and not any(
            _is_quoted(cell, delimiter)
            for line in lines
            if '"' in line
            for cell in line.rstrip("\r\n").split(delimiter)
        )
    )


def _is_quoted(cell: str, delimiter: str) -> bool:
    """Whether a cell is quoted by a csv writer: in marks, with those inside doubled.

    Between tabs, a text in marks is perhaps speech; only a doubled mark shows a csv writer.
    """
    inside = cell[1:-1]
    is_enclosed = (
        len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inside.replace('""', "")
    )
    return is_enclosed and (delimiter != "\t" or '"' in inside)


def _joined_notes(
    rows: Sequence[PlacedRow], lines: Sequence[str], delimiter: str, width: int
) -> list[str]:
    """A note on the rows of several lines that look like rows, which is seldom by chance.

    Each line has as many cells as the header, and no delimiter before a blank or its end, where
    prose has commas.
    """

    def looks_like_a_row(line: str) -> bool:
        is_prose = f"{delimiter} " in line or line.rstrip('"\r\n').endswith(delimiter)
        return bool(line.strip()) and not is_prose and line.count(delimiter) == width - 1

    doubtful = [row for row in rows if all(map(looks_like_a_row, lines[row.first - 1 : row.last]))]
    if not doubtful:
        return []
    places = ", ".join(f"{row.first} to {row.last}" for row in doubtful[:MAX_EXAMPLES])
    return [
        f"{counted(len(doubtful), 'row')} with a cell of several lines, each of which could be a"
        f" row (lines {places}); if it is one, {DOUBLE_IT}"
    ]


def _two_readings_message(row: PlacedRow) -> str:
    return (
        f"a quotation mark makes lines {row.first} to {row.last} one row, but each of them has as"
        f" many cells as the header. If they are several rows, {DOUBLE_IT}. If they are one, put"
        " the names in the header into quotation marks too"
    )
