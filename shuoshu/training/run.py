"""The parts of a training run, built from its settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from shuoshu.core.distributed import Processes
from shuoshu.core.files import Lock
from shuoshu.core.settings import TrainSettings
from shuoshu.training.data import RunData
from shuoshu.training.out_dir import OutDir
from shuoshu.training.state import RunState
from shuoshu.training.trainer import Trainer, build_trainer


@dataclass
class Run:
    """The parts of one run, ready to continue from `state.step`."""

    settings: TrainSettings  # resolved: dtype is never auto, the shape is the model's
    processes: Processes
    data: RunData
    trainer: Trainer
    state: RunState
    out_dir: OutDir
    steps_per_epoch: float
    tokens_per_step: float  # trained tokens, averaged over an epoch

    def save(self) -> None:
        """Saves a checkpoint; OSError if the disk can't be written."""
        self.out_dir.save(self.trainer, self.data, self.state)


def build_run(
    settings: TrainSettings,
    processes: Processes,
    device: torch.device,
    lock: Lock,
    draws: bool = True,
) -> Run:
    """A new run, or with --resume the one in out_dir. Writes nothing yet."""
    data = RunData(settings)
    out_dir = OutDir(Path(settings.out_dir), lock, draws)
    checkpoint = processes.on_rank_zero(lambda: out_dir.find_checkpoint(settings))
    trainer, state = build_trainer(settings, data, processes, device, checkpoint)
    if checkpoint:
        out_dir.saved_step = state.step
    return Run(
        settings=trainer.settings,
        processes=processes,
        data=data,
        trainer=trainer,
        state=state,
        out_dir=out_dir,
        steps_per_epoch=data.steps_per_epoch(trainer.block_size),
        tokens_per_step=data.tokens_per_step(trainer.block_size),
    )
