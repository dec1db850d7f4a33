"""shuoshu/training/step.py: non-finite steps are skipped; batches are halved when out of memory."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from model import GPT, GPTConfig
from shuoshu.core.files import sha256_of
from shuoshu.core.run_log import RunLog
from shuoshu.core.settings import OptimSettings
from shuoshu.evaluation.loss import Score
from shuoshu.sft.dataset import QuestionDataset
from shuoshu.text.dataset import TextDataset
from shuoshu.training import checkpoints, console, step, validate
from shuoshu.training import optimizers as training_optimizers
from tests.in_process import train_model

SHORT = [
    "--max_iters=12",
    "--eval_interval=12",
    "--log_interval=4",
    "--sample_tokens=0",
    "--dropout=0",
]


def poison(monkeypatch, steps, value=math.nan):
    """Makes the gradient of these steps non-finite."""
    real = step.accumulate_gradients

    def poisoned(trainer, data, number, reads):
        loss = real(trainer, data, number, reads)
        if number in steps:
            next(trainer.raw.parameters()).grad[0, 0] = value
        return loss

    monkeypatch.setattr(step, "accumulate_gradients", poisoned)


# ---------------------------------------------------------------- not finite


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_skipped_step_changes_neither_weights_nor_optimizers(decay):
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=64, block_size=16, n_layer=2, n_head=2, n_embd=32))
    optimizers = training_optimizers.build_optimizers(
        model, OptimSettings(weight_decay=decay), torch.device("cpu"), torch.float32
    )
    ids = torch.randint(64, (2, 17))

    def take(is_bad):
        model(ids[:, :-1], ids[:, 1:]).backward()
        if is_bad:
            gradient = next(iter(model.model.layers.parameters())).grad
            gradient.view(-1)[0] = math.inf  # one entry of one optimizer
        training_optimizers.step_unless(torch.tensor(is_bad), optimizers)
        return [
            t.clone()
            for t in (
                *model.parameters(),
                *training_optimizers.state_tensors(model, optimizers).values(),
            )
        ]

    first = take(False)
    assert all(torch.equal(a, b) for a, b in zip(take(True), first, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(take(False), first, strict=True))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_non_finite_step_is_skipped_and_logged_with_its_rows(
    tiny, tmp_path, monkeypatch, capsys, dataset, optimizer
):
    poison(monkeypatch, {5, 6})
    assert (
        train_model([*tiny, *SHORT, f"--optimizer={optimizer}", f"--out_dir={tmp_path / 'out'}"])
        == 0
    )
    out = capsys.readouterr().out
    assert (
        out.count("skipped: its loss or gradient is not finite") == 2
        and "12 steps (2 skipped)" in out
    )
    log = RunLog(tmp_path / "out" / "log.jsonl")
    data = TextDataset(dataset, "train")
    assert [(r["step"], r["rows"]) for r in log.read("skip")] == [
        (n, data.row_ids(4 * n, 4, 64, 1337).tolist()) for n in (5, 6)
    ]
    assert all(math.isfinite(r["loss"]) and r["loss"] > 1 for r in log.read("step"))
    for row, place in zip(data.rows(20, 4, 64, 1337)[0], log.read("skip")[0]["rows"], strict=True):
        assert row[0] == data.tokens[place]
    assert (
        json.loads(
            (checkpoints.newest_checkpoint(tmp_path / "out")[0] / "state.json").read_text(
                encoding="utf-8"
            )
        )["run"]["skipped"]
        == 2
    )


def test_rows_of_questions_are_named_by_their_number(qa):
    file = QuestionDataset(qa, "train", 4)
    numbers = file.row_ids(40, 4, 64, 7)
    for number, ids in zip(numbers, file.rows(40, 4, 64, 7)[0], strict=True):
        assert ids[: file.lengths[number] - 1].tolist() == file.row(number)[0][:-1].tolist()


def test_ten_skipped_steps_in_a_row_end_the_run_with_advice(tiny, tmp_path, monkeypatch, capsys):
    poison(monkeypatch, {*range(2, 11), *range(12, 40)}, math.inf)  # nine, then a finite one
    command = [
        *tiny,
        *SHORT,
        "--max_iters=40",
        "--eval_interval=20",
        "--save_interval=10",
        f"--out_dir={tmp_path / 'out'}",
    ]
    assert train_model(command) == 2
    err = capsys.readouterr().err
    assert (
        "10 steps in a row" in err
        and "step 21" in err
        and "lower --learning_rate (it is 0.02)" in err
        and "Traceback" not in err
    )
    newest, wrong = checkpoints.newest_checkpoint(tmp_path / "out")
    assert newest.name == "step-000000" and not wrong  # bad steps don't replace it
    assert train_model([*command, "--resume"]) == 2
    assert "10 steps in a row" in (err := capsys.readouterr().err) and "step 21" in err


def test_fp16_steps_that_only_lower_the_loss_scale_are_not_counted(
    tiny, tmp_path, monkeypatch, capsys
):
    poison(monkeypatch, set(range(14)), math.inf)
    command = [
        *tiny,
        *SHORT,
        "--max_iters=20",
        "--eval_interval=20",
        "--dtype=float16",
        f"--out_dir={tmp_path / 'out'}",
    ]
    assert train_model(command) == 0
    assert "skipped" not in capsys.readouterr().out
    poison(monkeypatch, set(range(40)), math.inf)
    assert train_model([*command, "--overwrite", "--max_iters=40"]) == 2
    assert "26 steps in a row" in capsys.readouterr().err


# ---------------------------------------------------------------- recomputed blocks


def test_with_recomputed_blocks_a_run_ends_with_the_same_bytes(tiny, tmp_path, monkeypatch):
    called, real = [], torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(
        "model.checkpoint", lambda *args, **kwargs: called.append(1) or real(*args, **kwargs)
    )
    ends, calls = [], []
    for switch in ("false", "true"):
        out_dir = tmp_path / switch
        command = [*tiny, *SHORT, "--dropout=0.1", f"--recompute={switch}", f"--out_dir={out_dir}"]
        assert train_model(command) == 0
        ends.append(sha256_of(checkpoints.newest_checkpoint(out_dir)[0] / "model.safetensors"))
        calls.append(len(called))
    assert ends[0] == ends[1] and calls == [0, 12 * 2]  # steps, layers


# ---------------------------------------------------------------- out of memory


def small_memory(monkeypatch, rows):
    """Makes a forward pass of more rows than these run out of memory."""
    real, seen = GPT.forward, []

    def forward(self, ids, *args, **kwargs):
        if self.training:
            seen.append(len(ids))
        if len(ids) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, ids, *args, **kwargs)

    monkeypatch.setattr(GPT, "forward", forward)
    return seen


def test_halved_micro_batches_train_the_same(tiny, tmp_path, monkeypatch, capsys):
    command = [*tiny, *SHORT, "--batch_size=8", "--optimizer=adamw", "--eval_tokens=60"]
    assert train_model([*command, f"--out_dir={tmp_path / 'whole'}"]) == 0
    seen = small_memory(monkeypatch, 3)
    monkeypatch.setattr(validate, "score", lambda *args: Score(100.0, 100, 0.0, None))
    assert train_model([*command, f"--out_dir={tmp_path / 'halved'}"]) == 0
    assert seen[:3] == [8, 4, 2] and set(seen[3:]) == {2}
    assert capsys.readouterr().out.count("out of memory: from step 0 on, ") == 2
    losses = [
        [r["loss"] for r in RunLog(tmp_path / name / "log.jsonl").read("step")]
        for name in ("whole", "halved")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    "rows_per_step, world, at_most, sizes",
    [
        (480, 16, 12, [10, 10, 10]),  # config/gpt2_124m.py on two machines of eight GPUs
        (480, 8, 12, [12] * 5),
        (31, 1, 12, [11, 11, 9]),
        (8, 2, 16, [4]),
    ],
)
def test_the_rows_of_a_process_are_shared_evenly_by_its_micro_batches(
    dataset, rows_per_step, world, at_most, sizes
):
    trainer = SimpleNamespace(
        settings=SimpleNamespace(seed=3),
        processes=SimpleNamespace(rank=world - 1, world_size=world),
        micro_rows=at_most,
        block_size=8,
        device=torch.device("cpu"),
    )
    data = SimpleNamespace(
        train=TextDataset(dataset, "train"), rows_per_step=rows_per_step, votes=False
    )
    batches = list(step.micro_batches(trainer, data, 1))
    assert [len(batch.inputs[0]) for batch in batches] == sizes
    assert [batch.is_last for batch in batches] == [False] * (len(sizes) - 1) + [True]


def test_if_one_row_does_not_fit_the_message_names_the_settings(
    tiny, tmp_path, monkeypatch, capsys
):
    small_memory(monkeypatch, 0)
    monkeypatch.setattr(validate, "score", lambda *args: Score(100.0, 100, 0.0, None))
    assert train_model([*tiny, *SHORT, f"--out_dir={tmp_path / 'out'}"]) == 2
    err = capsys.readouterr().err
    assert (
        "--block_size" in err
        and "--n_layer" in err
        and "even one row" in err
        and "Traceback" not in err
    )


def test_the_message_for_several_processes_names_the_settings():
    message = console.out_of_memory_message(
        SimpleNamespace(batch_size=16, gradient_accumulation_steps=3),
        SimpleNamespace(world_size=2, rank=1),
        16,
    )
    assert (
        "process 1" in message
        and "--batch_size=8 --gradient_accumulation_steps=6" in message
        and "--block_size" in message
    )
