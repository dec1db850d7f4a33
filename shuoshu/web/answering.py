"""Answers a question in the model's thread, in the way that the reader or the model prefers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from shuoshu.answering.answerer import Answerer
from shuoshu.answering.passages import Passage
from shuoshu.answering.reading import READ_PASSAGES, read_ids
from shuoshu.answering.ways import changed_settings
from shuoshu.core.command_settings import SampleSettings
from shuoshu.core.errors import UserError
from shuoshu.generation.sampling import Completion
from shuoshu.web.labels import error_text
from shuoshu.web.model_server import GenerationState, ModelVersion


class PageQuestion(NamedTuple):
    """A question with every value checked."""

    text: str
    settings: SampleSettings
    history: Sequence[dict[str, str]] = ()
    system: str | None = None  # None: the message of the model's training


def answer_question(
    asked: PageQuestion,
    answerer: Answerer,
    should_stop: Callable[[], bool],
    publish: Callable[[GenerationState], None],
) -> None:
    """Publishes an answer: as it grows if it is certain to be shown, then with its passages.

    Raises UserError if the question is too long, or the way isn't possible with this model.
    """
    model = answerer.generator
    way, answerer = chosen_way(asked, answerer)
    prompt, passages = question_prompt(asked, answerer, way)
    version = ModelVersion(model.tokenizer.hash, model.step)
    is_streamed = way in ("write", "read")
    sampling = model.sampling_params(asked.settings, True)
    text = ""

    def write(numbers: Sequence[int]) -> list[Completion | None]:
        nonlocal text
        if not numbers:
            return []
        for [event] in model.stream([prompt], sampling, [asked.settings.seed], should_stop):
            text += event.new_text
            if is_streamed and not event.finished:
                publish(GenerationState(version, prompt, [text]))
        return [None if event.finished.reason == "interrupted" else event.finished]

    [answer] = answerer.answer([asked.text], [prompt], write, way, asked.settings.precision)
    if answer is None:
        publish(GenerationState(version, prompt, [text], reason="time"))
        return
    if passages is None:
        passages = answerer.sources(asked.text, answer)
    written = answer.completion
    publish(
        GenerationState(
            version,
            prompt,
            [answer.shown(asked.text)],
            [written.ids if written else []],
            written.reason if written else "end",
            answer,
            passages,
            answerer.quote(asked.text, answer, passages),
        )
    )


def chosen_way(asked: PageQuestion, answerer: Answerer) -> tuple[str, Answerer]:
    """(way, answerer): the way that was asked for, else the model's own.

    A written answer with changed settings has no probability. UserError if the way isn't possible.
    """
    model, way = answerer.generator, asked.settings.answer_by
    changed = changed_settings(asked.settings, asked.system, model.purpose)
    if way in ("recall", "auto"):
        if changed:
            raise UserError(error_text("recall_with_settings", ", ".join(changed)))
        if not answerer.knowledge:
            raise UserError(error_text("nothing_taught"))
    if way == "read" and not answerer.passages:
        raise UserError(error_text("no_book"))
    if not way:
        reads = model.purpose.passages and answerer.passages
        way = "read" if reads else "write" if changed else answerer.default_way
    if changed or way == "read":
        answerer = Answerer(model, None, answerer.passages)
    return way, answerer


def question_prompt(
    asked: PageQuestion, answerer: Answerer, way: str
) -> tuple[list[int], list[Passage] | None]:
    """(ids, passages that the model reads first; None if it doesn't read)."""
    model = answerer.generator
    try:
        if way != "read":
            return model.question_ids(asked.text, asked.history, asked.system), None
        count = model.purpose.passages or READ_PASSAGES
        found = answerer.passages.search(asked.text, count=count)
        return read_ids(model, asked.text, found, asked.history, asked.system)
    except UserError:
        raise UserError(error_text("too_many_tokens", model.block)) from None
