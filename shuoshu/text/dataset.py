"""Token files: written whole, checked when opened, and read as batches that are a pure function of (seed, step)."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from shuoshu.core.errors import UserError
from shuoshu.core.files import error_reason, is_count, read_json, sha256_of
from shuoshu.text.tokenizer import Tokenizer

Batch = tuple[np.ndarray, np.ndarray]  # ids and targets (B, T)


def text_windows(
    tokens: np.ndarray, end: int, block: int, rows: int, stride: int | None = None
) -> Iterator[Batch]:
    """`tokens` in windows of a block, the first token after an end token. Each window begins `stride` after the one before
    and scores only what that one has not (none: a block, so that windows are disjoint)."""
    stride = stride or block
    starts = np.arange(1 + math.ceil(max(0, len(tokens) - block) / stride)) * stride
    for first in range(0, len(starts), rows):
        part = starts[first : first + rows]
        at = part[:, None] + np.arange(block)
        last = len(tokens) - 1
        is_new = (at <= last) & ((part == 0)[:, None] | (np.arange(block) >= block - stride))
        targets = np.where(is_new, tokens[np.minimum(at, last)].astype(np.int64), IGNORE)
        yield np.where(at == 0, end, tokens[np.clip(at - 1, 0, last)].astype(np.int64)), targets


FORMAT = 1
IGNORE = -100  # the target of a position that is not trained, as cross_entropy has it
TASKS = ("text", "questions")
PREPARE_AGAIN = "prepare the data again"
TEXT_SPLITS = ("train", "val")
MAX_IN_MEMORY_BYTES = (
    1 << 28
)  # bytes up to which a file is read instead of mapped, so that nothing done to it in mid-run is felt


def find_dataset(dataset: str) -> Path:
    """A data folder from its path or its name under data/; UserError says how to make it."""
    named = Path("data") / dataset
    folder = next((path for path in (named, Path(dataset)) if (path / "meta.json").is_file()), None)
    if folder is None:
        looked = f"{named} and {dataset}" if named != Path(dataset) else str(named)
        known = {"novella": "python prepare.py", "novella_qa": "python prepare_sft.py"}
        how = known.get(
            dataset,
            f"python prepare.py YOUR_NOVEL.txt --out={named}\nor, of questions and answers,\n  python prepare_sft.py YOURS.json --out={named}",
        )
        raise UserError(f"there is no prepared data in {looked}: make it with\n  {how}")
    return folder


class StagingFolder:
    """A place to write a data folder's files, which are then moved into it together, or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.aside = folder, folder / f".writing-{os.getpid()}"

    def __enter__(self) -> StagingFolder:
        self.new = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        try:
            self.aside.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"can't write to {self.folder}: {error.strerror}") from None
        return self

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self.aside, ignore_errors=True)
        with suppress(OSError):
            for path in self.new:  # if they were made for nothing
                path.rmdir()

    def commit(self, names: Sequence[str], tokenizer: Tokenizer, meta: dict) -> dict:
        """Moves the named files into place, meta.json last: without it, or where it doesn't fit, nothing reads the others."""
        head = {
            "format": FORMAT,
            "vocab_size": tokenizer.n_vocab,
            "tokenizer": {"kind": tokenizer.kind, "hash": tokenizer.hash},
        }
        meta = head | meta
        for name, text in (
            ("tokenizer.json", tokenizer.to_json()),
            ("meta.json", json.dumps(meta, ensure_ascii=False, indent=1)),
        ):
            (self.aside / name).write_text(text, encoding="utf-8", newline="\n")
        for name in (*names, "tokenizer.json", "meta.json"):
            with (self.aside / name).open("rb+") as file:
                os.fsync(file.fileno())
            (self.aside / name).replace(self.folder / name)
        return meta


def token_dtype(tokenizer: Tokenizer) -> np.dtype:
    """uint16 while the vocabulary fits, else uint32."""
    return np.dtype("<u2") if tokenizer.n_vocab <= 1 << 16 else np.dtype("<u4")


