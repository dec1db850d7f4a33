"""How good answers are: pure functions over strings and numbers, without torch."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence

import numpy as np

_LATIN, _DIGITS = "A-Za-zªºÀ-ÖØ-öø-ɏ\u0300-\u036fḀ-ỿＡ-Ｚａ-ｚ", "0-9０-９"
_UNIT, _RUN = re.compile(rf"[{_LATIN}]+|[{_DIGITS}]+|\S"), re.compile(f"[{_LATIN}{_DIGITS}]")
MAX_CANDIDATES = 64  # texts that are tried for the closest one

# ---------------------------------------------------------------- one answer against its reference


def units(text: str, chars: bool = False) -> Sequence[str]:
    """Every character by itself, but runs of Latin letters or of digits whole and white space left out; with `chars` simply every character.

    As the sequence that is quickest made: a text without letters and digits needs only its blanks taken out.
    """
    packed = text if chars else "".join(text.split())
    return packed if chars or not _RUN.search(packed) else _UNIT.findall(text)


def lcs_with(sequence: Sequence[Hashable]) -> Callable[[Sequence[Hashable]], int]:
    """`lcs` with one sequence, whose table is made once for many others.

    Each unit has an integer with a bit for every place it stands at; one addition does a whole row of the usual dynamic program (Hyyrö 2004).
    """
    table: dict[Hashable, int] = {}
    bit = 1
    for unit in sequence:
        if (before := table.setdefault(unit, bit)) is not bit:
            table[unit] = before | bit
        bit += bit
    full = bit - 1

    def length(other: Sequence[Hashable]) -> int:
        free = full
        for places in map(table.get, other):
            if places is not None:
                taken = free & places
                free = (free + taken) | (free - taken)
        return (~free & full).bit_count()

    return length


def lcs(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """The length of the longest common subsequence."""
    return lcs_with(a)(b)


def rouge_l(
    answer: str, reference: str, beta: float = 1.0, chars: bool = False
) -> tuple[float, float, float]:
    """Precision, recall and F of the longest common subsequence, upper and lower case apart; 1 where both texts are empty."""
    a, r = units(answer, chars), units(reference, chars)
    common = lcs(r, a)
    if not common:
        return (0.0, 0.0, 0.0) if a or r else (1.0, 1.0, 1.0)
    precision, recall = common / len(a), common / len(r)
    return precision, recall, (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def definition(beta: float = 1.0, chars: bool = False) -> str:
    """What `rouge_l` measures, in words to print beside its figures."""
    over = (
        "every character"
        if chars
        else "characters, runs of Latin letters or of digits whole, white space left out"
    )
    return f"ROUGE-L {'F1' if beta == 1 else f'F (β = {beta:.6g})'}: longest common subsequence over {over}; the answer alone, without its question"


def exact_match(answer: str, reference: str) -> bool:
    """Equal but for white space around them."""
    return answer.strip() == reference.strip()


def char_f1(answer: str, reference: str) -> float:
    """F1 of the units whatever their order, each as often as it occurs; 1 where both texts are empty."""
    a, r = units(answer), units(reference)
    return _share(2 * (Counter(a) & Counter(r)).total(), len(a) + len(r), 1.0)


def _share(part: int, whole: int, of_nothing: float = 0.0) -> float:
    return part / whole if whole else of_nothing


# ---------------------------------------------------------------- many answers


def closer_references(
    answers: Sequence[str], references: Sequence[str], pool: Sequence[str]
) -> list[str | None]:
    """For each answer a text of `pool` that it has a higher ROUGE-L F1 with than with its own reference, or None: exactly if there is none.

    The units two texts share, whatever their order, bound their F1 from above; it is computed only where that bound is high enough.
    Of several closer texts the closest is named that is among the HOPEFUL highest bounds: enough to recognise an answer to another question.
    """
    texts = [units(text) for text in pool]
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    listed = defaultdict(list)
    for number, text in enumerate(texts):
        for unit in _numbered(text):
            listed[unit].append(number)
    holders = {unit: np.array(numbers) for unit, numbers in listed.items()}
    found: list[str | None] = []
    for answer, reference in zip(answers, references, strict=True):
        mine, own, closest = units(answer), units(reference), None
        common, both = lcs_with(mine), lengths + len(mine)
        best = _share(2 * common(own), len(mine) + len(own), 1.0)
        if best < 1:
            shared = np.concatenate(
                [lengths[:0], *(holders[unit] for unit in _numbered(mine) if unit in holders)]
            )
            bounds = (2 * np.bincount(shared, minlength=len(texts)) + (both == 0)) / np.maximum(
                both, 1
            )
            hopeful = np.flatnonzero(bounds > best)
            for tried, i in enumerate(
                hopeful[np.argsort(-bounds[hopeful], kind="stable")].tolist()
            ):
                if bounds[i] <= best or (closest is not None and tried >= MAX_CANDIDATES):
                    break
                if (score := _share(2 * common(texts[i]), int(both[i]), 1.0)) > best:
                    best, closest = score, pool[i]
        found.append(closest)
    return found


def _numbered(sequence: Sequence[str]) -> list[tuple[str, int]]:
    """The units, equal ones numbered: two texts have as many of these in common as units."""
    return [(unit, i) for unit, count in Counter(sequence).items() for i in range(count)]


def distinct(texts: Sequence[str], n: int) -> float:
    """Distinct-n: different runs of n units / all of them, over all texts together; 0 where there is none."""
    runs = [
        run
        for text in map(units, texts)
        for run in zip(*(text[i:] for i in range(n)), strict=False)
    ]
    return _share(len(set(runs)), len(runs))


def repetition(text: str) -> float:
    """The share of a text's runs of four units that occurred in it before; 0 for a shorter text."""
    return 1 - distinct([text], 4) if len(units(text)) >= 4 else 0.0


def classification(
    predicted: Sequence[Hashable], actual: Sequence[Hashable], labels: Sequence[Hashable]
) -> dict:
    """Accuracy, macro-F1, each label's precision, recall, F1 and support, and the confusion matrix: a row an actual label, a column a predicted one.

    `other` counts by row what was predicted and is none of the labels. What is undefined is 0.
    """
    cells, taken, support = (
        Counter(zip(actual, predicted, strict=True)),
        Counter(predicted),
        Counter(actual),
    )
    by_label = {}
    for label in labels:
        right = cells[label, label]
        f1 = _share(2 * right, taken[label] + support[label])
        by_label[label] = {
            "precision": _share(right, taken[label]),
            "recall": _share(right, support[label]),
            "f1": f1,
            "support": support[label],
        }
    confusion = [[cells[row, column] for column in labels] for row in labels]
    return {
        "accuracy": _share(sum(cells[label, label] for label in labels), len(actual)),
        "macro_f1": sum(entry["f1"] for entry in by_label.values()) / max(1, len(labels)),
        "labels": by_label,
        "confusion": confusion,
        "other": [support[label] - sum(row) for label, row in zip(labels, confusion, strict=True)],
    }
