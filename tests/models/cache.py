"""The folder outside the repository where tests keep what is made or downloaded once."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/shuoshu-tests, by default ~/.cache/shuoshu-tests."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shuoshu-tests"


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """The folder of that name in the cache. If it is not there, `make` fills it.

    It appears whole or not at all, also if several processes make it at once.
    """
    folder = cache_folder() / name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            make(made)
            made.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was faster
                raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return folder
