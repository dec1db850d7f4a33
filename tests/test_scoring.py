"""shuoshu/scoring.py: every token once, in float64, the first one after an end token."""

import math

import numpy as np
import pytest
import torch

from shuoshu.runtime import Processes
from shuoshu.scoring import score_tokens


def by_hand(model, tokens, end):
    """The same sums, one window after another, without batches or padding."""
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
    score = score_tokens(model, model, tokens.astype("<u2"), tokenizer.end, 3, torch.float32)
    nats, text = by_hand(model, tokens.tolist(), tokenizer.end)
    assert score.tokens == length
    assert score.nats == pytest.approx(nats, rel=1e-5) and score.text_nats == pytest.approx(text, rel=1e-5, abs=1e-9)
    assert score.loss == score.nats / length
    assert score.bits_per(10) == pytest.approx(text / math.log(2) / 10, rel=1e-5, abs=1e-9)


def test_processes_share_the_windows_without_overlap(pretrained_model):
    model, tokenizer = pretrained_model
    tokens = np.random.default_rng(0).integers(0, 500, 1000)
    whole = score_tokens(model, model, tokens, tokenizer.end, 4, torch.float32)
    parts = []
    for rank in range(3):
        processes = Processes()
        processes.rank, processes.world = rank, 3
        processes.sum = lambda values, device: values
        parts.append(score_tokens(model, model, tokens, tokenizer.end, 4, torch.float32, processes).nats)
    assert sum(parts) == pytest.approx(whole.nats, rel=1e-6)


def test_scoring_leaves_a_training_model_in_training(pretrained_model):
    model, tokenizer = pretrained_model
    model.train()
    score_tokens(model, model, np.arange(10), tokenizer.end, 4, torch.float32)
    assert model.training
    model.eval()
