"""Splits a text into the pieces that the Judge tab leaves out one by one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

MAX_PIECES = 40
MIN_SENTENCES = 10  # of a text with too many clauses; fewer sentences say too little

_CLOSING = "[\"'”’」』）)\\]】》]*\\s*"  # belongs to the piece before it
_SENTENCE_END = "[。！？!?；;…\\n]|\\.(?=\\s|$)"
_CLAUSE_END = f"{_SENTENCE_END}|[，、：]|[,:](?![\\d/])"  # not in 1,000 or 9:30 or http://
# Latin words and numbers stay whole. Other letters are pieces, each with the marks after it.
_WORD = "[A-Za-zÀ-ɏ\\d]+(?:['’.,-][A-Za-zÀ-ɏ\\d]+)*|\\w"
_SENTENCES = re.compile(f"(?:{_SENTENCE_END})+{_CLOSING}")
_CLAUSES = re.compile(f"(?:{_CLAUSE_END})+{_CLOSING}")
_WORDS = re.compile(f"(?:{_WORD}|[^\\w\\s])[^\\w\\s]*\\s*")
_CHARACTERS = re.compile(".", re.DOTALL)


def split_pieces(text: str) -> list[str]:
    """The clauses of a text, which together are the text; at most MAX_PIECES.

    Its sentences if there are too many clauses. A single clause is split into words and Chinese
    characters. Of too many pieces, neighbours are joined. None of several is white space alone.
    """
    clauses = cut_after(_CLAUSES, text)
    if len(clauses) > MAX_PIECES:
        sentences = cut_after(_SENTENCES, text)
        return join_neighbours(sentences if len(sentences) >= MIN_SENTENCES else clauses)
    if len(clauses) > 1:
        return clauses
    words = cut_after(_WORDS, text)
    return join_neighbours(words if len(words) > 1 else cut_after(_CHARACTERS, text))


def cut_after(pattern: re.Pattern[str], text: str) -> list[str]:
    """The text, cut after each match, but never so that a piece is white space alone."""
    pieces, start = [], 0
    for match in pattern.finditer(text):
        if text[start : match.end()].strip():
            pieces.append(text[start : match.end()])
            start = match.end()
    rest = text[start:]
    if pieces and not rest.strip():
        pieces[-1] += rest
    elif rest:
        pieces.append(rest)
    return pieces


def join_neighbours(pieces: Sequence[str]) -> list[str]:
    """The pieces, or MAX_PIECES groups of neighbours of about equal number."""
    count = min(len(pieces), MAX_PIECES)
    bounds = [number * len(pieces) // count for number in range(count + 1)] if count else []
    return ["".join(pieces[a:b]) for a, b in pairwise(bounds)]
