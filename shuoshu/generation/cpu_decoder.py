"""Fast decoding of single tokens on a CPU: projections of one input are merged and packed.

A single token needs little arithmetic. Its time goes into reading the weights, and into the fixed
cost of each operation. So weights are repacked once for the products, and operations are merged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import GPT, Block, CacheSlots, KVCache, NoNorm, RMSNorm
from shuoshu.models.lora import LoraLinear

MANY_ROWS = 8  # a batch, for which a processor may have another kernel than for one row
MAX_PACKED_ERROR = 0.01  # relative; rounding to bf16 gives 0.002, a wrong layout about 1

# Tokens (B, 1) → logits (B, V) in float32.
NextTokenFn = Callable[[Tensor, KVCache], Tensor]


class CpuDecoder:
    """Computes what the model does for single tokens, from a copy of its current weights.

    A model in training needs a new decoder after each step. Products run in the weights' type, or
    under autocast in autocast's; norms and attention run in float32. `base` is the decoder of the
    same model without its adapters, or with others: its copy of the weights is shared.
    """

    @torch.inference_mode()
    def __init__(self, model: GPT, base: CpuDecoder | None = None) -> None:
        layers, embedding = model.model.layers, model.model.embed_tokens
        self.dtype = model.lm_head.weight.dtype
        if torch.is_autocast_enabled("cpu"):
            self.dtype = torch.get_autocast_dtype("cpu")
        if base:
            self.dtype, self.embedding, self.head = base.dtype, base.embedding, base.head
        else:
            self.embedding = embedding.weight.to(self.dtype)
            self.head = fused_linear(self.dtype, model.lm_head)
        bases = base.layers if base else [None] * len(layers)
        pairs = zip(layers, bases, strict=True)
        self.layers = [Layer(block, self.dtype, base_layer) for block, base_layer in pairs]
        self.norm = Norm(model.model.norm)
        # model.rotate concatenates (-right, left). Layer uses roll(), which gives (right, left),
        # and finds the sign in this table.
        left, right = model.sin.chunk(2, dim=-1)
        self.cos, self.sin = model.cos, torch.cat((-left, right), dim=-1)

    def __call__(self, ids: Tensor, cache: KVCache) -> Tensor:
        """ids (B, 1) → logits (B, V) in float32."""
        slots = cache.reserve(1)
        cos, sin = self.cos[slots.index], self.sin[slots.index]  # (1 or B, 1, D)
        x = self.embedding[ids[:, 0]].float()  # (B, C)
        with torch.autocast("cpu", enabled=False):  # the types are chosen here
            for layer in self.layers:
                x = layer(x, cos, sin, slots)
            return self.head(self.norm(x).to(self.dtype)).float()


class Layer:
    """One block of the model for single tokens."""

    def __init__(self, block: Block, dtype: torch.dtype, base: Layer | None) -> None:
        attention, mlp = block.self_attn, block.mlp
        self.number, self.dtype, self.width = attention.layer, dtype, attention.head_dim
        self.H = attention.q_proj.out_features // self.width
        self.G = attention.k_proj.out_features // self.width
        inputs = [  # the layers that read each input
            (attention.q_proj, attention.k_proj, attention.v_proj),
            (attention.o_proj,),
            (mlp.gate_proj, mlp.up_proj),
            (mlp.down_proj,),
        ]
        self.products = base.products if base else [fused_linear(dtype, *each) for each in inputs]
        pairs = zip(self.products, inputs, strict=True)
        adapted = (with_adapters(product, dtype, *layers) for product, layers in pairs)
        self.qkv, self.o, self.gate_up, self.down = adapted
        self.norm, self.mlp_norm = Norm(block.input_layernorm), Norm(block.post_attention_layernorm)
        self.qk_norm = Tensor.float
        if not isinstance(attention.q_norm, NoNorm):
            self.qk_norm = Norm(*[attention.q_norm] * self.H, *[attention.k_norm] * self.G)

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, slots: CacheSlots) -> Tensor:
        """x (B, C) → (B, C); cos and sin (1 or B, 1, D)."""
        B, H, G, D = len(x), self.H, self.G, self.width
        heads = self.qkv(self.norm(x).to(self.dtype)).view(B, H + 2 * G, D)
        qk = self.qk_norm(heads[:, : H + G])  # float32, like the cache
        qk = torch.addcmul(qk * cos, qk.roll(D // 2, -1), sin)
        k, v = slots.store(self.number, qk[:, H:, None], heads[:, H + G :, None])  # (B, G, T, D)
        q = qk[:, :H].view(B, G, H // G, D) * D**-0.5
        scores = (k @ q.mT).mT  # (B, G, H / G, T); q @ k.mT would copy the keys
        if slots.mask is not None:
            scores = scores.masked_fill(~slots.mask, -torch.inf)
        y = scores.softmax(dim=-1) @ v
        x = x + self.o(y.view(B, H * D).to(self.dtype))
        gate, up = self.gate_up(self.mlp_norm(x).to(self.dtype)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Norm:
    """RMSNorm in float32 as x · weight √n / hypot(|x|, √(n eps)), which takes fewer operations.

    Of several norms, each applies to one head: x (B, heads, D).
    """

    def __init__(self, *norms: RMSNorm) -> None:
        width, eps = len(norms[0].weight), norms[0].eps
        self.gain = torch.stack([norm.weight for norm in norms]).float() * width**0.5
        self.min_norm = torch.tensor((width * eps) ** 0.5)

    def __call__(self, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return x * self.gain / norm.hypot(self.min_norm)


def next_token_fn(model: GPT, base: NextTokenFn | None = None) -> NextTokenFn:
    """The function from tokens (B, 1) to logits (B, V): CpuDecoder on a CPU, else the model.

    `base` is the function of the model without its adapters, if there is one.
    """
    if model.lm_head.weight.device.type == "cpu":
        return CpuDecoder(model, base)
    return lambda ids, cache: model.next_logits(ids, torch.zeros_like(ids[:, 0]), cache)


def fused_linear(dtype: torch.dtype, *layers: nn.Linear) -> Callable[[Tensor], Tensor]:
    """The concatenated outputs of these layers as one function.

    It multiplies with packed weights where torch can, and where the result is that of F.linear.
    That is twice as fast as F.linear, which reorders the weights in every call. But one row in
    float32 takes the time of reading the weights, and F.linear reads them at a higher rate.
    """
    weights = [layer.weight.to(dtype) for layer in layers]
    weight = torch.cat(weights) if len(weights) > 1 else weights[0]
    bias = None
    if any(layer.bias is not None for layer in layers):
        zeros = [torch.zeros(layer.out_features) for layer in layers]
        pairs = zip(layers, zeros, strict=True)
        bias = torch.cat([zero if layer.bias is None else layer.bias for layer, zero in pairs])
        bias = bias.to(dtype)
    plain = partial(F.linear, weight=weight, bias=bias)
    no_activation = {"attr": "none", "scalars": [], "algorithm": ""}
    try:  # operators of torch's compiler: private, so they may be missing or refuse this type
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        multiply = partial(torch.ops.mkldnn._linear_pointwise, W=packed, B=bias, **no_activation)
        # Packed weights have a layout of their own on each kind of processor.
        if all(is_close(multiply(x), plain(x)) for x in (weight[:1], weight[:MANY_ROWS])):
            one_row = partial(side_by_side, layers) if dtype == torch.float32 else multiply
            return lambda x: multiply(x) if len(x) > 1 else one_row(x)
    except (AttributeError, RuntimeError, TypeError):
        pass
    return plain


def side_by_side(layers: Sequence[nn.Linear], x: Tensor) -> Tensor:
    """The concatenated outputs of the layers, from their own weights: no copy is needed."""
    outputs = [F.linear(x, layer.weight, layer.bias) for layer in layers]
    return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]


def with_adapters(
    product: Callable[[Tensor], Tensor], dtype: torch.dtype, *layers: nn.Linear
) -> Callable[[Tensor], Tensor]:
    """The product, with what the layers' adapters add: x A.T B.T, all adapters in two products."""
    adapted = [layer for layer in layers if isinstance(layer, LoraLinear)]
    if not adapted:
        return product
    a = torch.cat([layer.lora_A.weight for layer in adapted]).to(dtype)  # (all ranks, inputs)
    blocks = [
        layer.scale * layer.lora_B.weight
        if layer in adapted
        else a.new_zeros(layer.out_features, 0)
        for layer in layers
    ]
    b = torch.block_diag(*blocks).to(dtype)  # (outputs, all ranks)
    return lambda x: product(x).addmm_(F.linear(x, a), b.T)


def is_close(result: Tensor, expected: Tensor) -> bool:
    """Whether two results of one product differ by rounding only."""
    difference = (result - expected).float().norm()
    return bool(difference <= MAX_PACKED_ERROR * expected.float().norm())
