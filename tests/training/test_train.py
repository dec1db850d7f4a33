"""train.py and the loop: learning, keeping the best model, stopping and resuming exactly."""

import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import prepare
import train
from shuoshu.core.errors import REPO_ROOT
from shuoshu.core.files import sha256_of
from shuoshu.core.run_log import RunLog
from shuoshu.evaluation.loss import Score
from shuoshu.models import weights as models_weights
from shuoshu.text.dataset import TextDataset
from shuoshu.training import checkpoints, loop, resume, step, validate
from shuoshu.training.out_dir import OWN_FILES
from tests.in_process import train_model

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


# ---------------------------------------------------------------- learning


def test_training_beats_the_loss_of_token_frequencies(pretrained, dataset):
    """The bound is the loss of the token frequencies alone: an untrained, shuffled or wrongly
    shifted model can't do better."""
    train_file, val_file = TextDataset(dataset, "train"), TextDataset(dataset, "val")
    counts = np.bincount(train_file.tokens, minlength=512) + 1
    by_frequency = -np.log(counts / counts.sum())[val_file.tokens].mean()
    assert evals(pretrained)[-1]["val_loss"] < by_frequency - 1
    assert evals(pretrained)[0]["val_loss"] == pytest.approx(math.log(512), rel=0.05)


def test_a_run_writes_all_its_files(pretrained):
    names = {path.name for path in pretrained.iterdir()}
    assert names == {*OWN_FILES, ".lock"} - {
        "eval.json",
        "eval_answers.jsonl",
        "report.html",
    }  # eval_metrics.py writes these
    head = json.loads((pretrained / "settings.json").read_text(encoding="utf-8"))
    assert (
        head["settings"]["n_embd"] == 64
        and head["machine"]["torch"] == torch.__version__
        and len(head["data"]["train"]) == 64
    )
    log = RunLog(pretrained / "log.jsonl")
    assert [r["step"] for r in log.read("eval")] == [0, 50, 100, 150]
    assert [r["step"] for r in log.read("step")] == list(range(10, 151, 10))
    assert all({"loss", "lr", "tokens_per_second", "epoch"} <= r.keys() for r in log.read("step"))
    assert log.read("eval")[-1]["bits_per_char"] > 0
    samples = (pretrained / "samples.md").read_text(encoding="utf-8")
    assert samples.count("## step") == 4 and "第十回" in samples
    assert (pretrained / "loss.png").read_bytes()[:4] == b"\x89PNG"


def test_the_folder_holds_the_best_model_and_patience_ends_the_run(
    tiny, tmp_path, monkeypatch, capsys
):
    losses = iter([5.0, 4.0, 3.0, 3.5, 3.6, 3.7, 1.0])
    monkeypatch.setattr(validate, "score", lambda *args: Score(next(losses) * 100, 100, 0.0, None))
    assert (
        train_model(
            [
                *tiny,
                f"--out_dir={tmp_path / 'out'}",
                "--max_iters=60",
                "--eval_interval=5",
                "--patience=3",
                "--sample_tokens=0",
            ]
        )
        == 0
    )
    assert models_weights.read_metadata(tmp_path / "out" / "model.safetensors")["step"] == "10"
    assert (
        "25 steps" in (output := capsys.readouterr().out)
        and "stopped early" in output
        and "at step 10" in output
    )
    newest, _ = checkpoints.newest_checkpoint(tmp_path / "out")
    assert newest.name == "step-000025"


