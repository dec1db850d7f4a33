"""Baselines of answers: TF-IDF look-ups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from shuoshu.core.command_settings import EvalSettings
from shuoshu.core.parts import evenly
from shuoshu.evaluation import metrics
from shuoshu.evaluation.intervals import paired_difference
from shuoshu.evaluation.measure_set import MeasureSet
from shuoshu.generation.answers import Question
from shuoshu.sft.tfidf import TfidfIndex

MAX_SIMILARITIES = 2**22  # computed at once
MAX_VALIDATION = 500  # questions that choose the look-ups' variants, evenly spaced
LOOKUPS = ("lookup_", "lookup_joined_", "lookup_answers_")  # prefixes of their measures


class Variant(NamedTuple):
    """How a look-up compares texts."""

    max_ngram: int  # characters
    log_counts: bool

    def __str__(self) -> str:
        ngrams = "1 character" if self.max_ngram == 1 else f"1 to {self.max_ngram} characters"
        return f"{ngrams}, {'logarithmic' if self.log_counts else 'plain'} counts"


# The first one is the default.
VARIANTS = [Variant(n, log_counts) for n in (1, 2, 3) for log_counts in (True, False)]


@dataclass
class Lookups:
    """The look-ups, each in the variant that answers the validation questions best."""

    training: Sequence[Question]
    variants: dict[str, Variant]  # by the prefix in LOOKUPS
    n_validation: int  # questions that they were chosen on; 0: the variants are the default

    @classmethod
    def choose(
        cls,
        settings: EvalSettings,
        training: Sequence[Question],
        validation: Sequence[Question],
    ) -> Lookups:
        validation = [validation[n] for n in evenly(len(validation), MAX_VALIDATION)]
        lookups = cls(training, dict.fromkeys(LOOKUPS, VARIANTS[0]), len(validation))
        if validation:
            for name in LOOKUPS:
                means = [
                    np.mean(lookups.scores(settings, name, variant, validation))
                    for variant in VARIANTS
                ]
                lookups.variants[name] = VARIANTS[int(np.argmax(means))]
        return lookups

    def scores(
        self, settings: EvalSettings, name: str, variant: Variant, asked: Sequence[Question]
    ) -> list[float]:
        """ROUGE-L of a look-up's answers."""
        answers = [question.reference for question in self.training]
        documents, answers = lookup_documents(name, _texts(self.training), answers)
        return [
            metrics.rouge_l(answer, question.reference, settings.beta, settings.rouge == "chars")[2]
            for answer, question in zip(
                look_up(documents, answers, _texts(asked), variant), asked, strict=True
            )
        ]

    @property
    def definition(self) -> str:
        """The variants, for eval.json and the terminal."""
        chosen = f"chosen on {self.n_validation:,} validation questions"
        variants = "; ".join(f"{name.rstrip('_')}: {v}" for name, v in self.variants.items())
        return f"TF-IDF, {chosen if self.n_validation else 'the default'}: {variants}"


def add_baselines(
    measures: MeasureSet,
    settings: EvalSettings,
    lookups: Lookups,
    asked: Sequence[Question],
) -> None:
    """Adds the look-ups' ROUGE-L."""
    for name, variant in lookups.variants.items():
        scores = lookups.scores(settings, name, variant, asked)
        measures.add_mean(name + "rouge_l", scores)
        above = paired_difference(measures.by_row["rouge_l"], scores, measures.seed)
        measures.add_interval(f"above_{name}rouge_l", above)


def _texts(questions: Sequence[Question]) -> list[str]:
    return [question.raw_text for question in questions]


def lookup_documents(
    name: str, questions: Sequence[str], answers: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The documents that a look-up compares a question with, and the answer of each.

    A document is a training question, or all questions of an answer, or these and the answer.
    """
    if name == "lookup_":
        return list(questions), list(answers)
    by_answer: dict[str, list[str]] = defaultdict(list)
    for question, answer in zip(questions, answers, strict=True):
        by_answer[answer].append(question)
    if name == "lookup_answers_":
        for answer, group in by_answer.items():
            group.append(answer)
    return ["\n".join(group) for group in by_answer.values()], list(by_answer)


def look_up(
    documents: Sequence[str], answers: Sequence[str], questions: Sequence[str], variant: Variant
) -> list[str]:
    """For each question, the answer of the most similar document, the first of equals.

    The answers are empty if there are no documents.
    """
    if not any(documents) or not questions:
        return [""] * len(questions)
    index = TfidfIndex(documents, (1, variant.max_ngram), variant.log_counts)
    rows = max(1, MAX_SIMILARITIES // len(documents))
    nearest: list[int] = []
    for start in range(0, len(questions), rows):
        nearest += index.similarities(questions[start : start + rows]).argmax(axis=1).tolist()
    return [answers[number] for number in nearest]
