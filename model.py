"""The GPT: the dense block of Qwen3, and with other settings that of Qwen2 or Llama. Parameters
have Hugging Face's names, so that a folder of weights is a Hugging Face model.

Shapes: B rows, T tokens, C width, H query heads, G key-value heads, D width of a head,
V vocabulary, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass
class RopeScaling:
    """Llama 3's change of the rotary frequencies, for rows longer than those of pretraining."""

    factor: float  # divides the low frequencies
    low_freq_factor: float  # a low frequency turns less often than this in original_context
    high_freq_factor: float  # a high frequency, which stays, more often than this
    original_context: int  # longest row of the pretraining in tokens


@dataclass
class GPTConfig:
    vocab_size: int
    block_size: int  # longest row in tokens
    n_layer: int
    n_head: int  # query heads
    n_embd: int
    n_kv_head: int | None = None  # key-value heads; None: n_head
    head_dim: int | None = None  # None: n_embd / n_head
    n_hidden: int | None = None  # None: 8/3 of n_embd, rounded up to a multiple of 64
    dropout: float = 0.0
    tie_embeddings: bool = False  # one matrix for the embedding and the head
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    qk_norm: bool = True  # queries and keys are normalised
    qkv_bias: bool = False  # the projections to queries, keys and values have biases
    rope_scaling: RopeScaling | None = None
    max_context: int | None = None  # the model's longest row, if block_size is a part of it

    def __post_init__(self) -> None:
        self.n_kv_head = self.n_kv_head or self.n_head
        self.head_dim = self.head_dim or self.n_embd // self.n_head
        self.n_hidden = self.n_hidden or math.ceil(8 * self.n_embd / 3 / 64) * 64


# ---------------------------------------------------------------- operations


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., C) divided by its root mean square over C, times weight (C); computed in float32."""
    return F.rms_norm(x.float(), x.shape[-1:], weight.float(), eps).type_as(x)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: turns each pair (i, i + D/2) of x (B, heads, T, D) by its angle."""
    left, right = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-right, left), dim=-1) * sin).type_as(x)


def norm_and_rotate(x: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """Normalised and rotated heads: x (B, T, heads, D) → (B, heads, T, D)."""
    return rotate(rms_norm(x, weight, eps).transpose(1, 2), cos, sin)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of whole rows: q (B, H, T, D), k and v (B, G, T, D) → (B, H, T, D)."""
    is_grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=is_grouped)


def cached_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of new tokens to all cached ones; without a mask, new tokens are the whole row."""
    is_causal = q.shape[2] > 1 and mask is None  # a single token attends to every cached key
    is_grouped = q.shape[1] != k.shape[1]
    q = q.to(k.dtype)
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal, enable_gqa=is_grouped)


def head_loss(x: Tensor, weight: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """Cross-entropy in float32 of x (N, C) @ weight.T (C, V) over targets (N) that are not -100."""
    return F.cross_entropy(F.linear(x, weight).float(), targets, reduction=reduction)


# The model calls them through `ops`; shuoshu/models/cpu_kernels.py puts faster ones here.
ops = SimpleNamespace(
    rms_norm=rms_norm,
    rotate=rotate,
    norm_and_rotate=norm_and_rotate,
    causal_attention=causal_attention,
    head_loss=head_loss,
)

# ---------------------------------------------------------------- layers


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)

    def norm_and_rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return ops.norm_and_rotate(x, self.weight, self.eps, cos, sin)


class NoNorm(nn.Module):
    """In place of the norm of queries or keys in models that have none."""

    def norm_and_rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return ops.rotate(x.transpose(1, 2), cos, sin)


def rotary_frequencies(config: GPTConfig) -> Tensor:
    """The angle between successive positions of each pair of dimensions, in float64: (D / 2)."""
    exponents = torch.arange(0, config.head_dim, 2).double() / config.head_dim
    frequencies = config.rope_theta**-exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    turns = scaling.original_context * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)  # the share that isn't divided
    return frequencies * (kept + (1 - kept) / scaling.factor)


def rotary_angles(config: GPTConfig) -> Tensor:
    """The angle of each position and pair of dimensions, in float64: (block_size, D / 2)."""
    positions = torch.arange(config.block_size).double()
    return torch.outer(positions, rotary_frequencies(config))


