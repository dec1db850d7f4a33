"""Stopping a run by signals and kills, resuming it exactly, overwriting it."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from shuoshu.core.errors import REPO_ROOT
from shuoshu.core.files import sha256_of
from shuoshu.core.run_log import RunLog
from shuoshu.models.weights import read_metadata
from shuoshu.text.dataset import TextDataset
from shuoshu.training import checkpoints, resume, step
from tests.in_process import killed_at, records, train_model

EXACT = [
    "--dropout=0.1",
    "--max_iters=60",
    "--eval_interval=30",
    "--save_interval=10",
    "--sample_tokens=0",
]


def evals(out_dir):
    return RunLog(out_dir / "log.jsonl").read("eval")


def weights(out_dir):
    return sha256_of(out_dir / "model.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(tiny, tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("exact") / "out"
    assert train_model([*tiny, *EXACT, f"--out_dir={out_dir}"]) == 0
    return out_dir


def start(arguments):
    return subprocess.Popen(
        [sys.executable, "train.py", *arguments],
        cwd=REPO_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(path, process):
    until = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.002)


def test_a_run_killed_in_mid_epoch_and_resumed_ends_with_the_same_bytes(
    tiny, uninterrupted, tmp_path, dataset
):
    out_dir = tmp_path / "out"
    command = [*tiny, *EXACT, f"--out_dir={out_dir}"]
    process = start(command)
    wait_for(out_dir / "checkpoints" / "step-000020", process)
    process.kill()
    process.wait()
    assert (
        TextDataset(dataset, "train").rows_per_epoch(64) / 4
    ) % 10  # no checkpoint falls on the end of an epoch
    assert not (out_dir / "checkpoints" / "step-000060").exists()
    assert train_model([*command, "--resume"]) == 0
    assert weights(out_dir) == weights(uninterrupted)
    assert [(r["step"], r["val_loss"]) for r in evals(out_dir)] == [
        (r["step"], r["val_loss"]) for r in evals(uninterrupted)
    ]


@pytest.mark.parametrize("left_out", ["nothing", "optimizer", "step"])
def test_a_resumed_run_needs_the_optimizer_state_and_the_step(
    tiny, uninterrupted, tmp_path, monkeypatch, left_out
):
    out_dir = tmp_path / "out"
    command = [*tiny, *EXACT, f"--out_dir={out_dir}"]
    real_load = resume.load_state_tensors
    assert train_model(command, killed_at(25)) == 130
    if left_out == "optimizer":
        monkeypatch.setattr(resume, "load_state_tensors", lambda *args: None)
    if left_out == "step":
        monkeypatch.setattr(step, "seed_step", lambda seed, step, rank: torch.manual_seed(seed))
    assert train_model([*command, "--resume"]) == 0
    monkeypatch.setattr(resume, "load_state_tensors", real_load)
    assert (weights(out_dir) == weights(uninterrupted)) == (left_out == "nothing")


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGTERM to send")
@pytest.mark.parametrize(
    "number, code",
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (getattr(signal, "SIGHUP", None), 129)],
)  # none on Windows
def test_a_signal_saves_and_prints_how_to_resume_and_loses_no_step(
    tiny, uninterrupted, tmp_path, number, code
):
    out_dir = tmp_path / "out put 书"
    command = [*tiny, *EXACT, "--save_interval=1000", f"--out_dir={out_dir}"]
    process = start(command)
    wait_for(out_dir / "loss.png", process)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == code, output
    step = int(re.search(r"after step (\d+)", output)[1])
    assert checkpoints.newest_checkpoint(out_dir)[0].name == f"step-{step:06d}"
    (again,) = [line for line in output.splitlines() if line.startswith("  python train.py")]
    assert train_model(shlex.split(again)[2:]) == 0  # the printed command
    assert weights(out_dir) == weights(uninterrupted)


def test_a_second_interrupt_stops_at_once(monkeypatch):
    from shuoshu.core.distributed import StopFlag

    with StopFlag() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.raised == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_run_killed_before_its_first_step_is_resumed(tiny, uninterrupted, tmp_path):
    out_dir = tmp_path / "out"
    assert train_model([*tiny, *EXACT, f"--out_dir={out_dir}"], killed_at(0)) == 130
    (out_dir / ".model.safetensors.123").write_bytes(b"half")
    (out_dir / ".mine.json.1").write_text("a user's own", encoding="utf-8")
    (out_dir / "checkpoints" / ".step-000010.123").mkdir()
    assert train_model([*tiny, *EXACT, f"--out_dir={out_dir}", "--resume"]) == 0
    assert weights(out_dir) == weights(uninterrupted)
    assert sorted(path.name for path in out_dir.rglob(".*")) == [
        ".lock",
        ".mine.json.1",
    ]  # only what the kill left is removed


def test_resuming_an_empty_folder_starts_a_new_run(tiny, tmp_path, capsys):
    assert (
        train_model(
            [*tiny, f"--out_dir={tmp_path}", "--resume", "--max_iters=1", "--sample_tokens=0"]
        )
        == 0
    )
    assert "starting a new run" in capsys.readouterr().out


def test_a_run_with_init_from_is_resumed_without_that_model(tiny, pretrained, tmp_path):
    source = shutil.copytree(pretrained, tmp_path / "source")
    command = [
        *tiny,
        f"--init_from={source}",
        f"--out_dir={tmp_path / 'out'}",
        "--max_iters=4",
        "--save_interval=2",
        "--sample_tokens=0",
    ]
    assert train_model(command) == 0
    shutil.rmtree(source)
    assert train_model([f"--out_dir={tmp_path / 'out'}", "--resume", "--max_iters=6"]) == 0


def test_a_finished_run_resumes_unchanged_or_longer(uninterrupted, tmp_path, tiny, capsys):
    out_dir = shutil.copytree(uninterrupted, tmp_path / "out")
    before = weights(out_dir)
    assert train_model([f"--out_dir={out_dir}", "--resume"]) == 0  # the settings are the saved ones
    assert weights(out_dir) == before
    assert train_model([f"--out_dir={out_dir}", "--resume", "--max_epochs=3"]) == 0
    output = capsys.readouterr().out
    assert "changed: max_epochs, max_iters" in output
    assert evals(out_dir)[-1]["step"] > 60


def test_a_resumed_run_keeps_its_shape_and_its_data(uninterrupted, capsys):
    assert (
        train_model(
            [
                f"--out_dir={uninterrupted}",
                "--resume",
                "--n_embd=32",
                "--seed=3",
                "--optimizer=adamw",
            ]
        )
        == 2
    )
    assert (
        "n_embd=32 (was 64), optimizer=adamw (was muon), seed=3 (was 1337)"
        in capsys.readouterr().err
    )


def test_the_log_names_the_model_that_the_lost_part_of_a_run_kept(tiny, tmp_path, capsys):
    command = [*tiny, "--max_iters=8", "--eval_interval=2", "--save_interval=4"]
    command += ["--sample_tokens=0", f"--out_dir={tmp_path / 'out'}"]
    assert train_model(command, killed_at(7)) == 130
    model = read_metadata(tmp_path / "out" / "model.safetensors")
    assert model["step"] == "6"  # better than that of the checkpoint
    assert train_model([f"--out_dir={tmp_path / 'out'}", "--resume", "--max_iters=4"]) == 0
    output = capsys.readouterr().out
    assert "step-000004" in output and "is of step 6, from the lost part of the run" in output
    assert "at step 4: the model of step 6, from the lost part of the run, is in" in output
    (end,) = records(tmp_path / "out", "end")
    assert (end["best_step"], end["kept_step"]) == (4, 6)


def test_a_damaged_newest_checkpoint_is_skipped(uninterrupted, tmp_path, capsys):
    out_dir = shutil.copytree(uninterrupted, tmp_path / "out")
    (out_dir / "checkpoints" / "step-000060" / "model.safetensors").write_bytes(b"")
    assert train_model([f"--out_dir={out_dir}", "--resume"]) == 0
    output = capsys.readouterr().out
    assert "step-000060: model.safetensors is damaged" in output and "step-000050" in output
    assert weights(out_dir) == weights(uninterrupted)


def test_an_earlier_run_is_overwritten_only_with_overwrite(tiny, uninterrupted, tmp_path, capsys):
    out_dir = shutil.copytree(uninterrupted, tmp_path / "out")
    (out_dir / "notes.txt").write_text("mine", encoding="utf-8")
    before = weights(out_dir)
    for mistake in (
        ["--max_iters=2"],
        ["--overwrite", "--block_size=100000"],
        ["--overwrite", f"--init_from={out_dir}"],
        ["--overwrite", "--dataset=nowhere"],
    ):
        assert train_model([*tiny, f"--out_dir={out_dir}", *mistake]) == 2
        assert weights(out_dir) == before
    assert "--resume" in capsys.readouterr().err
    assert train_model([*tiny, f"--out_dir={out_dir}", "--max_iters=2", "--overwrite"]) == 0
    assert (
        weights(out_dir) != before and (out_dir / "notes.txt").read_text(encoding="utf-8") == "mine"
    )
    assert [path.name for path in checkpoints.list_checkpoints(out_dir)] == [
        "step-000001",
        "step-000002",
    ]
