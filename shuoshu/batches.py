"""Token files: written whole, checked when opened, and read as batches that are a pure function of (seed, step)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from shuoshu.commandline import UserError
from shuoshu.tokenizer import Tokenizer

FORMAT = 1
SPLITS = ("train", "val")


def resolve(dataset: str) -> Path:
    """A data folder from its path or its name under data/; UserError says how to make it."""
    named = Path("data") / dataset
    folder = next((path for path in (named, Path(dataset)) if (path / "meta.json").is_file()), None)
    if folder is None:
        looked = f"{named} and {dataset}" if named != Path(dataset) else str(named)
        how = "python prepare.py" if dataset == "novella" else f"python prepare.py YOUR_NOVEL.txt --out={named}"
        raise UserError(f"there is no prepared data in {looked}: make it with\n  {how}")
    return folder


class DatasetWriter:
    """Token files of a data folder, written aside and moved into place when all are whole."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.aside = folder, folder / f".writing-{os.getpid()}"
        self.files: dict[str, BinaryIO] = {}

    def __enter__(self) -> DatasetWriter:
        self.new = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        try:
            self.aside.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"can't write to {self.folder}: {error.strerror}") from None
        return self

    def open(self, tokenizer: Tokenizer) -> None:
        """Begins the token files."""
        self.tokenizer = tokenizer
        self.dtype = np.dtype("<u2") if tokenizer.n_vocab <= 1 << 16 else np.dtype("<u4")
        self.counts = {split: {"tokens": 0, "characters": 0, "bytes": 0, "documents": 0} for split in SPLITS}
        self.hashes = {split: hashlib.sha256() for split in SPLITS}
        self.chapters: list[dict] = []
        self.files = {split: (self.aside / f"{split}.bin").open("wb") for split in SPLITS}

    def __exit__(self, *error: object) -> None:
        for file in self.files.values():
            file.close()
        shutil.rmtree(self.aside, ignore_errors=True)
        with suppress(OSError):
            for path in self.new:  # if they were made for nothing
                path.rmdir()

    def add(self, split: str, ids: np.ndarray, characters: int = 0, n_bytes: int = 0) -> None:
        raw = ids.astype(self.dtype).tobytes()
        self.files[split].write(raw)
        self.hashes[split].update(raw)
        for name, count in (("tokens", len(ids)), ("characters", characters), ("bytes", n_bytes)):
            self.counts[split][name] += count

    def begin_chapter(self, split: str, book: int, title: str) -> None:
        self.chapters.append({"book": book, "title": title, "split": split, "token": self.counts[split]["tokens"]})

    def end_document(self, split: str) -> None:
        self.add(split, np.array([self.tokenizer.end], dtype=np.uint32))
        self.counts[split]["documents"] += 1

    def finish(self, books: list[dict], settings: dict) -> dict:
        """Moves the files into place, meta.json last: without it, or where it doesn't fit, nothing reads the others."""
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        meta = {
            "format": FORMAT,
            "dtype": "uint16" if self.dtype.itemsize == 2 else "uint32",
            "vocab_size": self.tokenizer.n_vocab,
            "tokenizer": {"kind": self.tokenizer.kind, "hash": self.tokenizer.hash},
            "splits": {split: {**self.counts[split], "sha256": self.hashes[split].hexdigest()} for split in SPLITS},
            "books": books,
            "chapters": self.chapters,
            "settings": settings,
        }
        (self.aside / "tokenizer.json").write_text(self.tokenizer.to_json(), encoding="utf-8", newline="\n")
        (self.aside / "meta.json").write_text(json.dumps(meta, ensure_ascii=False, indent=1), encoding="utf-8", newline="\n")
        for name in ("tokenizer.json", "train.bin", "val.bin", "meta.json"):
            (self.aside / name).replace(self.folder / name)
        return meta


class TokenFile:
    """One split of a prepared folder, memory-mapped, with batches whose content depends on (seed, row number) alone.

    The file is a ring: each epoch starts at a random offset and cuts it into windows of block_size, which come in a
    random order. So an epoch trains every token once, and row n of a run is the same however many processes share it.
    """

    def __init__(self, folder: Path, split: str, check_hash: bool = True) -> None:
        self.folder, self.path = folder, folder / f"{split}.bin"
        self.meta = read_meta(folder)
        facts = self.meta["splits"][split]
        dtype = np.dtype({"uint16": "<u2", "uint32": "<u4"}[self.meta["dtype"]])
        found = self.path.stat().st_size if self.path.is_file() else None
        if found != facts["tokens"] * dtype.itemsize:
            what = "is missing" if found is None else f"has {found:,} bytes instead of {facts['tokens'] * dtype.itemsize:,}"
            raise UserError(f"{self.path} {what}: run prepare.py again")
        self.tokens = np.memmap(self.path, dtype=dtype, mode="r") if found else np.zeros(0, dtype)
        if check_hash and sha256_of(self.path) != facts["sha256"]:
            raise UserError(f"{self.path} is not the file that meta.json describes (its sha256 differs): run prepare.py again")
        self.characters, self.bytes, self.sha256 = facts["characters"], facts["bytes"], facts["sha256"]
        self._order: tuple[tuple[int, int, int], int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def windows(self, block_size: int) -> int:
        """Rows in an epoch."""
        return len(self.tokens) // block_size

    def rows(self, first: int, count: int, block_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows first … first + count of the endless sequence of epochs: (ids, targets), each (count, block_size) of int64."""
        windows = self.windows(block_size)
        starts = np.empty(count, dtype=np.int64)
        for i in range(count):
            epoch, place = divmod(first + i, windows)
            offset, order = self._epoch(seed, epoch, block_size)
            starts[i] = offset + order[place] * block_size
        at = (starts[:, None] + np.arange(block_size + 1)) % len(self.tokens)
        picked = self.tokens[at].astype(np.int64)
        return picked[:, :-1], picked[:, 1:]

    def _epoch(self, seed: int, epoch: int, block_size: int) -> tuple[int, np.ndarray]:
        key = (seed, epoch, block_size)
        if self._order is None or self._order[0] != key:
            draw = np.random.default_rng([seed, epoch])
            self._order = key, int(draw.integers(len(self.tokens))), draw.permutation(self.windows(block_size))
        return self._order[1], self._order[2]


def read_meta(folder: Path) -> dict:
    """The folder's meta.json; UserError if it is damaged or of another version."""
    path = folder / "meta.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        if meta["format"] != FORMAT:
            raise UserError(f"{path} has format {meta['format']}, this version reads {FORMAT}: run prepare.py again")
        counts = [meta["splits"][split][name] for split in SPLITS for name in ("tokens", "characters", "bytes")]
        hashes = [*(meta["splits"][split]["sha256"] for split in SPLITS), meta["tokenizer"]["hash"]]
        if meta["dtype"] not in ("uint16", "uint32") or {type(c) for c in counts} != {int} or {type(h) for h in hashes} != {str}:
            raise ValueError("not what prepare.py writes")
        return meta
    except (OSError, ValueError, KeyError, TypeError, RecursionError, AttributeError) as error:
        raise UserError(f"{path} can't be read ({type(error).__name__}: {error}): run prepare.py again") from None


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
