"""The GPT: Qwen3's dense block, small. Parameter names are Hugging Face's, so a folder of weights is a Hugging Face model.

Shapes: B rows, T tokens, C width, H query heads, G key-value heads, D width of a head, V vocabulary, L layers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from shuoshu.models import cpu_kernels


@dataclass
class GPTConfig:
    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int
    n_kv_head: int | None = None  # none: n_head
    head_dim: int | None = None  # none: n_embd / n_head
    n_hidden: int | None = None  # none: 8/3 of n_embd, rounded up to 64
    dropout: float = 0.0
    tie_embeddings: bool = False
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        self.n_kv_head = self.n_kv_head or self.n_head
        self.head_dim = self.head_dim or self.n_embd // self.n_head
        self.n_hidden = self.n_hidden or math.ceil(8 * self.n_embd / 3 / 64) * 64

    def to_hf(self) -> dict:
        """What config.json says of this shape, in the words of older and newer transformers."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            **{theirs: getattr(self, ours) for ours, theirs in HF_NAMES.items()},
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
        """The shape that a config.json describes; ValueError if it is not a plain Qwen3."""
        if config.get("model_type") != "qwen3":
            raise ValueError(
                f"model_type is {config.get('model_type')!r}, only 'qwen3' can be read"
            )
        rope = config.get("rope_parameters") or {}
        if (
            rope.get("rope_type", "default") != "default"
            or config.get("rope_scaling")
            or config.get("attention_bias")
        ):
            raise ValueError("scaled rotary positions and attention biases are not supported")
        missing = [theirs for theirs in HF_NAMES.values() if theirs not in config]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        values = {ours: config[theirs] for ours, theirs in HF_NAMES.items()}
        values |= {
            "rope_theta": rope.get("rope_theta", config.get("rope_theta", 10000.0)),
            "dropout": config.get("dropout", 0.0),
        }
        for ours, value in values.items():
            if ours == "tie_embeddings":
                is_sound = type(value) is bool
            elif ours in ("norm_eps", "rope_theta", "dropout"):
                is_sound = type(value) in (int, float) and 0 <= value < 1e12  # so no NaN either
            else:
                is_sound = type(value) is int and 0 < value <= LARGEST.get(ours, 10**7)
            if not is_sound:
                raise ValueError(f"{HF_NAMES.get(ours, ours)} is {str(value)[:40]}")
        if (
            values["dropout"] >= 1
            or values["rope_theta"] < 1
            or values["n_head"] % values["n_kv_head"]
            or values["head_dim"] % 2
        ):
            raise ValueError("its layers and heads don't make a model")
        return cls(**values)


LARGEST = {
    "n_layer": 1000,
    "block_size": 1 << 20,
}  # what weights don't vouch for must not take all memory either

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


class KVCache:
    """Keys and values of the tokens read so far. Each row has its own length, so ragged prompts stand side by side."""

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

    def place(self, count: int) -> Place:
        """Where the next `count` tokens of every row go and what they may look at: once per forward, for all layers."""
        device, first, last = self.k.device, self.lengths[0], max(self.lengths) + count
        even = all(length == first for length in self.lengths)
        if last > self.k.shape[3]:
            raise ValueError(f"the cache holds {self.k.shape[3]} positions, {last} are needed")
        if count > 1 and not even:
            raise ValueError("rows of different lengths take one token at a time")
        starts = torch.tensor([first] if even else self.lengths, device=device)
        positions = starts[:, None] + torch.arange(count, device=device)  # (1 or B, count)
        mask = None
        if not even or (count > 1 and first > 0):
            mask = (
                torch.arange(last, device=device) <= positions[:, None, :, None]
            )  # (1 or B, 1, count, last)
        return Place(positions, mask, first if even else None, last)

    def update(self, layer: int, k: Tensor, v: Tensor, place: Place) -> tuple[Tensor, Tensor]:
        """Stores (B, G, T, D) and returns everything that the rows hold by now."""
        for cached, new in ((self.k[layer], k), (self.v[layer], v)):
            if place.first is not None:
                cached[:, :, place.first : place.last] = new
            else:
                cached[torch.arange(len(new), device=new.device), :, place.positions[:, 0]] = new[
                    :, :, 0
                ].to(cached.dtype)
        return self.k[layer, :, :, : place.last], self.v[layer, :, :, : place.last]


