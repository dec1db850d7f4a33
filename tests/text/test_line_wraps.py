"""Hard-wrapped lines are rejoined; verse, lists, dialogues and paragraphs are not changed."""

from __future__ import annotations

import random
import textwrap
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuoshu.text.cleaning import HEADING, clean_text
from shuoshu.text.line_wraps import join_wrapped_lines, line_columns
from tests.text.cleaning_helpers import is_exact

NOT_FIRST = "，。！？：；、…”’」』）》—"
NOT_LAST = "“‘「『（《"

WHO = ["沈砚", "柳青禾", "赵铁匠", "白先生", "顾三娘", "老船夫", "韩秀才", "那个卖炭的少年"]
WHEN = [
    "天还没有亮",
    "雨停以后",
    "这一年入冬",
    "三更刚过",
    "渡船靠岸的时候",
    "茶凉了两回",
    "到了第七天的傍晚",
]
DID = [
    "把信折好收进袖中",
    "推开半扇木门",
    "望着河面出神",
    "解开缆绳，跳上了船",
    "在灯下数那几枚铜钱",
    "沿着石阶一级一级走下去",
    "一句话也没有说",
    "想起了二十年前的那场大水",
]
SAID = [
    "你终究还是来了",
    "账要一笔一笔地算",
    "明日再走也不迟",
    "船票只剩两张，你要哪一张",
    "书里没有写这一页",
]


def prose(seed: int, paragraphs: int = 60) -> list[str]:
    """Chinese paragraphs of 20 to 250 characters."""
    draw = random.Random(seed)
    texts = []
    for _ in range(paragraphs):
        sentences = []
        for _ in range(draw.randint(1, 6)):
            sentences.append(
                f"{draw.choice(WHEN)}，{draw.choice(WHO)}{draw.choice(DID)}"
                + draw.choice(
                    [
                        "。",
                        f"，{draw.choice(WHO)}{draw.choice(DID)}。",
                        f"，道：“{draw.choice(SAID)}{draw.choice('。！？')}”",
                    ]
                )
            )
        texts.append("".join(sentences))
    return texts


def wrap(paragraph: str, width: int) -> list[str]:
    """Lines of up to `width` characters that start with no closing, end with no opening sign."""
    lines = []
    while len(paragraph) > width:
        cut = width
        while paragraph[cut] in NOT_FIRST or paragraph[cut - 1] in NOT_LAST:
            cut -= 1
        lines.append(paragraph[:cut])
        paragraph = paragraph[cut:]
    return [*lines, paragraph]


def wrapped(
    paragraphs: list[str],
    width: int,
    indent: str = "　　",
    gap: str = "",
    drop_indent: bool = False,
) -> str:
    """Wrapped paragraphs with `gap` between lines; the indent may be removed after the wrapping."""
    lines = [line for paragraph in paragraphs for line in wrap(indent + paragraph, width)]
    return "".join((line.strip("　") if drop_indent else line) + "\n" + gap for line in lines)


def ends(lines: list[str]) -> set[int]:
    """The positions where lines end, counted in characters that are not spaces."""
    texts = [line.replace(" ", "").strip("　") for line in lines]
    return set(accumulate(len(text) for text in texts if text))


def outcome(source: str, paragraphs: list[str]) -> tuple[float, float]:
    """(share of the wrapping's breaks that remain, share of paragraph ends that were lost)."""
    cleaned, account = clean_text(source)
    assert is_exact(account) and clean_text(cleaned)[0] == cleaned
    lines = [line for line in cleaned.split("\n") if line]
    assert "".join(lines).replace(" ", "") == "".join(paragraphs).replace(" ", "")
    true, given, now = ends(paragraphs), ends(source.split("\n")), ends(lines)
    breaks = given - true
    assert len(breaks) > 50
    return len(now & breaks) / len(breaks), len(true - now) / len(true)


