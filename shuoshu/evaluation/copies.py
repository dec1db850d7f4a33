"""Finds which spans of an answer were copied verbatim from the model's training text."""

from __future__ import annotations

import codecs
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shuoshu.core.errors import UserError
from shuoshu.evaluation.copy_search import CopySearch
from shuoshu.text import dataset
from shuoshu.text.behind import find_text_folder
from shuoshu.text.tokenizer_folder import load_tokenizer

MIN_COPIED = 20  # consecutive characters: an answer with such a span counts as copied
MIN_MARKED = 8  # consecutive characters: the report marks such a span
DECODED_TOKENS = 1 << 15  # at once; more don't fit into a processor's cache and take longer
JOINED_PIECES = 8

Chapter = tuple[int, str | None]  # first character in the text, book and title


class Copies(NamedTuple):
    """What an answer has in common with the training text."""

    longest: int  # characters of the longest common span, however short
    spans: list[tuple[int, int, str | None]]  # start, end, book and chapter


class TrainingText:
    """The text that a model was pretrained on, with its books and chapters."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, dataset.TextDataset(folder, "train")
        self.characters = self.data.characters
        self.token_bytes = np.array(load_tokenizer(folder).token_bytes, dtype=object)
        books = [f"《{book['title']}》" for book in self.data.meta["books"]]
        self.titles = {  # by the chapter's first token
            chapter["token"]: books[chapter["book"]] + chapter["title"]
            for chapter in self.data.meta["chapters"]
            if chapter["split"] == "train"
        }

    @classmethod
    def find(cls, out_dir: Path) -> TrainingText | None:
        """The text behind a model, or behind the model that it was fine-tuned from.

        None if the folder is missing or its text has changed since.
        """
        # UserError, OSError: the text can't be read any more.
        with suppress(UserError, OSError):
            if folder := find_text_folder(out_dir):
                return cls(folder)
        return None

    def find_copies(self, answers: Sequence[str]) -> list[Copies]:
        """What each answer has in common with the text, which is read once for all answers.

        The spans have MIN_MARKED characters or more and stand from left to right.
        """
        search = CopySearch(answers, MIN_MARKED)
        chapters: list[Chapter] = [(0, None)]
        search.read(self._pieces(chapters))
        return [
            Copies(
                int(longest),
                [
                    (start, end, chapter_at(chapters, place))
                    for start, end, place in search.spans(number)
                ],
            )
            for number, longest in enumerate(search.longest)
        ]

    def _pieces(self, chapters: list[Chapter]) -> Iterator[str]:
        """Yields the text in pieces and adds its chapters.

        Raises UserError if the token file was cut while it was in use.
        """
        tokens, n_characters, pieces = self.data.tokens, 0, []
        decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a piece may cut a character
        cuts = sorted({*self.titles, *range(0, len(tokens), DECODED_TOKENS), len(tokens)})
        for start, end in pairwise(cuts):
            if start in self.titles:
                chapters.append((n_characters, self.titles[start]))
            dataset.check_length(tokens, self.data.path)
            raw = b"".join(self.token_bytes[tokens[start:end]].tolist())
            pieces.append(decoder.decode(raw, final=end == len(tokens)))
            n_characters += len(pieces[-1])
            if len(pieces) == JOINED_PIECES or end == len(tokens):
                yield "".join(pieces)
                pieces = []


def chapter_at(chapters: Sequence[Chapter], place: int) -> str | None:
    """The title of the chapter that has this character."""
    return chapters[bisect_right(chapters, place, key=lambda chapter: chapter[0]) - 1][1]
