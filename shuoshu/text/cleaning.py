"""Removes what is not the story, and counts every character that it removes or adds.

Each kind has a section below, under the name that prepare.py prints. A rule removes only what it is
sure of; docs/formats.md lists the rules.

    line ends, invisible characters, blanks, indentation   layout; changed even with --clean=false
    markup, entities                                       HTML
    licence                                                Project Gutenberg's header and footer
    banners, notices, addresses                            advertisements of web sites
    正文, contents, doubled headings                       around chapter headings
    front matter                                           synopsis and author before chapter one
    wrapped lines                                          see line_wraps.py
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping

from shuoshu.text.account import Account
from shuoshu.text.advertisements import SENTENCE_END, remove_advertisements
from shuoshu.text.headings import HEADING, PROLOGUE, heading_key, heading_title
from shuoshu.text.line_wraps import join_wrapped_lines


def clean_text(text: str, remove: bool = True, is_beginning: bool = True) -> tuple[str, Account]:
    """(cleaned text, account). With remove=False only the layout is changed.

    Of a book in parts, only the first one is the beginning and may have front matter.
    """
    account = Account(read=len(text))
    if not text.endswith("\n"):
        account.count("line ends", 0, 1)
        text += "\n"  # the last line is then always empty, and no rule removes an empty line
    text = normalize_characters(text, account)
    if remove:
        text = remove_markup(text, account)
        text = account.substitute(TRAILING, "", text, "blanks at line ends")
    lines = text.split("\n")
    if remove:
        lines = remove_licence(lines, account)
        lines = remove_advertisements(lines, account)
        lines = remove_main_text_labels(lines, account)
        lines = remove_contents_and_doubled_headings(lines, account)
        if is_beginning:
            lines = remove_front_matter(lines, account)
    lines, joins = join_wrapped_lines(lines, HEADING)
    for removed, added in joins:
        account.count("wrapped lines", removed, added)
    text = normalize_layout(lines, account)
    account.kept = len(text)
    return text, account


# ---------------------------------------------------------------- layout

INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]+"
)
LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
# The lookbehind keeps the search linear: it tries only the first blank of a run.
TRAILING = re.compile("(?<![ \t\u3000\xa0])[ \t\u3000\xa0]+(?=\n|\\Z)")
INDENT = re.compile("^[ \t\u3000\xa0]+(?=[\u2010-\U0010ffff])", re.MULTILINE)
BLANK = re.compile("\n{3,}")


def normalize_characters(text: str, account: Account) -> str:
    """Makes every line end \\n; removes invisible characters and blanks at line ends."""
    for rule, pattern, after in (
        ("line ends", LINE_ENDS, "\n"),
        ("invisible characters", INVISIBLE, ""),
        ("blanks at line ends", TRAILING, ""),
    ):
        text = account.substitute(pattern, after, text, rule)
    return text


def normalize_layout(lines: list[str], account: Account) -> str:
    """Removes indentation before Chinese and repeated blank lines; the text ends with one \\n."""
    text = account.substitute(INDENT, "", "\n".join(lines), "indentation")
    text = account.substitute(BLANK, "\n\n", text, "blank lines")
    trimmed = text.strip("\n") + "\n"  # never longer, because the text ends with a line end
    if len(trimmed) < len(text):
        account.count("blank lines", len(text) - len(trimmed))
    elif trimmed != text:  # an empty text gets its line end
        account.count("line ends", 0, 1)
    return trimmed


# ---------------------------------------------------------------- markup and entities

COMMENT = re.compile(r"<!--.{0,300}?-->")
SCRIPT = re.compile(r"<(script|style)\b[^<>]{0,200}>.{0,2000}?</\1>", re.IGNORECASE | re.DOTALL)
# HTML's own tags only: some books write <山兜> for a character that the font lacks.
TAG = re.compile(
    r"</?(br|p|div|h[1-6]|span|font|center|b|i|u|a|img|script|style|table|tr|td|li|ul|hr|strong|em)"
    r"(?:\s[^<>\n=]{0,40}=[^<>\n]{0,200}|\s*)/?>",
    re.IGNORECASE,
)
ENTITY = re.compile(
    r"&(?:#\d{1,6}|#x[0-9A-Fa-f]{1,5}|nbsp|lt|gt|amp|quot|apos|[lr][ds]quo|hellip|[mn]dash"
    r"|middot|e[mn]sp|times);"
)


def remove_markup(text: str, account: Account) -> str:
    """Removes HTML comments, scripts and tags; replaces entities by their characters."""
    if "<" in text:
        for pattern in (COMMENT, SCRIPT):
            text = pattern.sub(lambda m: account.record("markup", m[0]), text)
        text = TAG.sub(lambda m: account.record("markup", m[0], _tag_replacement(m[1])), text)
    if "&" in text:
        text = ENTITY.sub(lambda m: account.record("entities", m[0], _entity_character(m[0])), text)
    return text


def _tag_replacement(name: str) -> str:
    """A line end for the tags that begin a line in a browser."""
    return "\n" if name.lower() in ("br", "p", "div") or name[0] in "hH" else ""


def _entity_character(entity: str) -> str:
    """The character of an entity; empty if it is invisible or half of a surrogate pair."""
    character = html.unescape(entity)
    if character.isspace():
        return " "
    if not character or INVISIBLE.match(character) or unicodedata.category(character[0]) == "Cs":
        return ""
    return character


# ---------------------------------------------------------------- licence

LICENCE_START = re.compile(r"^\*{3} ?START OF (?:THE|THIS) PROJECT GUTENBERG", re.IGNORECASE)
LICENCE_END = re.compile(
    r"^(?:\*{3} ?END OF (?:THE|THIS) PROJECT GUTENBERG"
    r"|End of (?:the )?Project Gutenberg(?:['’]s| e-?(?:book|text))\b)",
    re.IGNORECASE,
)


def remove_licence(lines: list[str], account: Account) -> list[str]:
    """Removes Project Gutenberg's START and END lines and everything outside them."""
    marks = {  # index of a mark → True if it is a START line
        i: bool(LICENCE_START.match(line))
        for i, line in enumerate(lines)
        if LICENCE_START.match(line) or LICENCE_END.match(line)
    }
    is_story = not next(iter(marks.values()), False)  # before the first mark
    rule_of = {}
    for i in range(len(lines) - 1):
        if i in marks or not is_story:
            rule_of[i] = "licence"
        is_story = marks.get(i, is_story)
    return account.remove_lines(lines, rule_of)


