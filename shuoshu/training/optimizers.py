"""Muon for the block matrices, AdamW for the rest; the schedule of their rates."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from shuoshu.core.settings import OptimSettings

# Polar Express (Amsel, Persson, Musco, Gower 2025, arXiv 2505.16932): odd quintics whose
# composition drives singular values to 1. Each is the best one for the result of those before it.
# These three were computed by linear programming for singular values from 0.02 to 1.
# All but the last take x / 1.01 instead of x, as a margin for bf16's rounding.
_QUINTICS = (
    (7.710969351145298, -22.113755133117024, 16.248743253019345),
    (3.215275998832188, -2.4111720561968903, 0.5013000264832665),
    (2.218307744198482, -1.5939896110911267, 0.41074788510309124),
)
POLAR_EXPRESS = (
    tuple((a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in _QUINTICS[:-1]) + _QUINTICS[-1:]
)


def orthogonalize(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Each matrix of (n, rows, columns) with its singular values driven to about 1."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).to(dtype)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # keeps the products in range
    gram = x @ x.mT
    # A bound of the largest squared singular value, several times tighter than their sum.
    bound = gram.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-7
    x, gram = x / bound.sqrt(), gram / bound
    for number, (a, b, c) in enumerate(POLAR_EXPRESS):
        if number:
            gram = x @ x.mT
        factor = (gram @ gram).mul_(c).add_(gram, alpha=b)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        x = factor @ x  # a x + b (x x') x + c (x x')² x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum: singular values near 1, times sqrt(max(1, rows / columns)).

    Matrices of one shape are orthogonalised together. Newton-Schulz runs in `dtype`: bfloat16 is
    fast, float32 is reproducible across numbers of processes. If the tensor `found_inf` is 1,
    step() changes nothing, as in fused AdamW.
    """

    _step_supports_amp_scaling = True  # torch's name for optimisers that look at found_inf
    found_inf: Tensor | None = None

    def __init__(
        self, params: list[nn.Parameter], lr: float, weight_decay: float, dtype: torch.dtype
    ) -> None:
        shapes = sorted({tuple(p.shape) for p in params})
        groups = [{"params": [p for p in params if tuple(p.shape) == shape]} for shape in shapes]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            params, momentum = group["params"], group["momentum"]
            for p in params:
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum"] for p in params]
            grads = [p.grad for p in params]
            counts: Tensor | float = 1.0
            if self.found_inf is not None:
                counts = 1 - self.found_inf
                grads = list(
                    torch.where(counts == 0, torch.stack(buffers), torch.stack(grads)).unbind()
                )  # interpolation of a buffer with itself changes nothing
            torch._foreach_lerp_(buffers, grads, 1 - momentum)
            nesterov = torch._foreach_lerp(grads, buffers, momentum)
            updates = orthogonalize(torch.stack(nesterov), self.dtype).to(params[0].dtype) * counts
            rows, columns = params[0].shape
            if group["weight_decay"]:
                torch._foreach_mul_(params, 1 - counts * (group["lr"] * group["weight_decay"]))
            torch._foreach_add_(
                params,
                list(updates.unbind()),
                alpha=-group["lr"] * math.sqrt(max(1, rows / columns)),
            )


def build_optimizers(
    model: nn.Module, settings: OptimSettings, device: torch.device, muon_dtype: torch.dtype
) -> list[torch.optim.Optimizer]:
    """The optimisers; each parameter is in one group, each group's peak rate in its `full_lr`."""
    named = dict(model.named_parameters())
    tied = "lm_head.weight" not in named
    blocks = [p for name, p in named.items() if ".layers." in name and p.ndim == 2]
    embedding, head = (
        [named["model.embed_tokens.weight"]],
        [] if tied else [named["lm_head.weight"]],
    )
    gains = [p for p in named.values() if p.ndim == 1]
    if settings.optimizer == "adamw":
        rate = 0.001 if settings.learning_rate is None else settings.learning_rate
        groups = [(blocks + embedding + head, rate, settings.weight_decay), (gains, rate, 0.0)]
        optimizers: list[torch.optim.Optimizer] = []
    else:
        embedding_lr = (
            settings.embedding_lr if settings.embedding_lr is not None else 0.008 if tied else 0.1
        )
        groups = [
            (embedding, embedding_lr, 0.0),
            (head, settings.head_lr, settings.weight_decay),
            (gains, settings.norm_lr, 0.0),
        ]
        rate = 0.02 if settings.learning_rate is None else settings.learning_rate
        optimizers = [Muon(blocks, rate, settings.weight_decay, muon_dtype)]
    adamw = torch.optim.AdamW(
        [
            {"params": params, "lr": lr, "weight_decay": decay}
            for params, lr, decay in groups
            if params
        ],
        betas=(settings.beta1, settings.beta2),
        eps=1e-10,
        fused=device.type in ("cuda", "cpu"),
    )
    optimizers.append(adamw)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["full_lr"] = group["lr"]
    return optimizers


def step_unless(is_bad: Tensor, optimizers: list[torch.optim.Optimizer]) -> None:
    """Steps all optimisers unless is_bad, a tensor; clears the gradients.

    Optimisers that read the flag on the device save the host from waiting for it.
    """
    for optimizer in optimizers:
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.grad_scale, optimizer.found_inf = None, is_bad.float()
            optimizer.step()
        elif not is_bad:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def set_rates(optimizers: list[torch.optim.Optimizer], factor: float, step: int) -> None:
    """Sets every group's rate; Muon's momentum grows from 0.85 to 0.95 over the first 200 steps."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["full_lr"] * factor
            if isinstance(optimizer, Muon):
                group["momentum"] = 0.85 + 0.10 * min(1.0, step / 200)


def state_tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The state of the optimisers as `<parameter>/<state name>`."""
    return {
        f"{name}/{what}": value
        for name, parameter in model.named_parameters()
        for optimizer in optimizers
        for what, value in optimizer.state.get(parameter, {}).items()
    }


def load_state_tensors(
    model: nn.Module, optimizers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]
) -> None:
    """Restores the result of `state_tensors`; ValueError if it doesn't fit the parameters."""
    owner = {
        id(p): optimizer
        for optimizer in optimizers
        for group in optimizer.param_groups
        for p in group["params"]
    }
    named = dict(model.named_parameters())
    kinds = {
        name: {"momentum"} if isinstance(owner[id(p)], Muon) else {"exp_avg", "exp_avg_sq", "step"}
        for name, p in named.items()
    }
    for key, value in tensors.items():
        name, _, what = key.rpartition("/")
        if name not in named or (value.ndim and value.shape != named[name].shape):
            raise ValueError(f"optimiser state {key} fits no parameter of this model")
        if what not in kinds[name]:
            raise ValueError(f"optimiser state {key} is another optimiser's")
        device = (
            named[name].device
            if value.ndim or named[name].device.type != "cpu"
            else torch.device("cpu")
        )
        owner[id(named[name])].state[named[name]][what] = value.to(device, copy=True)
    if tensors and (
        missing := {f"{name}/{what}" for name in kinds for what in kinds[name]} - tensors.keys()
    ):
        raise ValueError(f"optimiser state {min(missing)} is missing")
