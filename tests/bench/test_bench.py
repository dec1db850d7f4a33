"""bench.py: every part on a tiny model, beside a stand-in for a nanoGPT checkout."""

from __future__ import annotations

import io
import json
import math
import runpy
import statistics
import sys
import types
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import bench
from shuoshu.bench import scale, time_to_loss
from shuoshu.bench.context import OURS, THEIRS, BenchContext, run_command
from shuoshu.bench.measure import BenchReport, exponent, interleave
from shuoshu.bench.nanogpt import NanoGPT
from shuoshu.bench.settings import BenchSettings
from shuoshu.bench.throughput import TEXTS_AT_ONCE, fair_job
from shuoshu.core.cli import parse
from shuoshu.core.errors import UserError
from shuoshu.core.settings import TrainSettings
from tests.bench.fake_nanogpt import write_checkout
from tests.in_process import train_model

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


@pytest.fixture
def checkout(tmp_path, request):
    return write_checkout(tmp_path / "their GPT", getattr(request, "param", False))


@pytest.fixture
def in_process(monkeypatch):
    """Runs a worker, or our train.py, in this process: without four seconds of imports."""

    def run(command: list[str], env: dict[str, str], folder: Path) -> str:
        if command[1].endswith("train.py"):
            assert train_model(command[2:]) == 0
            return ""
        _, _, module, job = command
        with monkeypatch.context() as patched, redirect_stdout(io.StringIO()) as output:
            patched.chdir(folder)
            patched.setattr(sys, "argv", [module, job])
            patched.setattr(torch, "compile", torch.compile)  # the stand-in may replace it
            if module == THEIRS:
                model = types.ModuleType("model")
                patched.setitem(sys.modules, "model", model)
                source = (folder / "model.py").read_text(encoding="utf-8")
                exec(source, vars(model))
            try:
                runpy.run_module(module, run_name="__main__")
            except RuntimeError as error:
                raise UserError(str(error)) from None
        return output.getvalue()

    return run


def measured(folder: Path, run, part: str, *argv: str) -> dict:
    """What --json holds after `bench.py PART …`."""
    path = folder / "raw.json"
    bench.measure(parse(BenchSettings, [part, *SHORT, *argv, f"--json={path}"], ""), run)
    return json.loads(path.read_text(encoding="utf-8"))


def check_figures(raw: dict, title: str, *names: str) -> None:
    """Medians and median ratios follow from the rounds."""
    rounds, unit = raw["rounds"][title]["figures"], raw["rounds"][title]["unit"]
    assert all(set(figures) == set(names) and min(figures.values()) > 0 for figures in rounds)
    for name in names:
        values = [figures[name] for figures in rounds]
        assert raw["figures"][f"{title}: {name}, {unit}"] == statistics.median(values)
    for name in names[1:]:
        ratios = [figures[names[0]] / figures[name] for figures in rounds]
        assert raw["figures"][f"{title}: {names[0]} / {name}"] == statistics.median(ratios)


# ---------------------------------------------------------------- comparing


def test_programs_take_turns_and_every_second_round_is_reversed():
    order = []
    programs = [lambda name=name: order.append(name) or {name: len(order)} for name in "abc"]
    rounds = interleave(programs, 3)
    assert "".join(order) == "abccbaabc"
    assert rounds[1] == {"a": 6, "b": 5, "c": 4}


def test_an_exponent_is_the_power_of_the_growth():
    sizes = [1, 3, 10, 40]
    assert exponent(sizes, [5 * size**1.5 for size in sizes]) == pytest.approx(1.5)
    assert exponent(sizes, [7] * 4) == pytest.approx(0)
    assert exponent([1, 10, 100], [1, 20, 100]) == pytest.approx(1)  # least squares


def test_a_curve_reaches_its_goal_at_an_evaluation():
    points = [(0.0, 8.0), (10.0, 4.0), (20.0, 3.0), (30.0, 3.5)]
    assert time_to_loss.time_to(points, 6.0) == 10.0 and time_to_loss.time_to(points, 3.0) == 20.0
    assert time_to_loss.time_to(points, 2.9) is None and time_to_loss.time_to(points, 9.0) == 0.0


