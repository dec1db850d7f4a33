"""Muon for the block matrices, AdamW for the rest; saving and restoring their state."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from shuoshu.core.device import is_gpu_without_bf16
from shuoshu.core.settings import OptimSettings

# Learning rates of settings that are None.
MUON_LR = 0.02
ADAMW_LR = 0.001
EMBEDDING_LR = 0.1
TIED_EMBEDDING_LR = 0.008  # the embedding is also the head, which needs small steps
ADAMW_EPS = 1e-10  # far below the gradients of rare tokens, so that Adam's step is not damped
# Muon's momentum is 0.85 at first, when gradients change fast, and 0.95 from step 200 on.
FIRST_MOMENTUM, MOMENTUM_GROWTH, MOMENTUM_STEPS = 0.85, 0.10, 200
MUON_STATE, ADAMW_STATE = {"momentum"}, {"exp_avg", "exp_avg_sq", "step"}  # per parameter

# Polar Express (Amsel, Persson, Musco, Gower 2025, arXiv 2505.16932): odd quintics whose
# composition drives singular values to 1. Each is optimal for the results of the previous one.
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
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if is_tall else matrices).to(dtype)  # x x' is the smaller product
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
    return x.mT if is_tall else x


class Muon(torch.optim.Optimizer):
    """Moves each matrix by its orthogonalised momentum, so that all directions get equal steps.

    The step is scaled by sqrt(max(1, rows / columns)). Matrices of one shape are orthogonalised
    together, in `dtype`: bfloat16 is fast, float32 gives the same result for any number of
    processes. If the tensor `found_inf` is 1, step() changes nothing, as in fused AdamW.
    """

    _step_supports_amp_scaling = True  # torch's name for optimizers that look at found_inf
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
            counts: Tensor | float = 1.0  # 0: this step changes nothing
            if self.found_inf is not None:
                counts = 1 - self.found_inf
                # Interpolating a buffer with itself changes nothing.
                skipped = torch.where(counts == 0, torch.stack(buffers), torch.stack(grads))
                grads = list(skipped.unbind())
            torch._foreach_lerp_(buffers, grads, 1 - momentum)
            nesterov = torch._foreach_lerp(grads, buffers, momentum)
            updates = orthogonalize(torch.stack(nesterov), self.dtype).to(params[0].dtype) * counts
            if group["weight_decay"]:
                torch._foreach_mul_(params, 1 - counts * (group["lr"] * group["weight_decay"]))
            rows, columns = params[0].shape
            size = group["lr"] * math.sqrt(max(1, rows / columns))
            torch._foreach_add_(params, list(updates.unbind()), alpha=-size)


# ---------------------------------------------------------------- which parameter goes where


def build_optimizers(
    model: nn.Module, settings: OptimSettings, device: torch.device, dtype: torch.dtype
) -> list[torch.optim.Optimizer]:
    """The optimizers for training in `dtype`. Each group's `full_lr` is its peak rate.

    optimizer=muon (the default):

        blocks     Muon   learning_rate  weight_decay  matrices: their updates are orthogonalised
        embedding  AdamW  embedding_lr   no decay      a step has gradients for its tokens' rows
                                                       only, but decay would shrink every row
        head       AdamW  head_lr        weight_decay  one row per token: Adam scales the rows of
                                                       rare and of common tokens separately
        gains      AdamW  norm_lr        no decay      decay would pull a gain from 1 to 0

    optimizer=adamw: AdamW for all at learning_rate, and no decay for gains.

    Biases are treated as gains. Parameters that require no gradient are left out.
    """
    named = trained_parameters(model)
    blocks = [p for name, p in named.items() if ".layers." in name and p.ndim == 2]
    embedding = [p for name, p in named.items() if name == "model.embed_tokens.weight"]
    head = [p for name, p in named.items() if name == "lm_head.weight"]  # none if it is tied
    gains = [p for p in named.values() if p.ndim == 1]
    decay = settings.weight_decay
    optimizers: list[torch.optim.Optimizer] = []
    if settings.optimizer == "adamw":
        lr = _or_default(settings.learning_rate, ADAMW_LR)
        groups = [(blocks + embedding + head, lr, decay), (gains, lr, 0.0)]
    else:
        lr = _or_default(settings.learning_rate, MUON_LR)
        optimizers = [Muon(blocks, lr, decay, muon_dtype(dtype, device))]
        default = EMBEDDING_LR if head else TIED_EMBEDDING_LR
        groups = [
            (embedding, _or_default(settings.embedding_lr, default), 0.0),
            (head, settings.head_lr, decay),
            (gains, settings.norm_lr, 0.0),
        ]
    adamw = torch.optim.AdamW(
        [{"params": params, "lr": lr, "weight_decay": wd} for params, lr, wd in groups if params],
        betas=(settings.beta1, settings.beta2),
        eps=ADAMW_EPS,
        fused=device.type in ("cuda", "cpu"),
    )
    optimizers.append(adamw)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["full_lr"] = group["lr"]
    return optimizers


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require gradients, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def muon_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What Muon computes in if the model trains in `dtype`: bfloat16, which has float32's range."""
    is_exact = dtype == torch.float32 or is_gpu_without_bf16(device)
    return torch.float32 if is_exact else torch.bfloat16


