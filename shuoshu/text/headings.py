"""Chapter headings: recognises heading lines and compares their numbers."""

from __future__ import annotations

import re
import unicodedata

NUMERALS = "0-9０-９零〇○一二两三四五六七八九十百千廿卅壹贰叁肆伍陆柒捌玖拾"
NUMBER = rf"(?=[ \t　]*[{NUMERALS}])[{NUMERALS} \t　]{{1,12}}"
CHAPTER_UNIT = "[回章节卷集部篇折]"

# A whole line: 第一回 …, 第 十二 章, 正文 第01节, Chapter 12, CHAPTER XII.
# A space or a colon must separate the number from the title, otherwise the line is prose. After 、
# it is prose if another number (第一部、第二部都卖光了) or a sentence follows.
HEADING = re.compile(
    rf"^[ \t　]*(?:正文[ \t　]*)?(第{NUMBER}{CHAPTER_UNIT}(?=[\s:：.．]|$"
    rf"|、(?!第?{NUMBER}{CHAPTER_UNIT}|.{{0,60}}。$)).{{0,60}}"
    r"|(?i:chapter)[ \t]+(?:\d{1,4}|[IVXLC]{1,8}|[ivxlc]{1,8})(?=[\s.:]|$).{0,60})$",
    re.MULTILINE,
)
PROLOGUE = re.compile(
    r"^[ \t　]*(?:楔子|序章|序幕|引子|序言|前言|序|附录|番外"
    r"|(?i:prologue|preface|introduction|foreword))(?=[\s:：.]|$).{0,40}$"
)


def heading_key(line: str) -> tuple[str, str]:
    """(unit, number) of a heading. Two headings of the same chapter have the same key."""
    if match := re.search(rf"第({NUMBER})({CHAPTER_UNIT})", line):
        return match[2], str(_number(match[1]))
    words = line.split()
    return words[0].lower(), words[1].rstrip(".:").lower()


def heading_title(line: str) -> str:
    """A heading without its number and without spaces."""
    return re.sub(r"\s", "", re.sub(rf"^\s*第{NUMBER}{CHAPTER_UNIT}", "", line))


def _number(numeral: str) -> int:
    """The number that 一百零三, 一〇三, 廿一 or １０３ means."""
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
