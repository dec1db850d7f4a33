"""Bytes to text: detected and forced encodings, and files that are not text."""

from __future__ import annotations

import random

import pytest

from shuoshu.core.errors import UserError
from shuoshu.text import encodings
from shuoshu.text.detection import detect_encoding
from tests.text.encoding_helpers import (
    ENGLISH,
    SIMPLIFIED,
    TRADITIONAL,
    WESTERN,
    decoded,
    varied,
)

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


def assert_is_read(text: str, codec: str) -> None:
    """Asserts that the text, written in this encoding, is read unchanged."""
    assert decoded(text.encode(codec))[0] == text


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
    assert_is_read(text, codec)


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", [ENGLISH, PLAIN], ids=["with quotes", "ascii alone"])
def test_english_is_read(text: str, codec: str) -> None:
    assert_is_read(text, codec)


LATIN_1 = str.maketrans("“”„’–—…", '"""\'---')


@pytest.mark.parametrize("size", ["small", "larger"])
@pytest.mark.parametrize("language", WESTERN)
@pytest.mark.parametrize(
    "codec",
    ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252", "latin-1", "iso8859-15"],
)
def test_western_languages_are_read(language: str, codec: str, size: str) -> None:
    text = WESTERN[language] if size == "small" else varied(WESTERN[language])
    if codec in ("latin-1", "iso8859-15"):
        text = text.translate(LATIN_1)
    result, decoder = decoded(text.encode(codec))
    assert (result, decoder.broken) == (text, 0)


@pytest.mark.parametrize("language", WESTERN)
def test_each_line_of_a_western_text_is_read(language: str) -> None:
    for line in WESTERN[language].splitlines():
        assert decoded(line.encode("cp1252"))[0] == line


@pytest.mark.parametrize("text", ["don’t\n" * 300, "“No.”\n", "5 €", "Grüße", "œuf, cœur et sœur"])
def test_one_kind_of_character_outside_ascii_is_enough_for_windows_1252(text: str) -> None:
    assert_is_read(text, "cp1252")


def test_iso_8859_15_is_recognised_by_its_own_letters() -> None:
    text = "Le cœur de ma sœur était gai. " * 20
    assert_is_read(text, "iso8859-15")


@pytest.mark.parametrize("size", [10, 40, 100])
@pytest.mark.parametrize("codec", ["gb18030", "big5", "big5hkscs"])
def test_short_chinese_texts_are_read(codec: str, size: int) -> None:
    text = TRADITIONAL if codec.startswith("big5") else SIMPLIFIED
    for start in range(0, len(text) - size, 9):
        part = text[start : start + size]
        assert_is_read(part, codec)


