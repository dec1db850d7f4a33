"""Parts that the tabs share: labels, model choosers, settings, and how handlers are called."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from html import escape

import gradio as gr
from gradio.components import Component

from shuoshu.core.errors import UserError
from shuoshu.web.labels import LABELS
from shuoshu.web.service import PageService
from shuoshu.web.validation import SETTING_NAMES

# A handler returns the new value of each component that changes, or gr.skip() if none does.
Update = dict[Component, object]

I18N = gr.I18n(
    **{
        code: {key: texts[language] for key, texts in LABELS.items()}
        for language, codes in enumerate((("zh", "zh-CN", "zh-TW"), ("en",)))
        for code in codes
    }
)

# Options of events. What needs the model waits in one queue, in which readers see their place.
MODEL_QUEUE = {
    "concurrency_limit": 1,
    "concurrency_id": "model",
    "api_visibility": "private",
}
FILE_QUEUE = {
    "concurrency_limit": 4,
    "concurrency_id": "files",
    "api_visibility": "private",
    "show_progress": "hidden",
}
AT_ONCE = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}


def model_chooser(names: Sequence[str], label: str = "model", value: str = "") -> gr.Dropdown:
    return gr.Dropdown(
        list(names), value=value or names[0], label=I18N(label), interactive=True, filterable=False
    )


def buttons(*labels: str) -> list[gr.Button]:
    return [gr.Button(I18N(label), min_width=60) for label in labels]


def settings_panel(service: PageService, temperature: float) -> list[Component]:
    """A folded panel with the settings, in the order of SETTING_NAMES."""
    with gr.Accordion(I18N("settings"), open=False):
        return settings_fields(service, temperature)


def settings_fields(service: PageService, temperature: float) -> list[Component]:
    """A field for each setting, in the order of SETTING_NAMES."""
    sliders = [
        gr.Slider(
            limits.low,
            limits.high,
            temperature if name == "temperature" else limits.default,
            step=limits.step,
            label=I18N(name),
            info=I18N(f"{name}_help"),
        )
        for name, limits in service.ranges.items()
    ]
    return [*sliders, gr.Textbox("", label=I18N("seed"), info=I18N("seed_help"), max_lines=1)]


def setting_values(values: Sequence[object]) -> dict[str, object]:
    """The values of a settings panel by name."""
    return dict(zip(SETTING_NAMES, values, strict=True))


def connect_generation(
    event: Callable,
    service: PageService,
    handler: Callable,
    inputs: list[Component],
    outputs: list[Component],
    progress_on: Component | list[Component],
) -> None:
    """Calls `handler`, which generates a text, when `event` happens and the model is free.

    The request is noted at once, so that Stop can cancel it while it waits.
    """
    event(service.note_request, None, None, **AT_ONCE).then(
        errors_to_gradio(handler), inputs, outputs, show_progress_on=progress_on, **MODEL_QUEUE
    )


def connect_stop(button: gr.Button, service: PageService) -> None:
    def stop(request: gr.Request) -> None:
        service.stop(request)

    button.click(stop, None, None, **AT_ONCE)


def errors_to_gradio(handler: Callable) -> Callable:
    """The handler, with a UserError as a message on the page and in the API.

    Any other error stays in the server's log.
    """

    def gradio_error(error: UserError) -> gr.Error:
        return gr.Error(escape(str(error)), print_exception=False)

    @functools.wraps(handler)
    def call(*args: object) -> object:
        try:
            return handler(*args)
        except UserError as error:
            raise gradio_error(error) from None

    @functools.wraps(handler)
    def stream(*args: object) -> Iterator[object]:
        try:
            yield from handler(*args)
        except UserError as error:
            raise gradio_error(error) from None

    return stream if inspect.isgeneratorfunction(handler) else call