@dataclass
class Place:
    positions: Tensor  # (1 or B, T) of the new tokens
    mask: Tensor | None  # true where a new token may look
    first: int | None  # the position of the first new token, where all rows agree on it
    last: int  # one past the last position in use


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if cpu_kernels.is_enabled(x):
            return cpu_kernels.FusedRMSNorm.apply(x, self.weight, self.eps)
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), self.eps).type_as(x)

    def rotated(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (B, T, heads, D) → (B, heads, T, D), normed and turned by its positions' angles."""
        if cos.ndim == 2 and cpu_kernels.is_enabled(x):
            return cpu_kernels.FusedNormRotate.apply(x, self.weight, self.eps, cos, sin)
        return rotate(self(x).transpose(1, 2), cos, sin)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (i, i + D/2) of x (B, heads, T, D) by its position's angle."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


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
        self.is_grouped = config.n_kv_head != config.n_head

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None, place: Place | None
    ) -> Tensor:
        B, T, _ = x.shape
        heads = (B, T, -1, self.head_dim)
        q = self.q_norm.rotated(self.q_proj(x).view(heads), cos, sin)  # (B, H, T, D)
        k = self.k_norm.rotated(self.k_proj(x).view(heads), cos, sin)  # (B, G, T, D)
        v = self.v_proj(x).view(heads).transpose(1, 2)  # (B, G, T, D)
        mask, is_causal = None, True
        if cache is not None:
            k, v = cache.update(self.layer, k, v, place)
            q, mask, is_causal = q.to(k.dtype), place.mask, T > 1 and place.mask is None
        if cache is None and T <= cpu_kernels.MAX_CONTEXT and cpu_kernels.is_enabled(q):
            y = cpu_kernels.attention(q, k, v)
        else:
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=is_causal, enable_gqa=self.is_grouped
            )
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
        place: Place | None = None,
    ) -> Tensor:
        x = x + self.drop(self.self_attn(self.input_layernorm(x), cos, sin, cache, place))
        return x + self.drop(self.mlp(self.post_attention_layernorm(x)))


class Trunk(nn.Module):
    """Everything but the head; it exists because the names of the parameters begin with `model.`"""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = RMSNorm(config.n_embd, config.norm_eps)
        self.drop = nn.Dropout(config.dropout)
        frequencies = config.rope_theta ** (
            -torch.arange(0, config.head_dim, 2).double() / config.head_dim
        )
        angles = torch.outer(torch.arange(config.block_size).double(), frequencies).repeat(
            1, 2
        )  # (block, D)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        T = ids.shape[1]
        if len(self.cos) < T:
            raise ValueError(f"{T} tokens do not fit into a block of {len(self.cos)}")
        place = cache.place(T) if cache is not None else None
        x = self.drop(self.embed_tokens(ids))  # (B, T, C)
        cos, sin = self.cos[:T], self.sin[:T]  # (T, D)
        if place is not None:
            cos, sin = (
                self.cos[place.positions][:, None],
                self.sin[place.positions][:, None],
            )  # (1 or B, 1, T, D)
        for block in self.layers:
            x = block(x, cos, sin, cache, place)
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
        """Normal with mean 0 and this standard deviation:

        embed_tokens   0.5 untied (large, so that Muon's blocks start as small corrections to it), 0.02 tied
        lm_head        0.02, untied only
        o_proj, down_proj   0.02 / sqrt(2 L): the 2 L additions to the residual stream start small together
        the other matrices  0.02
        gains          exactly 1
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
        """ids (B, T) → logits (B, T, V); with targets (B, T), the loss in float32 over those that are not -100."""
        x = self.model(ids, cache)
        if targets is None:
            return self.lm_head(x)
        if reduction == "sum" and torch.is_grad_enabled() and cpu_kernels.is_enabled(x):
            return cpu_kernels.FusedHeadLoss.apply(
                x.flatten(0, 1), self.lm_head.weight, targets.flatten()
            )
        logits = self.lm_head(x).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)

    def next_logits(self, ids: Tensor, last: Tensor | Sequence[int], cache: KVCache) -> Tensor:
        """Logits (B, V) after position last[b] of each row's new tokens: the head runs on one position a row only."""
        x = self.model(ids, cache)[
            torch.arange(len(ids), device=ids.device), torch.as_tensor(last, device=ids.device)
        ]
        return self.lm_head(x).float()

    def count_parameters(self) -> tuple[int, int]:
        """(all, those outside the embedding and the head)."""
        total = sum(p.numel() for p in self.parameters())
        outer = self.model.embed_tokens.weight.numel() * (1 if self.config.tie_embeddings else 2)
        return total, total - outer

    def flops_per_token(self) -> float:
        """Forward and backward floating-point operations per trained token at full context, the embedding look-up left out."""
        c = self.config
        _, inner = self.count_parameters()
        return (
            6 * (inner + c.vocab_size * c.n_embd)
            + 12 * c.n_layer * c.n_head * c.head_dim * c.block_size
        )

    def tensors(self) -> dict[str, Tensor]:
        """What a weights file holds: every parameter once, a tied head left out."""
        return {name: p.detach() for name, p in self.named_parameters()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Takes the weights; ValueError names what is missing, unknown or of another shape."""
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
        """The model in a folder; `changes` overrides parts of its config that weights don't depend on (dropout, block_size)."""
        folder = Path(folder)
        config = GPTConfig.from_hf(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        for name, value in changes.items():
            setattr(config, name, value)
        tensors = load_file(folder / "model.safetensors")
        model = cls(config)
        model.load_tensors(tensors)
        return model
