"""Parts of a whole: positions at equal distances, a stratified sample, batches of equal size."""

from __future__ import annotations

import random
from collections.abc import Sequence


def evenly(total: int, count: int) -> list[int]:
    """`count` of the positions 0 … total - 1 at equal distances, with both ends; at most all."""
    if count >= total:
        return list(range(total))
    return [number * (total - 1) // max(1, count - 1) for number in range(count)]


def stratified(groups: Sequence[str], count: int) -> list[int]:
    """Positions of `count` rows in ascending order; `groups` names the group of each row.

    Each group has its share of them. Within a group they are drawn at random, always the same.
    """
    order = list(range(len(groups)))
    random.Random(0).shuffle(order)
    order.sort(key=groups.__getitem__)  # stable, so each group stays shuffled
    return sorted(order[place] for place in evenly(len(order), count))


def even_batch_size(total: int, largest: int) -> int:
    """The size of the fewest batches of at most `largest` that share `total` rows evenly."""
    batches = -(-total // largest)
    return -(-total // batches)
