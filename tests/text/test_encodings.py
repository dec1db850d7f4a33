"""Bytes to text: detection of encodings, reading in parts, archives, and files that are no text."""

from __future__ import annotations

import gzip
import io
import random
import zipfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shuoshu.core.errors import UserError
from shuoshu.text import encodings
from shuoshu.text.books import Book, read_books
from shuoshu.text.encodings import TextDecoder, detect_encoding, last_line_start, raw_texts

SIMPLIFIED = """第一回　渡口夜雨

　　沈砚把油灯拨亮了些，窗外的雨还没有停。柳青禾推门进来，抖了抖蓑衣上的水，说：“船是走不成了，老船夫说，河水涨到了第三级石阶。”
　　沈砚没有答话。他从袖子里取出那封信，又看了一遍，信上只有八个字：“账在茶楼，人在北山。”
　　“你还要去吗？”她问。
　　“去。”他把信凑到灯上，纸边卷起来，慢慢地黑了，“不去，这二十年的债就没有人还了！”
　　两个人都不说话，只听见屋檐下的水一滴一滴落在瓦盆里；远处有人敲了三更。
"""
TRADITIONAL = """第一回　渡口夜雨

　　沈硯把油燈撥亮了些，窗外的雨還沒有停。柳青禾推門進來，抖了抖蓑衣上的水，說：「船是走不成了，老船夫說，河水漲到了第三級石階。」
　　沈硯沒有答話。他從袖子裡取出那封信，又看了一遍，信上只有八個字：「賬在茶樓，人在北山。」
　　「你還要去嗎？」她問。
　　「去。」他把信湊到燈上，紙邊捲起來，慢慢地黑了，「不去，這二十年的債就沒有人還了！」
　　兩個人都不說話，只聽見屋簷下的水一滴一滴落在瓦盆裡；遠處有人敲了三更。
"""
ENGLISH = """CHAPTER I. The Quay

The lamp was still lit when she came down to the quay, and nobody had
said a word about the letter. “You are late,” he told her; the ferry
had gone at six, and the river was already over the third step.
"""
RARE = "舟渡燈橋樓，\n硯霜雪露雲\n" * 20  # no frequent characters
PLAIN = ENGLISH.replace("“", '"').replace("”", '"')
SCRIPTS = {"simplified": SIMPLIFIED, "traditional": TRADITIONAL}
# (encoding of the file, encoding that must be detected)
CODECS = {
    "utf-8": ("utf-8", "utf-8"),
    "utf-8 with BOM": ("utf-8-sig", "utf-8"),
    "gb18030": ("gb18030", "gb18030"),
    "utf-16-le": ("utf-16-le", "utf-16-le"),
    "utf-16-be": ("utf-16-be", "utf-16-be"),
    "utf-16 with BOM": ("utf-16", "utf-16-le"),
}


def varied(text: str, times: int = 60) -> str:
    """A larger text: the shuffled sentences of a small one, repeated; lines end with CR LF."""
    draw, lines = random.Random(3), text.split("\n")
    return "".join("\r\n".join(draw.sample(lines, len(lines))) + "\r\n" for _ in range(times))


def decoded(raw: bytes, forced: str | None = None) -> tuple[str, TextDecoder]:
    decoder = TextDecoder(io.BytesIO(raw), forced)
    return "".join(decoder.parts()), decoder