# ---------------------------------------------------------------- 正文, contents, doubled headings

MIN_CONTENTS_LINES = 5
MIN_CONTENTS_SHARE = 0.8  # of the listed headings that must occur elsewhere too
MAX_STORY_HEADINGS = 3  # headings at the end of a run that may already belong to the story
LABELLED_HEADING = re.compile(r"^([ \t　]*)(正文[ \t　]*)")


def remove_main_text_labels(lines: list[str], account: Account) -> list[str]:
    """Removes the label 正文 ("main text") before a heading."""
    return [
        LABELLED_HEADING.sub(lambda m: m[1] + account.record("正文", m[2]), line)
        if "正文" in line and HEADING.match(line)
        else line
        for line in lines
    ]


def remove_contents_and_doubled_headings(lines: list[str], account: Account) -> list[str]:
    """Removes tables of contents, and the shorter of two adjacent headings of one chapter."""
    keys = {i: heading_key(line) for i, line in enumerate(lines) if HEADING.match(line)}
    runs: list[list[int]] = []  # headings with only blank lines between them
    for i in keys:
        if runs and not any(lines[j].strip() for j in range(runs[-1][-1] + 1, i)):
            runs[-1].append(i)
        else:
            runs.append([i])
    rule_of: dict[int, str] = {}
    remaining = Counter(keys.values())
    for run in runs:
        contents = {run[n] for n in _contents_entries([keys[i] for i in run], remaining)}
        remaining.subtract(keys[i] for i in contents)
        rule_of |= dict.fromkeys(contents, "contents")
        doubled = _doubled_headings(lines, keys, [i for i in run if i not in contents])
        rule_of |= dict.fromkeys(doubled, "doubled headings")
    return account.remove_lines(lines, rule_of)


