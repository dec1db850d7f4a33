"""The endpoints of the API. Gradio makes their parameters from these signatures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import gradio as gr
import numpy as np

from shuoshu.answering.answerer import Answer
from shuoshu.web.components import errors_to_gradio, setting_values
from shuoshu.web.service import GeneratedText, GenerationRequest, PageService
from shuoshu.web.validation import parse_history


class Api:
    def __init__(self, service: PageService) -> None:
        self.service = service

    def add(self) -> None:
        """Adds the endpoints to the page that is being built."""
        for function, name in (
            (self.ask, "ask"),
            (self.answer, "answer"),
            (self.continue_text, "continue"),
            (self.inside, "inside"),
            (self.judge, "judge"),
            (self.models, "models"),
        ):
            gr.api(
                errors_to_gradio(function),
                api_name=name,
                concurrency_limit=1,
                concurrency_id="model",
            )

    def ask(
        self,
        question: str,
        history: list | None = None,
        model: str | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        max_new_tokens: int | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        system: str | None = None,
    ) -> Iterator[str]:
        """Streams the answer that the model writes: each item is the whole answer so far.

        history: [[question, answer], …]. system: the system message, "" for none. A setting that
        is None has its default; that of `system` is the message of the model's training.
        """
        settings = setting_values(
            (temperature, top_p, top_k, max_new_tokens, repetition_penalty, seed)
        )
        settings["answer_by"] = "write"
        yield from self._stream(
            self.service.question(model, question, settings, parse_history(history), system)
        )

    def answer(
        self,
        question: str,
        model: str | None = None,
        answer_by: str | None = None,
        precision: float | None = None,
        max_new_tokens: int | None = None,
    ) -> dict:
        """The answer to a single question, how probably it is right, and passages of the book.

        answer_by: "auto", "write", "recall", "read", or None for the model's own way. precision:
        of auto. The answer is None if it was declined.
        """
        settings = {"temperature": 0, "max_new_tokens": max_new_tokens}
        settings |= {"answer_by": answer_by, "precision": precision}
        *_, last = self.service.generate(self.service.question(model, question, settings))
        [text] = last.texts
        return answer_record(text)

    def continue_text(
        self,
        text: str,
        model: str | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        max_new_tokens: int | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Streams the continuation of a text: each item is all of it so far, without `text`."""
        settings = setting_values(
            (temperature, top_p, top_k, max_new_tokens, repetition_penalty, seed)
        )
        yield from self._stream(self.service.continuation(model, text, settings))

    def _stream(self, request: GenerationRequest) -> Iterator[str]:
        for progress in self.service.generate(request):
            yield progress.texts[0].text

    def inside(self, text: str, start: str = "", model: str | None = None) -> list[dict]:
        """The pieces of `text` after `start`: text, probability and most probable alternatives.

        An alternative is [text, probability]; its text is None for the end of the text.
        """
        return [vars(piece) for piece in self.service.inspect_pieces(model, text, start)]

    def judge(self, texts: list, model: str | None = None) -> list[dict]:
        """For each text the most probable label, and the probability of every label.

        Both are None for the texts that were not judged before the time limit.
        """
        *_, judged = self.service.judge_many(model, texts)
        return [judgement_record(judged.labels, scores) for scores in judged.scores]

    def models(self) -> list[dict]:
        """The models: task ("text", "questions" or "labels"), system message, turns, labels.

        turns: of the longest conversation that they answer; None if any number.
        """
        return [
            {
                "model": name,
                "task": purpose.task,
                "turns": purpose.turns,
                "system": purpose.system,
                "labels": list(purpose.labelling.labels) if purpose.labelling else [],
            }
            for name, purpose in self.service.purposes.items()
        ]


def answer_record(text: GeneratedText) -> dict:
    """An answer; `answer` is None if it was declined, `quote` a sentence of the book then."""
    answer = text.answer or Answer(text.text, "write")  # cut at the time limit
    return {
        "answer": None if answer.way == "decline" else text.text,
        "answered_by": answer.way,
        "probability": answer.probability,
        "nearest": answer.nearest,
        "quote": text.quote or None,
        "sources": [{"source": p.source, "text": p.text} for p in text.sources],
    }


def judgement_record(labels: Sequence[str], scores: np.ndarray) -> dict:
    """The judgement of one text from the labels' log-probabilities."""
    if np.isnan(scores).any():
        return {"label": None, "probabilities": None}
    probabilities = np.exp(scores).tolist()
    return {
        "label": labels[scores.argmax()],
        "probabilities": dict(zip(labels, probabilities, strict=True)),
    }
