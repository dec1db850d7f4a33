"""RequestFilter lets in what the page needs, and no uploads, files or large bodies."""

from __future__ import annotations

import asyncio

import gradio as gr
import pytest
from gradio.routes import App

from shuoshu.web.request_filter import MAX_BODY_BYTES, RequestFilter

OPEN = (
    "/",
    "/config",
    "/theme.css",
    "/assets/a.js",
    "/static/img/logo.svg",
    "/gradio_api/queue/join",
    "/gradio_api/queue/data",
    "/gradio_api/call/ask",
    "/gradio_api/call/ask/0123",
    "/gradio_api/info",
    "/gradio_api/cancel",
    "/gradio_api/heartbeat/profile",
    "/login",
)
CLOSED = (
    "/gradio_api/upload",
    "/upload",
    "/gradio_api/upload_progress",
    "/gradio_api/file=/etc/passwd",
    "/file=x",
    "/gradio_api/file/etc/passwd",
    "/gradio_api/proxy=https://example.org/",
    "/gradio_api/stream/a/b/c/playlist.m3u8",
    "/gradio_api/component_server",
    "/monitoring/summary",
    "/gradio_api/custom_component/a/client/component/b.js",
    "/gradio_api/process_recording",
    "/gradio_api/deep_link",
    "/gradio_api/runs",
)
RISKY_WORDS = (
    "upload",
    "file",
    "proxy",
    "component",
    "stream",
    "record",
    "monitor",
    "edit",
    "runs",
)


def request(
    path: str, method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """(status, body) of a request to a filter, behind which everything is answered with 200."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"<head></head>"})

    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    raw_headers = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {"type": "http", "path": path, "method": method, "headers": raw_headers}
    asyncio.run(RequestFilter(app)(scope, receive, send))
    return sent[0]["status"], sent[1]["body"]


@pytest.mark.parametrize("path", OPEN)
def test_what_the_page_needs_is_open(path):
    assert request(path)[0] == 200


@pytest.mark.parametrize("path", CLOSED)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "PUT"])
def test_uploads_files_and_other_servers_are_closed(path, method):
    for spelling in (
        path,
        path + "/",
        path.replace("/", "//"),
        "/." + path,
        path.replace("/gradio_api/", "/gradio_api/./"),
    ):
        assert request(spelling, method)[0] == 403


def test_every_route_of_gradio_for_files_is_closed():
    with gr.Blocks() as blocks:
        gr.Textbox()
    routes = App.create_app(blocks).routes
    routers = [getattr(router, "original_router", None) for router in routes]
    inner = [route for router in routers for route in getattr(router, "routes", [])]
    paths = {path for route in [*routes, *inner] if (path := getattr(route, "path", None))}
    assert len(paths) > 40
    risky = {path for path in paths if any(word in path for word in RISKY_WORDS)}
    assert len(risky) > 10
    assert [path for path in risky if request(path)[0] == 200] == []


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"content-length": "1000"}, 200),
        ({"content-length": str(MAX_BODY_BYTES)}, 200),
        ({"content-length": str(MAX_BODY_BYTES + 1)}, 413),
        ({"content-length": "-1"}, 413),
        ({"content-length": "1e3"}, 413),
        ({"content-length": "١٢"}, 413),
        ({"transfer-encoding": "chunked"}, 413),
        ({"content-length": "10", "transfer-encoding": "chunked"}, 413),
    ],
)
def test_a_body_needs_a_length_within_the_limit(headers, status):
    assert request("/gradio_api/queue/join", "POST", headers)[0] == status


def test_the_page_begins_with_our_script_and_its_texts():
    _, body = request("/")
    page = body.decode()
    assert page.startswith("<head><script>window.shuoshuTexts = ") and "排队的人太多" in page
    assert request("/config")[1] == b"<head></head>"
