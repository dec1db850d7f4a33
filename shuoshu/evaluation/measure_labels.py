"""Measures models that label texts, beside the strongest linear model and both together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from shuoshu.core.command_settings import EvalSettings
from shuoshu.core.errors import UserError
from shuoshu.evaluation import metrics
from shuoshu.evaluation.copies import TrainingText
from shuoshu.evaluation.evaluated_model import (
    EvaluatedModel,
    SplitResult,
    answer_row,
    progress_printer,
)
from shuoshu.evaluation.intervals import mcnemar
from shuoshu.evaluation.label_measures import (
    Correction,
    add_probabilities,
    cross_fitted,
    fit_bias,
    fit_scale,
    label_intervals,
    mix,
)
from shuoshu.evaluation.linear_models import LinearModel, strongest
from shuoshu.evaluation.measure_set import MeasureSet
from shuoshu.generation.answers import Question, limit_questions, read_questions
from shuoshu.generation.judge import label_log_probabilities
from shuoshu.generation.sampling import TextGenerator
from shuoshu.models.purpose import Labelling
from shuoshu.sft.layouts import template_ends
from shuoshu.sft.rendering import without_ends
from shuoshu.text.dataset import read_meta

MACRO_F1_ROUNDS = 500  # of the bootstrap


class LabelledTexts:
    """The texts of one split with their labels as numbers."""

    def __init__(self, questions: Sequence[Question], labels: Sequence[str], template: str) -> None:
        self.questions = questions
        ends = template_ends(template)
        # What the linear model reads: whole texts, without the words of the prompt.
        self.texts = [without_ends(question.raw_text, ends) for question in questions]
        self.references = [question.reference for question in questions]
        numbers = {label: number for number, label in enumerate(labels)}
        self.true = np.array([numbers[reference] for reference in self.references], dtype=int)


class LabelScorer:
    """A model that gives the log-probabilities of the data's labels."""

    def __init__(self, model: EvaluatedModel, labels: Sequence[str]) -> None:
        """A model that was trained on other labels, or on none, is judged by its answers."""
        self.model, self.labelling = model, Labelling(tuple(labels))
        own = model.purpose.labelling
        if own and sorted(own.labels) == sorted(labels):
            self.labelling = own
        elif own and own.judges_by == "text":
            raise UserError(
                f"{model.folder} labels texts as {', '.join(own.labels)}, but the data has the"
                f" labels {', '.join(labels)}: name its own data with --data"
            )
        self.columns = [self.labelling.labels.index(label) for label in labels]

    def scores(self, texts: LabelledTexts, title: str) -> np.ndarray:
        """(texts, labels), without the correction that was fitted on validation."""
        scores = label_log_probabilities(
            TextGenerator(self.model.model, self.model.tokenizer),
            self.labelling.uncorrected(),
            [question.ids for question in texts.questions],
            self.model.batch_size,
            progress=progress_printer(len(texts.questions), title),
        )
        return scores[:, self.columns]

    def corrected(self, scores: np.ndarray, texts: LabelledTexts, split: str) -> np.ndarray:
        """The scores with the correction.

        It was fitted on validation: there, each text gets one of a fit that never saw it.
        """
        if not self.labelling.is_corrected:
            return scores
        if split == "val":
            fit = fit_bias if self.labelling.bias else fit_scale
            return cross_fitted(scores, texts.true, fit)
        own = np.empty_like(scores)
        own[:, self.columns] = scores
        return self.labelling.correct(own)[:, self.columns]


class Rivals:
    """The linear model that is best on validation, and its mixture with the first model."""

    def __init__(
        self,
        training: LabelledTexts,
        validation: LabelledTexts,
        labels: Sequence[str],
        scorer: LabelScorer,
    ) -> None:
        self.linear: LinearModel = strongest(
            training.texts,
            training.references,
            validation.texts,
            validation.references,
            labels,
        )
        self.majority = Counter(training.references).most_common(1)[0][0]
        self.mixture: Correction | None = None
        if validation.questions:
            first = scorer.scores(validation, "val")
            second = self.linear.log_probabilities(validation.texts)
            self.mixture = mix(first, second, validation.true)

    def linear_scores(self, texts: LabelledTexts, split: str) -> np.ndarray:
        """(texts, labels): the linear model's log-probabilities.

        Its correction was fitted on validation: there, each text gets one that never saw it.
        """
        if split != "val":
            return self.linear.log_probabilities(texts.texts)
        plain = replace(self.linear, correction=None)
        return cross_fitted(plain.log_probabilities(texts.texts), texts.true)


