"""Fits, on validation questions, how a model's answers are chosen and how sure they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from shuoshu.answering.choice import fit_weights
from shuoshu.answering.confidence import (
    JOINT_DEVIATIONS,
    JOINT_WEIGHTS,
    LOOKUP_DEVIATIONS,
    LOOKUP_WEIGHTS,
    RECALL_DEVIATIONS,
    RECALL_WEIGHTS,
    WRITE_DEVIATIONS,
    WRITE_WEIGHTS,
    AnswerWeights,
    accepted,
    choose,
    fit_accepted,
    recall_signals,
    write_signals,
)
from shuoshu.answering.knowledge import Fit
from shuoshu.answering.likelihood import mean_log_probability
from shuoshu.answering.lookups import NAMES, AnswerLookups, BookIndex, held_out_similarities
from shuoshu.answering.recall import Candidates, find_candidates, joint_scores, with_likelihoods
from shuoshu.answering.taught import Taught
from shuoshu.core.parts import evenly
from shuoshu.evaluation.measure_names import RIGHT
from shuoshu.evaluation.metrics import rouge_l
from shuoshu.generation.answers import Question, answer
from shuoshu.generation.sampling import TextGenerator

MAX_QUESTIONS = 1_000  # training questions that fit the look-ups, evenly spaced
MAX_FITTED = 300  # questions
VALIDATION_FOLDS = 5  # of the validation questions


@dataclass(frozen=True)
class Validation:
    """Validation questions with all that the fit needs to know of them."""

    references: list[str]
    owners: np.ndarray  # index of the reference among the taught answers; −1: not taught
    answers: tuple[str, ...]  # all taught ones
    candidates: Candidates
    written: list[str]
    is_new: np.ndarray  # whether each written answer repeats no taught one
    mean_log_p: np.ndarray  # of each of these

    def __getitem__(self, rows: np.ndarray) -> Validation:
        return Validation(
            [self.references[n] for n in rows],
            self.owners[rows],
            self.answers,
            self.candidates[rows],
            [self.written[n] for n in rows],
            self.is_new[rows],
            self.mean_log_p[rows],
        )

    def without_book(self) -> Validation:
        """The same candidates, as look-ups that have no book see them."""
        candidates = replace(
            self.candidates,
            similarities=self.candidates.similarities[:, :, : len(NAMES) - 1],
            contrasts=np.zeros_like(self.candidates.contrasts),
        )
        return replace(self, candidates=candidates)


def single_questions(questions: Sequence[Question]) -> Taught:
    """What these training questions teach; those within a conversation are left out."""
    single = [q for q in questions if all(m["role"] == "system" for m in q.messages[:-1])]
    return Taught.of_pairs([(q.text, q.reference) for q in single])


def fit_lookups(taught: Taught, book: BookIndex | None) -> tuple[float, ...]:
    """The look-ups' weights: training questions must find their answer by the others'."""
    names = len(NAMES) if book else len(NAMES) - 1
    counts = np.bincount(taught.owners, minlength=len(taught.answers))
    several = np.flatnonzero(counts[taught.owners] > 1)
    if not len(several) or len(taught.answers) < 2:
        return LOOKUP_WEIGHTS[:names]
    chosen = several[evenly(len(several), MAX_QUESTIONS)]
    similarities = held_out_similarities(taught, book, chosen)
    weights = fit_weights(
        similarities, taught.owners[chosen], LOOKUP_WEIGHTS[:names], LOOKUP_DEVIATIONS[:names]
    )
    return tuple(weights.tolist())


def read_validation(
    generator: TextGenerator,
    lookups: AnswerLookups,
    weights: Sequence[float],
    validation: Sequence[Question],
    rows: int,
) -> Validation:
    """Lets the model answer up to MAX_FITTED questions and read their candidates."""
    asked = [validation[n] for n in evenly(len(validation), MAX_FITTED)]
    answers = lookups.taught.answers
    index = {text: number for number, text in enumerate(answers)}
    candidates = find_candidates(lookups, [q.text for q in asked], weights)
    candidates = with_likelihoods(candidates, answers, generator, [q.ids for q in asked])
    written = [(c.text, c.ids) for c in answer(generator, asked, rows)]
    is_new = np.array([lookups.taught.copied(text) is None for text, _ in written])
    means = [
        mean_log_probability(generator, question.ids, ids) if new else 0.0
        for question, (_, ids), new in zip(asked, written, is_new, strict=True)
    ]
    return Validation(
        [q.reference for q in asked],
        np.array([index.get(q.reference, -1) for q in asked]),
        answers,
        candidates,
        [text for text, _ in written],
        is_new,
        np.array(means),
    )


def fit_validation(data: Validation, lookups: tuple[float, ...]) -> AnswerWeights:
    """The weights that fit these questions, given those of the look-ups."""
    places = data.candidates.places_of(data.owners)
    found = np.flatnonzero(places >= 0)
    joint = JOINT_WEIGHTS
    if len(found):
        scores = joint_scores(data.candidates[found], lookups)
        joint = fit_weights(scores, places[found], JOINT_WEIGHTS, JOINT_DEVIATIONS)
    weights = AnswerWeights(lookups, tuple(map(float, joint)))
    signals, is_right = [], []
    for candidates in (data.candidates, data.candidates.hide(data.owners)):
        best, _ = choose(candidates, weights)
        rows = np.arange(len(best))
        signals.append(recall_signals(candidates, weights)[rows, best])
        is_right.append(recalled_right(data, candidates.answers[rows, best]))
    recall = fit_accepted(
        np.concatenate(signals), np.concatenate(is_right), RECALL_WEIGHTS, RECALL_DEVIATIONS
    )
    write = fit_accepted(
        write_signals(data.mean_log_p[data.is_new]),
        written_right(data)[data.is_new],
        WRITE_WEIGHTS,
        WRITE_DEVIATIONS,
    )
    return replace(weights, recall=recall, write=write)


def recalled_right(data: Validation, answers: np.ndarray) -> np.ndarray:
    """Whether the taught answers with these indices are right."""
    pairs = zip(answers.tolist(), data.references, strict=True)
    return np.array([rouge_l(data.answers[n], reference)[2] >= RIGHT for n, reference in pairs])


def written_right(data: Validation) -> np.ndarray:
    pairs = zip(data.written, data.references, strict=True)
    return np.array([rouge_l(text, reference)[2] >= RIGHT for text, reference in pairs])


def auto_answers(data: Validation, weights: AnswerWeights) -> tuple[list[str], np.ndarray]:
    """(the answers that auto would give if it never declined, how probably they are right)."""
    best, probabilities = choose(data.candidates, weights)
    rows = np.arange(len(best))
    recalled = data.candidates.answers[rows, best].tolist()
    probability = probabilities[rows, best].copy()
    texts = [data.answers[number] for number in recalled]
    written = accepted(write_signals(data.mean_log_p), weights.write)
    for row in np.flatnonzero(data.is_new & (written > probability)):
        texts[row], probability[row] = data.written[row], written[row]
    return texts, probability


def fit_answers(data: Validation, lookups: tuple[float, ...]) -> Fit:
    """The weights for all questions, with trials by cross-fitting."""
    trials: list[tuple[float, bool]] = []
    auto = write = 0.0
    folds = np.arange(len(data.references)) % VALIDATION_FOLDS
    for fold in range(VALIDATION_FOLDS):
        mine, others = data[np.flatnonzero(folds == fold)], np.flatnonzero(folds != fold)
        if not len(mine.references) or not len(others):
            continue
        weights = fit_validation(data[others], lookups)
        texts, probability = auto_answers(mine, weights)
        scores = [rouge_l(*pair)[2] for pair in zip(texts, mine.references, strict=True)]
        auto += sum(scores)
        write += sum(rouge_l(*pair)[2] for pair in zip(mine.written, mine.references, strict=True))
        trials += zip(probability.tolist(), [score >= RIGHT for score in scores], strict=True)
        hidden = mine.candidates.hide(mine.owners)
        best, p_hidden = choose(hidden, weights)
        rows = np.flatnonzero(mine.owners >= 0)
        trials += [(float(p_hidden[n, best[n]]), False) for n in rows]
    count = max(1, len(data.references))
    return Fit(fit_validation(data, lookups), trials, auto / count, write / count)


def fit_model(
    generator: TextGenerator,
    taught: Taught,
    validation: Sequence[Question],
    windows: Sequence[str],
    rows: int,
) -> dict[str, Fit]:
    """The fits "book", with the windows of the book, if there are any, and "alone", without."""
    book = BookIndex(windows) if windows else None
    weights = {"book": fit_lookups(taught, book)} if book else {}
    weights["alone"] = fit_lookups(taught, None)
    first = next(iter(weights.values()))
    data = read_validation(generator, AnswerLookups(taught, book), first, validation, rows)
    fits = {}
    for name, lookups in weights.items():
        fits[name] = fit_answers(data.without_book() if book and name == "alone" else data, lookups)
    return fits
