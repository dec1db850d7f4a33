"""bench.py: every part on a tiny model, beside a stand-in for a nanoGPT checkout with its command line and its model's interface."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from types import SimpleNamespace

import pytest

import bench
from shuoshu.bench import scale, throughput, time_to_loss
from shuoshu.bench.measure import exponent, interleave
from shuoshu.bench.nanogpt import NanoGPT
from shuoshu.core.cli import parse
from shuoshu.core.errors import UserError
from shuoshu.core.settings import TrainSettings

TRAIN = """
import os, pickle, sys, time
from ast import literal_eval
settings = {}
for argument in sys.argv[1:]:
    key, value = argument.removeprefix('--').split('=')
    try:
        settings[key] = literal_eval(value)
    except (SyntaxError, ValueError):
        settings[key] = value
kinds = {'learning_rate': float, 'dropout': float, 'min_lr': float, 'max_iters': int, 'compile': bool, 'device': str, 'block_size': int, 'eval_interval': int}
assert all(type(settings.get(key, kind())) is kind for key, kind in kinds.items()), settings
if settings['compile']:
    sys.exit('no compiler')
folder = os.path.join('data', settings['dataset'])
with open(os.path.join(folder, 'meta.pkl'), 'rb') as file:
    vocab_size = pickle.load(file)['vocab_size']
assert os.path.getsize(os.path.join(folder, 'train.bin')) > 2 * settings['block_size'] and settings['device'] == 'cpu' and settings['dtype'] == 'float32'
os.makedirs(settings['out_dir'], exist_ok=True)
for number in range(settings['max_iters'] + 1):
    if number % settings['eval_interval'] == 0:
        print(f'step {number}: train loss 5.0000, val loss 5.0000')
        if number:
            import numpy as np
            import torch
            from model import GPT, GPTConfig
            names = ('n_layer', 'n_head', 'n_embd', 'block_size', 'dropout')
            args = {**{name: settings[name] for name in names}, 'vocab_size': vocab_size, 'bias': False}
            model, tokens = GPT(GPTConfig(**args)), np.fromfile(os.path.join(folder, 'train.bin'), dtype=np.uint16)
            model.lm_head.bias.data = torch.from_numpy(np.log(np.bincount(tokens, minlength=vocab_size) + 1.0)).float()  # it has learned how common tokens are
            saved = {'model': model.state_dict(), 'model_args': args, 'iter_num': number, 'best_val_loss': torch.tensor(5.0)}
            torch.save(saved, os.path.join(settings['out_dir'], 'ckpt.pt'))
    print(f'iter {number}: loss 5.0000, time 20.00ms, mfu -100.00%')
    while os.path.exists(os.path.join(settings['out_dir'], 'ckpt.pt')):
        time.sleep(0.001)  # its trainings take longer than fetching a checkpoint, this one waits
"""
MODEL = """
from dataclasses import dataclass
import torch
from torch.nn import functional as F

@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float = 0.0
    bias: bool = True

class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embedding = torch.nn.Embedding(config.vocab_size, config.n_embd)
        self.lm_head = torch.nn.Linear(config.n_embd, config.vocab_size)

    def forward(self, ids, targets=None):
        logits = self.lm_head(self.embedding(ids))
        return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), lr=learning_rate, betas=betas, weight_decay=weight_decay)

    def generate(self, ids, max_new_tokens, temperature=1.0, top_k=None):
        for _ in range(max_new_tokens):
            logits = self(ids)[0][:, -1] / temperature
            ids = torch.cat((ids, torch.multinomial(logits.softmax(-1), 1)), dim=1)
        return ids
"""
TINY = [
    "--n_layer=1",
    "--n_head=2",
    "--n_embd=32",
    "--block_size=32",
    "--batch_size=2",
    "--threads=1",
    "--device=cpu",
    "--dtype=float32",
]
SHORT = ["--pairs=2", "--seconds=0.02", "--tokens=6"]


NO_COMPILER = """
def refuse(*_):
    raise RuntimeError('no compiler')

