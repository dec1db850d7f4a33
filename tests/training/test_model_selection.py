"""Which model a run keeps: by accuracy, ROUGE-L or loss, on what part; noise and patience."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import prepare_sft
from shuoshu.core.settings import TrainSettings
from shuoshu.evaluation.loss import Score
from shuoshu.generation.answers import read_questions
from shuoshu.generation.judge import score_answers
from shuoshu.generation.sampling import TextGenerator
from shuoshu.models import weights as models_weights
from shuoshu.text.dataset import IGNORE, TextDataset
from shuoshu.training import checkpoints, validate
from shuoshu.training.data import RunData
from tests.in_process import records, train_model


def answering(monkeypatch: pytest.MonkeyPatch, *each: list[float]) -> None:
    """Makes the evaluations measure these ROUGE-L scores."""
    left = iter(each)

    def one(*args):
        scores = next(left)
        values = {"val_rouge_l": float(np.mean(scores)), "val_exact_match": 0.0}
        return values | {"val_stop_rate": 1.0}, scores, []

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


@pytest.mark.parametrize("steps, is_early", [(2, False), (4, True)])
def test_a_run_that_did_all_its_steps_is_not_stopped_early(
    sft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, steps: int, is_early: bool
) -> None:
    answering(monkeypatch, [0.9] * 4, [0.1] * 4)
    command = [*sft, f"--max_iters={steps}", "--eval_interval=2", "--patience=1"]
    assert train_model([*command, f"--out_dir={tmp_path / 'out'}"]) == 0
    output = capsys.readouterr().out
    assert "done       2 steps" in output and ("stopped early" in output) == is_early


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


# ---------------------------------------------------------------- labels


@pytest.fixture(scope="module")
def reviews(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 reviews in a table that is sorted by label; one word decides."""
    folder = tmp_path_factory.mktemp("reviews")
    rows = [
        {"question": f"第{n}回{word}？", "answer": label, "split": split}
        for word, label, count in (("雨", "好", 100), ("晴", "坏", 50))
        for n in range(count)
        for split in ["val" if n % 5 == 4 else "train"]
    ]
    file = folder / "reviews.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    prepare = [str(file), f"--out={folder / 'data'}", f"--tokenizer={pretrained}"]
    assert prepare_sft.main([*prepare, "--labels=好=好,坏=坏"]) == 0
    return folder / "data"


def kept_step(out_dir: Path) -> int:
    return int(models_weights.read_metadata(out_dir / "model.safetensors")["step"])


def test_of_a_table_sorted_by_label_every_label_is_asked(reviews: Path) -> None:
    data = RunData(TrainSettings(dataset=str(reviews), eval_questions=15))
    labels = Counter(question.reference for question in data.questions)
    assert labels == {"好": 10, "坏": 5}


def test_a_model_that_always_says_one_label_is_not_kept(sft, reviews: Path, tmp_path: Path) -> None:
    """The validation questions are sorted by label and only some of them are asked, so the first
    ones have one label. A model that says it is right about all of those."""
    command = [*sft, f"--dataset={reviews}", "--eval_questions=15", "--eval_interval=5"]
    assert train_model([*command, "--max_iters=40", f"--out_dir={tmp_path / 'out'}"]) == 0
    accuracies = {r["step"]: r["val_accuracy"] for r in records(tmp_path / "out", "eval")}
    assert 10 / 15 in accuracies.values()  # one label for all
    assert accuracies[kept_step(tmp_path / "out")] == max(accuracies.values()) > 0.9


def test_the_accuracy_in_the_log_is_that_of_the_likeliest_labels(
    sft, reviews: Path, tmp_path: Path
) -> None:
    out_dir, labels = tmp_path / "out", ["好", "坏"]
    command = [*sft, f"--dataset={reviews}", "--max_iters=10", "--eval_interval=5"]
    assert train_model([*command, f"--out_dir={out_dir}"]) == 0
    model, tokenizer, step, *_ = models_weights.load_model(out_dir)
    questions = read_questions(reviews, "val", tokenizer)
    generator = TextGenerator(model, tokenizer)
    likeliest = score_answers(generator, [q.ids for q in questions], labels).argmax(axis=1)
    right = [labels[n] == q.reference for n, q in zip(likeliest, questions, strict=True)]
    [logged] = [r for r in records(out_dir, "eval") if r["step"] == step]
    assert logged["val_accuracy"] == pytest.approx(np.mean(right))


ACCURACIES = [0.5, 0.7, 0.9, 0.9, 0.8]
MACRO_F1S = [0.5, 0.95, 0.6, 0.7, 0.8]


