"""Answers of a fine-tuned model: those that the log measures, and those to long questions."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import prepare_sft
from shuoshu.core.errors import REPO_ROOT
from shuoshu.generation.answers import answer, read_questions, render_question
from shuoshu.generation.sampling import SamplingParams, TextGenerator
from shuoshu.models import weights as models_weights
from shuoshu.sft.dataset import QuestionDataset, read_pairs
from shuoshu.text.tokenizer_folder import load_tokenizer
from shuoshu.training import checkpoints
from shuoshu.training.step import halve_batch_on_oom
from tests.in_process import records, train_model


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


def test_the_samples_are_spread_over_the_validation_questions(tuned: Path, qa: Path) -> None:
    questions = [pair["question"] for pair in read_pairs(qa, "val")]
    sampled = [questions.index(record["prompt"]) for record in records(tuned, "sample")]
    assert sampled == [0, 7, 15, 23] * 4


# ---------------------------------------------------------------- out of memory


def small_memory(monkeypatch: pytest.MonkeyPatch, rows: int) -> list[int]:
    """Makes answering more questions at once run out of memory; returns the sizes of all tries."""
    real, tried = TextGenerator.complete, []

    def complete(self, prompts, *args):
        tried.append(len(prompts))
        if len(prompts) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, prompts, *args)

    monkeypatch.setattr(TextGenerator, "complete", complete)
    return tried


def test_out_of_memory_the_questions_are_answered_in_smaller_batches(
    sft: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    command = [*sft, "--max_iters=2", "--eval_interval=1"]
    assert train_model([*command, f"--out_dir={tmp_path / 'whole'}"]) == 0
    tried = small_memory(monkeypatch, 10)
    assert train_model([*command, f"--out_dir={tmp_path / 'halved'}"]) == 0
    # All 24; then batches of 16, of 8, in three evaluations and in the fit after the run.
    assert tried == [24, 24, 16, *[8, 8, 8] * 4]
    message = "out of memory: from step 0 on, up to 8 questions are answered at once"
    assert message in capsys.readouterr().out
    whole, halved = (
        [[r["val_loss"], r["val_rouge_l"], r["val_stop_rate"]] for r in records(out_dir, "eval")]
        for out_dir in (tmp_path / "whole", tmp_path / "halved")
    )
    assert halved == whole


def test_a_single_answer_that_does_not_fit_ends_the_run_with_advice(
    sft: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    small_memory(monkeypatch, 0)
    assert train_model([*sft, "--max_iters=2", f"--out_dir={tmp_path / 'out'}"]) == 2
    message = capsys.readouterr().err
    assert "out of memory" in message and "--block_size" in message
    assert "Traceback" not in message


def test_one_of_several_processes_halves_its_answers_alone_but_never_its_steps() -> None:
    def work() -> int:
        if trainer.answer_rows > 20:
            raise torch.OutOfMemoryError
        return trainer.answer_rows

    trainer = SimpleNamespace(
        processes=SimpleNamespace(world_size=2),
        raw=torch.nn.Linear(1, 1),
        device=torch.device("cpu"),
        micro_rows=16,
        answer_rows=64,
    )
    with pytest.raises(torch.OutOfMemoryError):
        halve_batch_on_oom(trainer, 0, work)
    assert halve_batch_on_oom(trainer, 0, work, "answer_rows") == 16
    assert (trainer.micro_rows, trainer.answer_rows) == (16, 16)


# ---------------------------------------------------------------- the answers


def test_the_measures_are_those_of_the_answers(tuned: Path, qa: Path) -> None:
    model, tokenizer, step, *_ = models_weights.load_model(tuned)
    questions = read_questions(qa, "val", tokenizer)
    answers = answer(TextGenerator(model, tokenizer), questions, 5)
    (record,) = [record for record in records(tuned, "eval") if record["step"] == step]
    assert record["val_exact_match"] == pytest.approx(
        np.mean([a.text == q.reference for a, q in zip(answers, questions, strict=True)])
    )
    assert record["val_stop_rate"] == pytest.approx(np.mean([a.reason == "end" for a in answers]))


def test_every_training_question_is_answered_word_for_word(tuned: Path, qa: Path) -> None:
    model, tokenizer, _, purpose, *_ = models_weights.load_model(tuned)
    assert purpose.turns == 1
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
    tokenizer, file = load_tokenizer(qa), QuestionDataset(qa, "train")
    for question, record in zip(
        read_questions(qa, "train", tokenizer), read_pairs(qa, "train"), strict=True
    ):
        ids, mask = file.row(record["row"])
        assert (
            question.ids == ids[: int(mask.argmax())].tolist()
            and question.ids[-1] == tokenizer.assistant
        )
        assert question.text == record["question"] and question.length == mask.sum() - 1


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
