"""Files that anyone may have written: read only where they are files, of a size that their kind has, and never trusted to be JSON."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import typing
from pathlib import Path
from typing import BinaryIO

LARGEST = 1 << 26  # bytes of a file that is read in one piece: meta.json of 100,000 chapters has 10 MB; JSON may take 20 times its size in memory


def size(count: float) -> str:
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
        raise OSError(errno.EINVAL, "it is a folder" if stat.S_ISDIR(found.st_mode) else "it is a pipe or a device, no file", str(path))
    if largest is not None and found.st_size > largest:
        raise OSError(errno.EFBIG, f"it has {size(found.st_size)}, more than the {size(largest)} that are read in one piece", str(path))
    return path.open("rb")


def read_text(path: Path, largest: int = LARGEST) -> str:
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


def checked(cls: type, values: dict) -> typing.Any:
    """A dataclass of numbers from JSON; ValueError or TypeError where one is unknown, missing, no number, or a whole one below zero or beyond 2**53."""
    kinds = typing.get_type_hints(cls)
    for name, value in values.items():
        kind = kinds.get(name, int)
        if not is_count(value) and (kind is int or not isinstance(value, kind) or type(value) is int or value != value):  # NaN alone differs from itself
            raise ValueError(f"{name} is {str(value)[:40]}")
    return cls(**values)


def reason_of(error: Exception) -> str:
    """What a message says of an exception that damaged files raise."""
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def nothing_at(path: Path) -> str:
    """What is said of a path that is neither a file nor a folder."""
    return f"{path} is a pipe or a device: save what comes from it in a file, and name that" if path.exists() else f"there is no file or folder {path}"


def same(a: str | Path, b: str | Path) -> bool:
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
