"""A few taught facts with a book that says more, and the fine-tuned model with its knowledge."""

from __future__ import annotations

from pathlib import Path

import pytest

from shuoshu.answering.answerer import Answerer
from shuoshu.answering.lookups import BookIndex
from shuoshu.answering.taught import Taught
from shuoshu.generation.chat_model import ChatModel
from shuoshu.models.weights import load_model

PAIRS = [
    ("阿迟的师父叫什么名字？", "沈砚。"),
    ("谁是阿迟的师父？", "沈砚。"),
    ("渡口的船夫是谁？", "老陆。"),
    ("是谁在渡口撑船？", "老陆。"),
    ("药铺里卖什么？", "只卖三味草药。"),
    ("药铺卖的东西有哪些？", "只卖三味草药。"),
    ("桥是什么时候断的？", "雨停之后。"),
    ("桥在哪一天断了？", "雨停之后。"),
]
BOOK = [
    "沈砚收了阿迟做徒弟，教他认字，阿迟喊他先生。",
    "老陆在渡口撑了三十年篙，人称篙公，谁要过河都找篙公。",
    "药铺的柜上摆着甘草、当归和艾叶。掌柜说，别的都不卖。",
    "雨停之后，石桥断作两截，碎石滚进河里。",
    "铁梁堡在北山后面，堡主姓邬，院里养着两只白鹅。",
    "茶楼的灯亮到三更，说书人把醒木一拍，满堂静了下来。",
]


@pytest.fixture(scope="session")
def taught() -> Taught:
    return Taught.of_pairs(PAIRS)


@pytest.fixture(scope="session")
def book() -> BookIndex:
    return BookIndex(BOOK)


@pytest.fixture(scope="session")
def answerer(tuned: Path) -> Answerer:
    """Of a finished fine-tuning, which has written answers.json and taught.jsonl."""
    return Answerer.open(tuned, ChatModel(load_model(tuned)))
