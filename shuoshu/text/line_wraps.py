"""Hard-wrapped lines, recognised stretch by stretch, and joined again."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

PHRASE_END = re.compile(r"[。！？：；…!?.:;”’」』）)】》\"'—]$")
FIRST_PIECE = re.compile(
    r"[\"'“‘(]*[A-Za-z0-9'’-]+[\"'”’,.!?:;)…—]*|[“‘「『（《【]*.[，。！？：；、…”’」』）】》—,.!?:;)]*",
    re.DOTALL,
)


def line_columns(text: str) -> int:
    """Width of a line: two columns for all that isn't Latin."""
    return 2 * len(text) - len(text.encode("latin-1", "ignore"))


@dataclass
class Line:
    at: int  # its index
    text: str  # without indentation
    width: int
    indent: int  # its columns
    next_piece: int = 0  # columns of what can't be broken at the beginning of the next line
    gap: bool = True  # a blank line follows


def join_wrapped_lines(
    lines: list[str], heading: re.Pattern
) -> tuple[list[str], list[tuple[int, int]]]:
    """(lines, what each join removed and added).

    Where most of at least four lines in succession are nearly as long as the longest kind and break off in mid-phrase, a line
    goes on in the next.
    """
    stretches: list[list[Line]] = [[]]
    for i, raw in enumerate(lines):
        text = raw.strip(" \t　")
        if not text:
            continue
        line = Line(
            i, text, line_columns(text), line_columns(raw.rstrip(" \t　")) - line_columns(text)
        )
        if line.width > 100 or heading.match(raw):
            stretches.append([])
        else:
            stretches[-1].append(line)
    joins: set[int] = set()  # indices of lines that go on in the next one
    for stretch in stretches:
        joins |= _find_joins(stretch)
    if not joins:
        return lines, []
    result: list[list[str]] = []  # the pieces of each line
    changes: list[tuple[int, int]] = []
    continues, between = False, 0
    for i, raw in enumerate(lines):
        if not continues:
            result.append([raw])
        elif not raw:
            between += 1
            continue
        else:
            text = raw.lstrip(" \t　")
            last = result[-1][-1][-1]
            space = " " if last < "\u0250" and text[0] < "\u0250" and last != "-" else ""
            changes.append((1 + between + len(raw) - len(text), len(space)))
            result[-1].append(space + text)
            between = 0
        continues = i in joins
    return ["".join(pieces) for pieces in result], changes


def _find_joins(stretch: list[Line]) -> set[int]:
    """The lines of a stretch that the next one continues; none unless it is hard-wrapped."""
    if len(stretch) < 4:
        return set()
    least = min(line.indent for line in stretch)
    for line in stretch:
        line.width = (
            line_columns(line.text) + line.indent - least
        )  # as wide as it was when it was wrapped
    for a, b in pairwise(stretch):
        a.gap, a.next_piece = b.at > a.at + 1, line_columns(FIRST_PIECE.match(b.text)[0])
    is_latin = sum(line.width < 1.3 * len(line.text) for line in stretch) > 0.5 * len(stretch)
    width = _usual_width(stretch, is_latin)
    if width is None:
        return set()
    if any(
        line.width > width + 6 for line in stretch
    ):  # lines that were not wrapped at this width stand between those that were
        parts: list[list[Line]] = [[]]
        for line in stretch:
            parts.append([]) if line.width > width + 6 else parts[-1].append(line)
        return set().union(*map(_find_joins, parts))
    inner = stretch[:-1]
    if is_latin:
        candidates = [line for line in inner if not line.gap]
        full = [line for line in candidates if line.width + 1 + line.next_piece > width]
        broken = [line for line in full if not PHRASE_END.search(line.text)]
        if len(candidates) < 3 or len(full) < 0.9 * len(candidates):
            return set()
    else:
        full = [line for line in stretch if line.width >= width - 6]
        broken = [line for line in full if line.text[-1].isalnum()]
        if len(full) < 0.5 * len(stretch):
            return set()
    if len(full) < 3 or len(broken) < max(2, 0.5 * len(full)):
        return set()
    if sum(line.width + line.next_piece >= width - 4 for line in broken) < 0.9 * len(broken):
        return set()
    some_indented = 0.02 < sum(line.indent > 0 for line in stretch) / len(stretch) < 0.6
    some_gaps = 0 < sum(line.gap for line in inner) < 0.7 * len(inner)
    found, is_rank_zero = set(), True
    for line, following in pairwise(stretch):
        limit = (
            width - 4 if is_rank_zero and not some_indented else width
        )  # a first line has lost its indentation
        if is_latin:
            goes_on = line.width + 1 + line.next_piece > width
        elif PHRASE_END.search(line.text):
            goes_on = line.width >= width - 10 and line.width + line.next_piece > limit
        else:
            goes_on = line.width >= width - 6
        is_apart = (
            (some_indented and following.indent)
            or (some_gaps and line.gap)
            or (is_latin and line.gap)
        )
        is_rank_zero = not goes_on or is_apart
        if not is_rank_zero:
            found.add(line.at)
    return found


def _usual_width(stretch: list[Line], is_latin: bool) -> int | None:
    """The width that a stretch was wrapped at, if it was."""
    if is_latin:
        width = max(line.width for line in stretch)
        return width if width >= 55 else None
    counts = Counter(line.width for line in stretch if line.width >= 36)
    wide = [width for width in counts if width >= 40]
    return (
        max(wide, key=lambda width: (sum(counts[w] for w in range(width - 4, width + 1)), width))
        if wide
        else None
    )