@pytest.mark.parametrize(("seconds", "step"), [(300, 0.7), (1, 0.9), (0.01, 5), (60, 0.001)])
def test_a_run_lasts_about_its_seconds_and_ends_with_an_evaluation(seconds, step):
    steps, interval = time_to_loss.steps_for(seconds, step)
    longest_error = max(step, seconds / time_to_loss.EVALUATIONS)
    assert steps % interval == 0 and abs(steps * step - seconds) <= longest_error


def test_the_time_of_a_skipped_step_is_counted():
    steps = [{"step": 1, "tokens_per_second": 100.0}, {"step": 3, "tokens_per_second": 50.0}]
    evaluations = [{"step": step, "bits_per_char": 6.0} for step in (0, 3)]
    log = SimpleNamespace(read=lambda kind: steps if kind == "step" else evaluations)
    val = {"characters": 10, "bytes": 30}
    assert time_to_loss.curve_of(log, val, 200) == [(0.0, 2.0), (2.0 + 2 * 4.0, 2.0)]


def test_the_first_iterations_of_nanogpt_do_not_count(tmp_path):
    folder = write_checkout(tmp_path / "checkout")
    seconds = (9.0, 5.0, 4.0, 0.02, 0.04, 7.0)
    lines = [f"iter {n}: loss 5.0, time {1000 * s}ms, mfu 1%" for n, s in enumerate(seconds)]
    (folder / "train.py").write_text(f"print({chr(10).join(lines)!r})", encoding="utf-8")
    nanogpt = NanoGPT(folder, tmp_path / "copy", {})
    assert nanogpt.seconds_per_step(nanogpt.command(), 0.06) == pytest.approx(0.03)


def test_figures_measured_before_an_error_are_written(tmp_path, monkeypatch):
    def fail(bench):
        bench.report.figure("half", 0.5)
        raise UserError("the disk is full")

    monkeypatch.setattr(scale, "measure_scale", fail)
    assert bench.main(["scale", f"--json={tmp_path / 'raw.json'}"]) == 2
    raw = json.loads((tmp_path / "raw.json").read_text(encoding="utf-8"))
    assert raw["figures"] == {"half": 0.5} and raw["complete"] is False


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize("checkout", [True], indirect=True)
def test_training_is_measured_beside_nanogpt_and_the_limit(in_process, checkout, dataset, tmp_path):
    before = {path.name: path.read_bytes() for path in checkout.iterdir()}
    argv = [*TINY, f"--vs={checkout}", "--train_args=--learning_rate=0.01"]
    raw = measured(tmp_path, in_process, "train", str(dataset), *argv)
    assert {path.name: path.read_bytes() for path in checkout.iterdir()} == before
    check_figures(raw, "train", "ours", "shipped", "fair", "limit")
    shipped = [figures["shipped"] for figures in raw["rounds"]["train"]["figures"]]
    assert shipped == pytest.approx([2 * 32 / 0.020] * 2)  # the time that it prints
    assert raw["part"] == "train" and raw["complete"] and raw["settings"]["n_embd"] == 32
    commands = "\n".join(raw["commands"])
    assert "train.py --dataset=bench" in commands and "--dtype=float32" in commands
    assert "--learning_rate=0.01" in commands
    [ours] = [note for note in raw["notes"] if note["about"] == "ours"]
    assert ours["vocabulary"] == 512 and ours["torch"] and ours["cpu"] and ours["memory"] > 0
    [fair] = [note for note in raw["notes"] if note["about"] == "fair"]
    assert {"eager", "compiled"} <= set(fair)


@pytest.mark.slow
def test_a_checkout_that_does_not_compile_is_measured_eagerly(checkout, dataset, tmp_path, capsys):
    settings = parse(BenchSettings, ["train", f"--vs={checkout}", *TINY, *SHORT], "")
    context = BenchContext(settings, BenchReport("train", settings), tmp_path)
    context.nanogpt.write_data(dataset, 512)
    job, result = fair_job(context, {"vocabulary": 512, "dtype": "float32"})
    assert not job["compiled"] and result["figures"]["tokens"] > 0
    output = capsys.readouterr().out
    assert "doesn't run compiled here" in output and "RuntimeError: no compiler" in output


