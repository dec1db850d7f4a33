"""TF-IDF index: cosine similarities between questions and documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


class TfidfIndex:
    """TF-IDF vectors of `documents`.

    `by` is the range of character n-gram lengths, or a function that splits a text into terms.
    A term counts by the logarithm of how often the text has it, or without `log_counts` as often.
    """

    def __init__(
        self,
        documents: Sequence[str],
        by: tuple[int, int] | Callable[[str], list[str]],
        log_counts: bool = True,
    ) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        features = (
            {"analyzer": by}
            if callable(by)
            else {"analyzer": "char", "ngram_range": by, "lowercase": False}
        )
        self.vectors = TfidfVectorizer(**features, sublinear_tf=log_counts)
        self.index = self.vectors.fit_transform(documents).T.tocsr()

    def similarities(self, questions: Sequence[str]) -> np.ndarray:
        """Returns cosine similarities, shape (questions, documents)."""
        return (self.vectors.transform(questions) @ self.index).toarray()
