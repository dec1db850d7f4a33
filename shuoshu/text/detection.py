"""The encoding of a text: its mark, its form, or the one that fits its characters best."""

from __future__ import annotations

import codecs
import functools
import re
from collections import Counter
from collections.abc import Iterable

from shuoshu.core.errors import UserError

BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
UTF16_MIN_LINE_ENDS, UTF16_MIN_SHARE = 2, 0.3  # line ends that look like UTF-16's
CHINESE = ("gb18030", "big5hkscs")
ONLY_BY_HAND = {  # encodings that are recognised, but only read with --encoding
    "cp949": "Korean",
    "cp932": "Japanese",
    "euc_jp": "Japanese",
    "koi8-r": "Russian",
    "cp1251": "Russian",
}


def detect_encoding(head: bytes, is_whole: bool) -> tuple[str, int]:
    """(encoding, length of its byte order mark) of a file that begins with `head`.

    In this order: a byte order mark; valid UTF-8; line ends of UTF-16; else the encoding that fits
    the characters best. Raises UserError if none fits, or if that one is only read by hand.
    """
    for bom, encoding in BOMS:
        if head.startswith(bom):
            return encoding, len(bom)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=is_whole)
        if b"\0" not in head:
            return "utf-8", 0
    except UnicodeDecodeError:
        pass
    return _utf16_by_line_ends(head) or _best_fit(head, is_whole), 0


def _utf16_by_line_ends(head: bytes) -> str | None:
    newlines = head.count(b"\n")
    for encoding, line_end in (("utf-16-le", b"\n\0"), ("utf-16-be", b"\0\n")):
        aligned = sum(
            head[at : at + 2] == line_end
            for at in range(0, len(head) - 1, 2)
            if head[at] in (0, 10)
        )
        if aligned >= UTF16_MIN_LINE_ENDS and aligned > UTF16_MIN_SHARE * newlines:
            return encoding
    return None


# ---------------------------------------------------------------- the best fit

MIN_FIT = 0.4  # no encoding is chosen below it; lists of rare Chinese characters are just above
MAX_STRAY_PLACES = 3  # undecodable places of a text that is read as UTF-8 although nothing fits


def _best_fit(head: bytes, is_whole: bool) -> str:
    """The encoding that fits best; UTF-8 if none fits but at most a few places are undecodable."""

    def decoded(encoding: str) -> str:
        text = codecs.decode(head, encoding, "replace")
        return text if is_whole else text[:-2]  # the sample may end inside a character

    fits = {encoding: fit(decoded(encoding)) for encoding, fit in FITS.items()}
    for encoding, language in ONLY_BY_HAND.items():
        fits[encoding] = _language_fit(decoded(encoding), language)
    best = max(fits, key=fits.get)  # the first one of those that fit equally well
    if best in ONLY_BY_HAND and fits[best] >= MIN_FIT:
        raise UserError(
            f"it looks like {ONLY_BY_HAND[best]} text: set --encoding={best},"
            f" or --encoding={max(CHINESE, key=fits.get)} if it is Chinese"
        )
    if fits[best] >= MIN_FIT:
        return best
    if decoded("utf-8").count("�") > MAX_STRAY_PLACES:
        raise UserError(
            f"its encoding can't be detected ({' and '.join(sorted(FITS, key=fits.get)[:-3:-1])}"
            " fit best, but badly): it is not a text file, or its --encoding must be set"
        )
    return "utf-8"


# A fit is the share of the characters that such texts have less the share of those that they don't
# have, from 1 to -1. Only NULs and characters outside ASCII count: the others are alike in all
# encodings but UTF-16.


def _outside_ascii(text: str) -> str:
    return re.sub(r"[\1-\x7f]+", "", text)


def _fit(hits: int, characters: str) -> float:
    return (2 * hits - len(characters)) / max(1, len(characters))


def _utf8_fit(text: str) -> float:
    outside = _outside_ascii(text)
    return _fit(len(outside) - outside.count("�") - outside.count("\0"), outside)


