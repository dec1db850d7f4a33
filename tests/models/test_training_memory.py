"""Training large vocabularies and long rows: logits of trained positions only, recomputed blocks."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from model import GPT, GPTConfig
from shuoshu.evaluation.loss import score
from shuoshu.models import cpu_kernels
from shuoshu.text.dataset import IGNORE
from shuoshu.training.step import PAD_POSITIONS_TO, select_trained
from tests.models.peak_memory import PeakMemory

SHAPE = GPTConfig(192, block_size=40, n_layer=3, n_head=4, n_embd=32, n_kv_head=2)
PRECISIONS = [torch.float32, torch.bfloat16]


def precision(dtype):
    return torch.autocast("cpu", dtype) if dtype != torch.float32 else nullcontext()


def make_model(**changes):
    torch.manual_seed(3)
    return GPT(GPTConfig(**{**vars(SHAPE), **changes}))


def make_batch(vocab_size, rows, length, trained):
    """(ids, targets), of which so many at random places are trained."""
    draw = np.random.default_rng(0)
    ids = draw.integers(0, vocab_size, (rows, length))
    targets = np.full((rows, length), IGNORE)
    at = draw.choice(targets.size, trained, replace=False)
    targets.flat[at] = draw.integers(0, vocab_size, trained)
    return ids, targets


def train_once(model, ids, targets, dtype, positions=None):
    """The loss and the gradients, after the same dropout at each call."""
    arrays = ids, targets, positions
    ids, targets, positions = (None if x is None else torch.as_tensor(x) for x in arrays)
    model.zero_grad()
    torch.manual_seed(5)
    with precision(dtype):
        loss = model(ids, targets, "sum", positions)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


# ---------------------------------------------------------------- positions


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("trained", [0, 1, 64, 70])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_the_loss_at_the_trained_positions_is_that_of_all_positions(device, trained, dtype):
    model = make_model()
    ids, targets = make_batch(192, 3, 40, trained)
    selected, positions = select_trained(targets, torch.device(device))
    expected = train_once(model, ids, targets, dtype)
    for own, true in zip(train_once(model, ids, selected, dtype, positions), expected, strict=True):
        if dtype == torch.bfloat16:
            assert torch.equal(own, true)  # the same products
        torch.testing.assert_close(own, true, atol=1e-5, rtol=1e-5)
    if device == "cuda":
        assert len(selected) == len(positions) == -(-trained // PAD_POSITIONS_TO) * PAD_POSITIONS_TO


def test_a_batch_whose_targets_are_all_trained_is_passed_on_as_it_is():
    targets = np.arange(12).reshape(3, 4)
    same, positions = select_trained(targets, torch.device("cuda"))
    assert same is targets and positions is None


VOCABULARY, TOKENS, TRAINED = 152_000, 4096, 200
LOGITS = TRAINED * VOCABULARY * 4  # bytes in float32; those of all tokens are 2.5 GB


@pytest.fixture(scope="module")
def wide():
    return make_model(
        vocab_size=VOCABULARY, block_size=512, n_layer=1, n_embd=8, tie_embeddings=True
    )


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_with_a_large_vocabulary_training_needs_the_memory_of_the_trained_logits(wide, dtype):
    ids, targets = make_batch(VOCABULARY, TOKENS // 512, 512, TRAINED)
    selected, positions = select_trained(targets, torch.device("cpu"))
    with PeakMemory() as memory:
        train_once(wide, ids, selected, dtype, positions)
    assert LOGITS / 4 < memory.peak < 4 * LOGITS < VOCABULARY * TOKENS * 4 / 5


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_with_a_large_vocabulary_scoring_needs_the_memory_of_the_scored_logits(wide, dtype):
    batches = [make_batch(VOCABULARY, TOKENS // 512, 512, TRAINED)]
    with PeakMemory() as memory, precision(dtype):
        scored = score(wide, wide, batches, end=0)
    assert scored.tokens == TRAINED
    assert memory.peak < 4 * LOGITS


# ---------------------------------------------------------------- recomputed blocks


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_recomputed_blocks_give_the_same_gradients_with_less_memory(dropout, dtype):
    model = make_model(dropout=dropout, n_layer=8)
    batch = make_batch(192, 4, 40, 160)
    results, peaks = [], []
    for model.recompute in (False, True):
        with PeakMemory() as memory:
            results.append(train_once(model, *batch, dtype))
        peaks.append(memory.peak)
    assert all(torch.equal(own, true) for own, true in zip(*results, strict=True))
    assert peaks[1] < peaks[0] / 2


def test_a_model_that_does_not_train_recomputes_nothing(monkeypatch):
    model = make_model().eval()
    model.recompute = True
    monkeypatch.setattr("model.checkpoint", None)
    model(torch.zeros(1, 4, dtype=torch.long))


# ---------------------------------------------------------------- frozen weights


def test_a_frozen_head_gets_no_gradient_and_costs_no_product():
    x, head = torch.randn(9, 8).bfloat16().requires_grad_(), torch.randn(16, 8).bfloat16()
    targets = torch.arange(9)
    gradients, products = [], []
    for head_trains in (True, False):
        with PeakMemory() as memory:
            loss = cpu_kernels.FusedHeadLoss.apply(x, head.requires_grad_(head_trains), targets)
            [gradient] = torch.autograd.grad(loss, [x])
        gradients.append(gradient)
        products.append(memory.calls.count("mm"))
    assert torch.equal(*gradients) and products == [3, 2]


@pytest.mark.parametrize("name", ["rms_norm", "norm_and_rotate"])
def test_norms_with_frozen_bfloat16_gains_give_the_gradients_of_trained_ones(name):
    x, gain = torch.randn(2, 7, 3, 16, requires_grad=True), torch.randn(16).bfloat16()
    angles = [torch.randn(7, 16) for _ in "cs"] if name == "norm_and_rotate" else []
    results = []
    for weight in (gain.float().requires_grad_(), gain):
        with torch.autocast("cpu", torch.bfloat16):
            y = getattr(cpu_kernels, name)(x, weight, 1e-6, *angles)
        results.append((y, *torch.autograd.grad(y.float().sin().sum(), [x])))
    assert all(torch.equal(own, true) for own, true in zip(*results, strict=True))


def test_with_bfloat16_weights_the_residual_stream_can_stay_float32():
    model, ids = make_model().bfloat16(), torch.randint(192, (2, 12))
    seen = []
    for block in model.model.layers:
        block.register_forward_hook(lambda block, inputs, result: seen.append(result.dtype))
    for model.residual_dtype in (None, torch.float32):
        with torch.autocast("cpu", torch.bfloat16):
            model(ids, ids).backward()
    assert seen == [torch.bfloat16] * 3 + [torch.float32] * 3
