"""What a run tells: tables, the progress bar, log.jsonl, the curves, the samples."""

from __future__ import annotations

import sys
import time
import unicodedata
from collections.abc import Callable, Sequence


def display_width(text: str) -> int:
    """Columns that a terminal gives to a text: two for a Chinese character."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def pad(text: str, columns: int, right: bool = False) -> str:
    space = " " * max(0, columns - display_width(text))
    return space + text if right else text + space


def table(rows: Sequence[Sequence[object]], left: int = 1) -> str:
    """Rows in aligned columns, the first one a header; the first `left` columns flush left, numbers flush right."""
    texts = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    columns = [max(display_width(row[i]) for row in texts) for i in range(len(texts[0]))]
    lines = [
        "  "
        + "  ".join(pad(cell, columns[i], right=i >= left) for i, cell in enumerate(row)).rstrip()
        for row in texts
    ]
    lines.insert(1, "  " + "  ".join("─" * c for c in columns))
    return "\n".join(lines)


def shorten(text: str, columns: int) -> str:
    """The text, or as much of its beginning as fits, with an ellipsis."""
    if display_width(text) <= columns:
        return text
    while text and display_width(text) > columns - 1:
        text = text[:-1]
    return text + "…"


def duration(seconds: float) -> str:
    """3.2 s, 4 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


def print_line(line: str, write: Callable[[str], None] | None = None) -> None:
    """A line for the reader. That it goes to a file on a full disk is no reason to end a training."""
    try:
        write(line) if write else print(line, flush=True)
    except BrokenPipeError:
        raise
    except OSError:
        pass


class Progress:
    """A bar on a terminal, a plain line now and then in a file; silent where `show` is false."""

    def __init__(self, total: int, start: int = 0, show: bool = True, every: float = 10.0) -> None:
        self.total, self.show, self.every = total, show, every
        self.bar, self._last_line = None, -every
        if show and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                total=total, initial=start, dynamic_ncols=True, smoothing=0.05, unit="step"
            )

    def update(self, step: int, total: int, facts: str) -> None:
        """Tells that `step` of `total` is done."""
        if self.bar is not None:
            self.bar.total = total
            self.bar.set_postfix_str(facts, refresh=False)
            self.bar.update(step - self.bar.n)
        elif self.show and (time.monotonic() - self._last_line > self.every or step == total):
            self._last_line = time.monotonic()
            print_line(f"step {step:,}" + (f"/{total:,}" if total else "") + f"  {facts}")

    def say(self, line: str) -> None:
        """A line above the bar."""
        if self.bar is not None:
            print_line(line, self.bar.write)
        elif self.show:
            print_line(line)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
