"""Linear models on raw text: of several, the one that labels the validation texts best.

What a GPT has to beat: TF-IDF of characters and words with logistic regression and with a linear
support vector machine, and logistic regression on features that are weighted by how much they speak
for a label (naive Bayes; Wang and Manning 2012).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from shuoshu.evaluation.label_measures import (
    Correction,
    cross_fitted,
    fit_bias,
    log_losses,
    log_normalized,
)

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfVectorizer

MAX_TRAINING_CHARACTERS = 16_000_000  # of all training texts together: bounds time and memory
MAX_FEATURES = 300_000  # character n-grams, and as many words
MAX_STEPS = 300  # of a logistic regression's fit
UNSPACED_SHARE = 0.3  # of the characters: above it texts are read as a script without spaces
# Thai to Lao, Burmese, Khmer; Chinese, Japanese and Korean, full-width signs included.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ud7ff\uf900-\uffff\U00020000-\U0003ffff]"
)


class LinearKind(NamedTuple):
    """One of the linear models."""

    name: str
    features: str  # tfidf, or weighted by naive Bayes: nb_tfidf, nb_binary
    classifier: str  # logistic or svm
    c: float  # the inverse strength of the regularisation


LINEAR_KINDS = [  # the first one is the default
    LinearKind("NB-weighted TF-IDF, logistic regression, C=1", "nb_tfidf", "logistic", 1.0),
    LinearKind("NB-weighted binary, logistic regression, C=0.1", "nb_binary", "logistic", 0.1),
    LinearKind("NB-weighted binary, logistic regression, C=0.01", "nb_binary", "logistic", 0.01),
    LinearKind("TF-IDF, linear SVM, C=0.3", "tfidf", "svm", 0.3),
    LinearKind("TF-IDF, logistic regression, C=10", "tfidf", "logistic", 10.0),
    LinearKind("TF-IDF, logistic regression, C=1", "tfidf", "logistic", 1.0),
]

# ---------------------------------------------------------------- features


@dataclass
class TextFeatures:
    """TF-IDF of character n-grams, and of words if the texts have spaces between them."""

    vectorizers: list[TfidfVectorizer]
    max_length: int  # characters that are read of a text

    @classmethod
    def fit(cls, texts: Sequence[str]) -> tuple[TextFeatures, csr_matrix]:
        """The features of the training texts, and their matrix."""
        features = cls([], shared_length([len(text) for text in texts], MAX_TRAINING_CHARACTERS))
        texts = features._shortened(texts)
        parts = []
        for settings in _ngrams(texts):
            vectorizer, part = _fit_vectorizer(texts, settings)
            if part is not None:
                features.vectorizers.append(vectorizer)
                parts.append(part)
        return features, _joined(parts, len(texts))

    def transform(self, texts: Sequence[str]) -> csr_matrix:
        """Shape (texts, features)."""
        texts = self._shortened(texts)
        return _joined([v.transform(texts) for v in self.vectorizers], len(texts))

    def _shortened(self, texts: Sequence[str]) -> list[str]:
        """A text that is too long keeps its beginning and its end."""
        first = (self.max_length + 1) // 2
        last = self.max_length - first
        return [
            text if len(text) <= self.max_length else f"{text[:first]} {text[len(text) - last :]}"
            for text in texts
        ]


def shared_length(lengths: Sequence[int], total: int) -> int:
    """The most characters that each text may keep for all texts together to have at most `total`.

    `total` itself if nothing has to be cut.
    """
    left = total
    for number, length in enumerate(sorted(lengths)):
        share = left // (len(lengths) - number)
        if length > share:
            return share
        left -= length
    return total


def _ngrams(texts: Sequence[str]) -> list[dict]:
    """Settings of the vectorizers."""
    unspaced = sum(len(_UNSPACED.findall(text)) for text in texts)
    if unspaced > UNSPACED_SHARE * sum(map(len, texts)):
        return [{"analyzer": "char", "ngram_range": (1, 3)}]
    return [{"analyzer": "char_wb", "ngram_range": (2, 5)}, {"ngram_range": (1, 2)}]


def _fit_vectorizer(
    texts: Sequence[str], settings: dict
) -> tuple[TfidfVectorizer, csr_matrix | None]:
    """TF-IDF of what two texts have, or else of what one has; no matrix if there is nothing."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    for min_texts in (2, 1):
        vectorizer = TfidfVectorizer(
            **settings, sublinear_tf=True, min_df=min_texts, max_features=MAX_FEATURES
        )
        try:
            return vectorizer, vectorizer.fit_transform(texts)
        except ValueError:  # no features are left
            continue
    return vectorizer, None


