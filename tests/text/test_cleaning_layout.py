"""Cleaning: headings, layout and markup."""

from __future__ import annotations

import re

import pytest

from shuoshu.text.cleaning import HEADING, clean_text, heading_key
from tests.text.cleaning_helpers import STORY, clean, is_exact

# ---------------------------------------------------------------- headings


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("第一回", ("回", "1")),
        ("第01回 渡口夜雨 故人归来", ("回", "1")),
        ("第　一　回　渡口夜雨", ("回", "1")),
        ("第 十一 回　　渡口夜雨", ("回", "11")),
        ("正文 第一回 渡口夜雨", ("回", "1")),
        ("    正文　第七十三回　渡口夜雨 ", ("回", "73")),
        ("第一百零三章", ("章", "103")),
        ("第一百三章 夜雨", ("章", "103")),
        ("第一〇三章：夜雨", ("章", "103")),
        ("第１０３章 夜雨", ("章", "103")),
        ("第廿一回、夜雨", ("回", "21")),
        ("第二十回．夜雨", ("回", "20")),
        ("第两千零一十节 夜雨", ("节", "2010")),
        ("第壹佰" + "回", None),
        ("第拾贰卷", ("卷", "12")),
        ("第三部 北山", ("部", "3")),
        ("第四折 还债", ("折", "4")),
        ("Chapter 12", ("chapter", "12")),
        ("CHAPTER XII.", ("chapter", "xii")),
        ("Chapter 3: The Quay", ("chapter", "3")),
    ],
)
def test_headings_of_all_forms_are_found(line: str, key: tuple[str, str] | None) -> None:
    result = HEADING.search(f"序。\n{line}\n文。\n")
    assert bool(result) == bool(key)
    assert not result or heading_key(result[0]) == key


@pytest.mark.parametrize(
    "line",
    [
        "第三回合，沈砚才看清那人的刀。",
        "第三回合 沈砚胜",
        "第一回见到她时，雨正下着。",
        "第二日 天明",
        "第二日天明起来，沈砚去了渡口。",
        "第一拨船上，坐的都是老人。",
        "第三节课下了以后，他才走。",
        "第五章的纸已经发黄了。",
        "第　　回　不知谁撕去了数字",
        "第回 夜雨",
        "第几回 夜雨",
        "正文 第一回见面",
        "Chapter and verse, he said.",
        "Chapters 1 to 3 were lost.",
    ],
)
def test_prose_that_begins_like_a_heading_is_kept(line: str) -> None:
    assert not HEADING.search(f"序。\n{line}\n文。\n")
    assert clean(line) == line


@pytest.mark.parametrize("line", ["第　回 夜雨", "第 回", "第 \t 章\n第 \t 章"])
def test_a_heading_without_a_number_raises_nothing(line: str) -> None:
    text, account = clean_text("\n".join([*STORY, line, line, *STORY]))
    assert is_exact(account) and all(paragraph in text for paragraph in STORY)


@pytest.mark.parametrize(
    "numeral",
    [
        "百",
        "十十",
        "千百十",
        "0十",
        "廿卅",
        "１２十",
        "零",
        "〇",
        "一二三四五六七八九十百千",
        "壹拾百",
        "　一",
        "万",
    ],
)
def test_any_numeral_has_a_key(numeral: str) -> None:
    for line in (f"第{numeral}章", f"第{numeral}章 夜雨"):
        if HEADING.match(line):
            assert heading_key(line)[0] == "章"
        clean_text(f"{line}\n{line}\n{line} 甲\n")


# ---------------------------------------------------------------- layout


def test_every_kind_of_line_end_becomes_a_newline() -> None:
    text, account = clean_text("a\r\nb\rc\x0bd\x0ce\x85f\u2028g\u2029h\n\ri")
    assert text == "a\nb\nc\nd\ne\nf\ng\nh\n\ni\n"
    assert is_exact(account) and account.places["line ends"] == 9


def test_invisible_characters_are_removed() -> None:
    text, account = clean_text("\ufeff雨\0夜\u200b归\u00ad人\u202e。\x1b\x7f\n")
    assert text == "雨夜归人。\n"
    assert account.removed["invisible characters"] == 7


def test_emoji_joiners_and_private_use_and_rare_characters_are_kept() -> None:
    for line in ("\ue123\uf8ff", "\U00020bb7㐂", "𠮷", "〇々〆", "ｱｲｳ", "ＡＢＣ"):
        assert clean(line) == line


