"""Reads files that may hold anything, writes files atomically, and locks a folder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
import stat
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from shuoshu.core.errors import UserError

# Maximum size of a file that is read in one piece. The meta.json of 100,000 chapters has 10 MB, and
# parsed JSON may take 20 times its size in memory.
MAX_BYTES = 1 << 26
MAX_INT = 1 << 53  # JSON readers keep whole numbers exact up to here


def format_bytes(count: float) -> str:
    """For example 12.0 kB or 3.4 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if count >= 100 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def open_file(path: Path, largest: int | None = None) -> BinaryIO:
    """Opens a regular file for reading; OSError if it is larger than `largest` bytes.

    OSError also for a pipe or a device, whose content may never end.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EINVAL, "it is a folder", str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))
    if largest is not None and status.st_size > largest:
        size, limit = format_bytes(status.st_size), format_bytes(largest)
        raise OSError(errno.EFBIG, f"it has {size}; the limit is {limit}", str(path))
    return path.open("rb")


def read_text(path: Path, largest: int = MAX_BYTES) -> str:
    """A UTF-8 file's text without its byte order mark; OSError or ValueError says what is wrong."""
    with open_file(path, largest) as file:
        try:
            return file.read().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"byte {error.start:,} is not UTF-8") from None


def read_json(path: Path) -> object:
    """The content of a JSON file; OSError or ValueError says what is wrong."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None


def dataclass_from_json(cls: type, values: dict) -> typing.Any:
    """A dataclass of numbers from JSON. Whole numbers must be counts; NaN is refused.

    ValueError for a wrong value, TypeError for an unknown or a missing name.
    """
    kinds = typing.get_type_hints(cls)
    for name, value in values.items():
        kind = kinds.get(name, int)
        is_nan = value != value
        if not is_count(value) and (
            kind is int or not isinstance(value, kind) or type(value) is int or is_nan
        ):
            raise ValueError(f"{name} is {str(value)[:40]}")
    return cls(**values)


def error_reason(error: Exception) -> str:
    """What a message says about an exception raised by a damaged file."""
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def missing_path_message(path: Path) -> str:
    """The message about a path that is neither a file nor a folder."""
    if path.exists():
        return f"{path} is a pipe or a device: save its content in a file, and name that"
    return f"there is no file or folder {path}"


def find_input_files(
    inputs: Sequence[str | Path],
    suffixes: Sequence[str],
    list_folder: Callable[[Path], Iterable[Path]],
) -> list[Path]:
    """The files that the user names and the files of named folders, each once.

    Of `list_folder(folder)`, the files with one of the suffixes count. Raises UserError if a path
    doesn't exist or a folder has no such file.
    """
    result: dict[Path, Path] = {}  # resolved path → path as named
    for path in map(Path, inputs):
        try:
            files = [path]
            if not path.is_file():
                files = [p for p in list_folder(path) if p.suffix.lower() in suffixes]
                files = sorted(p for p in files if p.is_file())
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise UserError(f"can't look into {path}: {error_reason(error)}") from None
        if not files and path.is_dir():
            raise UserError(f"the folder {path} holds no {', '.join(suffixes)} file")
        if not files:
            raise UserError(missing_path_message(path))
        for file in files:
            result.setdefault(file.resolve(), file)
    return list(result.values())


def same_path(a: str | Path, b: str | Path) -> bool:
    """Whether two paths are the same place on disk."""
    # Path.resolve would fail on a link that points to itself.
    return os.path.realpath(a) == os.path.realpath(b)


def is_count(value: object) -> bool:
    """Whether a value from a file is a whole number from 0 to 2**53."""
    return type(value) is int and 0 <= value < MAX_INT


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Makes renames in this folder survive a power cut, where the system supports it."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_atomically(path: Path, write: Callable[[Path], str | None]) -> None:
    """Calls `write` with a temporary path, then renames the file to `path` in one atomic step.

    If `write` returns a sha256, the file must read back with it before the rename; OSError if not.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        verify_sha256(temporary, write(temporary))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_synced_text(path: Path, text: str) -> str:
    """Writes a small text file, syncs it to disk, and returns its sha256."""
    content = text.encode("utf-8", "replace")  # JSON can contain half of a surrogate pair
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()


def verify_sha256(path: Path, sha256: str | None) -> None:
    """OSError if the sha256 of the file's content is not this one; None: no check."""
    if sha256 is not None and sha256_of(path) != sha256:
        raise OSError(
            errno.EIO, f"{path.name} does not read back as it was written: is the disk failing?"
        )


class Lock:
    """Keeps a second run out of a folder. The system releases it however the process ends."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        self._file: BinaryIO | None = None

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file:
            self._file.close()

    def take(self) -> None:
        """Takes the lock; UserError if another run holds it."""
        if self._file:
            return
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        self._file = os.fdopen(handle, "r+b", buffering=0)
        try:
            _lock(self._file.fileno())
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return  # this file system has no locks
            holder = "another process"
            if os.name == "posix":
                self._file.seek(0)
                holder = self._file.read(200).decode(errors="replace")
            raise UserError(
                f"{self.path.parent} is in use by another training ({holder}):"
                " wait for it, stop it, or choose another --out_dir"
            ) from None
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {platform.node()}".encode())


def _lock(handle: int) -> None:
    """Locks an open file without waiting; EACCES or EAGAIN if another process has locked it."""
    if os.name == "posix":
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        import msvcrt

        # Windows lets nobody else read a locked byte, so the lock is far behind the text.
        os.lseek(handle, 1 << 30, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)


def require_disk_space(folder: Path, needed: int) -> None:
    """OSError if the folder's disk has fewer free bytes than needed."""
    usage = shutil.disk_usage(folder)
    if usage.total and usage.free < needed:  # some network drives report a total of 0
        needed_size, free_size = format_bytes(needed), format_bytes(usage.free)
        raise OSError(
            errno.ENOSPC, f"no room on the disk: {needed_size} are needed, {free_size} are free"
        )
