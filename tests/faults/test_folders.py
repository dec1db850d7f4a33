"""Runs that start in, resume in or overwrite a folder, and other runs in the same folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import namedtuple
from pathlib import Path

import pytest
from safetensors.torch import load_file

from shuoshu.core import distributed
from shuoshu.core.files import sha256_of
from shuoshu.models import weights
from shuoshu.training import checkpoints, trainer
from tests.in_process import train_model

SHORT = ["--max_iters=4", "--eval_interval=2", "--save_interval=2", "--sample_tokens=0"]


@pytest.fixture(scope="module")
def begun(tiny, tmp_path_factory) -> Path:
    out_dir = tmp_path_factory.mktemp("begun") / "out"
    assert train_model([*tiny, *SHORT, f"--out_dir={out_dir}"]) == 0
    return out_dir


@pytest.fixture
def out_dir(begun, tmp_path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "out"))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_a_run_does_not_write_into_a_folder_that_another_run_filled(
    tiny, begun, tmp_path, monkeypatch, capsys
):
    built = trainer.start_model

    def slowly(*args, **more):
        shutil.copytree(begun, tmp_path / "out")  # another run, from beginning to end
        return built(*args, **more)

    monkeypatch.setattr(trainer, "start_model", slowly)
    assert train_model([*tiny, *SHORT, f"--out_dir={tmp_path / 'out'}"]) == 2
    assert "is not empty" in capsys.readouterr().err and contents(tmp_path / "out") == contents(
        begun
    )


def test_overwriting_without_room_leaves_the_old_run(tiny, out_dir, monkeypatch, capsys):
    before = contents(out_dir)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: namedtuple("Usage", "total used free")(100, 90, 10)
    )
    assert train_model([*tiny, *SHORT, "--n_embd=128", f"--out_dir={out_dir}", "--overwrite"]) == 2
    assert "no room on the disk" in capsys.readouterr().err and contents(out_dir) == before


def test_a_folder_without_a_run_is_not_resumed(tiny, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("mine", encoding="utf-8")
    assert train_model([*tiny, *SHORT, f"--out_dir={tmp_path / 'out'}", "--resume"]) == 2
    assert (
        "is not empty" in capsys.readouterr().err
        and (tmp_path / "out" / "config.json").read_text(encoding="utf-8") == "mine"
    )


def test_a_start_that_failed_for_lack_of_space_can_be_repeated(tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as full:
        full.setattr(
            shutil, "disk_usage", lambda path: namedtuple("Usage", "total used free")(100, 90, 10)
        )
        assert train_model([*tiny, *SHORT, f"--out_dir={tmp_path / 'out'}"]) == 2
    assert train_model([*tiny, *SHORT, f"--out_dir={tmp_path / 'out'}"]) == 0


def forge(folder: Path, name: str) -> None:
    """Updates the manifest for a changed file."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["sha256"][name] = sha256_of(folder / name)
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize(
    "optimizer, lost", [("muon", "momentum"), ("adamw", "exp_avg"), ("adamw", "step")]
)
def test_optimizer_state_without_a_tensor_is_refused(tiny, tmp_path, capsys, optimizer, lost):
    command = [*tiny, *SHORT, f"--optimizer={optimizer}", f"--out_dir={tmp_path / 'out'}"]
    assert train_model(command) == 0
    newest, _ = checkpoints.newest_checkpoint(tmp_path / "out")
    tensors = {
        name: tensor.clone() for name, tensor in load_file(newest / "optimizer.safetensors").items()
    }  # the file itself is mapped
    del tensors[next(name for name in tensors if name.endswith("/" + lost))]
    weights.write_tensors(newest / "optimizer.safetensors", tensors, {"step": "4"})
    forge(newest, "optimizer.safetensors")
    assert train_model([*command, "--resume", "--max_iters=6"]) == 2
    assert f"/{lost} is missing" in capsys.readouterr().err


FORGED = [
    ("seconds", "NaN"),
    ("step", "1" + "0" * 400),
    ("step", "3"),
    ("scale", "-1.0"),
    ("scale", "Infinity"),
    ("best", "NaN"),
    ("best_scores", "[null]"),
]


@pytest.mark.parametrize(
    "name, value", [*FORGED, ("plan.max_iters", "0"), ("plan.decay_start", "NaN")]
)
def test_a_forged_state_is_refused(tiny, out_dir, capsys, name, value):
    newest, _ = checkpoints.newest_checkpoint(out_dir)
    state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
    place = state["run"]["plan"] if name.startswith("plan.") else state["run"]
    place[name.removeprefix("plan.")] = "FORGED"
    (newest / "state.json").write_text(
        json.dumps(state).replace('"FORGED"', value), encoding="utf-8"
    )
    forge(newest, "state.json")
    assert train_model([*tiny, *SHORT, f"--out_dir={out_dir}", "--resume"]) == 2
    assert "doesn't fit" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGHUP")
def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with distributed.StopFlag() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.raised == signal.SIGTERM
    finally:
        signal.signal(signal.SIGHUP, before)


def test_processes_that_cannot_connect_get_advice_on_torchrun(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert train_model([*tiny, *SHORT, f"--out_dir={tmp_path / 'out'}"]) == 2
    assert "torchrun" in capsys.readouterr().err


def test_a_closed_output_pipe_saves_the_run(tiny, tmp_path, monkeypatch):
    from shuoshu.core import terminal

    real_say = terminal.ProgressBar.say

    def broken(self, line):
        if line.startswith("step 2"):
            raise BrokenPipeError
        real_say(self, line)

    monkeypatch.setattr(terminal.ProgressBar, "say", broken)
    monkeypatch.setattr(os, "dup2", lambda a, b: None)
    assert (
        train_model([*tiny, *SHORT, "--save_interval=100", f"--out_dir={tmp_path / 'out'}"]) == 141
    )
    assert checkpoints.newest_checkpoint(tmp_path / "out")[0].name == "step-000002"
