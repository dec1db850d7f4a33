"""Damaged checkpoints are skipped and named; forged ones, whose hashes are right, are refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from shuoshu.core.files import sha256_of
from shuoshu.training import checkpoints
from tests.faults.test_models import HEADERS, PARTS, newest, resuming, taken_apart, written
from tests.in_process import train_model

DAMAGE: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "empty": lambda path: os.truncate(path, 0),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "flipped at the beginning": lambda path: flip(path, 9),
    "flipped in the middle": lambda path: flip(path, path.stat().st_size // 2),
    "flipped at the end": lambda path: flip(path, path.stat().st_size - 2),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "brackets": lambda path: path.write_bytes(b"[" * 200_000),
    "null": lambda path: path.write_bytes(b"null"),
}


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 4
    path.write_bytes(raw)


@pytest.fixture
def run(pretrained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pretrained, tmp_path / "run"))


def forged(folder: Path, name: str, change: Callable[[Path], object]) -> None:
    """Changes a file of a checkpoint and updates its sha256 in the manifest."""
    change(folder / name)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["sha256"][name] = sha256_of(folder / name)
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("fault", DAMAGE)
def test_a_damaged_checkpoint_is_skipped_and_named(
    run: Path, name: str, fault: str, count_fault: Callable
) -> None:
    count_fault("tried")
    bad = newest(run)
    DAMAGE[fault](bad / name)
    used, problems = checkpoints.newest_checkpoint(run)
    if used == bad:  # a flipped bit in the manifest's whitespace
        assert name == "manifest.json" and "flipped" in fault
    else:
        assert (
            used == checkpoints.list_checkpoints(run)[-2]
            and len(problems) == 1
            and str(bad) in problems[0]
        )
    checkpoints.load_checkpoint(used)
    count_fault("survived")


def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one(
    run: Path, dataset: Path, count_fault: Callable, capsys: pytest.CaptureFixture
) -> None:
    count_fault("tried")
    good, bad = checkpoints.list_checkpoints(run)
    flip(bad / "model.safetensors", 5000)
    assert train_model([str(word) for word in resuming(run, dataset)]) == 0
    out = capsys.readouterr().out
    assert f"skipped {bad}: model.safetensors is damaged" in out and f"resuming from {good}" in out
    count_fault("survived")


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("fault", ["gone", "empty", "flipped in the middle", "a pipe", "null"])
def test_a_run_without_a_valid_checkpoint_is_refused(
    run: Path, dataset: Path, name: str, fault: str, refused: Callable
) -> None:
    for folder in checkpoints.list_checkpoints(run):
        DAMAGE[fault](folder / name)
    refused(
        train_model,
        resuming(run, dataset),
        f"{run} holds no valid checkpoint",
        f"its model is intact: sample.py --out_dir={run} uses it, train.py --init_from={run}",
    )


def test_a_damaged_model_is_not_called_intact(run: Path, dataset: Path, refused: Callable) -> None:
    for folder in (*checkpoints.list_checkpoints(run), run):
        flip(folder / "model.safetensors", 5000)
    assert "intact" not in refused(train_model, resuming(run, dataset), "no valid checkpoint")


def test_folders_with_odd_names_are_ignored(
    run: Path, dataset: Path, count_fault: Callable
) -> None:
    count_fault("tried")
    for name in ("step-²", "step-", "step--1", "step-٣", "other"):
        (run / "checkpoints" / name).mkdir()
    (run / "checkpoints" / "step-999999").write_bytes(b"a file")
    assert checkpoints.newest_checkpoint(run)[0].name == "step-000150"
    count_fault("survived")


# ---------------------------------------------------------------- forged: every hash is right


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize(
    "fault",
    [
        "a missing tensor",
        "an extra tensor",
        "another shape",
        "no dtype",
        "offsets out of range",
        "offsets that overlap",
    ],
)
def test_forged_tensors_are_refused(
    run: Path, dataset: Path, name: str, fault: str, refused: Callable
) -> None:
    header, body = taken_apart(newest(run) / name)
    gain = next(key for key in header if key.startswith("model.norm.weight"))
    moved = {
        {gain: "model.norm.weight", "model.norm.weight": gain}.get(key, key): entry
        for key, entry in header.items()
    }
    moved = HEADERS[fault](moved)
    forged(
        newest(run),
        name,
        lambda path: written(
            path,
            {gain if key == "model.norm.weight" else key: entry for key, entry in moved.items()},
            body,
        ),
    )
    refused(train_model, resuming(run, dataset), newest(run))


STATES: dict[str, Callable[[dict], object]] = {
    "another format": lambda state: state | {"format": 2},
    "a list": lambda state: [state],
    "null": lambda state: None,
    "no run": lambda state: {key: value for key, value in state.items() if key != "run"},
    "no settings": lambda state: {key: value for key, value in state.items() if key != "settings"},
    "no data": lambda state: {key: value for key, value in state.items() if key != "data"},
    "data as a number": lambda state: state | {"data": 5},
    "a run as list": lambda state: state | {"run": []},
    "a field too many": lambda state: state | {"run": state["run"] | {"evil": 1}},
    "no plan": lambda state: (
        state | {"run": {key: value for key, value in state["run"].items() if key != "plan"}}
    ),
    "a plan as list": lambda state: state | {"run": state["run"] | {"plan": [1]}},
    "settings as list": lambda state: state | {"settings": [1]},
    "a step as text": lambda state: state | {"run": state["run"] | {"step": "150"}},
    "a step below zero": lambda state: state | {"run": state["run"] | {"step": -5}},
}


@pytest.mark.parametrize("fault", STATES)
def test_a_forged_state_is_refused(run: Path, dataset: Path, fault: str, refused: Callable) -> None:
    def change(path: Path) -> None:
        path.write_text(
            json.dumps(STATES[fault](json.loads(path.read_text(encoding="utf-8")))),
            encoding="utf-8",
        )

    forged(newest(run), "state.json", change)
    refused(train_model, resuming(run, dataset), newest(run))


SETTINGS: dict[str, object] = {
    "": b"",
    "null": b"null",
    "a list": b"[1]",
    "brackets": b"[" * 200_000,
    "latin": b"\xe9",
    "digits": b"9" * 5000,
}
SETTINGS |= {
    "no settings": b"{}",
    "settings as text": b'{"settings": "x"}',
    "NaN": b'{"settings": {"learning_rate": NaN}}',
}
SETTINGS |= {
    "types": b'{"settings": {"n_layer": "2", "resume": 5, "seed": null}}',
    "huge": b'{"settings": {"head_dim": ' + b"9" * 4000 + b"}}",
}


@pytest.mark.parametrize("fault", SETTINGS)
def test_damaged_settings_are_refused(
    run: Path, dataset: Path, fault: str, refused: Callable
) -> None:
    (run / "settings.json").write_bytes(SETTINGS[fault])
    refused(train_model, resuming(run, dataset))


@pytest.mark.parametrize(
    "junk",
    [
        b"[" * 200_000,
        b"\xff\xfe",
        b"9" * 5000,
        b'{"kind": "step", "step": "x", "loss": []}',
        b'{"kind": [], "step": {}}',
        rb'{"kind": "\ud800", "step": 1}',
        b"null\n5\n[]",
    ],
)
def test_a_damaged_log_does_not_stop_a_run(
    run: Path, dataset: Path, junk: bytes, count_fault: Callable
) -> None:
    count_fault("tried")
    (run / "log.jsonl").write_bytes(junk + b"\n" + (run / "log.jsonl").read_bytes())
    assert train_model([str(word) for word in resuming(run, dataset)]) == 0
    count_fault("survived")
