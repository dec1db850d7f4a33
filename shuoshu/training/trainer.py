"""The Trainer that a step works on: model, optimizers, loss scaler, device and precision."""

from __future__ import annotations

from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from model import GPT
from shuoshu.core.device import can_compile, describe_machine, pick_dtype
from shuoshu.core.distributed import Processes
from shuoshu.core.errors import UserError
from shuoshu.core.settings import TrainSettings
from shuoshu.models.adapters import Adapter
from shuoshu.models.votes import VotingModel
from shuoshu.models.weights import tensor_bytes
from shuoshu.training.data import RunData
from shuoshu.training.optimizers import Muon, build_optimizers
from shuoshu.training.resume import restore
from shuoshu.training.start_model import start_model
from shuoshu.training.state import RunState


@dataclass
class Trainer:
    """The parts of a run that a step uses, without the data and the run's state."""

    settings: TrainSettings  # resolved: dtype is never auto, the shape is the model's
    processes: Processes
    device: torch.device
    dtype: torch.dtype  # of autocast
    raw: GPT  # the plain model: parameters, sampling, saving
    model: nn.Module  # raw, or raw compiled
    forward: nn.Module  # computes the loss: model, or a VotingModel of raw; perhaps in DDP
    optimizers: list[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler  # enabled in fp16 only
    learning_rate: float  # the full rate of the first parameter group, for messages
    adapter: Adapter | None  # None: all weights are trained
    # Rows of a training or evaluation batch at most, and questions answered together. Both are
    # halved when the GPU runs out of memory.
    micro_rows: int
    answer_rows: int = 64

    @property
    def block_size(self) -> int:
        return self.raw.config.block_size

    @property
    def is_compiled(self) -> bool:
        return self.model is not self.raw

    def machine(self) -> dict[str, object]:
        """Versions, hardware and precision, for settings.json and the log."""
        return describe_machine(self.device) | {
            "device": str(self.device),
            "dtype": self.settings.dtype,
            "compiled": self.is_compiled,
        }

    def bytes_per_checkpoint(self) -> int:
        """Size of trained weights and optimizer state (Muon: one tensor per weight, AdamW: two)."""
        optimizer_bytes = sum(
            p.numel() * p.element_size() * (1 if isinstance(optimizer, Muon) else 2)
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for p in group["params"]
        )
        return tensor_bytes(self.raw.tensors().values()) + optimizer_bytes

    def check_weights(self, step: int) -> None:
        """UserError if a trained weight is not finite; called before every save."""
        finite = [torch.isfinite(tensor).all() for tensor in self.raw.tensors().values()]
        if not torch.stack(finite).all():
            raise UserError(
                f"the weights are no longer finite after step {step:,}: lower --learning_rate;"
                " earlier checkpoints are intact"
            )


def build_trainer(
    settings: TrainSettings,
    data: RunData,
    processes: Processes,
    device: torch.device,
    checkpoint: Path | None,
) -> tuple[Trainer, RunState]:
    """A new trainer, or one restored from a checkpoint, and the state to continue from."""
    dtype_name = str(pick_dtype(settings.dtype, device)).removeprefix("torch.")
    dtype_name = processes.broadcast(dtype_name)
    dtype = getattr(torch, dtype_name)
    start = start_model(settings, data, dtype, checkpoint)
    settings = replace(start.settings, dtype=dtype_name)
    model = start.model.to(device)
    model.recompute, model.residual_dtype = settings.recompute, torch.float32
    data.check_sizes(model.config.block_size, processes.world_size)
    optimizers = build_optimizers(model, settings, device, dtype)
    learning_rate = optimizers[0].param_groups[0]["full_lr"]
    state = RunState()
    if checkpoint:
        state, changed = restore(checkpoint, settings, data, model, optimizers)
        if processes.is_rank_zero:
            changes = f"; changed: {', '.join(changed)}" if changed else ""
            print(f"resuming from {checkpoint}{changes}")
    scaler = torch.amp.GradScaler(
        device.type, init_scale=state.scale, enabled=dtype == torch.float16
    )
    scaler.load_state_dict({**scaler.state_dict(), "_growth_tracker": state.scale_steps})
    compiles = settings.compile == "true" or (
        settings.compile == "auto" and data.task == "text" and can_compile(device)
    )
    # Batches of text have one shape. Those of questions have many widths: one graph for all.
    compiled = torch.compile(model, dynamic=data.task != "text") if compiles else model
    loss_model = compiled
    if data.votes:
        loss_model = VotingModel(model, data.train.marks, data.train.weights)
        loss_model = torch.compile(loss_model, dynamic=True) if compiles else loss_model
    trainer = Trainer(
        settings=settings,
        processes=processes,
        device=device,
        dtype=dtype,
        raw=model,
        model=compiled,
        forward=wrap_in_ddp(loss_model) if processes.world_size > 1 else loss_model,
        optimizers=optimizers,
        scaler=scaler,
        learning_rate=learning_rate,
        adapter=start.adapter,
        micro_rows=min(settings.batch_size, data.rows_per_step // processes.world_size),
    )
    return trainer, state


def wrap_in_ddp(model: nn.Module) -> DistributedDataParallel:
    """DistributedDataParallel without broadcasting buffers: position tables never change."""
    names = signature(DistributedDataParallel).parameters
    # The parameter's name depends on torch's version.
    option = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    return DistributedDataParallel(model, **{option: False})