# ---------------------------------------------------------------- wrapped text


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("width", [24, 32, 40])
def test_indented_prose_is_rejoined(width: int, seed: int) -> None:
    paragraphs = prose(seed)
    remaining, merged = outcome(wrapped(paragraphs, width), paragraphs)
    assert remaining <= 0.02 and merged == 0


@pytest.mark.parametrize("seed", [3, 4])
@pytest.mark.parametrize("width", [24, 32, 40])
def test_prose_with_blank_lines_between_paragraphs_is_rejoined(width: int, seed: int) -> None:
    paragraphs = prose(seed)
    source = "\n".join(wrapped([paragraph], width, indent="") for paragraph in paragraphs)
    remaining, merged = outcome(source, paragraphs)
    assert remaining <= 0.02 and merged == 0


@pytest.mark.parametrize("width", [24, 32, 40])
def test_indented_prose_with_a_blank_line_after_every_line_is_rejoined(width: int) -> None:
    paragraphs = prose(5)
    remaining, merged = outcome(wrapped(paragraphs, width, gap="\n"), paragraphs)
    assert remaining <= 0.02 and merged == 0


@pytest.mark.parametrize("gap", ["", "\n"])
@pytest.mark.parametrize("width", [24, 32, 40])
def test_prose_whose_paragraphs_end_only_in_a_short_line_is_rejoined(width: int, gap: str) -> None:
    paragraphs = prose(6, 120)
    remaining, merged = outcome(wrapped(paragraphs, width, gap=gap, drop_indent=True), paragraphs)
    assert remaining <= 0.02 and merged <= 0.06


def test_prose_with_equal_indents_and_blank_lines_is_rejoined() -> None:
    paragraphs = prose(7)
    source = "".join(
        f"    {line}\n\n" for line in wrapped(paragraphs, 40, drop_indent=True).split("\n") if line
    )
    remaining, merged = outcome(source, paragraphs)
    assert remaining <= 0.02 and merged <= 0.06


def test_each_chapter_is_rejoined_by_its_own_width() -> None:
    plain = prose(8, 20)
    source, whole = "", []
    for number, width in zip("一二三四", (24, 999, 40, 32), strict=True):
        heading = f"第{number}回 渡口夜雨 故人归来"
        source += heading + "\n" + wrapped(plain, width)
        whole += [heading, *plain]
    remaining, merged = outcome(source, whole)
    assert remaining <= 0.02 and merged == 0


@pytest.mark.parametrize("width", [24, 30])
@pytest.mark.parametrize("seed", range(3))
def test_a_wrapped_passage_in_a_chapter_that_is_not_wrapped_is_rejoined(
    seed: int, width: int
) -> None:
    letter = "".join(prose(seed, 10))
    before, after = ([p for p in prose(20 + n + seed) if len(p) > width + 4] for n in (0, 50))
    lines = wrap(letter, width)
    cleaned = clean_text(
        "".join(f"　　{p}\n" for p in before)
        + "".join(f"{line}\n" for line in lines)
        + "".join(f"　　{p}\n" for p in after)
    )[0]
    result = cleaned.split("\n")[:-1]
    assert result[: len(before)] == before and result[-len(after) :] == after
    rest = result[len(before) : -len(after)]
    assert "".join(rest) == letter and len(rest) <= 1 + 0.02 * len(lines)


ENGLISH = """
The lamp was still lit when she came down to the quay, and nobody had said a word about the letter. The ferry had gone at six;
the river was over the third step already, and the rain showed no sign of ending.

"You are late," he told her, without looking up from the rope that he was mending. "I have been waiting here since the morning,
and the old man has asked for you twice."

She did not answer. She took the letter from her sleeve, unfolded it, and read the eight words once more, as though they might
have changed on the way: the account is in the tea-house, the man is on the northern hill.

Somebody struck the third watch far away. The two of them sat on either side of the small fire and listened to the water that
fell, drop after drop, from the eaves into the earthen bowl.
"""
ENGLISH = [paragraph.replace("\n", " ") for paragraph in ENGLISH.strip().split("\n\n")] * 5


