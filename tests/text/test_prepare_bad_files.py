"""prepare.py: bad and damaged files, what is removed, and its account."""

from __future__ import annotations

import contextlib
import gzip
import io
import re
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import prepare
from shuoshu.text.books import HEADING
from tests.text.prepare_helpers import (
    BAD,
    FILES,
    book,
    contents,
    documents,
    is_accounted_for,
    laid_out,
    meta_of,
    run_prepare,
)

pytestmark = pytest.mark.usefixtures("here")


def test_all_bad_files_are_reported_and_nothing_is_written(
    shelf: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_prepare("shelf") == 2
    output = capsys.readouterr()
    assert (
        output.out == ""
        and output.err.startswith("error: 3 of 20 files can't be read:")
        and "--skip_bad" in output.err
    )
    reasons = dict(re.findall(r"shelf.(\d\d\.\w+): (.+)", output.err))
    assert reasons.keys() == BAD.keys()
    assert (
        "it is not a text file" in reasons["07.txt"]
        and "the archive is damaged" in reasons["12.zip"]
        and "it is empty" in reasons["18.txt"]
    )
    assert sorted(path.name for path in Path().iterdir()) == ["shelf"]


def test_skip_bad_skips_bad_files_and_reports_them(
    shelf: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_prepare("shelf", "--skip_bad", "--val_fraction=0") == 0
    output = capsys.readouterr().out
    assert re.findall(r"skipped +shelf.(\d\d\.\w+): .", output) == sorted(BAD)
    titles = [b["title"] for b in meta_of("data/shelf")["books"]]
    assert dict(zip(titles, documents("data/shelf", "train"), strict=True)) == shelf
    assert sorted(contents("data/shelf")) == FILES


def test_skip_bad_needs_one_good_file(
    capsys: pytest.CaptureFixture[str],
) -> None:
    book("shelf/a.txt", "")
    assert run_prepare("shelf", "--skip_bad") == 2
    assert "no readable file is left" in capsys.readouterr().err


def test_encodings_are_reported_and_can_be_forced(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a.txt").write_bytes(text.encode("gb18030"))
    assert run_prepare("a.txt") == 0
    assert re.search(r"^  a +gb18030 ", capsys.readouterr().out, re.MULTILINE)
    assert run_prepare("a.txt", "--encoding=gbk", "--out=forced") == 0
    assert meta_of("forced")["books"][0]["encoding"] == "gbk"
    assert documents("forced", "train") == documents("data/a", "train")
    capsys.readouterr()
    for wrong in ("utf-8", "klingon", "hex", "\0"):
        assert run_prepare("a.txt", f"--encoding={wrong}", "--out=wrong") == 2
        output = capsys.readouterr()
        assert (
            output.err.startswith("error: ") and "Traceback" not in output.err and output.out == ""
        )
    assert not Path("wrong").exists()


@pytest.mark.parametrize("name", ["a.gz", "a.txt.gz", "a.zip"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_archive_is_one_message_and_exit_code_2(
    text: str, name: str, share: float, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        archive.writestr("a.txt", text)
    whole = raw.getvalue() if name.endswith("zip") else gzip.compress(text.encode())
    Path(name).write_bytes(whole[: int(share * len(whole))])
    assert run_prepare(name) == 2
    output = capsys.readouterr()
    assert (
        "can't be read" in output.err
        and name in output.err
        and "can't write" not in output.err
        and "Traceback" not in output.err
    )


def test_duplicate_books_are_reported(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    book("shelf/旧本.txt", text)
    book(
        "shelf/别的.txt",
        "\n".join(
            f"{n}：" + "".join(chr(0x5000 + (n * k * k + 31 * k) % 4000) for k in range(40))
            for n in range(200)
        ),
    )
    Path("shelf/新本.txt").write_bytes(laid_out(text).replace("\n", "\r\n\r\n").encode("gb18030"))
    assert run_prepare("shelf") == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if "the same book twice" in line]
    assert len(notes) == 1 and "100%" in notes[0] and "旧本" in notes[0] and "新本" in notes[0]


# What a site adds to a novel; one rule removes each kind.
DIRT = {
    "addresses": [
        "　　雨夜在线书库《www.yuye.com》",
        "　　小^说^网ｗｗｗ．ｙ^ｕ^ｙ^ｅ．ｃｏｍ更新最快",
    ],
    "notices": [
        f"    更新时间:2007-11-16 7:55:{second} 本章字数:4{second}4" for second in range(10, 20)
    ],
    "banners": ["========\n本书由雨夜社区 http://www.yuye.com/ 整理\n========"],
    "正文": ["正文 "] * 10,
    "entities": ["&nbsp;"],
    "markup": ["<font>", "<!-- 广告 -->"],
    "front matter": ["《雨夜》作者：某某\n内容简介：\n一场雨。"],
}


def dirty(text: str) -> str:
    headed = iter(DIRT["notices"])
    lines = [
        "正文 " + line + "\n" + next(headed) if HEADING.match(line) else line
        for line in text.split("\n")
    ]
    lines[3:3] = DIRT["addresses"]
    lines[30:30] = DIRT["banners"]
    lines[40] = lines[40] + "&nbsp;<font><!-- 广告 -->"
    return DIRT["front matter"][0] + "\n" + "\n".join(lines)


def figures(line: str) -> list[int]:
    """The last two columns of a row of the account."""
    return [int(word.replace(",", "")) for word in line.split()[-2:]]


def test_the_account_adds_up_in_summary_and_meta(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    book("shelf/a.txt", dirty(text))
    Path("shelf/b.txt").write_bytes("\ufeff短篇。\r\n\r\n\r\n　　完了。".encode("utf-16"))
    assert run_prepare("shelf") == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.split()[:1] == ["account"])
    end = next(i for i, line in enumerate(lines) if i > start and line.split()[:1] == ["kept"])
    rows = [line for line in lines[start + 1 : end + 1] if any(c.isdigit() for c in line)]
    read, kept = (
        int(rows[0].split()[-1].replace(",", "")),
        int(rows[-1].split()[-1].replace(",", "")),
    )
    assert read + sum(figures(row)[1] for row in rows[1:-1]) == kept
    assert {row.split("  ")[1].strip() for row in rows[1:-1]} >= set(DIRT)

    meta = meta_of("data/shelf")
    assert (
        kept
        == sum(b["characters"] for b in meta["books"])
        == sum(meta["splits"][split]["characters"] for split in ("train", "val"))
    )
    assert read == sum(b["account"]["read"] for b in meta["books"])
    assert meta["books"][0]["account"]["read"] == len(dirty(text))
    for one in meta["books"]:
        assert is_accounted_for(one)
    for row in rows[1:-1]:
        name = next(
            rule
            for rule in sorted(
                {*meta["books"][0]["account"]["rules"], *meta["books"][1]["account"]["rules"]},
                key=len,
                reverse=True,
            )
            if rule in row
        )
        result = [b["account"]["rules"].get(name, [0, 0, 0]) for b in meta["books"]]
        assert figures(row) == [sum(r[0] for r in result), sum(r[2] - r[1] for r in result)]


def test_show_removed_lists_all_removed_text_and_the_summary_a_sample(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    book("a.txt", dirty(text))
    assert run_prepare("a.txt") == 0
    brief = capsys.readouterr().out
    assert run_prepare("a.txt", "--show_removed") == 0
    full = capsys.readouterr().out
    pieces = [
        " ".join(line.split())
        for kind, group in DIRT.items()
        if kind != "entities"
        for piece in group
        for line in piece.split("\n")
    ]
    for piece in pieces:
        assert piece in full, piece
    assert sum("本章字数" in line for line in full.splitlines()) == 10
    assert sum("本章字数" in line for line in brief.splitlines()) == 1
    assert all(any(line.strip().startswith(kind) for line in brief.splitlines()) for kind in DIRT)


def test_without_cleaning_only_the_layout_changes(text: str) -> None:
    source = dirty(text)
    book("a.txt", source)
    assert run_prepare("a.txt", "--clean=false", "--val_fraction=0") == 0
    [result] = documents("data/a", "train")
    assert "".join(result.split()) == "".join(source.split())
    assert meta_of("data/a")["settings"]["clean"] is False
    assert run_prepare("a.txt", "--out=cleaned", "--val_fraction=0") == 0
    assert documents("cleaned", "train") == [laid_out(text)]


def test_rare_characters_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    book("a.txt", "他姓\ue123，字\U00020bb7。雨还在下，谁也没有说话。\n" * 20)
    assert run_prepare("a.txt", "--tokenizer=chars") == 0
    assert "a has odd characters: 20 private-use, 20 rare" in capsys.readouterr().out
    assert meta_of("data/a")["books"][0]["odd"] == {"private-use": 20, "rare": 20}


PIECES = st.sampled_from(
    [
        b"\r\n",
        b"\n",
        b"\0",
        b"\xff",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"&#11;",
        b"&nbsp;\n",
        b"<br>",
        b"========\n",
        b"www.yuye.com",
        b"PK\x03\x04",
        b"\x1f\x8b\x08",
        b" " * 50,
    ]
    + [
        word.encode(codec)
        for word in ("第一回 雨\n", "第　回\n", "　　沈砚走了。\n", "正文 第二章\n")
        for codec in ("utf-8", "gb18030", "utf-16-le", "utf-16-be")
    ]
)


@settings(max_examples=40)
@given(
    raw=st.binary(max_size=200)
    | st.lists(PIECES | st.binary(max_size=4), max_size=40).map(b"".join),
    suffix=st.sampled_from([".txt", ".txt", ".gz", ".zip"]),
    clean=st.booleans(),
)
def test_any_bytes_are_prepared_with_an_exact_account_or_refused(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes, suffix: str, clean: bool
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / f"a{suffix}").write_bytes(raw)
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        code = prepare.main(
            [
                str(folder / f"a{suffix}"),
                f"--out={folder / 'out'}",
                "--tokenizer=chars",
                f"--clean={clean}",
            ]
        )
    assert code in (0, 2) and "Traceback" not in err.getvalue()
    if code == 2:
        assert err.getvalue().startswith("error: ") and not (folder / "out").exists()
        return
    for one in meta_of(folder / "out")["books"]:
        assert is_accounted_for(one)
    prepared = "".join(documents(folder / "out", "train") + documents(folder / "out", "val"))
    assert len(prepared) == sum(one["characters"] for one in meta_of(folder / "out")["books"])
