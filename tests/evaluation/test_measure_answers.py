"""Measures of answers equal a computation by hand; closed sets are decided by probability."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from model import GPT
from shuoshu.generation.answers import read_questions, render_question
from shuoshu.generation.judge import label_log_probabilities, score_answers
from shuoshu.generation.sampling import TextGenerator
from shuoshu.models import weights
from shuoshu.models.purpose import Labelling, normalised
from shuoshu.sft.dataset import QuestionDataset
from tests.evaluation.helpers import (
    LABELS,
    copy_model,
    measure,
    prepare_questions,
    read_answers,
    value,
)


def test_answer_perplexity_equals_a_computation_token_by_token(
    evaluated, tuned: Path, qa: Path
) -> None:
    model, tokenizer, *_ = weights.load_model(tuned)
    data = QuestionDataset(qa, "val")
    nats = end_nats = 0.0
    tokens = 0
    for number in range(len(data)):
        ids, mask = data.row(number)
        with torch.no_grad():
            probabilities = model(torch.from_numpy(ids)[None])[0].double().softmax(-1)
        for place in np.flatnonzero(mask):
            loss = -math.log(probabilities[place - 1, ids[place]].item())
            nats += loss
            end_nats += loss * (ids[place] == tokenizer.end)
            tokens += 1
    characters = "".join(q.reference for q in read_questions(qa, "val", tokenizer))
    evaluation = evaluated.evaluation
    assert evaluation["counts"]["val"] == {"questions": len(data), "tokens": tokens}
    assert value(evaluation, "val", "perplexity") == pytest.approx(
        math.exp(nats / tokens), rel=1e-6
    )
    assert value(evaluation, "val", "perplexity_without_end") == pytest.approx(
        math.exp((nats - end_nats) / (tokens - len(data))), rel=1e-6
    )
    assert value(evaluation, "val", "bits_per_char") == pytest.approx(
        (nats - end_nats) / math.log(2) / len(characters), rel=1e-4
    )
    assert value(evaluation, "val", "bits_per_byte") == pytest.approx(
        (nats - end_nats) / math.log(2) / len(characters.encode()), rel=1e-4
    )


def test_bits_per_character_count_every_turn_of_a_conversation(
    pretrained: Path, tmp_path: Path
) -> None:
    turns = [("谁？", "老船夫解开缆绳，望着河面出神。"), ("哪里？", "渡口。")]
    said = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    rows = [{"messages": said, "split": split} for split in ("train", "val")]
    data = prepare_questions(tmp_path, "talk", rows, pretrained)
    evaluation = measure(
        copy_model(pretrained, tmp_path / "out"),
        f"--data={data}",
        "--max_new_tokens=1",
    )
    model, tokenizer, *_ = weights.load_model(pretrained)
    ids, mask = tokenizer.render(said)
    with torch.no_grad():
        logp = model(torch.tensor([ids]))[0].double().log_softmax(-1)
    nats = -sum(
        logp[n - 1, ids[n]].item() for n in range(len(ids)) if mask[n] and ids[n] != tokenizer.end
    )
    assert value(evaluation, "val", "bits_per_char") == pytest.approx(
        nats / math.log(2) / sum(len(answer) for _, answer in turns), rel=1e-5
    )


def test_memorized_training_answers_get_full_scores(evaluated) -> None:
    measures = evaluated.evaluation["measures"]["train"]
    for name in ("exact_match", "stop_rate", "rouge_l", "char_f1"):
        assert measures[name] == {"value": 1.0, "low": 1.0, "high": 1.0}, name
    assert measures["wrong_question_rate"]["value"] == 0 and measures["perplexity"]["value"] < 1.1
    assert evaluated.evaluation["measures"]["test"]["exact_match"]["value"] < 1


@pytest.fixture
def always_ending(pretrained_model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the end token the likeliest one for every model."""
    real, end = GPT.next_logits, pretrained_model[1].end

    def ends(self: GPT, *args: object) -> torch.Tensor:
        logits = real(self, *args)
        logits[:, end] += 1000
        return logits

    monkeypatch.setattr(GPT, "next_logits", ends)