def test_accumulated_batches_train_as_one_large_batch(tiny, tmp_path):
    losses = []
    for name, size, steps in (("one", 8, 1), ("two", 4, 2), ("uneven", 3, 3)):
        settings = [
            f"--batch_size={size}",
            f"--gradient_accumulation_steps={steps}",
            "--optimizer=adamw",
            "--dropout=0",
            "--max_iters=10",
            "--log_interval=1",
        ]
        assert (
            train_model([*tiny, *settings, f"--out_dir={tmp_path / name}", "--sample_tokens=0"])
            == 0
        )
        losses.append([r["loss"] for r in RunLog(tmp_path / name / "log.jsonl").read("step")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] != pytest.approx(losses[2], rel=1e-5)  # nine rows a step: other data


def test_adamw_and_cosine_learn(tiny, tmp_path):
    settings = [
        "--optimizer=adamw",
        "--schedule=cosine",
        "--max_iters=100",
        "--tie_embeddings",
        "--n_kv_head=1",
    ]
    assert (
        train_model([*tiny, *settings, f"--out_dir={tmp_path / 'out'}", "--sample_tokens=0"]) == 0
    )
    log = RunLog(tmp_path / "out" / "log.jsonl")
    assert log.read("eval")[-1]["val_loss"] < log.read("eval")[0]["val_loss"] - 1


def test_in_a_time_budget_the_rate_decays_to_its_end(tiny, tmp_path):
    settings = ["--optimizer=adamw", "--schedule=cosine", "--max_minutes=0.05", "--log_interval=1"]
    assert (
        train_model([*tiny, *settings, f"--out_dir={tmp_path / 'out'}", "--sample_tokens=0"]) == 0
    )
    rates = [record["lr"] for record in RunLog(tmp_path / "out" / "log.jsonl").read("step")]
    assert rates[-1] < 0.15 * max(rates)


def test_without_validation_text_the_last_model_is_kept(text, tmp_path, tiny):
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    assert (
        prepare.main(
            [
                str(tmp_path / "book.txt"),
                f"--out={tmp_path / 'data'}",
                "--val_fraction=0",
                "--vocab_size=400",
            ]
        )
        == 0
    )
    assert (
        train_model(
            [
                *tiny,
                f"--dataset={tmp_path / 'data'}",
                f"--out_dir={tmp_path / 'out'}",
                "--max_iters=20",
                "--eval_interval=7",
            ]
        )
        == 0
    )
    assert models_weights.read_metadata(tmp_path / "out" / "model.safetensors")["step"] == "20"


def test_init_from_starts_with_that_model(tiny, pretrained, tmp_path, text, capsys):
    assert (
        train_model(
            [
                *tiny,
                f"--out_dir={tmp_path / 'out'}",
                f"--init_from={pretrained}",
                "--max_iters=1",
                "--sample_tokens=0",
            ]
        )
        == 0
    )
    assert evals(tmp_path / "out")[0]["val_loss"] == pytest.approx(
        min(r["val_loss"] for r in evals(pretrained)), rel=1e-6
    )
    (tmp_path / "other.txt").write_text(text[:5000], encoding="utf-8")
    prepare.main([str(tmp_path / "other.txt"), f"--out={tmp_path / 'other'}", "--vocab_size=300"])
    assert (
        train_model(
            [
                *tiny,
                f"--dataset={tmp_path / 'other'}",
                f"--out_dir={tmp_path / 'out2'}",
                f"--init_from={pretrained}",
            ]
        )
        == 2
    )
    assert "another tokenizer" in capsys.readouterr().err and not (tmp_path / "out2").exists()


# ---------------------------------------------------------------- stopping and resuming


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
    real_step, real_load = loop.train_step, resume.load_state_tensors

    def killed(trainer, data, state, skips):
        if state.step == 25:
            raise KeyboardInterrupt
        return real_step(trainer, data, state, skips)

    monkeypatch.setattr(loop, "train_step", killed)
    assert train_model(command) == 130
    monkeypatch.setattr(loop, "train_step", real_step)
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


def test_a_run_killed_before_its_first_step_is_resumed(tiny, uninterrupted, tmp_path, monkeypatch):
    out_dir = tmp_path / "out"
    monkeypatch.setattr(loop, "train_step", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    assert train_model([*tiny, *EXACT, f"--out_dir={out_dir}"]) == 130
    monkeypatch.undo()
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


def test_a_damaged_newest_checkpoint_is_skipped(uninterrupted, tmp_path, capsys):
    out_dir = shutil.copytree(uninterrupted, tmp_path / "out")
    (out_dir / "checkpoints" / "step-000060" / "model.safetensors").write_bytes(b"")
    assert train_model([f"--out_dir={out_dir}", "--resume"]) == 0
    output = capsys.readouterr().out
    assert "step-000060: model.safetensors is damaged" in output and "step-000050" in output
    assert weights(out_dir) == weights(uninterrupted)


# ---------------------------------------------------------------- user errors


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


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--dataset=nowhere"], "python prepare.py"),
        (["--block_size=100000"], "set --block_size="),
        (["--device=cuda:99"], "cuda"),
        (["--device=toaster"], "choose auto, cpu"),
        (["--n_emdb=3"], "did you mean n_embd"),
        (["--init_from=nowhere"], "no trained model in nowhere"),
        (["--init_from=resume"], "use --resume"),
        (["--lr_decay_iters=5"], "--decay_fraction"),
    ],
)
def test_a_mistake_is_one_message_and_nothing_is_written(
    tiny, tmp_path, capsys, arguments, message
):
    assert train_model([*tiny, f"--out_dir={tmp_path / 'out'}", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err and not (tmp_path / "out").exists()


def test_a_loss_that_explodes_stops_with_advice(tiny, tmp_path, capsys):
    code = train_model(
        [
            *tiny,
            f"--out_dir={tmp_path / 'out'}",
            "--optimizer=adamw",
            "--learning_rate=1e30",
            "--grad_clip=0",
            "--max_iters=50",
        ]
    )
    assert code == 2 and "lower --learning_rate" in capsys.readouterr().err


def test_a_model_that_is_no_longer_finite_is_never_saved(tiny, tmp_path, monkeypatch, capsys):
    real_step = loop.train_step

    def poisoned(trainer, data, state, skips):
        loss = real_step(trainer, data, state, skips)
        if state.step == 5:
            next(trainer.raw.parameters()).data[0, 0] = math.nan
        return loss * 0 + 1

    monkeypatch.setattr(loop, "train_step", poisoned)
    assert (
        train_model(
            [
                *tiny,
                f"--out_dir={tmp_path / 'out'}",
                "--max_iters=50",
                "--save_interval=2",
                "--eval_interval=50",
            ]
        )
        == 2
    )
    assert "no longer finite" in capsys.readouterr().err
    newest, wrong = checkpoints.newest_checkpoint(tmp_path / "out")
    assert newest.name == "step-000004" and not wrong
    assert all(
        torch.isfinite(tensor).all() for tensor in checkpoints.load_checkpoint(newest)[0].values()
    )


def test_without_a_config_it_reads_config_pretrain():
    commands = [], ["config/pretrain.py"], ["--seed=5"]
    default, pretrain, seeded = (train.parse_settings(argv) for argv in commands)
    assert default == pretrain and default.dataset == "novella" and default.max_epochs
    assert seeded.seed == 5 and seeded.n_embd == default.n_embd


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
