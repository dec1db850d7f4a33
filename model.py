"""The GPT: Qwen3's dense block, small. Parameters have Hugging Face's names, so that a folder
of weights is a Hugging Face model.

Shapes: B rows, T tokens, C width, H query heads, G key-value heads, D width of a head,
V vocabulary, L layers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

# ---------------------------------------------------------------- operations


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., C) divided by its root mean square over C, times weight (C); computed in float32."""
    return F.rms_norm(x.float(), x.shape[-1:], weight.float(), eps).type_as(x)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: turns each pair (i, i + D/2) of x (B, heads, T, D) by its angle."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


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
    """Cross-entropy in float32 of x (B, T, C) @ weight.T (C, V) over targets that are not -100."""
    logits = F.linear(x, weight).float()  # (B, T, V)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)


@dataclass
class Ops:
    """Operations that faster ones may replace, as shuoshu/models/cpu_kernels.py does."""

    rms_norm: Callable[..., Tensor] = rms_norm
    norm_and_rotate: Callable[..., Tensor] = norm_and_rotate
    causal_attention: Callable[..., Tensor] = causal_attention
    head_loss: Callable[..., Tensor] = head_loss


ops = Ops()

# ---------------------------------------------------------------- layers


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)

    def rotated(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return ops.norm_and_rotate(x, self.weight, self.eps, cos, sin)


def rotary_angles(config: GPTConfig) -> Tensor:
    """The angle of each position and dimension of a head, in float64: (block_size, D)."""
    exponents = torch.arange(0, config.head_dim, 2).double() / config.head_dim
    frequencies = config.rope_theta**-exponents  # (D / 2)
    return torch.outer(torch.arange(config.block_size).double(), frequencies).repeat(1, 2)


class Attention(nn.Module):
    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        q_width, kv_width = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
        self.q_proj = nn.Linear(config.n_embd, q_width, bias=False)
        self.k_proj = nn.Linear(config.n_embd, kv_width, bias=False)
        self.v_proj = nn.Linear(config.n_embd, kv_width, bias=False)
        self.o_proj = nn.Linear(q_width, config.n_embd, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: KVCache | None,
        positions: CachePositions | None,
    ) -> Tensor:
        B, T, _ = x.shape
        heads = (B, T, -1, self.head_dim)
        q = self.q_norm.rotated(self.q_proj(x).view(heads), cos, sin)  # (B, H, T, D)
        k = self.k_norm.rotated(self.k_proj(x).view(heads), cos, sin)  # (B, G, T, D)
        v = self.v_proj(x).view(heads).transpose(1, 2)  # (B, G, T, D)
        if cache is None:
            y = ops.causal_attention(q, k, v)  # (B, H, T, D)
        else:
            k, v = cache.update(self.layer, k, v, positions)
            y = cached_attention(q, k, v, positions.mask)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1).type_as(x))


class MLP(nn.Module):
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

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: KVCache | None = None,
        positions: CachePositions | None = None,
    ) -> Tensor:
        x = x + self.drop(self.self_attn(self.input_layernorm(x), cos, sin, cache, positions))
        return x + self.drop(self.mlp(self.post_attention_layernorm(x)))


# ---------------------------------------------------------------- configuration and cache