def measure_labels(
    settings: EvalSettings,
    models: Sequence[EvaluatedModel],
    folder: Path,
    splits: Sequence[str],
    source: TrainingText | None,
) -> dict[str, SplitResult]:
    """Measures the models and their rivals on each split.

    Raises UserError if the training rows have a single label.
    """
    meta, tokenizer = read_meta(folder), models[0].tokenizer
    labels, template = meta["labels"], (meta.get("settings") or {}).get("question") or ""
    training = LabelledTexts(read_questions(folder, "train", tokenizer), labels, template)
    validation = LabelledTexts(read_questions(folder, "val", tokenizer), labels, template)
    if len(set(training.references)) < 2:
        raise UserError(
            f"all training answers of {folder} are the same: there is nothing to classify"
        )
    scorers = [LabelScorer(model, labels) for model in models]
    rivals = Rivals(training, validation, labels, scorers[0])
    results = {}
    for split in splits:
        asked = limit_questions(read_questions(folder, split, tokenizer), settings.limit)
        texts = LabelledTexts(asked, labels, template)
        results[split] = measure_label_split(settings, scorers, texts, split, labels, rivals)
    return results


def measure_label_split(
    settings: EvalSettings,
    scorers: Sequence[LabelScorer],
    texts: LabelledTexts,
    split: str,
    labels: Sequence[str],
    rivals: Rivals,
) -> SplitResult:
    """Measures each model; adds the rivals to the first model's measures."""
    result = SplitResult({"texts": len(texts.questions)})
    result.definitions["linear"] = f"{rivals.linear.name}, the best of several on validation"
    for scorer in scorers:
        measures = MeasureSet(settings.seed)
        plain = scorer.scores(texts, split)
        scores = scorer.corrected(plain, texts, split)
        predicted = add_scores(measures, "", scores, texts.true, labels)
        answers = [labels[number] for number in predicted]
        if scorer is scorers[0]:
            result.classes = classes(predicted, texts.true, labels, settings.seed)
            result.rows = label_rows(split, texts, answers, np.exp(scores), labels)
            rival_scores = add_rivals(measures, plain, texts, split, labels, rivals)
            for prefix, own in rival_scores.items():
                for row, values in zip(result.rows, np.exp(own).tolist(), strict=True):
                    row[prefix + "probabilities"] = dict(zip(labels, values, strict=True))
            linear = rival_scores["linear_"].argmax(axis=1)
            test = mcnemar(predicted == texts.true, linear == texts.true)
            result.classes["mcnemar"] = test._asdict()
        result.add(scorer.model.folder, measures, answers)
    return result


def add_rivals(
    measures: MeasureSet,
    scores: np.ndarray,
    texts: LabelledTexts,
    split: str,
    labels: Sequence[str],
    rivals: Rivals,
) -> dict[str, np.ndarray]:
    """Adds the measures of the rivals; returns their log-probabilities by the measures' prefix.

    `scores` are the model's, without its correction.
    """
    linear = rivals.linear_scores(texts, split)
    rival_scores = {"linear_": linear}
    if rivals.mixture and split != "val":  # it was fitted there
        rival_scores["together_"] = rivals.mixture.apply(scores, linear)
    for prefix, own in rival_scores.items():
        add_scores(measures, prefix, own, texts.true, labels)
    majority = np.full(len(texts.true), labels.index(rivals.majority))
    add_accuracy(measures, "majority_", majority, texts.true, labels)
    measures.add_difference("accuracy", "linear_accuracy")
    return rival_scores


def add_scores(
    measures: MeasureSet, prefix: str, scores: np.ndarray, true: np.ndarray, labels: Sequence[str]
) -> np.ndarray:
    """Adds all measures of log-probabilities; returns the likeliest label numbers."""
    predicted = scores.argmax(axis=1)
    add_accuracy(measures, prefix, predicted, true, labels)
    add_probabilities(measures, prefix, scores, true)
    return predicted


def add_accuracy(
    measures: MeasureSet,
    prefix: str,
    predicted: np.ndarray,
    true: np.ndarray,
    labels: Sequence[str],
) -> None:
    """Adds accuracy and macro-F1."""
    measures.add_mean(prefix + "accuracy", predicted == true)

    def macro_f1(rows: np.ndarray) -> float:
        confusion = metrics.confusion_matrix(predicted[rows], true[rows], len(labels))
        return metrics.label_f1(confusion).mean()

    measures.add_aggregate(prefix + "macro_f1", true, macro_f1, rounds=MACRO_F1_ROUNDS)


def classes(predicted: np.ndarray, true: np.ndarray, labels: Sequence[str], seed: int) -> dict:
    """The entry of eval.json: confusion matrix, and each label's scores with their intervals."""
    confusion = metrics.confusion_matrix(predicted, true, len(labels))
    return {
        "labels": list(labels),
        "confusion": confusion.tolist(),
        "per_class": metrics.label_measures(confusion, labels),
        "intervals": label_intervals(predicted, true, labels, seed),
    }


def label_rows(
    split: str,
    texts: LabelledTexts,
    answers: Sequence[str],
    probabilities: np.ndarray,
    labels: Sequence[str],
) -> list[dict]:
    """One row per text for eval_answers.jsonl."""
    rows = []
    for question, answer, row in zip(texts.questions, answers, probabilities.tolist(), strict=True):
        place = split, question.rows[0]
        entry = answer_row(*place, question.whole_text, question.reference, answer)
        rows.append(entry | {"probabilities": dict(zip(labels, row, strict=True))})
    return rows
