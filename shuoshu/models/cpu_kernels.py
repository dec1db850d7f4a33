"""Fused CPU versions of model.py's operations for bfloat16 autocast.

A CPU computes faster than it reads memory. These versions make fewer passes over memory, save
bfloat16 tensors for backward, and use float32 only where rounding would matter.

`install` puts them into `model.ops`. Each has the signature of the plain operation that it
replaces, and calls that one wherever `is_enabled` is false.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import FunctionCtx, once_differentiable

import model
from shuoshu.text.dataset import IGNORE

# oneDNN prepares and caches a kernel for each new matrix size, which costs time and memory. So the
# number of targets is rounded up to a multiple, and blocks of queries have few different sizes.
PAD_TARGETS_TO = 64
QUERY_BLOCK = 128  # the last block has up to half as many more
# Longer rows use torch's attention: the saved probabilities would need too much memory.
MAX_CONTEXT = 2048
# in_bfloat16 casts the inputs of forward and turns autocast off; keep_dtypes does neither.
keep_dtypes = custom_fwd(device_type="cpu")
in_bfloat16 = custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)


def backward_as_forward(backward: Callable) -> Callable:
    """Decorator for backward(): runs it under forward's autocast; it is not differentiable."""
    return custom_bwd(once_differentiable(backward), device_type="cpu")


def is_enabled(x: Tensor) -> bool:
    """Whether x is on the CPU under bfloat16 autocast, and no compiler is tracing.

    Compilers and CUDA fuse the plain operations as well or better.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def rms_normalize(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x * scale, scale), such that each vector of x * scale has a root mean square of 1."""
    # One pass, which sums in float32 without a float32 copy of x. The rest works on one number
    # per vector.
    norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    scale = norms.square_().div_(x.shape[-1]).add_(eps).rsqrt_().type_as(x)
    return x * scale, scale


