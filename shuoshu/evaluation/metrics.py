"""Measures of answers: pure functions over strings and numbers, without torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from rapidfuzz.distance import Indel, LCSseq

_LATIN, _DIGITS = "A-Za-zªºÀ-ÖØ-öø-ɏ\u0300-\u036fḀ-ỿＡ-Ｚａ-ｚ", "0-9０-９"
_UNIT = re.compile(rf"[{_LATIN}]+|[{_DIGITS}]+|\S")
_LATIN_OR_DIGIT = re.compile(f"[{_LATIN}{_DIGITS}]")
MAX_BOUNDS = 2**22  # computed at once
MAX_CANDIDATES = 64  # texts that are compared once a closer one is known

# ---------------------------------------------------------------- one answer and its reference


def units(text: str, chars: bool = False) -> Sequence[str]:
    """The units that measures compare: characters, but runs of Latin letters or digits whole.

    White space is left out. With `chars` the units are all characters. A text without letters and
    digits needs no regular expression and comes back as a string.
    """
    if chars:
        return text
    packed = "".join(text.split())
    return _UNIT.findall(text) if _LATIN_OR_DIGIT.search(packed) else packed


def rouge_l(
    answer: str, reference: str, beta: float = 1.0, chars: bool = False
) -> tuple[float, float, float]:
    """Precision, recall and F of the longest common subsequence; 1 if both texts are empty.

    Upper and lower case differ.
    """
    a, r = units(answer, chars), units(reference, chars)
    common = LCSseq.similarity(a, r)
    if not common:
        return (0.0, 0.0, 0.0) if a or r else (1.0, 1.0, 1.0)
    precision, recall = common / len(a), common / len(r)
    return precision, recall, (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def definition(beta: float = 1.0, chars: bool = False) -> str:
    """What `rouge_l` measures, for eval.json and the terminal."""
    f = "F1" if beta == 1 else f"F (β = {beta:.6g})"
    over = "characters, runs of Latin letters or of digits whole, white space left out"
    if chars:
        over = "every character"
    return (
        f"ROUGE-L {f}: longest common subsequence over {over};"
        " the answer alone, without its question"
    )


def exact_match(answer: str, reference: str) -> bool:
    """True if the texts are equal apart from white space around them."""
    return answer.strip() == reference.strip()


def char_f1(answer: str, reference: str) -> float:
    """F1 of the units in any order, each as often as it occurs; 1 if both texts are empty."""
    a, r = units(answer), units(reference)
    return _ratio(2 * (Counter(a) & Counter(r)).total(), len(a) + len(r), if_empty=1.0)


def _ratio(part: int, whole: int, if_empty: float = 0.0) -> float:
    return part / whole if whole else if_empty


# ---------------------------------------------------------------- many answers


def closer_references(
    answers: Sequence[str], references: Sequence[str], pool: Sequence[str]
) -> list[str | None]:
    """For each answer, a text of `pool` with a higher ROUGE-L F1 than its own reference, or None.

    The units that two texts share in any order bound their F1 from above, so only texts with a high
    bound are compared. None: no text is closer. If several are, the result is the closest of the
    MAX_CANDIDATES with the highest bounds: enough to recognise the answer to another question.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    texts = [units(text) for text in pool]
    if not any(texts):
        return [None] * len(answers)
    # Numbered units occur once in a text: a product of counts counts the shared ones.
    vectorizer = CountVectorizer(analyzer=_numbered, dtype=np.int64)
    text_counts = vectorizer.fit_transform(texts).T.tocsr()
    lengths = np.array([len(text) for text in texts])
    n_rows = max(1, MAX_BOUNDS // len(texts))
    closest: list[str | None] = []
    for start in range(0, len(answers), n_rows):
        block = [units(answer) for answer in answers[start : start + n_rows]]
        shared = (vectorizer.transform(block) @ text_counts).toarray()
        for answer, reference, n_shared in zip(
            block, references[start : start + n_rows], shared, strict=True
        ):
            total = lengths + len(answer)
            bounds = np.where(total, 2 * n_shared / np.maximum(total, 1), 1.0)
            own = Indel.normalized_similarity(answer, units(reference))  # = ROUGE-L F1
            number = _closest(answer, texts, bounds, own)
            closest.append(None if number is None else pool[number])
    return closest


def _closest(
    answer: Sequence[str], texts: Sequence[Sequence[str]], bounds: np.ndarray, best: float
) -> int | None:
    """The index of a text whose F1 is higher than `best`, or None."""
    closest = None
    candidates = np.flatnonzero(bounds > best)
    candidates = candidates[np.argsort(-bounds[candidates], kind="stable")].tolist()
    for tried, number in enumerate(candidates):
        if bounds[number] <= best or (closest is not None and tried >= MAX_CANDIDATES):
            break
        f1 = Indel.normalized_similarity(answer, texts[number])
        if f1 > best:
            best, closest = f1, number
    return closest


def _numbered(sequence: Sequence[str]) -> list[tuple[str, int]]:
    """Each unit with its number among equal ones, so that repeated units are counted correctly."""
    return [(unit, i) for unit, count in Counter(sequence).items() for i in range(count)]


def distinct(texts: Sequence[str], n: int) -> float:
    """Distinct-n: different n-grams ÷ all n-grams, over all texts together; 0 without n-grams."""
    grams = [
        gram
        for text in map(units, texts)
        for gram in zip(*(text[i:] for i in range(n)), strict=False)
    ]
    return _ratio(len(set(grams)), len(grams))


def repetition(text: str) -> float:
    """The share of a text's 4-grams that occurred in it before; 0 for a shorter text."""
    return 1 - distinct([text], 4) if len(units(text)) >= 4 else 0.0


# ---------------------------------------------------------------- closed sets of answers


def confusion_matrix(predicted: np.ndarray, actual: np.ndarray, n_labels: int) -> np.ndarray:
    """Counts of label numbers: a row per actual label, a column per predicted one."""
    cells = np.bincount(actual * n_labels + predicted, minlength=n_labels**2)
    return cells.reshape(n_labels, n_labels)


def label_f1(confusion: np.ndarray) -> np.ndarray:
    """F1 of each label; 0 for a label that is neither predicted nor actual."""
    right = confusion.diagonal()
    return 2 * right / np.maximum(1, confusion.sum(axis=0) + confusion.sum(axis=1))


def label_measures(confusion: np.ndarray, labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """Each label's precision, recall, F1 and support; what is undefined is 0."""
    right, support = confusion.diagonal(), confusion.sum(axis=1)
    columns = {
        "precision": right / np.maximum(1, confusion.sum(axis=0)),
        "recall": right / np.maximum(1, support),
        "f1": label_f1(confusion),
        "support": support,
    }
    return {
        label: {name: values[number].item() for name, values in columns.items()}
        for number, label in enumerate(labels)
    }
