"""Output of a run: tables, durations, sizes, the log, progress and curves."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from shuoshu.core.files import format_bytes
from shuoshu.core.run_log import RunLog
from shuoshu.core.terminal import ProgressBar, display_width, duration, pad, shorten, table
from shuoshu.training.plots import draw_curves, write_samples


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("", 0),
        ("abc", 3),
        ("说书", 4),
        ("a书，", 5),
        ("e\u0301", 1),
        ("“…”", 3),
        ("１２", 4),
        ("한", 2),
    ],
)
def test_a_chinese_character_is_two_columns_wide(text: str, columns: int) -> None:
    assert display_width(text) == columns


@given(text=st.text(max_size=20), columns=st.integers(0, 40), right=st.booleans())
def test_padded_text_has_the_width_and_all_its_characters(
    text: str, columns: int, right: bool
) -> None:
    padded = pad(text, columns, right)
    assert display_width(padded) == max(display_width(text), columns)
    assert padded.endswith(text) if right else padded.startswith(text)


@given(text=st.text(max_size=20), columns=st.integers(1, 40))
def test_a_shortened_text_fits(text: str, columns: int) -> None:
    short = shorten(text, columns)
    assert display_width(short) <= columns
    assert short == text or (short.endswith("…") and text.startswith(short[:-1]))


def test_a_tables_columns_are_aligned() -> None:
    lines = table([["book", "characters"], ["红楼梦", 1_234_567], ["Ulysses", 9]]).splitlines()
    assert lines == [
        "  book     characters",
        "  ───────  ──────────",
        "  红楼梦    1,234,567",
        "  Ulysses           9",
    ]
    assert len({display_width(line) for line in lines}) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (3.24, "3.2 s"),
        (60, "1 min 00 s"),
        (245.9, "4 min 05 s"),
        (3599.9, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (7800, "2 h 10 min"),
        (360_000, "100 h 00 min"),
    ],
)
def test_durations_have_at_most_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (12_000, "12.0 kB"),
        (123_456, "123 kB"),
        (3_400_000, "3.4 MB"),
        (5.5e12, "5500 GB"),
    ],
)
def test_sizes_have_a_fitting_unit(count: float, text: str) -> None:
    assert format_bytes(count) == text


# ---------------------------------------------------------------- log.jsonl

VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False)
    | st.text()
)


@given(
    records=st.lists(
        st.dictionaries(
            st.text(min_size=1).filter(lambda name: name not in ("kind", "time", "self")),
            VALUES,
            max_size=4,
        ),
        max_size=5,
    )
)
def test_logged_records_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict]
) -> None:
    log = RunLog(tmp_path_factory.getbasetemp() / "any.jsonl")
    log.path.unlink(missing_ok=True)
    for record in records:
        log.write("step", **record)
    assert [
        {key: value for key, value in record.items() if key not in ("kind", "time")}
        for record in log.read("step")
    ] == records


@pytest.mark.parametrize(
    "character", ["\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"]
)
def test_a_line_separator_in_a_text_does_not_split_its_record(
    tmp_path: Path, character: str
) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    log.write("sample", text=f"雨{character}夜")
    assert [record["text"] for record in log.read("sample")] == [f"雨{character}夜"]


def test_records_are_read_by_kind_and_in_order(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    for step in range(3):
        log.write("step", step=step)
        log.write("eval", step=step)
    assert [record["step"] for record in log.read("eval")] == [0, 1, 2]
    assert [record["kind"] for record in log.read()] == ["step", "eval"] * 3


def test_a_missing_log_has_no_records(tmp_path: Path) -> None:
    assert RunLog(tmp_path / "log.jsonl").read() == []


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_last_line_that_was_cut_off_is_skipped(tmp_path: Path, cut: int) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    log.write("step", step=1)
    log.write("step", step=2, text="雨夜")
    log.path.write_bytes(log.path.read_bytes()[: -cut - 1])
    assert [record["step"] for record in log.read()] == [1]
    log.rewind(1, 1)
    log.write("step", step=2)
    assert [record["step"] for record in log.read()] == [1, 2]


def test_a_record_after_a_line_that_was_cut_off_is_read(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    log.write("step", step=1)
    log.path.write_bytes(log.path.read_bytes()[:-5])
    log.write("step", step=2)
    assert [record["step"] for record in log.read()] == [2]


def test_rewinding_drops_the_records_after_the_step(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    log.write("run", note="开始")
    for step in (1, 2, 3, 4):
        log.write("step", step=step, loss=1.5)
    before = log.path.read_text(encoding="utf-8").splitlines()
    log.write("eval", step=2, val_loss=1.5)
    log.rewind(2, 1)  # saved after step 2, killed before its evaluation was saved
    assert log.path.read_text(encoding="utf-8").splitlines() == before[:3]
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_every_line_is_an_object_with_its_kind_and_time(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    log.write("step", step=1)
    record = json.loads(log.path.read_text(encoding="utf-8"))
    assert record["kind"] == "step" and record["time"] > 1.7e9 and record["step"] == 1


# ---------------------------------------------------------------- curves

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("kinds", [("step",), ("eval",), ("step", "eval")])
def test_curves_are_a_png(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    for step in range(1, 4):
        for kind in kinds:
            log.write(kind, step=step, lr=0.1 / step, loss=3 / step, val_loss=4 / step)
    draw_curves(log, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(PNG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "loss.png"]


def test_without_values_no_curves_are_drawn(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    draw_curves(log, tmp_path / "loss.png")
    log.write("run", note="开始")
    log.write("eval", step=1, val_loss=None)
    draw_curves(log, tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that draw_curves saves."""
    figures: list[Figure] = []
    real = Figure.savefig
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda self, *args, **more: (figures.append(self), real(self, *args, **more))[1],
    )
    return figures