@pytest.mark.parametrize("width", [65, 66, 68, 70, 72])
@pytest.mark.parametrize("indent", ["", "  "])
def test_english_prose_is_rejoined_with_single_spaces(width: int, indent: str) -> None:
    paragraphs = [
        paragraph.replace("old man", f"{n} old men") for n, paragraph in enumerate(ENGLISH)
    ]
    source = (
        "\n\n".join(
            textwrap.fill(p, width, initial_indent=indent, break_on_hyphens=False)
            for p in paragraphs
        )
        + "\n"
    )
    cleaned, account = clean_text(source)
    assert is_exact(account)
    assert [line.strip() for line in cleaned.split("\n") if line] == paragraphs


def test_a_word_broken_at_its_hyphen_gets_no_space() -> None:
    source = "\n\n".join(textwrap.fill(p, 66) for p in ENGLISH) + "\n"  # may break tea-house
    assert [line for line in clean_text(source)[0].split("\n") if line] == ENGLISH


# ---------------------------------------------------------------- other text

COUPLETS = [
    "青灯照壁人初睡，冷雨敲窗被未温。",
    "二十年来江上路，一蓑烟雨几黄昏。",
    "渡头落日无人问，桥畔垂杨有泪痕。",
    "莫道归舟风浪恶，故园犹有未关门。",
]
VERSE = """
The gulls are gone, the tide is low,
The lamp burns down beside the door,
And no one that I used to know
Comes walking up along the shore.
"""
PLAY = """
FERRYMAN:
Who calls so late across the water's edge,
When honest men have long been in their beds?

SHEN:
A debtor, sir, that would his reckoning pay
And find no peace until the sum be told;
Make fast thy rope and carry me across.
"""
DIALOGUE = """
“你还要去吗？”她问。
“去。”
“船票只剩两张，你要哪一张？”老船夫抬起头来，把烟斗在船舷上敲了敲，问道。
“要靠窗的那一张。”
没有人再说话。
“那就走吧。”
"""
SHEETS = {
    "couplets of sixteen": COUPLETS * 6,
    "lines of seven without signs": [
        half for couplet in COUPLETS for half in (couplet[:7], couplet[8:15])
    ]
    * 4,
    "verse of twenty-four, each line a sentence": [
        a[:-1] + "，" + b[:7] + "。" for a in COUPLETS for b in COUPLETS
    ],
    "a list whose items end in commas": [
        f"第{n}难渡口逢雨失却书信一封，" if n in "一三五七九" else f"第{n}难北山迷路遇见卖炭少年，"
        for n in "一二三四五六七八九"
    ]
    * 4,
    "long items that end in commas": [
        f"{who}于{when}{did}，" for who in WHO for when in WHEN for did in DID if "，" not in did
    ][:60],
    "names": ["沈砚　柳青禾　赵铁匠", "白先生　顾三娘", "老船夫　韩秀才　孟婆婆　陆小舟", "阿蛮"]
    * 6,
    "a table of people": [
        "天字第一号船掌舵正将一员沈砚",
        "地字第二号船掌舵副将一员赵铁匠",
        "人字第三号船守仓小校一员陆小舟",
    ]
    * 5,
    "short verse in english": VERSE.split("\n") * 6,
    "a play": PLAY.split("\n") * 6,
    "a dialogue": DIALOGUE.split("\n") * 6,
}


@pytest.mark.parametrize("name", SHEETS)
@pytest.mark.parametrize("gap", ["\n", "\n\n"])
def test_verse_lists_and_other_short_lines_are_not_joined(name: str, gap: str) -> None:
    text = gap.join(SHEETS[name]) + "\n"
    cleaned, account = clean_text(text)
    assert "wrapped lines" not in account.places
    assert [line for line in cleaned.split("\n") if line] == [line for line in SHEETS[name] if line]


