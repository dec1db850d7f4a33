"""The operations written for a CPU in bfloat16 against the plain ones, with float32 as the judge."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from model import GPT, GPTConfig
from shuoshu.models import cpu_kernels

SHAPES = [
    {"n_head": 4, "n_embd": 64},
    {"n_head": 6, "n_kv_head": 2, "n_embd": 48, "head_dim": 16, "tie_embeddings": True},
]
SHAPES += [
    {
        "n_head": 6,
        "n_kv_head": 2,
        "n_embd": 48,
        "head_dim": 16,
        "block_size": 3 * cpu_kernels.QUERY_BLOCK - 10,
    }
]  # queries in two halves
SHAPES += [
    {"n_head": 2, "n_embd": 32, "block_size": cpu_kernels.MAX_CONTEXT + 10}
]  # the library's attention


def trained(shape):
    """A model whose gains, too, are no longer what they began with."""
    torch.manual_seed(3)
    model = GPT(GPTConfig(vocab_size=192, n_layer=2, **{"block_size": 40, **shape}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def gradients(model, dtype, monkeypatch, is_lean):
    """(loss, gradients) of one batch in which some targets don't count."""
    ids = torch.randint(
        192, (3, model.config.block_size + 1), generator=torch.Generator().manual_seed(5)
    )
    targets = ids[:, 1:].clone()
    targets[0, :9] = targets[2] = -100
    model.zero_grad()
    with (
        monkeypatch.context() as patch,
        torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32),
    ):
        if not is_lean:
            patch.setattr(cpu_kernels, "is_enabled", lambda x: False)
        loss = model(ids[:, :-1], targets, reduction="sum")
    (loss / 31).backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradients_are_as_near_to_float32_as_the_plain_operations(shape, monkeypatch):
    model = trained(shape)
    exact, fine = gradients(model, torch.float32, monkeypatch, is_lean=True)
    loss, own = gradients(model, torch.bfloat16, monkeypatch, is_lean=True)
    plain_loss, plain = gradients(model, torch.bfloat16, monkeypatch, is_lean=False)
    assert loss == pytest.approx(exact, rel=2e-3) and plain_loss == pytest.approx(exact, rel=2e-3)
    assert loss != plain_loss  # else the lean ones were not taken
    for name, gradient in fine.items():
        off, plain_off = (
            (found[name] - gradient).norm() / gradient.norm() for found in (own, plain)
        )
        assert off < 2 * plain_off + 0.002, (name, off, plain_off)


@pytest.mark.parametrize("length", [1, 2, 127, 128, 129, 192, 193, 255, 256, 257, 383, 385, 700])
def test_attention_to_scores_of_ordinary_size_is_as_near_to_float32_as_the_librarys(length):
    torch.manual_seed(length)
    q, k, v, grad = (torch.randn(2, heads, length, 16).bfloat16() for heads in (6, 2, 2, 6))

    def found(way, dtype):
        given = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        y = way(*given)
        return y, *torch.autograd.grad(y, given, grad.to(dtype))

    def fused_attention(*given):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return cpu_kernels.causal_attention(*given)

    exact = found(
        lambda *x: F.scaled_dot_product_attention(*x, is_causal=True, enable_gqa=True),
        torch.float64,
    )
    library = found(
        lambda *x: F.scaled_dot_product_attention(*x, is_causal=True, enable_gqa=True),
        torch.bfloat16,
    )
    own = found(fused_attention, torch.bfloat16)
    for name, true, theirs, ours in zip(("y", "q", "k", "v"), exact, library, own, strict=True):
        off, their_off = ((x.double() - true).norm() / (true.norm() + 1e-9) for x in (ours, theirs))
        assert ours.shape == true.shape and off < 2 * their_off + 0.002, (name, off, their_off)


@pytest.mark.parametrize(
    "length, pieces", [(100, [100]), (192, [192]), (193, [128, 65]), (512, [128] * 4)]
)
def test_attention_keeps_the_probabilities_of_the_past_alone(length, pieces):
    q, kept = torch.randn(1, 2, length, 16, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.append(tuple(x.shape)) or x, lambda x: x
    ):
        cpu_kernels.BlockwiseAttention.apply(*[q[0]] * 3)
    ends = torch.tensor(pieces).cumsum(0).tolist()
    assert [shape for shape in kept if shape[-1] != 16] == [
        (2, size, end) for size, end in zip(pieces, ends, strict=True)
    ]


@pytest.mark.parametrize(
    "length, calls", [(40, 2), (cpu_kernels.MAX_CONTEXT, 2), (cpu_kernels.MAX_CONTEXT + 1, 0)]
)
def test_rows_up_to_a_length_take_it(length, calls, monkeypatch):
    model, taken = trained({"n_head": 2, "n_embd": 32, "block_size": length}), []
    real = cpu_kernels.BlockwiseAttention.apply
    monkeypatch.setattr(
        cpu_kernels.BlockwiseAttention, "apply", lambda *given: taken.append(1) or real(*given)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        model(torch.randint(192, (1, length)))
    assert len(taken) == calls


def test_float32_and_a_compiler_take_the_plain_operations():
    x = torch.randn(2, 3)
    assert not cpu_kernels.is_enabled(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert cpu_kernels.is_enabled(x)
        assert torch.compile(cpu_kernels.is_enabled, backend="eager", fullgraph=True)(x) is False


def test_what_a_confident_model_still_has_to_learn_is_not_rounded_away():
    """A probability of 0.9995 is 1 in bfloat16; its gradient must not be 0."""
    x = torch.eye(4, 8).mul(10).bfloat16().requires_grad_()
    head = torch.eye(8).bfloat16().requires_grad_()
    targets = torch.tensor([0, 1, 2, -100])
    found = cpu_kernels.FusedHeadLoss.apply(x, head, targets)
    wanted = F.cross_entropy(x.float() @ head.float().T, targets, reduction="sum")
    assert found.item() == pytest.approx(wanted.item(), rel=0.01) and found > 0
    for own, true in zip(
        torch.autograd.grad(found, (x, head)), torch.autograd.grad(wanted, (x, head)), strict=True
    ):
        assert ((own - true).norm() / true.norm()) < 0.01


def test_a_target_that_seems_impossible_has_a_finite_loss():
    """Its probability is no number of bfloat16 or float32; an infinite loss would leave the step out."""
    x, head = torch.tensor([[400.0, 0.0]], requires_grad=True), torch.eye(2, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cpu_kernels.FusedHeadLoss.apply(x, head, torch.tensor([1]))
    assert 80 < loss < 400
    assert torch.equal(torch.autograd.grad(loss, x)[0], torch.tensor([[1.0, -1.0]]))


def test_counts_of_targets_that_differ_a_little_make_products_of_one_size(monkeypatch):
    """Each new size costs a CPU time and memory."""
    heights, real = [], torch.softmax
    monkeypatch.setattr(torch, "softmax", lambda x, dim: heights.append(len(x)) or real(x, dim))
    head = torch.randn(16, 8)
    for count in range(1, 200):
        cpu_kernels.FusedHeadLoss.apply(
            torch.randn(200, 8), head, torch.tensor([3] * count + [-100] * (200 - count))
        )
    assert heights == [64 * math.ceil(count / 64) for count in range(1, 200)]


def test_rows_without_targets_have_no_loss_and_no_gradient():
    x, head = torch.randn(5, 8).bfloat16().requires_grad_(), torch.randn(16, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cpu_kernels.FusedHeadLoss.apply(x, head, torch.full((5,), -100))
    assert loss.item() == 0
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss, (x, head)))
