"""What doesn't belong to the story, taken out by rules of one sentence each, with an account of every character.

A rule removes only what it is sure of; docs/FORMATS.md says each in a sentence. Layout is made uniform in any case; the rest can be turned off.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from shuoshu.text.line_wraps import join_wrapped_lines

# ---------------------------------------------------------------- headings

NUMERALS = "0-9０-９零〇○一二两三四五六七八九十百千廿卅壹贰叁肆伍陆柒捌玖拾"
NUMBER = rf"(?=[ \t　]*[{NUMERALS}])[{NUMERALS} \t　]{{1,12}}"
# A line that is a chapter's heading: 第一回 …, 第 十二 章, 正文 第01节, Chapter 12, CHAPTER XII. What follows the number is set off from it.
HEADING = re.compile(
    rf"^[ \t　]*(?:正文[ \t　]*)?(第{NUMBER}[回章节卷集部篇折](?=[\s:：、.．]|$).{{0,60}}"
    r"|(?i:chapter)[ \t]+(?:\d{1,4}|[IVXLC]{1,8}|[ivxlc]{1,8})(?=[\s.:]|$).{0,60})$",
    re.MULTILINE,
)
PROLOGUE = re.compile(
    r"^[ \t　]*(?:楔子|序章|序幕|引子|序言|前言|序|附录|番外|(?i:prologue|preface|introduction|foreword))(?=[\s:：.]|$).{0,40}$"
)


def heading_key(line: str) -> tuple[str, str]:
    """What two headings of one chapter have in common: unit and number."""
    if found := re.search(rf"第({NUMBER})([回章节卷集部篇折])", line):
        return found[2], str(_value(found[1]))
    words = line.split()
    return words[0].lower(), words[1].rstrip(".:").lower()


def _value(numeral: str) -> int:
    """一百零三, 一〇三, 廿一, １０３ → the number."""
    text = re.sub(r"\s", "", unicodedata.normalize("NFKC", numeral)).translate(
        str.maketrans("〇○两壹贰叁肆伍陆柒捌玖拾", "零零二一二三四五六七八九十")
    )
    text = text.replace("廿", "二十").replace("卅", "三十")
    if text.isdigit():
        return int(text)
    digits = {c: str(i) for i, c in enumerate("零一二三四五六七八九")}
    if not re.search("[十百千]", text):
        return int("".join(digits.get(c, c) for c in text))
    total = digit = 0
    for c in text:
        if c in "十百千":
            total, digit = total + (digit or 1) * {"十": 10, "百": 100, "千": 1000}[c], 0
        else:
            digit = int(digits.get(c, c))
    return total + digit


# ---------------------------------------------------------------- the account


@dataclass
class Account:
    """Every character that was read: kept, or changed by a named rule."""

    read: int = 0
    kept: int = 0
    places: Counter = field(default_factory=Counter)
    removed: Counter = field(default_factory=Counter)
    added: Counter = field(default_factory=Counter)
    pieces: dict[str, list[str]] = field(
        default_factory=dict
    )  # what the rules took out, layout left out

    def note(self, rule: str, before: str, after: str = "") -> str:
        """One place that a rule changes; returns what stands there now."""
        self.count(rule, len(before), len(after))
        self.pieces.setdefault(rule, []).append(before)
        return after

    def count(self, rule: str, removed: int, added: int = 0, places: int = 1) -> None:
        self.places[rule] += places
        self.removed[rule] += removed
        self.added[rule] += added

    def is_exact(self) -> bool:
        return self.read - sum(self.removed.values()) + sum(self.added.values()) == self.kept

    def add(self, other: Account) -> None:
        self.read, self.kept = self.read + other.read, self.kept + other.kept
        for mine, theirs in (
            (self.places, other.places),
            (self.removed, other.removed),
            (self.added, other.added),
        ):
            mine.update(theirs)
        for rule, pieces in other.pieces.items():
            self.pieces.setdefault(rule, []).extend(pieces)


def clean_text(text: str, remove: bool = True) -> tuple[str, Account]:
    """The story, and the account of what was done; with remove=False only its layout is made uniform."""
    account = Account(read=len(text))
    if not text.endswith("\n"):
        account.count("line ends", 0, 1)
        text += "\n"  # so that the last line is always an empty one, which no rule removes
    text = uniform_characters(text, account)
    if remove:
        text = _replace(TRAILING, "", without_markup(text, account), "blanks at line ends", account)
    lines = text.split("\n")
    if remove:
        lines = without_licence(lines, account)
        lines = without_banners(lines, account)
        lines = without_notices(lines, account)
        lines = with_plain_headings(lines, account)
        lines = without_front_matter(lines, account)
    lines, joins = join_wrapped_lines(lines, HEADING)
    for removed, added in joins:
        account.count("wrapped lines", removed, added)
    text = uniform_layout(lines, account)
    account.kept = len(text)
    return text, account


# ---------------------------------------------------------------- characters and layout

INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]+"
)
LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
TRAILING = re.compile("(?<![ \t\u3000\xa0])[ \t\u3000\xa0]+(?=\n|\\Z)")
INDENT = re.compile("^[ \t\u3000\xa0]+(?=[\u2010-\U0010ffff])", re.MULTILINE)
BLANK = re.compile("\n{3,}")


def uniform_characters(text: str, account: Account) -> str:
    """Every kind of line end is \\n; characters that nobody sees are gone, and so are blanks at a line's end."""
    for rule, pattern, after in (
        ("line ends", LINE_ENDS, "\n"),
        ("invisible characters", INVISIBLE, ""),
        ("blanks at line ends", TRAILING, ""),
    ):
        text = _replace(pattern, after, text, rule, account)
    return text