@pytest.mark.parametrize(
    "select_by, kept, name",
    [
        ("auto", 3, "accuracy"),
        ("accuracy", 3, "accuracy"),
        ("macro_f1", 1, "macro-F1"),
        ("loss", 4, "loss"),
    ],
)
def test_labels_are_selected_by_the_measure_that_the_output_names(
    sft,
    reviews: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys,
    select_by,
    kept,
    name,
) -> None:
    """Of equal accuracies the one with the lower loss counts."""
    values = iter(zip([3.0, 2.5, 2.0, 1.5, 1.0], ACCURACIES, MACRO_F1S, strict=True))
    names = "val_loss", "val_accuracy", "val_macro_f1"
    monkeypatch.setattr(
        validate, "label_values", lambda *args: dict(zip(names, next(values), strict=True))
    )
    command = [*sft, f"--dataset={reviews}", f"--select_by={select_by}", "--log_interval=1"]
    command += ["--eval_interval=1", "--max_iters=4"]
    assert train_model([*command, f"--out_dir={tmp_path / 'out'}"]) == 0
    assert kept_step(tmp_path / "out") == kept
    output = capsys.readouterr().out
    assert f"accuracy 0.700, macro-F1 0.950, the best val {name} so far" in output
    assert f"best       val {name} " in output
    if name == "accuracy":
        assert "  best val accuracy 0.900  " in output
        assert records(tmp_path / "out", "end")[0]["best_accuracy"] == 0.9


# ---------------------------------------------------------------- another measure


def of_an_older_version(monkeypatch: pytest.MonkeyPatch, **best: float | None) -> None:
    """Makes checkpoints look like those of a version that had these fields of the best model."""
    real = checkpoints.load_checkpoint

    def older(folder: Path) -> tuple:
        weights, optimizer, saved = real(folder)
        del saved["run"]["best_measure"], saved["run"]["best_value"]
        return weights, optimizer, {**saved, "run": saved["run"] | best}

    monkeypatch.setattr(checkpoints, "load_checkpoint", older)


@pytest.mark.parametrize(
    "changes, is_kept",
    [
        ([], True),  # all questions are asked
        (["--eval_questions=15"], False),  # the first ones were asked before
    ],
)
def test_a_resumed_older_run_keeps_its_best_if_it_was_measured_alike(
    sft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: list[str], is_kept: bool
) -> None:
    command = [*sft, *changes, f"--out_dir={tmp_path / 'out'}"]
    assert train_model([*command, "--max_iters=1"]) == 0
    of_an_older_version(monkeypatch, best_loss=0.1, best_rouge_l=1.0)
    assert train_model([f"--out_dir={tmp_path / 'out'}", "--resume", "--max_iters=2"]) == 0
    best = records(tmp_path / "out", "end")[-1]["best_rouge_l"]
    assert (best == 1.0) == is_kept


def test_a_resumed_older_run_with_labels_forgets_its_best(
    sft, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*sft, f"--dataset={reviews}", f"--out_dir={tmp_path / 'out'}"]
    assert train_model([*command, "--max_iters=1"]) == 0
    of_an_older_version(monkeypatch, best_loss=0.1, best_rouge_l=1.0)
    assert train_model([f"--out_dir={tmp_path / 'out'}", "--resume", "--max_iters=2"]) == 0
    [last] = [r for r in records(tmp_path / "out", "eval") if r["step"] == 2]
    assert records(tmp_path / "out", "end")[-1]["best_accuracy"] == last["val_accuracy"]


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


# ---------------------------------------------------------------- a part of the text


def test_eval_tokens_are_whole_windows_from_the_whole_text(dataset: Path) -> None:
    tokens = TextDataset(dataset, "val").tokens.astype(np.int64)
    data = RunData(TrainSettings(dataset=str(dataset), eval_tokens=200))
    scored = np.concatenate([targets[targets != IGNORE] for _, targets in data.val_batches(64, 4)])
    last = (len(tokens) - 1) // 64  # the last window
    places = [last * n // 3 for n in range(4)]  # 200 tokens take four windows of 64
    expected = [tokens[64 * place : 64 * place + 64] for place in places]
    assert scored.tolist() == np.concatenate(expected).tolist()


@pytest.mark.parametrize("share, is_whole", [(0.5, False), (1.0, True), (2.0, True)])
def test_bits_per_character_are_logged_if_the_whole_text_is_scored(
    tiny: list[str], dataset: Path, tmp_path: Path, share: float, is_whole: bool
) -> None:
    eval_tokens = int(share * len(TextDataset(dataset, "val")))
    command = [*tiny, f"--eval_tokens={eval_tokens}", "--max_iters=1", "--sample_tokens=0"]
    assert train_model([*command, f"--out_dir={tmp_path / 'out'}"]) == 0
    assert all(("bits_per_char" in r) == is_whole for r in records(tmp_path / "out", "eval"))
