"""How well a model predicts a text: every token scored exactly once, sums in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from model import GPT, IGNORE
from shuoshu.runtime import Processes, autocast


@dataclass
class Score:
    nats: float  # over all tokens, end tokens included
    tokens: int
    text_nats: float  # without the end tokens: these are no part of any text

    @property
    def loss(self) -> float:
        return self.nats / self.tokens

    def bits_per(self, count: int) -> float:
        """Bits per character or byte of a text that has `count` of them."""
        return self.text_nats / math.log(2) / count


@torch.no_grad()
def score_tokens(
    model: torch.nn.Module,
    raw: GPT,
    tokens: np.ndarray,
    end: int,
    rows: int,
    dtype: torch.dtype,
    processes: Processes | None = None,
) -> Score:
    """Scores `tokens` in disjoint windows of a block, the first token after an end token; the processes share the windows.

    `model` is `raw` or a compiled form of it.
    """
    device, block = raw.lm_head.weight.device, raw.config.block_size
    processes = processes or Processes()
    targets = np.full(math.ceil(len(tokens) / block) * block, IGNORE, dtype=np.int64)
    targets[: len(tokens)] = tokens
    ids = np.concatenate([[end], np.maximum(targets[:-1], 0)])
    ids, targets = ids.reshape(-1, block)[processes.rank :: processes.world], targets.reshape(-1, block)[processes.rank :: processes.world]
    nats = text_nats = 0.0
    was_training = raw.training
    raw.eval()
    for start in range(0, len(ids), rows):
        y = torch.from_numpy(targets[start : start + rows]).to(device)
        with autocast(device, dtype):
            losses = model(torch.from_numpy(ids[start : start + rows]).to(device), y, reduction="none")
        losses = losses.cpu().double()
        nats += losses.sum().item()
        text_nats += losses[y.flatten().cpu() != end].sum().item()
    raw.train(was_training)
    nats, text_nats = processes.sum([nats, text_nats], device)
    return Score(nats, len(tokens), text_nats)