def test_indents_and_trailing_spaces_are_removed_and_blank_lines_merged() -> None:
    text, account = clean_text("\n\n　　沈砚来了。 　\n \n　\n\n    柳青禾走了。\t\n\xa0\n\n")
    assert text == "沈砚来了。\n\n柳青禾走了。\n"
    assert is_exact(account)


@pytest.mark.parametrize("first", ["沈", "“", "《", "…", "—", "〇", "\ue123", "𠮷", "Ａ"])
def test_an_indent_before_any_kind_of_chinese_is_removed(first: str) -> None:
    assert clean(f"　　{first}，那人说。") == f"{first}，那人说。"


@pytest.mark.parametrize(
    "line", ["    To the sea, to the sea,", "\tthe gulls cry,", "沈砚  柳青禾　赵铁匠", "a  b"]
)
def test_indents_of_english_verse_and_spaces_within_a_line_are_kept(line: str) -> None:
    assert clean(line) == line


def test_a_text_without_a_final_newline_gets_one() -> None:
    assert clean_text("雨")[0] == "雨\n"
    assert clean_text("雨\n")[0] == "雨\n"


@pytest.mark.parametrize("text", ["", "\n", "  \n\t\n", "\ufeff", "\0"])
def test_an_empty_text_becomes_one_newline(text: str) -> None:
    cleaned, account = clean_text(text)
    assert cleaned == "\n" and is_exact(account) and account.read == len(text)


# ---------------------------------------------------------------- markup


@pytest.mark.parametrize(
    ("line", "rest"),
    [
        ("沈砚<!--script>别处的句子<script-->走了。", "沈砚走了。"),
        ("沈砚<script>var a = '雨';</script>走了。", "沈砚走了。"),
        ('沈砚<font color="red">走</font>了<B>。</B>', "沈砚走了。"),
        ("沈砚走了。<br/>柳青禾也走了。<BR>", "沈砚走了。\n柳青禾也走了。"),
        ("<p>沈砚走了。</p>", "沈砚走了。"),
        ("&ldquo;走吧。&rdquo;沈砚说&#12290;&hellip;&#x2026;", "“走吧。”沈砚说。……"),
        ("&quot;Go,&quot; he said &amp; went.", '"Go," he said & went.'),
    ],
)
def test_markup_is_removed_and_entities_are_decoded(line: str, rest: str) -> None:
    assert "\n".join(part for part in clean(line).split("\n") if part) == rest


@pytest.mark.parametrize(
    "line",
    [
        "那人姓<山兜>，住在<上雨下单>村。",
        "a < b and c > d, he wrote.",
        "<沈砚>",
        "他写道：<<北山记>>。",
        "<baby> was all it said.",
        "<center of the town> was all the label said.",
        "<|endoftext|>",
        "R&D; AT&T; &; &nothing; &copy",
        "沈砚<br",
        "<!-- 没有结束",
    ],
)
def test_text_that_only_looks_like_markup_is_kept(line: str) -> None:
    assert clean(line) == line


@pytest.mark.parametrize(
    "entity",
    [
        "&#11;",
        "&#1;",
        "&#x1f;",
        "&#0;",
        "&#00;",
        "&#x0;",
        "&#65534;",
        "&#xD800;",
        "&#999999;",
        "&#xFFFFF;",
        "&#127;",
        "&#133;",
        "&#10;",
        "&#8232;",
    ],
)
def test_an_entity_without_a_character_raises_nothing(entity: str) -> None:
    result = clean(f"沈砚{entity}走了。")
    assert re.fullmatch("沈砚.?走了。", result) and "&" not in result


@pytest.mark.parametrize(
    "line",
    [
        "沈砚走了。&nbsp;",
        "&nbsp;&nbsp;沈砚走了。&nbsp;&#12288;",
        "沈砚走了。 <b></b>",
        "沈砚走了。 <br/>",
        "<p> 沈砚走了。 </p>",
    ],
)
def test_removed_markup_leaves_no_trailing_spaces(line: str) -> None:
    assert clean(line).strip("\n") == "沈砚走了。"


def test_blank_lines_made_by_markup_are_blank_lines() -> None:
    assert (
        clean("沈砚走了。\n&nbsp;\n<p></p>\n&nbsp;\n柳青禾也走了。")
        == "沈砚走了。\n\n柳青禾也走了。"
    )
