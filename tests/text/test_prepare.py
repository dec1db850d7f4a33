"""prepare.py: every character of the books is in one split, and the folder is complete or absent."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import io
import json
import os
import random
import re
import shlex
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import prepare
from shuoshu.text import books
from shuoshu.text import prepare as text_prepare
from shuoshu.text.books import HEADING
from shuoshu.text.dataset import DatasetWriter, TextDataset
from shuoshu.text.tokenizer import Tokenizer

FILES = ["meta.json", "tokenizer.json", "train.bin", "val.bin"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, which is the repository for the commands, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(text_prepare, "REPO_ROOT", tmp_path)
    return tmp_path


def book(name: str, text: str) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text, encoding="utf-8", newline="\n")
    return name


def made(*argv: str) -> int:
    return prepare.main(
        [
            *argv,
            *(
                []
                if any(word.startswith("--vocab_size") for word in argv)
                else ["--vocab_size=300"]
            ),
        ]
    )


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def meta_of(folder: str) -> dict:
    return json.loads((Path(folder) / "meta.json").read_text(encoding="utf-8"))


def laid_out(text: str) -> str:
    """The shared book as prepare.py writes it: without indents."""
    return text.replace("　　", "")


def documents(folder: str, split: str) -> list[str]:
    """The texts between the end tokens of a split, which must end with one."""
    tokenizer, tokens = Tokenizer.load(folder), TextDataset(Path(folder), split).tokens.tolist()
    assert not tokens or tokens[-1] == tokenizer.end
    ends = [-1, *(i for i, token in enumerate(tokens) if token == tokenizer.end)]
    return [tokenizer.decode(tokens[a + 1 : b]) for a, b in pairwise(ends)]


# ---------------------------------------------------------------- content


@pytest.mark.parametrize("kind", ["bpe", "chars"])
def test_every_character_is_in_one_split_once(text: str, kind: str) -> None:
    assert made(book("雨夜.txt", text), f"--tokenizer={kind}") == 0
    [train], [val] = documents("data/雨夜", "train"), documents("data/雨夜", "val")
    assert train + val == laid_out(text)
    assert val.startswith("第十回")
    assert sorted(contents("data/雨夜")) == FILES


def test_each_book_is_a_document_and_its_end_is_validation_text(text: str) -> None:
    one, other = laid_out(text), laid_out(text).replace("沈砚", "云娘")
    book("shelf/a.txt", one)
    book("shelf/deep/b.txt", other)
    assert made("shelf") == 0
    pairs = list(zip(documents("data/shelf", "train"), documents("data/shelf", "val"), strict=True))
    assert ["".join(pair) for pair in pairs] == [one, other]
    assert [b["title"] for b in meta_of("data/shelf")["books"]] == ["a", "b"]


def test_the_counts_in_the_meta_are_right(text: str) -> None:
    book("shelf/a.txt", text)
    book("shelf/b.txt", "短篇🙂\n")
    assert made("shelf") == 0
    meta, tokenizer = meta_of("data/shelf"), Tokenizer.load("data/shelf")
    assert (meta["format"], meta["dtype"], meta["vocab_size"]) == (1, "uint16", 300)
    assert meta["tokenizer"] == {"kind": "bpe", "hash": tokenizer.hash}
    for split in ("train", "val"):
        raw = (Path("data/shelf") / f"{split}.bin").read_bytes()
        texts = documents("data/shelf", split)
        assert meta["splits"][split] == {
            "tokens": len(raw) // 2,
            "characters": len("".join(texts)),
            "bytes": len("".join(texts).encode("utf-8")),
            "documents": len(texts),
            "sha256": hashlib.sha256(raw).hexdigest(),
        }
        assert len(raw) // 2 == len(texts) + sum(len(tokenizer.encode(piece)) for piece in texts)
    assert [b["characters"] for b in meta["books"]] == [len(laid_out(text)), 4]
    assert [b["source"] for b in meta["books"]] == ["a.txt", "b.txt"]
    assert [b["encoding"] for b in meta["books"]] == ["utf-8", "utf-8"]
    assert sum(b["characters"] for b in meta["books"]) == sum(
        meta["splits"][split]["characters"] for split in ("train", "val")
    )
    assert meta["settings"] == {
        "tokenizer": "bpe",
        "clean": True,
        "val_fraction": 0.05,
        "seed": 1337,
    }


def test_a_chapters_offset_points_to_its_title(text: str) -> None:
    book("shelf/a.txt", "楔子。\n" + text)
    book("shelf/b.txt", text)
    assert made("shelf", "--val_fraction=0.2") == 0
    tokenizer, chapters = Tokenizer.load("data/shelf"), meta_of("data/shelf")["chapters"]
    assert [(c["book"], " ".join(c["title"].split())) for c in chapters] == [
        (n, " ".join(m.group().split())) for n in (0, 1) for m in HEADING.finditer(text)
    ]
    assert {c["split"] for c in chapters} == {"train", "val"}
    for chapter in chapters:
        tokens = TextDataset(Path("data/shelf"), chapter["split"]).tokens[chapter["token"] :][:400]
        assert (
            " ".join(tokenizer.decode(tokens.tolist()).split("\n")[0].split()) == chapter["title"]
        )


def test_with_a_share_of_0_there_is_no_validation_text(text: str) -> None:
    assert made(book("a.txt", text), "--val_fraction=0") == 0
    assert documents("data/a", "train") == [laid_out(text)] and documents("data/a", "val") == []
    assert meta_of("data/a")["splits"]["val"]["documents"] == 0


def test_a_vocabulary_over_65536_needs_four_bytes_per_token(here: Path) -> None:
    fake = SimpleNamespace(n_vocab=70_000, end=69_999, kind="fake", hash="", to_json=lambda: "{}")
    with DatasetWriter(here / "big") as writer:
        writer.open(fake)
        writer.add("train", np.array([65_536, 69_000], dtype=np.uint32))
        writer.end_document("train")
        meta = writer.finish([], {})
    assert meta["dtype"] == "uint32"
    assert TextDataset(here / "big", "train").tokens.tolist() == [65_536, 69_000, 69_999]


def test_the_end_tokens_spelling_in_a_book_is_text() -> None:
    text = "他写道：<|endoftext|>\n" * 50
    assert made(book("a.txt", text), "--val_fraction=0") == 0
    assert documents("data/a", "train") == [text]


def test_the_tokenizer_of_another_folder_can_be_used(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert made(book("a.txt", text)) == 0
    assert prepare.main([book("b.txt", text[5000:]), "--tokenizer=data/a"]) == 0
    assert contents("data/a")["tokenizer.json"] == contents("data/b")["tokenizer.json"]
    assert made("b.txt", "--tokenizer=data/a") == 2
    assert "--vocab_size goes with" in capsys.readouterr().err


def test_a_line_of_a_million_spaces_is_prepared(text: str) -> None:
    blank = "雨。" + " " * 1_000_000 + "夜\n"
    assert made(book("a.txt", text)) == 0
    assert prepare.main([book("b.txt", blank), "--tokenizer=data/a", "--val_fraction=0"]) == 0
    assert documents("data/b", "train") == [blank]


# ---------------------------------------------------------------- repeated runs


def test_the_same_books_give_the_same_bytes(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        books, "BLOCK_CHARACTERS", 2000
    )  # many sections, which threads could reorder
    book("a.txt", text.replace("　　", "") * 3)
    for out, threads in (("one", 1), ("two", 2), ("again", 2)):
        assert made("a.txt", f"--out={out}", f"--threads={threads}") == 0
    assert contents("one") == contents("two") == contents("again")


def test_a_second_run_replaces_the_first(text: str) -> None:
    assert made(book("a.txt", text)) == 0
    assert (
        made(book("a.txt", text[:3000]), "--vocab_size=290") == 2
    )  # an error does not change the first
    assert "".join(documents("data/a", "train") + documents("data/a", "val")) == laid_out(text)
    assert made("a.txt", "--vocab_size=310") == 0
    assert (
        "".join(documents("data/a", "train") + documents("data/a", "val"))
        == laid_out(text[:3000]) + "\n"
    )
    assert sorted(contents("data/a")) == FILES


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("raw", [bytes(range(256)) * 50, b""], ids=["no text", "empty"])
def test_after_a_bad_book_no_files_are_left(
    text: str, raw: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    book("shelf/a.txt", text)
    Path("shelf/z.txt").write_bytes(raw)
    assert made("shelf") == 2
    output = capsys.readouterr()
    assert "z.txt" in output.err and "Traceback" not in output.err and output.out == ""
    assert not Path("data").exists()


@pytest.mark.parametrize("when", ["add", "finish"])
def test_a_full_disk_does_not_harm_earlier_data(
    text: str, when: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    book("shelf/a.txt", text)
    assert made("shelf") == 0
    before = contents("data/shelf")

    def full(*arguments: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(DatasetWriter, when, full)
    capsys.readouterr()
    assert made("shelf", "--tokenizer=chars") == 2
    output = capsys.readouterr()
    assert (
        os.strerror(errno.ENOSPC) in output.err
        and "Traceback" not in output.err
        and output.out == ""
    )
    assert contents("data/shelf") == before
    assert made("shelf", "--out=data/new") == 2
    assert not Path("data/new").exists()


def test_a_book_that_changes_after_it_was_read_changes_nothing(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    book("shelf/a.txt", text)
    encode = text_prepare.encode

    def encode_spoilt(*arguments: object) -> None:
        Path("shelf/a.txt").write_bytes(b"\0" * 100)
        encode(*arguments)

    monkeypatch.setattr(text_prepare, "encode", encode_spoilt)
    assert made("shelf") == 0
    assert "".join(documents("data/shelf", "train") + documents("data/shelf", "val")) == laid_out(
        text
    )


# ---------------------------------------------------------------- bad and damaged files

BAD = {"07.txt": bytes(range(256)) * 40, "12.zip": b"PK\x03\x04" + b"torn" * 30, "18.txt": b""}


@pytest.fixture
def shelf(text: str) -> dict[str, str]:
    """(a folder of 20 files of many kinds, three of them bad; {title: text} of the good ones)."""
    Path("shelf").mkdir()
    chapters = laid_out(text).split("\n第")
    codecs = ["utf-8", "utf-8-sig", "gb18030", "utf-16", "utf-16-le"]
    good = {}
    for n in range(20):
        name = f"{n:02}.txt"
        if any(name[:2] == bad[:2] for bad in BAD):
            continue
        story = ("第" * (n % 10 > 0) + chapters[n % 10]).replace(
            "沈砚", f"沈{chr(0x4E00 + 7 * n)}"
        ) + "\n"
        raw = story.replace("\n", "\r\n" if n % 2 else "\n").encode(codecs[n % 5])
        if n == 3:
            name = "03.txt.gz"
            raw = gzip.compress(raw)
        if n == 4:
            name = "04.zip"
            with zipfile.ZipFile("shelf/04.zip", "w") as archive:
                archive.writestr("deep/04.txt", raw)
        else:
            (Path("shelf") / name).write_bytes(raw)
        good[f"{n:02}"] = story.rstrip("\n") + "\n"
    for name, raw in BAD.items():
        (Path("shelf") / name).write_bytes(raw)
    return good


def test_all_bad_files_are_reported_and_nothing_is_written(
    shelf: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert made("shelf") == 2
    output = capsys.readouterr()
    assert (
        output.out == ""
        and output.err.startswith("error: 3 of 20 files can't be read:")
        and "--skip_bad" in output.err
    )
    reasons = dict(re.findall(r"shelf.(\d\d\.\w+): (.+)", output.err))
    assert reasons.keys() == BAD.keys()
    assert (
        "it is no text" in reasons["07.txt"]
        and "the archive is damaged" in reasons["12.zip"]
        and "it is empty" in reasons["18.txt"]
    )
    assert sorted(path.name for path in Path().iterdir()) == ["shelf"]


def test_skip_bad_skips_bad_files_and_reports_them(
    shelf: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert made("shelf", "--skip_bad", "--val_fraction=0") == 0
    output = capsys.readouterr().out
    assert re.findall(r"skipped +shelf.(\d\d\.\w+): .", output) == sorted(BAD)
    titles = [b["title"] for b in meta_of("data/shelf")["books"]]
    assert dict(zip(titles, documents("data/shelf", "train"), strict=True)) == shelf
    assert sorted(contents("data/shelf")) == FILES


def test_skip_bad_needs_one_good_file(
    capsys: pytest.CaptureFixture[str],
) -> None:
    book("shelf/a.txt", "")
    assert made("shelf", "--skip_bad") == 2
    assert "no readable file is left" in capsys.readouterr().err


def test_encodings_are_reported_and_can_be_forced(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a.txt").write_bytes(text.encode("gb18030"))
    assert made("a.txt") == 0
    assert re.search(r"^  a +gb18030 ", capsys.readouterr().out, re.MULTILINE)
    assert made("a.txt", "--encoding=gbk", "--out=forced") == 0
    assert meta_of("forced")["books"][0]["encoding"] == "gbk"
    assert documents("forced", "train") == documents("data/a", "train")
    capsys.readouterr()
    for wrong in ("utf-8", "klingon", "hex", "\0"):
        assert made("a.txt", f"--encoding={wrong}", "--out=wrong") == 2
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
    assert made(name) == 2
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
    assert made("shelf") == 0
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
    assert made("shelf") == 0
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
        account = one["account"]
        assert (
            account["read"]
            - sum(r[1] for r in account["rules"].values())
            + sum(r[2] for r in account["rules"].values())
            == account["kept"]
            == one["characters"]
        )
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
    assert made("a.txt") == 0
    brief = capsys.readouterr().out
    assert made("a.txt", "--show_removed") == 0
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
    assert made("a.txt", "--clean=false", "--val_fraction=0") == 0
    [result] = documents("data/a", "train")
    assert "".join(result.split()) == "".join(source.split())
    assert meta_of("data/a")["settings"]["clean"] is False
    assert made("a.txt", "--out=cleaned", "--val_fraction=0") == 0
    assert documents("cleaned", "train") == [laid_out(text)]


def test_rare_characters_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    book("a.txt", "他姓\ue123，字\U00020bb7。雨还在下，谁也没有说话。\n" * 20)
    assert made("a.txt", "--tokenizer=chars") == 0
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
        account = one["account"]
        assert (
            account["read"]
            - sum(r[1] for r in account["rules"].values())
            + sum(r[2] for r in account["rules"].values())
            == account["kept"]
            == one["characters"]
        )
    prepared = "".join(documents(folder / "out", "train") + documents(folder / "out", "val"))
    assert len(prepared) == sum(one["characters"] for one in meta_of(folder / "out")["books"])


# ---------------------------------------------------------------- the bundled novella


@pytest.mark.parametrize(
    "argv",
    [
        ["novella.txt"],
        ["a.txt", "--out=data/novella"],
        ["data/novella", "a.txt"],
        ["a.txt", "--out=data/x/../novella/"],
    ],
)
@pytest.mark.parametrize("linked", [False, True], ids=["plain", "data is a link"])
def test_the_users_text_never_overwrites_the_novella(
    text: str, argv: list[str], linked: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if linked:
        Path("disk").mkdir()
        Path("data").symlink_to("disk", target_is_directory=True)
    book("data/novella/第一回.txt", text)
    book("novella.txt", text)
    book("a.txt", text)
    assert made(*argv) == 2
    assert "belongs to the bundled novella" in capsys.readouterr().err
    assert list(contents("data/novella")) == ["第一回.txt"]


def test_without_input_the_novella_is_prepared(text: str) -> None:
    book("data/novella/第一回.txt", text)
    assert made() == 0
    assert sorted(contents("data/novella")) == [*FILES, "第一回.txt"]
    assert made("data/novella") == 0


# ---------------------------------------------------------------- messages


def test_the_summary_shows_the_counts(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert made(book("雨夜.txt", text)) == 0
    lines, meta = capsys.readouterr().out.splitlines(), meta_of("data/雨夜")
    [row] = [line.split() for line in lines if line.startswith("  雨夜")]
    share = meta["splits"]["val"]["characters"] / len(laid_out(text))
    assert row == ["雨夜", "utf-8", "10", f"{len(laid_out(text)):,}", f"{share:.1%}"]
    for split in ("train", "val"):
        [row] = [line.split() for line in lines if line.startswith(f"  {split} ")]
        assert row == [
            split,
            *(f"{meta['splits'][split][name]:,}" for name in ("characters", "tokens", "documents")),
        ]
    summary = "\n".join(lines)
    tokens = sum(part["tokens"] for part in meta["splits"].values())
    assert "vocabulary   300 (bpe; set by --vocab_size)" in summary
    assert f"compression  {len(laid_out(text)) / tokens:.2f} characters per token" in summary
    assert shlex.split(lines[-1]) == ["next", "python", "train.py", "--dataset=雨夜"]


def test_many_books_are_summed_up(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    for n in range(15):
        book(f"shelf/{n:02}.txt", laid_out(text)[: 1000 + n] + "\n")
    assert made("shelf") == 0
    [row] = [
        line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  3 more")
    ]
    assert row == ["3", "more", "3", "3,006"]


@pytest.mark.parametrize(
    "argv",
    [
        ["missing.txt"],
        ["a.txt", "--tokenizer=nowhere"],
        ["a.txt", "--out=a.txt"],
        ["a.txt", "--vocab_sise=9"],
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    text: str, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    book("a.txt", text[:1000])
    assert made(*argv) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ") and "Traceback" not in output.err
    assert [path.name for path in Path().iterdir()] == ["a.txt"]


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize(("threads", "ahead"), [(1, 1), (2, 4), (3, 100)])
def test_only_a_few_items_are_in_memory_at_a_time(threads: int, ahead: int) -> None:
    drawn = 0

    def items() -> Iterator[int]:
        nonlocal drawn
        while drawn < 60:
            drawn += 1
            yield drawn

    def work(item: int) -> int:
        time.sleep(random.Random(item).random() / 1000)
        return item

    results = []
    with ThreadPoolExecutor(threads) as pool:
        for result in text_prepare.ordered_map(pool, work, items(), ahead):
            assert drawn - len(results) <= ahead
            results.append(result)
    assert results == list(range(1, 61))