def test_sampling_is_measured_alone_and_in_batches(in_process, checkout, dataset, tmp_path):
    raw = measured(tmp_path, in_process, "sample", str(dataset), f"--vs={checkout}", *TINY)
    for rows in TEXTS_AT_ONCE:
        check_figures(raw, f"sampling, batch {rows}", "ours", "shipped", "fair")


def test_both_loss_curves_are_scored_by_one_evaluator(in_process, checkout, dataset, tmp_path):
    def run(command: list[str], env: dict[str, str], folder: Path) -> str:
        output = in_process(command, env, folder)
        if command[2] != OURS:
            return output
        result = json.loads(output.splitlines()[-1])
        result["figures"]["tokens"] = 2 * 32 / 0.01  # 100 steps a second on any machine
        return json.dumps(result)

    more = ["--minutes=0.01", "--rate=0.01", "--share=2", f"--picture={tmp_path / 'curves.png'}"]
    raw = measured(tmp_path, run, "loss", str(dataset), f"--vs={checkout}", *TINY, *more)
    [theirs], [ours] = (list(raw["curves"][name].values()) for name in ("nanogpt", "ours"))
    end = theirs[-1][0]
    assert end == pytest.approx(0.020 * round(end / 0.020)) and end == pytest.approx(0.6, rel=0.1)
    goal, seconds = min((bits, seconds) for seconds, bits in theirs)
    assert goal < theirs[-1][1] and seconds <= end / 2  # the stand-in over-fits after its half
    # A trained model, one that knows token frequencies, an untrained one, bits of a token.
    assert ours[-1][1] < goal < ours[0][1] < math.log2(512) and ours[0][0] == 0
    reached = time_to_loss.time_to([tuple(point) for point in ours], goal)
    figures = raw["figures"]
    assert figures["loss: times shorter than nanoGPT's"] == seconds / reached
    assert figures["loss: best of nanogpt, bits per byte"] == goal
    assert figures["loss: seconds of nanoGPT to its best"] == seconds
    assert figures["loss: seconds of ours to nanoGPT's best"] == reached
    assert figures["loss: times shorter than a fair nanoGPT's"] > 0
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_an_adapter_is_trained_on_the_rows_and_with_the_losses_of_peft(
    in_process, pretrained, qa, tmp_path
):
    losses = {}

    def run(command: list[str], env: dict[str, str], folder: Path) -> str:
        output = in_process(command, env, folder)
        order = json.loads(command[3]).get("order", "of ours")
        losses[order] = json.loads(output.splitlines()[-1])["facts"]["losses"]
        return output

    argv = ["--steps=1", "--batch_size=4", "--train_args=--dropout=0", *TINY[-3:]]
    raw = measured(tmp_path, run, "lora", str(pretrained), str(qa), *argv, "--pairs=1")
    check_figures(raw, "LoRA", "ours", "same rows", "own rows")
    check_figures(raw, "LoRA, peak", "ours", "same rows", "own rows")
    assert losses["ours"][0] == pytest.approx(losses["of ours"][0], rel=1e-5)
    assert losses["ours"] == pytest.approx(losses["of ours"], rel=0.03)  # adapters start unlike
    assert losses["random"] != pytest.approx(losses["of ours"], rel=0.03)


def test_text_is_measured_beside_that_of_transformers(in_process, pretrained, tmp_path):
    argv = ["--tokens=4", "--pairs=1", "--device=cpu", "--threads=1"]
    raw = measured(tmp_path, in_process, "generate", str(pretrained), *argv)
    for rows in TEXTS_AT_ONCE:
        check_figures(raw, f"generate, batch {rows}", "ours", "theirs")


@pytest.mark.slow
def test_growth_is_measured_in_processes_beside_the_arithmetic(monkeypatch, dataset, tmp_path):
    monkeypatch.setattr(scale, "SIZES", {"a": (1, 1, 16), "b": (1, 2, 256)})
    argv = ["--series=size", *TINY, "--batch_size=4", "--pairs=1"]
    raw = measured(tmp_path, run_command, "scale", str(dataset), *argv)
    small, large = raw["series"]["size"]
    assert (small["point"], large["point"], small["rows"], small["context"]) == ("a", "b", 4, 32)
    assert 0 <= small["memory"] < large["memory"] < 2e9
    assert small["tokens"] > large["tokens"] > 0 < large["matrix"]
    muon = small["demanded"]["model and Muon"] - small["demanded"]["the model"]
    assert muon == small["optimizer_flops"] > 3 * 2 * 16**3 * 7
    share = large["flops_per_token"] * large["tokens"] / large["matrix"]
    assert large["share"]["the model"] == pytest.approx(share)


