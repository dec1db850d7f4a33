"""Which model a fine-tuning keeps: by ROUGE-L, by loss, within noise; patience."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from shuoshu.evaluation.loss import Score
from shuoshu.models import weights as models_weights
from shuoshu.training import validate
from tests.in_process import records, train_model


def answering(monkeypatch: pytest.MonkeyPatch, *each: list[float]) -> None:
    """Makes the evaluations measure these ROUGE-L scores."""
    left = iter(each)

    def one(*args):
        scores = next(left)
        return (
            {"val_rouge_l": float(np.mean(scores)), "val_exact_match": 0.0, "val_stop_rate": 1.0},
            scores,
            [],
        )

    monkeypatch.setattr(validate, "answer_questions", one)


@pytest.mark.parametrize("select_by, kept", [("auto", 20), ("rouge", 20), ("loss", 10)])
def test_the_model_that_answers_best_is_kept_or_the_one_with_the_lowest_loss(
    sft,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    select_by: str,
    kept: int,
) -> None:
    losses, rouges = iter([3.0, 2.5, 1.0, 1.5, 2.0, 2.6]), [0.1, 0.3, 0.2, 0.6, 0.9, 0.8]
    monkeypatch.setattr(validate, "score", lambda *args: Score(next(losses) * 100, 100, 10.0, None))
    answering(monkeypatch, *([rouge] * 4 for rouge in rouges))
    command = [
        *sft,
        f"--select_by={select_by}",
        f"--out_dir={tmp_path / 'out'}",
        "--max_iters=25",
        "--eval_interval=5",
    ]
    assert train_model(command) == 0
    assert models_weights.read_metadata(tmp_path / "out" / "model.safetensors")["step"] == str(kept)
    output = capsys.readouterr().out
    assert (
        "best       val loss 1.0000 at step 10"
        if select_by == "loss"
        else "best       ROUGE-L 0.9000 at step 20"
    ) in output
    evals = records(tmp_path / "out", "eval")
    assert [(r["val_loss"], r["val_rouge_l"]) for r in evals] == [
        (3.0, 0.1),
        (2.5, 0.3),
        (1.0, 0.2),
        (1.5, 0.6),
        (2.0, 0.9),
        (2.6, 0.8),
    ]
    end = records(tmp_path / "out", "end")[0]
    assert end["best_step"] == kept and end[
        "best_loss" if select_by == "loss" else "best_rouge_l"
    ] == (1.0 if select_by == "loss" else 0.9)


def test_while_all_answers_are_wrong_the_lowest_loss_decides(
    sft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 2.5, 2.0, 2.2])
    monkeypatch.setattr(validate, "score", lambda *args: Score(next(losses) * 100, 100, 10.0, None))
    answering(monkeypatch, *[[0.0] * 4] * 4)
    assert (
        train_model([*sft, f"--out_dir={tmp_path / 'out'}", "--max_iters=6", "--eval_interval=2"])
        == 0
    )
    assert records(tmp_path / "out", "end")[0]["best_step"] == 4
    assert models_weights.read_metadata(tmp_path / "out" / "model.safetensors")["step"] == "4"


def test_only_better_answers_reset_the_patience(
    sft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, [0.1, 0.1], [0.3, 0.3], [0.3, 0.2], [0.3, 0.29], [0.9, 0.9])
    assert (
        train_model(
            [
                *sft,
                f"--out_dir={tmp_path / 'out'}",
                "--max_iters=25",
                "--eval_interval=2",
                "--patience=2",
            ]
        )
        == 0
    )
    (end,) = records(tmp_path / "out", "end")
    assert (end["step"], end["best_step"], end["kept_step"]) == (6, 2, 6)
    assert [record["kept"] for record in records(tmp_path / "out", "eval")] == [True] * 4


NONE, BEST = [0.0] * 4, [1.0, 1.0, 1.0, 0.0]
LATER = {
    "worse in one": ([[0.7, 1.0, 1.0, 0.0]], 10),
    "better in one, worse in another": ([[0.0, 1.0, 1.0, 0.8]], 10),
    "worse in three": ([[0.9, 0.9, 0.9, 0.0]], 5),
    "a little worse, twice": ([[0.7, 1.0, 1.0, 0.0], [0.6, 0.9, 0.9, 0.0]], 10),
    "within noise of the later one, not of the best": (
        [[0.7, 1.0, 1.0, 0.0], [0.7, 0.8, 1.0, 0.0]],
        10,
    ),
    "within noise only later": ([[0.9, 0.9, 0.9, 0.0], [0.7, 1.0, 1.0, 0.0]], 15),
}


@pytest.mark.parametrize("case", LATER)
@pytest.mark.parametrize("is_resumed", [False, True])
def test_a_later_model_within_noise_of_the_best_is_kept(
    sft,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: str,
    is_resumed: bool,
) -> None:
    (later, kept), out_dir = LATER[case], tmp_path / "out"
    answering(monkeypatch, NONE, BEST, *later)
    command, length = [*sft, f"--out_dir={out_dir}", "--eval_interval=5"], 5 * len(later) + 5
    if is_resumed:
        assert train_model([*command, "--max_iters=5"]) == 0
        assert train_model([f"--out_dir={out_dir}", "--resume", f"--max_iters={length}"]) == 0
    else:
        assert train_model([*command, f"--max_iters={length}"]) == 0
    assert models_weights.read_metadata(out_dir / "model.safetensors")["step"] == str(kept)
    end = records(out_dir, "end")[-1]
    assert (end["best_step"], end["best_rouge_l"], end["kept_step"]) == (5, 0.75, kept)
    model = "that model" if kept == 5 else f"the model of step {kept}, within noise of it,"
    line = f"best       ROUGE-L 0.7500 at step 5: {model} is in {out_dir}"
    assert line in capsys.readouterr().out


def test_a_difference_in_one_answer_is_always_within_noise() -> None:
    """The difference is exactly one standard error; rounding must not decide."""
    for count in range(2, 100):
        for worse in (0.05, 0.3, 0.7, 0.9):
            best, case = [1.0] * count, (count, worse)
            assert validate.is_within_noise(best, [worse] + [1.0] * (count - 1)), case
            assert not validate.is_within_noise(best, [worse] * 2 + [1.0] * (count - 2)), case


def test_with_labels_the_best_model_is_kept(
    sft, qa: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    shutil.copytree(qa, data)
    meta = json.loads((data / "meta.json").read_text(encoding="utf-8"))
    (data / "meta.json").write_text(json.dumps(meta | {"labels": ["好", "坏"]}), encoding="utf-8")
    answering(monkeypatch, NONE, BEST, [0.0, 1.0, 1.0, 0.8])
    assert (
        train_model(
            [
                *sft,
                f"--dataset={data}",
                f"--out_dir={tmp_path / 'out'}",
                "--eval_interval=5",
                "--max_iters=10",
            ]
        )
        == 0
    )
    assert models_weights.read_metadata(tmp_path / "out" / "model.safetensors")["step"] == "5"


def test_a_run_resumed_with_another_measure_forgets_its_best(sft, tmp_path: Path) -> None:
    out_dir = tmp_path / "out"
    assert train_model([*sft, f"--out_dir={out_dir}", "--max_iters=20", "--eval_interval=10"]) == 0
    assert (
        train_model([f"--out_dir={out_dir}", "--resume", "--select_by=loss", "--max_iters=30"]) == 0
    )
    end = records(out_dir, "end")[-1]
    assert (
        end["best_loss"] == min(r["val_loss"] for r in records(out_dir, "eval") if r["step"] > 20)
        and "best_rouge_l" not in end
    )
