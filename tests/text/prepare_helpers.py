"""Books and their content in a data folder, for the tests of prepare.py."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import prepare
from shuoshu.text.dataset import TextDataset
from shuoshu.text.tokenizer_folder import load_tokenizer

FILES = ["meta.json", "tokenizer.json", "train.bin", "val.bin"]


def book(name: str, text: str) -> str:
    """Writes a book; returns its path."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text, encoding="utf-8", newline="\n")
    return name


def run_prepare(*argv: str) -> int:
    """Runs prepare.py, with a small vocabulary unless argv sets one; returns the exit code."""
    has_size = any(word.startswith("--vocab_size") for word in argv)
    return prepare.main([*argv, *([] if has_size else ["--vocab_size=300"])])


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def meta_of(folder: str) -> dict:
    return json.loads((Path(folder) / "meta.json").read_text(encoding="utf-8"))


def is_accounted_for(book: dict) -> bool:
    """Whether the account of a book in meta.json explains every character that it has."""
    account = book["account"]
    removed, added = (sum(rule[i] for rule in account["rules"].values()) for i in (1, 2))
    return account["read"] - removed + added == account["kept"] == book["characters"]


def laid_out(text: str) -> str:
    """The shared book as prepare.py writes it: without indents."""
    return text.replace("　　", "")


def documents(folder: str, split: str) -> list[str]:
    """The texts between the end tokens of a split, which must end with one."""
    tokenizer, tokens = load_tokenizer(folder), TextDataset(Path(folder), split).tokens.tolist()
    assert not tokens or tokens[-1] == tokenizer.end
    ends = [-1, *(i for i, token in enumerate(tokens) if token == tokenizer.end)]
    return [tokenizer.decode(tokens[a + 1 : b]) for a, b in pairwise(ends)]


BAD = {"07.txt": bytes(range(256)) * 40, "12.zip": b"PK\x03\x04" + b"torn" * 30, "18.txt": b""}
