"""Copies from a model's training text: the right chapter, in bounded memory."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from shuoshu.evaluation import copies
from shuoshu.evaluation.copies import MIN_COPIED, MIN_MARKED, TrainingText
from shuoshu.models import weights
from shuoshu.text.data_folder import DatasetWriter
from shuoshu.text.dataset import TextDataset, read_meta
from shuoshu.text.tokenizer import Tokenizer
from tests.evaluation.helpers import (
    copy_model,
    measure,
    prepare_text,
)


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
        assert source.find_copies([f"Ж{own}Ж"]) == [(50, [(1, 51, title)])]
    spans = [
        (row["answer"][start:end], title)
        for row in evaluated.answers
        for start, end, title in row["copied"]
    ]
    assert spans
    assert all(len(span) >= MIN_MARKED and span in chapters[title] for span, title in spans)
    assert source.find_copies(["Ж" * 30]) == [(0, [])]


def test_the_copy_rate_counts_answers_with_a_long_span(evaluated, pretrained: Path) -> None:
    (other,), source = evaluated.evaluation["compare"], TrainingText.find(pretrained)
    rows = [row for row in evaluated.answers if row["split"] == "test"]
    written = [row["others"][str(pretrained)] for row in rows]
    longest = [found.longest for found in source.find_copies(written)]
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


def write_text(folder: Path, tokenizer: Tokenizer, chapters: list[list[np.ndarray]]) -> None:
    """Writes a data folder whose training text has these chapters, each of arrays of tokens."""
    with DatasetWriter(folder) as writer:
        writer.open(tokenizer)
        for number, parts in enumerate(chapters):
            writer.begin_chapter("train", 0, f"第{number}章")
            for ids in parts:
                writer.add("train", ids, characters=len(tokenizer.decode(ids)))
        writer.end_document("train")
        writer.finish([{"title": "书"}], {})


@pytest.mark.parametrize("decoded_tokens", [1, 2, 5, 1000])
def test_characters_and_chapters_survive_decoding_in_pieces(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded_tokens: int
) -> None:
    monkeypatch.setattr(copies, "DECODED_TOKENS", decoded_tokens)
    monkeypatch.setattr(copies, "JOINED_PIECES", 3)
    bodies = ["灯🏮下无人，é̀ 只有风。🏮🏮", "渡口🛶的船夫走了，再没回来。"]
    ids = [tokenizer.encode_to_numpy(body) for body in bodies]
    assert len(ids[0]) > len(bodies[0])  # characters of several tokens
    write_text(tmp_path / "data", tokenizer, [[part] for part in ids])
    source = TrainingText(tmp_path / "data")
    assert source.find_copies(bodies) == [
        (len(body), [(0, len(body), f"《书》第{number}章")]) for number, body in enumerate(bodies)
    ]
    across = bodies[0][-6:] + bodies[1][:6]
    assert source.find_copies([across]) == [(12, [(0, 12, "《书》第0章")])]


@pytest.mark.parametrize("n_chapters", [1, 600])
def test_memory_hardly_grows_with_the_training_text(
    tokenizer: Tokenizer, text: str, tmp_path: Path, n_chapters: int
) -> None:
    ids, draw = tokenizer.encode_to_numpy(text), np.random.default_rng(1)
    answers = [text[start : start + 60] for start in range(0, len(text) - 60, 1000)]
    peaks, characters = [], []
    for repeats in (20, 60):
        noisy = np.tile(ids, repeats)
        noisy[draw.integers(0, len(noisy), len(noisy) // 20)] = tokenizer.encode("雨")[0]
        folder = tmp_path / str(repeats)
        write_text(folder, tokenizer, [[part] for part in np.array_split(noisy, n_chapters)])
        tracemalloc.start()
        source = TrainingText(folder)
        assert max(found.longest for found in source.find_copies(answers)) >= MIN_COPIED
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        characters.append(source.characters)
    assert characters[1] > 1_500_000
    # The tokens of a short text are in memory: 2 bytes for about a character.
    assert peaks[1] - peaks[0] < 4 * (characters[1] - characters[0])
    assert peaks[1] < 64e6
