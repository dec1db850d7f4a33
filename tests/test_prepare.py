"""prepare.py: every character of the books lands in its split once, in a folder that is whole or not there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shlex
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import prepare
from shuoshu import text as reading
from shuoshu.batches import DatasetWriter, TokenFile
from shuoshu.text import HEADING
from shuoshu.tokenizer import Tokenizer

FILES = ["meta.json", "tokenizer.json", "train.bin", "val.bin"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, which the commands also take for their own home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare, "HOUSE", tmp_path)
    return tmp_path


def book(name: str, text: str) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text, encoding="utf-8", newline="\n")
    return name


def made(*argv: str) -> int:
    return prepare.main([*argv, *([] if any(word.startswith("--vocab_size") for word in argv) else ["--vocab_size=300"])])


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def meta_of(folder: str) -> dict:
    return json.loads((Path(folder) / "meta.json").read_text(encoding="utf-8"))


def laid_out(text: str) -> str:
    """The shared book as it stands in the data: without indentation."""
    return text.replace("　　", "")


def documents(folder: str, split: str) -> list[str]:
    """The texts between the end tokens of a split, which must end with one."""
    tokenizer, tokens = Tokenizer.load(folder), TokenFile(Path(folder), split).tokens.tolist()
    assert not tokens or tokens[-1] == tokenizer.end
    ends = [-1, *(i for i, token in enumerate(tokens) if token == tokenizer.end)]
    return [tokenizer.decode(tokens[a + 1 : b]) for a, b in pairwise(ends)]


# ---------------------------------------------------------------- what is written


@pytest.mark.parametrize("kind", ["bpe", "chars"])
def test_every_character_lands_in_its_split_once(text: str, kind: str) -> None:
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


def test_the_meta_counts_what_is_there(text: str) -> None:
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
    assert sum(b["characters"] for b in meta["books"]) == sum(meta["splits"][split]["characters"] for split in ("train", "val"))
    assert meta["settings"] == {"tokenizer": "bpe", "clean": True, "val_fraction": 0.05, "seed": 1337}


def test_a_chapters_offset_leads_to_its_title(text: str) -> None:
    book("shelf/a.txt", "楔子。\n" + text)
    book("shelf/b.txt", text)
    assert made("shelf", "--val_fraction=0.2") == 0
    tokenizer, chapters = Tokenizer.load("data/shelf"), meta_of("data/shelf")["chapters"]
    assert [(c["book"], " ".join(c["title"].split())) for c in chapters] == [(n, " ".join(m.group().split())) for n in (0, 1) for m in HEADING.finditer(text)]
    assert {c["split"] for c in chapters} == {"train", "val"}
    for chapter in chapters:
        tokens = TokenFile(Path("data/shelf"), chapter["split"]).tokens[chapter["token"] :][:400]
        assert " ".join(tokenizer.decode(tokens.tolist()).split("\n")[0].split()) == chapter["title"]


def test_without_a_share_there_is_no_validation_text(text: str) -> None:
    assert made(book("a.txt", text), "--val_fraction=0") == 0
    assert documents("data/a", "train") == [laid_out(text)] and documents("data/a", "val") == []
    assert meta_of("data/a")["splits"]["val"]["documents"] == 0


def test_a_vocabulary_over_65536_takes_four_bytes_a_token(here: Path) -> None:
    fake = SimpleNamespace(n_vocab=70_000, end=69_999, kind="fake", hash="", to_json=lambda: "{}")
    with DatasetWriter(here / "big") as writer:
        writer.open(fake)
        writer.add("train", np.array([65_536, 69_000], dtype=np.uint32))
        writer.end_document("train")
        meta = writer.finish([], {})
    assert meta["dtype"] == "uint32"
    assert TokenFile(here / "big", "train").tokens.tolist() == [65_536, 69_000, 69_999]


def test_the_end_tokens_spelling_in_a_book_ends_nothing() -> None:
    text = "他写道：<|endoftext|>\n" * 50
    assert made(book("a.txt", text), "--val_fraction=0") == 0
    assert documents("data/a", "train") == [text]


def test_the_tokenizer_of_another_folder_is_taken_over(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert made(book("a.txt", text)) == 0
    assert prepare.main([book("b.txt", text[5000:]), "--tokenizer=data/a"]) == 0
    assert contents("data/a")["tokenizer.json"] == contents("data/b")["tokenizer.json"]
    assert made("b.txt", "--tokenizer=data/a") == 2
    assert "--vocab_size goes with" in capsys.readouterr().err


def test_a_line_of_a_million_spaces_is_text_too(text: str) -> None:
    blank = "雨。" + " " * 1_000_000 + "夜\n"
    assert made(book("a.txt", text)) == 0
    assert prepare.main([book("b.txt", blank), "--tokenizer=data/a", "--val_fraction=0"]) == 0
    assert documents("data/b", "train") == [blank]


# ---------------------------------------------------------------- the same again


def test_the_same_books_give_the_same_bytes(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BLOCK", 2000)  # many sections, so that the order of the threads could matter
    book("a.txt", text.replace("　　", "") * 3)
    for out, threads in (("one", 1), ("two", 2), ("again", 2)):
        assert made("a.txt", f"--out={out}", f"--threads={threads}") == 0
    assert contents("one") == contents("two") == contents("again")


def test_a_second_run_replaces_the_first(text: str) -> None:
    assert made(book("a.txt", text)) == 0
    assert made(book("a.txt", text[:3000]), "--vocab_size=290") == 2  # a mistake leaves the first as it is
    assert "".join(documents("data/a", "train") + documents("data/a", "val")) == laid_out(text)
    assert made("a.txt", "--vocab_size=310") == 0
    assert "".join(documents("data/a", "train") + documents("data/a", "val")) == laid_out(text[:3000]) + "\n"
    assert sorted(contents("data/a")) == FILES


# ---------------------------------------------------------------- nothing half-written


@pytest.mark.parametrize("raw", [bytes(range(256)) * 50, b""], ids=["no text", "empty"])
def test_a_bad_book_leaves_nothing_behind(text: str, raw: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    book("shelf/a.txt", text)
    Path("shelf/z.txt").write_bytes(raw)
    assert made("shelf") == 2
    told = capsys.readouterr()
    assert "z.txt" in told.err and "Traceback" not in told.err and told.out == ""
    assert not Path("data").exists()


@pytest.mark.parametrize("when", ["add", "finish"])
def test_a_disk_that_fills_up_leaves_the_earlier_data_alone(text: str, when: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    book("shelf/a.txt", text)
    assert made("shelf") == 0
    before = contents("data/shelf")

    def full(*arguments: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(DatasetWriter, when, full)
    capsys.readouterr()
    assert made("shelf", "--tokenizer=chars") == 2
    told = capsys.readouterr()
    assert os.strerror(errno.ENOSPC) in told.err and "Traceback" not in told.err and told.out == ""
    assert contents("data/shelf") == before
    assert made("shelf", "--out=data/new") == 2
    assert not Path("data/new").exists()


def test_a_book_that_changes_after_it_was_read_changes_nothing(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    book("shelf/a.txt", text)
    encode = prepare.encode

    def encode_spoilt(*arguments: object) -> None:
        Path("shelf/a.txt").write_bytes(b"\0" * 100)
        encode(*arguments)

    monkeypatch.setattr(prepare, "encode", encode_spoilt)
    assert made("shelf") == 0
    assert "".join(documents("data/shelf", "train") + documents("data/shelf", "val")) == laid_out(text)


# ---------------------------------------------------------------- the bundled novella


@pytest.mark.parametrize("argv", [["novella.txt"], ["a.txt", "--out=data/novella"], ["data/novella", "a.txt"], ["a.txt", "--out=data/x/../novella/"]])
@pytest.mark.parametrize("linked", [False, True], ids=["plain", "data is a link"])
def test_the_users_text_never_lands_on_the_novella(text: str, argv: list[str], linked: bool, capsys: pytest.CaptureFixture[str]) -> None:
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


# ---------------------------------------------------------------- what is told


def test_the_summary_tells_the_counts(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert made(book("雨夜.txt", text)) == 0
    lines, meta = capsys.readouterr().out.splitlines(), meta_of("data/雨夜")
    [row] = [line.split() for line in lines if line.startswith("  雨夜")]
    share = meta["splits"]["val"]["characters"] / len(laid_out(text))
    assert row == ["雨夜", "utf-8", "10", f"{len(laid_out(text)):,}", f"{share:.1%}"]
    for split in ("train", "val"):
        [row] = [line.split() for line in lines if line.startswith(f"  {split} ")]
        assert row == [split, *(f"{meta['splits'][split][name]:,}" for name in ("characters", "tokens", "documents"))]
    told = "\n".join(lines)
    tokens = sum(part["tokens"] for part in meta["splits"].values())
    assert "vocabulary   300 (bpe; as asked)" in told
    assert f"a token is   {len(laid_out(text)) / tokens:.2f} characters" in told
    assert shlex.split(lines[-1]) == ["next", "python", "train.py", "--dataset=雨夜"]


def test_many_books_are_summed_up(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    for n in range(15):
        book(f"shelf/{n:02}.txt", laid_out(text)[: 1000 + n] + "\n")
    assert made("shelf") == 0
    [row] = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  3 more")]
    assert row == ["3", "more", "3", "3,006"]


@pytest.mark.parametrize("argv", [["missing.txt"], ["a.txt", "--tokenizer=nowhere"], ["a.txt", "--out=a.txt"], ["a.txt", "--vocab_sise=9"]])
def test_a_mistake_is_one_message_and_exit_code_2(text: str, argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    book("a.txt", text[:1000])
    assert made(*argv) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ") and "Traceback" not in told.err
    assert [path.name for path in Path().iterdir()] == ["a.txt"]


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize(("threads", "ahead"), [(1, 1), (2, 4), (3, 100)])
def test_only_a_few_items_are_held_at_a_time(threads: int, ahead: int) -> None:
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
        for result in prepare.in_order(pool, work, items(), ahead):
            assert drawn - len(results) <= ahead
            results.append(result)
    assert results == list(range(1, 61))
