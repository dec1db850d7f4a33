"""app.py: a mistake is one message, and trained models are found."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

import app
from shuoshu.core.out_dirs import find_models


@pytest.fixture
def error_of(capsys, monkeypatch) -> Callable[..., str]:
    """error_of(*arguments): the error message of a wrong command line."""
    for name in ("NO_PROXY", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "")  # app.py sets them; restored after the test

    def run(*arguments: object) -> str:
        assert app.main([*map(str, arguments), "--threads=1", "--device=cpu"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and "Traceback" not in error
        return error

    return run


def test_without_a_model_the_error_names_the_commands_that_make_one(
    error_of, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out-empty").mkdir()
    error = error_of()
    assert "python prepare.py" in error and "python train.py" in error


def test_a_folder_without_a_model_is_named(error_of, tmp_path, pretrained):
    assert f"there is no trained model in {tmp_path}" in error_of(pretrained, tmp_path)
    assert f"{tmp_path / 'nowhere'}" in error_of(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "arguments, message",
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
def test_a_wrong_setting_is_one_message(error_of, pretrained, arguments, message):
    assert message in error_of(pretrained, *arguments)


def test_a_port_in_use_is_named(error_of, pretrained):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"can't listen at 127.0.0.1:{port}" in error_of(pretrained, f"--port={port}")


def test_an_address_of_another_machine_is_named(error_of, pretrained):
    # From our own check: Gradio's would try a hundred ports first.
    message = "can't listen at 203.0.113.7"
    assert message in error_of(pretrained, "--host=203.0.113.7", "--insecure")


@pytest.mark.parametrize("damage", ["cut", "flipped", "no config", "no tokenizer"])
def test_a_damaged_model_is_named(error_of, pretrained, tmp_path, damage):
    ignored = shutil.ignore_patterns("checkpoints")
    folder = Path(shutil.copytree(pretrained, tmp_path / "out", ignore=ignored))
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    if damage in ("cut", "flipped"):
        weights.write_bytes(data[:5000] if damage == "cut" else data)
    else:
        (folder / f"{damage.removeprefix('no ')}.json").unlink()
    assert str(folder) in error_of(folder)


def test_models_are_found_newest_first(pretrained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, age in (("out-a", 9), ("out-b", 5), ("other", 1)):
        (tmp_path / name).mkdir()
        shutil.copy(pretrained / "config.json", tmp_path / name)
        weights = Path(shutil.copy(pretrained / "model.safetensors", tmp_path / name))
        modified = weights.stat().st_mtime - age
        os.utime(weights, (modified, modified))
    assert [path.name for path in find_models()] == ["out-b", "out-a"]
