"""A finished run on questions leaves what its model needs to recall answers, or says why not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shuoshu.answering import knowledge
from shuoshu.answering.knowledge import ANSWERS, TAUGHT, is_current, read_knowledge
from shuoshu.core.errors import UserError
from shuoshu.core.files import sha256_of
from shuoshu.evaluation import model_knowledge
from shuoshu.generation.sampling import TextGenerator
from shuoshu.models import weights
from shuoshu.training import loop
from tests.in_process import killed_at, train_model


@pytest.fixture
def finished(tuned: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, without the knowledge."""
    out_dir = shutil.copytree(tuned, tmp_path / "out")
    for name in (ANSWERS, TAUGHT):
        (out_dir / name).unlink()
    return out_dir


def resumed(out_dir: Path, *more: str) -> int:
    return train_model(["--resume", f"--out_dir={out_dir}", "--sample_tokens=0", *more])


def run_files(out_dir: Path) -> dict[str, str]:
    """The hashes of the model and of the checkpoints."""
    files = [out_dir / "model.safetensors", *(out_dir / "checkpoints").rglob("*")]
    return {str(path): sha256_of(path) for path in files if path.is_file()}


def test_a_finished_run_leaves_both_files(tuned: Path, qa: Path) -> None:
    assert is_current(tuned)
    found = read_knowledge(tuned, ["一段。"])
    records = (qa / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(found.taught.questions) == len(records)
    assert found.fit.auto_rouge_l > 0.9 and found.lookups.book is not None


def test_a_finished_run_that_lacks_them_gets_them_when_it_is_resumed(
    tuned: Path, finished: Path, capsys
) -> None:
    before = run_files(finished)
    assert resumed(finished) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("answers    "))
    assert "ROUGE-L on validation questions" in line and "auto answers by default" in line
    assert (finished / TAUGHT).read_bytes() == (tuned / TAUGHT).read_bytes()
    assert is_current(finished) and run_files(finished) == before


def test_a_damaged_file_is_replaced(finished: Path) -> None:
    (finished / ANSWERS).write_text('{"format": 1}', encoding="utf-8")
    assert resumed(finished) == 0 and read_knowledge(finished, []) is not None


def test_more_training_makes_them_anew(tuned: Path, tmp_path: Path, monkeypatch) -> None:
    """An interrupted run leaves the older files, which its new weights don't use."""
    out_dir = shutil.copytree(tuned, tmp_path / "out")
    command = ["--resume", f"--out_dir={out_dir}", "--max_iters=124", "--eval_interval=2"]
    command += ["--select_by=loss", "--sample_tokens=0"]
    monkeypatch.setattr(loop, "fit_knowledge", lambda *args: pytest.fail("it is not finished"))
    assert train_model(command, killed_at(123)) == 130
    monkeypatch.undo()
    assert train_model(command) == 0
    named = json.loads((out_dir / ANSWERS).read_text(encoding="utf-8"))["model_sha256"]
    assert is_current(out_dir) and named == sha256_of(out_dir / "model.safetensors")


def test_a_run_on_texts_prepares_nothing(pretrained: Path, capsys, tmp_path: Path) -> None:
    out_dir = shutil.copytree(pretrained, tmp_path / "out")
    assert resumed(out_dir) == 0 and "answers    " not in capsys.readouterr().out
    assert not (out_dir / ANSWERS).exists() and not (out_dir / TAUGHT).exists()


# ---------------------------------------------------------------- failures


def fail_with(error: BaseException) -> Callable:
    def fail(*args: object, **named: object) -> None:
        raise error

    return fail


def out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    monkeypatch.setattr(TextGenerator, "complete", fail_with(error))


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    error = OSError(28, "No space left on device")
    monkeypatch.setattr(knowledge, "write_synced_text", fail_with(error))


def lost_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    error = UserError("train.jsonl is damaged")
    monkeypatch.setattr(model_knowledge, "read_questions", fail_with(error))


@pytest.mark.parametrize(
    "happen, reason",
    [
        (out_of_memory, "out of memory"),
        (full_disk, "No space left on device"),
        (lost_questions, "train.jsonl is damaged"),
    ],
)
def test_a_failure_after_the_run_is_a_line_and_the_run_has_ended_well(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys, happen, reason
) -> None:
    before = run_files(finished)
    happen(monkeypatch)
    assert resumed(finished) == 0
    output = capsys.readouterr()
    assert f"answers    not prepared: {reason}. The run is saved" in output.out
    assert f"python eval_metrics.py {finished}" in output.out and "Traceback" not in output.err
    assert run_files(finished) == before and not (finished / ANSWERS).exists()
    assert not list(finished.glob(".*json*"))


def test_ctrl_c_during_the_fit_ends_calmly(finished: Path, monkeypatch, capsys) -> None:
    before = run_files(finished)
    monkeypatch.setattr(TextGenerator, "complete", fail_with(KeyboardInterrupt()))
    assert resumed(finished) == 130
    output = capsys.readouterr()
    assert "answers    not prepared: interrupted" in output.out
    assert output.err.splitlines()[-1] == "interrupted" and "Traceback" not in output.err
    assert run_files(finished) == before and weights.load_model(finished)
    assert not (finished / ANSWERS).exists()