def test_empty_answers_have_finite_measures(
    always_ending, tuned: Path, pretrained: Path, tmp_path: Path
) -> None:
    out_dir = copy_model(tuned, tmp_path / "out")
    evaluation = measure(out_dir, f"--compare={pretrained}")
    assert {row["answer"] for row in read_answers(out_dir)} == {""}
    measures = evaluation["measures"]["test"]
    for name in (
        "rouge_l",
        "exact_match",
        "char_f1",
        "mean_length",
        "distinct_1",
        "repetition",
        "copy_longest",
        "copy_rate",
        "wrong_question_rate",
    ):
        assert measures[name]["value"] == 0, name
    assert measures["stop_rate"]["value"] == 1
    assert evaluation["compare"][0]["difference"]["test"]["rouge_l"]["value"] == 0
    text_evaluation = measure(copy_model(pretrained, tmp_path / "text"), "--limit=3")
    assert value(text_evaluation, "val", "mean_length") == 0


# ---------------------------------------------------------------- closed sets of answers


def log_likelihood(model: GPT, tokenizer, ids: list[int], label: str) -> float:
    """The log-likelihood of a label as the answer, from the whole row."""
    label_ids = [*tokenizer.encode(label), tokenizer.end]
    with torch.no_grad():
        logp = model(torch.tensor([[*ids, *label_ids][:-1]]))[0].double().log_softmax(-1)
    return sum(logp[len(ids) - 1 + n, token].item() for n, token in enumerate(label_ids))


@pytest.mark.parametrize("rows", [1, 4, 64])
def test_label_scores_equal_the_likelihood_of_whole_rows(pretrained_model, rows: int) -> None:
    model, tokenizer = pretrained_model
    asked = [
        "？",
        "谁在渡口？",
        "雨停之后老船夫解开缆绳望着河面出神，谁在渡口？",
        "谁在渡口？",
        "The lamp",
        "柳青禾写了什么？",
        "何时？",
        "午后？",
        "天？",
    ]
    asked = [render_question(tokenizer, [{"role": "user", "content": text}]) for text in asked]
    labels = ["好", "你终究还是来了", "好吗", "", "The lamp is still lit"]
    assert (
        len({len(ids) for ids in asked}) > 4
        and len({len(tokenizer.encode(label)) for label in labels}) >= 4
    )
    generator = TextGenerator(model, tokenizer)
    scores = label_log_probabilities(generator, Labelling(tuple(labels)), asked, rows)
    expected = [[log_likelihood(model, tokenizer, ids, label) for label in labels] for ids in asked]
    np.testing.assert_allclose(scores, normalised(np.array(expected)), atol=1e-4)


