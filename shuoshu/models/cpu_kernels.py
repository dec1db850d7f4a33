"""Some of the model's operations as a CPU in bfloat16 wants them: few passes over memory, float32 only where it counts.

Each computes what model.py says, forward and backward, and stands in for it where `is_wanted`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import FunctionCtx, once_differentiable

IGNORE = -100
PAD_TARGETS_TO = 64  # counted targets are padded up to a multiple: each new shape costs a product time and memory
QUERY_BLOCK = 128  # queries at a time, the last up to half as many more: the fewer sizes of products the better
MAX_CONTEXT = 2048  # tokens: of longer rows the probabilities, kept for the way back, take more memory than the speed is worth
keep_dtypes, in_bfloat16 = (
    custom_fwd(device_type="cpu"),
    custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16),
)


def backward_as_forward(backward: Callable) -> Callable:
    """A way back in the precision of the way there; of itself it has none."""
    return custom_bwd(once_differentiable(backward), device_type="cpu")


def is_enabled(x: Tensor) -> bool:
    """On CUDA and under a compiler plain operations are fused as well or better."""
    if (
        x.device.type != "cpu"
        or not torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
    ):
        return False
    return torch.get_autocast_dtype("cpu") == torch.bfloat16


def rms_normalize(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Each vector with a root mean square of 1, and what it was multiplied by."""
    squares = (
        torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        .square_()
        .div_(x.shape[-1])
    )
    scale = squares.add_(eps).rsqrt_().type_as(x)
    return x * scale, scale


def rms_norm_backward(
    grad: Tensor, normed: Tensor, scale: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the gain, from that of x * scale * gain."""
    each = (grad * normed).flatten(0, -2)
    mean = (each @ weight).div_(each.shape[-1]).view_as(scale)
    return (grad * weight).addcmul_(normed, mean, value=-1).mul_(scale), each.new_ones(
        len(each)
    ) @ each


class FusedRMSNorm(torch.autograd.Function):
    """RMSNorm of the residual stream, which is in float32."""

    @staticmethod
    @keep_dtypes
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normed, scale = rms_normalize(x, eps)
        y = (normed * weight).bfloat16()
        ctx.save_for_backward(normed.bfloat16(), scale.bfloat16(), weight.bfloat16())
        return y

    @staticmethod
    @backward_as_forward
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *rms_norm_backward(grad, *ctx.saved_tensors), None


class FusedNormRotate(torch.autograd.Function):
    """x (B, T, heads, D) → (B, heads, T, D): RMSNorm of each head, turned by its position's angle; cos and sin are (T, D)."""

    @staticmethod
    @in_bfloat16
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor
    ) -> Tensor:
        normed, scale = rms_normalize(x.transpose(1, 2).contiguous(), eps)
        half = len(weight) // 2
        sin = torch.cat((-sin[:, :half], sin[:, half:]), dim=1)
        ctx.save_for_backward(normed, scale, weight, cos, sin)
        return (normed * (cos * weight)).addcmul_(normed.roll(half, -1), sin * weight.roll(half))

    @staticmethod
    @backward_as_forward
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        *saved, cos, sin = ctx.saved_tensors
        grad_x, grad_weight = rms_norm_backward(
            (grad * cos).add_((grad * sin).roll(grad.shape[-1] // 2, -1)), *saved
        )
        return grad_x.transpose(1, 2), grad_weight, None, None, None


def query_blocks(T: int) -> list[tuple[slice, slice]]:
    """Queries that attend together, and the keys up to the last of them."""
    edges = [*range(0, max(1, T - QUERY_BLOCK // 2), QUERY_BLOCK), T]
    return [(slice(first, end), slice(0, end)) for first, end in pairwise(edges)]


class BlockwiseAttention(torch.autograd.Function):
    """Causal attention of (heads, T, D) as plain products: some queries at a time, with the keys up to them. Scores are rounded to bfloat16."""

    @staticmethod
    @in_bfloat16
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y, kept = torch.empty_like(q), []
        for now, seen in query_blocks(q.shape[1]):
            later = q.new_full((now.stop - now.start, now.stop), -1e9).triu(now.start + 1)
            p = torch.baddbmm(later, q[:, now], k[:, seen].mT, alpha=q.shape[2] ** -0.5).softmax(
                dim=-1
            )
            y[:, now] = p @ v[:, seen]
            kept += [p] if any(ctx.needs_input_grad) else []  # in measuring nothing is kept
        ctx.save_for_backward(q, k, v, *kept)
        return y

    @staticmethod
    @backward_as_forward
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v, *kept = ctx.saved_tensors
        scale = q.shape[2] ** -0.5
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for p, (now, seen) in zip(kept, query_blocks(q.shape[1]), strict=True):
            grad_v[:, seen].baddbmm_(p.mT, grad[:, now])
            through = torch.ops.aten._softmax_backward_data(
                grad[:, now] @ v[:, seen].mT, p, -1, p.dtype
            )
            grad_q[:, now] = through @ k[:, seen]
            grad_k[:, seen].baddbmm_(through.mT, q[:, now], alpha=scale)
        return grad_q.mul_(scale), grad_k, grad_v


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, heads, T, D); of keys and values there may be fewer heads, each for as many queries' heads in succession."""
    shared = q.shape[1] // k.shape[1]
    k, v = (x[:, :, None].expand(-1, -1, shared, -1, -1).flatten(0, 2) for x in (k, v))
    return BlockwiseAttention.apply(q.flatten(0, 1), k, v).view_as(q)


class FusedHeadLoss(torch.autograd.Function):
    """The summed cross-entropy of x (N, C) @ head.T over targets that are not IGNORE, its gradients made at once: logits are kept nowhere."""

    @staticmethod
    @in_bfloat16
    def forward(ctx: FunctionCtx, x: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        counted = (targets != IGNORE).nonzero()[:, 0]
        part = torch.constant_pad_nd(x[counted], (0, 0, 0, -len(counted) % PAD_TARGETS_TO))
        p = torch.softmax(part @ head.T, dim=1)
        own = torch.arange(len(counted)), targets[counted]
        hit = p[own].float().clamp(min=torch.finfo(torch.float32).tiny)
        p[own] = 0
        rest = p.sum(dim=1)[: len(counted)]  # 1 - hit, exact also where that is tiny
        p[own] = -rest
        ctx.save_for_backward(
            torch.zeros_like(x).index_copy_(0, counted, (p @ head)[: len(counted)]), p.T @ part
        )
        return -torch.where(rest < 0.5, torch.log1p(-rest.float()), hit.log()).sum()

    @staticmethod
    @backward_as_forward
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_head = ctx.saved_tensors
        return grad_x * grad, grad_head * grad, None
