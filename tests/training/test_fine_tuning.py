"""Fine-tuning: loss over micro-batches, choice of the model, resuming, init_from, answers."""

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
from shuoshu.core.errors import REPO_ROOT
from shuoshu.core.files import sha256_of
from shuoshu.core.run_log import RunLog
from shuoshu.core.settings import ModelSettings, TrainSettings
from shuoshu.evaluation.loss import Score
from shuoshu.generation.answers import answer, read_questions, render_question
from shuoshu.generation.sampling import SamplingParams, TextGenerator
from shuoshu.models import weights as models_weights
from shuoshu.sft.dataset import QuestionDataset, pad_batch, read_pairs
from shuoshu.text.dataset import IGNORE
from shuoshu.text.tokenizer import Tokenizer
from shuoshu.training import checkpoints, loop, validate
from tests.in_process import train_model

NOISY = ["--question_drop=0.15", "--question_replace=0.15", "--dropout=0.1"]


def records(out_dir: Path, kind: str) -> list[dict]:
    return RunLog(out_dir / "log.jsonl").read(kind)


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
    assert loss != pytest.approx(
        np.mean([s / c for s, c in zip(sums, counts, strict=True)]), rel=1e-2
    )  # the mean over rows would differ


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


# ---------------------------------------------------------------- choosing the model


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


def test_the_log_and_the_samples_show_how_it_answers(tuned: Path, qa: Path) -> None:
    evals = records(tuned, "eval")
    assert [record["step"] for record in evals] == [0, 40, 80, 120]
    assert all(
        {"val_loss", "bits_per_char", "val_rouge_l", "val_exact_match", "val_stop_rate"}
        <= record.keys()
        for record in evals
    )
    assert evals[0]["val_rouge_l"] < 0.3 < 0.9 < max(record["val_rouge_l"] for record in evals)
    assert all(
        0 <= record[name] <= 1
        for record in evals
        for name in ("val_rouge_l", "val_exact_match", "val_stop_rate")
    )
    assert (tuned / "loss.png").read_bytes()[:4] == b"\x89PNG"
    samples = (tuned / "samples.md").read_text(encoding="utf-8")
    first = read_pairs(qa, "val")[0]
    assert (
        samples.count("## step") == 4
        and samples.count(first["question"]) == 4
        and f"✓ {first['answer']}" in samples
    )


def test_the_measures_are_those_of_the_answers(tuned: Path, qa: Path) -> None:
    model, tokenizer, step, *_ = models_weights.load_model(tuned)
    questions = read_questions(qa, "val", tokenizer)
    answers = answer(TextGenerator(model, tokenizer), questions, 5)
    (record,) = [record for record in records(tuned, "eval") if record["step"] == step]
    assert record["val_exact_match"] == pytest.approx(
        np.mean([a.text == q.reference for a, q in zip(answers, questions, strict=True)])
    )
    assert record["val_stop_rate"] == pytest.approx(np.mean([a.reason == "end" for a in answers]))


# ---------------------------------------------------------------- stopping and resuming


