"""Token files: verified when a data folder is opened, read as batches."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np

from shuoshu.core.errors import UserError
from shuoshu.core.files import error_reason, is_count, read_json, sha256_of
from shuoshu.core.out_dirs import flag
from shuoshu.text.tokenizer import Tokenizer

Batch = tuple[np.ndarray, np.ndarray]  # ids and targets (B, T)

META_FORMAT = 1  # of meta.json
IGNORE = -100  # target of a position that is not trained; cross_entropy's default ignore_index
TASKS = ("text", "questions", "labels")
TEXT_SPLITS = ("train", "val")
QUESTION_SPLITS = (*TEXT_SPLITS, "test", "untaught")
PREPARE_AGAIN = "prepare the data again"
# Files up to this size are read into memory, so that changes during a run can't affect it.
MAX_IN_MEMORY_BYTES = 1 << 28


class Dataset(Protocol):
    """One split as training reads it: a TextDataset, or a QuestionDataset for fine-tuning.

    Row n depends on (seed, n) alone, so a run can be resumed and shared by any number of processes.
    """

    folder: Path
    sha256: str  # identifies the content
    characters: int

    def __len__(self) -> int: ...

    def rows_per_epoch(self, block_size: int) -> int: ...

    def count_targets(self, first: int, count: int, block_size: int, seed: int) -> int: ...

    def rows(self, first: int, count: int, block_size: int, seed: int) -> Batch: ...

    def row_ids(self, first: int, count: int, block_size: int, seed: int) -> np.ndarray: ...


# ---------------------------------------------------------------- read


def find_dataset(dataset: str) -> Path:
    """The data folder with this name under data/, or at this path.

    Raises UserError with the command that prepares it.
    """
    named = Path("data") / dataset
    folder = next((path for path in (named, Path(dataset)) if (path / "meta.json").is_file()), None)
    if folder is None:
        places = f"{named} and {dataset}" if named != Path(dataset) else str(named)
        bundled = {"novella": "python prepare.py", "novella_qa": "python prepare_sft.py"}
        command = bundled.get(
            dataset,
            f"python prepare.py YOUR_NOVEL.txt {flag('out', named)}\n"
            "or, from questions and answers,\n"
            f"  python prepare_sft.py YOURS.json {flag('out', named)}",
        )
        raise UserError(f"there is no prepared data in {places}: make it with\n  {command}")
    return folder


class TextDataset:
    """One split of a prepared text. Implements Dataset.

    The file is a ring: each epoch starts at a random offset and cuts it into windows of block_size,
    which come in random order. So an epoch trains every token once (except the last incomplete
    window), and row n of a run is the same for any number of processes.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.path = folder, folder / f"{split}.bin"
        self.meta = read_meta(folder)
        entry = self.meta["splits"][split]
        self.characters, self.bytes = entry["characters"], entry["bytes"]
        self.sha256 = entry["sha256"]
        self.tokens = open_array(
            self.path, self.meta["dtype"], entry["tokens"], self.sha256, self.meta["vocab_size"]
        )
        # ((seed, epoch, block_size), offset, order of the windows) of the epoch read last
        self._order: tuple[tuple[int, int, int], int, np.ndarray] | None = None

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    def rows_per_epoch(self, block_size: int) -> int:
        """Number of rows in an epoch."""
        return len(self.tokens) // block_size

    def count_targets(self, first: int, count: int, block_size: int, seed: int) -> int:
        """Number of trained tokens in these rows."""
        return count * block_size

    def rows(self, first: int, count: int, block_size: int, seed: int) -> Batch:
        """`count` rows from row `first` on: (ids, targets), each (count, block_size) of int64.

        Rows are numbered through all epochs.
        """
        check_length(self.tokens, self.path)
        starts = self.row_ids(first, count, block_size, seed)
        at = (starts[:, None] + np.arange(block_size + 1)) % len(self.tokens)
        ids = self.tokens[at].astype(np.int64)
        return ids[:, :-1], ids[:, 1:]

    def row_ids(self, first: int, count: int, block_size: int, seed: int) -> np.ndarray:
        """Index of the first token of each row."""
        windows = self.rows_per_epoch(block_size)
        starts = np.empty(count, dtype=np.int64)
        for i in range(count):
            epoch, n = divmod(first + i, windows)
            offset, order = self._epoch(seed, epoch, block_size)
            starts[i] = (offset + order[n] * block_size) % len(self.tokens)
        return starts

    def _epoch(self, seed: int, epoch: int, block_size: int) -> tuple[int, np.ndarray]:
        """(offset, order of the windows) of an epoch."""
        key = (seed, epoch, block_size)
        if self._order is None or self._order[0] != key:
            draw = np.random.default_rng([seed, epoch])
            offset = int(draw.integers(len(self.tokens)))
            self._order = key, offset, draw.permutation(self.rows_per_epoch(block_size))
        return self._order[1], self._order[2]


# ---------------------------------------------------------------- verify


