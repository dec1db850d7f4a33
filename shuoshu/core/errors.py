"""The error that a user can mend, and the folder of the repository."""

from __future__ import annotations

from pathlib import Path

REPO_ROOT = (
    Path(__file__).resolve().parents[2]
)  # the folder of the commands, config/ and the bundled data


class UserError(Exception):
    """A mistake that the user can mend: the message says what, where and how."""
