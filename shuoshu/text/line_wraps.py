"""Detects hard-wrapped lines and joins them into paragraphs.

The search treats each stretch between headings and long lines separately, because one file may hold
wrapped and unwrapped chapters. Widths are columns: a Chinese character has two, a Latin letter one.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

BLANKS = " \t　"
PHRASE_END = re.compile(r"[。！？：；…!?.:;”’」』）)】》\"'—]$")
# The unbreakable beginning of a line: a Latin word, or one Chinese character with the quotes before
# it and the punctuation after it.
FIRST_PIECE = re.compile(
    r"[\"'“‘(]*[A-Za-z0-9'’-]+[\"'”’,.!?:;)…—]*|[“‘「『（《【]*.[，。！？：；、…”’」』）】》—,.!?:;)]*",
    re.DOTALL,
)
LAST_LATIN = "\u024f"  # words in letters up to this one are separated by spaces

# A stretch
MIN_LINES = 4  # fewer lines are no evidence of a common width
MAX_LINE_WIDTH = 100  # a longer line is a paragraph that was not wrapped
LATIN_LINE_RATIO = 1.3  # columns per character below which a line counts as Latin
MIN_LATIN_SHARE = 0.5  # of the lines
# The width at which a stretch was wrapped
MIN_LATIN_WIDTH = 55  # narrower lines are more likely verse
MIN_CHINESE_WIDTH = 40  # narrower lines are more likely verse or a list
WIDTH_SPREAD = 4  # lines end up to two characters early to keep punctuation off the line start
OVERLONG = 6  # columns above the width that a line with hanging punctuation may have
# Evidence for wrapping
MIN_FULL_LINES = 3
MIN_FULL_SHARE_LATIN = 0.9  # of the lines that another line follows directly
MIN_FULL_SHARE_CHINESE = 0.5  # of all lines; paragraphs end with a short one
MIN_BROKEN_LINES, MIN_BROKEN_SHARE = 2, 0.5  # full lines that end in mid-phrase
MIN_FORCED_SHARE = 0.9  # of the broken lines: those in which the next piece had no room
# A Chinese line
FULL_SLACK = 6  # columns below the width at which a line still counts as full
FULL_SLACK_AT_PHRASE_END = 10  # the same for a line that ends with a phrase
PARAGRAPH_INDENT = 4  # columns: two full-width spaces
# How paragraphs are marked
MIN_INDENTED_SHARE, MAX_INDENTED_SHARE = 0.02, 0.6  # between these, indentation marks paragraphs
MAX_GAP_SHARE = 0.7  # of the lines; if blank lines follow more of them, they mark no paragraphs


def line_columns(text: str) -> int:
    """Width of a text: one column for each Latin-1 character, two for any other."""
    return 2 * len(text) - len(text.encode("latin-1", "ignore"))


@dataclass
class Line:
    """A non-blank line with its measurements, in columns."""

    index: int
    text: str  # without indentation
    width: int
    indent: int
    next_piece: int = 0  # the unbreakable beginning of the next line
    gap: bool = True  # a blank line follows


def join_wrapped_lines(
    lines: list[str], heading: re.Pattern
) -> tuple[list[str], list[tuple[int, int]]]:
    """(lines, [(removed characters, added characters) of each join]).

    Joins a stretch of at least four lines if most are close to one width and end in mid-phrase.
    """
    joins: set[int] = set()  # indices of lines that continue in the next one
    for stretch in _split_into_stretches(lines, heading):
        joins |= _find_joins(stretch)
    if not joins:
        return lines, []
    result: list[list[str]] = []  # the pieces of each joined line
    changes: list[tuple[int, int]] = []
    continues, blank_lines = False, 0
    for i, line in enumerate(lines):
        if not continues:
            result.append([line])
        elif not line:
            blank_lines += 1
            continue
        else:
            text = line.lstrip(BLANKS)
            last = result[-1][-1][-1]
            both_latin = last <= LAST_LATIN and text[0] <= LAST_LATIN
            space = " " if both_latin and last != "-" else ""
            changes.append((1 + blank_lines + len(line) - len(text), len(space)))
            result[-1].append(space + text)
            blank_lines = 0
        continues = i in joins
    return ["".join(pieces) for pieces in result], changes


def _split_into_stretches(lines: list[str], heading: re.Pattern) -> list[list[Line]]:
    """Splits the lines at headings and at long lines, and leaves out blank lines."""
    stretches: list[list[Line]] = [[]]
    for i, line in enumerate(lines):
        text = line.strip(BLANKS)
        if not text:
            continue
        width = line_columns(text)
        if width > MAX_LINE_WIDTH or heading.match(line):
            stretches.append([])
        else:
            indent = line_columns(line.rstrip(BLANKS)) - width
            stretches[-1].append(Line(i, text, width, indent))
    return stretches


def _find_joins(stretch: list[Line]) -> set[int]:
    """Indices of the lines that continue in the next one; empty unless the stretch was wrapped."""
    if len(stretch) < MIN_LINES:
        return set()
    smallest_indent = min(line.indent for line in stretch)
    for line in stretch:  # the width when it was wrapped includes a paragraph's own indentation
        line.width = line_columns(line.text) + line.indent - smallest_indent
    for line, following in pairwise(stretch):
        line.gap = following.index > line.index + 1
        line.next_piece = line_columns(FIRST_PIECE.match(following.text)[0])
    n_latin = sum(line.width < LATIN_LINE_RATIO * len(line.text) for line in stretch)
    is_latin = n_latin > MIN_LATIN_SHARE * len(stretch)
    width = _latin_width(stretch) if is_latin else _chinese_width(stretch)
    if width is None:
        return set()
    if any(line.width > width + OVERLONG for line in stretch):
        # A wider line was not wrapped at this width: search the parts before and after it.
        parts: list[list[Line]] = [[]]
        for line in stretch:
            if line.width > width + OVERLONG:
                parts.append([])
            else:
                parts[-1].append(line)
        return set().union(*map(_find_joins, parts))
    return _latin_joins(stretch, width) if is_latin else _chinese_joins(stretch, width)


def _latin_width(stretch: list[Line]) -> int | None:
    """The longest line's width; None if it is too narrow for wrapped prose."""
    width = max(line.width for line in stretch)
    return width if width >= MIN_LATIN_WIDTH else None


