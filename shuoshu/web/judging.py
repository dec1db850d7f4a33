"""Judges a text with and without each of its pieces, or many texts, in the model's thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from shuoshu.core.errors import UserError
from shuoshu.generation.judge import Judge, label_log_probabilities
from shuoshu.generation.sampling import never_stop
from shuoshu.sft.layouts import template_ends
from shuoshu.sft.rendering import without_ends
from shuoshu.web.labels import error_text
from shuoshu.web.text_pieces import split_pieces

BATCH_TOKENS = 8192  # that are read together, padding included; a stop waits for one batch
MAX_ROWS = 64  # of a batch
TEXTS_PER_STATE = 16  # texts of a table after which the page shows what is done

StopCheck = Callable[[], bool]


@dataclass
class Judgement:
    """How probable each label is, and how much each piece of the text speaks for the first."""

    labels: tuple[str, ...]
    scores: np.ndarray  # (labels,) log-probabilities
    prompt: str  # as the model reads it
    is_cut: bool  # whether the text was too long, so that the prompt has … for its middle
    pieces: list[str] = field(default_factory=list)  # of the text as the model reads it
    # (pieces, labels): log-probabilities without each piece. None before they are judged, NaN for
    # those not judged before the time limit.
    scores_without: np.ndarray | None = None

    @property
    def winner(self) -> int:
        """The number of the most probable label."""
        return int(self.scores.argmax())

    @property
    def evidence(self) -> np.ndarray:
        """(pieces,): by how much the winner's log-odds fall when a piece is left out."""
        now, without = (label_log_odds(s, self.winner) for s in (self.scores, self.scores_without))
        return now - without

    @property
    def is_complete(self) -> bool:
        return self.scores_without is not None and not np.isnan(self.scores_without).any()


@dataclass
class JudgedTexts:
    """Texts with (texts, labels) log-probabilities, which are NaN for those not judged yet."""

    labels: tuple[str, ...]
    texts: list[str]
    scores: np.ndarray

    @property
    def is_complete(self) -> bool:
        return not np.isnan(self.scores).any()


def label_log_odds(scores: np.ndarray, label: int) -> np.ndarray:
    """The log-odds of a label from log-probabilities, whose last dimension is the labels."""
    others = np.delete(scores, label, axis=-1)
    with np.errstate(invalid="ignore"):  # NaN stays NaN
        return scores[..., label] - np.logaddexp.reduce(others, axis=-1)


def judge_text(
    text: str, judge: Judge, should_stop: StopCheck, publish: Callable[[Judgement], None]
) -> None:
    """Publishes the judgement of a text, then the same with its pieces."""
    labels, prompt = judge.labelling.labels, judge.prompt_of(text)
    read = prompt_read(judge, prompt)
    is_cut = read != prompt
    [scores] = label_scores(judge, [read], never_stop)
    publish(Judgement(labels, scores, read, is_cut))
    if is_cut:  # what is left of the text, without its template
        ends = template_ends(judge.labelling.question) if prompt != text else ("", "")
        text = without_ends(read, ends)
    pieces = split_pieces(text)
    if len(pieces) < 2:
        pieces = []  # nothing would remain
    rests = ["".join([*pieces[:n], *pieces[n + 1 :]]) for n in range(len(pieces))]
    prompts = [judge.prompt_of(rest) for rest in rests]
    without = label_scores(judge, prompts, should_stop)
    publish(Judgement(labels, scores, read, is_cut, pieces, without))


def judge_texts(
    texts: list[str], judge: Judge, should_stop: StopCheck, publish: Callable[[JudgedTexts], None]
) -> None:
    """Publishes the judgements of several texts as far as they are done."""
    labels = judge.labelling.labels
    scores = np.full((len(texts), len(labels)), np.nan)
    for start in range(0, len(texts), TEXTS_PER_STATE):
        prompts = [judge.prompt_of(text) for text in texts[start : start + TEXTS_PER_STATE]]
        scores[start : start + len(prompts)] = label_scores(judge, prompts, should_stop)
        publish(JudgedTexts(labels, texts, scores.copy()))
        if should_stop():
            break


def label_scores(judge: Judge, prompts: Sequence[str], should_stop: StopCheck) -> np.ndarray:
    """(prompts, labels): log-probabilities; NaN for prompts not read before a stop."""
    ids = [judge.prompt_ids(prompt_read(judge, prompt)) for prompt in prompts]
    rows = max(1, min(MAX_ROWS, BATCH_TOKENS // max(map(len, ids), default=1)))
    return label_log_probabilities(judge, judge.labelling, ids, rows, should_stop)


def prompt_read(judge: Judge, prompt: str) -> str:
    """The prompt as the model reads it, with … for its middle if it is too long."""
    try:
        return judge.messages(prompt)[-1]["content"]
    except UserError:
        raise UserError(error_text("too_many_tokens", judge.block)) from None
