"""Leaks: held-out questions that are the same or nearly the same as a training question."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from shuoshu.sft.pairs import Pair, normalized
from shuoshu.text.books import HASH_FACTOR

NEAR_SIMILARITY = 0.8  # smallest Jaccard similarity of the trigrams of a near leak
MAX_CHARACTERS = 500  # of a longer text only the end is compared: a conversation's last question
MAX_COMPARED = 5_000  # held-out questions that are compared, evenly chosen; limits the time
TRIGRAM_BITS = 22  # of a hash; 4 million values, few of which collide within one question
MIN_QUESTIONS_FOR_TEMPLATES = 20  # with fewer, a frequent trigram doesn't indicate a template
ComparedQuestion = tuple[str, Pair]  # text to compare, and the pair that asks it


class Leak(NamedTuple):
    kind: str  # "exact" or "near"
    pair: Pair  # a validation or test pair
    train: Pair  # the training pair with a question like it
    similarity: float


@dataclass
class LeakReport:
    """The leaks, exact ones first, then by similarity."""

    leaks: list[Leak]
    compared: int  # held-out questions that were searched for near leaks
    candidates: int  # held-out questions without an exact leak


def find_leaks(
    pairs: list[Pair],
    max_compared: int = MAX_COMPARED,
    key: Callable[[str], str] = normalized,
) -> LeakReport:
    """Compares the validation and test questions with the training questions.

    `key` makes the texts that are compared from the questions.
    """
    train = {key(pair.question): pair for pair in reversed(pairs) if pair.split == "train"}
    held_out = [(key(p.question), p) for p in pairs if p.split in ("val", "test")]
    exact = [Leak("exact", pair, train[text], 1.0) for text, pair in held_out if text in train]
    candidates = [question for question in held_out if question[0] not in train]
    compared = candidates[:: math.ceil(len(candidates) / max_compared) or 1]
    near = sorted(_near_leaks(list(train.items()), compared), key=lambda leak: -leak.similarity)
    return LeakReport(exact + near, len(compared), len(candidates))


def _near_leaks(train: list[ComparedQuestion], held_out: list[ComparedQuestion]) -> Iterator[Leak]:
    """Yields a leak for each held-out question whose most similar training question is near.

    The similarity is the number of common trigrams over that of all different ones (Jaccard). An
    inverted index finds the held-out questions that share trigrams with a training question.
    """
    if not train or not held_out:
        return
    is_rare = _is_rare(train + held_out)
    trigrams = [_trigrams(text) for text, _ in held_out]
    trigrams = [hashes[is_rare[hashes]] for hashes in trigrams]
    sizes = np.array([len(hashes) for hashes in trigrams])
    # The index: owners[starts[hash] : starts[hash + 1]] are the questions with this trigram.
    flat = np.concatenate(trigrams)
    owners = np.repeat(np.arange(len(held_out)), sizes)[np.argsort(flat, kind="stable")]
    starts = np.concatenate([[0], np.cumsum(np.bincount(flat, minlength=1 << TRIGRAM_BITS))])
    best, nearest = np.zeros(len(held_out)), np.zeros(len(held_out), dtype=np.int64)
    for number, (text, _) in enumerate(train):
        own = _trigrams(text)
        own = own[is_rare[own]]
        known = own[starts[own + 1] > starts[own]]  # in some held-out question
        if not len(known) or len(known) < NEAR_SIMILARITY * len(own):
            continue  # too few, even if one question had all of them
        ranges = zip(starts[known], starts[known + 1], strict=True)
        found = np.concatenate([owners[start:end] for start, end in ranges])
        common = np.bincount(found, minlength=len(held_out))
        similarity = common / (len(own) + sizes - common)
        better = np.flatnonzero(similarity > best)
        best[better], nearest[better] = similarity[better], number
    for n in np.flatnonzero(best >= NEAR_SIMILARITY):
        yield Leak("near", held_out[n][1], train[nearest[n]][1], float(best[n]))


def _is_rare(questions: list[ComparedQuestion]) -> np.ndarray:
    """For each hash, whether at most half of the questions have it.

    More frequent trigrams belong to a template around the questions ("Is this review positive?").
    """
    counts = np.zeros(1 << TRIGRAM_BITS, dtype=np.int32)
    for text, _ in questions:
        counts[_trigrams(text)] += 1
    has_templates = len(questions) >= MIN_QUESTIONS_FOR_TEMPLATES
    return counts <= (len(questions) / 2 if has_templates else len(questions))


def _trigrams(text: str) -> np.ndarray:
    """Hashes of the different trigrams in a text with a space at both ends."""
    end = f" {text} "[-MAX_CHARACTERS:]
    codes = np.frombuffer(end.encode("utf-32-le", "replace"), dtype=np.uint32).astype(np.uint64)
    # A code point has 21 bits, so that three of them fit into one number.
    packed = (codes[:-2] << np.uint64(42)) | (codes[1:-1] << np.uint64(21)) | codes[2:]
    hashes = (packed * HASH_FACTOR) >> np.uint64(64 - TRIGRAM_BITS)
    return np.unique(hashes).astype(np.int32)