class Attention(nn.Module):
    """H / G query heads share one key-value head (grouped-query attention, arXiv 2305.13245)."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        q_width, kv_width = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
        self.q_proj = nn.Linear(config.n_embd, q_width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.n_embd, kv_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.n_embd, kv_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(q_width, config.n_embd, bias=False)
        has_norm, norm = config.qk_norm, (config.head_dim, config.norm_eps)
        self.q_norm = RMSNorm(*norm) if has_norm else NoNorm()
        self.k_norm = RMSNorm(*norm) if has_norm else NoNorm()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, slots: CacheSlots | None) -> Tensor:
        B, T, _ = x.shape
        heads = (B, T, -1, self.head_dim)
        # Normalised queries and keys bound the scores of attention, which keeps training stable.
        q = self.q_norm.norm_and_rotate(self.q_proj(x).view(heads), cos, sin)  # (B, H, T, D)
        k = self.k_norm.norm_and_rotate(self.k_proj(x).view(heads), cos, sin)  # (B, G, T, D)
        v = self.v_proj(x).view(heads).transpose(1, 2)  # (B, G, T, D)
        if slots is None:
            y = ops.causal_attention(q, k, v)  # (B, H, T, D)
        else:
            k, v = slots.store(self.layer, k, v)
            y = cached_attention(q, k, v, slots.mask)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1).type_as(x))


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202): one projection gates the other."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.n_embd, config.n_hidden, bias=False)
        self.up_proj = nn.Linear(config.n_embd, config.n_hidden, bias=False)
        self.down_proj = nn.Linear(config.n_hidden, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.n_embd, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.n_embd, config.norm_eps)
        self.mlp = MLP(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, slots: CacheSlots | None) -> Tensor:
        x = x + self.drop(self.self_attn(self.input_layernorm(x), cos, sin, slots))
        return x + self.drop(self.mlp(self.post_attention_layernorm(x)))


# ---------------------------------------------------------------- cache


class KVCache:
    """Keys and values of the tokens read so far. Rows may differ in length.

    It has room for the given number of positions, at most and by default for a whole block.
    """

    def __init__(
        self,
        config: GPTConfig,
        rows: int,
        positions: int | None = None,
        device="cpu",
        dtype=torch.float32,
    ) -> None:
        room = min(config.block_size, positions or config.block_size)
        shape = (config.n_layer, rows, config.n_kv_head, room, config.head_dim)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = [0] * rows

    def reserve(self, count: int) -> CacheSlots:
        """Slots for `count` more tokens in each row; ValueError if they don't fit."""
        device, first, last = self.k.device, self.lengths[0], max(self.lengths) + count
        is_even = all(length == first for length in self.lengths)
        if last > self.k.shape[3]:
            raise ValueError(f"the cache holds {self.k.shape[3]} positions, {last} are needed")
        if count > 1 and not is_even:
            raise ValueError("rows of different lengths take one token at a time")
        starts = first if is_even else torch.tensor(self.lengths, device=device)[:, None]
        index = torch.arange(count, device=device)[None] + starts  # (1 or B, count)
        mask = None
        if not is_even or (count > 1 and first > 0):
            keys = torch.arange(last, device=device)
            mask = keys <= index[:, None, :, None]  # (1 or B, 1, count, last)
        self.lengths = [length + count for length in self.lengths]
        return CacheSlots(self, index, mask, first if is_even else None, last)


