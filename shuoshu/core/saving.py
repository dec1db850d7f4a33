"""Files whole or not at all; one run at a time in a folder."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from shuoshu.core.cli import UserError
from shuoshu.core.files import sha256_of


def sync_folder(folder: Path) -> None:
    """Makes renames in this folder last through a power cut, where the system can do that."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_whole(path: Path, write: Callable[[Path], str | None]) -> None:
    """Lets `write` fill a file aside, then puts it in place by one atomic rename; not before it reads back with the sha256 that `write` gives, if any."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        verify(aside, write(aside))
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> str:
    """A small text file, synced; its sha256."""
    content = text.encode("utf-8", "replace")  # JSON may spell half a character
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()


def verify(path: Path, sha256: str | None) -> None:
    """OSError if the file doesn't read back as it was written."""
    if sha256 is not None and sha256_of(path) != sha256:
        raise OSError(errno.EIO, f"{path.name} does not read back as it was written: is the disk failing?")


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
            holder = self._file.read(200).decode(errors="replace") if os.name == "posix" else "another process"
            raise UserError(f"{self.path.parent} is in use by another training ({holder}): wait for it, stop it, or choose another --out_dir") from None
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {platform.node()}".encode())


def _lock(handle: int) -> None:
    """Locks an open file without waiting: EACCES or EAGAIN if it is locked already."""
    if os.name == "posix":
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        import msvcrt

        os.lseek(handle, 1 << 30, os.SEEK_SET)  # beyond what is written: Windows keeps others from reading a locked byte
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
