"""The tab Compare: two models write to the same prompt."""

from __future__ import annotations

from collections.abc import Iterator

import gradio as gr

from shuoshu.core.errors import UserError
from shuoshu.evaluation.html import escape_html
from shuoshu.web.components import (
    I18N,
    MODEL_QUEUE,
    Update,
    buttons,
    connect_generation,
    connect_stop,
    errors_to_gradio,
    model_chooser,
    setting_values,
    settings_panel,
)
from shuoshu.web.labels import error_text, text_html
from shuoshu.web.service import GeneratedText, GenerationRequest, PageService
from shuoshu.web.validation import parse_text


class CompareTab:
    """Its components, and the handlers of their events."""

    def __init__(self, service: PageService) -> None:
        self.service = service
        self.generated = gr.State([None, None])  # list[GeneratedText | None], left and right
        self.prompt = gr.Textbox(
            label=I18N("prompt"),
            placeholder=I18N("prompt_hint"),
            lines=1,
            max_lines=4,
            elem_id="prompt",
        )
        with gr.Row(elem_classes="button-row"):
            self.run_button = gr.Button(I18N("run_both"), variant="primary", min_width=60)
            stop, self.inspect_button = buttons("stop", "inspect")
        self.status = gr.HTML(elem_classes="status-line")
        self.models, self.outputs, self.inspections = [], [], []
        with gr.Row():
            for label, name in zip(
                ("left_model", "right_model"), default_pair(service), strict=True
            ):
                with gr.Column(min_width=280):
                    self._add_side(label, name)
        self.settings = settings_panel(service, temperature=0.0)
        connect_stop(stop, service)
        self._connect()

    def _add_side(self, label: str, name: str) -> None:
        self.models.append(model_chooser(self.service.writing_models, label, name))
        self.outputs.append(
            gr.Textbox(
                label=I18N("output"),
                lines=8,
                max_lines=20,
                interactive=False,
                elem_classes="written",
            )
        )
        self.inspections.append(gr.HTML())

    def _connect(self) -> None:
        for event in (self.run_button.click, self.prompt.submit):
            connect_generation(
                event,
                self.service,
                self.compare,
                [self.prompt, *self.models, *self.settings],
                [*self.outputs, self.generated, self.status, *self.inspections],
                self.outputs,
            )
        self.inspect_button.click(
            errors_to_gradio(self.inspect),
            self.generated,
            self.inspections,
            show_progress_on=self.inspections,
            **MODEL_QUEUE,
        )

    def compare(
        self,
        request: gr.Request,
        prompt: object,
        left: object,
        right: object,
        *settings: object,
    ) -> Iterator[Update]:
        """Both models write, one after the other.

        A model that answers questions takes the prompt as one, the other continues it. When both
        are done, the status says whether a limit ended one of them.
        """
        text, values = parse_text(prompt), setting_values(settings)
        requests = [self._request(model, text, values) for model in (left, right)]
        generated, limit = [None, None], ""
        for side, asked in enumerate(requests):
            for progress in self.service.generate(asked, self.service.reader(request)):
                generated[side] = progress.texts[0]
                if progress.reason in ("length", "time"):
                    limit = progress.reason
                is_done = side == 1 and progress.reason
                yield self._show(generated, text_html(limit) if is_done and limit else "")

    def _request(self, model: object, text: str, values: dict[str, object]) -> GenerationRequest:
        name = self.service.find_model(model, "write")
        if self.service.purposes[name].task == "questions" and text.strip():
            return self.service.question(name, text, {**values, "answer_by": "write"})
        return self.service.continuation(name, text, values)

    def _show(self, generated: list[GeneratedText | None], status: str = "") -> Update:
        texts = [written.text if written else "" for written in generated]
        return {
            **dict(zip(self.outputs, texts, strict=True)),
            **dict.fromkeys(self.inspections, ""),
            self.generated: list(generated),
            self.status: status,
        }

    def inspect(self, generated: list[GeneratedText | None]) -> tuple[str, str]:
        """HTML of a look inside both texts."""
        if not any(generated):
            raise UserError(error_text("no_text"))
        return tuple(
            f"<h3>{escape_html(written.model)}</h3>{self.service.inspect(written)}"
            if written and written.text
            else ""
            for written in generated
        )


def default_pair(service: PageService) -> tuple[str, str]:
    """A fine-tuned model on the right of the model that it began with, or the first two models."""
    folders = service.models.folders
    names = {folders[name].resolve(): name for name in service.writing_models}
    for name in [*service.question_models, *service.writing_models]:
        folder = service.models.base_folder(name)
        if folder and (base := names.get(folder.resolve())):
            return base, name
    return service.writing_models[0], service.writing_models[1]