def test_a_point_that_needs_too_much_memory_is_skipped(
    in_process, monkeypatch, dataset, tmp_path, capsys
):
    monkeypatch.setattr(scale, "SIZES", {"a": (1, 1, 16), "vast": (2, 64, 65536)})
    argv = ["--series=size", *TINY, "--pairs=1"]
    raw = measured(tmp_path, in_process, "scale", str(dataset), *argv)
    assert [point["point"] for point in raw["series"]["size"]] == ["a"]
    assert "skipped: size vast: it needs about" in capsys.readouterr().out


def known_machine(went: list[tuple[int, int]]):
    """Answers jobs like a machine of known speed: a token takes as many seconds as its row has
    tokens, and each step one second more. 64 rows are too many for it."""

    def run(command: list[str], env: dict[str, str], folder: Path) -> str:
        settings = parse(TrainSettings, json.loads(command[3])["argv"], "")
        context, rows = settings.block_size, settings.batch_size
        if rows == 64:
            raise UserError("killed")
        went.append((context, rows))
        facts = {"parameters": 1000, "context": context, "rows": rows, "dtype": "float32"}
        facts |= {"flops_per_token": 2 * context, "optimizer_flops": 10, "compiled": False}
        tokens = rows * context / (rows * context**2 + 1)
        figures = {"tokens": tokens, "memory": rows**2, "matrix": 1.0}
        return json.dumps({"facts": {**facts, "estimate": rows}, "figures": figures})

    return run


def test_every_series_has_its_rounds_and_its_exponents(dataset, tmp_path, capsys, monkeypatch):
    went: list[tuple[int, int]] = []
    series = ["--series=context", "--series=batch", *TINY, "--seconds=60"]
    raw = measured(tmp_path, known_machine(went), "scale", str(dataset), *series)
    sizes = [(context, 8192 // context) for context in scale.CONTEXTS]  # equal tokens per step
    assert went[:12] == [*sizes, *sizes[::-1]]
    points = raw["series"]["batch"]
    assert [(p["context"], p["rows"]) for p in points] == [(32, 2**n) for n in range(6)]
    assert "skipped: batch 64: killed" in capsys.readouterr().out
    assert all(len(point["rounds"]) == 2 for s in raw["series"].values() for point in s)
    exponents = {
        name.removeprefix("scale, ").removesuffix(", exponent"): value
        for name, value in raw["figures"].items()
    }
    expected = {
        "context: seconds per token against context": 1,
        "context: operations per token, the model against context": 1,
        "batch: seconds per step against rows": 1,
        "batch: operations per step, the model against rows": 1,
        "batch: memory against rows": 2,
        "batch: estimated memory against rows": 1,
    }
    assert {name: exponents[name] for name in expected} == pytest.approx(expected, abs=0.01)
    # A step has one Muon, however many rows it has.
    assert exponents["batch: operations per step, model and Muon against rows"] < 1


def test_a_slow_point_gets_one_round(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "SLOW", 0)
    argv = ["--series=batch", *TINY]
    raw = measured(tmp_path, known_machine([]), "scale", str(dataset), *argv)
    assert all(len(point["rounds"]) == 1 for point in raw["series"]["batch"])


# ---------------------------------------------------------------- user errors


@pytest.mark.parametrize(
    ("argv", "expected"),
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
        (
            ["lora", "tests"],
            "name BASE and DATA, which are folders: python bench.py lora BASE DATA",
        ),
        (["generate", "nowhere"], "name BASE, which is a folder: python bench.py generate BASE"),
    ],
)
def test_a_user_error_is_one_message(argv, expected, capsys):
    assert bench.main(argv) == 2
    error = capsys.readouterr().err
    assert expected in error and "Traceback" not in error


def test_libraries_to_compare_with_are_named_where_they_are_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "peft", None)
    assert bench.main(["generate", "tests"]) == 2
    assert "beside transformers and peft: pip install peft" in capsys.readouterr().err