def refusal(raw: bytes, forced: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        decoded(raw, forced)
    return str(caught.value)


def read(path: Path, raw: bytes) -> tuple[list[Book], list[str]]:
    """(books, reasons of rejection) for one file with these bytes."""
    path.write_bytes(raw)
    staging = path.parent / "staging"
    staging.mkdir(exist_ok=True)
    books, bad = read_books([path], staging)
    return books, [message for _, message in bad]


def texts(books: list[Book]) -> dict[str, str]:
    return {book.title: book.file.read_text(encoding="utf-8") for book in books}


# ---------------------------------------------------------------- detection


@pytest.mark.parametrize("size", ["small", "larger"])
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("codec", CODECS)
def test_the_right_encoding_is_detected(codec: str, script: str, size: str) -> None:
    text = SCRIPTS[script] if size == "small" else varied(SCRIPTS[script])
    written, chosen = CODECS[codec]
    result, decoder = decoded(text.encode(written))
    assert (result, decoder.encoding, decoder.broken) == (text, chosen, 0)


@pytest.mark.parametrize("size", ["small", "larger"])
def test_big5_is_distinguished_from_gb18030(size: str) -> None:
    text = TRADITIONAL if size == "small" else varied(TRADITIONAL)
    assert decoded(text.encode("big5"))[0] == text
    assert detect_encoding(text.encode("big5"), True)[0].startswith("big5")
    assert detect_encoding(text.encode("gbk"), True)[0] == "gb18030"


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_and_without_line_ends_is_recognised(script: str, codec: str) -> None:
    text = SCRIPTS[script].replace("\n", "")
    assert decoded(text.encode(codec))[0] == text


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", [ENGLISH, PLAIN], ids=["with quotes", "ascii alone"])
def test_english_is_read(text: str, codec: str) -> None:
    assert decoded(text.encode(codec))[0] == text


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_recognised_by_its_line_ends(codec: str) -> None:
    text = RARE.replace("，", "")
    assert decoded(text.encode(codec))[0] == text


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
def test_one_line_of_english_in_utf_16_is_read(codec: str) -> None:
    text = ENGLISH.replace("\n", " ").strip()
    assert decoded(text.encode(codec))[0] == text


def test_big_endian_utf_16_is_recognised_by_its_mark() -> None:
    result, decoder = decoded("\ufeff".encode("utf-16-be") + SIMPLIFIED.encode("utf-16-be"))
    assert (result, decoder.encoding) == (SIMPLIFIED, "utf-16-be")


@pytest.mark.parametrize(
    "text",
    [SIMPLIFIED, TRADITIONAL, varied(SIMPLIFIED), ENGLISH, ENGLISH * 40],
    ids=["simplified", "traditional", "larger", "english", "english, larger"],
)
@pytest.mark.parametrize("harm", [b"\xff", b"\x80", b"\xe9", b"\xc3("])
def test_utf_8_with_one_broken_byte_is_still_utf_8(text: str, harm: bytes) -> None:
    raw = text.encode()
    at = len(text[: len(text) // 2].encode())
    result, decoder = decoded(raw[:at] + harm + raw[at:])
    assert (decoder.encoding, decoder.broken, result.count("�")) == ("utf-8", 1, 1)
    assert result.replace("�(", "").replace("�", "") == text


@pytest.mark.parametrize("size", ["small", "larger"])
def test_gbk_with_a_missing_byte_is_still_gbk(size: str) -> None:
    text = SIMPLIFIED if size == "small" else varied(SIMPLIFIED)
    raw = text.encode("gbk")
    at = raw.index("老船夫".encode("gbk"))
    result, decoder = decoded(raw[: at + 1] + raw[at + 2 :])
    assert decoder.encoding == "gb18030"
    assert result[-140:] == text[-140:]  # decoding is aligned again


def test_bytes_that_end_inside_a_character_are_still_utf_8() -> None:
    result, decoder = decoded(SIMPLIFIED.encode()[:-3])  # cuts 。 in half
    assert decoder.encoding == "utf-8" and result == SIMPLIFIED[:-2] + "�"
    assert decoder.broken == 1


def test_a_sample_that_ends_inside_a_character_may_be_utf_8(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for text in (SIMPLIFIED, RARE):
        for size in range(200, 212):
            monkeypatch.setattr(encodings, "SAMPLE_BYTES", size)
            result, decoder = decoded(text.encode())
            assert (result, decoder.encoding, decoder.broken) == (text, "utf-8", 0)


# ---------------------------------------------------------------- forced


@pytest.mark.parametrize("forced", ["gbk", "GB18030", "cp936"])
def test_a_forced_encoding_is_used(forced: str) -> None:
    result, decoder = decoded(SIMPLIFIED.encode("gbk"), forced)
    assert result == SIMPLIFIED and decoder.encoding in ("gbk", "gb18030")


def test_a_forced_encoding_overrides_the_detected_one() -> None:
    assert decoded("naïve".encode("latin-1") * 9, "latin-1")[0] == "naïve" * 9
    assert decoded("风起云涌".encode(), "latin-1")[0] == "风起云涌".encode().decode("latin-1")


@pytest.mark.parametrize("forced", ["utf-8", "UTF8", "utf-8-sig"])
@pytest.mark.parametrize("written", ["utf-8", "utf-8-sig"])
def test_utf_8_is_forced_with_and_without_its_mark(forced: str, written: str) -> None:
    assert decoded(SIMPLIFIED.encode(written), forced)[0] == SIMPLIFIED


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["no mark", "mark"])
@pytest.mark.parametrize(
    ("forced", "written"),
    [("utf-16", "utf-16-le"), ("utf-16-le", "utf-16-le"), ("utf-16-be", "utf-16-be")],
)
def test_utf_16_is_forced_with_and_without_its_mark(forced: str, written: str, mark: str) -> None:
    result, decoder = decoded((mark + SIMPLIFIED).encode(written), forced)
    assert (result, decoder.broken) == (SIMPLIFIED, 0)


@pytest.mark.parametrize("written", ["utf-16-be", "utf-32-le", "utf-32-be"])
def test_a_forced_utf_16_or_32_follows_the_mark(written: str) -> None:
    assert decoded(("\ufeff" + SIMPLIFIED).encode(written), written[:6])[0] == SIMPLIFIED


@pytest.mark.parametrize("name", ["klingon", "中", "\0", "\udce4", "utf 99", "a" * 300])
def test_an_unknown_encoding_is_reported(name: str) -> None:
    assert "no encoding" in refusal(SIMPLIFIED.encode(), name)


@pytest.mark.parametrize(
    "name", ["hex", "rot13", "base64", "zlib", "bz2", "uu", "idna", "punycode", "undefined"]
)
def test_a_codec_that_is_not_a_text_encoding_is_refused(name: str) -> None:
    assert refusal(SIMPLIFIED.encode(), name)


def test_a_wrongly_forced_encoding_is_refused() -> None:
    assert "--encoding" in refusal(SIMPLIFIED.encode("gb18030"), "utf-8")
    assert "--encoding" in refusal(ENGLISH.encode("utf-16"), "utf-8")


# ---------------------------------------------------------------- damaged and foreign files


@pytest.mark.parametrize("count", [1, 2, 3])
def test_broken_bytes_are_counted(count: int) -> None:
    raw = (
        SIMPLIFIED.encode() + b"\xff"
    ) * count + "夜�夜".encode()  # a � in the file is not counted
    result, decoder = decoded(raw)
    assert decoder.broken == count and result.count("�") == count + 1


def test_a_few_broken_bytes_do_not_spoil_a_long_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(encodings, "PART_CHARACTERS", 5000)
    monkeypatch.setattr(encodings, "SAMPLE_BYTES", 3000)
    raw = (SIMPLIFIED * 4).encode()
    result, decoder = decoded((raw + b"\xff\n") * 10 + "夜还很长。\n".encode())
    assert decoder.broken == 10 and result.endswith("夜还很长。\n")


@pytest.mark.parametrize(
    "raw",
    [
        bytes(range(256)) * 40,
        random.Random(1).randbytes(5000),
        b"\x89PNG\r\n\x1a\n" + random.Random(2).randbytes(3000),
        b"\0" * 1000,
        b"\0" * 300 + "雨还没有停。".encode() * 20,
        b"%PDF-1.4\n" + random.Random(3).randbytes(4000),
    ],
    ids=["every byte", "noise", "png", "nuls", "nuls and text", "pdf"],
)
def test_a_file_that_is_not_text_is_refused(raw: bytes) -> None:
    assert "it is no text" in refusal(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\n",
        b" \r\n\t\r\n",
        "\ufeff".encode(),
        "\ufeff".encode("utf-16-le"),
        "　\n　".encode("gb18030"),
    ],
)
def test_an_empty_file_is_reported(raw: bytes) -> None:
    assert refusal(raw) == "it is empty"


def test_a_few_nuls_do_not_spoil_a_text() -> None:
    text = SIMPLIFIED[:50] + "\0\0" + SIMPLIFIED[50:]
    assert decoded(text.encode())[0] == text


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