def test_resumed_in_mid_epoch_with_dropout_and_noise_it_ends_with_the_same_bytes(
    sft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    real = loop.train_step

    def killed(trainer, data, state, skips):
        if state.step == 12:
            raise KeyboardInterrupt
        return real(trainer, data, state, skips)

    monkeypatch.setattr(loop, "train_step", killed)
    assert train_model([*command, f"--out_dir={tmp_path / 'cut'}"]) == 130
    monkeypatch.setattr(loop, "train_step", real)
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
    assert f"n_layer=3: the model in {pretrained} has 2" in refused(
        [*sft, "--n_layer=3"], out_dir, capsys
    )
    assert "tie_embeddings=True" in refused([*sft, "--tie_embeddings"], out_dir, capsys)
    for mistake in (
        "--question_drop=0.1",
        "--question_replace=0.1",
        "--paraphrases=1",
        "--select_by=rouge",
    ):
        assert f"{dataset} holds text" in refused(
            [*sft, f"--dataset={dataset}", mistake], out_dir, capsys
        )
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


def test_a_dry_run_counts_the_answers_tokens(sft, qa: Path, tmp_path: Path, capsys) -> None:
    assert train_model([*sft, "--dry_run", "--max_iters=32", f"--out_dir={tmp_path / 'out'}"]) == 0
    file = QuestionDataset(qa, "train")
    output = capsys.readouterr().out
    assert (
        f"16 rows, {file.trained.sum() / len(file) * 16:,.0f} trained tokens" in output
        and f"32 steps, {32 * 16 / len(file):.2f} epochs" in output
    )


# ---------------------------------------------------------------- answers


def test_every_training_question_is_answered_word_for_word(tuned: Path, qa: Path) -> None:
    model, tokenizer, _, _, turns = models_weights.load_model(tuned)
    assert turns == 1
    questions = read_questions(qa, "train", tokenizer)
    answers = answer(TextGenerator(model, tokenizer), questions, 16)
    assert [(a.text, a.reason) for a in answers] == [(q.reference, "end") for q in questions]


def test_answers_do_not_depend_on_the_batch_size(pretrained: Path, qa: Path) -> None:
    model, tokenizer, *_ = models_weights.load_model(pretrained)  # its answers rarely end
    questions = read_questions(qa, "val", tokenizer)[:7]
    counts: list[int] = []
    generator = TextGenerator(model, tokenizer)
    batches = answer(generator, questions, 3, progress=counts.append)
    assert counts == [3, 6, 7]
    assert [f.text for f in batches] == [f.text for f in answer(generator, questions, 1)]
    longest = max(question.length for question in questions)
    assert all(len(f.ids) <= 2 * longest + 8 + 3 for f in batches) and {
        f.reason for f in batches
    } >= {"length"}


def test_a_question_is_rendered_as_in_training(qa: Path) -> None:
    tokenizer, file = Tokenizer.load(qa), QuestionDataset(qa, "train")
    for question, record in zip(
        read_questions(qa, "train", tokenizer), read_pairs(qa, "train"), strict=True
    ):
        ids, mask = file.row(record["row"])
        assert (
            question.ids == ids[: int(mask.argmax())].tolist()
            and question.ids[-1] == tokenizer.assistant
        )
        assert question.text == record["question"] and question.length == mask.sum() - 1


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
    assert (
        json.loads((tmp_path / "out" / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])[
            "step"
        ]
        == 7
    )
    capsys.readouterr()
    assert (
        train_model([f"--out_dir={tmp_path / 'out'}", "--resume", "--min_iters=1"]) == 0
    )  # it is done already
    assert "length" not in capsys.readouterr().out


def test_a_long_answer_trained_in_several_rows_is_generated_past_the_block(
    pretrained: Path, tmp_path: Path
) -> None:
    """As in the rows of --too_long=window: when the block is full, the model re-reads the question
    and the newest part of the answer."""
    long = "".join(f"第{sign}天。" for sign in "甲乙丙丁戊己庚辛壬癸子丑寅卯")
    rows = [
        {"question": "天天？", "answer": long, "split": "train"},
        {"question": "谁？", "answer": "他。", "split": "train"},
    ]
    rows.append({"question": "谁？", "answer": "他。", "split": "val"})
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    assert (
        prepare_sft.main(
            [
                str(tmp_path / "rows.json"),
                f"--out={tmp_path / 'qa'}",
                f"--tokenizer={pretrained}",
                "--too_long=window",
            ]
        )
        == 0
    )
    assert read_pairs(tmp_path / "qa", "train")[0]["rows"] >= 2
    out_dir = tmp_path / "out"
    command = [
        str(REPO_ROOT / "config" / "sft.py"),
        f"--dataset={tmp_path / 'qa'}",
        f"--init_from={pretrained}",
        f"--out_dir={out_dir}",
        "--batch_size=4",
    ]
    command += [
        "--question_drop=0",
        "--question_replace=0",
        "--paraphrases=0",
        "--dropout=0",
        "--max_iters=80",
        "--eval_interval=80",
        "--sample_tokens=0",
        "--select_by=loss",
    ]
    assert train_model([*command, "--device=cpu", "--dtype=float32", "--threads=1"]) == 0
    newest, _ = checkpoints.newest_checkpoint(out_dir)
    model, tokenizer, *_ = models_weights.load_model(out_dir)
    model.load_tensors(checkpoints.load_checkpoint(newest)[0])
    ids = render_question(tokenizer, [{"role": "user", "content": "天天？"}])
    assert len(tokenizer.encode(long)) > model.config.block_size
    params = SamplingParams(200, 0.0, keeps_prompt=True)
    [completion] = TextGenerator(model, tokenizer).complete([ids], params, [0])
    assert completion.reason == "end" and completion.text == long
