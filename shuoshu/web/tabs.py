"""The layout of the page and its tabs."""

from __future__ import annotations

import html
from pathlib import Path

import gradio as gr

from shuoshu.core.errors import UserError
from shuoshu.core.files import read_json
from shuoshu.core.run_log import RunLog, read_settings
from shuoshu.evaluation.html import bilingual
from shuoshu.evaluation.html_report import report_html
from shuoshu.sft.dataset import read_pairs
from shuoshu.web.handlers import I18N, Page, Story, errors_to_gradio

MODEL = {
    "concurrency_limit": 1,
    "concurrency_id": "model",
    "api_visibility": "private",
}  # one text after the other
READ = {
    "concurrency_limit": 4,
    "concurrency_id": "files",
    "api_visibility": "private",
    "show_progress": "hidden",
}
AT_ONCE = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
EXAMPLES = 4


def build(page: Page) -> gr.Blocks:
    """All tabs that the models at hand allow."""
    with gr.Blocks(title="说书 Shuoshu", analytics_enabled=False) as blocks:
        for work, name in (
            (page.api_ask, "ask"),
            (page.api_continue, "continue"),
            (page.api_inside, "inside"),
            (page.api_models, "models"),
        ):
            gr.api(
                errors_to_gradio(work), api_name=name, concurrency_limit=1, concurrency_id="model"
            )
        with gr.Row(elem_id="head"):
            motto = bilingual(
                "问书，续书，看它学到了什么", "Ask the book, continue it, see what it learned"
            )
            gr.HTML(f'<h1>说书 <small>Shuoshu</small></h1><p class="soft">{motto}</p>')
            gr.Button("中文 / English", size="sm", elem_id="language")
        with gr.Tabs():
            if page.answering:
                with gr.Tab(I18N("ask"), id="ask"):
                    ask_tab(page)
            with gr.Tab(I18N("continue"), id="continue"):
                continue_tab(page)
            if len(page.names) > 1:
                with gr.Tab(I18N("compare"), id="compare"):
                    compare_tab(page)
            with gr.Tab(I18N("training"), id="training") as tab:
                training_tab(page, tab)
    return blocks


def chooser(names: list[str], label: str = "model", value: str | None = None) -> gr.Dropdown:
    return gr.Dropdown(
        names, value=value or names[0], label=I18N(label), interactive=True, filterable=False
    )


def controls(page: Page, temperature: float) -> list[gr.components.Component]:
    """The settings, folded away, each with its meaning."""
    with gr.Accordion(I18N("settings"), open=False):
        made = []
        for name, knob in page.knobs.items():
            value = temperature if name == "temperature" else knob.default
            made.append(
                gr.Slider(
                    knob.low,
                    knob.high,
                    value,
                    step=knob.step,
                    label=I18N(name),
                    info=I18N(name + "_help"),
                )
            )
        made.append(gr.Textbox("", label=I18N("seed"), info=I18N("seed_help"), max_lines=1))
    return made


def ask_tab(page: Page) -> None:
    talk, model = gr.State([]), chooser(page.answering)
    chat = gr.Chatbot(
        label=I18N("talk"),
        height="52vh",
        placeholder=bilingual(
            "在下面提问，或点一个它学过的问题。",
            "Ask below, or choose a question that it was taught.",
        ),
        examples=examples(page, page.answering[0]),
        render_markdown=False,
        latex_delimiters=[],
        buttons=[],
        elem_id="talk",
    )
    noted = gr.HTML(elem_classes="note")
    with gr.Row(elem_classes="bottom"):
        box = gr.Textbox(
            label=I18N("question"),
            placeholder=I18N("question_hint"),
            lines=1,
            max_lines=4,
            scale=5,
            autofocus=True,
            elem_id="question",
        )
        send = gr.Button(I18N("send"), variant="primary", scale=1, min_width=80)
    with gr.Row(elem_classes="deeds"):
        stop, retry, undo, clear, look = (
            gr.Button(I18N(name), min_width=60)
            for name in ("stop", "retry", "undo", "clear", "inside")
        )
    looked = gr.HTML(elem_id="ask-inside")
    knobs = controls(page, 0.0)

    outputs = [box, chat, talk, noted, looked]
    inputs, answering = (
        [box, talk, model, *knobs],
        {"outputs": outputs, "show_progress_on": chat, **MODEL},
    )
    for event, work in ((box.submit, page.ask), (send.click, page.ask), (retry.click, page.retry)):
        event(page.wish, None, None, **AT_ONCE).then(errors_to_gradio(work), inputs, **answering)
    chosen = gr.State("")
    chat.example_select(page.example, None, chosen, **AT_ONCE).then(
        errors_to_gradio(page.ask_example), [chosen, *inputs[1:]], **answering
    )
    stop.click(page.end, None, None, **AT_ONCE)
    undo.click(page.undo, [box, talk], outputs, **AT_ONCE)
    clear.click(page.clear, None, outputs, **AT_ONCE)
    look.click(errors_to_gradio(page.look_at_turn), talk, looked, show_progress_on=looked, **MODEL)
    chat.select(
        errors_to_gradio(page.look_at_answer), talk, looked, show_progress_on=looked, **MODEL
    )
    model.change(
        errors_to_gradio(lambda name: gr.update(examples=examples(page, page.model_of(name)))),
        model,
        chat,
        **READ,
    )


