"""Cleaning: licences, banners, addresses and notices are removed, and nothing of the story."""

from __future__ import annotations

import pytest

from shuoshu.text.cleaning import clean_text
from tests.text.cleaning_helpers import LONG, STORY, chapter, clean, is_exact

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
    assert set(account.pieces) == {"licence"} and is_exact(account)


@pytest.mark.parametrize(
    "line",
    [
        "He said that the Project Gutenberg had START and END lines.",
        "End of Project Gutenberg, she thought; nobody would scan the rest.",
    ],
)
def test_a_mention_of_gutenberg_is_kept(line: str) -> None:
    assert clean(line) == line


@pytest.mark.parametrize(
    "line",
    [
        "End of the Project Gutenberg EBook of The Quay, by Nobody",
        "End of Project Gutenberg's The Quay, by Nobody",
        "End of Project Gutenberg Etext of The Quay",
    ],
)
def test_an_older_end_line_of_gutenberg_is_an_end(line: str) -> None:
    assert clean_text(f"{QUAY}{line}\n{AFTER}")[0] == QUAY


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


@pytest.mark.parametrize(
    "scene",
    [
        "网站上只有一行字：www.yuye.com，他默念了一遍。",
        "远山如黛，雪落无声。\n小说下载尽在www.yuye.com",
        "更多好书请到www.yuye.com\n她没有听见。",
        "更多好书请到www.yuye.com\n" + "远山如黛，雪落无声。\n" * 19 + "雪落无声。",
    ],
)
def test_a_banner_begins_with_an_advertisement_and_has_no_prose(scene: str) -> None:
    lines = clean(f"{RULER}\n{scene}\n{RULER}").split("\n")
    is_prose = [line for line in scene.split("\n") if line.endswith("。")]
    assert lines == [RULER, *is_prose, RULER]


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
            and is_exact(account)
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


def test_an_address_of_a_sub_domain_with_one_letter_is_an_address() -> None:
    assert clean("手机阅读请访问m.yuye.com") == ""


@pytest.mark.parametrize(
    "line", ["www.yuye.com", "小说论坛 www.yuye.com", "请记住本站", "版权归作者所有"]
)
def test_a_line_that_the_story_announces_is_kept(line: str) -> None:
    assert clean(line) == ""
    for announced in (f"墙上用粉笔写着：\n{line}", f"屏幕上有两行：\n\n北山文学社\n{line}"):
        assert clean(announced) == announced


def test_more_than_an_address_is_an_advertisement_even_after_a_colon() -> None:
    line = "更多小说请到www.yuye.com阅读"
    assert clean(f"他说了一句诗：\n{line}") == "他说了一句诗："
    assert clean(f"本站网址：\n{line}\nwww.yuye.com") == "本站网址："


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


@pytest.mark.parametrize(
    "line",
    [
        "（本章未完，请翻页）",
        "上一章 ← 章节目录 → 下一章",
        "求月票！求推荐票！",
        "本章未完，请点击下一页继续阅读！",
        "声明：本书由网友上传，版权归原作者所有。",
        "一秒记住雨夜书屋，最新章节免费阅读",
    ],
)
def test_a_line_of_nothing_but_a_sites_phrases_is_removed(line: str) -> None:
    assert clean(line) == ""
    for sentence in (f"沈砚：{line}", f"{line}阿青念道。"):
        assert clean(sentence) == sentence


@pytest.mark.parametrize(
    "line",
    ["求月票！", "本章未完", "返回目录", "雨夜手打更新最快", "本章未完，精彩在后", "求月票 {n}"],
)
def test_a_call_that_is_repeated_at_the_edges_of_chapters_is_removed(line: str) -> None:
    once = clean(line)
    text = "".join(
        f"第{n}章 渡口\n" + "\n".join([*STORY, line.format(n=n)]) + "\n" for n in range(3)
    )
    assert once == line
    assert clean_text(text)[0] == "".join(chapter(f"第{n}章 渡口") for n in range(3))


def test_a_call_in_the_middle_of_chapters_is_kept() -> None:
    text = "".join("\n".join([f"第{n}章 渡口", *STORY, "求月票！", *STORY, ""]) for n in range(9))
    assert clean_text(text)[0] == text


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