@dataclass
class CacheSlots:
    """Where the new tokens of one forward pass go in a cache; all layers share it."""

    cache: KVCache
    index: Tensor  # (1 or B, T): the positions of the new tokens
    mask: Tensor | None  # True where a new token may attend; None: causal, or everywhere if T is 1
    first: int | None  # the position of the first new token; None if rows differ
    last: int  # one past the last position in use

    def store(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores k and v (B, G, T, D); returns views of all keys and values of the layer."""
        keys, values = self.cache.k[layer], self.cache.v[layer]
        for cached, new in ((keys, k), (values, v)):
            if self.first is not None:
                cached[:, :, self.first : self.last] = new
            else:  # rows of different lengths: one token each
                rows = torch.arange(len(new), device=new.device)
                cached[rows, :, self.index[:, 0]] = new[:, :, 0].to(cached.dtype)
        return keys[:, :, : self.last], values[:, :, : self.last]


# ---------------------------------------------------------------- the model


class GPT(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.model = nn.ModuleDict(  # all but the head: these parameters are named `model.…`
            {
                "embed_tokens": nn.Embedding(config.vocab_size, config.n_embd),
                "layers": nn.ModuleList(Block(config, layer) for layer in range(config.n_layer)),
                "norm": RMSNorm(config.n_embd, config.norm_eps),
            }
        )
        self.drop = nn.Dropout(config.dropout)
        angles = rotary_angles(config)  # both halves of a head turn by the same angles
        self.register_buffer("cos", angles.cos().float().repeat(1, 2), persistent=False)
        self.register_buffer("sin", angles.sin().float().repeat(1, 2), persistent=False)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.recompute = False  # whether backward computes each block again, which saves memory
        # What the blocks add up. None: the embedding's type, which is too coarse if the weights
        # are in bfloat16 and the model trains.
        self.residual_dtype: torch.dtype | None = None
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draws every matrix from a normal distribution with mean 0 and this standard deviation:

        embed_tokens         0.02 if tied, else 0.5: Muon's blocks start as small corrections to it
        lm_head              0.02 (untied only)
        o_proj, down_proj    0.02 / sqrt(2 L): the sum of the 2 L residual additions starts small
        other matrices       0.02
        norm weights         (constant 1)
        biases               (constant 0)
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            elif name == "model.embed_tokens.weight":
                parameter.normal_(std=0.02 if self.config.tie_embeddings else 0.5)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.normal_(std=0.02 / math.sqrt(2 * self.config.n_layer))
            else:
                parameter.normal_(std=0.02)

    def forward(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        reduction="mean",
        positions: Tensor | None = None,
    ) -> Tensor:
        """ids (B, T) → logits (B, T, V); with targets (B, T), the loss over those not -100.

        With positions (N) among the B · T, targets (N) are theirs, and others get no logits.
        """
        x = self.hidden(ids)
        if targets is None:
            return self.lm_head(x)
        x = x.flatten(0, 1)  # (B T, C)
        if positions is not None:
            x = x.index_select(0, positions)  # (N, C)
        return ops.head_loss(x, self.lm_head.weight, targets.flatten(), reduction)

    def hidden(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """ids (B, T) → what the head reads (B, T, C). The ids continue the cache's rows."""
        T = ids.shape[1]
        if len(self.cos) < T:
            raise ValueError(f"{T} tokens do not fit into a block of {len(self.cos)}")
        x = self.model.embed_tokens(ids)  # (B, T, C)
        x = self.drop(x.to(self.residual_dtype or x.dtype))
        if cache is None:
            slots, cos, sin = None, self.cos[:T], self.sin[:T]  # (T, D)
        else:
            slots = cache.reserve(T)
            cos = self.cos[slots.index][:, None]  # (1 or B, 1, T, D)
            sin = self.sin[slots.index][:, None]
        for block in self.model.layers:
            if self.recompute and self.training:
                x = checkpoint(block, x, cos, sin, slots, use_reentrant=False)
            else:
                x = block(x, cos, sin, slots)
        return self.model.norm(x)

    def next_logits(self, ids: Tensor, last: Tensor | Sequence[int], cache: KVCache) -> Tensor:
        """Logits (B, V) after new token last[b] of each row; the head runs on these tokens only."""
        rows = torch.arange(len(ids), device=ids.device)
        x = self.hidden(ids, cache)[rows, torch.as_tensor(last, device=ids.device)]  # (B, C)
        return self.lm_head(x).float()

    def count_parameters(self) -> tuple[int, int]:
        """(all parameters, those outside the embedding and the head)."""
        total = sum(p.numel() for p in self.parameters())
        outer = self.model.embed_tokens.weight.numel() * (1 if self.config.tie_embeddings else 2)
        return total, total - outer

    def flops_per_token(self) -> float:
        """Floating-point operations, forward and backward, per training token at full context."""
        c, (_, inner) = self.config, self.count_parameters()
        attention = 2 * c.n_layer * c.n_head * c.head_dim * c.block_size  # scores, weighted values
        weights = inner + c.vocab_size * c.n_embd
        trained = weights  # those that get gradients, besides the inputs of all
        if not self.lm_head.weight.requires_grad:  # LoRA
            trained = sum(tensor.numel() for tensor in self.tensors().values())
        return 6 * attention + 4 * weights + 2 * trained

    def tensors(self) -> dict[str, Tensor]:
        """The content of a weights file: every trained parameter once, without a tied head."""
        return {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}

    def check_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """ValueError that names tensors that are missing, unknown or misshapen."""
        own, names = self.tensors(), set(tensors)
        if self.config.tie_embeddings:
            names.discard("lm_head.weight")
        wrong = [f"{name} is missing" for name in own.keys() - names]
        wrong += [f"{name} is not part of this model" for name in names - own.keys()]
        for name in own.keys() & names:
            shape, expected = tuple(tensors[name].shape), tuple(own[name].shape)
            if shape != expected:
                wrong.append(f"{name} has shape {shape} instead of {expected}")
        if wrong:
            more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise ValueError("; ".join(sorted(wrong)[:5]) + more)

    @torch.no_grad()
    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Copies the weights; ValueError if they are not those of `tensors()`."""
        self.check_tensors(tensors)
        for name, parameter in self.tensors().items():
            parameter.copy_(tensors[name])
