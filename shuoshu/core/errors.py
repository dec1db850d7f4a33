"""UserError, and the folder of the repository."""

from __future__ import annotations

from pathlib import Path

REPO_ROOT = Path(__file__).resolve().parents[2]  # with the commands, config/ and data/


class UserError(Exception):
    """A mistake that the user can fix. The message says what is wrong, where, and how to fix it."""
