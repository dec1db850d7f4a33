"""The tab Continue: a text that grows in its box, or three versions to choose from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import gradio as gr

from shuoshu.core.errors import UserError
from shuoshu.web.components import (
    AT_ONCE,
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
from shuoshu.web.service import GeneratedText, PageService
from shuoshu.web.validation import MAX_INSPECTED_CHARS, parse_text

VERSIONS = 3
MAX_UNDO = 50
CONTEXT_CHARS = 200  # shown before an inspected text


@dataclass
class Story:
    """How the text in the box came about."""

    undo_texts: list[str] = field(default_factory=list)  # earlier texts of the box
    last: GeneratedText | None = None
    versions: list[GeneratedText] = field(default_factory=list)  # to choose from


class ContinueTab:
    """Its components, and the handlers of their events."""

    def __init__(self, service: PageService) -> None:
        self.service = service
        self.story = gr.State(Story())
        # By default the first model that was not fine-tuned.
        names = service.writing_models
        text_models = [name for name in names if service.purposes[name].task == "text"]
        self.model = model_chooser(names, value=[*text_models, names[0]][0])
        self.box = gr.Textbox(
            label=I18N("story"),
            placeholder=I18N("story_hint"),
            lines=10,
            max_lines=24,
            elem_id="story",
        )
        self.status = gr.HTML(elem_classes="status-line")
        with gr.Row(elem_classes="button-row"):
            self.continue_button = gr.Button(
                I18N("continue_story"), variant="primary", min_width=60
            )
            self.three_button, stop, self.undo_button, self.inspect_button = buttons(
                "write_three", "stop", "undo", "inspect"
            )
        self.version_boxes, self.use_buttons = [], []
        with gr.Row(visible=False) as self.versions:
            for number in range(1, VERSIONS + 1):
                with gr.Column(min_width=220):
                    self._add_version(number)
        self.inspection = gr.HTML(elem_id="story-inside")
        self.settings = settings_panel(service, service.ranges["temperature"].default)
        connect_stop(stop, service)
        self._connect()

    def _add_version(self, number: int) -> None:
        self.version_boxes.append(
            gr.Textbox(
                label=I18N(f"version_{number}"),
                lines=8,
                max_lines=16,
                interactive=False,
                elem_classes="version",
            )
        )
        self.use_buttons.append(gr.Button(I18N("use_version"), size="sm"))

    def _connect(self) -> None:
        inputs = [self.box, self.story, self.model, *self.settings]
        outputs = [self.box, self.story, self.versions, self.status, self.inspection]
        connect_generation(
            self.continue_button.click,
            self.service,
            self.continue_story,
            inputs,
            outputs,
            self.box,
        )
        connect_generation(
            self.three_button.click,
            self.service,
            self.write_three,
            inputs,
            [*self.version_boxes, self.story, self.versions, self.status],
            self.box,
        )
        self.undo_button.click(self.undo, self.story, outputs, **AT_ONCE)
        for number, button in enumerate(self.use_buttons):
            button.click(
                errors_to_gradio(self.version_handler(number)),
                [self.box, self.story],
                outputs,
                **AT_ONCE,
            )
        self.inspect_button.click(
            errors_to_gradio(self.inspect),
            [self.box, self.story, self.model],
            self.inspection,
            show_progress_on=self.inspection,
            **MODEL_QUEUE,
        )

    # ------------------------------------------------------------ writing

    def continue_story(
        self, request: gr.Request, box: object, story: Story, model: object, *settings: object
    ) -> Iterator[Update]:
        """Appends a growing text to the box."""
        asked = self.service.continuation(model, box, setting_values(settings))
        for progress in self.service.generate(asked, self.service.reader(request)):
            [written] = progress.texts
            yield self._change(
                asked.text + written.text,
                Story(undo_stack(story, asked.text), written),
                text_html(progress.reason) if progress.reason else "",
            )

    def write_three(
        self, request: gr.Request, box: object, story: Story, model: object, *settings: object
    ) -> Iterator[Update]:
        """Shows growing versions below the box."""
        asked = self.service.continuation(model, box, setting_values(settings), copies=VERSIONS)
        for progress in self.service.generate(asked, self.service.reader(request)):
            texts = [version.text for version in progress.texts]
            yield {
                **dict(zip(self.version_boxes, texts, strict=True)),
                self.story: replace(story, versions=progress.texts),
                self.versions: gr.update(visible=True),
                self.status: text_html(progress.reason) if progress.reason else "",
            }

    def version_handler(self, number: int) -> Callable:
        """The handler that puts version `number` (from 0) into the box."""

        def use_version(request: gr.Request, box: str, story: Story) -> Update:
            self.service.stop(request)
            if not story.versions:
                raise UserError(error_text("no_text"))
            version = story.versions[number]
            return self._change(
                version.prompt + version.text, Story(undo_stack(story, box), version)
            )

        return use_version

    def undo(self, request: gr.Request, story: Story) -> Update:
        """Brings back the text before the last change. Only cancels a request that waited."""
        if self.service.stop(request) or not story.undo_texts:
            return gr.skip()
        *earlier, text = story.undo_texts
        return self._change(text, Story(earlier))

    def _change(self, text: str, story: Story, status: str = "") -> Update:
        """A new text in the box; what belonged to the old one is hidden."""
        return {
            self.box: text,
            self.story: story,
            self.versions: gr.update(visible=False),
            self.status: status,
            self.inspection: "",
        }

    # ------------------------------------------------------------ look inside

    def inspect(self, box: object, story: Story, model: object) -> str:
        """HTML of a look inside what was written last, or inside the end of an edited text."""
        text, last = parse_text(box), story.last
        if last and text == last.prompt + last.text:
            return self.service.inspect(last, last.prompt[-CONTEXT_CHARS:])
        name = self.service.find_model(model, "write")
        context, end = text[:-MAX_INSPECTED_CHARS], text[-MAX_INSPECTED_CHARS:]
        context_ids = self.service.models.run(
            name, lambda model: model.tokenizer.encode_prompt(context)
        )
        edited = GeneratedText(name, prompt_ids=context_ids, text=end)
        return self.service.inspect(edited, context[-CONTEXT_CHARS:])


def undo_stack(story: Story, box: str) -> list[str]:
    """The texts that undo brings back after `box` is changed."""
    return [*story.undo_texts, box][-MAX_UNDO:]
