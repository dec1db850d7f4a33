"""Removes the advertisements of web sites: banners, notices, addresses, and watermarks in a line.

A line is an advertisement by its form: nothing is in it but phrases of novel sites, a site's name
and an address. A single other word keeps it, because then it may be a sentence of the story.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

from shuoshu.text.account import Account
from shuoshu.text.headings import HEADING

# ---------------------------------------------------------------- addresses

# Signs that sites put into their addresses to escape filters: ｗｗｗ．ｙ^ｕ^ｙ^ｅ．ｃｏｍ
SIGNS = r"\^*~_#@|+=♂♀★☆◎※→"
SCATTERED = f"[{SIGNS} -]{{0,2}}"
LETTER, DOT = "A-Za-z0-9ａ-ｚＡ-Ｚ０-９", "[.．。·]"
ADDRESS = re.compile(
    r"https?[:：]//[^\s　-鿿》】）]{3,80}"
    rf"|(?:[wWｗＷ]{SCATTERED}){{3}}{DOT}{SCATTERED}(?:[{LETTER}]{SCATTERED}){{2,30}}"
    rf"(?:{DOT}{SCATTERED}(?:[{LETTER}]{SCATTERED}){{2,10}}){{1,3}}(?:/[\x21-\x7e]*)?"
    rf"|(?<![{LETTER}@.])[{LETTER}][{LETTER}-]{{0,30}}(?:{DOT}[{LETTER}-]{{2,30}}){{0,2}}{DOT}"
    rf"(?:com|net|org|cc|cn|info|ｃｏｍ|ｎｅｔ|ｃｃ)(?![{LETTER}])",
    re.IGNORECASE,
)
# A fast test before the slow ADDRESS: a line without a match has no address.
MAY_BE_ADDRESS = re.compile(rf"{DOT}[{SIGNS} -]?[a-zａ-ｚA-ZＡ-Ｚ]|http", re.IGNORECASE)
SCATTERED_WATERMARK = re.compile(
    rf"(?:\w[\^*~_#@|♂♀★☆◎※]){{1,12}}[\w…]{{0,3}}?(?:{ADDRESS.pattern})", re.IGNORECASE
)
SITE_WORD = re.compile(  # in a watermark with scattered signs
    "书库|书屋|书城|书吧|书网|文学|小.?说|下载|阅读|电子书|论坛|更新|首发|整理|提供|本站|网站|转载|txt",
    re.IGNORECASE,
)

# ---------------------------------------------------------------- what sites write

READER = "(?:您|大家|各位|读者|书友|朋友|继续)"
KINDS = ("[tT][xX][tT]", "小说", "电子书", "全集", "全文")
CREDIT = r"[:：]\s*\w{1,6}(?![\w。])"
GENUINE = f"{READER}?(?:购买|支持)正版(?:图书|书籍|小说|阅读)?"
# One phrase is enough, if the rest of the line is phrases, labels and words. Phrases and labels
# begin with a fixed character, not with a group, so that the search is fast.
PHRASE = "|".join(
    (
        r"更新(?<!【更新)(?:时间|日期)[:：]\s*[\d年月日/.-]{6,}\s*\d{1,2}(?:[:：]\d\d){1,2}",
        r"本章字数[:：]\s*\d+",
        "章节内容(?:开始|结束)",
        "本章完(?<=[(（]本章完)(?=[)）])",
        r"未完待续(?<=[(（]未完待续)(?!\w)",
        "点击下一[页章]继续阅读",
        r"一秒钟?记住(?=本[站书]|[【《\[]|\w{1,6}书[库屋城吧])",
        "记住本[站书]",
        "首发域名[:：]",
        "无弹[窗出]",
        f"为{READER}提供",
        "手机(?:用户|阅读|版)(?=请)",
        "最新章节(?:尽在|免费|阅读)",
        "全部章节(?:尽在|免费|阅读)",
        "更多(?:精彩|免费)(?:小说|电子书)",
        "仅供(?:读者|书友|网友|个人)?(?:预览|试读|试阅|学习|交流){1,3}",
        r"下载后?24\s*小时内删除",
        f"请{GENUINE}",
        f"欢迎{GENUINE}",
        "请勿用[作于]商业用途",
        "版权归(?:原?作者|出版社)(?:[和或及与](?:原?作者|出版社))?所有",
        "请勿转载|谢绝转载|不得转载",
        f"[oO][cC][rR]{CREDIT}|扫校{CREDIT}|录入{CREDIT}|手打{CREDIT}",
        "手打更新最快",
        r"由\w{1,6}会员手打",
        "第一时间看正版内容",
        "手机站全新改版升级地址",
        r"喜欢\w{1,12}请大家收藏[:：]",
        "更新速度全网最快",
    )
)
# Two different labels are enough, if the line doesn't look like a sentence.
LABEL = "|".join(
    (
        r"更新(?:时间|日期)[:：]\s*\d",
        "本章未完|这章没有结束|请翻页",
        "点击[上下]一[页章]|[上下]一[页章]",
        "返回目录|返回书页|章节目录|加入书签|推荐本书",
        "声明[:：]|[pP][sS][:：]",
        "求推荐票?|求月票|求收藏",
        "投(?:推荐|月)票(?:、(?:推荐|月)票)?",
        *(f"{kind}(?:免费)?下载[网站]?" for kind in KINDS),
    )
)
# Pronouns, particles and verbs: they are in clauses of the story, but in no site's name.
NO_NAME = (
    "[他她它我你您们了着过的是把被由自请到去来和与及说看读写问找开进登录推给跟从向让叫有没不上下]"
)
NAME_LETTER = rf"(?:小说|(?!{NO_NAME}|在(?!线))\w)"
NAME = f"{NAME_LETTER}{{1,5}}(?:书[库屋城吧网坊]|文学网?|小说网|中文网|读书网|电子书|阁(?=手机版))"
# Words that may stand beside. None is a person, or something that a person does.
WORD = (
    rf"本?(?:书|文|作品|电子书)(?:由|(?:首发)?来自|下载于){NAME_LETTER}{{0,8}}"
    rf"|{NAME}|[【《\[]\w{{1,8}}[】》\]]|尽在(?:(?!阅读)\w){{0,6}}"
    rf"|(?:敬?请|欢迎){READER}{{0,2}}"
    r"(?:来|到|访问|浏览|登[录陆]|光临|关注|收藏|记住|购买|支持|在)?"
    r"|为了让作者.{0,12}?提供更多更好的作品|如果您?喜欢(?:这部作品|本[书文])?|未经许可"
    r"|24\s*小时之?内(?:自行)?删除|不得用作商业用途|您的支持|就是我最大的动力|本人不做任何负责"
    r"|数据和书签与电脑站同步|\w{1,10}?(?=更新速度全网最快)|这个章节后面还有哦?|后面更精彩"
    r"|方便下次|我们的网址|今天|还有\w更|第\w{1,3}更|天才|小主"
    rf"|校对{CREDIT}|字数[:：]\s*\d+|附[:：]|自?网络|网友|收集|整理|制作|上传|提供|首发"
    rf"|手打|校对|免费|在线|(?:{'|'.join(KINDS)})[网站]?|阅读|下载后?|更新|更?优质|体验|精[彩校]|最[新快全]|全网"
    r"|速度|更多|好书|书[籍库屋城吧]|章节|内容|文学|论坛|起点|本[书站文]|作品|使用|清新"
    r"|手机(?:用户|版|站)?|电脑[版站]|网[址站]|域名|地址|无?广告|[的并]"
)
SITE_PHRASE, SITE_LABEL = re.compile(PHRASE), re.compile(LABEL)
CALL = re.compile(f"{PHRASE}|{LABEL}")
SITE_TEXT = re.compile(f"{PHRASE}|{LABEL}|{WORD}")
# With an address, these are marks of an advertisement; the other words are not.
SITE_PRAISE = re.compile(f"{NAME}|(?:书|文|作品)由|尽在|更多|最[新快全]|[《【]\n")
SIGN = re.compile(f"[{SIGNS}]")

RULER = re.compile(r"^[ \t　]*[=*_~#+＝－—─…·•※★☆-]{8,}$")
# Signs of the story: somebody speaks, or somebody tells.
QUOTES = re.compile("[“”「」『』‘’]")
NARRATION = re.compile("(?<!其)他|[她它你着]|我(?!们)|(?<!为)了")
SENTENCE = re.compile("[。？?]$|^—+[^—]+$")  # or a line of a dialogue
SENTENCE_END = re.compile("[。！？…!?.”」』]$")
CLAUSE_BREAK = re.compile(
    r"(?<=[，；。！？…”』」）》】!?])(?![，；。！？…”』」）》】!?])|(?=[（【])"
)

# ---------------------------------------------------------------- banners, notices, addresses

MAX_ADVERTISEMENT_CHARACTERS = 80  # of a line, or of the clause that contains the address
# A watermark is removed from inside a clause with so many letters; the clause is cut at a length.
MIN_STORY_LETTERS, MAX_CLAUSE = 9, 80
MAX_BANNER_LINES, MAX_BANNER_CHARACTERS = 20, 300  # from ruler to ruler
EDGE_LINES = 3  # the first and the last lines of a chapter
MIN_REPEATS = 3  # of a line at the edges of chapters


def is_advertisement(text: str, is_in_story: bool = False) -> bool:
    """Whether a short text has the marks of an advertisement and no other words.

    A text in the story needs more marks, and so does one that looks like a sentence.
    """
    if len(text) > MAX_ADVERTISEMENT_CHARACTERS or QUOTES.search(text):
        return False
    rest = ADDRESS.sub("\n", text) if MAY_BE_ADDRESS.search(text) else text
    has_address = rest != text
    marks = has_address + len(set(SITE_PHRASE.findall(rest)))
    marks += has_address and bool(SITE_PRAISE.search(rest))
    marks += min(2, len(set(SITE_LABEL.findall(rest)))) / 2
    needs_more = is_in_story or SENTENCE.search(text)
    return (marks > 1 if needs_more else marks >= 1) and not _other_letters(rest)


def remove_advertisements(lines: list[str], account: Account) -> list[str]:
    """Removes banners, lines that are advertisements, and watermarks inside other lines."""
    lines = _remove_banners(lines, account)
    suspects = [_may_be_advertisement(line) for line in lines]
    repeated = _repeated_calls(lines) if any(suspects) else set()
    kept: list[str] = []
    colon_line = ""  # the last line with a colon at its end, until a line ends like a sentence
    for line, is_suspect in zip(lines, suspects, strict=True):
        if is_suspect:
            line = _remove_scattered_watermarks(line, account)
            if not HEADING.match(line):
                text = line.strip()
                is_quoted = _announces(colon_line)
                if is_advertisement(text, is_quoted) or _without_digits(text) in repeated:
                    rule = "addresses" if ADDRESS.search(text) else "notices"
                    account.record(rule, line + "\n")
                    continue
                line = _remove_watermarks(line, account)
        kept.append(line)
        if line.endswith((":", "：")):
            colon_line = line
        elif colon_line and SENTENCE_END.search(line):
            colon_line = ""
    return kept


def _remove_banners(lines: list[str], account: Account) -> list[str]:
    """Removes two rulers and the lines between them if the first one is an advertisement."""
    rulers = [i for i, line in enumerate(lines) if RULER.match(line)]
    rule_of: dict[int, str] = {}
    for a, b in pairwise(rulers):
        if b - a > MAX_BANNER_LINES or a in rule_of:
            continue
        between = "\n".join(lines[a + 1 : b]).strip()
        is_short = len(between) <= MAX_BANNER_CHARACTERS
        is_story = any(p.search(between) for p in (QUOTES, NARRATION, HEADING))
        if is_short and not is_story and is_advertisement(between.split("\n")[0]):
            rule_of |= dict.fromkeys(range(a, b + 1), "banners")
    return account.remove_lines(lines, rule_of)


def _may_be_advertisement(line: str) -> bool:
    """A fast test: whether a line has a phrase or a label of sites, or perhaps an address."""
    return bool(
        (len(line.strip()) <= MAX_ADVERTISEMENT_CHARACTERS and CALL.search(line))
        or MAY_BE_ADDRESS.search(line)
    )


def _other_letters(text: str) -> bool:
    """Whether a text without addresses has letters that belong to no phrase or word of sites."""
    return any(map(str.isalnum, SITE_TEXT.sub("", SIGN.sub("", text))))


def _announces(colon_line: str) -> bool:
    """Whether a line with a colon at its end belongs to the story, which then quotes the next."""
    return _other_letters(colon_line) and not HEADING.match(colon_line)


def _without_digits(text: str) -> str:
    return re.sub(r"\d+", "0", text)


def _repeated_calls(lines: list[str]) -> set[str]:
    """Lines, without digits, that stand at the edges of three chapters or more and are calls."""
    filled = [i for i, line in enumerate(lines) if line]
    starts = [n for n, i in enumerate(filled) if HEADING.match(lines[i])]
    edges = {
        i
        for n in [*starts, len(filled)]
        for i in filled[max(0, n - EDGE_LINES) : n + EDGE_LINES + 1]
    }
    counts = Counter(_without_digits(text) for i in edges if _is_call(text := lines[i].strip()))
    return {text for text, count in counts.items() if count >= MIN_REPEATS}


def _is_call(text: str) -> bool:
    """Whether a short text without narration begins or ends with a phrase or a label of sites.

    If it looks like a sentence, a label is not enough.
    """
    if len(text) > MAX_ADVERTISEMENT_CHARACTERS or QUOTES.search(text) or NARRATION.search(text):
        return False
    calls = list((SITE_PHRASE if SENTENCE.search(text) else CALL).finditer(text))
    return bool(calls) and not (
        _has_letters(text[: calls[0].start()]) and _has_letters(text[calls[-1].end() :])
    )


def _remove_watermarks(line: str, account: Account) -> str:
    """Removes the clauses that are advertisements with an address; the rest of the line stays."""
    if not ADDRESS.search(line):
        return line
    clauses = CLAUSE_BREAK.split(line)
    kept = "".join(
        account.record("addresses", clause)
        if ADDRESS.search(clause) and is_advertisement(clause, is_in_story=True)
        else clause
        for clause in clauses
    )
    if len(kept) == len(line):
        return line
    text = kept.rstrip()
    if text != kept:
        account.count("blanks at line ends", len(kept) - len(text))
    return text


def _has_letters(text: str) -> bool:
    return any(map(str.isalnum, text))


def _remove_scattered_watermarks(line: str, account: Account) -> str:
    """Removes a watermark with scattered signs from the middle of a clause of the story."""

    def replacement(mark: re.Match) -> str:
        start, end = mark.span()
        before = re.split("[，。；！？”」]", line[max(0, start - MAX_CLAUSE) : start])[-1]
        after = re.split("[，。；！？“「]", line[end : end + MAX_CLAUSE], maxsplit=1)[0]
        story_letters = sum(map(str.isalnum, before + after))
        if story_letters >= MIN_STORY_LETTERS and SITE_WORD.search(mark[0]):
            return account.record("addresses", mark[0])
        return mark[0]

    return SCATTERED_WATERMARK.sub(replacement, line)