def _chinese_width(stretch: list[Line]) -> int | None:
    """The width that most lines have or narrowly miss; None if all are narrow.

    Of two such widths it is the larger one.
    """
    counts = Counter(line.width for line in stretch)
    wide = [width for width in counts if width >= MIN_CHINESE_WIDTH]

    def lines_near(width: int) -> int:
        return sum(counts[w] for w in range(width - WIDTH_SPREAD, width + 1))

    return max(wide, key=lambda width: (lines_near(width), width)) if wide else None


def _latin_joins(stretch: list[Line], width: int) -> set[int]:
    """Latin text breaks at spaces: a line is full if the next word had no room.

    Blank lines separate paragraphs.
    """

    def is_full(line: Line) -> bool:
        return line.width + 1 + line.next_piece > width

    followed = [line for line in stretch[:-1] if not line.gap]
    full = [line for line in followed if is_full(line)]
    broken = [line for line in full if not PHRASE_END.search(line.text)]
    if len(full) < MIN_FULL_SHARE_LATIN * len(followed) or not _is_wrapped(full, broken, width):
        return set()
    indents_mark = _indents_mark_paragraphs(stretch)
    return {
        line.index
        for line, following in pairwise(stretch)
        if is_full(line) and not line.gap and not (indents_mark and following.indent)
    }


def _chinese_joins(stretch: list[Line], width: int) -> set[int]:
    """Chinese text breaks at almost any character, so a full line is one close to the width.

    A line that ends with a phrase may be a paragraph's last one. It continues only if the next
    piece had no room in it.
    """
    full = [line for line in stretch if line.width >= width - FULL_SLACK]
    broken = [line for line in full if line.text[-1].isalnum()]
    if len(full) < MIN_FULL_SHARE_CHINESE * len(stretch) or not _is_wrapped(full, broken, width):
        return set()
    indents_mark = _indents_mark_paragraphs(stretch)
    gaps = sum(line.gap for line in stretch[:-1])
    gaps_mark = 0 < gaps < MAX_GAP_SHARE * (len(stretch) - 1)
    joins = set()
    is_first = True  # of its paragraph
    for line, following in pairwise(stretch):
        # If indentation was lost, a first line is narrower than the width by its two spaces.
        room = width - PARAGRAPH_INDENT if is_first and not indents_mark else width
        if PHRASE_END.search(line.text):
            is_long = line.width >= width - FULL_SLACK_AT_PHRASE_END
            continues = is_long and line.width + line.next_piece > room
        else:
            continues = line.width >= width - FULL_SLACK
        is_marked = (indents_mark and following.indent) or (gaps_mark and line.gap)
        is_first = not continues or bool(is_marked)
        if not is_first:
            joins.add(line.index)
    return joins


def _is_wrapped(full: list[Line], broken: list[Line], width: int) -> bool:
    """True if enough full lines end in mid-phrase where the next piece had no room.

    Verse and lists fail: their lines end with a phrase, or end although the next piece had room.
    """
    if len(full) < MIN_FULL_LINES:
        return False
    if len(broken) < max(MIN_BROKEN_LINES, MIN_BROKEN_SHARE * len(full)):
        return False
    forced = sum(line.width + line.next_piece >= width - WIDTH_SPREAD for line in broken)
    return forced >= MIN_FORCED_SHARE * len(broken)


def _indents_mark_paragraphs(stretch: list[Line]) -> bool:
    """True if some lines are indented, but not nearly all."""
    share = sum(line.indent > 0 for line in stretch) / len(stretch)
    return MIN_INDENTED_SHARE < share < MAX_INDENTED_SHARE
