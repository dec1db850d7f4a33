"""Rows of labelled texts: one target each, noise on the text alone, weights of the labels."""

from __future__ import annotations

import json

import numpy as np
import pytest

import prepare_sft
from shuoshu.core.errors import UserError
from shuoshu.sft.label_dataset import LabelDataset, TokenNoise
from shuoshu.text.dataset import IGNORE
from shuoshu.text.tokenizer_folder import load_tokenizer

LABELS = ["好", "坏"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """30 texts for training, two thirds of them good."""
    home = tmp_path_factory.mktemp("labels")
    rows = [
        {
            "text": f"第{n}回，{'风雨大作，行人断绝' * (n % 3)}",
            "label": "坏" if n % 3 == 0 else "好",
        }
        for n in range(30)
    ]
    rows = [{**row, "split": "train"} for row in rows]
    rows += [{**row, "text": row["text"] + "。", "split": "val"} for row in rows[:6]]
    file = home / "texts.json"
    file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    templates = ["--question=评：{text}", "--answer={label}", "--labels=好=好,坏=坏"]
    assert prepare_sft.main([str(file), f"--out={home / 'data'}", *templates]) == 0
    return home / "data"


@pytest.fixture
def tokenizer(folder):
    return load_tokenizer(folder)


@pytest.fixture
def dataset(folder, tokenizer):
    answers = [tokenizer.encode_answer(label) for label in LABELS]
    return LabelDataset(folder, "train", answers, [5, 6], step_rows=4)


def test_a_rows_only_target_is_its_labels_mark_at_the_end_of_the_prompt(dataset, tokenizer):
    ids, targets = dataset.rows(0, 30, 64, seed=1)
    assert ((targets != IGNORE).sum(axis=1) == 1).all()
    for row_ids, row in zip(ids, targets, strict=True):
        [place] = np.flatnonzero(row != IGNORE)
        assert row_ids[place] == tokenizer.assistant
        answer = tokenizer.decode(row_ids[place + 1 :].tolist())
        assert LABELS[[5, 6].index(row[place])] in answer
    assert sorted(targets[targets != IGNORE]) == [5] * 20 + [6] * 10
    assert dataset.count_targets(3, 7, 64, 1) == 7


def test_noise_changes_the_text_and_nothing_else(dataset, tokenizer):
    noise = TokenNoise(tokenizer, dataset.ids, 0.4, 0.3)
    draw = np.random.default_rng(0)
    changed = dropped = 0
    for number in range(30):
        ids, mask = dataset.row(number)
        new_ids, new_mask = noise(ids, mask, draw)
        special = np.flatnonzero(noise.is_special[ids])
        assert new_ids[noise.is_special[new_ids]].tolist() == ids[special].tolist()
        assert new_ids[new_mask == 1].tolist() == ids[mask == 1].tolist()
        dropped += len(ids) - len(new_ids)
        changed += len(ids) == len(new_ids) and (ids != new_ids).any()
    assert dropped > 30 and not np.array_equal(new_ids, ids)


def test_replaced_tokens_are_those_of_the_texts(dataset, tokenizer):
    noise = TokenNoise(tokenizer, dataset.ids, 0.0, 1.0)
    ids, mask = dataset.row(0)
    seen = {n for k in range(50) for n in noise(ids, mask, np.random.default_rng(k))[0].tolist()}
    assert seen <= set(dataset.ids.ravel().tolist())


def test_the_rows_of_a_seed_are_always_the_same(dataset, tokenizer):
    dataset.noise = TokenNoise(tokenizer, dataset.ids, 0.2, 0.1)
    first, again = dataset.rows(5, 8, 64, 3), dataset.rows(5, 8, 64, 3)
    other = dataset.rows(5, 8, 64, 4)
    assert all(map(np.array_equal, first, again)) and not all(map(np.array_equal, first, other))


@pytest.mark.parametrize(
    "setting, ratio", [("balanced", 2.0), ("好=1,坏=3", 3.0), ("坏=0.5, 好=1", 0.5)]
)
def test_weights_have_the_mean_one_over_the_rows(dataset, setting, ratio):
    dataset.set_weights(LABELS, setting)
    good, bad = dataset.weights
    assert bad / good == pytest.approx(ratio)
    assert (20 * good + 10 * bad) / 30 == pytest.approx(1)


@pytest.mark.parametrize(
    "setting", ["好=1", "好=1,坏=0", "好=1,坏=-1", "好=1,坏=nan", "很多", "好=1,差=1"]
)
def test_weights_that_make_no_sense_are_refused(dataset, setting):
    with pytest.raises(UserError, match="label_weights="):
        dataset.set_weights(LABELS, setting)


def test_rows_with_another_answer_are_refused(folder, tokenizer):
    with pytest.raises(UserError, match="other answers than its labels"):
        LabelDataset(folder, "train", [tokenizer.encode_answer("好")], [5])