TABLES = {
    "csv": "id,question,answer,source\n17,谁拨亮了油灯？,沈砚,chapter-1\n18,who?,柳青禾,chapter-1\n",
    "json": '[{"instruction": "Name the ferryman", "input": "", "output": "老船夫"}]\n',
    "words": "She said 你好 and left. The sign over the tea house (茶楼) read 北山.\n",
    "labels": "text,label\nroom was fine,好\nnever again,不好\nquite small,一般\n",
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("codec", ["gb18030", "big5"])
def test_chinese_words_among_english_ones_are_read(name: str, codec: str) -> None:
    simplified = "谁拨灯砚门开楼"
    text = TABLES[name]
    if codec == "big5":
        text = text.translate(str.maketrans(simplified, "誰撥燈硯門開樓"))
    assert_is_read(text, codec)


CLASSICAL = """昔者滄浪之水，其源出於岷峨。蘅蕪薜荔，披拂乎崖壁；黿鼉蛟螭，潛伏於淵渚。
鷦鷯棲於蓁莽，麋鹿遊於林麓，鏗鏘之聲，聞於數里。樵者荷斧而歌，漁者鼓枻而應。
"""


@pytest.mark.parametrize("codec", ["gb18030", "big5hkscs", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", [CLASSICAL, CLASSICAL[:16], RARE, "蘅蕪薜荔\n鷦鷯麋鹿\n"])
def test_rare_words_are_not_questioned(text: str, codec: str) -> None:
    assert_is_read(text, codec)


FOREIGN = {
    "cp949": "그는 등불을 켜고 창밖을 보았다. 비는 아직 그치지 않았고, 강물은 세 번째 계단까지 올라왔다.\n",
    "cp932": "彼はランプをともして、窓の外を見た。雨はまだやまず、川の水は三段目の石段まで来ていた。\n",
    "euc_jp": "彼はランプをともして、窓の外を見た。雨はまだやまず、川の水は三段目の石段まで来ていた。\n",
    "koi8-r": "Он зажёг лампу и посмотрел в окно. Дождь ещё не кончился, и река поднялась.\n",
    "cp1251": "Он зажёг лампу и посмотрел в окно. Дождь ещё не кончился, и река поднялась.\n",
}


@pytest.mark.parametrize("size", ["small", "larger"])
@pytest.mark.parametrize("codec", FOREIGN)
def test_other_languages_are_questioned_and_read_by_hand(codec: str, size: str) -> None:
    text = FOREIGN[codec] if size == "small" else varied(FOREIGN[codec])
    message = refusal(text.encode(codec))
    assert f"--encoding={codec}, or --encoding=" in message and "if it is Chinese" in message
    assert decoded(text.encode(codec), codec)[0] == text


@pytest.mark.parametrize(
    ("codec", "text"),
    [
        ("cp1250", "Zażółć gęślą jaźń, powiedział, i zamknął drzwi. Łódź odpłynęła o szóstej.\n"),
        (
            "cp1250",
            "Příliš žluťoučký kůň se napil vody z řeky, která už sahala k třetímu schodu.\n",
        ),
        ("mac_roman", WESTERN["french"]),
        ("mac_roman", "It wasn’t late, and they didn’t hurry; she’d said they’ll wait.\n"),
        ("cp850", WESTERN["german"].translate(LATIN_1)),
    ],
)
def test_an_encoding_that_is_not_known_is_questioned(codec: str, text: str) -> None:
    assert "--encoding must be set" in refusal((text * 9).encode(codec))


@pytest.mark.parametrize("at", ["after the sample", "at its end", "much later"])
@pytest.mark.parametrize("codec", ["utf-8", "cp1252", "gb18030"])
def test_the_first_characters_outside_ascii_may_come_late(
    codec: str, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encodings, "SAMPLE_BYTES", 3000)
    monkeypatch.setattr(encodings, "READ_BYTES", 2000)
    late = SIMPLIFIED if codec == "gb18030" else WESTERN["french"]
    first = next(i for i, c in enumerate(late) if c > "\x7f")
    start = {"after the sample": 3000, "at its end": 2999, "much later": 20_001}[at]
    text = ("The lamp was lit. " * 2000)[: start - first] + late * 20
    result, decoder = decoded(text.encode(codec))
    assert (result, decoder.encoding, decoder.broken) == (text, codec, 0)


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_recognised_by_its_line_ends(codec: str) -> None:
    text = RARE.replace("，", "")
    assert_is_read(text, codec)


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
def test_one_line_of_english_in_utf_16_is_read(codec: str) -> None:
    text = ENGLISH.replace("\n", " ").strip()
    assert_is_read(text, codec)


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


@pytest.mark.parametrize("size", [50, 200, 1000])
def test_random_bytes_are_refused(size: int) -> None:
    for seed in range(20):
        assert "it is not a text file" in refusal(random.Random(seed).randbytes(size))


@pytest.mark.parametrize("byte", [b"\xff", b"\xd5", b"\x81", b"\xb3"])
def test_one_odd_byte_in_ascii_is_reported(byte: bytes) -> None:
    result, decoder = decoded(PLAIN.encode() + b"od" + byte + b"d\n" + PLAIN.encode())
    assert (decoder.broken, result) == (1, f"{PLAIN}od�d\n{PLAIN}")


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
