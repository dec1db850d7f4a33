"""Cleaning: what each rule removes, what it must keep, and the account of every character."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shuoshu.text.cleaning import HEADING, Account, clean_text, heading_key

# Paragraphs that match no rule: the story around the text of a test.
STORY = [
    "沈砚把油灯拨亮了些，窗外的雨还没有停。",
    "柳青禾推门进来，抖了抖蓑衣上的水，说：“船是走不成了。”",
    "“你还要去吗？”她问。",
    "老船夫在灶边烤火，一句话也不说，只把烟斗敲了两下，灰落在青砖上。",
    "远处有人敲了三更。",
    "那一夜，谁也没有睡着……",
]


def clean(line: str, **settings: bool) -> str:
    """A line, cleaned in the middle of a story; the story must not change."""
    text, account = clean_text("\n".join([*STORY, line, *STORY]) + "\n", **settings)
    assert account.is_exact()
    lines = text.split("\n")
    assert lines[: len(STORY)] == STORY and lines[-len(STORY) - 1 : -1] == STORY and lines[-1] == ""
    return "\n".join(lines[len(STORY) : -len(STORY) - 1])


def rules(text: str) -> set[str]:
    return set(clean_text(text)[1].pieces)


def chapters(text: str) -> list[str]:
    return [" ".join(m[1].split()) for m in HEADING.finditer(clean_text(text)[0])]


def chapter(heading: str, seed: int = 0) -> str:
    """A heading and a chapter of prose."""
    return f"{heading}\n" + "".join(f"{line}\n" for line in STORY[seed % 6 :] + STORY[: seed % 6])


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
    assert account.is_exact() and all(paragraph in text for paragraph in STORY)


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
    assert account.is_exact() and account.places["line ends"] == 9


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
    assert account.is_exact()


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
    assert cleaned == "\n" and account.is_exact() and account.read == len(text)


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


# ---------------------------------------------------------------- Project Gutenberg

BEFORE = "The Project Gutenberg EBook of The Quay, by Nobody\n\nThis eBook is for the use of anyone anywhere.\n\n"
AFTER = "\nEnd of the Project Gutenberg EBook\n\nYou may copy it under the terms of the License.\n"
QUAY = "CHAPTER I. The Quay\n\nThe lamp was still lit.\n"


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (
            "*** START OF THE PROJECT GUTENBERG EBOOK THE QUAY ***",
            "*** END OF THE PROJECT GUTENBERG EBOOK THE QUAY ***",
        ),
        (
            "***START OF THIS PROJECT GUTENBERG EBOOK THE QUAY***",
            "***END OF THIS PROJECT GUTENBERG EBOOK THE QUAY***",
        ),
        (
            "*** START OF THE PROJECT GUTENBERG EBOOK 第一夜 ***",
            "*** END OF THE PROJECT GUTENBERG EBOOK 第一夜 ***",
        ),
    ],
)
def test_gutenbergs_header_and_licence_are_removed(start: str, end: str) -> None:
    text, account = clean_text(f"{BEFORE}{start}\n\n{QUAY}\n{end}\n{AFTER}")
    assert text == QUAY
    assert set(account.pieces) == {"licence"} and account.is_exact()


def test_a_mention_of_gutenberg_is_kept() -> None:
    line = "He said that the Project Gutenberg had START and END lines."
    assert clean(line) == line


def test_two_gutenberg_books_in_one_file_are_kept() -> None:
    one = f"{BEFORE}*** START OF THE PROJECT GUTENBERG EBOOK THE QUAY ***\n{QUAY}*** END OF THE PROJECT GUTENBERG EBOOK THE QUAY ***\n{AFTER}"
    text = clean_text(one + one.replace("Quay", "Ferry").replace("lamp", "torch"))[0]
    assert "The lamp was still lit." in text and "The torch was still lit." in text
    assert "License" not in text and "GUTENBERG" not in text.upper()


# ---------------------------------------------------------------- banners

RULER = "=" * 30


@pytest.mark.parametrize(
    "ruler", ["========", "－－－－－－－－－－", "☆★☆★☆★☆★", "----------", "　　**********"]
)
def test_a_banner_between_rulers_is_removed(ruler: str) -> None:
    assert (
        clean(
            f"{ruler}\n本书由雨夜社区：http://www.yuye.example.com/ 整理\n为每一位爱好文字的人服务，\n也为您的时尚阅读。\n{ruler}"
        )
        == ""
    )


@pytest.mark.parametrize(
    "lines",
    [
        f"{RULER}\n沈砚绝笔\n{RULER}",
        f"{RULER}\n北山记\n\n卷上\n{RULER}",
        f"{RULER}",
        f"{RULER}\n{RULER}",
        "……\n她走了。\n……",
        "------\n走吧。\n------",
    ],
)
def test_rulers_without_an_address_between_them_are_kept(lines: str) -> None:
    assert clean(lines) == lines


def test_a_scene_between_rulers_that_mentions_an_address_is_kept() -> None:
    scene = "\n".join([*STORY, "“你去www.yuye.com看看吧。”他说。", *STORY])
    assert clean(f"{RULER}\n{scene}\n{RULER}") == f"{RULER}\n{scene}\n{RULER}"


def test_a_scene_between_rulers_with_an_advertisement_in_it_is_kept() -> None:
    result = clean(
        "\n".join([RULER, *STORY, "一秒记住雨夜书屋，为您提供精彩小说阅读。", *STORY, RULER])
    )
    assert (
        "一秒记住" not in result
        and [line for line in result.split("\n") if line in STORY] == STORY + STORY
    )


def test_a_heading_between_rulers_is_kept() -> None:
    result = clean(f"{RULER}\n第一章 渡口\n更新时间:2007-11-16 7:55:51 本章字数:4804\n{RULER}")
    assert "第一章 渡口" in result and "更新" not in result


def test_rulers_far_apart_are_not_a_banner() -> None:
    lines = [f"第{n}盏灯灭了，河上又暗了一分。" for n in "一二三四五六七八九十"] * 2
    assert clean("\n".join([RULER, "www.yuye.com", *lines, RULER])).split("\n") == [
        RULER,
        *lines,
        RULER,
    ]


# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    "line",
    [
        "www.yuye-shuwu.com",
        "　　【小说下载尽在雨夜CC http://www.yuye.cc 】",
        "雨夜在线书库《www.yuyeshuku.com》",
        "更多好书请到 http://www.yuye.net/book/12/index.html 阅读",
        "小^说^网^ｗｗｗ．ｙ^ｕ^ｙ^ｅ．ｃｏｍ^更新最快",
        "ＷＷＷ．ＹＵＹＥ．ＣＯＭ 雨夜书屋 首发",
        "w*w*w.y*u*y*e.c*o*m 小说阅读",
        "手机用户请浏览m.yuye.com阅读，更优质的阅读体验。",
        "雨夜书吧ｗｗｗ·yuye·ｎｅｔ整理",
    ],
)
def test_an_advertisement_line_with_an_address_is_removed(line: str) -> None:
    assert clean(line) == ""


@pytest.mark.parametrize(
    "line",
    [
        "“你去www.yuye.com看看，那里有我写的小说。”他说。",
        "「登上 http://www.yuye.com 就能阅读。」",
        "她打开电脑。网址是www.yuye.com，她记得很清楚。那天夜里她看到很晚。",
        "他登上www.yuye.com，看了半夜的新闻。",
        "她的信箱是 qinghe@yuye.com，十年没有换过。",
        "他给 qinghe@mail.yuye.com.cn 写了最后一封信。",
        "The site was www.example.com, she said.",
        "No. 7, Mr. Shen and the U.S. Navy went to St. Petersburg.",
        "他排在第3.5位，得了98.6分。",
        "e.g. this, i.e. that, a.m. and p.m.",
    ],
)
def test_addresses_in_the_story_are_kept(line: str) -> None:
    assert clean(line) == line


LONG = "沈砚沿着河堤走了很久，柳枝垂到水面上，渡船还系在老地方，船夫的女儿蹲在石阶上洗衣裳，见他来了，只抬头看了一眼，又低下头去，把一件青布衫翻过来，慢慢地搓。"


@pytest.mark.parametrize(
    "watermark",
    [
        "雨夜在线书库《www.yuye.com》",
        "更多小说请到www.yuye.com阅读。",
        "小^说^网ｗｗｗ．ｙｕｙｅ．ｃｏｍ更新最快！",
        "（本书由雨夜书屋http://www.yuye.com/整理提供）",
    ],
)
def test_an_advertisement_at_the_end_of_a_paragraph_is_removed_alone(watermark: str) -> None:
    assert clean(LONG + watermark) == LONG
    assert clean(LONG + watermark + "天快黑了。") == LONG + "天快黑了。"


def test_a_watermark_with_inserted_signs_is_removed_alone():
    for mark in (
        "小^说^网ｗｗｗ．ａｂｃ．ｃｏｍ",
        "小*说*w*w*w.y*u*y*e.c*o*m",
        "小^说^…www.yuye.com",
    ):
        text, account = clean_text(f"沈砚推开木门{mark}走了进去，没有回头。\n")
        assert (
            text == "沈砚推开木门走了进去，没有回头。\n"
            and account.pieces["addresses"] == [mark]
            and account.is_exact()
        )
    assert (
        clean_text("沈砚来了。\n小^说^…ＷＷＷ．ｘ^ｉ^ａ^ｏ．ｃｏｍ…更新最快\n")[0] == "沈砚来了。\n"
    )


@pytest.mark.parametrize(
    "watermark",
    [
        "小^说^无广告www.yuye.com更新最快，",
        "雨夜书屋ｗｗｗ．ｙｕｙｅ．ｃｏｍ提供下载，",
        "最新小说尽在w^w^w.y^u^y^e.c^o^m，",
    ],
)
@pytest.mark.parametrize("around", ["", LONG])
def test_a_watermark_inside_a_sentence_is_removed_alone(watermark: str, around: str) -> None:
    result = clean(f"{around}沈砚推开木门，{watermark}院子里空无一人。{around}")
    assert result == f"{around}沈砚推开木门，院子里空无一人。{around}"


# ---------------------------------------------------------------- notices


@pytest.mark.parametrize(
    "line",
    [
        "    更新时间:2007-11-16 7:55:51 本章字数:4804",
        "------章节内容开始-------",
        "一秒记住【雨夜阁】，为您提供精彩小说阅读。",
        "（本章完）",
        "(未完待续。如果您喜欢这部作品，欢迎投推荐票)",
        "上一页 返回目录 下一页",
        "请记住本站",
        "本章未完，点击下一页继续阅读",
        "作品仅供读者预览,请在下载24小时内删除",
        "请您购买请购买正版图书!",
        "本书版权归作者所有",
        "ps：今天第三更，求月票",
        "更多精彩小说",
        "OCR：某某",
    ],
)
def test_a_sites_notice_is_removed(line: str) -> None:
    assert clean(line) == ""


@pytest.mark.parametrize(
    "line",
    [
        "他收藏了一屋子的旧墨，更新换代的事从不理会。",
        "她把书稿整理好，推荐给了城南的书局。",
        "正文写到这里，本章也该收住了。",
        "沈砚更新了账簿，在首页写下日期。",
        "“求月票是什么？”她问。",
        "“本书版权归我。”他笑道。",
        "这本书他读了三遍，阅读时总要点一盏灯。",
        "且听下回分解。",
        "要知端的，且看下文分解。",
        "毕竟沈砚性命如何，且听下回分解。",
        "目录贴在门上，谁都看得见。",
        "作者已经死了一百年。",
        "下载的人都走了，只剩他一个。",
        "□□□",
        "* * *",
        "他手打铁器，一日不停。",
        "□【音“此”，踩之意】",
        "那匹马【左玄右旅】身长八尺。",
        "【舟冓】【舟鹿】大小船只，共七百艘。",
        "他按住{髟的}[犭票]，叫了一声。",
    ],
)
def test_ordinary_words_that_sites_also_use_are_kept(line: str) -> None:
    assert clean(line) == line


def test_a_notices_words_in_a_long_paragraph_are_kept() -> None:
    line = LONG + "他后来在一本书的末尾读到，本书不得转载四个字，忽然想起这一天。"
    assert clean(line) == line


def test_repeated_formulae_verse_and_names_are_kept() -> None:
    lines = [
        "诗曰：",
        "青灯照壁人初睡",
        "冷雨敲窗被未温",
        "且听下回分解。",
        "沈砚",
        "柳青禾",
        "赵铁匠",
        "白先生",
        "陆小舟",
        "且听下回分解。",
        "且听下回分解。",
        "沈砚",
    ]
    assert clean("\n".join(lines)) == "\n".join(lines)


# ---------------------------------------------------------------- headings in the text


def test_zhengwen_is_removed_only_before_a_heading() -> None:
    text, account = clean_text(
        chapter("正文 第一章 渡口") + "　　正文写到一半。\n" + chapter("　　正文　第二章 茶楼")
    )
    assert text == chapter("第一章 渡口") + "正文写到一半。\n" + chapter("第二章 茶楼")
    assert account.pieces == {"正文": ["正文 ", "正文　"]}


NAMES = ["渡口", "茶楼", "石桥", "驿站", "北山", "归舟"]
NUMERALS = "一二三四五六"
BODY = "".join(
    chapter(f"第{n}章 {name}", i) for i, (n, name) in enumerate(zip(NUMERALS, NAMES, strict=True))
)


@pytest.mark.parametrize("gap", ["\n", "\n\n"])
@pytest.mark.parametrize(
    "form", ["第{n}章 {name}", "　第 {n} 章　　{name}", "第{n}章", "第{n}章 {name}……12"]
)
def test_a_table_of_contents_is_removed(form: str, gap: str) -> None:
    contents = gap.join(
        form.format(n=n, name=name) for n, name in zip(NUMERALS, NAMES, strict=True)
    )
    for between in ("\n", "\n\n\n", "\n本书讲的是一座渡口。\n"):
        text, account = clean_text(f"{contents}{between}{BODY}")
        assert text == between.strip("\n") + ("\n" if between.strip() else "") + BODY
        assert len(account.pieces["contents"]) == 6 and account.is_exact()


def test_a_table_of_contents_at_the_end_is_removed() -> None:
    assert clean_text(BODY + "\n".join(re.findall("^第.*", BODY, re.M)) + "\n")[0] == BODY


def test_headings_close_together_that_occur_once_are_kept() -> None:
    names = "".join(f"第{n}章 {name}\n" for n, name in zip(NUMERALS, NAMES, strict=True))
    assert clean_text(names + STORY[0] + "\n")[0] == names + STORY[0] + "\n"


VOLUMES = [
    f"第{v}卷 {name}" if c is None else f"第{c}章 {name}{v}"
    for v, name in zip("一二三", NAMES, strict=False)
    for c in (None, *"一二三四")
]  # fmt: skip


def test_volumes_that_restart_their_chapter_numbers_are_kept() -> None:
    text = "".join(
        line + "\n" if "卷" in line else chapter(line, i) for i, line in enumerate(VOLUMES)
    )
    assert clean_text(text)[0] == text


def test_contents_of_volumes_that_restart_their_numbers_are_removed_alone() -> None:
    text = "".join(
        line + "\n" if "卷" in line else chapter(line, i) for i, line in enumerate(VOLUMES)
    )
    assert chapters("\n".join(VOLUMES) + "\n\n" + text) == VOLUMES
    assert clean_text("\n".join(VOLUMES) + "\n\n" + text)[0] == text


@pytest.mark.parametrize(
    ("lines", "stays"),
    [
        (["第一章 渡口", "第一章 渡口"], "第一章 渡口"),
        (["第一章", "", "第一章 渡口"], "第一章 渡口"),
        (["第一章 渡口 夜雨", "　　第1章　渡口"], "第一章 渡口 夜雨"),
        (["第01章 渡口", "第一章 渡口", "第一章 渡口"], "第01章 渡口"),
        (["第一章 渡口", "第一章", "第一章 渡口 夜雨"], "第一章 渡口 夜雨"),
    ],
)
def test_the_longer_of_doubled_headings_is_kept(lines: list[str], stays: str) -> None:
    assert clean("\n".join(lines)).strip() == stays


@pytest.mark.parametrize(
    "lines",
    [
        ["第一章 渡口", "第二章 茶楼"],
        ["第一卷 南行", "第一章 渡口"],
        ["第一章 渡口", "第一章 茶楼"],
        ["第一章 渡口", STORY[0], "第一章 渡口"],
    ],
)
def test_headings_that_are_not_doubled_are_kept(lines: list[str]) -> None:
    assert clean("\n".join(lines)).split("\n") == lines


# ---------------------------------------------------------------- front matter


@pytest.mark.parametrize(
    "front",
    [
        "《渡口》（精校版）作者：某某\n\n内容简介：\n　　一座渡口的故事。\n\n",
        "作品：渡口\n作者：某某\n简介\n一个人，一座渡口。\n　　正文\n",
        "[渡口 / 某某 著 ]\n",
        "渡口\n目　录\n",
    ],
)
def test_front_matter_is_removed(front: str) -> None:
    text, account = clean_text(front + BODY)
    assert text == BODY and set(account.pieces) == {"front matter"} and account.is_exact()


@pytest.mark.parametrize(
    "front",
    [
        "".join(f"{line}\n" for line in STORY),
        "《渡口》\n\n",
        "楔子 那年冬天\n"
        + "".join(f"{line}\n" for line in STORY)
        + "　　那人便是这本书的作者：沈砚。\n".strip("　"),
        "楔子\n他写了一篇简介。\n",
        "引子：夜雨\n目录贴在墙上。\n",
        "序\n作者：某某\n",
        "这里没有标题，却是故事的开头。" + LONG * 8 + "\n简介贴在墙上。\n",
    ],
)
def test_a_prologue_is_kept(front: str) -> None:
    assert clean_text(front + BODY)[0] == front + BODY


def test_text_before_the_prologue_is_removed_alone() -> None:
    prologue = "楔子 那年冬天\n" + "".join(f"{line}\n" for line in STORY)
    assert (
        clean_text("作者：某某\n内容简介：一座渡口。\n\n" + prologue + BODY)[0] == prologue + BODY
    )


def test_without_five_headings_nothing_is_front_matter() -> None:
    text = "作者：某某\n" + chapter("第一章 渡口") + chapter("第二章 茶楼")
    assert clean_text(text)[0] == text


# ---------------------------------------------------------------- without cleaning

WRAPPED = [
    "　　他沿着河堤走了很久，柳枝垂到水面上，渡船还系在老地方，船",
    "夫的女儿蹲在石阶上洗衣裳，见他来了，只抬头看了一眼，又低下头",
    "去，把一件青布衫翻过来，慢慢地搓，搓完了又放在水里漂了一漂才",
    "拧干了，搭在竹竿上。",
]
HAZARDS = [
    "========",
    "-" * 40,
    "www.yuye.com",
    "雨夜在线书库《www.yuye.com》",
    "本书由雨夜书屋 http://www.yuye.com/ 整理",
    LONG + "更多小说请到www.yuye.com阅读。",
    "小^说^网ｗｗｗ．ｙ^ｕ^ｙ^ｅ．ｃｏｍ更新最快",
    "更新时间:2007-11-16 7:55:51 本章字数:4804",
    "（本章完）",
    "第一章 渡口",
    "第一章",
    "正文 第二章 茶楼",
    "　　第　三　章　　石桥",
    "第三章 石桥",
    "第四章",
    "Chapter 5",
    "CHAPTER VI. The Quay",
    "楔子",
    "作者：某某",
    "内容简介：",
    "目录",
    "正文",
    "",
    " ",
    "　",
    "&nbsp;",
    "&quot;雨&quot;&hellip;",
    "&amp;lt;b&amp;gt;",
    "<p>沈砚</p>",
    "沈砚<br/>柳青禾<br>",
    "<!-- 广告 -->",
    "<script>var a;</script>",
    "<山兜>",
    "*** START OF THE PROJECT GUTENBERG EBOOK ***",
    "*** END OF THE PROJECT GUTENBERG EBOOK ***",
    *WRAPPED,
    "\0\u200b\ufeff",
    "\x85",
    "\r",
    "\ufffd\ue123",
]
ENDS = ["\n", "\r\n", "\r", "\n\n", "\n\n\n", " \n", "　\r\n\r\n"]
MIXTURE = st.lists(
    st.tuples(st.sampled_from(HAZARDS + STORY), st.sampled_from(ENDS)), max_size=30
).map(lambda pairs: "".join(a + b for a, b in pairs))
LAYOUT_RULES = {
    "line ends",
    "invisible characters",
    "blanks at line ends",
    "wrapped lines",
    "indentation",
    "blank lines",
}


def letters(text: str) -> str:
    """The text without its layout."""
    return re.sub(
        "[\\s\x00-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]+", "", text
    )


@given(text=MIXTURE | st.text(max_size=60))
@example(text="\n".join(HAZARDS))
def test_without_cleaning_a_text_only_changes_its_layout(text: str) -> None:
    cleaned, account = clean_text(text, remove=False)
    assert letters(cleaned) == letters(text)
    assert not account.pieces and set(account.places) <= LAYOUT_RULES
    assert account.is_exact()


# ---------------------------------------------------------------- the account


def checked(text: str, remove: bool) -> str:
    """The cleaned text; asserts all that must hold for any text and its account."""
    cleaned, account = clean_text(text, remove)
    assert account.read == len(text) and account.kept == len(cleaned) and account.is_exact()
    assert (
        cleaned.endswith("\n")
        and "\n\n\n" not in cleaned
        and "\r" not in cleaned
        and (cleaned == "\n" or cleaned[0] != "\n")
    )
    assert not re.search(r"[ \t　\xa0]+$", cleaned, re.MULTILINE)
    assert all(
        count >= 0
        for counts in (account.places, account.removed, account.added)
        for count in counts.values()
    )
    assert all(account.places[rule] == len(pieces) for rule, pieces in account.pieces.items())
    assert all(
        account.removed[rule] == sum(map(len, pieces)) for rule, pieces in account.pieces.items()
    )
    return cleaned


@given(text=st.text(max_size=300), remove=st.booleans())
def test_the_account_of_any_text_is_exact(text: str, remove: bool) -> None:
    checked(text, remove)


@given(text=MIXTURE, remove=st.booleans())
@example(text="\n".join(HAZARDS), remove=True)
@example(text="\n".join(reversed(HAZARDS)), remove=True)
def test_the_account_of_a_text_of_hard_cases_is_exact(text: str, remove: bool) -> None:
    checked(text, remove)


@given(text=MIXTURE, remove=st.booleans())
def test_cleaning_a_cleaned_text_changes_nothing(text: str, remove: bool) -> None:
    for line in (
        *WRAPPED,
        "&amp;",
    ):  # wrapped lines are recognised by indents, too; &amp;lt; must become &lt; only
        text = text.replace(line, "")
    once = clean_text(text, remove)[0]
    assert clean_text(once, remove)[0] == once


@given(text=st.text(max_size=200))
def test_cleaning_any_cleaned_text_changes_nothing(text: str) -> None:
    once = clean_text(text)[0]
    assert clean_text(once)[0] == once


@given(data=st.data())
def test_no_paragraph_is_lost_whatever_surrounds_it(data: st.DataObject) -> None:
    around = [
        h for h in HAZARDS if not re.search("GUTENBERG|简介|作者|^目录$|^正文$|^[=-]+$", h)
    ]  # rules that remove whole passages have their own tests
    hazard = st.sampled_from(around)
    lines = data.draw(
        st.lists(
            st.tuples(st.sampled_from(["", "　　", "    ", "\t"]), st.sampled_from(STORY))
            | st.tuples(st.just(""), hazard),
            max_size=30,
        )
    )
    end = data.draw(st.sampled_from(ENDS))
    text = clean_text("".join(indent + line + end for indent, line in lines))[0]
    story_lines = re.findall("|".join(map(re.escape, STORY)), text)
    assert story_lines == [line for _, line in lines if line in STORY]


@given(
    lines=st.lists(st.sampled_from([*STORY, LONG]), min_size=1, max_size=20), remove=st.booleans()
)
def test_a_story_without_hard_cases_is_not_changed(lines: list[str], remove: bool) -> None:
    text = "\n".join(lines) + "\n"
    cleaned, account = clean_text(text, remove)
    assert cleaned == text and not account.places


def test_accounts_add_up() -> None:
    one, other = clean_text(HAZARDS[2] + "\r\n雨\r\n")[1], clean_text("　　夜\n（本章完）\n\n")[1]
    total = Account()
    for account in (one, other):
        total.add(account)
    assert (
        total.is_exact()
        and total.read == one.read + other.read
        and total.kept == one.kept + other.kept
    )
    assert total.pieces == one.pieces | other.pieces
    assert all(
        total.removed[rule] == one.removed[rule] + other.removed[rule] for rule in total.places
    )


def test_an_account_that_misses_a_character_is_not_exact() -> None:
    account = clean_text("雨\n夜\r\n")[1]
    account.kept -= 1
    assert not account.is_exact()


# ---------------------------------------------------------------- time


@pytest.mark.parametrize(
    "piece",
    [
        " ",
        "　",
        "\t",
        "\n",
        " \n",
        "\r",
        "\xa0",
        "<",
        "<b ",
        "<!--",
        "<script>",
        "&",
        "&#1",
        "第",
        "第一",
        "第一回",
        "w",
        "www.",
        "a.",
        "a.b",
        "http://",
        "-",
        "=",
        "^",
        "。",
        "”",
        "一",
        "a",
        "\0",
        "(",
        "正文",
        "正文 ",
        "Chapter 1 ",
    ],
)
def test_the_time_for_a_line_is_proportional_to_its_length(piece: str) -> None:
    line = (piece * 20_000)[:20_000]
    for text in (
        f"雨{line}夜\n",
        f"{line}夜",
        line,
        f"{line}\n" * 3 + "第一回\n",
        f"第一回 {line}夜\n第一回\n",
    ):
        began = time.process_time()
        clean_text(text)
        assert time.process_time() - began < 0.6
