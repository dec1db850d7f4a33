"""Disks that become full, read-only or disappear; two runs in one folder.

Files that are already written stay intact, and the exit code says whether the end was saved.
"""

import errno
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from shuoshu.core import files
from shuoshu.core.errors import UserError
from shuoshu.core.run_log import RunLog
from shuoshu.models import weights
from shuoshu.training import checkpoints
from shuoshu.training.data import RunData
from tests.in_process import before_steps, train_model

RUN = [
    "--max_iters=20",
    "--save_interval=5",
    "--eval_interval=10",
    "--sample_tokens=0",
    "--optimizer=adamw",
]


def is_newest_and_valid(out_dir: Path, step: int) -> bool:
    """Whether the newest checkpoint is this one, valid, and the model loads."""
    newest, wrong = checkpoints.newest_checkpoint(out_dir)
    weights.load_model(out_dir)
    return newest.name == f"step-{step:06d}" and not wrong


# ---------------------------------------------------------------- no room


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 12 MB; a run needs 9 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_reported_and_the_next_save_is_tried(tiny, small_disk, monkeypatch, capsys):
    ballast = small_disk / "ballast"

    def happen(step):
        if step == 7:
            with ballast.open("wb") as file:
                file.write(bytes(shutil.disk_usage(small_disk).free - 50_000))
        if step == 17:
            ballast.unlink()

    argv = [*tiny, *RUN, f"--out_dir={small_disk / 'out'}"]
    assert train_model(argv, before_steps(happen)) == 0
    output = capsys.readouterr().out
    for step in (10, 15):
        where = f"the checkpoint of step {step} to {small_disk / 'out'}"
        assert f"can't write {where}: no room on the disk: 2." in output
    assert "can't write model.safetensors" in output and is_newest_and_valid(small_disk / "out", 20)


def test_a_disk_that_stays_full_ends_the_run_with_an_error(tiny, small_disk, monkeypatch, capsys):
    def happen(step):
        if step == 7:
            (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free - 4096))
            for module in (checkpoints, weights):  # the check can't foresee this
                monkeypatch.setattr(module, "require_disk_space", lambda *args: None)

    argv = [*tiny, *RUN, f"--out_dir={small_disk / 'out'}"]
    assert train_model(argv, before_steps(happen)) == 2
    output = capsys.readouterr()
    assert (
        "No space left on device; the files already written are intact, training continues"
        in output.out
    )
    assert (
        "step 20 can't be saved" in output.err
        and "the checkpoint of step 5 is intact" in output.err
        and "Traceback" not in output.err
    )
    assert is_newest_and_valid(small_disk / "out", 5) and not [
        path for path in (small_disk / "out").rglob(".*") if path.name != ".lock"
    ]
    (small_disk / "ballast").unlink()
    monkeypatch.undo()
    assert train_model([*tiny, *RUN, f"--out_dir={small_disk / 'out'}", "--resume"]) == 0


def test_a_disk_that_turns_read_only_is_reported_and_checkpoints_stay_valid(
    tiny, tmp_path, monkeypatch, capsys
):
    """Raises the error that the system would raise: a test can't remount a disk with open files."""
    real = Path.open

    def refused(self, mode="r", *args, **kwargs):
        if set(mode) & set("wa+"):
            raise OSError(errno.EROFS, "Read-only file system", str(self))
        return real(self, mode, *args, **kwargs)

    def happen(step):
        if step == 7:
            monkeypatch.setattr(Path, "open", refused)

    argv = [*tiny, *RUN, f"--out_dir={tmp_path / 'out'}"]
    assert train_model(argv, before_steps(happen)) == 2
    monkeypatch.undo()
    output = capsys.readouterr()
    assert (
        output.out.count("can't write log.jsonl to") == 1
        and "step 20 can't be saved" in output.err
        and "Read-only file system" in output.err
    )
    assert "Traceback" not in output.err and is_newest_and_valid(tmp_path / "out", 5)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
