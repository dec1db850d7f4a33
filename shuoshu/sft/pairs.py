"""Questions with their answers: repeats, closed sets of answers, splits, leaks between them."""

from __future__ import annotations

import json
import math
import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

import numpy as np

from shuoshu.core.errors import UserError
from shuoshu.core.terminal import display_width, shorten

QUESTION_SPLITS = ("train", "val", "test", "untaught")
NEAR_SIMILARITY = (
    0.8  # share of spans of 3 characters in common, from which two questions are near duplicates
)
MAX_CHARACTERS = 500  # characters of a question, its last ones, that are compared for it
COMPARED = (
    5_000  # validation and test questions, evenly chosen, for which near duplicates are looked for
)


@dataclass
class Pair:
    """A conversation that ends with the answer to learn; a plain question and answer has two messages."""

    messages: list[dict[str, str]]
    source: str  # "file.json, row 17"
    split: str | None = None
    group: str | None = None
    extra: dict = field(default_factory=dict)  # other fields of the record: text, numbers, booleans

    @property
    def question(self) -> str:
        """All that the model sees before it answers."""
        return "\n".join(message["content"] for message in self.messages[:-1])

    @property
    def answer(self) -> str:
        return self.messages[-1]["content"]


@dataclass
class RejectedRecords:
    """How many records were read, and which were left out for what reason, with the first three of each."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    read: int = 0
    notes: list[str] = field(default_factory=list)  # what else a reader should know

    def add(self, reason: str, source: str, text: str = "") -> None:
        self.counts[reason] += 1
        if self.counts[reason] <= 3:
            self.examples.setdefault(reason, []).append(
                f"{source}: {preview(text)}" if text else source
            )


def clean_field(text: str) -> str:
    """Valid Unicode with plain line ends and no blanks around it."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "").replace("\ufeff", "")
    return re.sub("[\ud800-\udfff]", "�", text).strip()


def preview(value: object, columns: int = 70) -> str:
    """What a field holds, on one line."""
    if not isinstance(value, str):
        return (
            "a list"
            if isinstance(value, list)
            else "an object"
            if isinstance(value, dict)
            else json.dumps(value)[:columns]
        )
    return shorten(" ".join(clean_field(value[: 4 * columns]).split()), columns)


# ---------------------------------------------------------------- repeats, closed sets, splits


