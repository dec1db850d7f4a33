"""Writes a data folder: files are staged in it, then moved into place together."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from shuoshu.core.errors import UserError
from shuoshu.core.files import same_path
from shuoshu.text.dataset import META_FORMAT, TEXT_SPLITS
from shuoshu.text.tokenizer import Tokenizer


def protect_bundled_data(folder: Path, inputs: Iterable[str], bundled: Path, content: str) -> None:
    """UserError if other inputs would replace the data of the bundled ones."""
    if same_path(folder, bundled) and not all(same_path(name, bundled) for name in inputs):
        raise UserError(
            f"{folder} belongs to the bundled {content}: choose another folder with --out=data/NAME"
        )


class StagingFolder:
    """A folder inside a data folder: files are written here, then moved up together or deleted."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.staging = folder, folder / f".writing-{os.getpid()}"

    def __enter__(self) -> StagingFolder:
        self.created = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        try:
            self.staging.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"can't write to {self.folder}: {error.strerror}") from None
        return self

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self.staging, ignore_errors=True)
        with suppress(OSError):  # a folder with files stays
            for path in self.created:
                path.rmdir()

    def commit(self, names: Sequence[str], tokenizer: Tokenizer, meta: dict) -> dict:
        """Writes tokenizer.json and meta.json, and moves all files into place; returns the meta.

        meta.json comes last, because no program reads files that it does not describe.
        """
        meta = {
            "format": META_FORMAT,
            "vocab_size": tokenizer.n_vocab,
            "tokenizer": {"kind": tokenizer.kind, "hash": tokenizer.hash},
        } | meta
        for name, text in (
            ("tokenizer.json", tokenizer.to_json()),
            ("meta.json", json.dumps(meta, ensure_ascii=False, indent=1)),
        ):
            (self.staging / name).write_text(text, encoding="utf-8", newline="\n")
        for name in (*names, "tokenizer.json", "meta.json"):
            with (self.staging / name).open("rb+") as file:
                os.fsync(file.fileno())
            (self.staging / name).replace(self.folder / name)
        return meta


def token_dtype(tokenizer: Tokenizer) -> np.dtype:
    """uint16 if the vocabulary fits, else uint32."""
    return np.dtype("<u2") if tokenizer.n_vocab <= 1 << 16 else np.dtype("<u4")


class DatasetWriter(StagingFolder):
    """Writes a text data folder: open, then add tokens in order, then finish."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.files: dict[str, BinaryIO] = {}

    def open(self, tokenizer: Tokenizer) -> None:
        """Opens the token files."""
        self.tokenizer = tokenizer
        self.dtype = token_dtype(tokenizer)
        names = ("tokens", "characters", "bytes", "documents")
        self.counts = {split: dict.fromkeys(names, 0) for split in TEXT_SPLITS}
        self.hashes = {split: hashlib.sha256() for split in TEXT_SPLITS}
        self.chapters: list[dict] = []
        self.files = {split: (self.staging / f"{split}.bin").open("wb") for split in TEXT_SPLITS}

    def __exit__(self, *error: object) -> None:
        for file in self.files.values():
            file.close()
        super().__exit__(*error)

    def add(self, split: str, ids: np.ndarray, characters: int = 0, n_bytes: int = 0) -> None:
        """Appends tokens, and counts the characters and UTF-8 bytes that they encode."""
        raw = ids.astype(self.dtype).tobytes()
        self.files[split].write(raw)
        self.hashes[split].update(raw)
        for name, count in (("tokens", len(ids)), ("characters", characters), ("bytes", n_bytes)):
            self.counts[split][name] += count

    def begin_chapter(self, split: str, book: int, title: str) -> None:
        """Records that a chapter begins with the next token."""
        token = self.counts[split]["tokens"]
        self.chapters.append({"book": book, "title": title, "split": split, "token": token})

    def end_document(self, split: str) -> None:
        """Appends the end token."""
        self.add(split, np.array([self.tokenizer.end], dtype=np.uint32))
        self.counts[split]["documents"] += 1

    def finish(self, books: list[dict], settings: dict) -> dict:
        """Moves the files into the data folder; returns the content of meta.json."""
        for file in self.files.values():
            file.close()
        meta = {
            "task": "text",
            "dtype": self.dtype.name,
            "splits": {
                split: {**self.counts[split], "sha256": self.hashes[split].hexdigest()}
                for split in TEXT_SPLITS
            },
            "books": books,
            "chapters": self.chapters,
            "settings": settings,
        }
        return self.commit([f"{split}.bin" for split in TEXT_SPLITS], self.tokenizer, meta)
