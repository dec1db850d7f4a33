"""Datasets with paraphrases: what an epoch contains, and which data can be paraphrased."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from shuoshu.core.errors import UserError
from shuoshu.sft.augment import (
    TEXT_UNIT,
    QuestionNoise,
    distinguishing_lengths,
)
from shuoshu.sft.dataset import QuestionDataset, read_pairs, write_rows
from shuoshu.sft.pairs import Pair
from shuoshu.sft.rendering import split_long_answer
from shuoshu.text.dataset import IGNORE
from shuoshu.text.tokenizer import Tokenizer
from tests.sft.helpers import REVIEWS, conversation, generators


def decode(ids: np.ndarray, targets: np.ndarray, tokenizer: Tokenizer) -> tuple[str, str]:
    """The question of a row, and the text that it trains."""
    row = ids.tolist()
    question = row[row.index(tokenizer.user) + 1 : row.index(tokenizer.assistant)]
    return tokenizer.decode(question), tokenizer.decode(targets[targets != IGNORE].tolist())


def read_epoch(
    dataset: QuestionDataset, tokenizer: Tokenizer, epoch: int = 0
) -> list[tuple[int, str, str]]:
    """(entry, question, trained text) of each row of an epoch."""
    size = dataset.rows_per_epoch(64)
    entries = dataset.entries(epoch * size, size, 1).tolist()
    result = []
    for n, entry in enumerate(entries):
        ids, targets = dataset.rows(epoch * size + n, 1, 64, 1)
        result.append((entry, *decode(ids[0], targets[0], tokenizer)))
    return result


# ---------------------------------------------------------------- epochs


def test_epoch_trains_each_answer_whole_for_the_row_and_one_paraphrase_and_else_its_beginning(
    paraphrased, tokenizer_of_qa, qa: Path
) -> None:
    dataset, tokenizer = paraphrased, tokenizer_of_qa
    records = read_pairs(qa, "train")
    answers = list(dict.fromkeys(record["answer"] for record in records))
    ids_of = {answer: [*tokenizer.encode(answer), tokenizer.end] for answer in answers}
    lengths = dict(zip(answers, distinguishing_lengths(list(ids_of.values())), strict=True))
    expected_rows: Counter = Counter()
    expected_paraphrases: Counter = Counter()
    for record in records:
        ids = ids_of[record["answer"]]
        expected_rows[record["question"], record["answer"]] += 1
        expected_paraphrases[tokenizer.decode(ids)] += 1
        expected_paraphrases[tokenizer.decode(ids[: lengths[record["answer"]]])] += 2

    size = dataset.rows_per_epoch(64)
    assert size == 4 * len(records)
    sources = Counter(dataset.row_ids(0, size, 64, 1).tolist())
    assert sources == dict.fromkeys(range(len(dataset)), 4)
    epoch = read_epoch(dataset, tokenizer)
    assert Counter(row[1:] for row in epoch if row[0] < len(dataset)) == expected_rows
    paraphrases = [row[1:] for row in epoch if row[0] >= len(dataset)]
    assert Counter(trained for _, trained in paraphrases) == expected_paraphrases
    questions = {question for question, _ in paraphrases}
    new = questions - {question for question, _ in expected_rows}
    assert len(new) > 0.7 * len(paraphrases), "most paraphrases are no training question"
    again = {question for _, question, _ in read_epoch(dataset, tokenizer, 1)}
    assert len(questions & again) < 0.2 * len(paraphrases), "each epoch has new ones"


def test_rows_of_the_file_have_noise_and_paraphrases_have_none(qa: Path, tokenizer_of_qa) -> None:
    tokenizer = tokenizer_of_qa
    dataset = QuestionDataset(qa, "train", 8, QuestionNoise(tokenizer, 0.0, 0.5))
    dataset.add_paraphrases(tokenizer, 1)
    questions = set(dataset.paraphraser.questions.values())
    texts = {*questions, *dataset.paraphraser.answer_texts}
    units = {unit for text in texts for unit in TEXT_UNIT.findall(text)}
    epoch = read_epoch(dataset, tokenizer)
    rows = [question for entry, question, _ in epoch if entry < len(dataset)]
    paraphrases = [question for entry, question, _ in epoch if entry >= len(dataset)]
    assert np.mean([question in questions for question in rows]) < 0.1
    assert all(set(TEXT_UNIT.findall(question)) <= units for question in paraphrases)


def test_paraphrases_depend_on_seed_and_epoch(tokenizer, tmp_path: Path) -> None:
    chat = conversation("谁？", "老船夫。", "还有呢？", "没有了。")
    single = conversation("清晨的时候，沈砚在城南的渡口到底做了什么事情呢？", "等船。")
    dataset = QuestionDataset(write_pairs(tmp_path, tokenizer, [chat, single]), "train")
    dataset.add_paraphrases(tokenizer, 98)
    size = dataset.rows_per_epoch(64)
    assert size == 100

    def questions(epoch: int, seed: int) -> list[str]:
        """Nearly all are paraphrases of one question, so their order doesn't matter."""
        rows = zip(*dataset.rows(epoch * size, size, 64, seed), strict=True)
        return [decode(*row, tokenizer)[0] for row in rows]

    first = questions(0, 1)
    assert first == questions(0, 1)
    for others in (questions(0, 2), questions(1, 1)):
        assert np.mean([a == b for a, b in zip(first, others, strict=True)]) < 0.2