def _or_default(rate: float | None, default: float) -> float:
    return default if rate is None else rate


# ---------------------------------------------------------------- a step


def step_unless(is_bad: Tensor, optimizers: list[torch.optim.Optimizer]) -> None:
    """Steps all optimizers unless `is_bad`, a flag on the device; clears the gradients.

    Optimizers that read the flag on the device save the host from waiting for it.
    """
    for optimizer in optimizers:
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.grad_scale, optimizer.found_inf = None, is_bad.float()
            optimizer.step()
        elif not is_bad:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def set_rates(optimizers: list[torch.optim.Optimizer], factor: float, step: int) -> None:
    """Sets every group's learning rate to `factor` of its full one, and Muon's momentum."""
    growth = MOMENTUM_GROWTH * min(1.0, step / MOMENTUM_STEPS)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["full_lr"] * factor
            if isinstance(optimizer, Muon):
                group["momentum"] = FIRST_MOMENTUM + growth


# ---------------------------------------------------------------- saving and restoring


def state_tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The state of the optimizers as `<parameter>/<name>`: model.norm.weight/exp_avg."""
    return {
        f"{parameter_name}/{name}": tensor
        for parameter_name, parameter in trained_parameters(model).items()
        for optimizer in optimizers
        for name, tensor in optimizer.state.get(parameter, {}).items()
    }


def load_state_tensors(
    model: nn.Module, optimizers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]
) -> None:
    """Restores the result of `state_tensors`; ValueError if it doesn't fit the parameters."""
    owners = {
        id(p): optimizer
        for optimizer in optimizers
        for group in optimizer.param_groups
        for p in group["params"]
    }
    parameters = trained_parameters(model)
    expected = {
        parameter_name: MUON_STATE if isinstance(owners[id(p)], Muon) else ADAMW_STATE
        for parameter_name, p in parameters.items()
    }
    for key, tensor in tensors.items():
        parameter_name, _, name = key.rpartition("/")
        p = parameters.get(parameter_name)
        if p is None or (tensor.ndim and tensor.shape != p.shape):
            raise ValueError(f"optimizer state {key} fits no parameter of this model")
        if name not in expected[parameter_name]:
            raise ValueError(f"optimizer state {key} belongs to another optimizer")
        owners[id(p)].state[p][name] = tensor.to(p.device, copy=True)
    names = {f"{p}/{name}" for p, names in expected.items() for name in names}
    if tensors and (missing := names - tensors.keys()):
        raise ValueError(f"optimizer state {min(missing)} is missing")