def normal(text: str) -> str:
    """The form in which questions are compared: width, case and blanks don't matter."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def drop_repeats(pairs: list[Pair], dropped: RejectedRecords) -> list[Pair]:
    """Without the pairs whose question came before in the same split: "duplicate" with the same answer, "contradictory" with another."""
    first: dict[tuple[str | None, str], Pair] = {}
    for pair in pairs:
        known = first.setdefault((pair.split, normal(pair.question)), pair)
        if known is not pair:
            reason = "duplicate" if normal(known.answer) == normal(pair.answer) else "contradictory"
            dropped.add(
                reason, pair.source, f"{preview(pair.question, 40)} → {preview(pair.answer, 25)}"
            )
    return list(first.values())


def closed_answers(pairs: list[Pair]) -> list[str] | None:
    """The labels, the commonest first, if the answers are of 2 to 20 short kinds, each given 10 times on average; else None."""
    counts = Counter(pair.answer for pair in pairs)
    is_small = (
        2 <= len(counts) <= 20
        and len(pairs) >= 10 * len(counts)
        and all(len(answer) <= 40 and display_width(answer) <= 40 for answer in counts)
    )
    is_single = is_small and all(
        message["role"] != "assistant" for pair in pairs for message in pair.messages[:-1]
    )
    return [answer for answer, _ in counts.most_common()] if is_single else None


def split_pairs(pairs: list[Pair], val_fraction: float, test_fraction: float, seed: int) -> None:
    """Sets the split of pairs that have none: by seed, what belongs together on one side, each answer of a closed set in proportion."""
    without = [pair for pair in pairs if pair.split is None]
    if without and len(without) < len(pairs):
        raise UserError(
            f"{without[0].source}: it has no split, and other rows have; give one to every row or to none ({', '.join(QUESTION_SPLITS)})"
        )
    is_closed = closed_answers(without) is not None
    strata: dict[str, list[list[Pair]]] = defaultdict(list)
    for group in _groups(without):
        strata[group[0].answer if is_closed else ""].append(group)
    draw = random.Random(seed)
    shares = {"val": val_fraction, "test": test_fraction, "train": math.inf}
    due = dict.fromkeys(
        shares, 0.0
    )  # pairs that a split has still to get, carried on from one answer to the next
    parts: dict[str, list[list[Pair]]] = {name: [] for name in shares}
    for groups in strata.values():
        draw.shuffle(groups)
        due = {name: due[name] + share * sum(map(len, groups)) for name, share in shares.items()}
        for group in groups:
            name = next(name for name in due if len(group) < 2 * due[name])
            parts[name].append(group)
            due[name] -= len(group)
    for name in ("train", "val", "test"):  # of few groups, the smallest for a split that got none
        most = max(parts.values(), key=len)
        if shares[name] and not parts[name] and len(most) > (name != "train"):
            parts[name].append(most.pop(min(range(len(most)), key=lambda n: len(most[n]))))
    for name, groups in parts.items():
        for pair in chain.from_iterable(groups):
            pair.split = name


def _groups(pairs: list[Pair]) -> list[list[Pair]]:
    """Pairs that must stay together: linked by equal questions or equal groups."""
    above: dict[object, object] = {}

    def top(key: object) -> object:
        while (parent := above.setdefault(key, key)) != key:
            above[key] = key = above[parent]
        return key

    for pair in pairs:
        if pair.group is not None:
            above[top(("group", pair.group))] = top(normal(pair.question))
    groups: dict[object, list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[top(normal(pair.question))].append(pair)
    return list(groups.values())


# ---------------------------------------------------------------- leaks


class Leak(NamedTuple):
    kind: str  # "exact" or "near"
    pair: Pair  # a validation or test pair
    train: Pair  # the training pair with a question like it
    similarity: float


class Leaks(list[Leak]):
    note = ""  # says so if not all questions were searched for near duplicates


def leaks(pairs: list[Pair]) -> Leaks:
    """Validation and test questions that stand among the training questions too: the same ones, then near ones, the nearest first."""
    train = {normal(pair.question): pair for pair in reversed(pairs) if pair.split == "train"}
    held = [(normal(pair.question), pair) for pair in pairs if pair.split in ("val", "test")]
    others = [item for item in held if item[0] not in train]
    some = others[:: math.ceil(len(others) / COMPARED) or 1]
    found = Leaks(
        Leak("exact", pair, train[question], 1.0) for question, pair in held if question in train
    )
    found += sorted(_near(list(train.items()), some), key=lambda leak: -leak.similarity)
    if len(some) < len(others):
        found.note = (
            f"near duplicates were looked for of {len(some):,} of {len(others):,} questions"
        )
    return found


def _spans(question: str) -> np.ndarray:
    """A question's spans of 3 characters, each once, hashed to 22 bits."""
    codes = np.frombuffer(
        f" {question} "[-MAX_CHARACTERS:].encode("utf-32-le", "replace"), dtype=np.uint32
    ).astype(np.uint64)
    whole = (codes[:-2] << np.uint64(42)) | (codes[1:-1] << np.uint64(21)) | codes[2:]
    return np.unique((whole * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(42)).astype(np.int32)


def _near(train: list[tuple[str, Pair]], held: list[tuple[str, Pair]]) -> Iterator[Leak]:
    """The nearest training question of each held-out one, if it is near: an index of the held-out ones' spans, asked for each training question."""
    if not train or not held:
        return
    counts = np.zeros(1 << 22, dtype=np.int32)
    for question, _ in held + train:
        counts[_spans(question)] += 1
    total = len(held) + len(train)
    rare = counts <= (total / 2 if total >= 20 else total)  # what stands in more is a template
    spans = [part[rare[part]] for part in (_spans(question) for question, _ in held)]
    sizes, index = np.array([len(part) for part in spans]), np.concatenate(spans)
    owners = np.repeat(np.arange(len(held)), sizes)[np.argsort(index, kind="stable")]
    starts = np.concatenate([[0], np.cumsum(np.bincount(index, minlength=1 << 22))])
    best, nearest = np.zeros(len(held)), np.zeros(len(held), dtype=np.int64)
    for number, (question, _) in enumerate(train):
        part = _spans(question)
        part = part[rare[part]]
        met = part[starts[part + 1] > starts[part]]
        if len(met) and len(met) >= NEAR_SIMILARITY * len(part):
            shared = np.bincount(
                np.concatenate(
                    [owners[a:b] for a, b in zip(starts[met], starts[met + 1], strict=True)]
                ),
                minlength=len(held),
            )
            similarity = shared / (len(part) + sizes - shared)
            better = np.flatnonzero(similarity > best)
            best[better], nearest[better] = similarity[better], number
    for n in np.flatnonzero(best >= NEAR_SIMILARITY):
        yield Leak("near", held[n][1], train[nearest[n]][1], float(best[n]))
