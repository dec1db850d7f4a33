"""How similar a question is to each taught answer, measured in four ways.

question  the most similar question that was taught with the answer: single characters
texts     all questions of the answer and the answer itself, joined: single characters
pairs     the same, by single characters and pairs of them
book      the passages of the book to which the question points, beside those to which the answer
          with its questions points; this finds words that the book uses and no question has

All are cosines of TF-IDF vectors. `contrasts` measures something else: whether another passage of
the book explains the question's words better. Then the question was probably never taught.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shuoshu.answering.taught import TAUGHT_FOLDS, Taught
from shuoshu.sft.tfidf import TfidfIndex

NAMES = ("question", "texts", "pairs", "book")
SHARPNESS = 3  # the power of a passage's similarity: the most similar ones count
N_FEATURES = 2**20  # n-grams are hashed: a book has too many different ones to keep their texts
OWN_PASSAGES = 3  # of the book, for each answer
MAX_PLACES = 1_000  # passages kept of each answer: the others hardly change a cosine
DOCUMENTS_AT_ONCE = 256  # compared with all passages


class BookIndex:
    """The passages of a book: which of them speak of a text, and which words they have."""

    def __init__(self, passages: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

        options = {"analyzer": "char", "alternate_sign": False, "norm": None}
        options |= {"n_features": N_FEATURES, "dtype": np.float32, "preprocessor": encodable}
        self.counter = HashingVectorizer(ngram_range=(1, 3), **options)
        self.weigher = TfidfTransformer(sublinear_tf=True)
        self.index = self.weigher.fit_transform(self.counter.transform(passages)).T.tocsr()
        self.words = HashingVectorizer(ngram_range=(1, 2), binary=True, **options)
        self.held = self.words.transform(passages)  # (passages, words): 1 where it has the word
        self.holders = self.held.T.tocsr()  # the same by words

    def similarities(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, passages): cosines."""
        return (self.weigher.transform(self.counter.transform(texts)) @ self.index).toarray()


class AnswerLookups:
    """Compares questions with the answers of `taught`; `book` is None without a book."""

    def __init__(self, taught: Taught, book: BookIndex | None = None) -> None:
        self.taught, self.book = taught, book
        self.names = NAMES if book else NAMES[:-1]
        groups: list[list[str]] = [[] for _ in taught.answers]
        for question, owner in zip(taught.questions, taught.owners.tolist(), strict=True):
            groups[owner].append(question)
        documents = [
            "\n".join([*group, answer])
            for group, answer in zip(groups, taught.answers, strict=True)
        ]
        self.questions = TfidfIndex(taught.questions, (1, 1))
        self.texts = TfidfIndex(documents, (1, 1))
        self.pairs = TfidfIndex(documents, (1, 2))
        if book:
            self._set_places(book, documents)

    def _set_places(self, book: BookIndex, documents: Sequence[str]) -> None:
        """Sets where the book speaks of each answer, and which words it has there."""
        from scipy.sparse import csr_matrix, diags, vstack

        places, own = [], []
        for start in range(0, len(documents), DOCUMENTS_AT_ONCE):
            similarities = book.similarities(documents[start : start + DOCUMENTS_AT_ONCE])
            own.append(most_similar(similarities, OWN_PASSAGES))
            vectors = sharp_unit_vectors(similarities)
            places.append(csr_matrix(largest_only(vectors, MAX_PLACES)))
        self.places = vstack(places).T.tocsr()  # (passages, answers)
        # The words of each answer: those of its document and of its passages.
        held = book.words.transform(documents)
        for column in np.concatenate(own).T:
            held = held.maximum(book.held[column])
        n_texts = len(documents) + book.held.shape[0]
        frequency = np.asarray(held.sum(axis=0) + book.held.sum(axis=0)).ravel()
        self.rarity = diags(np.log((n_texts + 1) / (frequency + 0.5)))
        self.holders = held.T.tocsr()  # (words, answers)

    def similarities(self, questions: Sequence[str]) -> np.ndarray:
        """(questions, answers, names): each between 0 and 1."""
        nearest = np.zeros((len(self.taught.answers), len(questions)))
        np.maximum.at(nearest, self.taught.owners, self.questions.similarities(questions).T)
        columns = [
            nearest.T,
            self.texts.similarities(questions),
            self.pairs.similarities(questions),
        ]
        if self.book:
            columns.append(sharp_unit_vectors(self.book.similarities(questions)) @ self.places)
        return np.stack(columns, axis=-1)

    def contrasts(self, questions: Sequence[str], answers: np.ndarray) -> np.ndarray:
        """(questions, n): how much better an answer explains a question than the book does.

        It is the share of the question's words, by their rarity, that the answer has with its
        questions and passages, less the share that the best passage of the book has. answers:
        (questions, n), indices. Zeros without a book.
        """
        if not self.book:
            return np.zeros(answers.shape)
        words = (self.book.words.transform(questions) @ self.rarity).tocsr()
        total = np.maximum(np.asarray(words.sum(axis=1)), 1e-9)  # (questions, 1)
        best = (words @ self.book.holders).max(axis=1).toarray()
        shared = (words @ self.holders).toarray()
        return (np.take_along_axis(shared, answers, axis=1) - best) / total

    def nearest_questions(self, question: str, answers: Sequence[int]) -> list[str]:
        """Of each of these answers, the taught question that is most similar to this one."""
        [similarities] = self.questions.similarities([question])
        nearest = []
        for answer in answers:
            own = np.flatnonzero(self.taught.owners == answer)
            if len(own):
                nearest.append(self.taught.questions[own[similarities[own].argmax()]])
        return nearest


def encodable(text: str) -> str:
    """The text without halves of surrogate pairs, which can't be hashed."""
    return text.encode("utf-8", "replace").decode()


def sharp_unit_vectors(similarities: np.ndarray) -> np.ndarray:
    """(texts, passages): unit vectors of how much each passage speaks of each text."""
    weights = similarities**SHARPNESS
    norms = np.linalg.norm(weights, axis=1, keepdims=True)
    return weights / np.where(norms > 0, norms, 1.0)


def most_similar(similarities: np.ndarray, count: int) -> np.ndarray:
    """(texts, count): the numbers of the most similar passages; fewer if there are fewer."""
    count = min(count, similarities.shape[1])
    return np.argpartition(-similarities, count - 1, axis=1)[:, :count]


def largest_only(vectors: np.ndarray, count: int) -> np.ndarray:
    """The vectors with zeros in place of all but the `count` largest numbers of each."""
    count = min(count, vectors.shape[1])
    largest = np.argpartition(vectors, -count, axis=1)[:, -count:]
    kept = np.zeros_like(vectors)
    np.put_along_axis(kept, largest, np.take_along_axis(vectors, largest, axis=1), axis=1)
    return kept


def held_out_similarities(taught: Taught, book: BookIndex | None, chosen: np.ndarray) -> np.ndarray:
    """The similarities of the chosen training questions, each compared with other folds only."""
    folds = taught.folds()
    parts = np.zeros((len(chosen), len(taught.answers), len(NAMES) if book else len(NAMES) - 1))
    for fold in range(TAUGHT_FOLDS):
        mine = folds[chosen] == fold
        if mine.any():
            lookups = AnswerLookups(taught.subset(folds != fold), book)
            questions = [taught.questions[n] for n in chosen[mine]]
            parts[mine] = lookups.similarities(questions)
    return parts
