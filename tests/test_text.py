"""Reading novels: headings, sections, books, and where the validation text begins."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuoshu import text as reading
from shuoshu.commandline import UserError
from shuoshu.text import HEADING, Book, find_books, sections

# Text in which every kind of cut is near: line ends of all kinds, indents, headings, characters of one to four bytes.
PROSE = st.lists(
    st.sampled_from(["\n", "\r\n", "\r", "\n\n", " ", "　", "第一回 风起", "第12章", "Chapter 3", "a", "é", "雨", "𠮷", "👩‍👧", "。", "\u2028", "\x85", "\x1c"])
    | st.text(max_size=3),
    max_size=40,
).map("".join)


def unix(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode("utf-8"))
    return path


def titles(path: Path) -> list[str]:
    return [section.title for section in sections(path) if section.title is not None]


def surveyed(path: Path, val_fraction: float) -> Book:
    book = Book(path, path.stem)
    book.survey()
    book.cut(val_fraction)
    return book


def parts(book: Book) -> dict[str, str]:
    """The text of each split; the train text must all come before the validation text."""
    pieces = list(book.splits())
    names = [split for split, _ in pieces]
    assert names == sorted(names)
    return {name: "".join(section.text for split, section in pieces if split == name) for name in ("train", "val")}


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
    ],
)
def test_a_heading_is_recognised(tmp_path: Path, line: str) -> None:
    assert titles(write(tmp_path / "book.txt", f"前言。\n{line}\n正文。\n")) == [" ".join(line.split())]


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
    ],
)
def test_prose_is_no_heading(line: str) -> None:
    assert not HEADING.search(f"前言。\n{line}\n正文。\n")


def test_a_heading_is_found_at_the_beginning_and_at_the_end_of_a_file(tmp_path: Path) -> None:
    assert titles(write(tmp_path / "book.txt", "\ufeff第一回 甲\r\n文\r\n第二回 乙")) == ["第一回 甲", "第二回 乙"]


# ---------------------------------------------------------------- sections


@given(text=PROSE, block=st.integers(1, 24), mark=st.booleans())
def test_sections_join_to_the_text(tmp_path_factory: pytest.TempPathFactory, text: str, block: int, mark: bool) -> None:
    path = write(tmp_path_factory.getbasetemp() / "joined.txt", "\ufeff" * mark + text.removeprefix("\ufeff"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BLOCK", block)
        found = list(sections(path))
    assert "".join(section.text for section in found) == unix(text.removeprefix("\ufeff"))
    assert all(section.text for section in found)
    for section in found:
        if section.title is not None:
            assert section.text.lstrip(" \t　").startswith(section.title.split(" ")[0])


@pytest.mark.parametrize("block", [1, 2, 3, 5, 7, 64])
def test_characters_cut_by_a_block_stay_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    text = "é雨𠮷👩‍👧\r\n" * 20
    monkeypatch.setattr(reading, "BLOCK", block)
    assert "".join(s.text for s in sections(write(tmp_path / "book.txt", text))) == unix(text)


@pytest.mark.parametrize("block", [64, 100, 1000])
def test_chapters_are_found_wherever_the_blocks_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, block: int) -> None:
    path = write(tmp_path / "book.txt", text)
    whole = titles(path)
    monkeypatch.setattr(reading, "BLOCK", block)
    assert titles(path) == whole and len(whole) == 10


@pytest.mark.parametrize("block", range(25, 45))
def test_a_section_begins_at_a_line_that_is_not_blank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(reading, "BLOCK", block)
    found = list(sections(write(tmp_path / "book.txt", "一行文字。\n\n \n另一行文字。\n\n\n" * 10)))
    assert len(found) > 5
    assert not any(section.text[:1].isspace() for section in found)


def test_a_novel_with_indented_paragraphs_is_cut_at_lines_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BLOCK", 300)
    found = list(sections(write(tmp_path / "book.txt", "　　沈砚点起一盏油灯，望着河面出神。\n" * 200)))
    assert all(section.text.endswith("\n") for section in found)
    assert max(len(section.text.encode("utf-8")) for section in found) < 600


def test_only_a_few_blocks_of_an_endless_line_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BLOCK", 100)
    assert max(len(s.text) for s in sections(write(tmp_path / "book.txt", "a" * 5000))) <= 500


# ---------------------------------------------------------------- books


def test_folders_are_searched_and_each_file_is_taken_once_in_order(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("b.txt", "a.TXT", "deep/c.txt", "deep/er/d.txt", "notes.md"):
        write(tmp_path / name, "文")
    (tmp_path / "folder.txt").mkdir()
    found = [
        book.path.relative_to(tmp_path).as_posix() for book in find_books([str(tmp_path), str(tmp_path / "b.txt"), str(tmp_path / "deep" / ".." / "b.txt")])
    ]
    assert found == sorted(found) == ["a.TXT", "b.txt", "deep/c.txt", "deep/er/d.txt"]


def test_files_are_taken_in_the_order_given(tmp_path: Path) -> None:
    names = [str(write(tmp_path / name, "文")) for name in ("z.txt", "a.txt")]
    assert [book.title for book in find_books(names)] == ["z", "a"]


def test_a_file_named_by_the_user_may_have_any_ending(tmp_path: Path) -> None:
    assert [book.title for book in find_books([str(write(tmp_path / "novel.md", "文"))])] == ["novel"]


def test_a_folder_without_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no \.txt file"):
        find_books([str(tmp_path)])


@pytest.mark.parametrize("name", ["missing.txt", "nul\0.txt", "", "长" * 200], ids=["missing", "nul", "empty", "too long"])
def test_a_path_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        find_books([name])


@pytest.mark.parametrize("raw", ["第一回 风起".encode("gb18030"), "雨".encode() + b"\xff", "雨".encode()[:2], "文".encode("utf-16")])
def test_a_file_in_another_encoding_is_named(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "旧书.txt"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"旧书\.txt is not UTF-8"):
        Book(path, "旧书").survey()


@pytest.mark.parametrize("raw", [b"", b"\xef\xbb\xbf"], ids=["nothing", "a mark alone"])
def test_an_empty_file_is_named(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "blank.txt"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"blank\.txt is empty"):
        Book(path, "blank").survey()


def test_a_survey_counts_characters_and_chapters(tmp_path: Path, text: str) -> None:
    book = surveyed(write(tmp_path / "book.txt", text), 0.05)
    assert book.characters == len(text)
    assert len(book.chapters) == 10
    assert all(text[start:].startswith(title.split(" ")[0]) for title, start in book.chapters)


# ---------------------------------------------------------------- where the validation text begins


@given(text=PROSE, block=st.integers(1, 24), val_fraction=st.floats(0, 0.9))
def test_the_splits_join_to_the_text(tmp_path_factory: pytest.TempPathFactory, text: str, block: int, val_fraction: float) -> None:
    text = text.removeprefix("\ufeff") or "a"
    path = write(tmp_path_factory.getbasetemp() / "split.txt", text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BLOCK", block)
        found = parts(surveyed(path, val_fraction))
    assert found["train"] + found["val"] == unix(text)


def test_the_validation_text_begins_at_the_nearest_chapter(tmp_path: Path, text: str) -> None:
    found = parts(surveyed(write(tmp_path / "book.txt", text), 0.05))
    assert found["val"].startswith("第十回")
    found = parts(surveyed(write(tmp_path / "book.txt", text), 0.28))
    assert found["val"].startswith("第八回")


def test_a_far_chapter_gives_way_to_a_line(tmp_path: Path) -> None:
    text = "开头。\n" * 10 + "第一回 甲\n" + "一行正文。\n" * 1000
    found = parts(surveyed(write(tmp_path / "book.txt", text), 0.05))
    assert found["train"].endswith("\n") and found["val"].startswith("一行正文。")
    assert len(found["val"]) == pytest.approx(0.05 * len(text), abs=10)


def test_a_book_without_chapters_is_cut_at_a_line(tmp_path: Path) -> None:
    lines = [f"第{n}天，{'风' * (n % 13)}。\n" for n in range(300)]
    found = parts(surveyed(write(tmp_path / "book.txt", "".join(lines)), 0.1))
    assert found["val"] == "".join(lines[-found["val"].count("\n") :])
    assert len(found["val"]) == pytest.approx(0.1 * len("".join(lines)), abs=20)


def test_the_rest_of_a_section_that_was_cut_begins_no_chapter(tmp_path: Path) -> None:
    book = surveyed(write(tmp_path / "book.txt", "第一回 甲\n" + "正文。\n" * 100), 0.1)
    assert [(split, section.title) for split, section in book.splits() if section.title or split == "val"][:2] == [("train", "第一回 甲"), ("val", None)]


def test_no_validation_text_where_none_is_asked_for(tmp_path: Path, text: str) -> None:
    assert parts(surveyed(write(tmp_path / "book.txt", text), 0.0)) == {"train": text, "val": ""}


def test_one_endless_line_is_cut_where_the_share_ends(tmp_path: Path) -> None:
    assert parts(surveyed(write(tmp_path / "book.txt", "雨" * 1000), 0.1)) == {"train": "雨" * 900, "val": "雨" * 100}