torch.compile = refuse
"""


def write_checkout(folder: Path, compiles: bool = False) -> Path:
    """What stands in for a nanoGPT checkout; compiling even so small a model takes ten seconds."""
    folder.mkdir()
    for name, source in (
        ("train.py", TRAIN),
        ("model.py", MODEL + NO_COMPILER * (not compiles)),
        ("configurator.py", ""),
    ):
        (folder / name).write_text(source, encoding="utf-8")
    return folder


@pytest.fixture
def checkout(tmp_path, request):
    return write_checkout(tmp_path / "their GPT", getattr(request, "param", False))


@pytest.fixture
def measured(checkout, tmp_path):
    """What --json holds after `bench.py PART …` beside the stand-in; the checkout must be as it was."""

    def run(*argv: str) -> dict:
        before = {path.name: path.read_bytes() for path in checkout.iterdir()}
        assert bench.main([*SHORT, *argv, f"--json={tmp_path / 'raw.json'}"]) == 0
        assert {path.name: path.read_bytes() for path in checkout.iterdir()} == before
        return json.loads((tmp_path / "raw.json").read_text(encoding="utf-8"))

    return run


def figures_follow_from_rounds(raw: dict, title: str, *names: str) -> None:
    """Medians and ratios of medians are those of the rounds."""
    rounds, unit = raw["rounds"][title]["found"], raw["rounds"][title]["unit"]
    assert len(rounds) == 2 and all(
        set(found) == set(names) and min(found.values()) > 0 for found in rounds
    )
    for name in names:
        assert raw["figures"][f"{title}: {name}, {unit}"] == statistics.median(
            found[name] for found in rounds
        )
    for name in names[1:]:
        assert raw["figures"][f"{title}: {names[0]} / {name}"] == statistics.median(
            found[names[0]] / found[name] for found in rounds
        )


# ---------------------------------------------------------------- comparing


def test_contenders_take_turns_and_every_second_round_goes_backwards():
    went = []
    contenders = {name: lambda name=name: went.append(name) or len(went) for name in "abc"}
    rounds = interleave(contenders, 3)
    assert "".join(went) == "abccbaabc"
    assert rounds[1] == {"a": 6, "b": 5, "c": 4} and list(rounds[1]) == ["a", "b", "c"]


def test_an_exponent_is_the_power_that_a_cost_grows_with():
    sizes = [1, 3, 10, 40]
    assert exponent(sizes, [5 * size**1.5 for size in sizes]) == pytest.approx(1.5)
    assert exponent(sizes, [7] * 4) == pytest.approx(0)
    assert exponent([1, 10, 100], [1, 20, 100]) == pytest.approx(
        1
    )  # least squares: what lies off in the middle doesn't tilt


def test_a_curve_reaches_its_goal_between_two_evaluations():
    points = [(0.0, 8.0), (10.0, 4.0), (20.0, 3.0), (30.0, 3.5)]
    assert time_to_loss.reached(points, 6.0) == 5.0 and time_to_loss.reached(points, 3.0) == 20.0
    assert time_to_loss.reached(points, 2.9) is None and time_to_loss.reached(points, 9.0) == 0.0


@pytest.mark.parametrize(("seconds", "step"), [(300, 0.7), (1, 0.9), (0.01, 5), (60, 0.001)])
def test_a_training_ends_with_an_evaluation_about_when_it_should(seconds, step):
    steps, every = time_to_loss.steps_in(seconds, step)
    assert steps % every == 0 and abs(steps * step - seconds) <= max(
        step, seconds / time_to_loss.POINTS
    )


def test_a_step_that_did_not_count_takes_its_time_all_the_same(monkeypatch):
    log = [{"step": 1, "tokens_per_second": 100.0}, {"step": 3, "tokens_per_second": 50.0}]
    evaluations = [{"step": step, "bits_per_char": 6.0} for step in (0, 3)]
    monkeypatch.setattr(
        time_to_loss, "read_meta", lambda data: {"splits": {"val": {"characters": 10, "bytes": 30}}}
    )
    reader = SimpleNamespace(read=lambda kind: log if kind == "step" else evaluations)
    assert time_to_loss.from_log(reader, Path(), 200) == [(0.0, 2.0), (2.0 + 2 * 4.0, 2.0)]


def test_the_first_iterations_of_the_peer_do_not_count(checkout, tmp_path, monkeypatch):
    peer = NanoGPT(checkout, tmp_path / "peer", {})
    told = [
        (0, 9.0, True),
        (1, 5.0, False),
        (2, 4.0, False),
        (3, 0.02, False),
        (4, 0.04, False),
        (5, 7.0, False),
    ]
    monkeypatch.setattr(peer, "iterations", lambda command: (each for each in told))
    assert peer.lap([], 0.06) == pytest.approx(0.03)


def test_what_was_found_stays_when_the_bench_fails(checkout, tmp_path, monkeypatch):
    def fail(bench):
        bench.report.figure("half", 0.5)
        raise UserError("the disk is full")

    monkeypatch.setattr(scale, "scale", fail)
    assert bench.main(["scale", f"--json={tmp_path / 'raw.json'}"]) == 2
    raw = json.loads((tmp_path / "raw.json").read_text(encoding="utf-8"))
    assert raw["figures"] == {"half": 0.5} and raw["complete"] is False


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize("checkout", [True], indirect=True)
def test_training_is_measured_beside_the_peer_and_the_limit(measured, checkout, dataset):
    raw = measured(
        "train", str(dataset), f"--vs={checkout}", *TINY, "--train_args=--learning_rate=0.01"
    )
    figures_follow_from_rounds(raw, "train", "ours", "shipped", "fair", "limit")
    assert all(
        found["shipped"] == pytest.approx(2 * 32 / 0.020)
        for found in raw["rounds"]["train"]["found"]
    )  # what its train.py told
    assert (
        raw["part"] == "train"
        and raw["settings"]["n_embd"] == 32
        and raw["settings"]["vs"] == str(checkout)
    )
    assert any(
        "train.py --dataset=bench" in command and "--dtype=float32" in command
        for command in raw["commands"]
    )
    assert any("--learning_rate=0.01" in command for command in raw["commands"])
    (ours,) = [facts for facts in raw["facts"] if facts["of"] == "ours"]
    assert ours["vocabulary"] == 512 and ours["torch"] and ours["cpu"] and ours["memory"] > 0
    (fair,) = [facts for facts in raw["facts"] if facts["of"] == "fair"]
    assert {"eager", "compiled"} <= set(fair)


def test_sampling_is_measured_alone_and_in_batches(measured, checkout, dataset):
    raw = measured("sample", str(dataset), f"--vs={checkout}", *TINY)
    for rows in throughput.ROWS:
        figures_follow_from_rounds(raw, f"sampling, batch {rows}", "ours", "shipped", "fair")


def test_the_race_ends_with_curves_of_both_scored_alike(
    measured, checkout, dataset, tmp_path, capsys
):
    raw = measured(
        "loss",
        str(dataset),
        f"--vs={checkout}",
        *TINY,
        "--minutes=0.01",
        "--rate=0.01",
        "--share=2",
        f"--picture={tmp_path / 'curves.png'}",
    )
    (theirs,), (mine,) = raw["curves"]["peer"].values(), raw["curves"]["ours"].values()
    assert theirs[-1][0] == pytest.approx(0.020 * round(theirs[-1][0] / 0.020)) and theirs[-1][
        0
    ] == pytest.approx(0.6, rel=0.1)
    assert (
        mine[-1][1] < theirs[-1][1] < mine[0][1] < math.log2(512) and mine[0][0] == 0
    )  # trained, counted, blind, bits a token
    assert raw["figures"]["loss: nanoGPT's end, bits per byte"] == theirs[-1][1]
    when = time_to_loss.reached([tuple(point) for point in mine], theirs[-1][1])
    assert raw["figures"]["loss: seconds of ours to nanoGPT's end"] == when
    assert raw["figures"]["loss: times shorter than nanoGPT's"] == theirs[-1][0] / when
    assert raw["figures"]["loss: times shorter than a fair nanoGPT's"] > 0 and raw["complete"]
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert "no compiler" in capsys.readouterr().out  # the stand-in doesn't compile: eager was taken


def test_growth_is_measured_beside_what_is_demanded(measured, monkeypatch, dataset, capsys):
    monkeypatch.setattr(scale, "SIZES", {"a": (1, 1, 16), "b": (1, 2, 256), "vast": (2, 64, 65536)})
    raw = measured("scale", str(dataset), "--series=size", *TINY, "--batch_size=4", "--pairs=1")
    small, large = raw["series"]["size"]
    assert (
        "skipped: size vast: it needs about" in capsys.readouterr().out
    )  # the machine is not filled to find out
    assert (small["point"], large["point"], small["rows"], small["context"]) == ("a", "b", 4, 32)
    assert (
        0 <= small["memory"] < large["memory"] < 2e9
        and small["tokens_per_second"] > large["tokens_per_second"] > 0 < large["matrix"]
    )
    assert (
        small["demanded"]["model and Muon"] - small["demanded"]["the model"]
        == small["optimizer_flops"]
        > 3 * 2 * 16**3 * 7
    )
    assert large["share"]["the model"] == pytest.approx(
        large["flops_per_token"] * large["tokens_per_second"] / large["matrix"]
    )


def test_every_series_has_its_rounds_and_its_exponents(measured, monkeypatch, dataset, capsys):
    """On a machine whose cost is known: a token takes as long as its row has tokens, and a step a second beyond that."""
    went = []

    def known(bench, words, again):
        settings = parse(TrainSettings, words, "")
        if settings.batch_size == 64:
            raise UserError("killed")
        went.append((settings.block_size, settings.batch_size))
        context, rows = settings.block_size, settings.batch_size
        facts = {
            "parameters": 1000,
            "context": context,
            "rows": rows,
            "flops_per_token": 2 * context,
            "optimizer_flops": 10,
            "estimate": rows,
        }
        seconds = rows * context**2 + 1
        return facts, {
            "tokens_per_second": rows * context / seconds,
            "memory": rows**2,
            "matrix": 1.0,
        }

    monkeypatch.setattr(scale, "measured", known)
    raw = measured(
        "scale", str(dataset), "--series=context", "--series=batch", *TINY, "--seconds=60"
    )
    sizes = [(context, 8192 // context) for context in scale.CONTEXTS]
    assert went[:12] == [
        *sizes,
        *sizes[::-1],
    ]  # the tokens of a step stay the same; every second round goes backwards
    assert [(point["context"], point["rows"]) for point in raw["series"]["batch"]] == [
        (32, rows) for rows in (1, 2, 4, 8, 16, 32)
    ]
    assert "skipped: batch 64: killed" in capsys.readouterr().out
    assert all(len(point["found"]) == 2 for points in raw["series"].values() for point in points)
    exponents = {
        name.removeprefix("scale, ").removesuffix(", exponent"): value
        for name, value in raw["figures"].items()
    }
    assert exponents["context: seconds per token against context"] == pytest.approx(1, abs=0.01)
    assert exponents["context: operations per token, the model against context"] == pytest.approx(1)
    assert exponents["batch: seconds per step against rows"] == pytest.approx(1, abs=0.01)
    assert exponents["batch: operations per step, the model against rows"] == pytest.approx(1)
    assert (
        exponents["batch: operations per step, model and Muon against rows"] < 1
    )  # a step has one Muon
    assert exponents["batch: memory against rows"] == pytest.approx(2) and exponents[
        "batch: estimated memory against rows"
    ] == pytest.approx(1)
    monkeypatch.setattr(scale, "SLOW", 0)
    assert all(
        len(point["found"]) == 1
        for point in measured("scale", str(dataset), "--series=batch", *TINY)["series"]["batch"]
    )


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "name the part to measure"),
        (["speed"], "name the part to measure"),
        (
            ["train", "--vs=nowhere"],
            "nowhere is not a nanoGPT checkout; missing: train.py, model.py",
        ),
        (["scale", "--series=depth"], "series=depth: choose size, context or batch"),
        (["loss", "--rate=fast"], "rate=fast: it must be a number"),
        (["train", "--json=nowhere/raw.json"], "there is no folder nowhere"),
    ],
)
def test_a_mistake_is_one_message(argv, told, capsys):
    assert bench.main(argv) == 2
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error


def test_a_peer_that_fails_says_why(checkout, dataset, capsys):
    (checkout / "model.py").write_text("raise ImportError('half a checkout')", encoding="utf-8")
    assert bench.main(["sample", str(dataset), f"--vs={checkout}", *TINY, *SHORT]) == 2
    assert "half a checkout" in capsys.readouterr().err
