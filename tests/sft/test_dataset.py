"""Question datasets: what is written and checked, and that batches depend on (seed, row) alone."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shuoshu.core.errors import UserError
from shuoshu.sft.augment import QuestionNoise
from shuoshu.sft.dataset import QuestionDataset, read_pairs, write_rows
from shuoshu.sft.pairs import Pair
from shuoshu.text.dataset import IGNORE
from shuoshu.text.tokenizer_folder import load_tokenizer
from shuoshu.training.step import micro_batches
from tests.sft.helpers import conversation

# ---------------------------------------------------------------- files


def test_written_rows_decode_to_the_questions_and_answers(qa: Path) -> None:
    tokenizer = load_tokenizer(qa)
    for split in ("train", "val", "test"):
        dataset, records = QuestionDataset(qa, split), read_pairs(qa, split)
        assert [record["row"] for record in records] == list(range(len(dataset)))
        raw = np.fromfile(qa / f"{split}.bin", "<u2").reshape(-1, dataset.width)
        for record in records:
            ids, mask = dataset.row(record["row"])
            assert tokenizer.decode(ids[mask == 1]) == record["answer"]
            assert record["messages"][-1]["content"] == record["answer"]
            assert ids[0] == tokenizer.user and ids[-1] == tokenizer.end and mask[-1] == 1
            assert tokenizer.decode(ids[mask == 0]) == record["question"]
            assert (raw[record["row"], len(ids) :] == tokenizer.pad).all()
            assert not dataset.mask[record["row"], len(ids) :].any()
    assert any("<|endoftext|>" in record["question"] for record in read_pairs(qa, "train"))


# ---------------------------------------------------------------- batches


@pytest.fixture(scope="module")
def mixed(tokenizer, tmp_path_factory) -> Path:
    """150 rows of very different lengths, each with another answer."""
    draw = random.Random(5)
    folder = tmp_path_factory.mktemp("mixed") / "rows"
    rendered = []
    for number in range(150):
        question = "问" * draw.randint(1, 15) + "？"
        answer = f"{number}" + "答" * draw.choice([0, 1, 2, 9])
        split = "train" if number else "val"
        pair = Pair(conversation(question, answer), f"x, row {number}", split)
        rendered.append((pair, [tokenizer.render(pair.messages)]))
    write_rows(folder, tokenizer, rendered, {"turns": 1})
    return folder


def answers_in(rows: tuple[np.ndarray, np.ndarray], tokenizer) -> list[str]:
    return [tokenizer.decode(row[row != IGNORE].tolist()) for row in rows[1]]


@pytest.mark.parametrize("step_rows", [1, 4, 7, 200])
def test_epoch_has_each_row_once_and_the_next_epoch_another_order(
    mixed: Path, tokenizer, step_rows: int
) -> None:
    dataset = QuestionDataset(mixed, "train", step_rows)
    first, second = (
        answers_in(dataset.rows(epoch * len(dataset), len(dataset), 64, 1), tokenizer)
        for epoch in (0, 1)
    )
    answers = sorted(record["answer"] for record in read_pairs(mixed, "train"))
    assert sorted(first) == sorted(second) == answers
    assert first != second != answers_in(dataset.rows(len(dataset), len(dataset), 64, 2), tokenizer)


def test_target_count_equals_the_targets_across_epochs(mixed: Path) -> None:
    dataset = QuestionDataset(mixed, "train", 8)
    for first in (0, 7, len(dataset) - 3, 2 * len(dataset) - 1):
        _, targets = dataset.rows(first, 8, 64, 3)
        assert dataset.count_targets(first, 8, 64, 3) == (targets != IGNORE).sum()


def test_steps_have_rows_of_similar_length_in_random_order(mixed: Path) -> None:
    dataset = QuestionDataset(mixed, "train", 8)
    steps = len(dataset) // 8

    def padding(widths: list[int]) -> int:
        return sum(8 * width for width in widths) - sum(
            int(length) - 1 for length in dataset.lengths
        )

    widths = [dataset.rows(8 * step, 8, 64, 1)[0].shape[1] for step in range(steps)]
    order = np.random.default_rng(0).permutation(len(dataset))
    at_random = padding(
        [int(dataset.lengths[order[8 * step : 8 * step + 8]].max()) - 1 for step in range(steps)]
    )
    assert padding(widths) < at_random / 4
    assert widths not in (sorted(widths), sorted(widths, reverse=True)), (
        "the order of the steps is random"
    )


def test_batches_have_few_widths_and_little_padding(tmp_path: Path, tokenizer) -> None:
    pairs = [
        Pair(conversation("问" * n, "答"), "x, row 1", "train" if n else "val") for n in range(300)
    ]
    write_rows(
        tmp_path / "rows",
        tokenizer,
        [(pair, [tokenizer.render(pair.messages)]) for pair in pairs],
        {"turns": 1},
    )
    dataset = QuestionDataset(tmp_path / "rows", "train")
    widths = set()
    for first in range(len(dataset)):
        ids, targets = dataset.rows(first, 1, 64, 0)
        (number,) = dataset.row_ids(first, 1, 64, 0)
        width, (row, mask) = ids.shape[1], dataset.row(number)
        assert len(row) - 1 <= width <= min(dataset.width - 1, (len(row) - 1) * 9 / 8)
        assert ids[0, : len(row) - 1].tolist() == row[:-1].tolist()
        assert targets[0][targets[0] != IGNORE].tolist() == row[mask == 1].tolist()
        widths.add(width)
    of_batch = dataset.rows(0, 8, 64, 0)[0].shape[1]
    assert of_batch == max(dataset.rows(first, 1, 64, 0)[0].shape[1] for first in range(8))
    # All widths up to 16, then 8 for each doubling.
    max_widths = 16 + 8 * (dataset.width.bit_length() - 4)
    assert len(widths) <= max_widths < 150 < len(set(dataset.lengths.tolist()))


def trained_rows(
    mixed: Path, rank: int, world: int, batch_size: int, noise: QuestionNoise | None
) -> list[list[list[int]]]:
    """What one of `world` processes trains in the first 40 steps of 8 rows, row by row."""
    settings = SimpleNamespace(seed=3)
    train = QuestionDataset(mixed, "train", 8, noise)
    data = SimpleNamespace(train=train, rows_per_step=8, votes=False)
    trainer = SimpleNamespace(
        settings=settings,
        processes=SimpleNamespace(rank=rank, world_size=world),
        micro_rows=batch_size,
        block_size=64,
        device=torch.device("cpu"),
    )
    steps = []
    for step in range(40):
        rows: list[list[int]] = []
        for batch in micro_batches(trainer, data, step):
            ids, trained, _, positions = batch.inputs
            targets = np.full(ids.shape, IGNORE)
            targets.flat[positions] = trained
            for row_ids, row in zip(ids.numpy(), targets, strict=True):
                length = np.flatnonzero(row != IGNORE)[-1] + 1  # padding follows
                rows.append([batch.count, *row_ids[:length].tolist(), *row[:length].tolist()])
        steps.append(rows)
    return steps


@pytest.mark.parametrize("is_noisy", [False, True])
def test_one_process_and_two_train_the_same_rows(mixed: Path, tokenizer, is_noisy: bool) -> None:
    noise = QuestionNoise(tokenizer, 0.2, 0.2) if is_noisy else None
    one = trained_rows(mixed, 0, 1, 8, noise)
    halves = [trained_rows(mixed, rank, 2, size, noise) for rank, size in ((0, 4), (1, 2))]
    assert one == [first + second for first, second in zip(*halves, strict=True)]
    assert one == trained_rows(mixed, 0, 1, 4, noise)


def test_rows_do_not_depend_on_the_rows_read_before(mixed: Path, tokenizer) -> None:
    noise = QuestionNoise(tokenizer, 0.2, 0.2)
    dataset = QuestionDataset(mixed, "train", 8, noise)
    for first in (1000, 3, 160, 0):  # in any order of the epochs
        for here, fresh in zip(
            dataset.rows(first, 5, 64, 1),
            QuestionDataset(mixed, "train", 8, noise).rows(first, 5, 64, 1),
            strict=True,
        ):
            assert np.array_equal(here, fresh)


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("name", ["train.bin", "train.mask.bin", "train.jsonl", "val.mask.bin"])
@pytest.mark.parametrize("damage", ["flip", "cut", "lose"])
def test_damaged_file_is_refused_by_name(
    mixed: Path, tmp_path: Path, name: str, damage: str
) -> None:
    for file in mixed.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(
        {"flip": whole[:-1] + bytes([whole[-1] ^ 1]), "cut": whole[:-2], "lose": b""}[damage]
    )
    if damage == "lose":
        (tmp_path / name).unlink()
    split = name.partition(".")[0]
    with pytest.raises(UserError, match=f"{name}.*prepare the data again"):
        read_pairs(tmp_path, split) if name.endswith(".jsonl") else QuestionDataset(tmp_path, split)


@given(data=st.data())
def test_damaged_meta_is_read_or_a_user_error(mixed: Path, tmp_path_factory, damage, data) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    for file in mixed.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "meta.json").unlink()
    meta = json.loads((mixed / "meta.json").read_text(encoding="utf-8"))
    (folder / "meta.json").write_text(json.dumps(damage(data, meta)), encoding="utf-8")
    try:
        dataset = QuestionDataset(folder, "train")
        assert len(dataset.rows(0, 3, 64, 0)[0]) == 3
        assert len(read_pairs(folder, "train")) == 149
    except UserError as error:
        assert "prepare the data again" in str(error)
