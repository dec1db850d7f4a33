"""train.py and the loop: learning, keeping the best model, user errors."""

import json
import math
import re

import numpy as np
import pytest
import torch

import prepare
import train
from shuoshu.core.run_log import RunLog
from shuoshu.evaluation.loss import Score
from shuoshu.models import weights as models_weights
from shuoshu.text.dataset import TextDataset
from shuoshu.training import checkpoints, validate
from shuoshu.training.out_dir import OWN_FILES
from shuoshu.training.step import train_step
from tests.in_process import train_model


def evals(out_dir):
    return RunLog(out_dir / "log.jsonl").read("eval")


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
        "report.html",  # up to here by eval_metrics.py
        "answers.json",
        "taught.jsonl",  # these two only after a run on questions; the rest for models of others
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "special_tokens_map.json",
    }
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


def test_init_from_without_a_config_keeps_the_models_shape(dataset, pretrained, tmp_path):
    command = [f"--dataset={dataset}", f"--init_from={pretrained}", f"--out_dir={tmp_path / 'out'}"]
    command += ["--max_iters=1", "--sample_tokens=0", "--batch_size=4", "--threads=1"]
    assert train_model([*command, "--device=cpu", "--dtype=float32"]) == 0
    trained, before = (
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
        for folder in (tmp_path / "out", pretrained)
    )
    assert trained == before


def test_the_advice_on_a_config_of_another_shape_can_be_followed(
    dataset, pretrained, tmp_path, capsys
):
    command = ["config/novels.py", f"--dataset={dataset}", f"--init_from={pretrained}"]
    command += [f"--out_dir={tmp_path / 'out'}", "--max_iters=1", "--sample_tokens=0"]
    assert train_model(command) == 2
    message = capsys.readouterr().err
    assert "n_layer=6, n_head=6, n_embd=384" in message
    advice = re.findall(r"--\w+=\w+", message)
    assert train_model([*command, *advice, "--batch_size=1", "--dry_run"]) == 0


# ---------------------------------------------------------------- user errors


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


def test_a_model_that_is_no_longer_finite_is_never_saved(tiny, tmp_path, capsys):
    def poisoned(trainer, data, state, skips):
        loss = train_step(trainer, data, state, skips)
        if state.step == 5:
            next(trainer.raw.parameters()).data[0, 0] = math.nan
        return loss * 0 + 1

    assert (
        train_model(
            [
                *tiny,
                f"--out_dir={tmp_path / 'out'}",
                "--max_iters=50",
                "--save_interval=2",
                "--eval_interval=50",
            ],
            poisoned,
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
