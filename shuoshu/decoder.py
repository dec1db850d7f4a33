"""One token at a time on a CPU: the weights laid side by side and packed, and what one token has no need of left out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from model import GPT, Block, KVCache, RMSNorm


class Decoder:
    """A copy of the model as it is now, to read single tokens with: made anew for each generation, so no training makes it stale."""

    def __init__(self, model: GPT) -> None:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else model.lm_head.weight.dtype
        self.trunk, self.dtype = model.model, dtype
        self.layers = [Layer(block, dtype) for block in model.model.layers]
        self.norm, self.head = Norm(model.model.norm), product(dtype, model.lm_head.weight)
        left, right = model.model.sin.chunk(2, dim=-1)
        self.sin = torch.cat((-left, right), dim=-1)

    @torch.autocast("cpu", enabled=False)
    def __call__(self, ids: Tensor, cache: KVCache) -> Tensor:
        """ids (B, 1) → logits (B, V) in float32."""
        place = cache.place(1)
        cos, sin = self.trunk.cos[place.positions], self.sin[place.positions]  # (1 or B, 1, D)
        x = self.trunk.embed_tokens(ids[:, 0]).to(self.dtype)  # (B, C)
        for number, layer in enumerate(self.layers):
            x = layer(x, cos, sin, partial(cache.update, number, place=place), place.mask)
        cache.lengths = [length + 1 for length in cache.lengths]
        return self.head(self.norm(x).to(self.dtype)).float()


class Layer:
    """A block of the model."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        attention, mlp = block.self_attn, block.mlp
        self.norm, self.mlp_norm = Norm(block.input_layernorm), Norm(block.post_attention_layernorm)
        self.qkv = product(dtype, attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight)
        self.o, self.gate_up, self.down = product(dtype, attention.o_proj.weight), product(dtype, mlp.gate_proj.weight, mlp.up_proj.weight), product(dtype, mlp.down_proj.weight)
        self.D = attention.head_dim
        self.H, self.G = (len(projection.weight) // self.D for projection in (attention.q_proj, attention.k_proj))
        self.qk_norm = Norm(attention.q_norm)
        self.qk_norm.gain = torch.cat([attention.q_norm.weight.expand(self.H, -1), attention.k_norm.weight.expand(self.G, -1)]).float()

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, update: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], mask: Tensor | None) -> Tensor:
        B, H, G = len(x), self.H, self.G
        heads = self.qkv(self.norm(x).to(x.dtype)).view(B, H + 2 * G, self.D)
        qk = self.qk_norm(heads[:, : H + G])  # (B, H + G, D), float32
        qk = torch.addcmul(qk * cos, qk.roll(self.D // 2, -1), sin)
        k, v = update(qk[:, H:, None], heads[:, H + G :, None])  # (B, G, positions, D)
        q = qk[:, :H].view(B, G, H // G, self.D) * self.D**-0.5
        scores = (k @ q.mT).mT  # (B, G, H / G, positions); this way round no key is copied
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        y = scores.softmax(-1) @ v
        x = x + self.o(y.view(B, H * self.D).to(x.dtype))
        gate, up = self.gate_up(self.mlp_norm(x).to(x.dtype)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Norm:
    def __init__(self, norm: RMSNorm) -> None:
        self.gain, self.eps = norm.weight.float(), norm.eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], None, self.eps) * self.gain


def product(dtype: torch.dtype, *weights: Tensor) -> Callable[[Tensor], Tensor]:
    """The products with these weights side by side: with the packed ones of torch's compiler, twice as fast and more, where torch has them for this CPU."""
    weight = (torch.cat(weights) if len(weights) > 1 else weights[0]).to(dtype)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        packed_product = partial(torch.ops.mkldnn._linear_pointwise, W=packed, B=None, attr="none", scalars=[], algorithm="")
        packed_product(weight[:1])
        return packed_product
    except (AttributeError, RuntimeError, TypeError):
        return partial(F.linear, weight=weight)