def _contents_entries(run: list[tuple[str, str]], everywhere: Counter) -> list[int]:
    """Positions of the headings in a run that form a table of contents; empty if none do.

    `run` and `everywhere` are heading keys. A listed heading occurs a second time: at its chapter.
    """
    best: list[int] = []
    best_share = 0.0
    shortest = max(MIN_CONTENTS_LINES, len(run) - MAX_STORY_HEADINGS)
    for end in range(len(run), shortest - 1, -1):
        elsewhere = everywhere - Counter(run[:end])
        listed = []
        for n, key in enumerate(run[:end]):
            if elsewhere[key] > 0:
                elsewhere[key] -= 1
                listed.append(n)
        share = len(listed) / end
        if share >= MIN_CONTENTS_SHARE and share > best_share:
            best, best_share = listed, share
    return best


def _doubled_headings(lines: list[str], keys: Mapping[int, tuple], run: list[int]) -> set[int]:
    """The headings of a run that repeat a neighbour of the same chapter with a shorter title."""
    doubled, previous = set(), run[:1]
    for i in run[1:]:
        longer, shorter = sorted((*previous, i), key=lambda n: -len(heading_title(lines[n])))
        same_title = heading_title(lines[longer]).startswith(heading_title(lines[shorter]))
        previous = [i]
        if keys[longer] == keys[shorter] and same_title:
            doubled.add(shorter)
            previous = [longer]
    return doubled


# ---------------------------------------------------------------- front matter

# Lines that stand in front of a book. Each is a whole line, so that a prologue may say these words.
SYNOPSIS = re.compile(r"^\W{0,10}(?:(?!的)\w){0,8}简介(?:[:：].*|\W{0,10})$")
FRONT_LINE = re.compile(
    rf"{SYNOPSIS.pattern}"
    r"|^\W{0,10}(?:《[^》]{1,30}》\W{0,10}(?:[(（【\[][^)）】\]]{0,20}[)）】\]]\W{0,10})?)?"
    r"作者[:：][^，。！？]{1,30}$"
    r"|^\W{0,10}(?:目[ 　]*录|正文)\W{0,10}$|^\W{0,10}\[.{1,30}著\W{0,10}$"
)
MIN_CHAPTERS = 5  # in a shorter book a long introduction may be part of the story
# Front matter has at most 2% of the book; of a short book up to 500 characters, of any 5,000.
MAX_FRONT_SHARE, MIN_FRONT_LIMIT, MAX_FRONT_LIMIT = 0.02, 500, 5_000
MAX_FRONT_START = 5  # lines that are not blank, among which the first of these lines must be


def remove_front_matter(lines: list[str], account: Account) -> list[str]:
    """Removes front matter: a short text before chapter one with a line 简介, 作者：, 目录 or 正文.

    A prologue with a title stays, and so does prose that follows 作者：, 目录 or 正文.
    """
    if sum(bool(HEADING.match(line)) for line in lines) < MIN_CHAPTERS:
        return lines
    first = next(i for i, line in enumerate(lines) if HEADING.match(line) or PROLOGUE.match(line))
    size = sum(map(len, lines[:first]))
    share = MAX_FRONT_SHARE * sum(map(len, lines))
    is_short = size <= min(MAX_FRONT_LIMIT, max(MIN_FRONT_LIMIT, share))
    end = _front_matter_end(lines[:first]) if is_short else 0
    return account.remove_lines(lines, dict.fromkeys(range(end), "front matter"))


def _front_matter_end(lines: list[str]) -> int:
    """The number of lines, from the first, that are front matter."""
    filled = [i for i, line in enumerate(lines) if line]
    marks = {i: bool(SYNOPSIS.match(lines[i])) for i in filled if FRONT_LINE.match(lines[i])}
    first = next((i for i in filled[:MAX_FRONT_START] if i in marks), None)
    if first is None:
        return 0
    is_synopsis = marks[first]  # then the prose around it is a synopsis too
    for i in filled:
        is_synopsis = marks.get(i, is_synopsis)
        if not is_synopsis and i not in marks and SENTENCE_END.search(lines[i]):
            return i if i > first else 0
    return len(lines)
