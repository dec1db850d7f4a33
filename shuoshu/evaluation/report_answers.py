"""The answers that report.html shows: which ones, and what it says about each."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from shuoshu.core.parts import evenly
from shuoshu.evaluation.html import finite_number
from shuoshu.evaluation.measure_names import (
    AUTO_PREFIX,
    BASELINES,
    MEASURES,
    STOP_REASONS,
    Bilingual,
)
from shuoshu.evaluation.report_tables import format_value

MAX_ANSWERS = 20  # of the worst ones, and of the random ones
MAX_SAMPLED_STEPS = 12  # evaluations whose samples are shown
MAX_PROBABILITIES = 10  # labels
QUESTION, REFERENCE = ("问题", "Question"), ("参考答案", "Reference")
PROMPT, CONTINUATION = ("开头", "Prompt"), ("原文", "True continuation")
MODEL_LABEL = ("模型", "Model")
ANSWERED_BY = {  # with the probability that the answer is right
    "recall": ("回想，把握", "recalled, likely right"),
    "write": ("写出，把握", "written, likely right"),
    "decline": ("不答，把握", "declined, likely right"),
}


@dataclass
class MarkedText:
    """A text in segments; a copied one has the number of its source."""

    segments: list[tuple[str, int | None]]
    sources: list[str | None]  # book and chapter of copy 1, 2, …; None: unknown chapter


@dataclass
class Card:
    """An answer in the report: signs above, labelled texts below."""

    texts: list[tuple[Bilingual, MarkedText]]
    signs: list[Bilingual] = field(default_factory=list)


@dataclass
class SampledStep:
    """The samples of one evaluation in a training run."""

    step: str
    scores: list[tuple[Bilingual, str]]
    cards: list[Card]


def worst_and_random(answers: list[dict], seed: int) -> tuple[list[dict], list[dict]]:
    """The worst answers, and random others in their own order.

    An answer is judged by the probability of the right label, by the F1 of its list, or by its
    ROUGE-L.
    """
    scores = []
    for answer in answers:
        probabilities = answer.get("probabilities") or {}
        score = answer.get("list_f1", answer.get("rouge_l"))
        scores.append(finite_number(probabilities.get(answer["reference"], score)))
    scored = (number for number, score in enumerate(scores) if score is not None)
    worst = sorted(scored, key=scores.__getitem__)[:MAX_ANSWERS]
    rest = sorted(set(range(len(answers))) - set(worst))
    chosen = random.Random(seed).sample(rest, min(MAX_ANSWERS, len(rest)))
    return [answers[number] for number in worst], [answers[number] for number in sorted(chosen)]


def unmarked(text: object) -> MarkedText:
    return MarkedText([(str(text), None)] if text else [], [])


def mark_copies(answer: str, copied: Iterable[Sequence]) -> MarkedText:
    """The answer with its copied spans (start, end, source) marked; spans may overlap."""
    segments, sources, done = [], [], 0
    for start, end, source in sorted(copied, key=lambda span: span[:2]):
        start, end = max(start, done), min(end, len(answer))
        if start < end:
            sources.append(source)
            segments += [(answer[done:start], None), (answer[start:end], len(sources))]
            done = end
    segments.append((answer[done:], None))
    return MarkedText([segment for segment in segments if segment[0]], sources)


def answer_card(answer: dict) -> Card:
    """A card for a row of eval_answers.jsonl."""
    is_scored = "rouge_l" in answer or "probabilities" in answer
    texts = [
        (QUESTION if is_scored else PROMPT, unmarked(answer["question"])),
        (REFERENCE if is_scored else CONTINUATION, unmarked(answer["reference"])),
        (MODEL_LABEL, mark_copies(answer["answer"], answer.get("copied") or [])),
    ]
    if answer.get("auto", answer["answer"]) != answer["answer"]:
        texts.append((BASELINES[AUTO_PREFIX], unmarked(answer["auto"])))
    closer_to = answer.get("closer_to")
    if closer_to and closer_to != answer["answer"]:
        texts.append((("更像另一个问题的答案", "Closer to another's"), unmarked(closer_to)))
    probabilities = sorted(
        (answer.get("probabilities") or {}).items(),
        key=lambda pair: -(finite_number(pair[1]) or 0),
    )[:MAX_PROBABILITIES]
    if probabilities:
        text = " · ".join(f"{label} {format_value(p, '%')}" for label, p in probabilities)
        texts.append((("概率", "Probabilities"), unmarked(text)))
    for model, other in (answer.get("others") or {}).items():
        texts.append(((model, model), unmarked(other)))
    return Card(texts, answer_signs(answer))


def answer_signs(answer: dict) -> list[Bilingual]:
    """Row, scores, why the answer ended, and whether it is right."""
    signs = [(f"第 {answer['row']} 行", f"Row {answer['row']}")]
    for name in ("list_f1", "rouge_l", "char_f1"):
        if finite_number(answer.get(name)) is not None:
            zh, en = MEASURES[name].label
            value = format_value(answer[name], ".3f")
            signs.append((f"{zh} {value}", f"{en} {value}"))
    if (probability := finite_number(answer.get("probability"))) is not None:
        zh, en = ANSWERED_BY.get(answer.get("answered_by"), ("把握", "sure"))
        value = format_value(probability, "%")
        signs.append((f"{zh} {value}", f"{en} {value}"))
    if answer.get("exact"):
        signs.append(("✓ 完全一致", "✓ exact"))
    if stop := answer.get("stop"):
        signs.append(STOP_REASONS.get(stop, (stop, stop)))
    if answer.get("closer_to") and answer["closer_to"] == answer["answer"]:
        signs.append(
            ("✗ 正是另一个问题的参考答案", "✗ another question's reference, word for word")
        )
    return signs


def sampled_steps(records: list[dict]) -> list[SampledStep]:
    """The samples in a run's log at evenly chosen evaluations, the last one first."""
    samples: dict[float, list[dict]] = {}
    evaluations: dict[float | None, dict] = {}
    for record in records:
        step = finite_number(record.get("step"))
        if record.get("kind") == "eval":
            evaluations[step] = record
        elif record.get("kind") == "sample" and step is not None:
            samples.setdefault(step, []).append(record)
    steps = list(samples)[::-1]
    steps = [steps[number] for number in evenly(len(steps), MAX_SAMPLED_STEPS)]
    return [
        SampledStep(
            f"{step:,.0f}",
            _scores(evaluations.get(step, {})),
            [sample_card(record) for record in samples[step]],
        )
        for step in steps
    ]


def _scores(evaluation: dict) -> list[tuple[Bilingual, str]]:
    names = {
        "val_loss": ("验证损失", "validation loss"),
        "val_rouge_l": ("ROUGE-L", "ROUGE-L"),
        "val_accuracy": ("准确率", "accuracy"),
    }
    return [
        (label, format_value(evaluation[name], ".3f"))
        for name, label in names.items()
        if finite_number(evaluation.get(name)) is not None
    ]


def sample_card(record: dict) -> Card:
    """A card for a sample in log.jsonl: an answer if it has a reference, else a continuation."""
    prompt, text = unmarked(record.get("prompt")), unmarked(record.get("text"))
    reference = record.get("reference")
    if reference is None:
        return Card([(PROMPT, prompt), (MODEL_LABEL, text)])
    return Card([(QUESTION, prompt), (MODEL_LABEL, text), (REFERENCE, unmarked(reference))])
