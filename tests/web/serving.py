"""The page in a process of its own, for tests that use it from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from shuoshu.core.errors import REPO_ROOT

TIMEOUT = 60  # seconds; only a failing test waits as long
STOP_SECONDS = 5  # within which the page ends after a signal

T = TypeVar("T")

# Runs app.py with at most 200 tokens per second, so that a short text has several states.
SLOW_MAIN = """
import runpy, sys, time
sys.path.insert(0, sys.argv[1].removesuffix("app.py"))
from shuoshu.generation.sampling import TextGenerator
decode_one_token = TextGenerator.decode_one_token

def decode_slowly(*arguments):
    time.sleep(0.005)
    return decode_one_token(*arguments)

TextGenerator.decode_one_token = decode_slowly
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def wait_for(condition: Callable[[], T], what: str, seconds: float = TIMEOUT) -> T:
    """Calls `condition` until it returns something true, which is returned."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.02)
    return result


class Server:
    """`python app.py ARGUMENTS` in a folder; a context manager that ends it.

    slow: limits the speed of generation.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: object,
        env: dict[str, str] | None = None,
        slow: bool = False,
    ) -> None:
        self.log = folder / "server.log"
        main = ["-c", SLOW_MAIN] if slow else []
        command = [sys.executable, "-u", *main, REPO_ROOT / "app.py", *map(str, arguments)]
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [*command, "--threads=1", "--device=cpu"],
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
            )

    def __enter__(self) -> Server:
        try:
            wait_for(
                lambda: "Press Ctrl-C" in self.output() or self.process.poll() is not None,
                "the page opens",
                120,
            )
            assert self.process.poll() is None, self.output()
        except BaseException:
            self.__exit__()
            raise
        lines = self.output().splitlines()
        self.url = next(line.split()[1] for line in lines if line.startswith("page")).rstrip("/")
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def is_serving(self) -> bool:
        with urllib.request.urlopen(f"{self.url}/config", timeout=TIMEOUT) as response:
            return response.status == 200

    def resident_megabytes(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        kilobytes = next(s.split()[1] for s in status.splitlines() if s.startswith("VmRSS"))
        return int(kilobytes) / 1000

    def stop(self, number: signal.Signals) -> None:
        """Asserts that the page ends soon and with exit code 0 after a signal."""
        start = time.monotonic()
        self.process.send_signal(number)
        assert self.process.wait(TIMEOUT) == 0
        assert time.monotonic() - start < STOP_SECONDS
