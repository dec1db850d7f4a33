"""Writes a data folder: checks what is in it, stages the files, moves them into place together."""

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

from shuoshu.core.command_settings import PrepareSettings, PrepareSftSettings
from shuoshu.core.errors import UserError
from shuoshu.core.files import read_json, same_path
from shuoshu.core.out_dirs import MODEL_MARKS, flag
from shuoshu.text.dataset import META_FORMAT, QUESTION_SPLITS, TASKS, TEXT_SPLITS, task_of
from shuoshu.text.tokenizer import Tokenizer
from shuoshu.text.tokenizer_folder import TOKENIZER_FILES

ROW_SUFFIXES = (".bin", ".mask.bin", ".jsonl")
SUFFIXES = {"text": (".bin",), "questions": ROW_SUFFIXES, "labels": ROW_SUFFIXES}  # of a split
TASK_SPLITS = {"text": TEXT_SPLITS, "questions": QUESTION_SPLITS, "labels": QUESTION_SPLITS}
META_FIELDS = {"format", "vocab_size", "tokenizer", "splits"}  # of every version's meta.json
STAGING_PREFIX = ".writing-"
OTHER_FOLDER = "choose another folder with --out=data/NAME"


# ---------------------------------------------------------------- the folder to write


def target_folder(
    settings: PrepareSettings | PrepareSftSettings, task: str, bundled: Path, files: Iterable[Path]
) -> Path:
    """The folder that --out names, or data/<stem of the first input>.

    UserError if a preparation would replace anything else in it than data of the same task, made
    from the same first input if --out doesn't name the folder.
    """
    inputs = settings.inputs or (str(bundled),)
    folder = Path(settings.out or Path("data") / Path(inputs[0]).resolve().stem)
    if same_path(folder, bundled) and not all(same_path(name, bundled) for name in inputs):
        raise UserError(f"{folder} belongs to the bundled {bundled.name}: {OTHER_FOLDER}")
    if any((folder / name).exists() for name in MODEL_MARKS):
        raise UserError(f"{folder} holds a trained model: {OTHER_FOLDER}")
    meta = prepared_meta(folder)
    if meta and (task_of(meta) == "text") != (task == "text"):
        raise UserError(f"{folder} holds prepared {task_of(meta)}: {OTHER_FOLDER}")
    _protect_files(folder, task, prepared_files(meta), files)
    before = first_input(meta, bundled)
    if before and not settings.out and not same_path(before, inputs[0]):
        raise UserError(
            f"{folder} holds data made from {before}: {OTHER_FOLDER},"
            f" or replace that data with {flag('out', folder)}"
        )
    return folder


def _protect_files(folder: Path, task: str, ours: set[str], files: Iterable[Path]) -> None:
    """UserError if a preparation would overwrite a file that isn't `ours`, or one that it reads."""
    inputs = {os.path.realpath(file) for file in files}
    for name in (*split_files(task, TASK_SPLITS[task]), *TOKENIZER_FILES, "meta.json"):
        path = folder / name
        if os.path.lexists(path) and (name not in ours or os.path.realpath(path) in inputs):
            raise UserError(f"{path} would be overwritten: {OTHER_FOLDER}, or move it away")


def prepared_meta(folder: Path) -> dict | None:
    """The folder's meta.json, of any version; that of a killed preparation is still staged.

    None if the folder holds no prepared data.
    """
    paths = [folder / "meta.json"]
    if not os.path.lexists(paths[0]):
        paths = sorted(folder.glob(f"{STAGING_PREFIX}*/meta.json"))
    for path in paths:
        with suppress(OSError, ValueError, AttributeError):
            meta = read_json(path)
            is_complete = meta.keys() >= META_FIELDS and all(
                isinstance(meta[field], dict) for field in ("splits", "tokenizer")
            )
            if is_complete and task_of(meta) in TASKS:
                return meta
    return None


def prepared_files(meta: dict | None) -> set[str]:
    """The names of the files that a preparation with this meta.json wrote."""
    if not meta:
        return set()
    splits = [split for split in QUESTION_SPLITS if split in meta["splits"]]
    is_foreign = meta["tokenizer"].get("kind") == "foreign"
    tokenizer_files = TOKENIZER_FILES if is_foreign else TOKENIZER_FILES[:1]
    return {*tokenizer_files, "meta.json", *split_files(task_of(meta), splits)}


def split_files(task: str, splits: Iterable[str]) -> list[str]:
    """The names of these splits' files."""
    return [f"{split}{suffix}" for split in splits for suffix in SUFFIXES[task]]


def first_input(meta: dict | None, bundled: Path) -> str | None:
    """The first file or folder that the data was made from; None if that isn't recorded."""
    try:
        first = (*meta["settings"]["inputs"], str(bundled))[0]
    except (KeyError, TypeError):
        return None
    return first if isinstance(first, str) else None


# ---------------------------------------------------------------- writing


class StagingFolder:
    """A folder inside a data folder: files are written here, then moved up together or deleted."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.staging = folder, folder / f"{STAGING_PREFIX}{os.getpid()}"

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
        """Writes the tokenizer and meta.json, and moves all files into place; returns the meta.

        meta.json comes last, because no program reads files that it does not describe.
        """
        meta = {
            "format": META_FORMAT,
            "vocab_size": tokenizer.n_vocab,
            "tokenizer": {"kind": tokenizer.kind, "hash": tokenizer.hash},
        } | meta
        texts = tokenizer.data_files()
        before = prepared_files(prepared_meta(self.folder))
        stale = before.intersection(TOKENIZER_FILES).difference(texts)
        texts["meta.json"] = json.dumps(meta, ensure_ascii=False, indent=1)
        for name, text in texts.items():
            (self.staging / name).write_text(text, encoding="utf-8", newline="\n")
        for name in stale:
            (self.folder / name).unlink(missing_ok=True)
        for name in (*names, *texts):
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
