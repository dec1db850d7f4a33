"""Every token is scored once, in float64; the first one follows an end token."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from shuoshu.core.distributed import Processes
from shuoshu.evaluation.loss import score
from shuoshu.sft.dataset import QuestionDataset, answer_batches
from shuoshu.text.dataset import IGNORE, TextDataset
from shuoshu.text.windows import text_windows


def score_by_window(model, tokens, end):
    """The sums of disjoint windows, without batches or padding."""
    nats, text = 0.0, 0.0
    ids, block = [end, *tokens], model.config.block_size
    for start in range(0, len(tokens), block):
        targets = tokens[start : start + block]
        logp = model(torch.tensor([ids[start : start + len(targets)]]))[0].double().log_softmax(-1)
        each = [-logp[i, t].item() for i, t in enumerate(targets)]
        nats += sum(each)
        text += sum(x for x, t in zip(each, targets, strict=True) if t != end)
    return nats, text


@pytest.mark.parametrize("length", [1, 63, 64, 65, 300])
def test_every_token_is_scored_once(pretrained_model, length):
    model, tokenizer = pretrained_model
    tokens = np.random.default_rng(0).integers(0, tokenizer.n_vocab - 5, length)
    tokens[length // 2] = tokenizer.end
    windows = text_windows(tokens.astype("<u2"), tokenizer.end, model.config.block_size, 3)
    scored = score(model, model, windows, tokenizer.end)
    nats, text = score_by_window(model, tokens.tolist(), tokenizer.end)
    assert scored.tokens == length
    assert scored.nats == pytest.approx(nats, rel=1e-5)
    assert scored.text_nats == pytest.approx(text, rel=1e-5, abs=1e-9)
    assert scored.loss == scored.nats / length
    assert scored.bits_per(10) == pytest.approx(text / math.log(2) / 10, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("length, rows", [(300, 3), (300, 4), (64, 4), (1, 2), (1000, 16)])
def test_all_batches_of_windows_have_one_shape(length, rows):
    batches = list(text_windows(np.arange(length), 0, 64, rows))
    assert len({ids.shape for ids, _ in batches}) == 1
    windows = -(-length // 64)
    assert len(batches) == -(-windows // rows)  # as few as without empty rows
    assert sum(len(ids) for ids, _ in batches) - windows < len(batches)


def test_empty_rows_change_no_sum(pretrained_model):
    model, tokenizer = pretrained_model
    tokens = np.random.default_rng(0).integers(0, 500, 450)  # eight windows, two batches of four
    batches = list(text_windows(tokens, tokenizer.end, 64, 4))
    filled = [
        tuple(
            np.concatenate([a, np.full_like(a[:3], fill)])
            for a, fill in zip(b, (0, IGNORE), strict=True)
        )
        for b in batches
    ]
    plain, padded = (score(model, model, each, tokenizer.end) for each in (batches, filled))
    assert padded.tokens == plain.tokens == 450
    assert padded.nats == pytest.approx(plain.nats, rel=1e-6)
    assert padded.text_nats == pytest.approx(plain.text_nats, rel=1e-6)


def test_chosen_windows_are_whole_ones_from_the_first_to_the_last(pretrained_model):
    _, tokenizer = pretrained_model
    tokens = np.arange(1000)

    def windows(count):
        batches = text_windows(tokens, tokenizer.end, 64, 3, count=count)
        pairs = [pair for ids, targets in batches for pair in zip(ids, targets, strict=True)]
        return [
            (ids.tolist(), targets.tolist()) for ids, targets in pairs if (targets != IGNORE).any()
        ]

    every, some = windows(None), windows(6)
    assert some == [every[place] for place in (0, 3, 6, 9, 12, 15)] and len(every) == 16


def test_processes_share_the_windows(pretrained_model):
    model, tokenizer = pretrained_model
    tokens = np.random.default_rng(0).integers(0, 500, 1000)
    windows = list(text_windows(tokens, tokenizer.end, model.config.block_size, 4))
    whole = score(model, model, windows, tokenizer.end)
    parts = []
    for rank in range(3):
        processes = Processes()
        processes.rank, processes.world_size = rank, 3
        processes.sum = lambda values: values
        parts.append(score(model, model, windows, tokenizer.end, processes).nats)
    assert sum(parts) == pytest.approx(whole.nats, rel=1e-6)


def test_scoring_keeps_a_model_in_training_mode(pretrained_model):
    model, tokenizer = pretrained_model
    model.train()
    score(model, model, text_windows(np.arange(10), tokenizer.end, 8, 4), tokenizer.end)
    assert model.training
    model.eval()


# ---------------------------------------------------------------- overlapping windows


@pytest.mark.parametrize(
    "length, block, stride, rows",
    [
        (300, 64, 16, 3),
        (64, 64, 16, 2),
        (65, 64, 16, 2),
        (7, 64, 1, 1),
        (200, 64, 63, 5),
        (130, 64, 64, 2),
        (41, 8, 3, 4),
    ],
)
def test_overlapping_windows_score_each_token_once_with_a_longer_context(
    length, block, stride, rows
):
    tokens = np.random.default_rng(1).integers(10, 400, length)
    context = np.zeros(length, dtype=int)
    begin = 0
    for ids, targets in text_windows(tokens, 5, block, rows, stride):
        assert len(ids) <= rows and ids.shape == targets.shape and ids.shape[1] == block
        for row_ids, row_targets in zip(ids, targets, strict=True):
            for place in np.flatnonzero(row_targets != IGNORE):
                at = begin + place
                assert context[at] == 0, "scored twice"
                context[at] = place + 1
                assert row_targets[place] == tokens[at]
                assert row_ids[: place + 1].tolist() == [5, *tokens][begin : at + 1]
            begin += stride
    expected = [
        n + 1 if n < block else block - stride + 1 + (n - block) % stride for n in range(length)
    ]
    assert context.tolist() == expected


def test_the_loss_with_a_stride_equals_a_computation_token_by_token(pretrained_model, dataset):
    model, tokenizer = pretrained_model
    tokens, block, stride = (
        TextDataset(dataset, "val").tokens[:200].astype(np.int64),
        model.config.block_size,
        16,
    )
    scored = score(
        model, model, text_windows(tokens, tokenizer.end, block, 4, stride), tokenizer.end
    )
    ids, nats = [tokenizer.end, *tokens.tolist()], 0.0
    for n, token in enumerate(tokens.tolist()):
        begin = 0 if n < block else (n - block) // stride * stride + stride
        nats -= (
            model(torch.tensor([ids[begin : n + 1]]))[0, -1].double().log_softmax(-1)[token].item()
        )
    assert scored.tokens == 200 and scored.nats == pytest.approx(nats, rel=1e-5)
    disjoint = score(model, model, text_windows(tokens, tokenizer.end, block, 4), tokenizer.end)
    assert scored.nats < disjoint.nats  # this model uses its context


# ---------------------------------------------------------------- answers


def test_answer_batches_hold_each_row_once_sorted_by_length(qa):
    data = QuestionDataset(qa, "train")
    batches = list(answer_batches(data, 7))
    assert (
        sum(len(ids) for ids, _ in batches) == len(data)
        and max(len(ids) for ids, _ in batches) == 7
    )
    assert sum(int((targets != IGNORE).sum()) for _, targets in batches) == int(data.trained.sum())
    widths = [ids.shape[1] for ids, _ in batches]
    assert widths == sorted(widths) and widths[0] < widths[-1] == data.lengths.max() - 1
    few = list(answer_batches(data, 7, range(10)))
    assert sum(int((targets != IGNORE).sum()) for _, targets in few) == int(data.trained[:10].sum())


def test_the_loss_of_answers_counts_their_tokens_alone(pretrained_model, qa):
    model, tokenizer = pretrained_model
    data = QuestionDataset(qa, "val")
    nats, text, tokens = 0.0, 0.0, 0
    for number in range(len(data)):
        ids, mask = data.row(number)
        logp = model(torch.from_numpy(ids)[None])[0].double().log_softmax(-1)
        for place in np.flatnonzero(mask):
            loss = -logp[place - 1, ids[place]].item()
            nats += loss
            text += loss * (ids[place] != tokenizer.end)
            tokens += 1
    scored = score(model, model, answer_batches(data, 5), tokenizer.end)
    assert scored.tokens == tokens
    assert scored.nats == pytest.approx(nats, rel=1e-5)
    assert scored.text_nats == pytest.approx(text, rel=1e-5)
