"""Tables: quotation marks that csv writers write, and those that are part of the text."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuoshu.core.errors import UserError
from shuoshu.sft.pairs import RejectedRecords
from shuoshu.sft.question_files import read_records
from tests.sft.helpers import write

STRAYS = ['"他说好', '问5"了']  # an opening mark, and one that closes a cell before more text


def cells_in(path: Path, content: str) -> tuple[list[list[str]], list[str]]:
    """(the cells of each row, notes) of a table with this content."""
    account = RejectedRecords()
    records = read_records(write(path, content), rejected=account)
    return [list(record.values()) for _, record in records], account.notes


def regular(delimiter: str, *strays: str) -> tuple[str, list[list[str]]]:
    """(table, its rows): eight rows, and in every second one a question with a stray mark."""
    rows = [[f"问{n}", f"答{n}"] for n in range(8)]
    for n, stray in enumerate(strays):
        rows[2 * n + 1][0] = stray
    table = "".join(f"{delimiter.join(row)}\n" for row in [["question", "answer"], *rows])
    return table, rows


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("strays", [STRAYS, STRAYS[:1], ['"好"，他说']])
def test_stray_marks_in_a_table_without_quoted_cells_are_text(
    tmp_path: Path, delimiter: str, strays: list[str]
) -> None:
    table, rows = regular(delimiter, *strays)
    read, [note] = cells_in(tmp_path / "a.csv", table)
    assert read == rows
    assert "a.csv: quotation marks are read as text" in note and f"line 3: {strays[0]}" in note


def test_marks_inside_unquoted_cells_are_text_without_a_note(tmp_path: Path) -> None:
    table, rows = regular(",", '5" 的盘', '他说"好"的')
    assert cells_in(tmp_path / "a.csv", table) == (rows, [])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        # The quoted comma shows that the table uses quotation marks as csv does.
        (
            '问,答\n"甲,乙",丙\n"他说好,答1\n问2,答2\n问3"了,答3\n',
            "begins in line 3.*in line 5: double",
        ),
        ('问,答\n"问1","答1"\n"问2,"答2"\n', "begins in line 3, text follows"),
        ('"问","答"\n"他说好,答1\n问2"了,答2\n', "begins in line 2, text follows.*line 3"),
        ('问,答\n甲,乙\n丙,"丁,戊\n己,庚\n', "line 3, a quotation mark is never closed"),
        ('问\n"好，"他说\n', "line 2, text follows"),
    ],
)
def test_stray_mark_among_quoted_cells_is_an_error_with_its_lines(
    tmp_path: Path, table: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        cells_in(tmp_path / "a.csv", table)
    assert str(tmp_path / "a.csv") in str(error.value) and '""yes""' in str(error.value)


def test_two_stray_marks_that_look_like_a_quoted_cell_are_an_error(tmp_path: Path) -> None:
    table, _ = regular(",", '"他说好', '问3"')
    with pytest.raises(UserError, match=r"a\.csv: a quotation mark makes lines 3 to 5 one row"):
        cells_in(tmp_path / "a.csv", table)


def test_two_stray_marks_between_tabs_are_text(tmp_path: Path) -> None:
    table, rows = regular("\t", '"他说好', '问3"', '"一句话"')
    read, [note] = cells_in(tmp_path / "a.tsv", table)
    assert read == rows and 'line 3: "他说好' in note


def test_quoted_list_of_pairs_is_a_cell_if_the_header_is_quoted_too(tmp_path: Path) -> None:
    table = '"问","答"\n甲,"列出：\n苹果,3\n梨,4"\n'
    read, [note] = cells_in(tmp_path / "a.csv", table)
    assert read == [["甲", "列出：\n苹果,3\n梨,4"]]
    assert "1 row with a cell of several lines, each of which could be a row (lines 2 to 4)" in note


@pytest.mark.parametrize(
    "table",
    [
        '问,答\r\n甲,乙\r\n丙,"丁\r\n戊"\r\n',
        '问\t答\n甲\t"乙\n\n丙"\n"丁 ""戊"" 己"\t庚\n',
        '问\n"一\n\n二"\n三\n',
        '问,答\n"甲, 乙",丙\n丁,"戊\n己, 庚, 辛"\n',
        '问,答\n"甲, 乙",丙\n丁,"戊\n己, 庚"\n',
        '问,答\n"甲, 乙",丙\n丁,"戊\n己,"\n',
    ],
)
def test_cells_with_line_ends_are_read_without_a_note(tmp_path: Path, table: str) -> None:
    delimiter = "\t" if "\t" in table else ","
    expected = [*csv.reader(io.StringIO(table, newline=""), delimiter=delimiter)][1:]
    assert cells_in(tmp_path / "a.csv", table) == (expected, [])


CELLS = st.text(st.sampled_from('ab雨，“ ,;\t"\n'), max_size=6)
ALWAYS_QUOTED = (csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC)


@given(
    rows=st.integers(1, 4).flatmap(
        lambda width: st.lists(st.lists(CELLS, min_size=width, max_size=width), min_size=1)
    ),
    suffix=st.sampled_from([".csv", ".tsv"]),
    delimiter=st.sampled_from(",;\t"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, *ALWAYS_QUOTED]),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_written_cells_are_read_unchanged_or_the_doubt_is_told(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[list[str]],
    suffix: str,
    delimiter: str,
    quoting: int,
    line_end: str,
) -> None:
    if len(rows[0]) == 1:
        delimiter = ","  # the header doesn't show another one
    # A csv writer doesn't quote a cell for a line end that isn't its own.
    rows = [[cell.replace("\n", line_end) for cell in row] for row in rows]
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=line_end)
    writer.writerows([[f"c{n}" for n in range(len(rows[0]))], *rows])
    path = tmp_path_factory.getbasetemp() / f"written{suffix}"
    # Cells of several lines, each with as many delimiters as the header, have two readings.
    try:
        read, notes = cells_in(path, text.getvalue())
    except UserError as error:
        assert quoting == csv.QUOTE_MINIMAL and "one row, but each of them has" in str(error)
    else:
        has_two_readings = delimiter == "\t" and any("are read as text" in note for note in notes)
        assert read == rows or (quoting == csv.QUOTE_MINIMAL and has_two_readings)


TEXTS_WITH_MARKS = st.text(st.sampled_from('a雨"')).filter(lambda text: text.strip('"'))


@given(
    rows=st.integers(1, 4).flatmap(
        lambda width: st.lists(
            st.lists(TEXTS_WITH_MARKS, min_size=width, max_size=width),
            min_size=1,
        )
    ),
    delimiter=st.sampled_from(",;\t"),
)
def test_no_row_of_a_table_with_stray_marks_disappears_untold(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], delimiter: str
) -> None:
    header = [f"c{n}" for n in range(len(rows[0]))]
    table = "".join(f"{delimiter.join(row)}\n" for row in [header, *rows])
    account = RejectedRecords()
    try:
        read_records(write(tmp_path_factory.getbasetemp() / "stray.csv", table), rejected=account)
    except UserError as error:
        assert "quotation mark" in str(error) or "holds no rows" in str(error)
    else:
        assert account.read == len(rows) or account.notes
