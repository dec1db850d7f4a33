"""Copied spans equal a brute-force search and name the right chapter."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuoshu.evaluation.copies import MIN_COPIED, MIN_MARKED, CopyIndex, TrainingText
from shuoshu.models import weights
from shuoshu.text.dataset import TextDataset, read_meta
from tests.evaluation.helpers import (
    copy_model,
    measure,
    prepare_text,
)

# An emoji, and the two surrogates of one.
SIGNS = st.text(alphabet="甲乙ab\U0001f600\ud83d\ude00 \n", max_size=40)


def longest_from(answer: str, start: int, text: str) -> int:
    """The length of the longest span from `start` that occurs in the text."""
    return next(n for n in range(len(answer) - start, -1, -1) if answer[start : start + n] in text)


def plain_spans(answer: str, text: str, min_length: int) -> list[tuple[int, int, int]]:
    """CopyIndex.spans by substring search."""
    start, spans = 0, []
    while start < len(answer):
        length = longest_from(answer, start, text)
        if length >= min_length:
            spans.append((start, start + length, text.find(answer[start : start + length])))
        start += length if length >= min_length else 1
    return spans


@given(SIGNS, SIGNS, st.integers(1, 12), st.data())
def test_copies_equal_brute_force(text, answer, min_length, data):
    if text:  # puts a piece of the text and an unknown character into the answer
        start = data.draw(st.integers(0, len(text)))
        answer = (
            answer[:10]
            + text[start : start + 15]
            + data.draw(st.sampled_from(["", "丁", "\uffff"]))
            + answer[10:]
        )
    copies = CopyIndex(text)
    assert copies.longest(answer) == max(
        (longest_from(answer, i, text) for i in range(len(answer))), default=0
    )
    assert copies.spans(answer, min_length) == plain_spans(answer, text, min_length)


@given(st.text(max_size=60), st.text(max_size=20))
def test_copies_equal_brute_force_in_any_script(text, answer):
    answer = text[7:19] + answer + text[:5]
    copies = CopyIndex(text)
    assert copies.longest(answer) == max(
        (longest_from(answer, i, text) for i in range(len(answer))), default=0
    )
    assert copies.spans(answer, 3) == plain_spans(answer, text, 3)


def test_copies_in_a_book_are_found_at_their_first_place(text):
    copies = CopyIndex(text)
    middle = text[15_000:15_040]
    (span,) = copies.spans("甲甲" + middle + "甲甲", min_length=20)
    start, end, place = span
    assert (start, end) == (2, 42) and place == text.find(middle)
    assert copies.longest("甲甲" + middle + "甲甲") == 40
    assert copies.longest(text[-9:] + "甲") == 9 and copies.longest("\U0001f600") == 0
    assert copies.spans(text, 20) == [(0, len(text), 0)]
    for repeated in ("甲乙，甲丙", "甲丙，甲乙"):
        assert CopyIndex(repeated).spans("甲", min_length=1) == [(0, 1, 0)]
    assert [copies.longest(text[9000 : 9000 + n]) for n in range(40)] == list(range(40))


def test_the_longest_copy_may_overlap_an_earlier_span():
    copies = CopyIndex("子丑寅卯辰巳午未。辰巳午未申酉戌亥甲乙")
    answer = "子丑寅卯辰巳午未申酉戌亥甲乙"
    assert copies.spans(answer) == [(0, 8, 0)]  # the rest of the second one is too short
    assert copies.longest(answer) == 10


def test_empty_texts_have_no_copies():
    assert CopyIndex("").spans("甲乙丙丁甲乙丙丁") == [] and CopyIndex("").longest("甲") == 0
    assert CopyIndex("甲乙丙").spans("") == [] and CopyIndex("甲乙丙").longest("") == 0


def test_a_span_does_not_begin_before_the_text():
    assert CopyIndex("甲" * 10 + "乙").spans("甲" * 40 + "乙", min_length=35) == []


def test_a_short_copy_is_measured_but_not_marked():
    copies = CopyIndex("甲乙丙")
    assert copies.longest("甲乙丙丁") == 3 and copies.spans("甲乙丙丁") == []


# ---------------------------------------------------------------- a model's training text


def test_copied_spans_occur_verbatim_in_the_named_chapter(
    evaluated, pretrained: Path, dataset: Path, text: str
) -> None:
    _, tokenizer, *_ = weights.load_model(pretrained)
    source, meta = TrainingText.find(pretrained), read_meta(dataset)
    tokens = TextDataset(dataset, "train").tokens.tolist()
    books = [f"《{book['title']}》" for book in meta["books"]]
    begins = [
        (chapter["token"], books[chapter["book"]] + chapter["title"])
        for chapter in meta["chapters"]
        if chapter["split"] == "train"
    ]
    ends = [token for token, _ in begins[1:]] + [len(tokens)]
    chapters = {
        title: tokenizer.decode(tokens[start:end])
        for (start, title), end in zip(begins, ends, strict=True)
    }
    assert len(chapters) > 3
    for title, body in chapters.items():
        own = body[60:110]
        assert all(own not in other for name, other in chapters.items() if name != title)
        assert source.spans(f"Ж{own}Ж") == [(1, 51, title)]
    spans = [
        (row["answer"][start:end], title)
        for row in evaluated.answers
        for start, end, title in row["copied"]
    ]
    assert spans
    assert all(len(span) >= MIN_MARKED and span in chapters[title] for span, title in spans)
    assert source.spans("Ж" * 30) == []


def test_the_copy_rate_counts_answers_with_a_long_span(evaluated, pretrained: Path) -> None:
    (other,), source = evaluated.evaluation["compare"], TrainingText.find(pretrained)
    rows = [row for row in evaluated.answers if row["split"] == "test"]
    written = [row["others"][str(pretrained)] for row in rows]
    longest = [source.copies.longest(text) for text in written]
    assert other["measures"]["test"]["copy_longest"]["value"] == pytest.approx(np.mean(longest))
    assert other["measures"]["test"]["copy_rate"]["value"] == pytest.approx(
        np.mean([length >= MIN_COPIED for length in longest])
    )


@pytest.mark.parametrize("state", ["missing", "changed"])
def test_copies_are_not_measured_if_the_training_text_is_missing_or_changed(
    tuned: Path, pretrained: Path, text: str, tmp_path: Path, capsys, state: str
) -> None:
    base = copy_model(pretrained, tmp_path / "base")
    out_dir = copy_model(tuned, tmp_path / "out")
    if state == "changed":
        prepare_text(tmp_path, "book", text[:5000], f"--tokenizer={pretrained}")
    for folder, part, values in (
        (base, "data", {"folder": str(tmp_path / "book")}),
        (out_dir, "settings", {"init_from": str(base)}),
    ):
        saved = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        saved[part] |= values
        (folder / "settings.json").write_text(json.dumps(saved), encoding="utf-8")
    evaluation = measure(out_dir, "--limit=3")
    assert not [name for name in evaluation["measures"]["test"] if "copy" in name]
    assert "copies       not measured" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"], ids=["too long", "NUL"])
def test_an_impossible_data_folder_is_no_training_text(tmp_path, name):
    settings = {"data": {"folder": name}, "settings": {}, "machine": {}}
    (tmp_path / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    assert TrainingText.find(tmp_path) is None
