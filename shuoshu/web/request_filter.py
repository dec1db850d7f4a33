"""Middleware in front of Gradio: refuses what the page doesn't need, and adds page.js to it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shuoshu.web.labels import SCRIPT_TEXTS

MAX_BODY_BYTES = 1_000_000  # a text of the maximum length fits in easily
MAX_DRAINED_BYTES = 10 * MAX_BODY_BYTES

# Gradio's routes for uploads, files, other servers' pages, monitoring and editing.
CLOSED_ROUTES = (
    "upload\\w*",
    "file",
    "stream",
    "proxy",
    "custom_component",
    "component_server",
    "process_recording",
    "run-history",
    "runs",
    "deep_link",
    "monitoring",
    "vibe-edit",
    "undo-vibe-edit",
)
CLOSED_PATH = re.compile(rf"/({'|'.join(CLOSED_ROUTES)})(?=[/=]|$)")


class RequestFilter:
    """Answers 403 to closed routes, and 413 to a POST that is too long or has no length."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.head = f"<head><script>{page_script()}</script>".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if CLOSED_PATH.search(scope["path"]):
            return await PlainTextResponse("closed", 403)(scope, receive, send)
        if scope["method"] == "POST" and not has_allowed_length(dict(scope["headers"])):
            await drain(receive)
            message = f"a Content-Length of at most {MAX_BODY_BYTES:,} bytes is required"
            return await PlainTextResponse(message, 413)(scope, receive, send)
        is_page = scope["path"] == "/" and scope["method"] == "GET"
        return await self.app(scope, receive, self._add_script(send) if is_page else send)

    def _add_script(self, send: Send) -> Send:
        """A `send` that puts page.js at the beginning of the page's head.

        Gradio's own parameter for scripts runs them too late: page.js has to set the language
        before Gradio reads it.
        """
        start, body = {}, b""

        async def send_with_script(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
                return
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            page = body.replace(b"<head>", self.head, 1)
            headers = [
                (name, value)
                for name, value in start["headers"]
                if name.lower() != b"content-length"
            ]
            headers.append((b"content-length", str(len(page)).encode()))
            await send({**start, "headers": headers})
            await send({"type": "http.response.body", "body": page})

        return send_with_script


def has_allowed_length(headers: dict[bytes, bytes]) -> bool:
    """True if the body's length is known before it arrives, and allowed."""
    length = headers.get(b"content-length", b"0")
    is_known = length.isdigit() and b"transfer-encoding" not in headers
    return is_known and int(length) <= MAX_BODY_BYTES


async def drain(receive: Receive) -> None:
    """Reads a refused body up to a limit: a client that is still sending reads no answer."""
    drained = 0
    while drained < MAX_DRAINED_BYTES:
        message = await receive()
        drained += len(message.get("body", b""))
        if not message.get("more_body"):
            return


def page_script() -> str:
    """page.js with its texts, {key: {"zh": …, "en": …}}."""
    texts = {key: {"zh": zh, "en": en} for key, (zh, en) in SCRIPT_TEXTS.items()}
    script = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
    return f"window.shuoshuTexts = {json.dumps(texts, ensure_ascii=False)};\n{script}"
