"""Passages: the right ones are found, in whole sentences, of the right chapter, in any text."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuoshu.answering.passages import PASSAGE_WIDTH, PassageIndex
from shuoshu.answering.sections import folder_sections
from shuoshu.core.errors import REPO_ROOT
from shuoshu.text.data_folder import DatasetWriter
from shuoshu.text.dataset import TextDataset, read_meta
from shuoshu.text.tokenizer import Tokenizer
from shuoshu.text.tokenizer_folder import load_tokenizer

NOVELLA = REPO_ROOT / "data" / "novella" / "迟雁记.txt"
FILLER = "天色暗了下来，风吹过空空的街道。没有人说话，只有远处的钟声。"
LATIN_FILLER = "The day went on and nobody said a word about it. "


def evidence_found(index: PassageIndex, questions: Sequence[dict], count: int = 3) -> float:
    """The share of questions whose evidence lies whole within one of the first passages."""
    return float(
        np.mean(
            [
                any(row["evidence"] in passage.text for passage in passages)
                for row in questions
                for passages in [index.search(row["question"], count=count)]
            ]
        )
    )


def make_book(fact: str, filler: str = FILLER, place: int = 40) -> str:
    return filler * place + fact + filler * (80 - place)


def index_of(*texts: str) -> PassageIndex:
    return PassageIndex.from_texts([(f"书{n}", text) for n, text in enumerate(texts)])


@pytest.mark.parametrize("place", [0, 40, 80])
@pytest.mark.parametrize(
    ("fact", "question", "filler"),
    [
        ("沈砚把铁尺埋在槐树底下。", "铁尺埋在了哪里？", FILLER),
        ("Mercutio was buried under the old oak. ", "Where is MERCUTIO buried?", LATIN_FILLER),
    ],
)
def test_a_fact_is_found_anywhere_in_a_book(place, fact, question, filler):
    index = index_of(make_book(fact, filler, place))
    best, *_ = index.search(question)
    assert fact.strip() in best.text
    assert best.score > 0


def test_scores_fall_and_a_rare_word_beats_a_common_one():
    text = make_book("铁尺在井里。", place=20) + make_book("钟声里有人喊。")
    passages = index_of(text).search("钟声 铁尺", count=10)
    assert "铁尺" in passages[0].text
    assert [p.score for p in passages] == sorted((p.score for p in passages), reverse=True)


def test_two_characters_in_a_row_count_more_than_apart():
    # Both facts have the same characters, in passages of equal length.
    text = make_book("铁匠量了一把尺。", place=20) + make_book("匠人量了一把铁尺。")
    assert "铁尺" in index_of(text).search("铁尺")[0].text
    assert "铁匠" in index_of(text).search("铁匠")[0].text


def test_words_of_the_answer_count():
    text = make_book("铁尺在井里。", place=20) + make_book("铁尺是沈砚的。")
    index = index_of(text)
    assert "沈砚" in index.search("铁尺呢？", "沈砚。")[0].text
    assert "井里" in index.search("铁尺呢？", "井里。")[0].text


def test_the_neighbourhood_decides_between_equal_passages():
    near = "柳青禾进了门。" + FILLER * 9 + "铁尺在桌上。"
    far = FILLER * 40 + "铁尺在桌上。"
    index = index_of(far + FILLER * 40 + near + FILLER * 40)
    best = index.search("铁尺 柳青禾", count=2)
    offset = (far + FILLER * 40 + near).rindex("铁尺")
    assert any(p.start <= offset < p.start + len(p.text) for p in best)
    assert all(p.start > len(far) for p in best)


# ---------------------------------------------------------------- shape of passages


def test_passages_are_whole_sentences_that_do_not_overlap():
    text = NOVELLA.read_text(encoding="utf-8")
    passages = index_of(text).search("阿迟和师父说了什么？", count=30)
    assert len(passages) == 30
    for passage in passages:
        assert text[passage.start :].startswith(passage.text)
        assert (
            passage.text[-1] in "。！？…”’」』）" or text[passage.start + len(passage.text)] == "\n"
        )
    spans = sorted((p.start, p.start + len(p.text)) for p in passages)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert 200 < np.mean([end - start for start, end in spans]) < 300


def test_latin_passages_have_more_characters():
    best, *_ = index_of(make_book("Mercutio fell. ", LATIN_FILLER)).search("Mercutio")
    assert 550 < len(best.text) <= 700


def test_passages_keep_to_one_chapter_of_one_book():
    book = f"引子铁尺。\n第一回 雨夜\n{FILLER}铁尺一。\n第二回 晴天\n铁尺二。{FILLER}\n"
    index = PassageIndex.from_texts([("甲", book), (None, "铁尺三。")])
    passages = {p.text: p for p in index.search("铁尺", count=9)}
    assert sorted(p.source or "" for p in passages.values()) == [
        "", "《甲》", "《甲》第一回 雨夜", "《甲》第二回 晴天",
    ]  # fmt: skip
    for text, passage in passages.items():
        home = book if passage.source else "铁尺三。"
        assert home[passage.start :].startswith(text)
        assert text.count("铁尺") == 1


@given(
    st.text("铁尺a é\u0301。，\n\r\u3000🏮👩\u200d🔧👍\U0001f3fd\ud83d", max_size=900),
    st.integers(0, 5),
)
def test_any_text_gives_valid_passages(text, count):
    passages = index_of(text).search("铁尺 a", count=count)
    assert len(passages) <= count
    for passage in passages:
        assert passage.text == text[passage.start : passage.start + len(passage.text)]
        assert passage.text


@pytest.mark.parametrize("sign", ["e\u0301", "🏮", "👩\u200d🔧", "👍\U0001f3fd", "铁"])
def test_a_huge_line_is_cut_between_whole_characters(sign):
    passages = index_of("铁" + sign * 5000).search("铁 e 尺", count=10**6)
    passages += index_of((sign + "尺") * 3000).search("尺", count=10**6)
    assert len(passages) > 5
    for passage in passages:
        assert len(passage.text) <= 3 * PASSAGE_WIDTH
        assert not unicodedata.combining(passage.text[0])
        assert passage.text[0] not in "\u200d\U0001f3fd" and passage.text[-1] != "\u200d"


def test_a_long_sentence_is_cut_after_a_comma():
    text = "铁尺在井里" * 30 + "，" + "沈砚在渡口" * 30 + "。"
    assert index_of(text).search("沈砚")[0].text == "沈砚在渡口" * 30 + "。"


# ---------------------------------------------------------------- questions that find little


@pytest.mark.parametrize("question", ["", " \n", "？！", "Xyzzy", "\ud83d", "🏮"])
def test_a_question_without_known_words_finds_nothing(question):
    assert index_of(make_book("铁尺。")).search(question) == []


@pytest.mark.parametrize("texts", [[], [""], ["\n \n"], ["。"]])
def test_an_empty_book_has_no_passages(texts):
    assert index_of(*texts).search("铁尺") == []


def test_all_passages_of_a_short_book_come_once():
    assert [p.text for p in index_of("铁尺。").search("铁尺", count=50)] == ["铁尺。"]
    assert index_of("铁尺。").search("铁尺", count=0) == []


def test_a_very_long_question_is_searched_by_its_rare_words():
    index = index_of(make_book("沈砚把铁尺埋在槐树底下。"))
    question = FILLER * 3500 + "铁尺"
    assert len(question) > 100_000
    assert "铁尺" in index.search(question)[0].text


def test_searching_leaves_the_index_as_it_was():
    index = index_of(make_book("铁尺。"))
    assert index.search("钟声", count=9) == index.search("钟声", count=9)


# ---------------------------------------------------------------- the text behind a model


def test_the_books_of_a_data_folder_come_in_order_with_their_validation_text(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    parts = [  # book, split, chapter, text: the first book has no validation text
        (0, "train", "第一回", "第一回\n铁尺甲。"),
        (1, "train", None, "铁尺乙。🏮"),
        (1, "train", "第二回", "第二回\n铁尺丙。"),
        (1, "val", None, "铁尺丁。"),
        (1, "val", "第三回", "第三回\n铁尺戊。"),
    ]
    with DatasetWriter(tmp_path / "data") as writer:
        writer.open(tokenizer)
        for number, (book, split, chapter, text) in enumerate(parts):
            if chapter:
                writer.begin_chapter(split, book, chapter)
            writer.add(split, tokenizer.encode_to_numpy(text), len(text))
            if [*parts, (None, None)][number + 1][:2] != (book, split):
                writer.end_document(split)
        lengths = [sum(len(p[3]) for p in parts if p[0] == book) for book in (0, 1)]
        writer.finish(
            [{"title": t, "characters": n} for t, n in zip("上下", lengths, strict=True)], {}
        )
    assert [tuple(section) for section in folder_sections(tmp_path / "data")] == [
        ("《上》第一回", 0, "第一回\n铁尺甲。"),
        ("《下》", 0, "铁尺乙。🏮"),
        ("《下》第二回", 5, "第二回\n铁尺丙。铁尺丁。"),
        ("《下》第三回", 17, "第三回\n铁尺戊。"),
    ]


def write_settings(out_dir: Path, folder: Path, train: str, **settings: str) -> Path:
    """The settings.json of a model that was trained on this folder."""
    out_dir.mkdir()
    saved = {"data": {"folder": str(folder), "train": train}, "settings": settings, "machine": {}}
    (out_dir / "settings.json").write_text(json.dumps(saved), encoding="utf-8")
    return out_dir


def test_the_index_of_a_model_has_the_whole_book(dataset: Path, tmp_path: Path) -> None:
    sha256 = read_meta(dataset)["splits"]["train"]["sha256"]
    base = write_settings(tmp_path / "base", dataset, sha256)
    tuned = write_settings(tmp_path / "tuned", tmp_path / "questions", "", init_from=str(base))
    tokenizer = load_tokenizer(dataset)
    parts = [tokenizer.decode(TextDataset(dataset, split).tokens) for split in ("train", "val")]
    for out_dir in (base, tuned):
        index = PassageIndex.find(out_dir)
        assert index.text == "".join(parts) and all(parts)
        assert index.search(parts[1], count=1)[0].source.startswith("《book》第")


def test_a_model_without_its_text_has_no_index(dataset: Path, tmp_path: Path) -> None:
    sha256 = read_meta(dataset)["splits"]["train"]["sha256"]
    assert PassageIndex.find(tmp_path) is None
    assert PassageIndex.find(write_settings(tmp_path / "a", tmp_path / "gone", sha256)) is None
    assert PassageIndex.find(write_settings(tmp_path / "b", dataset, "another")) is None
    damaged = Path(shutil.copytree(dataset, tmp_path / "damaged"))
    (damaged / "val.bin").write_bytes(b"")
    assert PassageIndex.find(write_settings(tmp_path / "c", damaged, sha256)) is None


def test_the_evidence_of_bundled_questions_is_found():
    index = PassageIndex.from_texts([("迟雁记", NOVELLA.read_text(encoding="utf-8"))])
    files = sorted((REPO_ROOT / "data" / "novella_qa").glob("*.json"))
    rows = [row for file in files for row in json.loads(file.read_text(encoding="utf-8"))]
    rows = [row for row in rows if row["split"] == "val" and row["evidence"]][::3]
    assert evidence_found(index, rows) > 0.55
    with_answer = [row | {"question": row["question"] + row["answer"]} for row in rows]
    assert evidence_found(index, with_answer) > 0.9
