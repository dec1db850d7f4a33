"""How the page is laid out, and its server: private unless told otherwise, nothing from outside, no uploads, no files."""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shuoshu.core.command_settings import AppSettings
from shuoshu.core.distributed import StopFlag
from shuoshu.core.errors import UserError
from shuoshu.web import model_server
from shuoshu.web.handlers import HERE, I18N, Page
from shuoshu.web.model_server import ModelServer
from shuoshu.web.tabs import build

FONTS = [
    "system-ui",
    "PingFang SC",
    "Microsoft YaHei",
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "sans-serif",
]


# ---------------------------------------------------------------- the server


class RequestFilter:
    """Lets nothing in that the page doesn't need: no uploads, no files, no other servers' pages, no bodies beyond a long text.

    Into the page itself it puts page.js as its first script, which Gradio's own way would run too late to choose the language.
    """

    CLOSED = re.compile(
        r"/(upload\w*|file|stream|proxy|custom_component|component_server|process_recording|run-history|runs|deep_link|monitoring|vibe-edit|undo-vibe-edit)(?=[/=]|$)"
    )
    LARGEST = 1_000_000  # bytes

    def __init__(self, app: ASGIApp) -> None:
        self.app, self.script = (
            app,
            f"<head><script>{(HERE / 'page.js').read_text(encoding='utf-8')}</script>".encode(),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if self.CLOSED.search(scope["path"]):
            return await PlainTextResponse("not here", 403)(scope, receive, send)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if scope["method"] == "POST" and (
            not length.isdigit()
            or int(length) > self.LARGEST
            or b"transfer-encoding" in dict(scope["headers"])
        ):
            await self._drain(receive)
            return await PlainTextResponse(
                f"at most {self.LARGEST:,} bytes, their number told", 413
            )(scope, receive, send)
        return await self.app(
            scope,
            receive,
            self._with_script(send) if scope["path"] == "/" and scope["method"] == "GET" else send,
        )

    async def _drain(self, receive: Receive) -> None:
        """Takes in what is being sent, up to a bound, so that the sender gets to read why it is refused."""
        taken = 0
        while taken < 10 * self.LARGEST:
            message = await receive()
            taken += len(message.get("body", b""))
            if not message.get("more_body"):
                return

    def _with_script(self, send: Send) -> Send:
        """Sends a page with our script in its head."""
        begun, body = {}, b""

        async def send_changed(message: Message) -> None:
            nonlocal begun, body
            if message["type"] == "http.response.start":
                begun = message
                return
            body += message.get("body", b"")
            if not message.get("more_body"):
                whole = body.replace(b"<head>", self.script, 1)
                headers = [
                    (name, value)
                    for name, value in begun["headers"]
                    if name.lower() != b"content-length"
                ]
                await send(
                    {**begun, "headers": [*headers, (b"content-length", str(len(whole)).encode())]}
                )
                await send({"type": "http.response.body", "body": whole})

        return send_changed


def serve(settings: AppSettings, folders: list[Path]) -> int:
    """Loads the first model, opens the page and stays until it is stopped; the exit code."""
    model_server.start_model_process(settings)
    check_address(settings)
    page = Page(ModelServer(folders, settings))
    page.desk.voice((page.answering or page.names)[0])
    os.environ["NO_PROXY"] = ",".join(
        filter(None, (os.environ.get("NO_PROXY"), "127.0.0.1", "localhost", settings.host))
    )  # Gradio calls on itself
    blocks = build(page).queue(max_size=settings.queue, default_concurrency_limit=4, api_open=False)
    with StopFlag() as stop:
        try:
            *_, shared = blocks.launch(
                server_name=settings.host,
                server_port=settings.port,
                auth=[tuple(given.split(":", 1)) for given in settings.auth] or None,
                share=settings.share,
                prevent_thread_lock=True,
                quiet=True,
                show_error=False,
                max_file_size=1,
                state_session_capacity=500,
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
                css_paths=HERE / "page.css",
                app_kwargs={
                    "middleware": [Middleware(RequestFilter)],
                    "docs_url": None,
                    "redoc_url": None,
                    "openapi_url": None,
                },
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"the page can't be opened at {settings.host}"
                + (f":{settings.port}" if settings.port else "")
                + f": {error}"
            ) from None
        print(
            f"models     {', '.join(page.names)}\npage       {blocks.local_url.replace('0.0.0.0', socket.gethostname())}"
        )
        if settings.share:
            print(
                f"shared     {shared or 'no: the servers that lend public addresses can not be reached'}"
            )
        print("Ctrl-C ends it", flush=True)
        while not stop.raised:
            time.sleep(0.2)
    page.desk.close()
    logging.getLogger("uvicorn.error").disabled = True  # what is cut off now is no error
    blocks.server.force_exit = True  # else pages that are open hold it for seconds
    blocks.close()
    return 0


def check_address(settings: AppSettings) -> None:
    """UserError if nothing can listen there: Gradio would try a hundred ports for minutes."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((settings.host, settings.port or 0))
    except OSError as error:
        at = settings.host + (f":{settings.port}" if settings.port else "")
        raise UserError(
            f"can't listen at {at}: {error.strerror}; choose another --host or --port"
        ) from None
