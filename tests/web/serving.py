"""The page as a process of its own, for the tests that talk to it from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from shuoshu.core.errors import REPO_ROOT

PATIENCE = 60


def until(holds: Callable[[], object], what: str, seconds: float = PATIENCE) -> object:
    """What `holds` gives once it gives something."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.02)
    return found


SLOW_MAIN = """
import runpy, sys, time
sys.path.insert(0, sys.argv[1].removesuffix("app.py"))
from shuoshu.generation.sampling import TextGenerator
decode_one_token = TextGenerator.decode_one_token

def decode_slowly(*arguments):
    time.sleep(0.02)
    return decode_one_token(*arguments)

TextGenerator.decode_one_token = decode_slowly
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Server:
    """python app.py in a folder of its own; ended when the block that it was opened for ends. `slowly`: 50 tokens a second at most."""

    def __init__(
        self,
        home: Path,
        *arguments: object,
        env: dict[str, str] | None = None,
        slowly: bool = False,
    ) -> None:
        self.log = home / "server.log"
        self._log = self.log.open("w", encoding="utf-8")
        command = [
            sys.executable,
            "-u",
            *(["-c", SLOW_MAIN] if slowly else []),
            REPO_ROOT / "app.py",
            *map(str, arguments),
            "--threads=1",
            "--device=cpu",
        ]
        self.process = subprocess.Popen(
            command,
            cwd=home,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
        )

    def __enter__(self) -> Server:
        try:
            until(
                lambda: "Ctrl-C ends it" in self.told() or self.process.poll() is not None,
                "the page opens",
                120,
            )
            assert self.process.poll() is None, self.told()
        except BaseException:
            self.__exit__()
            raise
        self.url = next(
            line.split()[1].rstrip("/")
            for line in self.told().splitlines()
            if line.startswith("page")
        )
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()

    def told(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def lives(self) -> bool:
        with urllib.request.urlopen(f"{self.url}/config", timeout=PATIENCE) as answer:
            return answer.status == 200

    def memory(self) -> float:
        """Resident megabytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return (
            int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))
            / 1000
        )

    def end(self, number: signal.Signals) -> tuple[int, float]:
        """(exit code, seconds it took) after a signal."""
        begun = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(PATIENCE), time.monotonic() - begun
