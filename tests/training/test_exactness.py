"""A resumed run ends with the same bytes as an uninterrupted one.

Each claim is checked by removing what it depends on.
"""

from functools import partial
from pathlib import Path

import pytest
import torch

from shuoshu.core.files import read_json, sha256_of
from shuoshu.core.run_log import RunLog
from shuoshu.training import checkpoints, resume, schedule, step, trainer
from tests.in_process import before_steps, killed_at, train_model

LENGTH = [
    "--dropout=0.1",
    "--max_iters=16",
    "--eval_interval=8",
    "--save_interval=5",
    "--sample_tokens=0",
    "--log_interval=1",
    "--batch_size=4",
]
LENGTH += ["--gradient_accumulation_steps=1", "--eval_questions=2"]


def end(out_dir: Path) -> tuple[str, list]:
    """The hash of the last weights, and every logged loss."""
    newest, _ = checkpoints.newest_checkpoint(out_dir)
    return sha256_of(newest / "model.safetensors"), [
        (r["step"], r.get("loss"), r.get("val_loss"))
        for r in RunLog(out_dir / "log.jsonl").read()
        if r["kind"] != "start"
    ]


@pytest.fixture(scope="module")
def whole(request: pytest.FixtureRequest, tiny, sft, tmp_path_factory) -> dict:
    """The uninterrupted runs, each trained once."""
    made: dict = {}

    def of(task: str, optimizer: str) -> tuple[list[str], Path]:
        if (task, optimizer) not in made:
            changed = ["--question_drop=0.15", "--question_replace=0.15", "--paraphrases=2"]
            command = [
                *(tiny if task == "text" else [*sft, *changed]),
                *LENGTH,
                f"--optimizer={optimizer}",
            ]
            out_dir = tmp_path_factory.mktemp("whole") / "out"
            assert train_model([*command, f"--out_dir={out_dir}"]) == 0
            made[task, optimizer] = command, out_dir
        return made[task, optimizer]

    return of


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("task", ["text", "questions"])
def test_a_resumed_run_equals_an_uninterrupted_one(whole, tmp_path, task, optimizer):
    command, uninterrupted = whole(task, optimizer)
    # 12.75 or 39 steps make an epoch: neither 10 nor 13 ends one
    assert train_model([*command, f"--out_dir={tmp_path / 'out'}"], killed_at(13)) == 130
    assert train_model([f"--out_dir={tmp_path / 'out'}", "--resume"]) == 0
    assert end(tmp_path / "out") == end(uninterrupted)


def without_moments(monkeypatch):
    monkeypatch.setattr(resume, "load_state_tensors", lambda *args: None)


def without_seed(monkeypatch):
    monkeypatch.setattr(step, "seed_step", lambda *args: None)


def without_place(monkeypatch):
    real = step.micro_batches

    def ten_steps_back(trainer, data, number, reads):
        return real(trainer, data, number - 10, reads)

    monkeypatch.setattr(step, "micro_batches", ten_steps_back)


def without_clock(monkeypatch):
    real = trainer.restore

    def without(*args):
        state, changed = real(*args)
        state.seconds = 0.0
        state.plan = None
        return state, changed

    monkeypatch.setattr(trainer, "restore", without)


@pytest.mark.parametrize(
    "optimizer, take_out",
    [
        ("muon", without_moments),
        ("adamw", without_moments),
        ("adamw", without_seed),
        ("adamw", without_place),
    ],
)
def test_resuming_exactly_needs_every_part_of_the_checkpoint(
    whole, tmp_path, monkeypatch, optimizer, take_out
):
    command, uninterrupted = whole("text", optimizer)
    assert train_model([*command, f"--out_dir={tmp_path / 'out'}"], killed_at(13)) == 130
    take_out(monkeypatch)
    assert train_model([f"--out_dir={tmp_path / 'out'}", "--resume"]) == 0
    assert end(tmp_path / "out")[0] != end(uninterrupted)[0]


def test_a_resumed_run_in_fp16_keeps_its_loss_scale(tiny, tmp_path, monkeypatch):
    """GradScaler doubles its scale after a number of steps without an overflow, here 3."""
    scaler = partial(torch.amp.GradScaler, growth_interval=3)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    length = ["--max_iters=5", "--eval_interval=5", "--save_interval=2", "--eval_tokens=64"]
    length += ["--sample_tokens=0", "--batch_size=2"]
    command, ends = [*tiny, *length, "--dtype=float16"], []
    for name, stop in (("whole", None), ("resumed", 3)):
        out_dir = tmp_path / name
        if stop:
            assert train_model([*command, f"--out_dir={out_dir}"], killed_at(stop)) == 130
        assert train_model([*command, f"--out_dir={out_dir}", "--resume"]) == 0
        newest, _ = checkpoints.newest_checkpoint(out_dir)
        ends.append((read_json(newest / "state.json")["run"]["scale"], end(out_dir)[0]))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("take_out", [None, without_clock])
def test_a_resumed_time_budget_equals_an_uninterrupted_one_at_the_same_speed(
    tiny, tmp_path, monkeypatch, take_out
):
    """With a fake clock: a step takes 1 s."""
    clock = {"now": 0.0}
    monkeypatch.setattr(schedule.time, "perf_counter", lambda: clock["now"])

    def tick(step: int) -> None:
        clock["now"] += 1.0

    def tick_until_killed(step: int) -> None:
        if step == 23:
            raise KeyboardInterrupt
        tick(step)

    command = [
        *tiny,
        *LENGTH[:1],
        "--max_minutes=0.6",
        "--sample_tokens=0",
        "--save_interval=5",
        "--eval_interval=40",
    ]
    assert train_model([*command, f"--out_dir={tmp_path / 'whole'}"], before_steps(tick)) == 0
    assert checkpoints.newest_checkpoint(tmp_path / "whole")[0].name == "step-000036"
    killed = before_steps(tick_until_killed)
    assert train_model([*command, f"--out_dir={tmp_path / 'out'}"], killed) == 130
    assert checkpoints.newest_checkpoint(tmp_path / "out")[0].name == "step-000020"
    if take_out:
        take_out(monkeypatch)
    assert train_model([f"--out_dir={tmp_path / 'out'}", "--resume"], before_steps(tick)) == 0
    assert (end(tmp_path / "out")[0] == end(tmp_path / "whole")[0]) == (take_out is None)
