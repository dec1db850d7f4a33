"""Answers a question in the book's own words: with the sentence of the passages that fits best."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from shuoshu.answering.passages import SENTENCE_STOP, TERM_UNIT, Passage

MIN_SENTENCE_UNITS = 2
QUOTATION_MARKS = ("“”", "「」", "『』")


def best_sentence(question: str, passages: Sequence[Passage]) -> str:
    """The sentence that shares the most and rarest words with the question; "" without passages.

    Of Chinese it compares characters. A sentence that asks is chosen only if there is no other one.
    """
    sentences = [sentence for passage in passages for sentence in _sentences(passage.text)]
    units = [_units(sentence) for sentence in sentences]
    counts = Counter(unit for own in units for unit in own)
    asked = _units(question)

    def score(number: int) -> tuple[bool, float]:
        weights = (_weight(counts[unit], len(units)) for unit in asked & units[number])
        return not ("？" in sentences[number] or "?" in sentences[number]), math.fsum(weights)

    return sentences[max(range(len(sentences)), key=score)] if sentences else ""


def _units(text: str) -> set[str]:
    return {match[0].lower() for match in TERM_UNIT.finditer(text)}


def _weight(count: int, total: int) -> float:
    """BM25's weight of a unit in `count` of `total` sentences."""
    return math.log(1 + (total - count + 0.5) / (count + 0.5))


def _sentences(text: str) -> Iterator[str]:
    start = 0
    for end in (*(match.end() for match in SENTENCE_STOP.finditer(text)), len(text)):
        sentence = _without_lone_mark(text[start:end].strip())
        start = end
        if len(TERM_UNIT.findall(sentence)) >= MIN_SENTENCE_UNITS:
            yield sentence


def _without_lone_mark(sentence: str) -> str:
    """The sentence without a quotation mark whose other half is in another sentence."""
    for opening, closing in QUOTATION_MARKS:
        if sentence.count(opening) > sentence.count(closing):
            sentence = sentence.removeprefix(opening)
        elif sentence.count(opening) < sentence.count(closing):
            sentence = sentence.removesuffix(closing)
    return sentence