def open_array(path: Path, dtype: str, count: int, sha256: str, below: int) -> np.ndarray:
    """A file of `count` little-endian numbers, memory-mapped if it is large.

    Raises UserError if its length or hash isn't the given one, or a number isn't smaller than
    `below`.
    """
    little_endian = np.dtype(dtype).newbyteorder("<")
    expected = count * little_endian.itemsize
    size = path.stat().st_size if path.is_file() else None
    if size is None:
        raise UserError(f"{path} is missing: {PREPARE_AGAIN}")
    if size != expected:
        raise UserError(f"{path} has {size:,} bytes instead of {expected:,}: {PREPARE_AGAIN}")
    try:
        if size <= MAX_IN_MEMORY_BYTES:
            array = np.fromfile(path, little_endian)
        else:
            array = np.memmap(path, dtype=little_endian, mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read ({error_reason(error)})") from None
    check_length(array, path)
    is_mapped = isinstance(array, np.memmap)
    if (sha256_of(path) if is_mapped else hashlib.sha256(array).hexdigest()) != sha256:
        raise UserError(
            f"{path} is not the file that meta.json describes (its sha256 differs): {PREPARE_AGAIN}"
        )
    if count and (largest := int(array.max())) >= below:
        raise UserError(
            f"{path} contains the number {largest:,}, but all must be smaller than {below:,}: "
            f"{PREPARE_AGAIN}"
        )
    return array


def check_length(array: np.ndarray, path: Path) -> None:
    """UserError if a mapped file was cut: reading the missing part would kill the process (SIGBUS).

    A deleted file stays readable.
    """
    if isinstance(array, np.memmap) and path.is_file() and path.stat().st_size < array.nbytes:
        raise UserError(f"{path} was cut while it was in use: {PREPARE_AGAIN}")


def check_tokenizer(tokenizer: Tokenizer, meta: dict, message: str) -> None:
    """UserError with this message unless the tokenizer is the one that made the data."""
    if (tokenizer.hash, tokenizer.n_vocab) != (meta["tokenizer"]["hash"], meta["vocab_size"]):
        raise UserError(message)


def read_meta(folder: Path) -> dict:
    """The folder's meta.json. Raises UserError if it is damaged or has another format."""
    path = folder / "meta.json"
    try:
        meta = read_json(path)
        if meta["format"] != META_FORMAT:
            raise UserError(
                f"{path} has format {meta['format']!r:.20}, this version reads {META_FORMAT}: "
                f"{PREPARE_AGAIN}"
            )
        meta["task"] = task_of(meta)
        if field := _invalid_field(meta):
            raise ValueError(f"the field {field} is invalid")
        return meta
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} can't be read ({error_reason(error)}): {PREPARE_AGAIN}") from None


def task_of(meta: dict) -> str:
    """The task in a meta.json, or what early ones have instead: a row width, a list of labels."""
    task = meta.get("task", "questions" if "width" in meta else "text")
    return "labels" if task == "questions" and meta.get("labels") else task


def _invalid_field(meta: dict) -> str | None:
    """The first field of meta.json with an impossible value."""
    has_rows = meta["task"] != "text"
    counts = ("tokens", "characters", "bytes", *(("rows",) if has_rows else ()))
    hashes = ("sha256", *(("mask_sha256", "pairs_sha256") if has_rows else ()))
    is_valid = {
        "task": meta["task"] in TASKS,
        "dtype": meta["dtype"] in ("uint16", "uint32"),
        "vocab_size": is_count(meta["vocab_size"]),
        "tokenizer": isinstance(meta["tokenizer"]["hash"], str),
        "splits": set(TEXT_SPLITS) <= set(meta["splits"]) <= set(QUESTION_SPLITS),
    }
    for split, entry in meta["splits"].items():
        has_counts = all(is_count(entry[name]) for name in counts)
        is_valid[f"splits.{split}"] = has_counts and all(
            isinstance(entry[name], str) for name in hashes
        )
    is_valid |= _check_question_fields(meta) if has_rows else _check_text_fields(meta)
    return next((name for name, valid in is_valid.items() if not valid), None)


def _check_question_fields(meta: dict) -> dict[str, bool]:
    labels, separator = meta.get("labels") or [], meta.get("separator") or ";"
    return {
        "width": is_count(meta["width"])
        and all(s["rows"] * meta["width"] == s["tokens"] for s in meta["splits"].values()),
        "turns": is_count(meta["turns"]) and meta["turns"] > 0,
        "system": isinstance(meta.get("system", ""), str),
        "block_size": is_count(meta.get("block_size", 1)) and meta.get("block_size") != 0,
        "passages": is_count(meta.get("passages", 0)),
        "separator": isinstance(separator, str) and bool(separator.strip()),
        "labels": isinstance(labels, list) and all(isinstance(label, str) for label in labels),
    }


def _check_text_fields(meta: dict) -> dict[str, bool]:
    chapters = [(c["split"], c["token"], c["title"], c["book"]) for c in meta["chapters"]]
    return {
        "books": all(isinstance(book["title"], str) for book in meta["books"]),
        "chapters": all(
            isinstance(split, str)
            and is_count(token)
            and isinstance(title, str)
            and is_count(book)
            and book < len(meta["books"])
            for split, token, title, book in chapters
        ),
    }