def uniform_layout(lines: list[str], account: Account) -> str:
    """No indentation before Chinese, one blank line at most, none at the beginning, one line end at the end."""
    text = _replace(INDENT, "", "\n".join(lines), "indentation", account)
    text = _replace(BLANK, "\n\n", text, "blank lines", account)
    trimmed = text.strip("\n") + "\n"  # never longer: the text ends with a line end already
    if len(trimmed) < len(text):
        account.count("blank lines", len(text) - len(trimmed))
    elif trimmed != text:  # nothing is left but the line end that every text has
        account.count("line ends", 0, 1)
    return trimmed


def _replace(pattern: re.Pattern, after: str, text: str, rule: str, account: Account) -> str:
    changed, places = pattern.subn(after, text)
    if places:
        added = places * len(after)
        account.count(rule, len(text) - len(changed) + added, added, places)
    return changed


# ---------------------------------------------------------------- what is not the story

COMMENT = re.compile(r"<!--.{0,300}?-->")
SCRIPT = re.compile(r"<(script|style)\b[^<>]{0,200}>.{0,2000}?</\1>", re.IGNORECASE | re.DOTALL)
TAG = re.compile(
    r"</?(br|p|div|h[1-6]|span|font|center|b|i|u|a|img|script|style|table|tr|td|li|ul|hr|strong|em)(?:\s[^<>\n]{0,200})?/?>",
    re.IGNORECASE,
)
ENTITY = re.compile(
    r"&(?:#\d{1,6}|#x[0-9A-Fa-f]{1,5}|nbsp|lt|gt|amp|quot|apos|[lr][ds]quo|hellip|[mn]dash|middot|e[mn]sp|times);"
)


def without_markup(text: str, account: Account) -> str:
    """HTML's comments, scripts and tags go (only tags that HTML has: books write <山兜> for characters that fonts lack); entities become characters."""
    if "<" in text:
        for pattern in (COMMENT, SCRIPT):
            text = pattern.sub(lambda m: account.note("markup", m[0]), text)
        text = TAG.sub(
            lambda m: account.note(
                "markup",
                m[0],
                "\n" if m[1].lower() in ("br", "p", "div") or m[1][0] in "hH" else "",
            ),
            text,
        )
    if "&" in text:
        text = ENTITY.sub(
            lambda m: account.note("entities", m[0], _visible(html.unescape(m[0]))), text
        )
    return text


def _visible(character: str) -> str:
    """What an entity stands for, unless it is one of the characters that are taken out everywhere."""
    return (
        " "
        if character.isspace()
        else ""
        if not character or INVISIBLE.match(character) or unicodedata.category(character[0]) == "Cs"
        else character
    )


START = re.compile(r"^\*{3} ?START OF (?:THE|THIS) PROJECT GUTENBERG", re.IGNORECASE)
END = re.compile(
    r"^(?:\*{3} ?END OF (?:THE|THIS) PROJECT GUTENBERG|End of (?:the )?Project Gutenberg)",
    re.IGNORECASE,
)


def without_licence(lines: list[str], account: Account) -> list[str]:
    """What stands outside Project Gutenberg's START and END lines goes, the lines themselves too."""
    marks = {
        i: bool(START.match(line))
        for i, line in enumerate(lines)
        if START.match(line) or END.match(line)
    }
    inside = not next(iter(marks.values()), False)
    gone = {}
    for i in range(len(lines) - 1):
        if i in marks or not inside:
            gone[i] = "licence"
        inside = marks.get(i, inside)
    return _without(lines, gone, account)


