"""Builds the page: its head, the tabs that the models allow, and the API."""

from __future__ import annotations

import gradio as gr

from shuoshu.web.api import Api
from shuoshu.web.ask_tab import AskTab
from shuoshu.web.compare_tab import CompareTab
from shuoshu.web.components import I18N
from shuoshu.web.continue_tab import ContinueTab
from shuoshu.web.judge_tab import JudgeTab
from shuoshu.web.labels import text_html
from shuoshu.web.service import PageService
from shuoshu.web.training_tab import training_tab


def build_page(service: PageService) -> gr.Blocks:
    with gr.Blocks(title="说书 Shuoshu", analytics_enabled=False) as page:
        Api(service).add()
        with gr.Row(elem_id="head"):
            motto = f'<p class="soft">{text_html("motto")}</p>'
            gr.HTML(f"<h1>说书 <small>Shuoshu</small></h1>{motto}")
            gr.Button("中文 / English", size="sm", elem_id="language")
        with gr.Tabs():
            if service.question_models:
                with gr.Tab(I18N("ask"), id="ask"):
                    AskTab(service)
            if service.label_models:
                with gr.Tab(I18N("judge"), id="judge"):
                    JudgeTab(service)
            if service.writing_models:
                with gr.Tab(I18N("continue"), id="continue"):
                    ContinueTab(service)
            if len(service.writing_models) > 1:
                with gr.Tab(I18N("compare"), id="compare"):
                    CompareTab(service)
            with gr.Tab(I18N("training"), id="training") as tab:
                training_tab(service, tab)
    return page