class NoFloat64(TorchFunctionMode):
    """Fails like an Apple GPU where a tensor becomes float64 before it was copied to the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.on_cpu: list[torch.Tensor] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        is_float64 = isinstance(result, torch.Tensor) and result.dtype == torch.float64
        if is_float64 and any(tensor.dtype != torch.float64 for tensor in tensors):
            assert all(any(t is copy for copy in self.on_cpu) for t in tensors), function
        if function is torch.Tensor.cpu:
            self.on_cpu.append(result)
        return result


def test_labels_are_scored_on_a_gpu_without_float64(pretrained_model) -> None:
    with NoFloat64():
        scores = score_answers(TextGenerator(*pretrained_model), [[5, 6, 7]], LABELS)
    assert np.isfinite(scores).all()


def test_a_question_without_room_for_the_longest_label_loses_its_beginning(
    pretrained_model,
) -> None:
    model, tokenizer = pretrained_model
    ids = render_question(tokenizer, [{"role": "user", "content": "走" * 200}])
    ids = [ids[0], *ids[-(model.config.block_size - 2) :]]
    room = model.config.block_size - len(tokenizer.encode(LABELS[1]))
    assert room < len(ids) < model.config.block_size
    generator = TextGenerator(model, tokenizer)
    scores = score_answers(generator, [ids], LABELS)
    np.testing.assert_allclose(
        scores,
        [[log_likelihood(model, tokenizer, ids[-room:], label) for label in LABELS]],
        atol=1e-4,
    )


def test_the_most_probable_label_is_the_prediction(
    closed: Path, pretrained: Path, tmp_path: Path
) -> None:
    out_dir = copy_model(pretrained, tmp_path / "out")
    evaluation = measure(
        out_dir, f"--data={closed}", f"--compare={pretrained}", "--max_new_tokens=4"
    )
    measures, rows = evaluation["measures"]["test"], read_answers(out_dir)
    model, tokenizer, *_ = weights.load_model(pretrained)
    right = []
    for question, row in zip(read_questions(closed, "test", tokenizer), rows, strict=True):
        scores = torch.tensor(
            [log_likelihood(model, tokenizer, question.ids, label) for label in LABELS]
        )
        probabilities = row["probabilities"]
        assert list(probabilities) == LABELS
        assert sum(probabilities.values()) == pytest.approx(1)
        expected = scores.softmax(0).tolist()
        assert list(probabilities.values()) == pytest.approx(expected, abs=1e-4)
        right.append(LABELS[int(scores.argmax())] == row["reference"])
    assert measures["accuracy"]["value"] == pytest.approx(np.mean(right))
    classes = evaluation["classes"]["test"]
    assert classes["labels"] == LABELS
    assert [sum(row) for row in classes["confusion"]] == [
        sum(row["reference"] == label for row in rows) for label in LABELS
    ]
    assert sum(classes["confusion"][n][n] for n in range(2)) == sum(right)
    assert measures["macro_f1"]["value"] == pytest.approx(
        np.mean([classes["per_class"][label]["f1"] for label in LABELS])
    )
    share = np.mean([row["reference"] == LABELS[0] for row in rows])
    assert measures["majority_accuracy"]["value"] == pytest.approx(share)
    assert measures["majority_macro_f1"]["value"] == pytest.approx(share / (1 + share))
    assert measures["linear_accuracy"]["value"] == 1 == measures["linear_macro_f1"]["value"]
    same = {"value": 0.0, "low": 0.0, "high": 0.0}
    assert all(
        evaluation["compare"][0]["difference"]["test"][name] == same
        for name in ("accuracy", "macro_f1", "log_loss")
    )
    assert "混淆矩阵" in (out_dir / "report.html").read_text(encoding="utf-8")


def test_without_validation_questions_the_lookups_are_the_default(
    pretrained: Path, tmp_path: Path
) -> None:
    rows = [
        {"question": f"第{n}回谁在渡口？", "answer": f"{n}号船夫。", "split": split}
        for split in ("train", "test")
        for n in range(4)
    ]
    data = prepare_questions(tmp_path, "unvalidated", rows, pretrained)
    out_dir = copy_model(pretrained, tmp_path / "out")
    evaluation = measure(out_dir, f"--data={data}", "--max_new_tokens=1")
    assert evaluation["definitions"]["lookups"].startswith("TF-IDF, the default: ")
    assert value(evaluation, "test", "lookup_answers_rouge_l") == 1


def test_a_limited_number_of_questions_has_each_label_in_proportion(
    tuned: Path, pretrained: Path, tmp_path: Path
) -> None:
    rows = [
        {"question": f"第{n}回？", "answer": LABELS[n % 2], "split": split}
        for n in range(40)
        for split in ("train", "test")
    ]
    data = prepare_questions(tmp_path, "labelled", rows, pretrained)
    measure(copy_model(tuned, tmp_path / "out"), f"--data={data}", "--limit=20")
    answers = read_answers(tmp_path / "out")
    assert Counter(row["reference"] for row in answers) == dict.fromkeys(LABELS, 10)
