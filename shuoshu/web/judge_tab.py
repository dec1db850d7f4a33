"""The tab Judge: how probable each label of a text is, and which of its pieces decide that."""

from __future__ import annotations

from collections.abc import Iterator

import gradio as gr

from shuoshu.core.run_log import read_settings
from shuoshu.evaluation.html import escape_html
from shuoshu.sft.layouts import template_columns, template_ends
from shuoshu.sft.rendering import without_ends
from shuoshu.web.components import (
    AT_ONCE,
    FILE_QUEUE,
    I18N,
    Update,
    buttons,
    connect_generation,
    connect_stop,
    errors_to_gradio,
    model_chooser,
)
from shuoshu.web.judge_view import (
    csv_text,
    judgement_html,
    linear_html,
    table_html,
)
from shuoshu.web.judging import Judgement
from shuoshu.web.labels import note_html, text_html
from shuoshu.web.linear_rival import LinearRivals, read_split
from shuoshu.web.service import PageService
from shuoshu.web.validation import parse_table

MAX_EXAMPLE_TEXTS = 6
LONGEST_EXAMPLE = 300  # characters


class JudgeTab:
    """Its components, and the handlers of their events."""

    def __init__(self, service: PageService) -> None:
        self.service, self.rivals = service, LinearRivals()
        first = service.label_models[0]
        self.model = model_chooser(service.label_models)
        self.about = gr.HTML(about_html(service, first))
        self.text = gr.Textbox(
            label=I18N("text"),
            placeholder=I18N("text_hint"),
            lines=4,
            max_lines=12,
            elem_id="judged-text",
        )
        self.examples = gr.State(example_texts(service, first))
        with gr.Row(elem_classes="button-row"):
            self.judge_button = gr.Button(I18N("judge"), variant="primary", min_width=60)
            stop, self.example_button = buttons("stop", "example")
        self.status = gr.HTML(elem_classes="status-line")
        self.result = gr.HTML(elem_id="judgement")
        with gr.Accordion(I18N("table"), open=False):
            self._add_table()
        connect_stop(stop, service)
        self._connect()

    def _add_table(self) -> None:
        self.table = gr.Textbox(
            label=I18N("table_lines"),
            placeholder=I18N("table_hint"),
            lines=6,
            max_lines=12,
            elem_id="judged-lines-text",
        )
        with gr.Row(elem_classes="button-row"):
            self.table_button = gr.Button(I18N("judge_all"), variant="primary", min_width=60)
            [stop] = buttons("stop")
        self.table_status = gr.HTML(elem_classes="status-line")
        self.table_result = gr.HTML()
        self.csv = gr.Textbox(
            label=I18N("csv"),
            lines=4,
            max_lines=8,
            interactive=False,
            visible=False,
            buttons=["copy"],
            elem_id="judged-csv",
        )
        connect_stop(stop, self.service)

    def _connect(self) -> None:
        for event in (self.judge_button.click, self.text.submit):
            connect_generation(
                event,
                self.service,
                self.judge,
                [self.text, self.model],
                [self.result, self.status],
                self.result,
            )
        connect_generation(
            self.table_button.click,
            self.service,
            self.judge_lines,
            [self.table, self.model],
            [self.table_result, self.csv, self.table_status],
            self.table_result,
        )
        self.example_button.click(
            self.next_example, [self.text, self.examples], self.text, **AT_ONCE
        )
        self.model.change(
            errors_to_gradio(self.change_model),
            self.model,
            [self.about, self.examples, self.result, self.status],
            **FILE_QUEUE,
        )

    # ------------------------------------------------------------ one text

    def judge(self, request: gr.Request, text: object, model: object) -> Iterator[Update]:
        """Shows the labels' bars, then the pieces too, then what the linear model says."""
        reader, judgement = self.service.reader(request), None
        name = self.service.find_model(model, "label")
        for judgement in self.service.judge(name, text, reader):
            is_late = judgement.scores_without is not None and not judgement.is_complete
            yield {
                self.result: judgement_html(judgement),
                self.status: text_html("time") if is_late else "",
            }
        if judgement and judgement.scores_without is not None:  # not stopped
            if not self.rivals.is_fitted(name):
                yield {self.result: judgement_html(judgement, note_html("fitting_linear"))}
            yield {self.result: judgement_html(judgement, self._linear_html(name, judgement))}

    def _linear_html(self, name: str, judgement: Judgement) -> str:
        labelling = self.service.purposes[name].labelling
        rival = self.rivals.find(name, self.service.models.folders[name], labelling)
        if rival.model is None:
            return rival.note
        text = without_ends(judgement.prompt, template_ends(labelling.question))
        [scores] = rival.model.log_probabilities([text])
        return linear_html(judgement, rival.model.name, scores)

    # ------------------------------------------------------------ many texts

    def judge_lines(self, request: gr.Request, table: object, model: object) -> Iterator[Update]:
        """Shows a table that fills, and its CSV."""
        texts, reader = parse_table(table), self.service.reader(request)
        judged = None
        for judged in self.service.judge_many(model, texts, reader):
            yield {
                self.table_result: table_html(judged),
                self.csv: gr.update(value=csv_text(judged), visible=True),
                self.table_status: "",
            }
        if judged and not judged.is_complete and not reader.is_cancelled:
            yield {self.table_status: text_html("time")}

    # ------------------------------------------------------------ examples, model

    def next_example(self, text: str, examples: list[str]) -> str:
        """The example after the one in the box, or the first; the text if there is none."""
        following = examples.index(text) + 1 if text in examples else 0
        return examples[following % len(examples)] if examples else text

    def change_model(self, model: object) -> Update:
        """What belongs to another model."""
        name = self.service.find_model(model, "label")
        return {
            self.about: about_html(self.service, name),
            self.examples: example_texts(self.service, name),
            self.result: "",
            self.status: "",
        }


def about_html(service: PageService, model: str) -> str:
    """The labels of a model, and its template if a text of one's own doesn't fit into that."""
    labelling = service.purposes[model].labelling
    names = " · ".join(labelling.labels)
    about = f'<p class="soft">{text_html("labels_of")}<b>{escape_html(names)}</b></p>'
    if len(template_columns(labelling.question)) > 1:
        template = escape_html(labelling.question.replace("\\n", "\n"))
        about += f'<p class="soft">{text_html("whole_prompt")}<code>{template}</code></p>'
    return about


def example_texts(service: PageService, model: str) -> list[str]:
    """Validation texts of the model from all over its data; none if that is not there."""
    folder = read_settings(service.models.folders[model]).get("data", {}).get("folder")
    template = service.purposes[model].labelling.question
    is_whole = len(template_columns(template)) > 1
    validation = read_split(folder, "val", ("", "") if is_whole else template_ends(template))
    texts = (
        [text for text in validation.texts if len(text) <= LONGEST_EXAMPLE] if validation else []
    )
    step = max(1, len(texts) // MAX_EXAMPLE_TEXTS)
    return texts[::step][:MAX_EXAMPLE_TEXTS]
