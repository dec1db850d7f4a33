"""The tab Ask: a conversation with a fine-tuned model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import gradio as gr

from shuoshu.core.command_settings import PRECISION
from shuoshu.core.errors import UserError
from shuoshu.core.run_log import read_settings
from shuoshu.evaluation.html import escape_html
from shuoshu.sft.dataset import read_pairs
from shuoshu.web.answer_view import chat_messages
from shuoshu.web.components import (
    AT_ONCE,
    FILE_QUEUE,
    I18N,
    MODEL_QUEUE,
    Update,
    buttons,
    connect_generation,
    connect_stop,
    errors_to_gradio,
    model_chooser,
    setting_values,
    settings_fields,
)
from shuoshu.web.labels import error_text, text_html
from shuoshu.web.model_server import ReaderState
from shuoshu.web.service import (
    GeneratedText,
    GenerationRequest,
    PageService,
    messages,
)

EXAMPLES = 4
MAX_EXAMPLE_CHARS = 60
RETRY_TEMPERATURE = 0.8  # instead of 0, at which the answer would be the same
# Both languages: Gradio translates no choices.
WAY_NAMES = {
    "": "默认 Default",
    "auto": "自动 Auto",
    "write": "写 Write",
    "recall": "选 Recall",
    "read": "读 Read",
}


class AskTab:
    """Its components, and the handlers of their events."""

    def __init__(self, service: PageService) -> None:
        self.service = service
        self.turns = gr.State([])  # list[GeneratedText]
        self.model = model_chooser(service.question_models)
        self.chat = gr.Chatbot(
            label=I18N("conversation"),
            height="52vh",
            placeholder=text_html("ask_below"),
            examples=example_questions(service, service.question_models[0]),
            render_markdown=False,
            latex_delimiters=[],
            buttons=[],
            elem_id="conversation",
        )
        self.status = gr.HTML(elem_classes="status-line")
        with gr.Row(elem_classes="bottom"):
            self.question = gr.Textbox(
                label=I18N("question"),
                placeholder=I18N("question_hint"),
                lines=1,
                max_lines=4,
                scale=5,
                autofocus=True,
                elem_id="question",
            )
            self.send_button = gr.Button(I18N("send"), variant="primary", scale=1, min_width=80)
        with gr.Row(elem_classes="button-row"):
            stop, self.retry_button, self.undo_button, self.clear_button, self.inspect_button = (
                buttons("stop", "retry", "undo", "clear", "inspect")
            )
        self.inspection = gr.HTML(elem_id="ask-inside")
        self._add_settings()
        connect_stop(stop, service)
        self._connect_answers()
        self._connect_inspection()
        self.model.change(
            errors_to_gradio(self.change_model), self.model, [self.chat, self.system], **FILE_QUEUE
        )

    def _add_settings(self) -> None:
        with gr.Accordion(I18N("settings"), open=False):
            self.system = gr.Textbox(
                self.service.purposes[self.service.question_models[0]].system,
                label=I18N("system"),
                info=I18N("system_help"),
                max_lines=4,
                elem_id="system",
            )
            self.answer_by = gr.Dropdown(
                [(WAY_NAMES[way], way) for way in WAY_NAMES],
                value="",
                label=I18N("answer_by"),
                info=I18N("answer_by_help"),
                filterable=False,
                elem_id="answer-by",
            )
            self.precision = gr.Slider(
                0,
                0.99,
                PRECISION,
                step=0.01,
                label=I18N("precision"),
                info=I18N("precision_help"),
            )
            self.settings = settings_fields(self.service, temperature=0.0)

    def _connect_answers(self) -> None:
        inputs = [
            self.turns,
            self.model,
            self.system,
            self.answer_by,
            self.precision,
            *self.settings,
        ]
        outputs = [self.question, self.chat, self.turns, self.status, self.inspection]
        for event, handler, handler_inputs in (
            (self.question.submit, self.ask, [self.question, *inputs]),
            (self.send_button.click, self.ask, [self.question, *inputs]),
            (self.retry_button.click, self.retry, inputs),
        ):
            connect_generation(event, self.service, handler, handler_inputs, outputs, self.chat)
        example = gr.State("")
        self.chat.example_select(self.choose_example, None, example, **AT_ONCE).then(
            errors_to_gradio(self.ask_example),
            [example, *inputs],
            outputs,
            show_progress_on=self.chat,
            **MODEL_QUEUE,
        )
        self.undo_button.click(self.undo, self.turns, outputs, **AT_ONCE)
        self.clear_button.click(self.clear, None, outputs, **AT_ONCE)

    def _connect_inspection(self) -> None:
        for event, handler in (
            (self.inspect_button.click, self.inspect_last),
            (self.chat.select, self.inspect_chosen),
        ):
            event(
                errors_to_gradio(handler),
                self.turns,
                self.inspection,
                show_progress_on=self.inspection,
                **MODEL_QUEUE,
            )

    # ------------------------------------------------------------ answers

    def ask(
        self,
        request: gr.Request,
        question: object,
        turns: list[GeneratedText],
        model: object,
        system: object,
        *settings: object,
    ) -> Iterator[Update]:
        """Answers the question in the box. Clears the box, or puts the question back on an error.

        Changes nothing if the reader stopped the request while it waited.
        """
        asked = self.service.question(
            model, question, answer_values(settings), messages(turns), system
        )
        reader = self.service.reader(request)
        if reader.is_cancelled:
            return
        yield {self.question: ""}
        try:
            yield from self._answer(asked, turns, reader)
        except UserError:
            yield {self.question: asked.text}
            raise

    def choose_example(self, request: gr.Request, event: gr.SelectData) -> str:
        self.service.note_request(request)
        return event.value["text"]

    def ask_example(
        self,
        request: gr.Request,
        example: str,
        turns: list[GeneratedText],
        model: object,
        system: object,
        *settings: object,
    ) -> Iterator[Update]:
        """Answers an example. The box keeps what the reader typed."""
        asked = self.service.question(
            model, example, answer_values(settings), messages(turns), system
        )
        yield from self._answer(asked, turns, self.service.reader(request))

    def retry(
        self,
        request: gr.Request,
        turns: list[GeneratedText],
        model: object,
        system: object,
        *settings: object,
    ) -> Iterator[Update]:
        """Answers the last question again, differently."""
        if not turns:
            raise UserError(error_text("empty_question"))
        *before, last = turns
        values = answer_values(settings)
        asked = self.service.question(
            model, last.prompt, retry_values(values), messages(before), system
        )
        end_status = "" if values["temperature"] else "raised_temperature"
        yield from self._answer(asked, before, self.service.reader(request), end_status)

    def _answer(
        self,
        asked: GenerationRequest,
        turns: list[GeneratedText],
        reader: ReaderState,
        end_status: str = "",
    ) -> Iterator[Update]:
        """Shows a question after the earlier turns, then its growing answer, then why it ended.

        end_status: the text to show when the answer is complete. On an error, the earlier turns
        are shown again.
        """
        if reader.is_cancelled:
            return
        if not end_status:
            # Once a conversation has a second question, the reader should know that such a model
            # does not see the first.
            is_second = self.service.purposes[asked.model].turns == 1 and len(turns) == 1
            end_status = "single_questions" if is_second else "end"
        question = GeneratedText(asked.model, asked.text)
        yield {**self._show([*turns, question]), self.status: "", self.inspection: ""}
        try:
            for progress in self.service.generate(asked, reader):
                status = end_status if progress.reason == "end" else progress.reason
                yield {
                    **self._show([*turns, *progress.texts]),
                    self.status: text_html(status) if status else "",
                }
        except UserError:
            yield self._show(turns)
            raise

    def _show(self, turns: list[GeneratedText]) -> Update:
        return {self.turns: turns, self.chat: chat_messages(turns)}

    # ------------------------------------------------------------ undo and clear

    def undo(self, request: gr.Request, turns: list[GeneratedText]) -> Update:
        """Removes the last question and puts it back into the box.

        Only cancels the request if one was waiting.
        """
        if self.service.stop(request) or not turns:
            return gr.skip()
        *before, last = turns
        return {
            **self._show(before),
            self.question: last.prompt,
            self.status: "",
            self.inspection: "",
        }

    def clear(self, request: gr.Request) -> Update:
        self.service.stop(request)
        return {**self._show([]), self.question: "", self.status: "", self.inspection: ""}

    # ------------------------------------------------------------ look inside

    def inspect_last(self, turns: list[GeneratedText]) -> str:
        """HTML of a look inside the last answer."""
        return self._inspect(turns, len(turns) - 1)

    def inspect_chosen(self, turns: list[GeneratedText], event: gr.SelectData) -> str:
        """HTML of a look inside the answer to the chosen message."""
        message = event.index[0] if isinstance(event.index, (list, tuple)) else event.index
        turn = message // 2  # a turn is two messages
        return self._inspect(turns, turn) if turn < len(turns) else ""

    def _inspect(self, turns: list[GeneratedText], turn: int) -> str:
        if not turns:
            return self.service.inspect(None)
        question = f'<p class="soft">{escape_html(turns[turn].prompt)}</p>'
        return question + self.service.inspect(turns[turn])

    # ------------------------------------------------------------ model

    def change_model(self, model: object) -> Update:
        """The examples and the system message of another model."""
        name = self.service.find_model(model)
        return {
            self.chat: gr.update(examples=example_questions(self.service, name)),
            self.system: self.service.purposes[name].system,
        }


def answer_values(values: Sequence[object]) -> dict[str, object]:
    """The values of the tab's settings by name."""
    answer_by, precision, *others = values
    return {**setting_values(others), "answer_by": answer_by, "precision": precision}


def retry_values(values: dict[str, object]) -> dict[str, object]:
    """The settings for another answer: written, with a new seed and a temperature above 0."""
    temperature = values["temperature"] or RETRY_TEMPERATURE
    way = "read" if values["answer_by"] == "read" else "write"
    return {**values, "temperature": temperature, "seed": None, "answer_by": way}


def example_questions(service: PageService, model: str) -> list[dict[str, str]]:
    """Training questions of the model with different answers, from all over its data.

    Empty if the data is no longer there, or has too few short questions.
    """
    folder = read_settings(service.models.folders[model]).get("data", {}).get("folder")
    try:
        question_of_answer = {
            pair["messages"][-1]["content"]: pair["messages"][-2]["content"]
            for pair in read_pairs(Path(str(folder)), "train")
        }
    except (UserError, OSError, ValueError, KeyError, IndexError, TypeError):
        return []
    questions = [q for q in question_of_answer.values() if len(q) <= MAX_EXAMPLE_CHARS]
    if len(questions) < EXAMPLES:
        return []
    return [{"text": questions[i * len(questions) // EXAMPLES]} for i in range(EXAMPLES)]
