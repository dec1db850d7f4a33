"""CPU kernels in bfloat16 are as accurate as the plain operations, measured against float32."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from model import GPT, GPTConfig
from shuoshu.models import cpu_kernels

GROUPED = {"n_head": 6, "n_kv_head": 2, "n_embd": 48, "head_dim": 16}
SHAPES = [
    {"n_head": 4, "n_embd": 64},
    {**GROUPED, "tie_embeddings": True},
    {**GROUPED, "qk_norm": False, "qkv_bias": True},
    # Several blocks of queries.
    {**GROUPED, "block_size": 3 * cpu_kernels.QUERY_BLOCK - 10},
    # Rows that use torch's attention.
    {"n_head": 2, "n_embd": 32, "block_size": cpu_kernels.MAX_CONTEXT + 10},
]


def random_model(shape):
    """A model with random weights, norm weights included."""
    torch.manual_seed(3)
    model = GPT(GPTConfig(vocab_size=192, n_layer=2, **{"block_size": 40, **shape}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def gradients(model, dtype, monkeypatch, uses_kernels):
    """(loss, gradients) of one batch in which some targets are ignored."""
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
        if not uses_kernels:
            patch.setattr(cpu_kernels, "is_enabled", lambda x: False)
        loss = model(ids[:, :-1], targets, reduction="sum")
    (loss / 31).backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradients_are_as_accurate_as_the_plain_operations(shape, monkeypatch):
    model = random_model(shape)
    exact, exact_gradients = gradients(model, torch.float32, monkeypatch, uses_kernels=True)
    loss, own = gradients(model, torch.bfloat16, monkeypatch, uses_kernels=True)
    plain_loss, plain = gradients(model, torch.bfloat16, monkeypatch, uses_kernels=False)
    assert loss == pytest.approx(exact, rel=2e-3) and plain_loss == pytest.approx(exact, rel=2e-3)
    assert loss != plain_loss  # the kernels were used
    for name, gradient in exact_gradients.items():
        off, plain_off = (
            (result[name] - gradient).norm() / gradient.norm() for result in (own, plain)
        )
        assert off < 2 * plain_off + 0.002, (name, off, plain_off)


@pytest.mark.parametrize("length", [1, 2, 127, 128, 129, 192, 193, 255, 256, 257, 383, 385, 700])
def test_attention_is_as_accurate_as_torchs(length):
    torch.manual_seed(length)
    q, k, v, grad = (torch.randn(2, heads, length, 16).bfloat16() for heads in (6, 2, 2, 6))

    def run(attention, dtype):
        inputs = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        y = attention(*inputs)
        return y, *torch.autograd.grad(y, inputs, grad.to(dtype))

    def fused_attention(*inputs):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return cpu_kernels.causal_attention(*inputs)

    def torch_attention(*inputs):
        return F.scaled_dot_product_attention(*inputs, is_causal=True, enable_gqa=True)

    exact, library = run(torch_attention, torch.float64), run(torch_attention, torch.bfloat16)
    own = run(fused_attention, torch.bfloat16)
    for name, true, theirs, ours in zip(("y", "q", "k", "v"), exact, library, own, strict=True):
        off, their_off = ((x.double() - true).norm() / (true.norm() + 1e-9) for x in (ours, theirs))
        assert ours.shape == true.shape and off < 2 * their_off + 0.002, (name, off, their_off)


@pytest.mark.parametrize(
    "length, block_sizes", [(100, [100]), (192, [192]), (193, [128, 65]), (512, [128] * 4)]
)
def test_attention_saves_no_probabilities_of_later_blocks(length, block_sizes):
    q, saved = torch.randn(1, 2, length, 16, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: saved.append(tuple(x.shape)) or x, lambda x: x
    ):
        cpu_kernels.BlockwiseAttention.apply(*[q[0]] * 3)
    ends = torch.tensor(block_sizes).cumsum(0).tolist()
    assert [shape for shape in saved if shape[-1] != 16] == [
        (2, size, end) for size, end in zip(block_sizes, ends, strict=True)
    ]


@pytest.mark.parametrize(
    "length, calls", [(40, 2), (cpu_kernels.MAX_CONTEXT, 2), (cpu_kernels.MAX_CONTEXT + 1, 0)]
)
def test_rows_up_to_max_context_use_blockwise_attention(length, calls, monkeypatch):
    model, calls_made = random_model({"n_head": 2, "n_embd": 32, "block_size": length}), []
    real = cpu_kernels.BlockwiseAttention.apply
    monkeypatch.setattr(
        cpu_kernels.BlockwiseAttention,
        "apply",
        lambda *inputs: calls_made.append(1) or real(*inputs),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        model(torch.randint(192, (1, length)))
    assert len(calls_made) == calls


def test_float32_and_compilers_use_the_plain_operations():
    x = torch.randn(2, 3)
    assert not cpu_kernels.is_enabled(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert cpu_kernels.is_enabled(x)
        assert torch.compile(cpu_kernels.is_enabled, backend="eager", fullgraph=True)(x) is False


def test_the_gradient_of_a_confident_prediction_is_not_rounded_to_zero():
    """A probability of 0.9995 is 1 in bfloat16; its gradient must not be 0."""
    x = torch.eye(4, 8).mul(10).bfloat16().requires_grad_()
    head = torch.eye(8).bfloat16().requires_grad_()
    targets = torch.tensor([0, 1, 2, -100])
    result = cpu_kernels.FusedHeadLoss.apply(x, head, targets)
    expected = F.cross_entropy(x.float() @ head.float().T, targets, reduction="sum")
    assert result.item() == pytest.approx(expected.item(), rel=0.01) and result > 0
    for own, true in zip(
        torch.autograd.grad(result, (x, head)),
        torch.autograd.grad(expected, (x, head)),
        strict=True,
    ):
        assert ((own - true).norm() / true.norm()) < 0.01


def test_a_target_of_probability_zero_has_a_finite_loss():
    """Its probability underflows to 0. An infinite loss would skip the step."""
    x, head = torch.tensor([[400.0, 0.0]], requires_grad=True), torch.eye(2, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cpu_kernels.FusedHeadLoss.apply(x, head, torch.tensor([1]))
    assert 80 < loss < 400
    assert torch.equal(torch.autograd.grad(loss, x)[0], torch.tensor([[1.0, -1.0]]))


def test_target_counts_are_padded_to_few_matrix_sizes(monkeypatch):
    """Each new size costs time and memory."""
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
