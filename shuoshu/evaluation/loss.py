"""How well a model predicts a text: every token scored exactly once, sums in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from model import GPT
from shuoshu.core.device import autocast
from shuoshu.core.distributed import Processes
from shuoshu.text.dataset import IGNORE, Batch


@dataclass
class Score:
    nats: float  # over all tokens, end tokens included
    tokens: int
    text_nats: float  # without the end tokens: these are no part of any text
    rows: np.ndarray  # (rows, 4) of this process: nats, tokens, and both without the end tokens

    @property
    def loss(self) -> float:
        return self.nats / self.tokens

    def bits_per(self, count: int) -> float:
        """Bits per character or byte of a text that has `count` of them."""
        return self.text_nats / math.log(2) / count


@torch.no_grad()
def score(
    model: torch.nn.Module,
    raw: GPT,
    batches: Iterable[Batch],
    end: int,
    dtype: torch.dtype,
    processes: Processes | None = None,
    should_stop: Callable[[], object] = lambda: False,
) -> Score | None:
    """Scores every target that is not IGNORE; the processes share the batches. `model` is `raw` or a compiled form of it.

    None if `should_stop`, which all processes ask equally often and must answer alike, stopped it.
    """
    device, processes = raw.lm_head.weight.device, processes or Processes()
    rows = [np.zeros((0, 4))]
    was_training = raw.training
    raw.eval()
    is_stopped = False
    for number, (ids, targets) in enumerate(batches):
        if number % processes.world_size == 0 and should_stop():
            is_stopped = True
            break
        if number % processes.world_size != processes.rank:
            continue
        y = torch.from_numpy(targets).to(device)
        with autocast(device, dtype):
            losses = model(torch.from_numpy(ids).to(device), y, reduction="none")
        losses = losses.view(targets.shape).cpu().double().numpy()
        scored, spoken = targets != IGNORE, (targets != IGNORE) & (targets != end)
        rows.append(
            np.stack(
                [losses.sum(1), scored.sum(1), (losses * spoken).sum(1), spoken.sum(1)], axis=1
            )
        )
    raw.train(was_training)
    if is_stopped:
        return None
    each = np.concatenate(rows)
    nats, tokens, text_nats, _ = processes.sum(each.sum(axis=0).tolist())
    return Score(nats, int(tokens), text_nats, each)