class DatasetWriter(StagingFolder):
    """Token files of a data folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.files: dict[str, BinaryIO] = {}

    def open(self, tokenizer: Tokenizer) -> None:
        """Begins the token files."""
        self.tokenizer = tokenizer
        self.dtype = token_dtype(tokenizer)
        self.counts = {
            split: {"tokens": 0, "characters": 0, "bytes": 0, "documents": 0}
            for split in TEXT_SPLITS
        }
        self.hashes = {split: hashlib.sha256() for split in TEXT_SPLITS}
        self.chapters: list[dict] = []
        self.files = {split: (self.aside / f"{split}.bin").open("wb") for split in TEXT_SPLITS}

    def __exit__(self, *error: object) -> None:
        for file in self.files.values():
            file.close()
        super().__exit__(*error)

    def add(self, split: str, ids: np.ndarray, characters: int = 0, n_bytes: int = 0) -> None:
        raw = ids.astype(self.dtype).tobytes()
        self.files[split].write(raw)
        self.hashes[split].update(raw)
        for name, count in (("tokens", len(ids)), ("characters", characters), ("bytes", n_bytes)):
            self.counts[split][name] += count

    def begin_chapter(self, split: str, book: int, title: str) -> None:
        self.chapters.append(
            {"book": book, "title": title, "split": split, "token": self.counts[split]["tokens"]}
        )

    def end_document(self, split: str) -> None:
        self.add(split, np.array([self.tokenizer.end], dtype=np.uint32))
        self.counts[split]["documents"] += 1

    def finish(self, books: list[dict], settings: dict) -> dict:
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


class Dataset(Protocol):
    """One split as training reads it: rows whose content depends on (seed, row number) alone."""

    folder: Path
    sha256: str
    characters: int

    def __len__(self) -> int: ...

    def rows_per_epoch(self, block_size: int) -> int: ...

    def count_targets(self, first: int, count: int, block_size: int, seed: int) -> int: ...

    def rows(
        self, first: int, count: int, block_size: int, seed: int
    ) -> tuple[np.ndarray, np.ndarray]: ...

    def row_ids(self, first: int, count: int, block_size: int, seed: int) -> np.ndarray: ...


class TextDataset:
    """One split of a prepared folder, memory-mapped where it is large, with batches whose content depends on (seed, row number) alone.

    The file is a ring: each epoch starts at a random offset and cuts it into windows of block_size, which come in a
    random order. So an epoch trains every token once, and row n of a run is the same however many processes share it.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.path = folder, folder / f"{split}.bin"
        self.meta = read_meta(folder)
        facts = self.meta["splits"][split]
        self.tokens = open_array(
            self.path, self.meta["dtype"], facts["tokens"], facts["sha256"], self.meta["vocab_size"]
        )
        self.characters, self.bytes, self.sha256 = (
            facts["characters"],
            facts["bytes"],
            facts["sha256"],
        )
        self._order: tuple[tuple[int, int, int], int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def rows_per_epoch(self, block_size: int) -> int:
        """Rows in an epoch."""
        return len(self.tokens) // block_size

    def count_targets(self, first: int, count: int, block_size: int, seed: int) -> int:
        """How many tokens these rows train."""
        return count * block_size

    def rows(
        self, first: int, count: int, block_size: int, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows first … first + count of the endless sequence of epochs: (ids, targets), each (count, block_size) of int64."""
        check_length(self.tokens, self.path)
        at = (
            self.row_ids(first, count, block_size, seed)[:, None] + np.arange(block_size + 1)
        ) % len(self.tokens)
        picked = self.tokens[at].astype(np.int64)
        return picked[:, :-1], picked[:, 1:]

    def row_ids(self, first: int, count: int, block_size: int, seed: int) -> np.ndarray:
        """The tokens that these rows begin with."""
        windows = self.rows_per_epoch(block_size)
        starts = np.empty(count, dtype=np.int64)
        for i in range(count):
            epoch, place = divmod(first + i, windows)
            offset, order = self._epoch(seed, epoch, block_size)
            starts[i] = (offset + order[place] * block_size) % len(self.tokens)
        return starts

    def _epoch(self, seed: int, epoch: int, block_size: int) -> tuple[int, np.ndarray]:
        key = (seed, epoch, block_size)
        if self._order is None or self._order[0] != key:
            draw = np.random.default_rng([seed, epoch])
            self._order = (
                key,
                int(draw.integers(len(self.tokens))),
                draw.permutation(self.rows_per_epoch(block_size)),
            )
        return self._order[1], self._order[2]


def open_array(path: Path, dtype: str, count: int, sha256: str, below: int) -> np.ndarray:
    """A file of `count` little-endian numbers smaller than `below`; UserError if it is not the one that meta.json describes."""
    kind = np.dtype(dtype).newbyteorder("<")
    found = path.stat().st_size if path.is_file() else None
    if found != count * kind.itemsize:
        what = (
            "is missing"
            if found is None
            else f"has {found:,} bytes instead of {count * kind.itemsize:,}"
        )
        raise UserError(f"{path} {what}: {PREPARE_AGAIN}")
    try:
        array = (
            np.fromfile(path, kind)
            if found <= MAX_IN_MEMORY_BYTES
            else np.memmap(path, dtype=kind, mode="r")
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read ({error_reason(error)})") from None
    check_length(array, path)
    if (
        sha256_of(path) if isinstance(array, np.memmap) else hashlib.sha256(array).hexdigest()
    ) != sha256:
        raise UserError(
            f"{path} is not the file that meta.json describes (its sha256 differs): {PREPARE_AGAIN}"
        )
    if count and (largest := int(array.max())) >= below:
        raise UserError(
            f"{path} holds the number {largest:,}, and all must be smaller than {below:,}: {PREPARE_AGAIN}"
        )
    return array


def check_length(array: np.ndarray, path: Path) -> None:
    """UserError if a mapped file was cut: reading what is gone would end the program without a word. (A deleted one can still be read.)"""
    if isinstance(array, np.memmap) and path.is_file() and path.stat().st_size < array.nbytes:
        raise UserError(f"{path} was cut while it was in use: {PREPARE_AGAIN}")


def read_meta(folder: Path) -> dict:
    """The folder's meta.json; UserError if it is damaged or of another version."""
    path = folder / "meta.json"
    try:
        meta = read_json(path)
        if meta["format"] != FORMAT:
            raise UserError(
                f"{path} has format {meta['format']!r:.20}, this version reads {FORMAT}: {PREPARE_AGAIN}"
            )
        meta.setdefault(
            "task", "questions" if "width" in meta else "text"
        )  # folders of earlier versions don't say
        if wrong := _wrong_in(meta):
            raise ValueError(f"{wrong} is not what a preparation writes")
        return meta
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} can't be read ({error_reason(error)}): {PREPARE_AGAIN}") from None


def _wrong_in(meta: dict) -> str | None:
    """The first field of a meta.json that can't be right."""
    is_rows = meta["task"] == "questions"
    counts = ("tokens", "characters", "bytes", *(("rows",) if is_rows else ()))
    hashes = ("sha256", *(("mask_sha256", "pairs_sha256") if is_rows else ()))
    good = {
        "task": meta["task"] in TASKS,
        "dtype": meta["dtype"] in ("uint16", "uint32"),
        "vocab_size": is_count(meta["vocab_size"]),
        "tokenizer": isinstance(meta["tokenizer"]["hash"], str),
        "splits": set(TEXT_SPLITS) <= set(meta["splits"]) <= {*TEXT_SPLITS, "test", "untaught"},
    }
    for split, facts in meta["splits"].items():
        good[f"splits.{split}"] = all(is_count(facts[name]) for name in counts) and all(
            isinstance(facts[name], str) for name in hashes
        )
    if is_rows:
        good["width"] = is_count(meta["width"]) and all(
            facts["rows"] * meta["width"] == facts["tokens"] for facts in meta["splits"].values()
        )
        good["turns"] = is_count(meta["turns"]) and meta["turns"] > 0
        labels = meta.get("labels") or []
        good["labels"] = isinstance(labels, list) and all(
            isinstance(label, str) for label in labels
        )
    else:
        places, books = (
            [(c["split"], c["token"], c["title"], c["book"]) for c in meta["chapters"]],
            meta["books"],
        )
        good["books"] = all(isinstance(book["title"], str) for book in books)
        good["chapters"] = all(
            isinstance(split, str)
            and is_count(token)
            and isinstance(title, str)
            and is_count(book)
            and book < len(books)
            for split, token, title, book in places
        )
    return next((name for name, is_good in good.items() if not is_good), None)


def check_tokenizer(tokenizer: Tokenizer, meta: dict, message: str) -> None:
    """UserError, with this message, if it is not the one that made the data."""
    if (tokenizer.hash, tokenizer.n_vocab) != (meta["tokenizer"]["hash"], meta["vocab_size"]):
        raise UserError(message)
