"""Reading novels: files, books, duplicates, and the beginning of the validation text."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shuoshu.core.errors import UserError
from shuoshu.text import encodings
from shuoshu.text.books import (
    BLOCK_CHARACTERS,
    Book,
    find_duplicate_books,
    find_files,
    read_books,
    sections,
)
from shuoshu.text.cleaning import clean_text
from tests.text.book_helpers import PROSE, read, write
from tests.text.cleaning_helpers import chapter, is_exact


def reason(path: Path, raw: bytes) -> str:
    """The reason why a file can't be read as a book."""
    books, bad = read_books([write(path, raw)], path.parent)
    assert books == [] and [named for named, _ in bad] == [path]
    return bad[0][1]


def split_texts(book: Book, block: int = BLOCK_CHARACTERS) -> dict[str, str]:
    """The text of each split; the train text must all come before the validation text."""
    pieces = list(book.splits(block))
    names = [split for split, _ in pieces]
    assert names == sorted(names)
    return {
        name: "".join(section.text for split, section in pieces if split == name)
        for name in ("train", "val")
    }


# ---------------------------------------------------------------- books


def test_folders_are_searched_and_each_file_is_read_once_in_order(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("b.txt", "a.TXT", "deep/c.zip", "deep/er/d.txt.gz", "notes.md"):
        write(tmp_path / name, "文")
    (tmp_path / "folder.txt").mkdir()
    result = [
        path.relative_to(tmp_path).as_posix()
        for path in find_files(
            [str(tmp_path), str(tmp_path / "b.txt"), str(tmp_path / "deep" / ".." / "b.txt")]
        )
    ]
    assert result == sorted(result) == ["a.TXT", "b.txt", "deep/c.zip", "deep/er/d.txt.gz"]


def test_files_are_read_in_the_order_of_the_arguments(tmp_path: Path) -> None:
    files = find_files([str(write(tmp_path / name, "文")) for name in ("z.txt", "a.txt")])
    books, _ = read_books(files, tmp_path)
    assert [book.title for book in books] == ["z", "a"]


def test_a_named_file_may_have_any_suffix(tmp_path: Path) -> None:
    [path] = find_files([str(write(tmp_path / "novel.md", "文"))])
    assert read(path, "文").title == "novel"


def test_a_folder_without_text_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no \.txt, \.zip, \.gz file"):
        find_files([str(tmp_path)])


@pytest.mark.parametrize(
    "name",
    ["missing.txt", "nul\0.txt", "", "长" * 200],
    ids=["missing", "nul", "empty", "too long"],
)
def test_a_missing_path_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        find_files([name])


def test_bad_files_are_named_and_the_others_read(tmp_path: Path) -> None:
    names = [
        write(tmp_path / "a.txt", "文"),
        write(tmp_path / "旧书.txt", bytes(range(256)) * 40),
        write(tmp_path / "z.txt", "文"),
    ]
    books, bad = read_books([*names, tmp_path / "gone.txt"], tmp_path)
    assert [book.title for book in books] == ["a", "z"]
    assert [path for path, _ in bad] == [names[1], tmp_path / "gone.txt"] and all(
        message for _, message in bad
    )


@pytest.mark.parametrize(
    "raw",
    [b"", b"\xef\xbb\xbf", b" \r\n\n", "　\n".encode("gb18030")],
    ids=["nothing", "a mark alone", "blanks", "wide blanks"],
)
def test_an_empty_file_is_named(tmp_path: Path, raw: bytes) -> None:
    assert reason(tmp_path / "blank.txt", raw) == "it is empty"


def test_a_book_counts_its_characters_and_chapters(tmp_path: Path, text: str) -> None:
    book = read(tmp_path / "雨夜.txt", text.encode("gb18030"))
    cleaned = book.file.read_text(encoding="utf-8")
    assert cleaned == text.replace("　　", "")
    assert (book.title, book.source, book.encoding, book.characters) == (
        "雨夜",
        "雨夜.txt",
        "gb18030",
        len(cleaned),
    )
    assert len(book.chapters) == 10
    assert all(
        " ".join(cleaned[start:].split("\n")[0].split()) == title for title, start in book.chapters
    )
    assert (book.account.read, book.account.kept) == (
        len(text),
        len(cleaned),
    ) and is_exact(book.account)


@given(text=PROSE)
def test_a_books_file_is_the_cleaned_text(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    assume(text.strip() and "\0" not in text)
    text = text.removeprefix("\ufeff")
    book = read(tmp_path_factory.getbasetemp() / "whole.txt", text)
    cleaned, account = clean_text(text)
    assert book.file.read_bytes().decode("utf-8") == cleaned
    assert book.account == account and book.characters == len(cleaned) == sum(
        len(section.text) for section in sections(book.file)
    )


def test_only_the_first_part_of_a_book_has_front_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("PART_CHARACTERS", 600), ("SAMPLE_BYTES", 900), ("READ_BYTES", 900)):
        monkeypatch.setattr(encodings, name, size)
    prose = "".join(chapter(f"第{n}章 渡口", n) + "目录\n作者：某某\n" for n in range(60))
    book = read(tmp_path / "a.txt", "作者：某某\n" + prose)
    assert book.file.read_text(encoding="utf-8") == prose
    assert book.account.pieces == {"front matter": ["作者：某某\n"]} and is_exact(book.account)


def test_a_book_read_in_parts_has_the_same_text_chapters_and_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    whole = read(tmp_path / "a.txt", text)
    monkeypatch.setattr(encodings, "PART_CHARACTERS", 500)
    monkeypatch.setattr(encodings, "SAMPLE_BYTES", 9000)  # the book is read in two parts
    in_parts = read(tmp_path / "b.txt", text)
    assert is_exact(in_parts.account) and in_parts.account.read == len(text)
    assert [title for title, _ in in_parts.chapters] == [title for title, _ in whole.chapters]
    cleaned = in_parts.file.read_text(encoding="utf-8")
    assert len(cleaned) == in_parts.characters
    assert all(
        " ".join(cleaned[start:].split("\n")[0].split()) == title
        for title, start in in_parts.chapters
    )
    lines = [
        [line for line in book.file.read_text(encoding="utf-8").split("\n") if line]
        for book in (whole, in_parts)
    ]
    assert lines[0] == lines[1]


def test_traditional_script_is_not_converted(tmp_path: Path) -> None:
    text = "沈硯點起一盞油燈，望著河面出神，說：「這雨怕是停不了。」\n" * 30
    assert read(tmp_path / "a.txt", text.encode("big5")).file.read_text(encoding="utf-8") == text


def test_rare_characters_are_counted_and_kept(tmp_path: Path) -> None:
    text = "他姓\ue123，名\ue123，字\U00020bb7，号㐂，籍贯�。\n" + "雨还在下。\n" * 20
    book = read(tmp_path / "a.txt", text)
    assert dict(book.odd) == {"private-use": 2, "unreadable (�)": 1, "rare": 2}
    assert book.file.read_text(encoding="utf-8") == text


# ---------------------------------------------------------------- duplicates


def tale(seed: int, size: int = 4000) -> str:
    draw = random.Random(seed)
    signs = [chr(c) for c in range(0x4E00, 0x5200)]
    return (
        "\n".join("".join(draw.choice(signs) for _ in range(30)) + "。" for _ in range(size // 32))
        + "\n"
    )


def read_all(folder: Path, texts: dict[str, str | bytes]) -> list[Book]:
    books, bad = read_books([write(folder / name, text) for name, text in texts.items()], folder)
    assert not bad
    return books


def test_a_duplicate_in_another_encoding_and_layout_is_found(tmp_path: Path) -> None:
    text = tale(1)
    other = text.replace("\n", "\r\n\r\n").replace("。", "．").encode("utf-16")
    books = read_all(tmp_path, {"a.txt": text, "b.txt": tale(2), "c.txt": other})
    assert [(a.title, b.title, share) for a, b, share in find_duplicate_books(books)] == [
        ("a", "c", 1.0)
    ]


def test_a_part_of_another_book_is_found(tmp_path: Path) -> None:
    books = read_all(tmp_path, {"whole.txt": tale(1) + tale(2), "part.txt": tale(2)})
    [(a, b, share)] = find_duplicate_books(books)
    assert {a.title, b.title} == {"whole", "part"} and share > 0.95


def test_books_that_share_a_quotation_are_not_duplicates(tmp_path: Path) -> None:
    common = tale(9, 1000)
    assert (
        find_duplicate_books(read_all(tmp_path, {f"{n}.txt": tale(n) + common for n in range(4)}))
        == []
    )


def test_short_texts_can_be_compared(tmp_path: Path) -> None:
    assert (
        find_duplicate_books(
            read_all(tmp_path, {"a.txt": "雨", "b.txt": "雨", "c.txt": "一二三四五六七八"})
        )
        == []
    )


# ---------------------------------------------------------------- validation text


@given(text=PROSE, block=st.integers(1, 24), val_fraction=st.floats(0, 0.9))
def test_the_splits_join_to_the_text(
    tmp_path_factory: pytest.TempPathFactory, text: str, block: int, val_fraction: float
) -> None:
    assume(text.strip() and "\0" not in text)
    book = read(tmp_path_factory.getbasetemp() / "split.txt", text, val_fraction)
    texts = split_texts(book, block)
    assert texts["train"] + texts["val"] == clean_text(text.removeprefix("\ufeff"))[0]


def test_the_validation_text_begins_at_the_nearest_chapter(tmp_path: Path, text: str) -> None:
    texts = split_texts(read(tmp_path / "book.txt", text, 0.05))
    assert texts["val"].startswith("第十回")
    texts = split_texts(read(tmp_path / "book.txt", text, 0.28))
    assert texts["val"].startswith("第八回")


def test_without_a_near_chapter_the_validation_text_begins_at_a_line(tmp_path: Path) -> None:
    text = "开头。\n" * 10 + "第一回 甲\n" + "一行正文。\n" * 1000
    texts = split_texts(read(tmp_path / "book.txt", text, 0.05))
    assert texts["train"].endswith("\n") and texts["val"].startswith("一行正文。")
    assert len(texts["val"]) == pytest.approx(0.05 * len(text), abs=10)


def test_a_book_without_chapters_is_cut_at_a_line(tmp_path: Path) -> None:
    lines = [f"第{n}天，{'风' * (n % 13)}。\n" for n in range(300)]
    texts = split_texts(read(tmp_path / "book.txt", "".join(lines), 0.1))
    assert texts["val"] == "".join(lines[-texts["val"].count("\n") :])
    assert len(texts["val"]) == pytest.approx(0.1 * len("".join(lines)), abs=20)


def test_the_rest_of_a_cut_section_begins_no_chapter(tmp_path: Path) -> None:
    book = read(tmp_path / "book.txt", "第一回 甲\n" + "正文。\n" * 100, 0.1)
    assert [
        (split, section.title)
        for split, section in book.splits()
        if section.title or split == "val"
    ][:2] == [("train", "第一回 甲"), ("val", None)]


def test_without_a_validation_share_there_is_no_validation_text(tmp_path: Path, text: str) -> None:
    assert split_texts(read(tmp_path / "book.txt", text, 0.0)) == {
        "train": text.replace("　　", ""),
        "val": "",
    }


def test_a_text_of_one_line_is_cut_where_the_share_ends(tmp_path: Path) -> None:
    assert split_texts(read(tmp_path / "book.txt", "雨" * 1000, 0.1)) == {
        "train": "雨" * 901,
        "val": "雨" * 99 + "\n",
    }
