"""Fine-tuning: loss over micro-batches, resuming, init_from, min_iters."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import prepare
import prepare_sft
from shuoshu.core.files import sha256_of
from shuoshu.core.settings import ModelSettings, TrainSettings
from shuoshu.models import weights as models_weights
from shuoshu.sft.dataset import QuestionDataset, pad_batch
from shuoshu.text.dataset import IGNORE
from shuoshu.training import checkpoints
from tests.in_process import killed_at, records, train_model

NOISY = ["--question_drop=0.15", "--question_replace=0.15", "--dropout=0.1"]


def weights(out_dir: Path) -> str:
    """Name and hashes of the newest checkpoint."""
    newest, _ = checkpoints.newest_checkpoint(out_dir)
    return (
        newest.name
        + sha256_of(newest / "model.safetensors")
        + sha256_of(newest / "optimizer.safetensors")
    )


@pytest.fixture(scope="module")
def uneven(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 questions with answers of 2 to 60 tokens."""
    draw, home = random.Random(11), tmp_path_factory.mktemp("uneven")
    rows = [
        {"question": f"{n}？", "answer": "好" * draw.choice([1, 2, 4, 8, 13, 18])}
        for n in range(40)
    ]
    rows = [{**row, "split": "val" if n < 4 else "train"} for n, row in enumerate(rows)]
    (home / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    assert (
        prepare_sft.main(
            [str(home / "rows.json"), f"--out={home / 'out'}", f"--tokenizer={pretrained}"]
        )
        == 0
    )
    return home / "out"


# ---------------------------------------------------------------- the loss


def test_a_trimmed_batch_has_the_token_weighted_mean_of_its_single_rows(
    pretrained_model, uneven: Path
) -> None:
    model, _ = pretrained_model
    file = QuestionDataset(uneven, "train")
    rows = [file.row(n) for n in range(12)]
    assert max(len(ids) for ids, _ in rows) > 4 * min(len(ids) for ids, _ in rows)
    ids, targets = map(torch.from_numpy, pad_batch(rows))
    assert ids.shape[1] == max(len(ids) for ids, _ in rows) - 1
    sums, counts = [], []
    with torch.no_grad():
        for row_ids, row_mask in rows:
            logp = model(torch.from_numpy(row_ids)[None])[0].double().log_softmax(-1)
            places = np.flatnonzero(row_mask)
            sums.append(-sum(logp[n - 1, row_ids[n]].item() for n in places))
            counts.append(len(places))
        loss = model(ids, targets).item()
    assert loss == pytest.approx(sum(sums) / sum(counts), rel=1e-5)
    row_means = [s / c for s, c in zip(sums, counts, strict=True)]
    assert loss != pytest.approx(np.mean(row_means), rel=1e-2)


@pytest.mark.parametrize("size, steps", [(16, 1), (4, 4), (2, 8), (5, 3)])
def test_the_first_steps_loss_is_that_mean_for_every_batch_size(
    sft, pretrained_model, uneven: Path, tmp_path: Path, size: int, steps: int
):
    model, _ = pretrained_model
    settings = [
        f"--batch_size={size}",
        f"--gradient_accumulation_steps={steps}",
        "--max_iters=1",
        "--log_interval=1",
        "--eval_questions=1",
    ]
    assert (
        train_model([*sft, f"--dataset={uneven}", *settings, f"--out_dir={tmp_path / 'out'}"]) == 0
    )
    ids, targets = QuestionDataset(uneven, "train", size * steps).rows(
        0, size * steps, 64, TrainSettings.seed
    )
    counts = (targets != IGNORE).sum(axis=1).reshape(steps, size).sum(axis=1)
    assert steps == 1 or counts.max() > 1.5 * counts.min()  # of the batches' trained tokens
    nats = 0.0
    with torch.no_grad():
        for row, target in zip(ids, targets, strict=True):
            logp = model(torch.from_numpy(row)[None])[0].double().log_softmax(-1)
            nats -= sum(logp[n, target[n]].item() for n in np.flatnonzero(target != IGNORE))
    assert records(tmp_path / "out", "step")[0]["loss"] == pytest.approx(
        nats / (targets != IGNORE).sum(), rel=1e-5
    )


def test_the_model_keeps_the_system_message_of_its_training(sft, qa: Path, tmp_path: Path) -> None:
    data = [str(qa.parent / "facts.json"), f"--out={tmp_path / 'data'}", "--system=你是老船夫。"]
    model = next(word for word in sft if word.startswith("--init_from=")).partition("=")[2]
    assert prepare_sft.main([*data, f"--tokenizer={model}"]) == 0
    settings = [f"--dataset={tmp_path / 'data'}", "--max_iters=1", "--eval_questions=1"]
    assert train_model([*sft, *settings, f"--out_dir={tmp_path / 'out'}"]) == 0
    assert models_weights.load_model(tmp_path / "out").purpose == models_weights.Purpose(
        "questions", 1, "你是老船夫。"
    )


def test_accumulated_batches_of_uneven_answers_train_as_one_large_batch(
    sft, uneven: Path, tmp_path: Path
) -> None:
    losses = []
    for size, steps in ((16, 1), (2, 8)):
        settings = [
            f"--batch_size={size}",
            f"--gradient_accumulation_steps={steps}",
            "--optimizer=adamw",
            "--learning_rate=0.001",
            "--max_iters=10",
        ]
        assert (
            train_model(
                [
                    *sft,
                    f"--dataset={uneven}",
                    *settings,
                    "--log_interval=1",
                    "--eval_questions=1",
                    f"--out_dir={tmp_path / str(size)}",
                ]
            )
            == 0
        )
        losses.append([record["loss"] for record in records(tmp_path / str(size), "step")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# ---------------------------------------------------------------- stopping and resuming


def test_resumed_in_mid_epoch_with_dropout_and_noise_it_ends_with_the_same_bytes(
    sft, tmp_path: Path
) -> None:
    command = [
        *sft,
        *NOISY,
        "--max_iters=20",
        "--eval_interval=10",
        "--save_interval=5",
        "--eval_questions=4",
    ]
    assert train_model([*command, f"--out_dir={tmp_path / 'whole'}"]) == 0
    assert train_model([*command, f"--out_dir={tmp_path / 'cut'}"], killed_at(12)) == 130
    assert (
        checkpoints.newest_checkpoint(tmp_path / "cut")[0].name == "step-000010"
    )  # 3.2 steps an epoch: in the middle of one
    assert train_model([f"--out_dir={tmp_path / 'cut'}", "--resume"]) == 0
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert sha256_of(tmp_path / "cut" / "model.safetensors") == sha256_of(
        tmp_path / "whole" / "model.safetensors"
    )
    clean = [
        *command,
        "--question_drop=0",
        "--question_replace=0",
        f"--out_dir={tmp_path / 'clean'}",
    ]
    assert train_model(clean) == 0 and weights(tmp_path / "clean") != weights(tmp_path / "whole")


def test_a_run_is_not_resumed_on_other_data(
    sft, qa: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(qa, tmp_path / "data")
    command = [
        *sft,
        f"--dataset={data}",
        f"--out_dir={tmp_path / 'out'}",
        "--max_iters=2",
        "--eval_questions=1",
    ]
    assert train_model(command) == 0
    other = [{"question": "谁？", "answer": "他。", "split": split} for split in ("train", "val")]
    (tmp_path / "other.json").write_text(json.dumps(other), encoding="utf-8")
    assert (
        prepare_sft.main(
            [str(tmp_path / "other.json"), f"--out={data}", f"--tokenizer={pretrained}"]
        )
        == 0
    )
    assert train_model([f"--out_dir={tmp_path / 'out'}", "--resume", "--max_iters=4"]) == 2
    assert "trained on other data" in capsys.readouterr().err


# ---------------------------------------------------------------- init_from


def refused(arguments: list[str], out_dir: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert train_model([*arguments, f"--out_dir={out_dir}"]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message and not out_dir.exists()
    return message


def test_each_kind_of_mismatch_has_its_own_message(
    sft, qa, dataset, text, pretrained, tmp_path: Path, capsys
) -> None:
    out_dir = tmp_path / "out"
    (tmp_path / "other.txt").write_text(text[:5000], encoding="utf-8")
    assert (
        prepare.main(
            [str(tmp_path / "other.txt"), f"--out={tmp_path / 'other'}", "--vocab_size=300"]
        )
        == 0
    )
    assert (
        prepare_sft.main(
            [
                str(qa.parent / "facts.json"),
                f"--out={tmp_path / 'qa'}",
                f"--tokenizer={tmp_path / 'other'}",
            ]
        )
        == 0
    )
    message = refused([*sft, f"--dataset={tmp_path / 'qa'}"], out_dir, capsys)
    assert "has another tokenizer" in message and f"--tokenizer={pretrained}" in message
    message = refused([*sft, "--n_layer=3", "--n_head=4"], out_dir, capsys)
    assert "n_layer=3, n_head=4: the model" in message and "--n_layer=2 --n_head=2" in message
    assert "tie_embeddings=True" in refused([*sft, "--tie_embeddings"], out_dir, capsys)
    for mistake in (
        "--question_drop=0.1",
        "--question_replace=0.1",
        "--paraphrases=1",
    ):
        message = refused([*sft, f"--dataset={dataset}", mistake], out_dir, capsys)
        assert f"{dataset} holds text" in message
        assert "prepare_sft.py" in message and "--dataset" in message
    message = refused([*sft, f"--dataset={dataset}", "--select_by=rouge"], out_dir, capsys)
    assert f"{dataset} holds text, for which it is one of auto, loss" in message
    assert "no trained model in" in refused([*sft, f"--init_from={tmp_path}"], out_dir, capsys)
    (tmp_path / "one.json").write_text(
        json.dumps([{"question": "谁？", "answer": "他。", "split": "val"}]), encoding="utf-8"
    )
    assert (
        prepare_sft.main(
            [str(tmp_path / "one.json"), f"--out={tmp_path / 'one'}", f"--tokenizer={pretrained}"]
        )
        == 2
    )


def test_rows_longer_than_the_block_name_the_block_size_that_fits(
    sft, pretrained, tmp_path: Path, capsys
) -> None:
    rows = [
        {
            "question": f"{n}？",
            "answer": "好" * (60 if n == 3 else 2),
            "split": "train" if n < 8 else "val",
        }
        for n in range(10)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    assert (
        prepare_sft.main(
            [
                str(tmp_path / "rows.json"),
                f"--out={tmp_path / 'rows'}",
                f"--tokenizer={pretrained}",
                "--block_size=300",
            ]
        )
        == 0
    )
    width = QuestionDataset(tmp_path / "rows", "train").width
    command = [*sft, f"--dataset={tmp_path / 'rows'}"]
    message = refused(command, tmp_path / "out", capsys)
    assert (
        f"the longest row has {width} tokens, but the model reads 64" in message
        and f"--block_size={width - 1}" in message
    )
    refused([*command, f"--block_size={width - 2}"], tmp_path / "out", capsys)
    assert (
        train_model(
            [
                *command,
                f"--block_size={width - 1}",
                "--max_iters=2",
                f"--out_dir={tmp_path / 'out'}",
            ]
        )
        == 0
    )
    grown, *_ = models_weights.load_model(tmp_path / "out")
    assert grown.config.block_size == width - 1 and grown.config.n_layer == 2
    assert (
        train_model([f"--out_dir={tmp_path / 'out'}", "--resume", "--max_iters=3"]) == 0
    )  # it keeps the larger block


def test_init_from_gives_the_models_shape_and_its_first_weights(
    sft, pretrained_model, tmp_path: Path
) -> None:
    assert (
        train_model([*sft, f"--out_dir={tmp_path / 'out'}", "--max_iters=1", "--eval_questions=1"])
        == 0
    )
    head = json.loads((tmp_path / "out" / "settings.json").read_text(encoding="utf-8"))["settings"]
    model, _ = pretrained_model
    assert {name: head[name] for name in ("n_layer", "n_head", "n_embd", "block_size")} == {
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 64,
        "block_size": 64,
    }
    assert head["n_embd"] != ModelSettings.n_embd
    first = checkpoints.list_checkpoints(tmp_path / "out")[0]
    assert first.name == "step-000000"
    assert all(
        torch.equal(tensor, checkpoints.load_checkpoint(first)[0][name])
        for name, tensor in model.tensors().items()
    )


def test_the_same_validation_loss_with_noise_on_the_training_questions(sft, tmp_path: Path) -> None:
    for name, more in (("plain", []), ("noisy", NOISY)):
        assert (
            train_model(
                [*sft, *more, f"--out_dir={tmp_path / name}", "--max_iters=1", "--eval_questions=3"]
            )
            == 0
        )
    plain, noisy = (records(tmp_path / name, "eval")[0] for name in ("plain", "noisy"))
    assert [plain[name] for name in ("val_loss", "val_rouge_l")] == [
        noisy[name] for name in ("val_loss", "val_rouge_l")
    ]


def test_min_iters_is_the_minimum_number_of_steps(
    sft: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = [
        *sft,
        f"--out_dir={tmp_path / 'out'}",
        "--max_epochs=0.5",
        "--eval_interval=100",
        "--eval_questions=1",
    ]
    assert train_model([*command, "--min_iters=5"]) == 0
    output = capsys.readouterr().out
    steps_per_epoch = float(re.search(r"([\d.]+) steps per epoch", output)[1])
    line = f"length     5 steps (min_iters), {5 / steps_per_epoch:.1f} epochs; without it"
    line += " (--min_iters=none) max_epochs=0.5 gives"
    assert f"{line} {math.ceil(steps_per_epoch / 2)} steps" in output
    real = checkpoints.load_checkpoint

    def of_an_older_version(folder: Path) -> tuple:
        weights, optimizer, saved = real(folder)
        del saved["settings"]["min_iters"]
        return weights, optimizer, saved

    monkeypatch.setattr(checkpoints, "load_checkpoint", of_an_older_version)
    assert train_model([f"--out_dir={tmp_path / 'out'}", "--resume", "--min_iters=7"]) == 0
    assert records(tmp_path / "out", "end")[-1]["step"] == 7
    capsys.readouterr()
    assert (
        train_model([f"--out_dir={tmp_path / 'out'}", "--resume", "--min_iters=1"]) == 0
    )  # it is done already
    assert "length" not in capsys.readouterr().out