def _joined(parts: list[csr_matrix], n_texts: int) -> csr_matrix:
    """All features side by side; without any, a column of zeros."""
    from scipy.sparse import csr_matrix, hstack

    return hstack(parts, "csr") if parts else csr_matrix((n_texts, 1))


# ---------------------------------------------------------------- models


@dataclass
class LinearModel:
    """Label scores: features · weights + bias, made probabilities on the validation rows."""

    name: str
    features: TextFeatures
    is_binary: bool  # a feature is there or not
    weights: np.ndarray  # (features, labels)
    bias: np.ndarray  # (labels,)
    correction: Correction | None = None

    def log_probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Shape (texts, labels)."""
        if not texts:
            return np.zeros((0, len(self.bias)))
        return self.of_features(self.features.transform(texts))

    def of_features(self, matrix: csr_matrix) -> np.ndarray:
        """The log probabilities of texts whose features are known."""
        matrix = matrix.sign() if self.is_binary else matrix
        raw = log_normalized(matrix @ self.weights + self.bias)
        return self.correction.apply(raw) if self.correction else raw


def strongest(
    train_texts: Sequence[str],
    train_labels: Sequence[str],
    val_texts: Sequence[str],
    val_labels: Sequence[str],
    labels: Sequence[str],
) -> LinearModel:
    """The most accurate model of LINEAR_KINDS on validation, of equals that with the lowest loss.

    Each model's probabilities are corrected by a fit on the validation rows, cross-fitted for the
    choice. Without validation rows: the first of LINEAR_KINDS, as trained.
    """
    numbers = {label: number for number, label in enumerate(labels)}
    true = np.array([numbers[label] for label in train_labels])
    features, matrix = TextFeatures.fit(train_texts)
    if not val_texts:
        return _fit_model(LINEAR_KINDS[0], features, matrix, true, len(labels))
    val_matrix = features.transform(val_texts)
    val_true = np.array([numbers[label] for label in val_labels])
    best_model, best_merit = None, (-1.0, 0.0)
    for kind in LINEAR_KINDS:
        model = _fit_model(kind, features, matrix, true, len(labels))
        raw = model.of_features(val_matrix)
        corrected = cross_fitted(raw, val_true)
        accuracy = (corrected.argmax(axis=1) == val_true).mean()
        merit = (accuracy, -log_losses(corrected, val_true).mean())
        if merit > best_merit:
            model.correction = fit_bias(raw, val_true)
            best_model, best_merit = model, merit
    return best_model


def _fit_model(
    kind: LinearKind, features: TextFeatures, matrix: csr_matrix, true: np.ndarray, n_labels: int
) -> LinearModel:
    """Each label against all others; of two labels, the second one against the first."""
    is_binary = kind.features == "nb_binary"
    matrix = matrix.sign() if is_binary else matrix
    weights, bias = np.zeros((matrix.shape[1], n_labels)), np.full(n_labels, -np.inf)
    present = np.unique(true)
    bias[present] = 0.0  # the others were never seen
    for label in present[1:] if len(present) <= 2 else present:
        weights[:, label], bias[label] = _fit_label(kind, matrix, true == label)
    return LinearModel(kind.name, features, is_binary, weights, bias)


def _fit_label(
    kind: LinearKind, matrix: csr_matrix, is_label: np.ndarray
) -> tuple[np.ndarray, float]:
    """Weights of the features and a bias: above zero for a text of the label."""
    from scipy.sparse import diags
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    speaks_for = np.ones(matrix.shape[1])
    if kind.features != "tfidf":
        speaks_for = naive_bayes_weights(matrix, is_label)
    if kind.classifier == "svm":
        classifier = LinearSVC(C=kind.c, random_state=0)
    else:
        classifier = LogisticRegression(C=kind.c, max_iter=MAX_STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # good enough to be measured
        classifier.fit(matrix @ diags(speaks_for), is_label)
    return classifier.coef_[0] * speaks_for, float(classifier.intercept_[0])


def naive_bayes_weights(matrix: csr_matrix, is_label: np.ndarray) -> np.ndarray:
    """For each feature: log of its share in the label's texts ÷ its share in the others.

    A feature counts once a text. One more text of each kind, which has all features, keeps the
    logarithms finite.
    """
    there = matrix.sign()
    with_label = 1 + np.asarray(there[is_label].sum(axis=0)).ravel()
    without = 1 + np.asarray(there[~is_label].sum(axis=0)).ravel()
    return np.log(with_label / with_label.sum()) - np.log(without / without.sum())
