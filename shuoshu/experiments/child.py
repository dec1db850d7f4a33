"""Runs one of our commands as a process of its own, with its output in a log file."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shuoshu.core.errors import REPO_ROOT, UserError

LAST_LINES = 12  # of the log of a command that failed


def run_child(words: Sequence[str], log: Path) -> None:
    """Runs `python words…` and appends its output to `log`; UserError if it fails.

    Ctrl-C and SIGTERM stop it, wait until it has saved its work, and raise KeyboardInterrupt.
    """
    script, *arguments = words
    command = [sys.executable, str(REPO_ROOT / script), *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}  # the log can be followed
    with log.open("ab") as output, _sigterm_as_interrupt():
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        )
        try:
            code = child.wait()
        except KeyboardInterrupt:
            if os.name == "posix":  # elsewhere it would be killed; Ctrl-C has reached it anyway
                child.terminate()
            child.wait()
            raise
    if code:
        raise UserError(
            f"{script} ended with code {code}; {log} ends with\n{_last_lines(log)}\n"
            f"to repeat it by hand:\n  {shlex.join(['python', *words])}"
        )


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, so that the child doesn't outlive this process."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _last_lines(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = [line.rpartition("\r")[2] for line in lines if line.strip()]
    return "\n".join(f"  {line}" for line in lines[-LAST_LINES:])
