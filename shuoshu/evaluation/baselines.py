"""Baselines: TF-IDF look-ups, the most frequent label, TF-IDF with logistic regression."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from shuoshu.core.command_settings import EvalSettings
from shuoshu.evaluation import metrics
from shuoshu.evaluation.intervals import paired_difference
from shuoshu.evaluation.measure_set import MeasureSet
from shuoshu.generation.answers import Question
from shuoshu.sft.tfidf import TfidfIndex

MAX_SIMILARITIES = 2**22  # computed at once
MACRO_F1_ROUNDS = 500  # of the bootstrap


def add_baselines(
    measures: MeasureSet,
    settings: EvalSettings,
    training: Sequence[Question],
    asked: Sequence[Question],
    labels: Sequence[str] | None,
) -> None:
    """Adds the look-ups' ROUGE-L, and for a closed set of answers two simple classifiers."""
    train_texts, train_answers = _texts(training), [question.reference for question in training]
    texts, references = _texts(asked), [question.reference for question in asked]
    for name, look_up in (("lookup_", lookup_nearest), ("lookup_joined_", lookup_joined)):
        answers = look_up(train_texts, train_answers, texts)
        scores = [
            metrics.rouge_l(text, reference, settings.beta, settings.rouge == "chars")[2]
            for text, reference in zip(answers, references, strict=True)
        ]
        measures.add_mean(name + "rouge_l", scores)
        above = paired_difference(measures.by_row["rouge_l"], scores, measures.seed)
        measures.add_interval(f"above_{name}rouge_l", above)
    if not labels:
        return
    majority = [Counter(train_answers).most_common(1)[0][0]] * len(asked)
    add_classification(measures, "majority_", majority, references, labels)
    predicted = predict_by_tfidf(train_texts, train_answers, texts)
    add_classification(measures, "tfidf_", predicted, references, labels)


def _texts(questions: Sequence[Question]) -> list[str]:
    """Each question with the conversation before it."""
    return ["\n".join(m["content"] for m in question.messages) for question in questions]


def add_classification(
    measures: MeasureSet,
    prefix: str,
    predicted: Sequence[str],
    actual: Sequence[str],
    labels: Sequence[str],
) -> np.ndarray:
    """Adds accuracy and macro-F1; returns the confusion matrix."""
    right = [p == a for p, a in zip(predicted, actual, strict=True)]
    measures.add_mean(prefix + "accuracy", right)
    numbers = {label: number for number, label in enumerate(labels)}
    chosen = np.array([numbers[label] for label in predicted])
    true = np.array([numbers[label] for label in actual])

    def confusion(rows: np.ndarray) -> np.ndarray:
        return metrics.confusion_matrix(chosen[rows], true[rows], len(labels))

    measures.add_aggregate(
        prefix + "macro_f1",
        true,
        lambda rows: metrics.label_f1(confusion(rows)).mean(),
        rounds=MACRO_F1_ROUNDS,
    )
    return confusion(np.arange(len(true)))


def predict_by_tfidf(
    train_texts: Sequence[str], train_labels: Sequence[str], texts: Sequence[str]
) -> list[str]:
    """The label of each text, by logistic regression on character 1–3-gram TF-IDF."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectors = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True)
    model = LogisticRegression(C=10, max_iter=1000)
    model.fit(vectors.fit_transform(train_texts), train_labels)
    return model.predict(vectors.transform(texts)).tolist()


def lookup_nearest(
    train_questions: Sequence[str], train_answers: Sequence[str], questions: Sequence[str]
) -> list[str]:
    """For each question, the answer of the most similar training question (1–2-gram TF-IDF)."""
    return _look_up(train_questions, train_answers, questions, max_ngram=2)


def lookup_joined(
    train_questions: Sequence[str], train_answers: Sequence[str], questions: Sequence[str]
) -> list[str]:
    """For each question, the answer whose joined training questions are the most similar."""
    by_answer: dict[str, list[str]] = defaultdict(list)
    for question, answer in zip(train_questions, train_answers, strict=True):
        by_answer[answer].append(question)
    documents = ["\n".join(group) for group in by_answer.values()]
    return _look_up(documents, list(by_answer), questions, max_ngram=1)


def _look_up(
    documents: Sequence[str], answers: Sequence[str], questions: Sequence[str], max_ngram: int
) -> list[str]:
    """For each question, the answer of the most similar document, the first of equals.

    The answers are empty if there are no documents.
    """
    if not any(documents) or not questions:
        return [""] * len(questions)
    index = TfidfIndex(documents, (1, max_ngram))
    rows = max(1, MAX_SIMILARITIES // len(documents))
    nearest: list[int] = []
    for start in range(0, len(questions), rows):
        nearest += index.similarities(questions[start : start + rows]).argmax(axis=1).tolist()
    return [answers[number] for number in nearest]