def _utf16_fit(text: str) -> float:
    counts = Counter(text)
    known = frequent_characters("Chinese") | set(SMALL_LETTERS + CAPITALS + TYPOGRAPHIC)
    return _fit(sum(counts[c] for c in counts if "\t" <= c <= "~" or c in known), text)


# ---------------------------------------------------------------- Asian languages and Russian

EVERYDAY_WEIGHT = 0.3  # of the everyday characters in the fit of Chinese; frequent ones: the rest
EVERYDAY_SHARE = 0.2  # reached by almost every Chinese text; 0.07 or less if wrongly decoded
# One character outside ASCII after a Latin letter: often “’t” or “é” and a letter, read as a pair.
WORD_ENDS = re.compile(r"(?<=[A-Za-z])[^\0-\x7f](?![^\0-\x7f])")
MIN_DIFFERENT = 10  # characters, before a text is taken for Korean, Japanese or Russian
# First bytes of the signs, full-width forms, syllables and first-level characters of the standards.
FREQUENT = {
    "Chinese": {
        "gb2312": (0xA1, 0xA3, *range(0xB0, 0xD8)),
        "big5": (0xA1, *range(0xA4, 0xC7)),
    },
    "Korean": {"euc_kr": (0xA1, 0xA3, *range(0xB0, 0xC9))},
    "Japanese": {"euc_jp": (0xA1, 0xA3, 0xA4, 0xA5, *range(0xB0, 0xD0))},
}
# Small letters only: KOI8-R and Windows-1251 have each other's capitals in their place.
RUSSIAN_LETTERS = frozenset("абвгдежзийклмнопрстуфхцчшщъыьэюяё")
EVERYDAY_CHINESE = frozenset(
    "，。、：；？！“”「」『』《》（）…　的一不了是有在人个来我道上他大下用这子到出之说为那可时中"
    "行以里去也你要和得将着见数能无只此间如好头就后文过件三小前于曰没还们看天二地生房方回面酒又法十"
    "两者使自何定进对住入字多与店家公老很问么马分知而都信日听手起心名等便作务会服开从点已当把门正明"
    "事然水打包相兵其军提走她成本爷年口果表动发身设外所或内理同关却儿叫四声山路主太意取长处更程选今"
    "先因言式您王并目安接应但通位重令被命比据操些话至高给次引且指标往非常置请边新师未张早最项再必解"
    "经才想放五度第八空它输什合量现计气实月平西连吃若众真建变类弟格交工性带物样力户全算迟化结白死感"
    "铁加环国城员东父号别体器称语金台客德半机收少示吾觉车拿效告送百认原系即封风需阿根乃乎矣焉哉兮汝"
    "云亦皆既遂故豈岂個來這說為爲時裡裏將著見數無頭後過於沒還們兩進對與問麼聽從開點當門動發關卻聲長"
    "國會學間現實體氣話書馬東車師請認識讓給錢樣幾電視愛親難應該經結設號選輸變線類總務業員場產區單語"
    "讀寫記計論張風飛萬義處邊連達運遠聞輕陽陰歲覺雲鄉頁項檔內"
)


@functools.cache
def frequent_characters(language: str) -> frozenset[str]:
    """The characters that the standards of a language list as the frequent ones."""
    if language == "Russian":
        return RUSSIAN_LETTERS
    levels = (_level(codec, leads) for codec, leads in FREQUENT[language].items())
    return frozenset().union(*levels)


def _level(codec: str, leads: Iterable[int]) -> set[str]:
    """The characters of a two-byte encoding with these first bytes."""
    trails = (*range(0x40, 0x7F), *range(0xA1, 0xFF))
    pairs = (bytes((lead, trail)) for lead in leads for trail in trails)
    return {c for pair in pairs if len(c := pair.decode(codec, "ignore")) == 1}


