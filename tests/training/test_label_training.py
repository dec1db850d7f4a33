"""Training on labels: a resumed run is exact, the test has no part in it, settings are checked."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from shuoshu.core.errors import REPO_ROOT
from shuoshu.core.files import sha256_of
from shuoshu.generation.judge import Judge
from shuoshu.models.votes import label_marks
from shuoshu.models.weights import load_model
from shuoshu.sft.label_dataset import LabelDataset, ReadingRows
from shuoshu.text.dataset import IGNORE
from shuoshu.text.tokenizer_folder import load_tokenizer
from shuoshu.training.schedule import is_reading
from shuoshu.training.state import Plan, RunState
from tests.in_process import killed_at, records, train_model
from tests.labelled_texts import SETTINGS, prepared


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("labels"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("runs") / "out"
    assert train_model([*SETTINGS, f"--dataset={data}", f"--out_dir={out_dir}"]) == 0
    return out_dir


def test_it_learns_and_the_model_knows_how_it_labels(trained):
    loaded = load_model(trained)
    labelling = loaded.purpose.labelling
    assert loaded.purpose.task == "labels" and labelling.labels == ("满意", "不满意")
    assert labelling.question == "评：{评论}" and labelling.judges_by == "text"
    assert labelling.is_corrected
    judge = Judge(loaded)
    prompts = [judge.prompt_ids(f"评：{text}") for text in ("香甜清爽热闹", "冷淡昏暗嘈杂")]
    good, bad = judge.probabilities(prompts, 2)
    assert good[0] > 0.8 and bad[1] > 0.8
    evaluations = records(trained, "eval")
    assert evaluations[-1]["val_accuracy"] > 0.9 > evaluations[0]["val_accuracy"]


def test_a_resumed_run_gives_the_same_bytes(data, trained, tmp_path):
    out_dir = tmp_path / "out"
    command = [*SETTINGS, f"--dataset={data}", f"--out_dir={out_dir}"]
    assert train_model(command, killed_at(15)) == 130
    assert train_model([*command, "--resume"]) == 0
    name = "model.safetensors"
    assert sha256_of(out_dir / name) == sha256_of(trained / name)


def test_the_test_has_no_part_in_the_model_nor_in_its_correction(trained, tmp_path):
    """With the labels of the test reversed, nothing of the model changes."""
    data = prepared(tmp_path, test_is_reversed=True)
    out_dir = tmp_path / "out"
    assert train_model([*SETTINGS, f"--dataset={data}", f"--out_dir={out_dir}"]) == 0
    name = "model.safetensors"
    assert sha256_of(out_dir / name) == sha256_of(trained / name)
    assert load_model(out_dir).purpose == load_model(trained).purpose


def test_the_logged_loss_is_the_log_loss_of_the_uncorrected_labels(data, trained):
    loaded = load_model(trained)
    labelling = loaded.purpose.labelling.uncorrected()
    loaded = loaded._replace(purpose=loaded.purpose._replace(labelling=labelling))
    judge = Judge(loaded)
    lines = (data / "val.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    probabilities = judge.probabilities([judge.prompt_ids(row["question"]) for row in rows], 7)
    true = [labelling.labels.index(row["answer"]) for row in rows]
    expected = -np.log(probabilities[np.arange(len(rows)), true]).mean()
    [logged] = [r for r in records(trained, "eval") if r["step"] == loaded.step]
    assert logged["val_loss"] == pytest.approx(expected, abs=1e-5)


def test_an_untrained_model_is_never_the_best(data, tmp_path):
    out_dir = tmp_path / "out"
    command = [*SETTINGS, f"--dataset={data}", f"--out_dir={out_dir}", "--max_iters=2"]
    assert (
        train_model(
            [*command, "--learning_rate=0", "--embedding_lr=0", "--head_lr=0", "--norm_lr=0"]
        )
        == 0
    )
    assert [r["kept"] for r in records(out_dir, "eval")] == [True, True]
    assert records(out_dir, "end")[0]["best_step"] == 2


def test_a_heavy_label_wins_while_little_is_learnt(data, tmp_path):
    """A third of the validation texts are 不满意, which is then said of all of them."""
    accuracies = []
    for weights in ("满意=1,不满意=1", "满意=1,不满意=50"):
        out_dir = tmp_path / str(len(accuracies))
        command = [
            *SETTINGS,
            f"--dataset={data}",
            f"--out_dir={out_dir}",
            "--max_iters=8",
            "--warmup_iters=0",
        ]
        assert train_model([*command, f"--label_weights={weights}"]) == 0
        accuracies.append(records(out_dir, "eval")[-1]["val_accuracy"])
        assert not load_model(out_dir).purpose.labelling.bias  # it would take the weights back
    assert accuracies[0] > 0.6 and accuracies[1] < 0.4


# ---------------------------------------------------------------- reading first


READING = [
    str(REPO_ROOT / "config" / "read_first.py"),
    "--read_fraction=0.5",
    "--log_interval=2",
    "--decay_fraction=0.2",
]


@pytest.fixture(scope="module")
def reader(data, tmp_path_factory):
    """A run that reads texts for 20 steps, then labels them for 20."""
    out_dir = tmp_path_factory.mktemp("runs") / "out"
    assert train_model([*SETTINGS, *READING, f"--dataset={data}", f"--out_dir={out_dir}"]) == 0
    return out_dir


def test_it_reads_first_then_learns_labels_at_lower_rates(reader):
    steps = {r["step"]: r for r in records(reader, "step")}
    reading = {n: r["reading_loss"] for n, r in steps.items() if "reading_loss" in r}
    assert list(reading) == list(range(2, 21, 2))
    assert reading[2] > reading[20] > 1 > steps[22]["loss"]  # many tokens to guess; two labels
    assert steps[22]["lr"] <= 0.3 * steps[20]["lr"]
    evaluations = {r["step"]: r for r in records(reader, "eval")}
    assert list(evaluations) == [0, 24, 32, 40]  # none while it reads
    assert evaluations[40]["val_accuracy"] > 0.9


def test_the_texts_are_read_without_their_labels(data):
    tokenizer = load_tokenizer(data)
    answers = [tokenizer.encode_answer(label) for label in ("满意", "不满意")]
    labelled = LabelDataset(data, "train", answers, label_marks(tokenizer, 2), step_rows=4)
    rows = ReadingRows(labelled)
    ids, targets = rows.rows(8, 4, 64, seed=1)
    for place, number in enumerate(labelled.row_ids(8, 4, 64, 1).tolist()):
        row, mask = labelled.row(number)
        text = row[mask == 0]
        assert mask.sum() and ids[place, : len(text) - 1].tolist() == text[:-1].tolist()
        read = targets[place][targets[place] != IGNORE]
        assert read.tolist() == text[1:].tolist()
    assert rows.count_targets(8, 4, 64, seed=1) == (targets != IGNORE).sum()


@pytest.mark.parametrize("step", [15, 29])
def test_a_run_that_is_resumed_while_it_reads_or_after_it_gives_the_same_bytes(
    data, reader, tmp_path, step
):
    out_dir = tmp_path / "out"
    command = [*SETTINGS, *READING, f"--dataset={data}", f"--out_dir={out_dir}"]
    assert train_model(command, killed_at(step)) == 130
    assert train_model([*command, "--resume"]) == 0
    name = "model.safetensors"
    assert sha256_of(out_dir / name) == sha256_of(reader / name)


def test_a_run_that_is_made_longer_does_not_read_again(data, reader, tmp_path):
    out_dir = tmp_path / "out"
    shutil.copytree(reader, out_dir)
    command = [*SETTINGS, *READING, f"--dataset={data}", f"--out_dir={out_dir}"]
    assert train_model([*command, "--max_iters=90", "--resume"]) == 0
    assert max(r["step"] for r in records(out_dir, "step") if "reading_loss" in r) == 20


@pytest.mark.parametrize(
    "step, has_read, plan, reads",
    [
        (0, False, Plan(40, 20), True),
        (19, True, Plan(40, 20), True),
        (20, True, Plan(40, 20), False),
        (10, False, Plan(40, 20), False),  # a run that began with labels
        (0, False, Plan(1, 1), False),  # the last step is always one for labels
        (7, True, Plan(None, 0.5, share=0.49), True),
        (7, True, Plan(None, 0.5, share=0.5), False),
        (7, True, Plan(8, 0.5, share=0.3), False),
    ],
)
def test_the_share_of_the_run_decides_what_a_step_trains(step, has_read, plan, reads):
    assert is_reading(RunState(step=step, reads=has_read, plan=plan), 0.5) == reads


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--judge_by=answer", "--read_fraction=0.5"], "needs labels and --judge_by=text"),
        (["--read_fraction=1"], "read_fraction"),
        (["--paraphrases=2"], "labelled texts have none"),
        (["--label_weights=满意=1"], "it must give a number to each of the labels"),
        (["--judge_by=answer", "--label_weights=balanced"], "needs --judge_by=text"),
        (["--select_by=rouge"], "for which it is one of auto, accuracy, macro_f1, loss"),
    ],
)
def test_settings_that_do_not_fit_labels_are_refused(data, tmp_path, capsys, arguments, message):
    command = [*SETTINGS, f"--dataset={data}", f"--out_dir={tmp_path / 'out'}", *arguments]
    assert train_model(command) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_text_has_no_labels_to_vote_for(dataset, tmp_path, capsys):
    command = [*SETTINGS, f"--dataset={dataset}", f"--out_dir={tmp_path / 'out'}"]
    assert train_model(command) == 2
    assert "holds text: judge_by=text and label_weights need labels" in capsys.readouterr().err
