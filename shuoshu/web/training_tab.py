"""The tab Training: curves, samples and measures of a run, also of one that is still going."""

from __future__ import annotations

import html

import gradio as gr

from shuoshu.core.files import read_json
from shuoshu.core.run_log import RunLog, read_settings
from shuoshu.evaluation.html_report import report_html
from shuoshu.web.components import FILE_QUEUE, I18N, errors_to_gradio, model_chooser
from shuoshu.web.service import PageService


def training_tab(service: PageService, tab: gr.Tab) -> None:
    with gr.Row(elem_classes="bottom"):
        model = model_chooser(service.names)
        refresh = gr.Button(I18N("refresh"), min_width=70, scale=0)
    report = gr.HTML(elem_id="training")

    def show(name: object) -> str:
        return training_html(service, service.find_model(name))

    for event in (tab.select, model.change, refresh.click):
        event(errors_to_gradio(show), model, report, **FILE_QUEUE)


def training_html(service: PageService, name: str) -> str:
    """The report of a model in a frame: its evaluation if there is one, and its run's curves."""
    folder = service.models.folders[name]
    runs = [(name, RunLog(folder / "log.jsonl").read())]
    try:
        report = report_html(read_json(folder / "eval.json"), [], runs)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # not there, or damaged
        saved = read_settings(folder)
        unmeasured = {
            "model": name,
            "measures": {},
            "data": saved.get("data", {}),
            "training": saved.get("settings", {}),
            "machine": saved.get("machine", {}),
        }
        report = report_html(unmeasured, [], runs)
    title = html.escape(name)
    return f'<iframe class="report" title="{title}" srcdoc="{html.escape(report)}"></iframe>'
