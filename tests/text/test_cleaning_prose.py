"""Cleaning: prose that says what sites say is kept, wherever it stands."""

from __future__ import annotations

from pathlib import Path

from shuoshu.text.cleaning import clean_text
from tests.text.cleaning_helpers import STORY, chapter


def innocent_passages() -> list[str]:
    text = Path(__file__).with_name("innocent_passages.txt").read_text(encoding="utf-8")
    lines = [line for line in text.split("\n") if not line.startswith("# ")]
    return [passage.strip("\n") for passage in "\n".join(lines).split("\n\n") if passage.strip()]


PASSAGES = innocent_passages()


def test_a_passage_in_a_chapter_of_prose_is_kept() -> None:
    assert len(PASSAGES) > 300
    texts = ["\n".join(["第一章 渡口", *STORY, passage, *STORY, ""]) for passage in PASSAGES]
    assert [text for text in texts if clean_text(text)[0] != text] == []


def test_a_passage_at_the_edges_of_a_chapter_is_kept() -> None:
    for text in (
        f"第一章 渡口\n{passage}\n{chapter('第二章 茶楼')}{passage}\n" for passage in PASSAGES
    ):
        assert clean_text(text)[0] == text


def test_a_book_of_such_passages_is_kept() -> None:
    chapters = [
        chapter(f"第{n}章 渡口", n) + passage + "\n" + "\n".join(STORY) + "\n"
        for n, passage in enumerate(PASSAGES)
    ]
    text = "".join(chapters)
    assert clean_text(text)[0] == text


def test_a_refrain_at_the_end_of_every_chapter_is_kept() -> None:
    for refrain in ("他点击下一页，继续往下看。", "翻到下一页。", "她返回目录", "湖人首发：科比。"):
        text = "".join(chapter(f"第{n}章 渡口", n) + refrain + "\n" for n in range(9))
        assert clean_text(text)[0] == text
