"""Bytes to text: detected and forced encodings, and files that are not text."""

from __future__ import annotations

import random

import pytest

from shuoshu.core.errors import UserError
from shuoshu.text import encodings
from shuoshu.text.encodings import detect_encoding
from tests.text.encoding_helpers import ENGLISH, SIMPLIFIED, TRADITIONAL, decoded, varied

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


def refusal(raw: bytes, forced: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        decoded(raw, forced)
    return str(caught.value)


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
    assert "it is not a text file" in refusal(raw)


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
