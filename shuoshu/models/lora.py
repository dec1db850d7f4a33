"""LoRA (arXiv 2106.09685): trains low-rank updates of frozen layers.

The parameters have PEFT's names, model.layers.0.self_attn.q_proj.lora_A.weight for example.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import GPT


@dataclass(frozen=True)
class LoraConfig:
    rank: int
    alpha: float
    targets: tuple[str, ...]  # layers, by their whole names or by the ends of them: q_proj
    dropout: float = 0.0  # of the input of the update, while it is trained
    rslora: bool = False  # scales by alpha / √rank (arXiv 2312.03732) instead of alpha / rank
    ranks: dict[str, int] = field(default_factory=dict)  # of layers with another rank
    alphas: dict[str, float] = field(default_factory=dict)  # of layers with another alpha

    def rank_of(self, layer: str) -> int:
        return self.ranks.get(layer, self.rank)

    def scale_of(self, layer: str) -> float:
        """The factor of the layer's update."""
        rank = self.rank_of(layer)
        return self.alphas.get(layer, self.alpha) / (math.sqrt(rank) if self.rslora else rank)


class LoraLinear(nn.Linear):
    """A frozen linear layer plus scale · B A, of which A and B are trained.

    It shares the parameters of the layer `base`. B is 0 at first, so the sum is the base's.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would make a second weight
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.scale = scale
        self.lora_drop = nn.Dropout(dropout)
        device = base.weight.device
        self.lora_A = nn.Linear(self.in_features, rank, bias=False, device=device)
        self.lora_B = nn.Linear(rank, self.out_features, bias=False, device=device)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.lora_A(self.lora_drop(x)) * self.scale  # (…, rank)
        return F.linear(x, self.weight, self.bias) + self.lora_B(inner)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """The weight of one layer that computes the sum, in the base's dtype."""
        update = self.lora_B.weight.float() @ self.lora_A.weight.float()  # (out, in)
        return (self.weight.float() + self.scale * update).to(self.weight.dtype)


def add_lora(model: GPT, config: LoraConfig, seed: int = 0) -> None:
    """Freezes the model and adds trainable updates to the target layers, in float32.

    A is uniform within ±1/√in, drawn with `seed`.
    """
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    for name in target_layers(model, config.targets):
        base = model.get_submodule(name)
        layer = LoraLinear(base, config.rank_of(name), config.scale_of(name), config.dropout)
        bound = 1 / math.sqrt(base.in_features)
        drawn = torch.empty(layer.lora_A.weight.shape).uniform_(-bound, bound, generator=generator)
        layer.lora_A.weight.data.copy_(drawn)
        _replace_layer(model, name, layer)


def target_layers(model: GPT, targets: Sequence[str]) -> list[str]:
    """The names of the blocks' linear layers that `targets` names."""
    ends = tuple(f".{target}" for target in targets)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and f".{name}".endswith(ends) and ".layers." in name
    ]


def short_targets(model: GPT, layers: Sequence[str]) -> tuple[str, ...]:
    """Names for `targets` that mean exactly these layers: their last parts if that is possible."""
    layers = target_layers(model, layers)  # in the model's order
    ends = tuple(dict.fromkeys(layer.rpartition(".")[2] for layer in layers))
    return ends if target_layers(model, ends) == layers else tuple(layers)


def set_lora_dropout(model: GPT, dropout: float) -> None:
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.lora_drop.p = dropout


def share_parameters(model: GPT) -> GPT:
    """A second model with the same parameters in memory; add_lora() changes one of the two only."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def merge_lora(model: GPT) -> None:
    """Replaces each layer with an update by a plain one that computes the same."""
    adapted = [name for name, module in model.named_modules() if isinstance(module, LoraLinear)]
    for name in adapted:
        layer = model.get_submodule(name)
        layer.weight = nn.Parameter(layer.merged_weight())
        plain = nn.Linear(1, 1, bias=False)
        plain.in_features, plain.out_features = layer.in_features, layer.out_features
        plain.weight, plain.bias = layer.weight, layer.bias
        _replace_layer(model, name, plain)
    model.requires_grad_(True)


def _replace_layer(model: GPT, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)
