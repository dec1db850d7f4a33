"""--dry_run: what it measures and prints."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from shuoshu.core.settings import TrainSettings
from shuoshu.sft.dataset import QuestionDataset
from shuoshu.training import dry_run
from shuoshu.training.schedule import RunLength
from tests.in_process import train_model
from tests.labelled_texts import SETTINGS as LABEL_SETTINGS
from tests.labelled_texts import prepared


def test_a_dry_run_prints_the_size_and_writes_nothing(tiny, tmp_path, capsys):
    assert (
        train_model([*tiny, f"--out_dir={tmp_path / 'out'}", "--max_iters=100", "--dry_run"]) == 0
    )
    output = capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    for word in (
        "parameters",
        "4 rows, 256 trained tokens",
        "100 steps",
        "epochs",
        "memory",
        "disk",
    ):
        assert word in output


def test_a_dry_run_counts_the_answers_tokens(sft, qa: Path, tmp_path: Path, capsys) -> None:
    assert train_model([*sft, "--dry_run", "--max_iters=32", f"--out_dir={tmp_path / 'out'}"]) == 0
    file = QuestionDataset(qa, "train")
    output = capsys.readouterr().out
    assert (
        f"16 rows, {file.trained.sum() / len(file) * 16:,.0f} trained tokens" in output
        and f"32 steps, {32 * 16 / len(file):.2f} epochs" in output
    )


def test_a_dry_run_measures_steps_of_all_widths_and_the_widest(
    sft, qa: Path, tmp_path: Path, monkeypatch
) -> None:
    steps: list[int] = []
    real = dry_run.update_weights

    def record(trainer, data, state, skips):
        steps.append(state.step)
        return real(trainer, data, state, skips)

    monkeypatch.setattr(dry_run, "update_weights", record)
    command = [*sft, "--batch_size=4", "--gradient_accumulation_steps=1", "--eval_questions=2"]
    assert train_model([*command, "--dry_run", f"--out_dir={tmp_path / 'out'}"]) == 0
    file = QuestionDataset(qa, "train", 4)
    count = len(file) // 4
    entries = file.entries(0, 4 * count, TrainSettings.seed).reshape(count, 4)
    widths = file.lengths[entries].max(axis=1)
    measured = steps[-dry_run.MEASURED_STEPS :]
    assert len(set(measured)) == len(measured)
    assert widths[measured].mean() == pytest.approx(widths.mean(), rel=0.05)
    assert max(widths[steps]) == widths.max()


def test_a_dry_run_weighs_the_part_that_reads_and_the_part_that_labels(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    """The first takes 3 s a step, the second 1 s; a quarter of the run reads."""

    def time_steps(run, steps):
        return [3.0 if run.state.reads else 1.0] * len(steps)

    monkeypatch.setattr(dry_run, "time_steps", time_steps)
    command = [*LABEL_SETTINGS, "--read_fraction=0.25", f"--dataset={prepared(tmp_path)}"]
    assert train_model([*command, "--dry_run", f"--out_dir={tmp_path / 'out'}"]) == 0
    assert "in 1.500 s" in capsys.readouterr().out


def test_a_dry_run_stops_a_long_evaluation(sft, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(dry_run, "MAX_EVALUATION_SECONDS", 0.0)
    assert train_model([*sft, "--dry_run", f"--out_dir={tmp_path / 'out'}"]) == 0
    output = capsys.readouterr().out
    assert "evaluation   over 0.0 s" in output and "plus the evaluations" in output


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"max_iters": 100}, (100, 11, 100 * 0.5 + 11 * 3)),
        ({"max_iters": 100, "eval_interval": 40}, (100, 4, 100 * 0.5 + 4 * 3)),
        ({"max_minutes": 10}, (1134, 11, 600)),
        ({"max_minutes": 1}, (90, 5, 60)),
    ],
)
def test_the_time_of_a_run_includes_its_evaluations(settings, expected) -> None:
    run = SimpleNamespace(settings=TrainSettings(**settings))
    length = RunLength(run.settings, 100.0)
    assert dry_run.run_time(run, length, 0.5, 3.0) == expected
