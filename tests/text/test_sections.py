"""Reading novels: headings and sections, wherever the file is cut."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuoshu.text.books import BLOCK_CHARACTERS, HEADING, sections
from tests.text.book_helpers import PROSE, read, write


def titles(path: Path, block: int = BLOCK_CHARACTERS) -> list[str]:
    return [section.title for section in sections(path, block) if section.title is not None]


# ---------------------------------------------------------------- headings


@pytest.mark.parametrize(
    "line",
    [
        "第一回 灵根育孕源流出",
        "第一回",
        "　　第一回　甄士隐梦幻识通灵",
        "\t第十二章：雨夜",
        "第12章",
        "第１２章 归来",
        "第一百零八回 大结局",
        "第三卷 北国",
        "第两千节",
        "Chapter 12",
        "CHAPTER XII.",
        "  chapter iv: The Storm",
        "Chapter 7. In which it rains",
        "第廿一回、夜雨",
        "第三章、二人同行",
    ],
)
def test_a_heading_is_recognised(tmp_path: Path, line: str) -> None:
    assert titles(write(tmp_path / "book.txt", f"前言。\n{line}\n正文。\n")) == [
        " ".join(line.split())
    ]


@pytest.mark.parametrize(
    "line",
    [
        "第一回见到他时，雨正下着。",
        "第二天",
        "第二天 他又来了",
        "他读到第三回 就睡了",
        "第一章，他写得很慢。",
        "第回 无数",
        "Chapters 12 and 13",
        "Chapter and verse",
        "Chapter 12th of the law",
        "CHAPTER XIIth",
        "第一回 " + "长" * 70,
        "第一部、第二部都卖光了",
        "第一部、第二部都卖光了。",
        "第一卷、二卷，都在火里",
        "第一章、序言和附录都丢了。",
    ],
)
def test_prose_is_not_a_heading(line: str) -> None:
    assert not HEADING.search(f"前言。\n{line}\n正文。\n")


def test_a_heading_is_found_at_the_beginning_and_at_the_end_of_a_file(tmp_path: Path) -> None:
    book = read(tmp_path / "book.txt", "\ufeff第一回 甲\r\n文\r\n第二回 乙")
    assert titles(book.file) == [title for title, _ in book.chapters] == ["第一回 甲", "第二回 乙"]


# ---------------------------------------------------------------- sections


@given(text=PROSE, block=st.integers(1, 24))
def test_sections_join_to_the_text(
    tmp_path_factory: pytest.TempPathFactory, text: str, block: int
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "joined.txt", text)
    pieces = list(sections(path, block))
    assert "".join(section.text for section in pieces) == text
    assert all(section.text for section in pieces)
    for section in pieces:
        if section.title is not None:
            assert section.text.lstrip(" \t　").startswith(section.title.split(" ")[0])


@pytest.mark.parametrize("block", [1, 2, 3, 5, 7, 64])
def test_characters_at_a_block_boundary_are_whole(tmp_path: Path, block: int) -> None:
    text = "é雨𠮷👩‍👧\r\n" * 20
    assert "".join(s.text for s in sections(write(tmp_path / "book.txt", text), block)) == text


@pytest.mark.parametrize("block", [64, 100, 1000])
def test_chapters_are_found_wherever_the_blocks_end(tmp_path: Path, text: str, block: int) -> None:
    path = write(tmp_path / "book.txt", text)
    whole = titles(path)
    assert titles(path, block) == whole and len(whole) == 10


@pytest.mark.parametrize("block", range(25, 45))
def test_a_section_begins_at_a_line_that_is_not_blank(tmp_path: Path, block: int) -> None:
    path = write(tmp_path / "book.txt", "一行文字。\n\n \n另一行文字。\n\n\n" * 20)
    pieces = list(sections(path, block))
    assert len(pieces) > 5
    assert not any(section.text[:1].isspace() for section in pieces)


def test_a_novel_with_indented_paragraphs_is_cut_at_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "book.txt", "　　沈砚点起一盏油灯，望着河面出神。\n" * 200)
    pieces = list(sections(path, 300))
    assert all(section.text.endswith("\n") for section in pieces)
    assert max(len(section.text) for section in pieces) < 600


def test_only_a_few_blocks_of_an_endless_line_are_in_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "book.txt", "a" * 5000)
    assert max(len(s.text) for s in sections(path, 100)) <= 500