def test_target_count_and_rows_do_not_depend_on_the_rows_read_before(
    paraphrased, tokenizer_of_qa, qa: Path
) -> None:
    dataset = paraphrased
    size = dataset.rows_per_epoch(64)
    for first in (0, 77, size - 3, 2 * size - 1):
        ids, targets = dataset.rows(first, 8, 64, 3)
        assert dataset.count_targets(first, 8, 64, 3) == (targets != IGNORE).sum()
        fresh = QuestionDataset(qa, "train", 8)
        fresh.add_paraphrases(tokenizer_of_qa, 3)
        for n in (7, 2):
            one_ids, one_targets = fresh.rows(first + n, 1, 64, 3)
            width = one_ids.shape[1]
            assert np.array_equal(ids[n, :width], one_ids[0])
            assert np.array_equal(targets[n, :width], one_targets[0])


def test_expected_lengths_are_close_to_the_real_ones(paraphrased) -> None:
    dataset = paraphrased
    sources, counts = dataset.sources[len(dataset) :], dataset.trained[len(dataset) :]
    rows = dataset.paraphraser.paraphrase_rows(
        sources.tolist(), counts.tolist(), generators(len(sources))
    )
    lengths = np.array([len(ids) for ids, _ in rows])
    assert np.mean(np.abs(lengths - dataset.lengths[len(dataset) :])) < 5


# ---------------------------------------------------------------- which data can be paraphrased


def write_pairs(folder: Path, tokenizer: Tokenizer, conversations: list[list[dict]]) -> Path:
    """Writes training rows; those longer than 64 tokens are split."""
    rendered = []
    for messages in conversations:
        ids, mask = tokenizer.render(messages)
        rows = [(ids, mask)] if len(ids) <= 64 else split_long_answer(ids, mask, 64)
        rendered.append((Pair(messages, "x, row 1", "train"), rows))
    write_rows(folder, tokenizer, rendered, {"turns": 2})
    return folder


def test_only_single_questions_with_their_whole_answer_are_paraphrased(
    tokenizer, tmp_path: Path
) -> None:
    system = {"role": "system", "content": "你是老船夫。"}
    chat = conversation("谁？", "老船夫。", "还有呢？", "没有了。")
    long = conversation("怎样？", "走" * 90)
    single = [system, *conversation("点灯的是谁？", "沈砚。")]
    dataset = QuestionDataset(write_pairs(tmp_path, tokenizer, [chat, long, single]), "train")
    assert len(dataset) > 3, "the long answer has several rows"
    dataset.add_paraphrases(tokenizer, 5)
    last = len(dataset) - 1
    assert dataset.paraphraser.sources.tolist() == [last]
    assert dataset.rows_per_epoch(64) == len(dataset) + 5
    [(ids, _)] = dataset.paraphraser.paraphrase_rows([last], [1], generators(1))
    assert tokenizer.decode(ids.tolist()).startswith(system["content"])


def test_data_that_can_not_be_paraphrased_is_refused(tokenizer, tmp_path: Path) -> None:
    reviews = [conversation(*pair) for pair in REVIEWS]
    labelled = QuestionDataset(write_pairs(tmp_path / "labelled", tokenizer, reviews), "train")
    message = r"paraphrases=2: too few rows of .*labelled have words .*--paraphrases=0"
    with pytest.raises(UserError, match=message):
        labelled.add_paraphrases(tokenizer, 2)
    chats = [conversation("谁？", "老船夫。", "还有呢？", "没有了。")]
    chat = QuestionDataset(write_pairs(tmp_path / "chat", tokenizer, chats), "train")
    with pytest.raises(UserError, match=r"paraphrases=5: no row of .*chat is one question"):
        chat.add_paraphrases(tokenizer, 5)