def test_answers_have_curves_beside_the_loss(tmp_path: Path, drawn: list[Figure]) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    for step, loss, rouge, exact in (
        (0, 3.0, 0.1, 0.0),
        (10, 1.0, 0.5, 0.25),
        (20, 2.0, 0.9, 0.75),
    ):
        log.write("step", step=step, lr=0.1, loss=loss / 2)
        log.write("eval", step=step, val_loss=loss, val_rouge_l=rouge, val_exact_match=exact)
    draw_curves(log, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(PNG)
    losses, answers, _ = drawn[0].axes
    curves = {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for axes in (losses, answers)
        for line in axes.lines
    }
    assert curves["validation loss"] == (
        [0, 10, 20],
        [3.0, 1.0, 2.0],
    )  # it rises while the answers improve
    assert curves["ROUGE-L of the answers"] == ([0, 10, 20], [0.1, 0.5, 0.9])
    assert curves["exact answers"] == ([0, 10, 20], [0.0, 0.25, 0.75])
    assert [text.get_text() for axes in (losses, answers) for text in axes.texts] == [
        "best 1.000",
        "best 0.900",
    ]


def test_text_has_no_curves_of_answers(tmp_path: Path, drawn: list[Figure]) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    log.write("step", step=1, lr=0.1, loss=3)
    log.write("eval", step=1, val_loss=4)
    draw_curves(log, tmp_path / "loss.png")
    assert len(drawn[0].axes) == 2


def test_samples_show_prompts_texts_and_references(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    log.write("sample", step=0, title="step 0: val loss 4", prompt="清晨，", text="雨停了。\n谁")
    for number in (1, 2):
        log.write(
            "sample",
            step=9,
            title="step 9: val loss 3",
            prompt=f"谁{number}？",
            text="沈砚",
            reference="赵铁匠",
        )
    write_samples(log, tmp_path / "samples.md")
    parts = (tmp_path / "samples.md").read_text(encoding="utf-8").split("## ")
    assert parts[0] == "# Samples\n\n" and len(parts) == 3
    assert parts[1] == "step 0: val loss 4\n\n> 清晨，▸雨停了。  \n> 谁\n\n"
    assert (
        parts[2]
        == "step 9: val loss 3\n\n> 谁1？  \n> ▸ 沈砚  \n> ✓ 赵铁匠\n\n> 谁2？  \n> ▸ 沈砚  \n> ✓ 赵铁匠\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "samples.md"]


# ---------------------------------------------------------------- progress


def test_without_a_terminal_progress_is_printed_as_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bar = ProgressBar(2000, every=0.0)
    bar.update(1000, 2000, "loss 3.2")
    bar.say("已保存")
    bar.update(2000, 2000, "loss 3.1")
    bar.close()
    output = capsys.readouterr()
    assert output.out == "step 1,000/2,000  loss 3.2\n已保存\nstep 2,000/2,000  loss 3.1\n"
    assert output.err == ""


def test_progress_lines_come_at_intervals_and_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bar = ProgressBar(50, every=3600.0)
    for step in range(1, 51):
        bar.update(step, 50, "")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 2 and lines[-1].startswith("step 50/50")


def test_hidden_progress_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    bar = ProgressBar(5, show=False)
    bar.update(5, 5, "loss 1")
    bar.say("line")
    bar.close()
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    bar = ProgressBar(10, start=4)
    bar.update(7, 20, "loss 2.5")
    assert (bar.bar.n, bar.bar.total) == (7, 20)
    bar.close()
    assert "7/20" in terminal.getvalue() and "loss 2.5" in terminal.getvalue()
