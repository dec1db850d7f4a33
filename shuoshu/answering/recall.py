"""Recall: the taught answers that a question may mean, and which of them it means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from shuoshu.answering.choice import log_softmax, weighted
from shuoshu.answering.likelihood import answer_log_likelihoods
from shuoshu.answering.lookups import AnswerLookups
from shuoshu.generation.sampling import TextGenerator

SHORTLIST = 8  # answers that the model reads; 97 in 100 right answers were among them
QUESTIONS_AT_ONCE = 256  # questions compared at once
MAX_LOG_ODDS = 12.0


@dataclass(frozen=True)
class Candidates:
    """For each question the most similar taught answers, best first."""

    answers: np.ndarray  # (questions, SHORTLIST): indices of taught answers
    similarities: np.ndarray  # (questions, SHORTLIST, names), −inf where there is no candidate
    contrasts: np.ndarray  # (questions, SHORTLIST)
    likelihoods: np.ndarray  # (questions, SHORTLIST): the model's, in nats; zeros without a model

    def hide(self, owners: np.ndarray) -> Candidates:
        """The same without the answer `owners[n]` of question n, as if it had not been taught."""
        is_hidden = self.answers == owners[:, None]
        similarities = np.where(is_hidden[:, :, None], -np.inf, self.similarities)
        return replace(self, similarities=similarities)

    def __getitem__(self, rows: np.ndarray | slice) -> Candidates:
        """Those of some of the questions."""
        return Candidates(
            self.answers[rows],
            self.similarities[rows],
            self.contrasts[rows],
            self.likelihoods[rows],
        )

    def places_of(self, owners: np.ndarray) -> np.ndarray:
        """Where each question's answer is in its shortlist; −1: nowhere."""
        is_own = (self.answers == owners[:, None]) & np.isfinite(self.similarities[:, :, 0])
        return np.where(is_own.any(axis=1), is_own.argmax(axis=1), -1)


def find_candidates(
    lookups: AnswerLookups, questions: Sequence[str], weights: Sequence[float]
) -> Candidates:
    """The candidates by the look-ups alone; `weights` are those of their similarities."""
    parts = []
    for start in range(0, len(questions), QUESTIONS_AT_ONCE):
        some = questions[start : start + QUESTIONS_AT_ONCE]
        similarities = lookups.similarities(some)
        answers = shortlist(similarities, weights)
        parts.append((answers, similarities, lookups.contrasts(some, answers)))
    answers, contrasts = (np.concatenate([part[n] for part in parts]) for n in (0, 2))
    chosen = [np.take_along_axis(part[1], part[0][:, :, None], axis=1) for part in parts]
    return Candidates(answers, np.concatenate(chosen), contrasts, np.zeros(answers.shape))


def shortlist(similarities: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """(questions, SHORTLIST): the answers with the highest weighted similarity, best first."""
    totals = weighted(similarities, np.asarray(weights))
    return np.argsort(-totals, axis=1, kind="stable")[:, :SHORTLIST]


def with_likelihoods(
    candidates: Candidates,
    answers: Sequence[str],
    generator: TextGenerator,
    prompts: Sequence[Sequence[int]],
) -> Candidates:
    """The candidates after the model has read them; `answers`: all taught ones."""
    encoded = {
        number: generator.tokenizer.encode_answer(answers[number])
        for number in np.unique(candidates.answers).tolist()
    }
    likelihoods = [
        answer_log_likelihoods(generator, prompt, [encoded[number] for number in numbers])
        for prompt, numbers in zip(prompts, candidates.answers.tolist(), strict=True)
    ]
    return replace(candidates, likelihoods=np.stack(likelihoods))


def joint_scores(candidates: Candidates, weights: Sequence[float]) -> np.ndarray:
    """(questions, SHORTLIST, 2): the weighted similarities, and the model's log-probabilities.

    Both are −inf where there is no candidate.
    """
    totals = weighted(candidates.similarities, np.asarray(weights))
    likelihoods = np.where(np.isfinite(totals), candidates.likelihoods, -np.inf)
    return np.stack((totals, log_softmax(likelihoods)), axis=-1)


def clipped_log_odds(log_p: np.ndarray) -> np.ndarray:
    """log(p / (1 − p)), within ±MAX_LOG_ODDS."""
    log_p = np.clip(log_p, -MAX_LOG_ODDS, -np.exp(-MAX_LOG_ODDS))
    return np.clip(log_p - np.log(-np.expm1(log_p)), -MAX_LOG_ODDS, MAX_LOG_ODDS)
