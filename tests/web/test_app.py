"""app.py's mistakes are one message each; the gate in front of Gradio lets in what the page needs and nothing else."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import gradio as gr
import pytest
from gradio.routes import App

import app
from shuoshu.core.errors import REPO_ROOT
from shuoshu.core.out_dirs import find_models
from shuoshu.web.server import RequestFilter

QUICK = ["--threads=1", "--device=cpu"]
OPEN = (
    "/",
    "/config",
    "/theme.css",
    "/assets/a.js",
    "/static/img/logo.svg",
    "/gradio_api/queue/join",
    "/gradio_api/queue/data",
    "/gradio_api/call/ask",
)
OPEN += (
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
)
CLOSED += (
    "/gradio_api/proxy=https://example.org/",
    "/gradio_api/stream/a/b/c/playlist.m3u8",
    "/gradio_api/component_server",
    "/monitoring/summary",
)
CLOSED += (
    "/gradio_api/custom_component/a/client/component/b.js",
    "/gradio_api/process_recording",
    "/gradio_api/deep_link",
    "/gradio_api/runs",
)


@pytest.fixture
def mistake(capsys, monkeypatch):
    """mistake(*arguments): the one message of a command line that is wrong."""
    for name in ("NO_PROXY", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "")  # what app.py sets is undone

    def mistake(*arguments: object) -> str:
        assert app.main([*map(str, arguments), *QUICK]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and "Traceback" not in err
        return err

    return mistake


def test_without_a_model_the_commands_that_make_one_are_named(mistake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out-empty").mkdir()
    told = mistake()
    assert "python prepare.py" in told and "python train.py" in told


def test_a_folder_without_a_model_is_named(mistake, tmp_path, pretrained):
    assert f"there is no trained model in {tmp_path}" in mistake(pretrained, tmp_path)
    assert f"{tmp_path / 'nowhere'}" in mistake(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "arguments, told",
    [
        (
            ["--host=0.0.0.0"],
            "--host=0.0.0.0 lets others in: set --auth=USER:PASSWORD, or --insecure",
        ),
        (["--host=192.168.1.5"], "lets others in"),
        (["--host=::"], "lets others in"),
        (["--host="], "host"),
        (["--share"], "--share lets others in"),
        (["--share", "--host=127.0.0.1"], "--share lets others in"),
        (["--auth=nocolon"], "auth=nocolon: it must be USER:PASSWORD"),
        (["--auth=:secret"], "it must be USER:PASSWORD"),
        (["--auth=user:"], "it must be USER:PASSWORD"),
        (["--port=0"], "port"),
        (["--port=70000"], "port"),
        (["--queue=0"], "queue"),
        (["--max_seconds=nan"], "max_seconds"),
        (["--max_new_tokens=0"], "max_new_tokens"),
    ],
)
def test_a_wrong_setting_is_one_message(mistake, pretrained, arguments, told):
    assert told in mistake(pretrained, *arguments)


def test_a_port_in_use_is_named(mistake, pretrained):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}" in mistake(pretrained, f"--port={port}")


def test_an_address_that_is_not_ours_is_told_soon(pretrained, tmp_path):
    command = [
        sys.executable,
        REPO_ROOT / "app.py",
        pretrained,
        "--host=203.0.113.7",
        "--insecure",
        *QUICK,
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and "203.0.113.7" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("damage", ["cut", "flipped", "no config", "no tokenizer"])
def test_a_damaged_model_is_one_message(mistake, pretrained, tmp_path, damage):
    folder = Path(
        shutil.copytree(pretrained, tmp_path / "out", ignore=shutil.ignore_patterns("checkpoints"))
    )
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    if damage in ("cut", "flipped"):
        weights.write_bytes(data[:5000] if damage == "cut" else data)
    else:
        (folder / f"{damage.removeprefix('no ')}.json").unlink()
    assert str(folder) in mistake(folder)


def test_folders_here_are_found_the_newest_first(pretrained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, age in (("out-a", 9), ("out-b", 5), ("other", 1)):
        (tmp_path / name).mkdir()
        weights = Path(shutil.copy(pretrained / "model.safetensors", tmp_path / name))
        stamp = weights.stat().st_mtime - age
        os.utime(weights, (stamp, stamp))
    assert [path.name for path in find_models()] == ["out-b", "out-a"]


# ---------------------------------------------------------------- the gate


def answer(path: str, method: str = "GET", headers: dict[str, str] | None = None) -> int:
    """The status that the gate, before an application that says 200 to everything, gives to a request."""

    async def inner(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"<head></head>"})

    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    given = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    asyncio.run(
        RequestFilter(inner)(
            {"type": "http", "path": path, "method": method, "headers": given}, receive, send
        )
    )
    return sent[0]["status"]


@pytest.mark.parametrize("path", OPEN)
def test_what_the_page_needs_is_open(path):
    assert answer(path) == 200


@pytest.mark.parametrize("path", CLOSED)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "PUT"])
def test_uploads_files_and_other_servers_are_closed(path, method):
    for spelt in (
        path,
        path + "/",
        path.replace("/", "//"),
        "/." + path,
        path.replace("/gradio_api/", "/gradio_api/./"),
    ):
        assert answer(spelt, method) == 403


def test_every_route_of_gradio_that_takes_or_gives_files_is_closed():
    with gr.Blocks() as blocks:
        gr.Textbox()
    routes = App.create_app(blocks).routes
    inner = [
        route
        for router in routes
        for route in getattr(getattr(router, "original_router", None), "routes", [])
    ]
    paths = {path for route in [*routes, *inner] if (path := getattr(route, "path", None))}
    assert len(paths) > 40
    risky = {
        path
        for path in paths
        if any(
            word in path
            for word in (
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
        )
    }
    assert len(risky) > 10 and [path for path in risky if answer(path) == 200] == []


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"content-length": "1000"}, 200),
        ({"content-length": str(RequestFilter.LARGEST)}, 200),
        ({"content-length": str(RequestFilter.LARGEST + 1)}, 413),
        ({"content-length": "-1"}, 413),
        ({"content-length": "1e3"}, 413),
        ({"content-length": "١٢"}, 413),
        ({"transfer-encoding": "chunked"}, 413),
        ({"content-length": "10", "transfer-encoding": "chunked"}, 413),
    ],
)
def test_a_body_is_bounded_and_its_length_told(headers, status):
    assert answer("/gradio_api/queue/join", "POST", headers) == status