@pytest.mark.parametrize("gap", ["\n", "\n\n"])
@pytest.mark.parametrize("indent", ["", "　　", "    "])
def test_a_long_list_of_names_in_pairs_is_not_joined(indent: str, gap: str) -> None:
    draw, by = random.Random(4), ["铁臂", "夜渡", "听雨客", "半边船", "云里灯", "没影儿", "石桥老"]
    names = [
        f"{'天地'[n % 2]}{a}星{draw.choice(by)}{draw.choice(WHO[:7])}{'天地'[n % 2]}{b}星{draw.choice(by)}{draw.choice(WHO[:7])}"
        for n, (a, b) in enumerate(
            zip("舟渡灯雨桥楼山河信账墨砚" * 4, "风霜雪露云雷星月夜晨春秋" * 4, strict=True)
        )
    ]
    cleaned, account = clean_text("".join(f"{indent}{name}{gap}" for name in names))
    assert "wrapped lines" not in account.places
    assert [line for line in cleaned.split("\n") if line] == names


@pytest.mark.parametrize("gap", ["\n", "\n\n"])
@pytest.mark.parametrize("indent", ["", "　　"])
@pytest.mark.parametrize("seed", range(4))
def test_paragraphs_that_are_not_wrapped_are_not_joined(seed: int, indent: str, gap: str) -> None:
    paragraphs = prose(seed)
    assert (
        "wrapped lines" not in clean_text("".join(indent + p + gap for p in paragraphs))[1].places
    )
    short = [p for p in prose(seed, 300) if len(p) <= 45]  # no longer than a wrapped line
    assert len(short) > 40
    assert "wrapped lines" not in clean_text("".join(indent + p + gap for p in short))[1].places


@pytest.mark.parametrize("name", SHEETS)
def test_verse_and_lists_within_wrapped_prose_are_not_joined(name: str) -> None:
    sheet = [line for line in SHEETS[name] if line][:16]
    before, after = prose(10, 12), prose(11, 12)
    heading = "第二回 归舟"
    source = (
        wrapped(before, 40)
        + heading
        + "\n"
        + "\n".join(sheet)
        + "\n"
        + heading
        + "。\n"
        + "第三回\n"
        + wrapped(after, 40)
    )
    cleaned = clean_text(source)[0].split("\n")
    assert all(line in cleaned for line in sheet)
    assert sum(paragraph in cleaned for paragraph in [*before, *after]) >= 23


def test_a_heading_is_never_joined_to_anything() -> None:
    paragraphs = prose(12, 30)
    lines = wrapped(paragraphs, 32, indent="").split("\n")
    for at in range(5, len(lines), 9):
        lines.insert(at, f"第{'一二三四五六七八九十'[at % 10]}回 夜雨")
    cleaned = clean_text("\n".join(lines))[0].split("\n")
    assert [line for line in cleaned if HEADING.match(line)] == [
        line for line in lines if HEADING.match(line)
    ]


# ---------------------------------------------------------------- arbitrary lines


def test_columns_count_two_for_chinese_and_one_for_latin() -> None:
    assert [line_columns(text) for text in ("", "雨", "a雨b", "é", "“”", "𠮷")] == [
        0,
        2,
        4,
        1,
        4,
        2,
    ]


@given(
    st.lists(
        st.sampled_from(
            [
                *wrapped(prose(13, 6), 24).split("\n"),
                *COUPLETS,
                "The lamp was still lit when she came down to the quay and nobody",
                "第一回 夜雨",
                " ",
                "　",
                "-",
                "沈",
            ]
        ),
        max_size=40,
    )
)
def test_joining_changes_only_line_ends_and_spaces_and_counts_them(
    lines: list[str],
) -> None:
    lines = [line.rstrip(" 　") for line in lines]  # like the output of uniform_characters
    result, changes = join_wrapped_lines(list(lines), HEADING)
    assert "".join("".join(result).split()) == "".join("".join(lines).split())
    assert len("\n".join(lines)) - sum(removed for removed, _ in changes) + sum(
        added for _, added in changes
    ) == len("\n".join(result))
    assert [line for line in result if HEADING.match(line)] == [
        line for line in lines if HEADING.match(line)
    ]
