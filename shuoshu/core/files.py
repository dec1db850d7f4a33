"""Files that anyone may have written: read only where they are files, of a size that their kind has, and never trusted to be JSON."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
import stat
import typing
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from shuoshu.core.errors import UserError

MAX_BYTES = (
    1 << 26
)  # bytes of a file that is read in one piece: meta.json of 100,000 chapters has 10 MB; JSON may take 20 times its size in memory


def format_bytes(count: float) -> str:
    """12 kB, 3.4 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if count >= 100 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def open_file(path: Path, largest: int | None = None) -> BinaryIO:
    """An ordinary file, open for reading; OSError for one larger than `largest`, and for a pipe or a device: they may never end."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(
            errno.EINVAL,
            "it is a folder"
            if stat.S_ISDIR(found.st_mode)
            else "it is a pipe or a device, no file",
            str(path),
        )
    if largest is not None and found.st_size > largest:
        raise OSError(
            errno.EFBIG,
            f"it has {format_bytes(found.st_size)}, more than the {format_bytes(largest)} that are read in one piece",
            str(path),
        )
    return path.open("rb")


def read_text(path: Path, largest: int = MAX_BYTES) -> str:
    """A file's UTF-8, a byte order mark left out; OSError or ValueError with a reason fit to be shown."""
    with open_file(path, largest) as file:
        try:
            return file.read().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"byte {error.start:,} is not UTF-8") from None


def read_json(path: Path) -> object:
    """The document in a file; OSError or ValueError with a reason fit to be shown."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON: {error}") from None
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None


def dataclass_from_json(cls: type, values: dict) -> typing.Any:
    """A dataclass of numbers from JSON; ValueError or TypeError where one is unknown, missing, no number, or a whole one below zero or beyond 2**53."""
    kinds = typing.get_type_hints(cls)
    for name, value in values.items():
        kind = kinds.get(name, int)
        if not is_count(value) and (
            kind is int or not isinstance(value, kind) or type(value) is int or value != value
        ):  # NaN alone differs from itself
            raise ValueError(f"{name} is {str(value)[:40]}")
    return cls(**values)


def error_reason(error: Exception) -> str:
    """What a message says of an exception that damaged files raise."""
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def missing_path_message(path: Path) -> str:
    """What is said of a path that is neither a file nor a folder."""
    return (
        f"{path} is a pipe or a device: save what comes from it in a file, and name that"
        if path.exists()
        else f"there is no file or folder {path}"
    )


def same_path(a: str | Path, b: str | Path) -> bool:
    """Whether two paths lead to one place; Path.resolve would fail on a link that leads to itself."""
    return os.path.realpath(a) == os.path.realpath(b)


def is_count(value: object) -> bool:
    """A whole number that a file may hold as a count."""
    return type(value) is int and 0 <= value < 1 << 53


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open_file(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Makes renames in this folder last through a power cut, where the system can do that."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_atomically(path: Path, write: Callable[[Path], str | None]) -> None:
    """Lets `write` fill a file aside, then puts it in place by one atomic rename; not before it reads back with the sha256 that `write` gives, if any."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        verify_sha256(aside, write(aside))
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_synced_text(path: Path, text: str) -> str:
    """A small text file, synced; its sha256."""
    content = text.encode("utf-8", "replace")  # JSON may spell half a character
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()


def verify_sha256(path: Path, sha256: str | None) -> None:
    """OSError if the file doesn't read back as it was written."""
    if sha256 is not None and sha256_of(path) != sha256:
        raise OSError(
            errno.EIO, f"{path.name} does not read back as it was written: is the disk failing?"
        )


class Lock:
    """Keeps a second run out of a folder. It is the open file's, so the system lets go of it however the process ends."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        self._file: BinaryIO | None = None

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file:
            self._file.close()

    def take(self) -> None:
        """UserError if another run has it. Where the file system knows no locks, there is none."""
        if self._file:
            return
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        self._file = os.fdopen(handle, "r+b", buffering=0)
        try:
            _lock(self._file.fileno())
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return
            self._file.seek(0)
            holder = (
                self._file.read(200).decode(errors="replace")
                if os.name == "posix"
                else "another process"
            )
            raise UserError(
                f"{self.path.parent} is in use by another training ({holder}): wait for it, stop it, or choose another --out_dir"
            ) from None
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {platform.node()}".encode())


def _lock(handle: int) -> None:
    """Locks an open file without waiting: EACCES or EAGAIN if it is locked already."""
    if os.name == "posix":
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        import msvcrt

        os.lseek(
            handle, 1 << 30, os.SEEK_SET
        )  # beyond what is written: Windows keeps others from reading a locked byte
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)


# ---------------------------------------------------------------- weights


def require_disk_space(folder: Path, needed: int) -> None:
    """OSError if the folder's disk has not so many bytes left."""
    usage = shutil.disk_usage(folder)
    if usage.total and usage.free < needed:  # some network drives know no total
        raise OSError(
            errno.ENOSPC,
            f"no room on the disk: {format_bytes(needed)} are needed, {format_bytes(usage.free)} are free",
        )
