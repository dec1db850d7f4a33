"""Opens the page and serves it until it is stopped. Private unless the settings say otherwise."""

from __future__ import annotations

import logging
import os
import socket
import time
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from shuoshu.core.command_settings import AppSettings
from shuoshu.core.device import setup_process
from shuoshu.core.distributed import StopFlag
from shuoshu.core.errors import UserError
from shuoshu.web.components import I18N
from shuoshu.web.model_server import ModelServer
from shuoshu.web.page import build_page
from shuoshu.web.request_filter import RequestFilter
from shuoshu.web.service import PageService

FONTS = [  # all local: the page requests nothing from other servers
    "system-ui",
    "PingFang SC",
    "Microsoft YaHei",
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "sans-serif",
]
MAX_SESSIONS = 500  # open pages whose conversations are kept in memory


def serve(settings: AppSettings, folders: list[Path]) -> int:
    """Loads the first model, opens the page and serves it until a signal; returns the exit code.

    Raises UserError if the model can't be loaded or the address can't be used.
    """
    setup_process(settings.device, settings.threads)
    check_address(settings)
    models = ModelServer(folders, settings)
    service = PageService(models)
    # Load the model of the first tab before readers come.
    models.model((service.question_models or service.label_models or service.names)[0])
    bypass_proxy(settings.host)
    page = build_page(service).queue(
        max_size=settings.queue, default_concurrency_limit=4, api_open=False
    )
    with StopFlag() as stop:
        shared_url = launch(page, settings)
        local_url = page.local_url.replace("0.0.0.0", socket.gethostname())
        print(f"models     {', '.join(service.names)}\npage       {local_url}")
        if settings.share:
            print(f"shared     {shared_url or 'failed: can not reach the servers of Gradio'}")
        print("Press Ctrl-C to stop", flush=True)
        while not stop.raised:
            time.sleep(0.2)
    models.close()
    logging.getLogger("uvicorn.error").disabled = True  # closing open connections is not an error
    page.server.force_exit = True  # else open pages delay the exit by seconds
    page.close()
    return 0


def launch(page: gr.Blocks, settings: AppSettings) -> str | None:
    """Starts serving the page in threads; returns its public address if there is one."""
    try:
        *_, shared_url = page.launch(
            server_name=settings.host,
            server_port=settings.port,
            auth=[tuple(login.split(":", 1)) for login in settings.auth] or None,
            share=settings.share,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            max_file_size=1,
            state_session_capacity=MAX_SESSIONS,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            footer_links=[],
            i18n=I18N,
            theme=gr.themes.Default(
                primary_hue="red",
                neutral_hue="stone",
                font=FONTS,
                font_mono=["ui-monospace", "monospace"],
            ),
            css_paths=Path(__file__).with_name("page.css"),
            app_kwargs={
                "middleware": [Middleware(RequestFilter)],
                "docs_url": None,
                "redoc_url": None,
                "openapi_url": None,
            },
        )
    except (OSError, ValueError, RuntimeError) as error:
        address = address_of(settings)
        raise UserError(f"the page can't be opened at {address}: {error}") from None
    return shared_url


def bypass_proxy(host: str) -> None:
    """Excludes this machine from the proxy: Gradio sends requests to its own server."""
    hosts = [os.environ.get("NO_PROXY"), "127.0.0.1", "localhost", host]
    os.environ["NO_PROXY"] = ",".join(filter(None, hosts))


def check_address(settings: AppSettings) -> None:
    """UserError if the address can't be used. Without this, Gradio would try a hundred ports."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((settings.host, settings.port or 0))
    except OSError as error:
        raise UserError(
            f"can't listen at {address_of(settings)}: {error.strerror};"
            " choose another --host or --port"
        ) from None


def address_of(settings: AppSettings) -> str:
    return settings.host + (f":{settings.port}" if settings.port else "")