@dataclass
class GPTConfig:
    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int
    n_kv_head: int | None = None  # None: n_head
    head_dim: int | None = None  # None: n_embd / n_head
    n_hidden: int | None = None  # None: 8/3 of n_embd, rounded up to a multiple of 64
    dropout: float = 0.0
    tie_embeddings: bool = False
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        self.n_kv_head = self.n_kv_head or self.n_head
        self.head_dim = self.head_dim or self.n_embd // self.n_head
        self.n_hidden = self.n_hidden or math.ceil(8 * self.n_embd / 3 / 64) * 64

    def to_hf(self) -> dict:
        """The content of config.json, for transformers 4 and 5."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            **{hf_name: getattr(self, name) for name, hf_name in HF_NAMES.items()},
            "dropout": self.dropout,
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "use_sliding_window": False,
            "initializer_range": 0.02,
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "use_cache": True,
            "dtype": "float32",
            "torch_dtype": "float32",
        }

    @classmethod
    def from_hf(cls, config: dict) -> GPTConfig:
        """The shape in a config.json; ValueError if it is not a plain Qwen3."""
        return cls(**checked_hf_values(config))


class KVCache:
    """Keys and values of the tokens read so far. Rows may differ in length."""

    def __init__(
        self,
        config: GPTConfig,
        rows: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (config.n_layer, rows, config.n_kv_head, config.block_size, config.head_dim)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = [0] * rows

    def positions(self, count: int) -> CachePositions:
        """Positions and mask of the next `count` tokens of each row; all layers share them.

        Raises ValueError if they don't fit, or for several tokens in rows of different lengths.
        """
        device, first, last = self.k.device, self.lengths[0], max(self.lengths) + count
        is_even = all(length == first for length in self.lengths)
        if last > self.k.shape[3]:
            raise ValueError(f"the cache holds {self.k.shape[3]} positions, {last} are needed")
        if count > 1 and not is_even:
            raise ValueError("rows of different lengths take one token at a time")
        starts = torch.tensor([first] if is_even else self.lengths, device=device)
        index = starts[:, None] + torch.arange(count, device=device)  # (1 or B, count)
        mask = None
        if not is_even or (count > 1 and first > 0):
            keys = torch.arange(last, device=device)
            mask = keys <= index[:, None, :, None]  # (1 or B, 1, count, last)
        return CachePositions(index, mask, first if is_even else None, last)

    def update(
        self, layer: int, k: Tensor, v: Tensor, positions: CachePositions
    ) -> tuple[Tensor, Tensor]:
        """Stores k and v (B, G, T, D); returns views of all keys and values of the layer."""
        first, last = positions.first, positions.last
        for cached, new in ((self.k[layer], k), (self.v[layer], v)):
            if first is not None:
                cached[:, :, first:last] = new
            else:  # rows of different lengths: one token each
                rows = torch.arange(len(new), device=new.device)
                cached[rows, :, positions.index[:, 0]] = new[:, :, 0].to(cached.dtype)
        return self.k[layer, :, :, :last], self.v[layer, :, :, :last]


@dataclass
class CachePositions:
    index: Tensor  # (1 or B, T): the positions of the new tokens
    mask: Tensor | None  # True where a new token may attend; None: causal, or everywhere if T is 1
    first: int | None  # the position of the first new token; None if rows differ
    last: int  # one past the last position in use


# ---------------------------------------------------------------- the model


class Trunk(nn.Module):
    """All but the head: a module of its own, so that parameter names begin with `model.`"""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = RMSNorm(config.n_embd, config.norm_eps)
        self.drop = nn.Dropout(config.dropout)
        angles = rotary_angles(config)  # (block_size, D)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        T = ids.shape[1]
        if len(self.cos) < T:
            raise ValueError(f"{T} tokens do not fit into a block of {len(self.cos)}")
        x = self.drop(self.embed_tokens(ids))  # (B, T, C)
        if cache is None:
            positions, cos, sin = None, self.cos[:T], self.sin[:T]  # (T, D)
        else:
            positions = cache.positions(T)
            cos = self.cos[positions.index][:, None]  # (1 or B, 1, T, D)
            sin = self.sin[positions.index][:, None]
        for block in self.layers:
            x = block(x, cos, sin, cache, positions)
        if cache is not None:
            cache.lengths = [length + T for length in cache.lengths]
        return self.norm(x)


class GPT(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draws every matrix from a normal distribution with mean 0 and this standard deviation:

        embed_tokens         0.02 if tied, else 0.5: Muon's blocks start as small corrections to it
        lm_head              0.02 (untied only)
        o_proj, down_proj    0.02 / sqrt(2 L): the sum of the 2 L residual additions starts small
        the other matrices   0.02

        Norm weights are set to 1.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
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
        cache: KVCache | None = None,
        reduction: str = "mean",
    ) -> Tensor:
        """ids (B, T) → logits (B, T, V); with targets (B, T), the loss over those not -100."""
        x = self.model(ids, cache)  # (B, T, C)
        if targets is None:
            return self.lm_head(x)
        return ops.head_loss(x, self.lm_head.weight, targets, reduction)

    def next_logits(self, ids: Tensor, last: Tensor | Sequence[int], cache: KVCache) -> Tensor:
        """Logits (B, V) after new token last[b] of each row; the head runs on these tokens only."""
        rows = torch.arange(len(ids), device=ids.device)
        x = self.model(ids, cache)[rows, torch.as_tensor(last, device=ids.device)]  # (B, C)
        return self.lm_head(x).float()

    def count_parameters(self) -> tuple[int, int]:
        """(all parameters, those outside the embedding and the head)."""
        total = sum(p.numel() for p in self.parameters())
        outer = self.model.embed_tokens.weight.numel() * (1 if self.config.tie_embeddings else 2)
        return total, total - outer

    def flops_per_token(self) -> float:
        """Floating-point operations, forward and backward, per training token at full context."""
        c = self.config
        _, inner = self.count_parameters()
        return (
            6 * (inner + c.vocab_size * c.n_embd)
            + 12 * c.n_layer * c.n_head * c.head_dim * c.block_size
        )

    def tensors(self) -> dict[str, Tensor]:
        """The content of a weights file: every parameter once, without a tied head."""
        return {name: p.detach() for name, p in self.named_parameters()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Copies the weights; ValueError names tensors that are missing, unknown or misshapen."""
        own = self.tensors()
        if self.config.tie_embeddings:
            tensors = {name: t for name, t in tensors.items() if name != "lm_head.weight"}
        wrong = [f"{name} is missing" for name in own.keys() - tensors.keys()]
        wrong += [f"{name} is not part of this model" for name in tensors.keys() - own.keys()]
        wrong += [
            f"{name} has shape {tuple(tensors[name].shape)} instead of {tuple(own[name].shape)}"
            for name in own.keys() & tensors.keys()
            if own[name].shape != tensors[name].shape
        ]
        if wrong:
            raise ValueError(
                "; ".join(sorted(wrong)[:5])
                + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
            )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name])

    @classmethod
    def from_pretrained(cls, folder: str | Path, **changes: object) -> GPT:
        """The model in a Hugging Face folder.

        `changes` overrides config values that weights don't depend on: dropout, block_size.
        """
        folder = Path(folder)
        config = GPTConfig.from_hf(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        for name, value in changes.items():
            setattr(config, name, value)
        tensors = load_file(folder / "model.safetensors")
        model = cls(config)
        model.load_tensors(tensors)
        return model


# ---------------------------------------------------------------- reading config.json

HF_NAMES = {
    "vocab_size": "vocab_size",
    "block_size": "max_position_embeddings",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "n_embd": "hidden_size",
    "head_dim": "head_dim",
    "n_hidden": "intermediate_size",
    "tie_embeddings": "tie_word_embeddings",
    "norm_eps": "rms_norm_eps",
}
# Limits of integers. The size of the weights file doesn't bound n_layer and block_size,
# so a hostile config.json could claim all memory with them.
MAX_VALUES = {"n_layer": 1000, "block_size": 1 << 20}
MAX_VALUE = 10**7
MAX_FLOAT = 1e12


def checked_hf_values(config: dict) -> dict:
    """The GPTConfig values in a config.json; ValueError if it describes another architecture."""
    if config.get("model_type") != "qwen3":
        raise ValueError(f"model_type is {config.get('model_type')!r}, only 'qwen3' can be read")
    rope = config.get("rope_parameters") or {}
    is_scaled = rope.get("rope_type", "default") != "default" or config.get("rope_scaling")
    if is_scaled or config.get("attention_bias"):
        raise ValueError("scaled rotary positions and attention biases are not supported")
    missing = [hf_name for hf_name in HF_NAMES.values() if hf_name not in config]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    values = {name: config[hf_name] for name, hf_name in HF_NAMES.items()}
    values["rope_theta"] = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    values["dropout"] = config.get("dropout", 0.0)
    for name, value in values.items():
        if name == "tie_embeddings":
            is_valid = type(value) is bool
        elif name in ("norm_eps", "rope_theta", "dropout"):
            is_valid = type(value) in (int, float) and 0 <= value < MAX_FLOAT  # False for NaN
        else:
            is_valid = type(value) is int and 0 < value <= MAX_VALUES.get(name, MAX_VALUE)
        if not is_valid:
            raise ValueError(f"{HF_NAMES.get(name, name)} is {str(value)[:40]}")
    if (
        values["dropout"] >= 1
        or values["rope_theta"] < 1
        or values["n_head"] % values["n_kv_head"]
        or values["head_dim"] % 2
    ):
        raise ValueError("its layers and heads don't make a model")
    return values
