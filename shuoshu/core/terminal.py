"""Terminal output: aligned tables, durations and the progress bar."""

from __future__ import annotations

import sys
import time
import unicodedata
from collections.abc import Callable, Sequence


def display_width(text: str) -> int:
    """Columns that a terminal needs for a text: two for a Chinese character."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def pad(text: str, columns: int, right: bool = False) -> str:
    """The text, filled up with spaces to this width; `right`: aligned to the right."""
    space = " " * max(0, columns - display_width(text))
    return space + text if right else text + space


def table(rows: Sequence[Sequence[object]], left: int = 1) -> str:
    """An aligned table; the first row is its header, the first `left` columns are left-aligned."""
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
    """The text, cut with an ellipsis if it is wider than this."""
    if display_width(text) <= columns:
        return text
    while text and display_width(text) > columns - 1:
        text = text[:-1]
    return text + "…"


def wrap(text: str, columns: int) -> list[str]:
    """Lines of whole words, at most this wide; a longer word has a line of its own."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and display_width(longer) > columns:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def counted(number: int, noun: str) -> str:
    """1 step, 2,000 steps."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def duration(seconds: float) -> str:
    """3.2 s, 4 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


def print_line(line: str, write: Callable[[str], None] | None = None) -> None:
    """Prints a line and ignores write errors: a full disk under a log must not end a training."""
    try:
        write(line) if write else print(line, flush=True)
    except BrokenPipeError:
        raise
    except OSError:
        pass


class ProgressBar:
    """A bar on a terminal, a line every `every` seconds elsewhere; nothing if `show` is false."""

    def __init__(self, total: int, start: int = 0, show: bool = True, every: float = 10.0) -> None:
        self.total, self.show, self.every = total, show, every
        self.bar, self._last_line = None, -every
        if show and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                total=total, initial=start, dynamic_ncols=True, smoothing=0.05, unit="step"
            )

    def update(self, step: int, total: int, details: str) -> None:
        """Shows that `step` of `total` steps are done; `details` follow the numbers."""
        if self.bar is not None:
            self.bar.total = total
            self.bar.set_postfix_str(details, refresh=False)
            self.bar.update(step - self.bar.n)
        elif self.show and (time.monotonic() - self._last_line > self.every or step == total):
            self._last_line = time.monotonic()
            print_line(f"step {step:,}" + (f"/{total:,}" if total else "") + f"  {details}")

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        if self.bar is not None:
            print_line(line, self.bar.write)
        elif self.show:
            print_line(line)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