def test_training_continues_when_its_output_cannot_be_written(fork_server, tiny, tmp_path):
    assert (
        fork_server.wait(
            fork_server.start([*tiny, *RUN, f"--out_dir={tmp_path / 'out'}"], Path("/dev/full"))
        )
        == 0
    )
    assert is_newest_and_valid(tmp_path / "out", 20)


def test_too_little_disk_space_is_an_error_before_training(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        shutil,
        "disk_usage",
        lambda folder: (
            (10**9, 10**9 - 10**6, 10**6) and type("usage", (), {"total": 10**9, "free": 10**6})
        ),
    )
    assert train_model([*tiny, *RUN, f"--out_dir={tmp_path / 'out'}"]) == 2
    err = capsys.readouterr().err
    assert str(tmp_path / "out") in err and "are needed, 1.0 MB are free" in err


@pytest.mark.parametrize("size", [20_000, 300_000, 1_000_000])
def test_a_write_that_fails_midway_leaves_the_old_checkpoint(fork_server, tiny, tmp_path, size):
    """The system fails each write beyond `size` bytes: in the first tensors and in the last."""
    assert fork_server.train(
        [*tiny, *RUN, f"--out_dir={tmp_path / 'out'}"],
        tmp_path / "output",
        faults={0: {"largest_file": size}},
    ) == [2]
    output = (tmp_path / "output.0").read_text(encoding="utf-8")
    assert (
        "step 20 can't be saved" in output
        and "File too large" in output
        and "Traceback" not in output
    )
    assert is_newest_and_valid(tmp_path / "out", 0) and not [
        path for path in (tmp_path / "out").rglob(".*") if path.name != ".lock"
    ]


def test_a_deleted_out_dir_is_not_recreated(tiny, tmp_path, capsys):
    take_step = before_steps(lambda step: shutil.rmtree(tmp_path / "out") if step == 7 else None)
    assert train_model([*tiny, *RUN, f"--out_dir={tmp_path / 'out'}"], take_step) == 2
    output = capsys.readouterr()
    assert (
        "can't write the checkpoint of step 10" in output.out
        and "step 20 can't be saved" in output.err
        and "Traceback" not in output.err
    )
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_reads_back_differently_is_not_used(tiny, tmp_path, monkeypatch, capsys):
    real = weights.write_tensors

    def flipped(path, tensors, metadata):
        digest = real(path, tensors, metadata)
        if metadata["step"] == "10":
            with path.open("r+b") as file:
                file.seek(-9, os.SEEK_END)
                file.write(b"\xff")
        return digest

    monkeypatch.setattr(checkpoints, "write_tensors", flipped)
    assert train_model([*tiny, *RUN, "--max_iters=12", f"--out_dir={tmp_path / 'out'}"]) == 0
    assert "step 10 to" in (output := capsys.readouterr().out) and "does not read back" in output
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path / "out")] == [
        "step-000005",
        "step-000012",
    ]


# ---------------------------------------------------------------- which checkpoint is removed


def test_damaged_newer_checkpoints_do_not_push_out_new_ones(tiny, tmp_path):
    command = [*tiny, *RUN, f"--out_dir={tmp_path / 'out'}"]
    assert train_model(command) == 0
    home = tmp_path / "out" / "checkpoints"
    shutil.copytree(home / "step-000015", home / "step-000018")
    for name in ("step-000018", "step-000020"):
        (home / name / "model.safetensors").write_bytes(b"")
    assert train_model([*command, "--resume", "--max_iters=16"]) == 0
    assert has_newest(tmp_path / "out", "step-000016", 2)


def has_newest(out_dir: Path, name: str, damaged: int) -> bool:
    newest, wrong = checkpoints.newest_checkpoint(out_dir)
    return newest.name == name and len(wrong) == damaged


