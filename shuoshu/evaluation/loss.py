"""Measures how well a model predicts a text: every token is scored once, sums are in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from model import GPT
from shuoshu.core.distributed import Processes
from shuoshu.text.dataset import IGNORE, Batch

# Of a batch with a larger share of scored positions, all are computed: selecting would save little,
# and all batches of a text keep one shape, for which a compiled model has one graph.
MAX_SELECTED = 0.5


@dataclass
class Score:
    """The cross-entropy of a text, as sums over its tokens in nats."""

    nats: float  # over all tokens, end tokens included
    tokens: int
    text_nats: float  # without end tokens, which are not part of the text
    # (rows, 4), this process's rows: nats, tokens, nats and tokens without end tokens
    rows: np.ndarray

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
    processes: Processes | None = None,
    should_stop: Callable[[], object] = lambda: False,
) -> Score | None:
    """Scores every target that is not IGNORE; the processes share the batches.

    `model` is `raw` or its compiled form; `end` is the id of the end token. The caller sets the
    precision by autocast. All processes call `should_stop` equally often, and it must give all of
    them the same result. Returns None if it returned true.
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
        losses = token_losses(model, ids, targets, device)
        is_scored = targets != IGNORE
        is_text = is_scored & (targets != end)
        columns = losses.sum(1), is_scored.sum(1), (losses * is_text).sum(1), is_text.sum(1)
        rows.append(np.stack(columns, axis=1))
    raw.train(was_training)
    if is_stopped:
        return None
    all_rows = np.concatenate(rows)
    nats, tokens, text_nats, _ = processes.sum(all_rows.sum(axis=0).tolist())
    return Score(nats, int(tokens), text_nats, all_rows)


def token_losses(
    model: torch.nn.Module, ids: np.ndarray, targets: np.ndarray, device: torch.device
) -> np.ndarray:
    """The loss (B, T) of each target in float64, 0 where it is IGNORE."""
    positions = np.flatnonzero(targets != IGNORE)
    here = partial(torch.as_tensor, device=device)
    if len(positions) > MAX_SELECTED * targets.size:
        losses = model(here(ids), here(targets), reduction="none").cpu().double().numpy()
        return losses.reshape(targets.shape)
    chosen, losses = here(targets.flat[positions]), np.zeros(targets.size)
    result = model(here(ids), chosen, reduction="none", positions=here(positions))
    losses[positions] = result.cpu().double().numpy()
    return losses.reshape(targets.shape)