def rms_norm_backward(
    grad: Tensor, normed: Tensor, scale: Tensor, weight: Tensor, is_frozen: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradients of x and, unless it is frozen, of weight from that of normed * weight.

    With g = grad * weight, that of x is scale * (g - normed * mean(g * normed)).
    """
    products = (grad * normed).flatten(0, -2)  # (vectors, width)
    mean = (products @ weight).div_(products.shape[-1]).view_as(scale)
    grad_x = (grad * weight).addcmul_(normed, mean, value=-1).mul_(scale)
    # The product with ones is the sum over all vectors.
    return grad_x, None if is_frozen else products.new_ones(len(products)) @ products


class FusedRMSNorm(torch.autograd.Function):
    """RMSNorm of the float32 residual stream; the result is in bfloat16.

    The layer after the norm would round to bfloat16 anyway: rounding here saves a pass.
    """

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
        is_frozen = not ctx.needs_input_grad[1]
        return *rms_norm_backward(grad, *ctx.saved_tensors, is_frozen), None


class FusedNormRotate(torch.autograd.Function):
    """RMSNorm and rotation of heads: x (B, T, heads, D) → (B, heads, T, D); cos, sin (T, D)."""

    @staticmethod
    @in_bfloat16
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor
    ) -> Tensor:
        normed, scale = rms_normalize(x.transpose(1, 2).contiguous(), eps)
        # The weight is moved into both tables, which are small.
        half, sin = len(weight) // 2, signed(sin)
        ctx.save_for_backward(normed, scale, weight, cos, sin)
        return (normed * (cos * weight)).addcmul_(normed.roll(half, -1), sin * weight.roll(half))

    @staticmethod
    @backward_as_forward
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        *saved, cos, sin = ctx.saved_tensors
        is_frozen = not ctx.needs_input_grad[1]
        grad_x, grad_weight = rms_norm_backward(rotated_back(grad, cos, sin), *saved, is_frozen)
        return grad_x.transpose(1, 2), grad_weight, None, None, None


class FusedRotate(torch.autograd.Function):
    """Rotation of heads: x (B, heads, T, D) → the same shape; cos, sin (T, D)."""

    @staticmethod
    @in_bfloat16
    def forward(ctx: FunctionCtx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x, sin = x.contiguous(), signed(sin)
        ctx.save_for_backward(cos, sin)
        return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin)

    @staticmethod
    @backward_as_forward
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return rotated_back(grad, *ctx.saved_tensors), None, None


def signed(sin: Tensor) -> Tensor:
    """The sines (T, D) for roll(): it gives (right, left), model.rotate needs (-right, left)."""
    left, right = sin.chunk(2, dim=-1)
    return torch.cat((-left, right), dim=-1)


def rotated_back(grad: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The gradient of a rotation's input; `sin` is signed."""
    return (grad * cos).add_((grad * sin).roll(grad.shape[-1] // 2, -1))


def query_blocks(T: int) -> list[tuple[slice, slice]]:
    """(queries, keys) of each block: causal attention needs the keys up to its last query."""
    edges = [*range(0, max(1, T - QUERY_BLOCK // 2), QUERY_BLOCK), T]
    return [(slice(first, end), slice(0, end)) for first, end in pairwise(edges)]


def softmax_backward(grad: Tensor, p: Tensor) -> Tensor:
    """The gradient of the scores whose softmax over the last dimension is p."""
    fused = getattr(torch.ops.aten, "_softmax_backward_data", None)  # private: may be missing
    if fused is not None:
        return fused(grad, p, -1, p.dtype)
    return p * (grad - (grad * p).sum(dim=-1, keepdim=True))


class BlockwiseAttention(torch.autograd.Function):
    """Causal attention of (B * heads, T, D), one block of queries at a time.

    Blocks skip most scores of future keys, nearly half of a long row. Backward reads the saved
    probabilities; torch's attention computes them again. Scores are rounded to bfloat16.
    """

    @staticmethod
    @in_bfloat16
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y, probabilities = torch.empty_like(q), []
        for rows, keys in query_blocks(q.shape[1]):
            # -1e9 for future keys, added by the product itself; softmax makes it exactly 0.
            future = q.new_full((rows.stop - rows.start, rows.stop), -1e9).triu(rows.start + 1)
            scores = torch.baddbmm(future, q[:, rows], k[:, keys].mT, alpha=q.shape[2] ** -0.5)
            p = scores.softmax(dim=-1)
            y[:, rows] = p @ v[:, keys]
            if any(ctx.needs_input_grad):
                probabilities.append(p)
        ctx.save_for_backward(q, k, v, *probabilities)
        return y

    @staticmethod
    @backward_as_forward
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v, *probabilities = ctx.saved_tensors
        scale = q.shape[2] ** -0.5
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for p, (rows, keys) in zip(probabilities, query_blocks(q.shape[1]), strict=True):
            grad_v[:, keys].baddbmm_(p.mT, grad[:, rows])
            grad_scores = softmax_backward(grad[:, rows] @ v[:, keys].mT, p)
            grad_q[:, rows] = grad_scores @ k[:, keys]
            grad_k[:, keys].baddbmm_(grad_scores.mT, q[:, rows], alpha=scale)
        return grad_q.mul_(scale), grad_k, grad_v


class FusedHeadLoss(torch.autograd.Function):
    """The summed cross-entropy of x (N, C) @ head.T over targets that are not IGNORE.

    The gradient of the logits is p - 1 at the target and p elsewhere, so forward() computes the
    gradients of x and head at once. Backward only scales them, and no logits are saved.
    """

    @staticmethod
    @in_bfloat16
    def forward(ctx: FunctionCtx, x: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        counted = (targets != IGNORE).nonzero()[:, 0]  # without the padding of a batch
        n = len(counted)
        selected = torch.constant_pad_nd(x[counted], (0, 0, 0, -n % PAD_TARGETS_TO))  # rows of 0
        p = torch.softmax(selected @ head.T, dim=1)
        at_target = torch.arange(n), targets[counted]
        # A probability of 0 would give an infinite loss, and the step would be skipped.
        p_target = p[at_target].float().clamp(min=torch.finfo(torch.float32).tiny)
        # 0.9995 is 1 in bfloat16: 1 - p_target would round to 0, and a confident model would
        # learn no more. The sum of the other probabilities keeps its precision.
        p[at_target] = 0
        p_others = p.sum(dim=1)[:n]
        p[at_target] = -p_others  # p is the gradient of the logits now
        grad_x = torch.zeros_like(x).index_copy_(0, counted, (p @ head)[:n])
        grad_head = p.T @ selected if ctx.needs_input_grad[1] else None  # padded rows add 0
        ctx.save_for_backward(grad_x, grad_head)
        return -torch.where(p_others < 0.5, torch.log1p(-p_others.float()), p_target.log()).sum()

    @staticmethod
    @backward_as_forward
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_head = ctx.saved_tensors
        return grad_x * grad, None if grad_head is None else grad_head * grad, None


# ---------------------------------------------------------------- the model's operations


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if is_enabled(x):
        return FusedRMSNorm.apply(x, weight, eps)
    return model.rms_norm(x, weight, eps)


def norm_and_rotate(x: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    if cos.ndim == 2 and is_enabled(x):  # else there is a cache, whose rows differ in position
        return FusedNormRotate.apply(x, weight, eps, cos, sin)
    return model.rotate(rms_norm(x, weight, eps).transpose(1, 2), cos, sin)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    if cos.ndim == 2 and is_enabled(x):
        return FusedRotate.apply(x, cos, sin)
    return model.rotate(x, cos, sin)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if q.shape[2] > MAX_CONTEXT or not is_enabled(q):
        return model.causal_attention(q, k, v)
    group = q.shape[1] // k.shape[1]  # query heads per key-value head
    # The products need a copy of keys and values for each query head.
    k, v = (x[:, :, None].expand(-1, -1, group, -1, -1).flatten(0, 2) for x in (k, v))
    return BlockwiseAttention.apply(q.flatten(0, 1), k, v).view_as(q)


def head_loss(x: Tensor, weight: Tensor, targets: Tensor, reduction: str) -> Tensor:
    # Without a gradient, FusedHeadLoss would do twice the work.
    if reduction == "sum" and torch.is_grad_enabled() and is_enabled(x):
        return FusedHeadLoss.apply(x, weight, targets)
    return model.head_loss(x, weight, targets, reduction)


def install() -> None:
    """Replaces the plain operations that every GPT calls."""
    model.ops.rms_norm = rms_norm
    model.ops.rotate = rotate
    model.ops.norm_and_rotate = norm_and_rotate
    model.ops.causal_attention = causal_attention
    model.ops.head_loss = head_loss
