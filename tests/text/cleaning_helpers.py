"""A story for the tests of cleaning, and the cleaning of a line inside it."""

from __future__ import annotations

from shuoshu.text.account import Account
from shuoshu.text.cleaning import clean_text

# Paragraphs that match no rule: the story around the text of a test.
STORY = [
    "沈砚把油灯拨亮了些，窗外的雨还没有停。",
    "柳青禾推门进来，抖了抖蓑衣上的水，说：“船是走不成了。”",
    "“你还要去吗？”她问。",
    "老船夫在灶边烤火，一句话也不说，只把烟斗敲了两下，灰落在青砖上。",
    "远处有人敲了三更。",
    "那一夜，谁也没有睡着……",
]


def is_exact(account: Account) -> bool:
    """Whether the counts explain the difference between the characters read and kept."""
    removed, added = sum(account.removed.values()), sum(account.added.values())
    return account.read - removed + added == account.kept


def clean(line: str, **settings: bool) -> str:
    """A line, cleaned in the middle of a story; the story must not change."""
    text, account = clean_text("\n".join([*STORY, line, *STORY]) + "\n", **settings)
    assert is_exact(account)
    lines = text.split("\n")
    assert lines[: len(STORY)] == STORY and lines[-len(STORY) - 1 : -1] == STORY and lines[-1] == ""
    return "\n".join(lines[len(STORY) : -len(STORY) - 1])


def chapter(heading: str, seed: int = 0) -> str:
    """A heading and a chapter of prose."""
    return f"{heading}\n" + "".join(f"{line}\n" for line in STORY[seed % 6 :] + STORY[: seed % 6])


LONG = "沈砚沿着河堤走了很久，柳枝垂到水面上，渡船还系在老地方，船夫的女儿蹲在石阶上洗衣裳，见他来了，只抬头看了一眼，又低下头去，把一件青布衫翻过来，慢慢地搓。"