STREWN = r"[\^*~_#@|+=♂♀★☆◎※→ -]{0,2}"  # signs strewn into a watermark
SIGN, DOT = "A-Za-z0-9ａ-ｚＡ-Ｚ０-９", "[.．。·]"
ADDRESS = re.compile(
    r"https?[:：]//[^\s　-鿿》】）]{3,80}"
    rf"|(?:[wWｗＷ]{STREWN}){{3}}{DOT}{STREWN}(?:[{SIGN}]{STREWN}){{2,30}}(?:{DOT}{STREWN}(?:[{SIGN}]{STREWN}){{2,10}}){{1,3}}(?:/[\x21-\x7e]*)?"
    rf"|(?<![{SIGN}@.])[{SIGN}][{SIGN}-]{{1,30}}(?:{DOT}[{SIGN}-]{{2,30}}){{0,2}}{DOT}(?:com|net|org|cc|cn|info|ｃｏｍ|ｎｅｔ|ｃｃ)(?![{SIGN}])",
    re.IGNORECASE,
)
STREWN_MARK = re.compile(
    rf"(?:\w[\^*~_#@|♂♀★☆◎※]){{1,12}}[\w…]{{0,3}}?(?:{ADDRESS.pattern})", re.IGNORECASE
)
MAY_BE_ADDRESS = re.compile("[.．。·][\\^*~_#@|+=♂♀★☆◎※→ -]?[a-zａ-ｚA-ZＡ-Ｚ]|http", re.IGNORECASE)
RULER = re.compile(r"^[ \t　]*[=*_~#+＝－—─…·•※★☆-]{8,}$")
SITE = re.compile(
    "书库|书屋|书城|书吧|书网|文学|小.?说|下载|阅读|电子书|论坛|更新|首发|整理|提供|本站|网站|转载|txt",
    re.IGNORECASE,
)
NOTICE = re.compile(
    r"更新(?:时间|日期)[:：]\s*\d|本章字数|章节内容(?:开始|结束)|请记住本[站书]|一秒(?:钟)?记住|手机(?:用户|阅读|版).{0,6}(?:请|访问|浏览|网址)"
    r"|(?:最新|全部)章节.{0,12}(?:尽在|访问|阅读|免费)|无弹[窗出]|本章未完|点击下一[页章]|返回(?:目录|书页)|加入书签|(?:求|投)(?:推荐|月)票"
    r"|(?:txt|小说|电子书|全集|全文)(?:免费)?下载|下载后?(?:请)?.{0,6}24\s*小时|仅供.{0,6}(?:预览|试读|试阅|学习交流)|首发(?:域名)?[:：]"
    r"|更多(?:精彩|免费).{0,6}(?:小说|电子书)|为您提供.{0,8}(?:小说|阅读)|(?:请|欢迎).{0,8}(?:支持|购买)正版|本(?:书|站|作品).{0,20}(?:版权|转载)"
    r"|(?:OCR|扫校|录入|手打)[:：]|[(（](?:本章完|未完待续)",
    re.IGNORECASE,
)
QUOTES = re.compile("[“”「」『』‘’]")
CLAUSE = re.compile(r"(?<=[，；。！？…”』」）》】!?])(?![，；。！？…”』」）》】!?])|(?=[（【])")


def without_banners(lines: list[str], account: Account) -> list[str]:
    """Two rulers at most 20 lines apart with an address or a site's phrase between them go, with all between them."""
    rulers = [i for i, line in enumerate(lines) if RULER.match(line)]
    gone: dict[int, str] = {}
    for a, b in pairwise(rulers):
        between = "\n".join(lines[a + 1 : b])
        is_story = QUOTES.search(between) or HEADING.search(between)
        if (
            b - a <= 20
            and a not in gone
            and not is_story
            and (ADDRESS.search(between) or NOTICE.search(between))
        ):
            gone |= dict.fromkeys(range(a, b + 1), "banners")
    return _without(lines, gone, account)


def without_notices(lines: list[str], account: Account) -> list[str]:
    """Lines that are little but an address, and short lines with a site's phrase, go; of a longer line only the clause with the address."""
    kept = []
    for raw in lines:
        line = _without_strewn(raw, account) if MAY_BE_ADDRESS.search(raw) else raw
        text = line.strip()
        address = ADDRESS.search(text) if MAY_BE_ADDRESS.search(text) else None
        rest = ADDRESS.sub("", text) if address else ""
        if not text or HEADING.match(line):
            kept.append(line)
        elif len(text) <= 80 and NOTICE.search(text) and not QUOTES.search(text):
            account.note("notices", line + "\n")
        elif (
            address
            and len(rest) <= 60
            and (not rest.strip() or SITE.search(rest))
            and not re.search(r"[“”「」『』‘’]|[，。；！？!?].", rest)
        ):
            account.note("addresses", line + "\n")
        elif address:
            parts = [
                account.note("addresses", part) if _is_watermark(part) else part
                for part in CLAUSE.split(line)
            ]
            kept.append(_replace(TRAILING, "", "".join(parts), "blanks at line ends", account))
        else:
            kept.append(line)
    return kept


