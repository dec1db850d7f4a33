"""Picks lists of terms from texts by TF-IDF: the baseline for models that answer with lists."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product, takewhile
from typing import NamedTuple

from shuoshu.core.parts import evenly
from shuoshu.sft.pairs import normalized

MAX_TEXTS = 5_000  # training texts that are counted, evenly spaced
MAX_WORDS = 3  # of a phrase that is no item of a training list
# A phrase has no word at its edges that is frequent in the texts and rare at the edges of items,
# such as "of". This needs no list of such words for each language.
FREQUENT_SHARE = 0.05  # of the texts
MIN_EDGE_SHARE = 0.01  # of the texts with the word
PRIOR_TEXTS = 30  # weight of the prior in a term's share of lists; 1 to 100 were tried
# Scripts without spaces: each character is a word.
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+(?:[-'’][^\W{_UNSPACED}]+)*|[^\w\s]")
_SPACED_WORD = re.compile(rf"[^\W\d{_UNSPACED}]")  # its first character


class Picking(NamedTuple):
    """How a list is picked from a text."""

    length: int
    items_only: bool = False  # no phrase that isn't an item of a training list
    weighted: bool = True  # by how often the training lists have a term that their texts have

    def __str__(self) -> str:
        phrases = f"phrases of up to {MAX_WORDS} words"
        source = "items of training lists" if self.items_only else phrases
        weights = " and the share of lists that have them" if self.weighted else ""
        return f"{self.length} {source}, by TF-IDF{weights}"


class ListPicker:
    """Counts how often terms occur in the training texts and in their lists."""

    def __init__(self, texts: Sequence[str], lists: Sequence[Sequence[str]]) -> None:
        chosen = evenly(len(texts), MAX_TEXTS)
        texts, lists = [texts[n] for n in chosen], [lists[n] for n in chosen]
        terms = [{_term(item): item for item in items} for items in lists]
        self.n_texts = len(texts)
        self.mean_length = sum(map(len, terms)) / max(1, len(terms))
        self.items = {term: item for items in terms for term, item in items.items()}
        self.item_lengths: dict[str, set[int]] = {}  # in words, by the first word
        for first, *more in map(str.split, self.items):
            self.item_lengths.setdefault(first, set()).add(1 + len(more))
        self.excluded_edges = _excluded_edges(texts, terms)
        self.n_with, self.n_listed = Counter(), Counter()  # texts that have a term; whose lists do
        for text, items in zip(texts, terms, strict=True):
            found = self.count_terms(text).keys()
            self.n_with.update(found)
            self.n_listed.update(found & items.keys())
        self.prior = self._listed_shares()

    def _listed_shares(self) -> dict[int, float]:
        """The share of the terms of each length that the lists have of those in their texts."""
        n_with, n_listed = Counter(), Counter()
        for term, count in self.n_with.items():
            n_with[_length(term)] += count
            n_listed[_length(term)] += self.n_listed[term]
        return {length: n_listed[length] / count for length, count in n_with.items()}

    def count_terms(self, text: str) -> Counter[str]:
        """How often a text has each item of the training lists and each other phrase."""
        return Counter(self._terms(_WORD.findall(normalized(text))))

    def _terms(self, words: Sequence[str]) -> Iterator[str]:
        is_spaced = [bool(_SPACED_WORD.match(word)) for word in words]
        is_edge = [word not in self.excluded_edges for word in words]
        for start, word in enumerate(words):
            lengths = self.item_lengths.get(word, ())
            spaced = list(takewhile(bool, is_spaced[start : start + MAX_WORDS]))
            phrases = [n + 1 for n in range(len(spaced)) if is_edge[start] and is_edge[start + n]]
            for length in {*lengths, *phrases}:
                term = " ".join(words[start : start + length])
                if length in phrases or (start + length <= len(words) and term in self.items):
                    yield term

    def rank(self, counts: Counter[str], picking: Picking) -> list[str]:
        """The terms of a text as items, the best first; `counts` is count_terms(text)."""
        terms = [term for term in counts if term in self.items or not picking.items_only]
        terms.sort(key=lambda term: self._score(term, counts[term], picking), reverse=True)
        return [self.items.get(term, term) for term in terms]

    def _score(self, term: str, count: int, picking: Picking) -> float:
        """The term's TF-IDF, weighted by the share of the texts with it whose lists have it."""
        n_with = self.n_with[term]
        tfidf = count * (1 + math.log((1 + self.n_texts) / (1 + n_with)))
        if not picking.weighted:
            return tfidf
        expected = PRIOR_TEXTS * self.prior.get(_length(term), 0.0)
        return tfidf * (self.n_listed[term] + expected) / (n_with + PRIOR_TEXTS)

    def pick(self, text: str, picking: Picking) -> list[str]:
        return self.rank(self.count_terms(text), picking)[: picking.length]

    def choose(
        self,
        texts: Sequence[str],
        lists: Sequence[Sequence[str]],
        measure: Callable[[Sequence[str], Sequence[str]], float],
    ) -> Picking:
        """The picking with the highest mean of measure(picked, list) on these texts.

        Without texts: all terms, weighted, as many as the training lists have on average.
        """
        usual = max(1, round(self.mean_length))
        best, best_total = Picking(usual), -1.0
        counts = list(map(self.count_terms, texts))
        for items_only, weighted in product((False, True), (True, False)) if texts else ():
            ranked = [self.rank(count, Picking(0, items_only, weighted)) for count in counts]
            for length in range(1, 2 * usual + 1):
                picked = (terms[:length] for terms in ranked)
                total = sum(map(measure, picked, lists))
                if total > best_total:
                    best, best_total = Picking(length, items_only, weighted), total
        return best


def _term(item: str) -> str:
    """An item's words, as they are found in a text."""
    return " ".join(_WORD.findall(item))


def _length(term: str) -> int:
    """The term's words; from MAX_WORDS on there are items only, too few to count by length."""
    return min(MAX_WORDS, len(term.split()))


def _excluded_edges(texts: Sequence[str], terms: Sequence[Iterable[str]]) -> set[str]:
    """The words that no phrase begins or ends with; `terms` are those of each text's list."""
    n_with, n_edges = Counter(), Counter()  # texts that have a word; whose lists have it at an edge
    for text, items in zip(texts, terms, strict=True):
        words = set(_WORD.findall(normalized(text)))
        n_with.update(words)
        n_edges.update(words & {item.split()[edge] for item in items for edge in (0, -1)})
    return {
        word
        for word, count in n_with.items()
        if count > FREQUENT_SHARE * len(texts) and n_edges[word] < MIN_EDGE_SHARE * count
    }
