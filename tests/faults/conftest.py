"""Fixtures for faulty input.

A fault is refused with one message and changes nothing, or the command survives it. A table at
the end of the test run counts both.
"""

from __future__ import annotations

import os
import resource
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TABLE: dict[str, Counter[str]] = {}  # test file → faults tried, refused, survived
TIME_LIMIT = 200  # seconds per test: none needs five on an idle machine


class Hung(BaseException):
    """The test took too long. A BaseException, so that no command catches it."""


@pytest.fixture(autouse=True)
def no_hang(request: pytest.FixtureRequest) -> Iterator[None]:
    """Ends a test that hangs."""

    def stop(*_: object) -> None:
        raise Hung(f"no result within {TIME_LIMIT} s")

    if request.node.get_closest_marker("slow") is None:
        before = signal.signal(signal.SIGALRM, stop)
        signal.alarm(TIME_LIMIT)
        yield
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    else:
        yield


def contents(folder: Path) -> dict[str, object]:
    """What a folder contains: bytes of files, targets of links, modes of everything else.

    Huge or unreadable files are represented by their size and modification time.
    """

    def of(path: Path) -> object:
        if path.is_symlink():
            return str(path.readlink())
        if path.is_dir() or not path.is_file():
            return path.stat().st_mode
        facts = path.stat()
        return (
            path.read_bytes()
            if facts.st_size < 1 << 26 and facts.st_mode & 0o400
            else (facts.st_size, facts.st_mtime_ns)
        )

    return {str(path.relative_to(folder)): of(path) for path in sorted(folder.rglob("*"))}


@pytest.fixture
def count_fault(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """count_fault("refused") counts a fault for the table, under the name of the test's file."""
    place = request.node.path.stem.removeprefix("test_").replace("_", " ")
    return lambda outcome: TABLE.setdefault(place, Counter()).update([outcome])


@pytest.fixture
def refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, count_fault: Callable[[str], None]
) -> Callable[..., str]:
    """refused(main, argv, *expected) asserts that the command fails and returns its message.

    The exit code is 2, the one message contains all of `expected`, and nothing under tmp_path has
    changed.
    """

    def check(main: Callable, argv: list[str], *expected: object) -> str:
        count_fault("tried")
        before = contents(tmp_path)
        capsys.readouterr()
        assert main([str(word) for word in argv]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("error: ") == 1 and "Traceback" not in err, (
            err
        )
        assert len(err) < 3000 and len(err.split("\n")) < 40, err
        for part in expected:
            assert str(part) in err, err
        assert contents(tmp_path) == before
        count_fault("refused")
        return err

    return check


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Limits the process to 2 GB of address space beyond what it uses now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(
        resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + (2 << 30), before[1])
    )
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TABLE:
        terminalreporter.write_line(
            f"\n{'faults in':<16}{'tried':>8}{'refused':>9}{'survived':>10}{'lost':>6}"
        )
        for place, n in sorted(TABLE.items()):
            lost = n["tried"] - n["refused"] - n["survived"]
            terminalreporter.write_line(
                f"{place:<16}{n['tried']:>8,}{n['refused']:>9,}{n['survived']:>10,}{lost:>6,}"
            )