def _without_strewn(line: str, account: Account) -> str:
    """A watermark with signs strewn in that stands among a clause's own words goes by itself."""

    def swap(mark: re.Match) -> str:
        around = (
            re.split("[，。；！？”」]", line[: mark.start()])[-1]
            + re.split("[，。；！？“「]", line[mark.end() :], maxsplit=1)[0]
        )
        return (
            account.note("addresses", mark[0])
            if sum(map(str.isalnum, around)) > 8 and SITE.search(mark[0])
            else mark[0]
        )

    return STREWN_MARK.sub(swap, line)


def _is_watermark(clause: str) -> bool:
    return bool(
        len(clause) <= 80
        and not QUOTES.search(clause)
        and ADDRESS.search(clause)
        and SITE.search(ADDRESS.sub("", clause))
    )


def with_plain_headings(lines: list[str], account: Account) -> list[str]:
    """正文 before a heading goes; a table of contents goes; of a heading that stands twice in succession the longer one stays."""
    for i, line in enumerate(lines):
        if "正文" in line and HEADING.match(line):
            lines[i] = re.sub(
                r"^([ \t　]*)(正文[ \t　]*)", lambda m: m[1] + account.note("正文", m[2]), line
            )
    where = [i for i, line in enumerate(lines) if HEADING.match(line)]
    keys = {i: heading_key(lines[i]) for i in where}
    again = Counter(keys.values())
    runs: list[list[int]] = []  # headings with nothing between them
    for i in where:
        if runs and not any(lines[j].strip() for j in range(runs[-1][-1] + 1, i)):
            runs[-1].append(i)
        else:
            runs.append([i])
    gone: dict[int, str] = {}
    for run in runs:
        if listed := _contents([keys[i] for i in run], again):
            gone |= dict.fromkeys((run[n] for n in listed), "contents")
            again.subtract(keys[run[n]] for n in listed)
            run = [i for i in run if i not in gone]
        for b in range(1, len(run)):
            stays, other = sorted(run[b - 1 : b + 1], key=lambda i: -len(_title(lines[i])))
            if keys[stays] == keys[other] and _title(lines[stays]).startswith(_title(lines[other])):
                gone[other] = "doubled headings"
                run[b] = stays
    return _without(lines, gone, account)


def _contents(run: list[tuple[str, str]], everywhere: Counter) -> list[int]:
    """Places in a run of headings that are a table of contents; the last three may be where the text begins already."""
    best: list[int] = []
    best_share = 0.0
    for end in range(len(run), max(4, len(run) - 4), -1):
        others = everywhere - Counter(run[:end])
        listed = []
        for n, key in enumerate(run[:end]):
            if others[key] > 0:
                others[key] -= 1
                listed.append(n)
        if len(listed) / end >= 0.8 and len(listed) / end > best_share:
            best, best_share = listed, len(listed) / end
    return best


def _title(heading: str) -> str:
    return re.sub(r"\s", "", re.sub(rf"^\s*第{NUMBER}[回章节卷集部篇折]", "", heading))


FRONT = re.compile(r"简介|作者[:：]|目[ 　]*录|^[ \t　]*正文$|\[.{1,30}著", re.MULTILINE)


def without_front_matter(lines: list[str], account: Account) -> list[str]:
    """Before the first of at least five headings, a short text that has a synopsis, an author's line or a contents mark goes; a prologue stays."""
    headings = [i for i, line in enumerate(lines) if HEADING.match(line)]
    first = next(
        (i for i, line in enumerate(lines) if HEADING.match(line) or PROLOGUE.match(line)), 0
    )
    size = sum(map(len, lines[:first]))
    if (
        len(headings) < 5
        or size > max(500, 0.02 * sum(map(len, lines)))
        or not FRONT.search("\n".join(lines[:first]))
    ):
        return lines
    return _without(lines, dict.fromkeys(range(first), "front matter"), account)


def _without(lines: list[str], gone: Mapping[int, str], account: Account) -> list[str]:
    """The lines that stay; `gone` says which go, and by which rule."""
    for i in sorted(gone):
        account.note(gone[i], lines[i] + "\n")
    return [line for i, line in enumerate(lines) if i not in gone]
