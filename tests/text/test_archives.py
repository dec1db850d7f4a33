"""Bytes to text: reading in parts, .zip and .gz archives."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shuoshu.core.errors import UserError
from shuoshu.text import encodings
from shuoshu.text.books import Book, read_books
from shuoshu.text.encodings import TextDecoder, last_line_start, raw_texts
from tests.text.encoding_helpers import ENGLISH, SIMPLIFIED, TRADITIONAL, decoded, varied


def read(path: Path, raw: bytes) -> tuple[list[Book], list[str]]:
    """(books, reasons of rejection) for one file with these bytes."""
    path.write_bytes(raw)
    staging = path.parent / "staging"
    staging.mkdir(exist_ok=True)
    books, bad = read_books([path], staging)
    return books, [message for _, message in bad]


def texts(books: list[Book]) -> dict[str, str]:
    return {book.title: book.file.read_text(encoding="utf-8") for book in books}


# ---------------------------------------------------------------- parts


LINES = st.lists(
    st.sampled_from(
        [
            "雨",
            "𠮷",
            "é",
            "a",
            "\n",
            "\r\n",
            "\n\n",
            "。",
            "　",
            "👩‍👧",
            "a long line without an end, ",
        ]
    ),
    min_size=1,
    max_size=80,
).map("".join)


def parts_of(text: str, codec: str, part: int, chunk: int) -> list[str]:
    """The parts of a text from a file that returns at most `chunk` bytes per read."""

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size, chunk))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encodings, "PART_CHARACTERS", part)
        patch.setattr(encodings, "SAMPLE_BYTES", chunk)
        return list(TextDecoder(Slow(text.encode(codec)), codec).parts())


@pytest.mark.parametrize("codec", ["utf-8", "gb18030", "utf-16-le", "utf-16-be", "utf-32-le"])
@given(text=LINES, part=st.integers(1, 40), chunk=st.integers(1, 13))
@example(text="雨\r\n夜", part=2, chunk=2)
def test_the_parts_join_to_the_text(codec: str, text: str, part: int, chunk: int) -> None:
    if not text.strip():
        text += "雨"
    parts = parts_of(text, codec, part, chunk)
    assert "".join(parts) == text
    assert all(parts)


@given(
    text=st.text(st.sampled_from("雨夜歸人。，\n許功蓋a "), min_size=1),
    part=st.integers(1, 40),
    chunk=st.integers(1, 7),
)
def test_the_parts_join_to_the_text_in_big5(text: str, part: int, chunk: int) -> None:
    assert (
        "".join(parts_of(text + "雨", "big5", part, chunk)) == text + "雨"
    )  # 許功蓋 have \ as their second byte


@given(text=LINES, part=st.integers(8, 60), chunk=st.integers(1, 13))
def test_a_part_ends_where_a_line_ends_and_the_next_begins_with_letters(
    text: str, part: int, chunk: int
) -> None:
    lines = (
        "\n".join(piece[:20] + "雨" for piece in text.split("\n")) + "\n"
    )  # no line is much longer than a part
    parts = parts_of(lines, "utf-8", max(part, 30), chunk)
    assert all(one.endswith("\n") for one in parts)
    assert all(one.split("\n")[0].strip() for one in parts[1:])
    assert all(len(one) <= max(part, 30) + 2 * chunk for one in parts)


def test_an_endless_line_is_returned_in_parts() -> None:
    parts = parts_of("雨" * 1000, "utf-8", 50, 30)
    assert "".join(parts) == "雨" * 1000
    assert max(map(len, parts)) <= 120


@given(text=st.text(st.sampled_from("ab \n　"), max_size=30))
def test_the_last_lines_start_is_the_beginning_of_a_line_with_letters(text: str) -> None:
    at = last_line_start(text)
    starts = [
        i + 1 for i, c in enumerate(text) if c == "\n" and text[i + 1 :].split("\n")[0].strip()
    ]
    assert at == max(starts, default=0)


# ---------------------------------------------------------------- archives


def zipped(members: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return raw.getvalue()


def test_every_text_in_a_zip_is_a_book(tmp_path: Path) -> None:
    members = {
        "b.txt": SIMPLIFIED.encode("gb18030"),
        "卷/a.TXT": TRADITIONAL.encode(),
        "卷/": b"",
        "封面.jpg": b"\xff\xd8",
        "说明.md": b"no",
    }
    books, reasons = read(tmp_path / "雨夜.zip", zipped(members))
    assert not reasons
    assert texts(books) == {
        "b": SIMPLIFIED.replace("　　", ""),
        "a": TRADITIONAL.replace("　　", ""),
    }
    assert {book.source for book in books} == {"雨夜.zip"} and [
        book.encoding for book in books
    ] == ["gb18030", "utf-8"]
    assert len({book.file for book in books}) == 2


def test_a_members_name_written_in_gbk_is_read(tmp_path: Path) -> None:
    name = "渡口夜雨.txt".encode("gbk")
    raw = zipped({"x" * len(name): ENGLISH.encode()}).replace(
        b"x" * len(name), name
    )  # as archivers on Chinese Windows write it: no UTF-8 flag
    books, reasons = read(tmp_path / "a.zip", raw)
    assert not reasons and [book.title for book in books] == ["渡口夜雨"]


def test_member_names_cannot_leave_the_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    books, reasons = read(
        tmp_path / "in" / "a.zip",
        zipped({"../../out.txt": ENGLISH.encode(), "/etc/shuoshu-out.txt": SIMPLIFIED.encode()}),
    )
    assert not reasons and [book.title for book in books] == ["out", "shuoshu-out"]
    assert all(book.file.parent == tmp_path / "in" / "staging" for book in books)
    assert sorted(path.name for path in tmp_path.rglob("*.txt")) == ["000000.txt", "000001.txt"]


def test_a_zip_without_texts_is_reported(tmp_path: Path) -> None:
    assert read(tmp_path / "a.zip", zipped({"a.jpg": b"\xff\xd8", "txt/": b""})) == (
        [],
        ["the archive holds no .txt file"],
    )
    assert read(tmp_path / "a.zip", zipped({})) == ([], ["the archive holds no .txt file"])


def test_mac_os_metadata_in_a_zip_is_not_a_book(tmp_path: Path) -> None:
    books, reasons = read(
        tmp_path / "a.zip",
        zipped(
            {
                "雨.txt": SIMPLIFIED.encode(),
                "__MACOSX/._雨.txt": b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(90),
            }
        ),
    )
    assert (texts(books), reasons) == ({"雨": SIMPLIFIED.replace("　　", "")}, [])


@pytest.mark.parametrize("where", [0.0, 0.3, 0.5, 0.7, 0.97])
def test_a_damaged_zip_is_reported(tmp_path: Path, where: float) -> None:
    raw = bytearray(zipped({"a.txt": varied(SIMPLIFIED, 5).encode()}))
    at = int(where * len(raw))
    raw[at : at + 12] = bytes(255 - b for b in raw[at : at + 12])
    books, reasons = read(tmp_path / "a.zip", bytes(raw))
    assert books == [] and len(reasons) == 1 and "archive" in reasons[0]


@pytest.mark.parametrize("length", [0, 1, 30, 100, 500])
def test_a_zip_that_is_cut_off_is_reported(tmp_path: Path, length: int) -> None:
    books, reasons = read(
        tmp_path / "a.zip", zipped({"a.txt": varied(SIMPLIFIED, 5).encode()})[:length]
    )
    assert books == [] and len(reasons) == 1 and "archive is damaged" in reasons[0]


def test_an_encrypted_zip_is_reported(tmp_path: Path) -> None:
    raw = bytearray(zipped({"a.txt": ENGLISH.encode()}))
    raw[6] |= 1
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    books, reasons = read(tmp_path / "a.zip", bytes(raw))
    assert books == [] and "can't be opened" in reasons[0]


def test_an_unsupported_compression_is_reported(tmp_path: Path) -> None:
    raw = bytearray(zipped({"a.txt": ENGLISH.encode()}))
    raw[8] = raw[raw.index(b"PK\x01\x02") + 10] = 99
    books, reasons = read(tmp_path / "a.zip", bytes(raw))
    assert books == [] and "can't be opened" in reasons[0]


def test_a_bad_member_of_an_archive_is_reported_and_skipped(tmp_path: Path) -> None:
    books, reasons = read(
        tmp_path / "a.zip",
        zipped(
            {
                "good.txt": ENGLISH.encode(),
                "bad.txt": bytes(range(256)) * 40,
                "more.txt": ENGLISH.encode(),
            }
        ),
    )
    assert "bad" not in texts(books)
    assert len(reasons) == 1 and "bad.txt" in reasons[0]


def test_a_gzipped_text_is_read(tmp_path: Path) -> None:
    for name in ("雨夜.txt.gz", "雨夜.gz"):
        books, reasons = read(tmp_path / name, gzip.compress(SIMPLIFIED.encode("gb18030")))
        assert not reasons and texts(books) == {"雨夜": SIMPLIFIED.replace("　　", "")}
        assert books[0].source == name


@pytest.mark.parametrize("length", [0, 1, 5, 60, 300, -1, -8])
def test_a_gzip_file_that_is_cut_off_is_reported(tmp_path: Path, length: int) -> None:
    books, reasons = read(tmp_path / "a.txt.gz", gzip.compress(SIMPLIFIED.encode())[:length])
    assert books == [] and len(reasons) == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"no gzip at all",
        gzip.compress(SIMPLIFIED.encode())[:-8] + b"\1\2\3\4\5\6\7\10",
        gzip.compress(SIMPLIFIED.encode())[:40] + b"\xff" * 99,
    ],
)
def test_a_damaged_gzip_file_is_reported(tmp_path: Path, raw: bytes) -> None:
    books, reasons = read(tmp_path / "a.txt.gz", raw)
    assert books == [] and len(reasons) == 1 and "archive is damaged" in reasons[0]


def test_an_archive_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encodings, "MAX_FILE_BYTES", 1 << 20)
    books, reasons = read(tmp_path / "a.gz", gzip.compress(b"the same line\n" * 200_000))
    assert books == [] and "unpacks to more than" in reasons[0]


def test_a_file_that_disappeared_is_reported(tmp_path: Path) -> None:
    for name in ("gone.txt", "gone.zip", "gone.gz"):
        with pytest.raises(UserError, match="can't be read"):
            list(raw_texts(tmp_path / name))


@given(raw=st.binary(max_size=300))
def test_arbitrary_bytes_are_read_or_refused(raw: bytes) -> None:
    try:
        result, decoder = decoded(raw)
    except UserError as error:
        assert str(error)
    else:
        assert result.strip() and decoder.broken <= result.count("�")


@pytest.mark.parametrize("suffix", [".zip", ".gz"])
@given(data=st.data())
def test_a_damaged_archive_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, data: st.DataObject
) -> None:
    whole = (
        zipped({"a.txt": ENGLISH.encode()}) if suffix == ".zip" else gzip.compress(ENGLISH.encode())
    )
    raw = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    books, reasons = read(tmp_path_factory.getbasetemp() / f"damaged{suffix}", bytes(raw))
    assert bool(books) != bool(reasons)
