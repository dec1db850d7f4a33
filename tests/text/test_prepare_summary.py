"""prepare.py: the bundled novella, the summary, errors and memory."""

from __future__ import annotations

import random
import shlex
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shuoshu.text import prepare as text_prepare
from tests.text.prepare_helpers import FILES, book, contents, laid_out, meta_of, run_prepare

pytestmark = pytest.mark.usefixtures("here")

# ---------------------------------------------------------------- the bundled novella


@pytest.mark.parametrize(
    "argv",
    [
        ["novella.txt"],
        ["a.txt", "--out=data/novella"],
        ["data/novella", "a.txt"],
        ["a.txt", "--out=data/x/../novella/"],
    ],
)
@pytest.mark.parametrize("linked", [False, True], ids=["plain", "data is a link"])
def test_the_users_text_never_overwrites_the_novella(
    text: str, argv: list[str], linked: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if linked:
        Path("disk").mkdir()
        Path("data").symlink_to("disk", target_is_directory=True)
    book("data/novella/第一回.txt", text)
    book("novella.txt", text)
    book("a.txt", text)
    assert run_prepare(*argv) == 2
    assert "belongs to the bundled novella" in capsys.readouterr().err
    assert list(contents("data/novella")) == ["第一回.txt"]


def test_without_input_the_novella_is_prepared(text: str) -> None:
    book("data/novella/第一回.txt", text)
    assert run_prepare() == 0
    assert sorted(contents("data/novella")) == [*FILES, "第一回.txt"]
    assert run_prepare("data/novella") == 0


# ---------------------------------------------------------------- messages


def test_the_summary_shows_the_counts(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_prepare(book("雨夜.txt", text)) == 0
    lines, meta = capsys.readouterr().out.splitlines(), meta_of("data/雨夜")
    [row] = [line.split() for line in lines if line.startswith("  雨夜")]
    share = meta["splits"]["val"]["characters"] / len(laid_out(text))
    assert row == ["雨夜", "utf-8", "10", f"{len(laid_out(text)):,}", f"{share:.1%}"]
    for split in ("train", "val"):
        [row] = [line.split() for line in lines if line.startswith(f"  {split} ")]
        assert row == [
            split,
            *(f"{meta['splits'][split][name]:,}" for name in ("characters", "tokens", "documents")),
        ]
    summary = "\n".join(lines)
    tokens = sum(part["tokens"] for part in meta["splits"].values())
    assert "vocabulary   300 (bpe; set by --vocab_size)" in summary
    assert f"compression  {len(laid_out(text)) / tokens:.2f} characters per token" in summary
    next_words = ["next", "python", "train.py", "--dataset=雨夜", "--out_dir=out-雨夜"]
    assert shlex.split(lines[-1]) == next_words


def test_many_books_are_summed_up(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    for n in range(15):
        book(f"shelf/{n:02}.txt", laid_out(text)[: 1000 + n] + "\n")
    assert run_prepare("shelf") == 0
    [row] = [
        line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  3 more")
    ]
    assert row == ["3", "more", "3", "3,006"]


@pytest.mark.parametrize(
    "argv",
    [
        ["missing.txt"],
        ["a.txt", "--tokenizer=nowhere"],
        ["a.txt", "--out=a.txt"],
        ["a.txt", "--vocab_sise=9"],
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    text: str, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    book("a.txt", text[:1000])
    assert run_prepare(*argv) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ") and "Traceback" not in output.err
    assert [path.name for path in Path().iterdir()] == ["a.txt"]


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize(("threads", "ahead"), [(1, 1), (2, 4), (3, 100)])
def test_only_a_few_items_are_in_memory_at_a_time(threads: int, ahead: int) -> None:
    drawn = 0

    def items() -> Iterator[int]:
        nonlocal drawn
        while drawn < 60:
            drawn += 1
            yield drawn

    def work(item: int) -> int:
        time.sleep(random.Random(item).random() / 1000)
        return item

    results = []
    with ThreadPoolExecutor(threads) as pool:
        for result in text_prepare.ordered_map(pool, work, items(), ahead):
            assert drawn - len(results) <= ahead
            results.append(result)
    assert results == list(range(1, 61))
