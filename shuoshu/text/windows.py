"""A text as batches of windows that score each of its tokens once."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from shuoshu.core.parts import even_batch_size, evenly
from shuoshu.text.dataset import IGNORE, Batch


def text_windows(
    tokens: np.ndarray,
    start: int,
    block: int,
    rows: int,
    stride: int | None = None,
    count: int | None = None,
) -> Iterator[Batch]:
    """Yields batches of up to `rows` windows that score each token once.

    The first token is predicted from the token `start`.
    Each window begins `stride` tokens after the one before and scores only the tokens that are new
    in it. Default: `block`, which gives disjoint windows. `count`: only so many windows, evenly
    chosen. All batches have one shape: rows without targets fill the last one.
    """
    stride = stride or block
    windows = 1 + math.ceil(max(0, len(tokens) - block) / stride)
    starts = np.array(evenly(windows, count or windows)) * stride
    size = even_batch_size(len(starts), rows)
    starts = np.append(starts, np.full(-len(starts) % size, len(tokens)))
    for first in range(0, len(starts), size):
        batch_starts = starts[first : first + size, None]  # (B, 1)
        at = batch_starts + np.arange(block)  # (B, T): index of each target
        last = len(tokens) - 1
        is_new = (at <= last) & ((batch_starts == 0) | (np.arange(block) >= block - stride))
        targets = np.where(is_new, tokens[np.minimum(at, last)].astype(np.int64), IGNORE)
        yield np.where(at == 0, start, tokens[np.clip(at - 1, 0, last)].astype(np.int64)), targets
