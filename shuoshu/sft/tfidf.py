"""Nearest texts by TF-IDF."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


class TfidfIndex:
    """Texts to look in, by TF-IDF: of their runs of so many characters, from shortest to longest, or of what a function finds in them."""

    def __init__(
        self, documents: Sequence[str], by: tuple[int, int] | Callable[[str], list[str]]
    ) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        features = (
            {"analyzer": by}
            if callable(by)
            else {"analyzer": "char", "ngram_range": by, "lowercase": False}
        )
        self.vectors = TfidfVectorizer(**features, sublinear_tf=True)
        self.index = self.vectors.fit_transform(documents).T.tocsr()

    def nearness(self, questions: Sequence[str]) -> np.ndarray:
        """(questions, documents): the cosine of each question with each document."""
        return (self.vectors.transform(questions) @ self.index).toarray()
