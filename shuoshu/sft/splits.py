"""Splits of questions: at random by a seed, or one of several folds as the test."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import chain
from statistics import mode
from typing import NamedTuple

from shuoshu.core.errors import UserError
from shuoshu.sft.pairs import Pair, normalized
from shuoshu.text.dataset import QUESTION_SPLITS

Group = list[Pair]  # pairs that must share a split


class Fold(NamedTuple):
    """The part of the pairs that is the test: `number`, from 1, of `count` parts."""

    number: int
    count: int


class SplitRule(NamedTuple):
    """How pairs are split unless the files name the splits."""

    val_fraction: float  # of the pairs that are not in a fold
    test_fraction: float  # ignored if there is a fold
    seed: int
    fold: Fold | None = None
    has_labels: bool = False  # the answers are labels; each one is split in proportion
    key: Callable[[str], Hashable] = normalized  # questions with the same key share a split


def split_pairs(pairs: Sequence[Pair], rule: SplitRule) -> None:
    """Sets the split of every pair by a rule, unless the files name the splits.

    Pairs that are linked by questions or groups share a split. Raises UserError if some pairs have
    a split and others have none, or if there can't be so many folds.
    """
    without = [pair for pair in pairs if pair.split is None]
    if without and len(without) < len(pairs):
        raise UserError(
            f"{without[0].source}: it has no split, but other rows have one;"
            f" give one to every row or to none ({', '.join(QUESTION_SPLITS)})"
        )
    if rule.fold and not without:
        raise UserError(
            "--folds: the files name the splits already; leave out --folds and --fold, or rename"
            " the column split"
        )
    groups = linked_groups(without, rule.key)
    draw = random.Random(rule.seed)
    test_fraction = rule.test_fraction
    if rule.fold:
        folds = _folds(groups, rule, draw)
        for pair in chain.from_iterable(folds.pop(rule.fold.number)):
            pair.split = "test"
        groups, test_fraction = list(chain.from_iterable(folds.values())), 0.0
    # A group is offered to the splits in this order. train takes the groups that others leave.
    fractions = {"val": rule.val_fraction, "test": test_fraction, "train": math.inf}
    strata = _strata(groups, rule.has_labels)
    spread = [members for members in strata if len(members) > 1 or not rule.has_labels]
    splits = _distribute(spread, fractions, draw)
    if rule.has_labels:  # a label of one text can only be taught
        splits["train"] += [members[0] for members in strata if len(members) == 1]
    _fill_empty_splits(splits, [name for name in ("train", "val", "test") if fractions[name]])
    for name, members in splits.items():
        for pair in chain.from_iterable(members):
            pair.split = name


def linked_groups(pairs: Sequence[Pair], key: Callable[[str], Hashable]) -> list[Group]:
    """Groups of pairs that are linked, perhaps through others, by questions or groups.

    Two questions are linked if they have the same key. Disjoint sets (union-find): each question
    and each group points to a parent, and those with the same root belong together.
    """
    parents: dict[object, object] = {}

    def root(node: object) -> object:
        while (parent := parents.setdefault(node, node)) != node:
            parents[node] = node = parents[parent]  # shortens the path for the next search
        return node

    keys = [key(pair.question) for pair in pairs]
    for pair, own in zip(pairs, keys, strict=True):
        if pair.group is not None:
            parents[root(("group", pair.group))] = root(own)
    groups: dict[object, Group] = defaultdict(list)
    for pair, own in zip(pairs, keys, strict=True):
        groups[root(own)].append(pair)
    return list(groups.values())


def _folds(groups: Sequence[Group], rule: SplitRule, draw: random.Random) -> dict[int, list[Group]]:
    """The groups in folds of about equal size, by number; UserError if there are too few groups."""
    count = rule.fold.count
    if len(groups) < count:
        raise UserError(
            f"--folds={count}: {len(groups):,} different questions can't make so many folds:"
            " rows that belong together share one"
        )
    fractions = dict.fromkeys(range(1, count + 1), 1 / count)
    folds = _distribute(_strata(groups, rule.has_labels), fractions, draw)
    _fill_empty_splits(folds, list(folds))
    return folds


def _strata(groups: Iterable[Group], has_labels: bool) -> list[list[Group]]:
    """The groups by their most frequent answer if that is a label, else together."""
    strata: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        strata[mode(pair.answer for pair in group) if has_labels else ""].append(group)
    return list(strata.values())


def _distribute(
    strata: Iterable[list[Group]], fractions: dict[Hashable, float], draw: random.Random
) -> dict[Hashable, list[Group]]:
    """Distributes the groups of each stratum over the splits, in random order."""
    splits: dict[Hashable, list[Group]] = {name: [] for name in fractions}
    # Number of pairs that each split should still get. A remainder of one stratum carries over to
    # the next, so that the total is right even if every stratum is small.
    due = dict.fromkeys(fractions, 0.0)
    for groups in strata:
        draw.shuffle(groups)
        size = sum(map(len, groups))
        due = {name: due[name] + fraction * size for name, fraction in fractions.items()}
        for group in groups:
            # The first split to which more than half of the group is due, else the one to which
            # most is due.
            fitting = (name for name in due if len(group) < 2 * due[name])
            name = next(fitting, None) or max(due, key=due.get)
            splits[name].append(group)
            due[name] -= len(group)
    return splits


def _fill_empty_splits(splits: dict[Hashable, list[Group]], needed: Sequence[Hashable]) -> None:
    """Moves the smallest group of the largest split to each needed split that is empty.

    With fewer groups than splits, the first ones in `needed` are filled.
    """
    for name in needed:
        largest = max(splits.values(), key=len)
        min_groups = 1 if name == needed[0] else 2
        if not splits[name] and len(largest) >= min_groups:
            smallest = min(range(len(largest)), key=lambda n: len(largest[n]))
            splits[name].append(largest.pop(smallest))
