"""Cleaning: tables of contents, doubled headings and front matter."""

from __future__ import annotations

import re

import pytest

from shuoshu.text.cleaning import HEADING, clean_text
from tests.text.cleaning_helpers import LONG, STORY, chapter, clean, is_exact


def chapters(text: str) -> list[str]:
    return [" ".join(m[1].split()) for m in HEADING.finditer(clean_text(text)[0])]


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
        assert len(account.pieces["contents"]) == 6 and is_exact(account)


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
    assert text == BODY and set(account.pieces) == {"front matter"} and is_exact(account)


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


PROSE = "".join(f"{line}\n" for line in STORY)


@pytest.mark.parametrize(
    "mention",
    [
        "他翻开画家的简介，里面没有一句真话。",
        "桌上有一本目录，夹着船票。",
        "画家的简介",
        "《渡口》的作者：一个死了的人。",
        "作者：不详。年代：不详。他在卡片上写。",
        "正文写在背面。",
    ],
)
@pytest.mark.parametrize("place", ["{mention}\n{prose}", "{prose}{mention}\n"])
def test_a_prologue_without_a_title_that_mentions_front_matter_is_kept(
    mention: str, place: str
) -> None:
    text = place.format(mention=mention, prose=PROSE) + BODY
    assert clean_text(text)[0] == text


@pytest.mark.parametrize("mark", ["作者：某某", "目　录", "【正文】", "[渡口 / 某某 著 ]"])
def test_a_prologue_without_a_title_after_the_last_mark_is_kept(mark: str) -> None:
    front = f"《渡口》\n内容简介：\n一座渡口。\n{mark}\n"
    assert clean_text(front + PROSE + BODY)[0] == PROSE + BODY


@pytest.mark.parametrize("prose", [PROSE, f"{STORY[0]}\n\n"])
@pytest.mark.parametrize("mark", ["目录", "作者：某某"])
def test_prose_before_a_mark_is_kept(prose: str, mark: str) -> None:
    text = f"{prose}{mark}\n{BODY}"
    assert clean_text(text)[0] == text


def test_a_synopsis_may_stand_before_its_mark() -> None:
    front = "《渡口》是一部小说。\n\n沈砚简介\n沈砚，生于北山。\n"
    assert clean_text(front + BODY)[0] == BODY


def test_front_matter_is_short() -> None:
    front = "内容简介：\n" + PROSE * 50
    book = "".join(f"第{n}章 渡口\n" + (LONG * 100 + "\n") * 10 for n in range(5))
    assert 5_000 < len(front) < 0.02 * len(book)
    assert clean_text(front + book)[0].startswith(front)


def test_front_matter_is_at_the_beginning_of_a_book() -> None:
    front = "作者：某某\n目录\n"
    assert clean_text(front + BODY, is_beginning=False)[0] == front + BODY


def test_text_before_the_prologue_is_removed_alone() -> None:
    prologue = "楔子 那年冬天\n" + "".join(f"{line}\n" for line in STORY)
    assert (
        clean_text("作者：某某\n内容简介：一座渡口。\n\n" + prologue + BODY)[0] == prologue + BODY
    )


def test_without_five_headings_nothing_is_front_matter() -> None:
    text = "作者：某某\n" + chapter("第一章 渡口") + chapter("第二章 茶楼")
    assert clean_text(text)[0] == text
