"""prepare.py: every character is in one split, and the folder is complete or absent."""

from __future__ import annotations

import errno
import hashlib
import os
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import prepare
from shuoshu.text import prepare as text_prepare
from shuoshu.text.books import HEADING, Book
from shuoshu.text.data_folder import DatasetWriter
from shuoshu.text.dataset import TextDataset
from shuoshu.text.tokenizer_folder import load_tokenizer
from tests.text.prepare_helpers import (
    FILES,
    book,
    contents,
    documents,
    laid_out,
    meta_of,
    run_prepare,
)

pytestmark = pytest.mark.usefixtures("here")

# ---------------------------------------------------------------- content


@pytest.mark.parametrize("kind", ["bpe", "chars"])
def test_every_character_is_in_one_split_once(text: str, kind: str) -> None:
    assert run_prepare(book("雨夜.txt", text), f"--tokenizer={kind}") == 0
    [train], [val] = documents("data/雨夜", "train"), documents("data/雨夜", "val")
    assert train + val == laid_out(text)
    assert val.startswith("第十回")
    assert sorted(contents("data/雨夜")) == FILES


def test_each_book_is_a_document_and_its_end_is_validation_text(text: str) -> None:
    one, other = laid_out(text), laid_out(text).replace("沈砚", "云娘")
    book("shelf/a.txt", one)
    book("shelf/deep/b.txt", other)
    assert run_prepare("shelf") == 0
    pairs = list(zip(documents("data/shelf", "train"), documents("data/shelf", "val"), strict=True))
    assert ["".join(pair) for pair in pairs] == [one, other]
    assert [b["title"] for b in meta_of("data/shelf")["books"]] == ["a", "b"]


def test_the_counts_in_the_meta_are_right(text: str) -> None:
    book("shelf/a.txt", text)
    book("shelf/b.txt", "短篇🙂\n")
    assert run_prepare("shelf") == 0
    meta, tokenizer = meta_of("data/shelf"), load_tokenizer("data/shelf")
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
        "inputs": ["shelf"],
        "tokenizer": "bpe",
        "clean": True,
        "val_fraction": 0.05,
        "seed": 1337,
    }


def test_a_chapters_offset_points_to_its_title(text: str) -> None:
    book("shelf/a.txt", "楔子。\n" + text)
    book("shelf/b.txt", text)
    assert run_prepare("shelf", "--val_fraction=0.2") == 0
    tokenizer, chapters = load_tokenizer("data/shelf"), meta_of("data/shelf")["chapters"]
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
    assert run_prepare(book("a.txt", text), "--val_fraction=0") == 0
    assert documents("data/a", "train") == [laid_out(text)] and documents("data/a", "val") == []
    assert meta_of("data/a")["splits"]["val"]["documents"] == 0


def test_a_vocabulary_over_65536_needs_four_bytes_per_token(here: Path) -> None:
    fake = SimpleNamespace(
        n_vocab=70_000,
        end=69_999,
        kind="fake",
        hash="",
        data_files=lambda: {"tokenizer.json": "{}"},
    )
    with DatasetWriter(here / "big") as writer:
        writer.open(fake)
        writer.add("train", np.array([65_536, 69_000], dtype=np.uint32))
        writer.end_document("train")
        meta = writer.finish([], {})
    assert meta["dtype"] == "uint32"
    assert TextDataset(here / "big", "train").tokens.tolist() == [65_536, 69_000, 69_999]


def test_the_end_tokens_spelling_in_a_book_is_text() -> None:
    text = "他写道：<|endoftext|>\n" * 50
    assert run_prepare(book("a.txt", text), "--val_fraction=0") == 0
    assert documents("data/a", "train") == [text]


def test_the_tokenizer_of_another_folder_can_be_used(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_prepare(book("a.txt", text)) == 0
    assert prepare.main([book("b.txt", text[5000:]), "--tokenizer=data/a"]) == 0
    assert contents("data/a")["tokenizer.json"] == contents("data/b")["tokenizer.json"]
    assert run_prepare("b.txt", "--tokenizer=data/a") == 2
    assert "--vocab_size needs" in capsys.readouterr().err


def test_a_line_of_a_million_spaces_is_prepared(text: str) -> None:
    blank = "雨。" + " " * 1_000_000 + "夜\n"
    assert run_prepare(book("a.txt", text)) == 0
    assert prepare.main([book("b.txt", blank), "--tokenizer=data/a", "--val_fraction=0"]) == 0
    assert documents("data/b", "train") == [blank]


# ---------------------------------------------------------------- repeated runs


def test_the_same_books_give_the_same_bytes(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    many = partialmethod(Book.splits, 2000)  # many sections, which threads could reorder
    monkeypatch.setattr(Book, "splits", many)
    book("a.txt", text.replace("　　", "") * 3)
    for out, threads in (("one", 1), ("two", 2), ("again", 2)):
        assert run_prepare("a.txt", f"--out={out}", f"--threads={threads}") == 0
    assert contents("one") == contents("two") == contents("again")


def test_a_second_run_replaces_the_first(text: str) -> None:
    assert run_prepare(book("a.txt", text)) == 0
    assert (
        run_prepare(book("a.txt", text[:3000]), "--vocab_size=290") == 2
    )  # an error does not change the first
    assert "".join(documents("data/a", "train") + documents("data/a", "val")) == laid_out(text)
    assert run_prepare("a.txt", "--vocab_size=310") == 0
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
    assert run_prepare("shelf") == 2
    output = capsys.readouterr()
    assert "z.txt" in output.err and "Traceback" not in output.err and output.out == ""
    assert not Path("data").exists()


@pytest.mark.parametrize("when", ["add", "finish"])
def test_a_full_disk_does_not_harm_earlier_data(
    text: str, when: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    book("shelf/a.txt", text)
    assert run_prepare("shelf") == 0
    before = contents("data/shelf")

    def full(*arguments: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(DatasetWriter, when, full)
    capsys.readouterr()
    assert run_prepare("shelf", "--tokenizer=chars") == 2
    output = capsys.readouterr()
    assert (
        os.strerror(errno.ENOSPC) in output.err
        and "Traceback" not in output.err
        and output.out == ""
    )
    assert contents("data/shelf") == before
    assert run_prepare("shelf", "--out=data/new") == 2
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
    assert run_prepare("shelf") == 0
    assert "".join(documents("data/shelf", "train") + documents("data/shelf", "val")) == laid_out(
        text
    )
