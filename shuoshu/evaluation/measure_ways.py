"""Measures the answers of a model that recalls: how good they are, and how sure it is of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shuoshu.answering.answerer import Answer, Answerer
from shuoshu.answering.knowledge import is_current
from shuoshu.answering.quoting import best_sentence
from shuoshu.core.command_settings import PRECISION, EvalSettings
from shuoshu.core.errors import UserError
from shuoshu.core.files import error_reason
from shuoshu.evaluation import metrics
from shuoshu.evaluation.baselines import LOOKUPS
from shuoshu.evaluation.evaluated_model import EvaluatedModel, SplitResult
from shuoshu.evaluation.intervals import paired_difference
from shuoshu.evaluation.label_measures import N_BINS, roc_auc
from shuoshu.evaluation.measure_names import RIGHT
from shuoshu.evaluation.measure_set import MeasureSet
from shuoshu.evaluation.model_knowledge import describe_knowledge, fit_knowledge, trained_questions
from shuoshu.generation.answers import Question
from shuoshu.generation.chat_model import ChatModel
from shuoshu.generation.sampling import Completion

MIN_OF_EACH = 5  # right answers and wrong ones, for the area under their curve
ANSWERED_SHARE = 0.9  # of the test questions, when the untaught ones that it declines are counted


def open_ways(model: EvaluatedModel) -> Answerer | None:
    """What the model recalls with, fitted anew if it is missing or the model has changed since.

    None if the model doesn't recall: see fit_knowledge.
    """
    chat_model = ChatModel(model.loaded)
    if not is_current(model.folder):
        try:
            fit = fit_knowledge(model.folder, chat_model, model.batch_size)
        except OSError as error:
            raise UserError(f"can't write to {model.folder}: {error_reason(error)}") from None
        if fit:
            print(f"fitted: {describe_knowledge(fit)}")
    elif trained_questions(model.folder, chat_model) is None:
        return None  # its validation questions aren't there any more
    answerer = Answerer.open(model.folder, chat_model)
    return answerer if answerer.knowledge else None


def ways_definition(answerer: Answerer) -> str:
    """For eval.json and the terminal."""
    fit = answerer.knowledge.fit
    return (
        f"auto_: recalled or written, whichever is surer; it answers from a probability of"
        f" {fit.threshold(PRECISION):.2f} on (right at least {PRECISION:.0%} of the time on"
        f" validation questions and as many untaught ones). Right: ROUGE-L {RIGHT} or more. The"
        f" weights were fitted on the validation questions, which flatters val: by cross-fitting"
        f" auto_rouge_l is {fit.auto_rouge_l:.3f} there"
    )


def add_ways(
    measures: MeasureSet,
    settings: EvalSettings,
    answerer: Answerer,
    asked: Sequence[Question],
    completions: Sequence[Completion],
) -> list[dict]:
    """Measures the answers of auto, given those written; returns what each question's row gets."""
    answers = choose_surer(answerer, asked, completions)
    threshold = answerer.knowledge.fit.threshold(PRECISION)
    texts, references = [a.text for a in answers], [question.reference for question in asked]
    is_chars = settings.rouge == "chars"
    pairs = list(zip(texts, references, strict=True))
    scores = [metrics.rouge_l(*pair, settings.beta, is_chars)[2] for pair in pairs]
    measures.add_mean("auto_rouge_l", scores)
    measures.add_mean("auto_exact_match", [metrics.exact_match(*pair) for pair in pairs])
    rival = max(LOOKUPS, key=lambda name: measures.by_row[name + "rouge_l"].mean())
    above = paired_difference(scores, measures.by_row[rival + "rouge_l"], measures.seed)
    measures.add_interval("auto_above_lookups_rouge_l", above)
    probability = np.array([answer.probability for answer in answers])
    is_taught = [answerer.knowledge.taught.exact(q.text) is not None for q in asked]
    if answerer.passages:
        quotes = [best_sentence(q.text, answerer.passages.search(q.text)) for q in asked]
        scores_quoted = [
            metrics.rouge_l(quote, reference, settings.beta, is_chars)[2]
            for quote, reference in zip(quotes, references, strict=True)
        ]
        measures.add_mean("quote_rouge_l", scores_quoted)
    is_right, is_given = np.array(scores) >= RIGHT, (probability >= threshold) | is_taught
    measures.add_mean("answered_rate", is_given)
    if is_given.any():
        measures.add_aggregate(
            "right_rate",
            is_given,
            lambda rows: (
                float(is_right[rows][is_given[rows]].mean()) if is_given[rows].any() else 1.0
            ),
        )
    measures.add_aggregate(
        "calibration_error",
        probability,
        lambda rows: probability_error(probability[rows], is_right[rows]),
    )
    if min(is_right.sum(), (~is_right).sum()) >= MIN_OF_EACH:
        measures.add_aggregate(
            "confidence_auroc",
            probability,
            lambda rows: roc_auc(probability[rows], is_right[rows]),
        )
    return [
        {
            "auto": answer.text,
            "auto_rouge_l": score,
            "answered_by": answer.way if given else "decline",
            "probability": answer.probability,
        }
        for answer, score, given in zip(answers, scores, is_given.tolist(), strict=True)
    ]


def choose_surer(
    answerer: Answerer, asked: Sequence[Question], completions: Sequence[Completion]
) -> list[Answer]:
    """The recalled or the written answer to each question, whichever is surer."""
    recalled = answerer.recall([q.text for q in asked], [q.ids for q in asked])
    chosen = []
    for question, completion, answer in zip(asked, completions, recalled, strict=True):
        written = answerer.rate(completion, question.ids, answer)
        chosen.append(written if written.probability > answer.probability else answer)
    return chosen


def add_untaught(results: dict[str, SplitResult]) -> None:
    """Measures how well the probability tells untaught questions from right answers of test."""
    rows = [results[split].rows if split in results else [] for split in ("test", "untaught")]
    if not all(split and "probability" in split[0] for split in rows):
        return
    test, untaught = (np.array([row["probability"] for row in split]) for split in rows)
    right = np.array([row["auto_rouge_l"] >= RIGHT for row in rows[0]])
    probability = np.concatenate((test[right], untaught))
    is_taught = np.arange(len(probability)) < right.sum()
    measures = results["untaught"].measure_sets[0]
    measures.add_aggregate(
        "untaught_auroc", probability, lambda rows: roc_auc(probability[rows], is_taught[rows])
    )
    is_right = np.concatenate((right, [row["auto_rouge_l"] >= RIGHT for row in rows[1]]))
    both = np.concatenate((test, untaught))
    # Each of both splits counts half, as in the trials to which the probability was fitted.
    share = np.repeat((0.5 / len(test), 0.5 / len(untaught)), (len(test), len(untaught)))
    measures.add_aggregate(
        "mixed_calibration_error",
        both,
        lambda rows: probability_error(both[rows], is_right[rows], share[rows]),
    )
    limit = np.quantile(test, 1 - ANSWERED_SHARE, method="lower")
    measures.add_mean("untaught_declined", untaught < limit)


def probability_error(
    probability: np.ndarray, is_right: np.ndarray, share: np.ndarray | None = None
) -> float:
    """The expected calibration error of probabilities to be right, in N_BINS bins.

    share: how much each answer counts; None: all the same.
    """
    share = np.ones(len(is_right)) if share is None else share
    bins = np.minimum(N_BINS - 1, (probability * N_BINS).astype(int))
    gaps = np.bincount(bins, share * (probability - is_right))
    return float(np.abs(gaps).sum() / max(share.sum(), 1e-9))
