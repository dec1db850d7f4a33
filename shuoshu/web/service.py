"""What the tabs and the API share: choose a model, generate, look inside, judge, stop."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import gradio as gr

from shuoshu.answering.answerer import Answer
from shuoshu.answering.passages import Passage
from shuoshu.core.command_settings import SampleSettings
from shuoshu.core.errors import UserError
from shuoshu.evaluation.html import escape_html
from shuoshu.generation.chat_model import ChatModel
from shuoshu.generation.sampling import SamplingParams
from shuoshu.web import token_view
from shuoshu.web.answering import PageQuestion, answer_question
from shuoshu.web.judging import JudgedTexts, Judgement, judge_text, judge_texts
from shuoshu.web.labels import error_text, text_html
from shuoshu.web.model_server import GenerationState, ModelServer, ModelVersion, ReaderState
from shuoshu.web.validation import (
    MAX_INSPECTED_CHARS,
    parse_sampling_settings,
    parse_text,
    parse_texts,
    setting_ranges,
)

DELIVERY_SECONDS = 0.15  # for a state that was yielded to reach the page

Message = dict[str, str]


@dataclass
class GeneratedText:
    """A text, the prompt that it continues, and the model that wrote it."""

    model: str
    prompt: str = ""
    prompt_ids: list[int] = field(default_factory=list)
    text: str = ""
    ids: list[int] = field(default_factory=list)  # only if it was not stopped
    version: ModelVersion | None = None  # None: no model wrote it
    answer: Answer | None = None  # how it was found, if it answers a question
    sources: Sequence[Passage] = ()  # of the book, that speak of it
    quote: str = ""  # of the book, if the question was declined


@dataclass
class GenerationRequest:
    """What to generate, with every value checked."""

    model: str
    text: str  # a question, or the beginning to continue
    settings: SampleSettings
    is_question: bool
    history: Sequence[Message] = ()
    system: str | None = None  # None: the message of the model's training
    copies: int = 1


@dataclass
class GenerationProgress:
    """The texts of a request so far. `reason`: "end", "length" or "time"; empty while they grow."""

    texts: list[GeneratedText]
    reason: str = ""


class PageService:
    def __init__(self, models: ModelServer) -> None:
        self.models = models
        self.names = list(models.folders)
        self.purposes = {name: models.purpose(name) for name in self.names}
        self.question_models = [n for n in self.names if self.purposes[n].task == "questions"]
        self.label_models = [n for n in self.names if self.purposes[n].task == "labels"]
        self.writing_models = [n for n in self.names if n not in self.label_models]
        self.ranges = setting_ranges(models.settings.max_new_tokens)

    def find_model(self, name: object, use: str = "any") -> str:
        """Checks the name of a model; None means the first one for this use.

        use: "answer", "label", "write" or "any". Raises UserError.
        """
        candidates, refusal = {
            "any": (self.names, ""),
            "answer": (self.question_models, "answers_nothing"),
            "label": (self.label_models, "labels_nothing"),
            "write": (self.writing_models, "writes_nothing"),
        }[use]
        if name is None and candidates:
            return candidates[0]
        if name is not None and name not in self.names:
            raise UserError(error_text("unknown_model", ", ".join(self.names)))
        if name not in candidates:
            raise UserError(error_text(refusal, ", ".join(candidates) or "—"))
        return name

    def question(
        self,
        model: object,
        text: object,
        settings: dict[str, object],
        history: Sequence[Message] = (),
        system: object = None,
    ) -> GenerationRequest:
        """A request for an answer. settings: also answer_by and precision.

        Raises UserError if a value is wrong.
        """
        model, text = self.find_model(model, "answer"), parse_text(text)
        system = None if system is None else parse_text(system)
        if not text.strip():
            raise UserError(error_text("empty_question"))
        return GenerationRequest(model, text, self._settings(settings), True, history, system)

    def continuation(
        self, model: object, text: object, settings: dict[str, object], copies: int = 1
    ) -> GenerationRequest:
        """A request to continue a text, in several versions. Raises UserError like `question`."""
        model, text = self.find_model(model, "write"), parse_text(text)
        return GenerationRequest(model, text, self._settings(settings), False, copies=copies)

    def _settings(self, values: dict[str, object]) -> SampleSettings:
        return parse_sampling_settings(values, self.models.settings.max_new_tokens)

    def generate(
        self, request: GenerationRequest, reader: ReaderState | None = None
    ) -> Iterator[GenerationProgress]:
        """Yields the texts of a request as they grow. Yields no more once the reader stopped it.

        Raises UserError if a question is longer than the model's block.
        """

        for state in self._states(request, reader):
            texts = [
                GeneratedText(
                    request.model,
                    request.text,
                    state.prompt,
                    text,
                    ids,
                    state.version,
                    state.answer,
                    state.sources,
                    state.quote,
                )
                for text, ids in zip(state.texts, state.ids or [[]] * request.copies, strict=True)
            ]
            yield GenerationProgress(texts, state.reason)

    def _states(
        self, request: GenerationRequest, reader: ReaderState | None
    ) -> Iterator[GenerationState]:
        if request.is_question:
            asked = PageQuestion(request.text, request.settings, request.history, request.system)
            return self.models.answer(request.model, partial(answer_question, asked), reader)

        def prepare(model: ChatModel) -> tuple[list[int], SamplingParams]:
            sampling = model.sampling_params(request.settings, False)
            return model.tokenizer.encode_prompt(request.text), sampling

        seeds = [request.settings.seed + n for n in range(request.copies)]
        return self.models.generate(request.model, prepare, seeds, reader)

    # ------------------------------------------------------------ look inside

    def inspect(self, generated: GeneratedText | None, context: str = "") -> str:
        """HTML: the text's probabilities and alternatives, after a line of context, and its copies.

        Raises UserError if there is no text.
        """
        if generated is None or not generated.text:
            raise UserError(error_text("no_text"))
        if generated.answer and generated.answer.way == "decline":
            raise UserError(error_text("declined_text"))

        def pieces(model: ChatModel) -> tuple[list[token_view.TokenPiece], bool]:
            tokenizer, version = model.tokenizer, generated.version
            is_current = version in (None, (tokenizer.hash, model.step))
            if is_current or version.tokenizer_hash == tokenizer.hash:
                prompt_ids, ids = generated.prompt_ids, generated.ids
            else:  # the ids are another tokenizer's
                prompt_ids, ids = tokenizer.encode_prompt(generated.prompt), []
            ids = ids or tokenizer.encode(generated.text)
            return token_view.token_probabilities(model, prompt_ids, ids), is_current

        found, is_current = self.models.run(generated.model, pieces)
        note = "" if is_current else f'<p class="soft">{text_html("trained_further")}</p>'
        return (
            note
            + token_view.pieces_html(found, escape_html(context))
            + token_view.copied_html(generated.text, self.models.training_text(generated.model))
        )

    def inspect_pieces(
        self, model: object, text: object, start: object
    ) -> list[token_view.TokenPiece]:
        """The pieces of a text after `start`. Raises UserError if a value is wrong."""
        name, start = self.find_model(model, "write"), parse_text(start)
        text = parse_text(text, MAX_INSPECTED_CHARS)

        def pieces(model: ChatModel) -> list[token_view.TokenPiece]:
            prompt_ids, ids = model.tokenizer.encode_prompt(start), model.tokenizer.encode(text)
            return token_view.token_probabilities(model, prompt_ids, ids)

        return self.models.run(name, pieces)

    # ------------------------------------------------------------ judge

    def judge(
        self, model: object, text: object, reader: ReaderState | None = None
    ) -> Iterator[Judgement]:
        """Yields the judgement of a text, then the same with its pieces.

        Raises UserError if a value is wrong or the text doesn't fit.
        """
        name, [text] = self.find_model(model, "label"), parse_texts([text])
        return self.models.judge(name, partial(judge_text, text), reader)

    def judge_many(
        self, model: object, texts: object, reader: ReaderState | None = None
    ) -> Iterator[JudgedTexts]:
        """Yields the judgements of a list of texts as they are done. Raises UserError likewise."""
        name, texts = self.find_model(model, "label"), parse_texts(texts)
        return self.models.judge(name, partial(judge_texts, texts), reader)

    # ------------------------------------------------------------ readers

    def reader(self, request: gr.Request) -> ReaderState:
        return self.models.reader(request.session_hash)

    def note_request(self, request: gr.Request) -> None:
        """Notes a request as soon as a reader makes it, before it waits for the model."""
        self.models.note_request(request.session_hash)

    def stop(self, request: gr.Request) -> bool:
        """Stops the reader's text. Returns True if it was only waiting for the model.

        When this returns, the page shows all that was sent of the text.
        """
        was_waiting = self.models.stop(request.session_hash)
        time.sleep(DELIVERY_SECONDS)
        return was_waiting


# ---------------------------------------------------------------- conversations


def messages(turns: Sequence[GeneratedText]) -> list[Message]:
    """The conversation as the model reads it."""
    return [
        {"role": role, "content": text}
        for turn in turns
        for role, text in (("user", turn.prompt), ("assistant", turn.text))
    ]