def test_a_replaced_checkpoint_stays_valid_until_the_rename(pretrained, tmp_path, monkeypatch):
    model = weights.load_model(pretrained).model
    checkpoints.save_checkpoint(tmp_path, 10, model, {}, {"fact": "old"})
    real = Path.rename

    def killed(self, target):
        if self.name.startswith("."):
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save_checkpoint(tmp_path, 10, model, {}, {"fact": "new"})
    monkeypatch.undo()
    newest, wrong = checkpoints.newest_checkpoint(tmp_path)
    assert checkpoints.load_checkpoint(newest)[2]["fact"] == "old" and not wrong
    checkpoints.save_checkpoint(tmp_path, 10, model, {}, {"fact": "newest"})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000010"]
    assert (
        checkpoints.load_checkpoint(tmp_path / "checkpoints" / "step-000010")[2]["fact"] == "newest"
    )


# ---------------------------------------------------------------- two runs


def test_a_second_run_is_refused_and_a_kill_releases_the_lock(fork_server, tiny, tmp_path, capsys):
    command = [*tiny, *RUN, f"--out_dir={tmp_path / 'out'}"]
    first = fork_server.start(command, tmp_path / "output", slow={"step": 0.5})
    until = time.monotonic() + 60
    while not (tmp_path / "out" / "model.safetensors").exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    for how in ("--resume", "--overwrite"):
        assert train_model([*command, how]) == 2
        err = capsys.readouterr().err
        assert f"in use by another training (process {first} on " in err and err.count("\n") == 1
    assert {
        path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")
    } == before
    assert fork_server.train([*command, "--resume"], tmp_path / "two", 2) == [
        2,
        2,
    ]  # both ranks of the second run
    os.kill(first, signal.SIGKILL)
    fork_server.wait(first)
    assert train_model([*command, "--resume"]) == 0


def test_a_file_system_without_locks_needs_no_lock(tmp_path, monkeypatch):
    def unknown(handle):
        raise OSError(errno.ENOLCK, "No locks available")

    with files.Lock(tmp_path) as first, files.Lock(tmp_path) as second:
        first.take()
        first.take()
        with pytest.raises(UserError, match="in use by another"):
            second.take()
        monkeypatch.setattr(files, "_lock", unknown)
        with files.Lock(tmp_path) as third:
            third.take()


def test_an_interrupted_evaluation_is_repeated(tiny, tmp_path, monkeypatch):
    """Interrupted in the evaluation of step 10, which is not logged.

    The log of the resumed run equals that of an uninterrupted one.
    """
    command = [*tiny, *RUN, "--dropout=0.1"]
    assert train_model([*command, f"--out_dir={tmp_path / 'whole'}"]) == 0
    real, evaluations = RunData.val_batches, []

    def interrupted(*args):
        evaluations.append(None)  # of steps 0 and 10
        for number, batch in enumerate(real(*args)):
            if len(evaluations) == 2 and number == 2:
                signal.raise_signal(signal.SIGTERM)
            yield batch

    monkeypatch.setattr(RunData, "val_batches", interrupted)
    assert train_model([*command, f"--out_dir={tmp_path / 'cut'}"]) == 143
    assert [r["step"] for r in RunLog(tmp_path / "cut" / "log.jsonl").read("eval")] == [
        0
    ] and is_newest_and_valid(tmp_path / "cut", 10)
    monkeypatch.undo()
    assert train_model([f"--out_dir={tmp_path / 'cut'}", "--resume"]) == 0
    logs = [
        [(r["step"], r["val_loss"]) for r in RunLog(tmp_path / name / "log.jsonl").read("eval")]
        for name in ("whole", "cut")
    ]
    assert logs[0] == logs[1] and len(logs[0]) == 3
    assert files.sha256_of(tmp_path / "cut" / "model.safetensors") == files.sha256_of(
        tmp_path / "whole" / "model.safetensors"
    )