def _chinese_fit(text: str) -> float:
    """The weighted shares of frequent and of everyday characters, less that of doubtful places.

    Rare words lower it to about 0.7. Korean in EUC-KR reaches 0.8: all its pairs are frequent ones.
    """
    outside = _outside_ascii(text)
    counts, n = Counter(outside), max(1, len(outside))
    frequent = sum(counts[c] for c in counts.keys() & frequent_characters("Chinese")) / n
    everyday = sum(counts[c] for c in counts.keys() & EVERYDAY_CHINESE) / n
    weighted = EVERYDAY_WEIGHT * min(1, everyday / EVERYDAY_SHARE)
    misses = counts["�"] + len(WORD_ENDS.findall(text))
    return (1 - EVERYDAY_WEIGHT) * frequent + weighted - misses / n


def _language_fit(text: str, language: str) -> float:
    outside = _outside_ascii(text)
    counts = Counter(outside)
    found = counts.keys() & frequent_characters(language)
    return _fit(sum(counts[c] for c in found), outside) if len(found) >= MIN_DIFFERENT else 0


# ---------------------------------------------------------------- Western European languages

# A text with more accented letters than usual has those of one language. Czech, Hungarian, Russian
# decoded as Windows-1252 has those of several.
USUAL_ACCENTS, USUAL_ACCENT_SHARE = 5, 0.08
ALPHABETS = ("àâæçéèêëîïôœùû", "äöüß", "áéíñóúü", "àáâãçéêíóôõú", "àèéìîòù", "åäéöæø")
MIN_ALPHABET_SHARE = 0.95
SMALL_LETTERS = "àáâãäåæçèéêëìíîïñòóôõöøùúûüßœ"
CAPITALS = "ÀÁÂÃÄÅÆÇÈÉÊËÍÎÏÑÒÓÔÕÖØÚÛÜŒ"
TYPOGRAPHIC = "“”‘’„‚«»‹›…–—•\xa0"
WESTERN_PLACES = re.compile(  # one character outside ASCII in a place where such texts have it
    "|".join(
        (
            rf"[{SMALL_LETTERS}](?=[a-z{SMALL_LETTERS}])",
            rf"(?<=[A-Za-z{SMALL_LETTERS}])[{SMALL_LETTERS}]",
            rf"(?<![a-z])[{CAPITALS}](?=[A-Za-z])",
            rf"(?<=[A-Z])[{CAPITALS}](?![a-z])",
            r"\b[àáâèéêóôæåÀÁÂÉÈÊÓÔÅ]\b",  # words of one letter
            r"[’‘–—…·\xa0\xad]",
            r"(?<![A-Za-z])[“”«»‹›„‚]",
            r"[“”«»‹›](?![A-Za-z])",
            rf"(?<![A-Za-z])[¡¿](?=[«“]|[A-Za-z{CAPITALS}][A-Za-z{SMALL_LETTERS}{CAPITALS} ])",
            r"[£€] ?(?=\d)|(?<=\d)[£€]|(?<=\d )[£€]",
            r"(?<=\d)[°ºª²³½¼¾×]|(?<=\d )[°½¼¾]|(?<=[nN])[ºª°]",
            r"§(?=[ \d])|[©®™•†](?![A-Za-z])",
        )
    )
)


def _western_fit(text: str) -> float:
    outside = _outside_ascii(text)
    accents = [c for c in outside if c in SMALL_LETTERS]
    if len(accents) > USUAL_ACCENTS + USUAL_ACCENT_SHARE * sum(map(str.isalpha, text)):
        largest = max(sum(c in alphabet for c in accents) for alphabet in ALPHABETS)
        if largest < MIN_ALPHABET_SHARE * len(accents):
            return 0
    return _fit(len(WESTERN_PLACES.findall(text)), outside)


FITS = {  # encodings that are read; Windows-1252 includes the characters of ISO-8859-1
    "utf-8": _utf8_fit,
    "cp1252": _western_fit,
    "iso8859-15": _western_fit,
    **dict.fromkeys(CHINESE, _chinese_fit),
    "utf-16-le": _utf16_fit,
    "utf-16-be": _utf16_fit,
}
