"""eval_metrics.py with the folders of others' models and with adapters."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from shuoshu.core.command_settings import EvalSettings
from shuoshu.evaluation import evaluated_model
from shuoshu.evaluation.evaluated_model import MAX_LOGITS, MAX_WINDOW, EvaluatedModel
from shuoshu.models.purpose import Purpose
from shuoshu.sft.dataset import QuestionDataset, answer_batches
from tests.evaluation.helpers import measure, prepare_questions, prepare_text, refused, value
from tests.models.adapter_folders import write_adapter
from tests.models.families import write_model

CONTEXT = 4096
QUICK = ("--split=val", "--limit=3", "--max_new_tokens=4", "--block_size=128")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("foreign")
    return write_model(root / "model", "llama", max_position_embeddings=CONTEXT, head_dim=16)


@pytest.fixture(scope="module")
def questions(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"question": f"The lamp {n}?", "answer": f"the {n} lamp is it"} for n in range(10)]
    return prepare_questions(
        tmp_path_factory.mktemp("qa"), "qa", rows, folder, "--val_fraction=0.3"
    )


@pytest.fixture(scope="module")
def prose(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = "\n".join(f"The lamp of room {n} is lit, and the man is late." for n in range(150))
    options = f"--tokenizer={folder}", "--val_fraction=0.2"
    return prepare_text(tmp_path_factory.mktemp("prose"), "prose", text, *options)


@pytest.fixture(scope="module")
def measured(folder: Path, questions: Path, prose: Path) -> dict[Path, dict]:
    """eval.json by data folder."""
    return {data: measure(folder, f"--data={data}", *QUICK) for data in (questions, prose)}


def test_perplexity_of_answers_equals_that_of_transformers(folder, questions, measured):
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    [(ids, targets)] = answer_batches(QuestionDataset(questions, "val"), 64)
    with torch.no_grad():
        logits = theirs(torch.from_numpy(ids)).logits.flatten(0, 1).double()
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets).flatten())
    perplexity = value(measured[questions], "val", "perplexity")
    assert math.log(perplexity) == pytest.approx(expected.item(), rel=1e-5)


# ---------------------------------------------------------------- windows and memory


def test_windows_are_no_longer_than_asked_or_trained(folder, tmp_path):
    def window(model: Path, **settings: object) -> int:
        return EvaluatedModel(model, EvalSettings(**settings), CPU).window

    assert window(folder) == MAX_WINDOW == 1024
    assert window(folder, block_size=64) == 64
    assert window(folder, block_size=2 * CONTEXT) == CONTEXT
    trained = Path(shutil.copytree(folder, tmp_path / "trained"))
    saved = {"settings": {"block_size": 2048}, "data": {}, "machine": {}}
    (trained / "settings.json").write_text(json.dumps(saved), encoding="utf-8")
    assert window(trained) == 2048
    saved["settings"]["block_size"] = 256  # of an adapter: its base has the same windows
    (trained / "settings.json").write_text(json.dumps(saved), encoding="utf-8")
    assert window(trained) == MAX_WINDOW


def test_no_more_logits_are_computed_at_once_than_fit(
    folder, prose, questions, measured, monkeypatch
):
    counts = measured[prose]["counts"]["val"]
    assert (counts["window"], counts["stride"]) == (128, 64)
    model = EvaluatedModel(folder, EvalSettings(), CPU)
    vocabulary = model.model.config.vocab_size
    assert model.rows(MAX_LOGITS // vocabulary // 3) == 3 and model.rows(MAX_LOGITS) == 1
    assert model.rows(1) == EvalSettings().batch_size
    monkeypatch.setattr(evaluated_model, "MAX_LOGITS", 1)
    for data in (prose, questions):
        row_by_row = measure(folder, f"--data={data}", *QUICK)
        expected = pytest.approx(value(measured[data], "val", "perplexity"), rel=1e-6)
        assert value(row_by_row, "val", "perplexity") == expected


# ---------------------------------------------------------------- adapters


def test_an_adapter_is_compared_with_its_base_on_the_same_windows(folder, prose, tmp_path):
    base = Path(shutil.copytree(folder, tmp_path / "base"))
    adapter = write_adapter(tmp_path / "adapter", base, Purpose())
    base.rename(tmp_path / "moved")
    moved = f"--base={tmp_path / 'moved'}"
    evaluation = measure(adapter, f"--compare={folder}", f"--data={prose}", moved, *QUICK)
    difference = evaluation["compare"][0]["difference"]["val"]["perplexity"]
    assert difference["value"] != 0 and evaluation["step"] == 7


# ---------------------------------------------------------------- messages


def test_a_model_without_a_training_here_needs_data(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    message = refused(capsys, folder)
    for command in ("prepare.py", "prepare_sft.py"):
        assert f"python {command} FILE --tokenizer={folder}" in message


@pytest.mark.parametrize(
    "task, command", [("questions", "prepare_sft.py"), ("prose", "prepare.py")]
)
def test_data_of_another_tokenizer_names_the_command_that_prepares_it(
    task, command, folder, pretrained, request, tmp_path, capsys
):
    model = Path(
        shutil.copytree(pretrained, tmp_path / "out", ignore=shutil.ignore_patterns("ch*"))
    )
    message = refused(capsys, model, f"--data={request.getfixturevalue(task)}")
    assert "another tokenizer" in message
    assert f"by {command} with --tokenizer={model}" in message


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    folder, questions, monkeypatch, capsys
):
    def refuse(**options: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr("shuoshu.evaluation.evaluate.EvaluatedModel", None)
    message = refused(capsys, folder, f"--data={questions}")
    assert f"can't write to {folder}: Read-only file system" in message