def examples(page: Page, name: str) -> list[dict[str, str]]:
    """Questions from the data that the model was fine-tuned on, each of another answer, evenly over the file."""
    folder = read_settings(page.desk.folders[name]).get("data", {}).get("folder")
    try:
        asked = {
            pair["messages"][-1]["content"]: pair["messages"][-2]["content"]
            for pair in read_pairs(Path(str(folder)), "train")
        }
    except (UserError, OSError, ValueError, KeyError, IndexError, TypeError):
        return []
    questions = [question for question in asked.values() if len(question) <= 60]
    return [
        {"text": questions[i * len(questions) // EXAMPLES]}
        for i in range(EXAMPLES if len(questions) >= EXAMPLES else 0)
    ]


def continue_tab(page: Page) -> None:
    story = gr.State(Story())
    first = next((name for name in page.names if not page.turns[name]), page.names[0])
    model = chooser(page.names, value=first)
    box = gr.Textbox(
        label=I18N("story"), placeholder=I18N("story_hint"), lines=10, max_lines=24, elem_id="story"
    )
    noted = gr.HTML(elem_classes="note")
    with gr.Row(elem_classes="deeds"):
        go = gr.Button(I18N("go_on"), variant="primary", min_width=60)
        three, stop, undo, look = (
            gr.Button(I18N(name), min_width=60) for name in ("three", "stop", "undo", "inside")
        )
    with gr.Row(visible=False) as shelf:
        versions, takes = [], []
        for number in (1, 2, 3):
            with gr.Column(min_width=220):
                versions.append(
                    gr.Textbox(
                        label=I18N(f"version_{number}"),
                        lines=8,
                        max_lines=16,
                        interactive=False,
                        elem_classes="version",
                    )
                )
                takes.append(gr.Button(I18N("take"), size="sm"))
    looked = gr.HTML(elem_id="story-inside")
    knobs = controls(page, page.knobs["temperature"].default)

    for event, work, outputs in (
        (go.click, page.go_on, [box, story, shelf, noted, looked]),
        (three.click, page.three, [*versions, story, shelf, noted]),
    ):
        event(page.wish, None, None, **AT_ONCE).then(
            errors_to_gradio(work),
            [box, story, model, *knobs],
            outputs,
            show_progress_on=box,
            **MODEL,
        )
    stop.click(page.end, None, None, **AT_ONCE)
    undo.click(page.take_back, [box, story], [box, story, shelf, noted, looked], **AT_ONCE)
    for number, take in enumerate(takes):
        take.click(
            errors_to_gradio(page.taking(number)),
            [box, story],
            [box, story, shelf, noted, looked],
            **AT_ONCE,
        )
    look.click(
        errors_to_gradio(page.look_at_story),
        [box, story, model],
        looked,
        show_progress_on=looked,
        **MODEL,
    )


def compare_tab(page: Page) -> None:
    found = gr.State([None, None])
    prompt = gr.Textbox(
        label=I18N("prompt"),
        placeholder=I18N("question_hint"),
        lines=1,
        max_lines=4,
        elem_id="prompt",
    )
    with gr.Row(elem_classes="deeds"):
        run = gr.Button(I18N("run"), variant="primary", min_width=60)
        stop, look = (gr.Button(I18N(name), min_width=60) for name in ("stop", "inside"))
    noted = gr.HTML(elem_classes="note")
    chosen, texts, looked = [], [], []
    with gr.Row():
        for label, name in zip(("first", "second"), page.pair(), strict=True):
            with gr.Column(min_width=280):
                chosen.append(chooser(page.names, label, name))
                texts.append(
                    gr.Textbox(
                        label=I18N("answer"),
                        lines=8,
                        max_lines=20,
                        interactive=False,
                        elem_classes="written",
                    )
                )
                looked.append(gr.HTML())
    knobs = controls(page, 0.0)
    for event in (run.click, prompt.submit):
        writing = event(page.wish, None, None, **AT_ONCE)
        writing.then(
            errors_to_gradio(page.both_write),
            [prompt, *chosen, *knobs],
            [*texts, found, noted, *looked],
            show_progress_on=texts,
            **MODEL,
        )
    stop.click(page.end, None, None, **AT_ONCE)
    look.click(errors_to_gradio(page.look_at_both), found, looked, show_progress_on=looked, **MODEL)


def training_tab(page: Page, tab: gr.Tab) -> None:
    with gr.Row(elem_classes="bottom"):
        model = chooser(page.names)
        refresh = gr.Button(I18N("refresh"), min_width=70, scale=0)
    shown = gr.HTML(elem_id="training")
    for event in (tab.select, model.change, refresh.click):
        event(errors_to_gradio(lambda name: training_html(page, name)), model, shown, **READ)


def training_html(page: Page, name: str) -> str:
    """What the run has told so far and what was measured, as a document in a frame."""
    folder = page.desk.folders[page.model_of(name)]
    saved = read_settings(folder)
    bare = {
        "model": name,
        "measures": {},
        "data": saved.get("data", {}),
        "training": saved.get("settings", {}),
        "machine": saved.get("machine", {}),
    }
    runs = [(name, RunLog(folder / "log.jsonl").read())]
    try:
        page_html = report_html(read_json(folder / "eval.json"), [], runs)
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ):  # not measured yet, or damaged
        page_html = report_html(bare, [], runs)
    return f'<iframe class="report" title="{html.escape(name)}" srcdoc="{html.escape(page_html)}"></iframe>'
