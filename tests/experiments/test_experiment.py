"""experiment.py: folds and prompts from the table to the results, interrupted, and with mistakes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import eval_metrics
import experiment
from shuoshu.core.cli import parse
from shuoshu.core.errors import REPO_ROOT, UserError
from shuoshu.experiments.plan import make_plan
from shuoshu.experiments.results import mean_over_folds
from shuoshu.experiments.run import run_experiment
from shuoshu.experiments.settings import ExperimentSettings
from tests.experiments.stub import StubCommands
from tests.in_process import train_model

N_ROWS = 40
CONFIG = """
max_iters, n_layer, n_head, n_embd, batch_size = 2, 1, 2, 32, 4
learning_rate, sample_tokens, device, dtype, threads = 0.006, 0, "cpu", "float32", 1
"""
PROMPTS = ["--question=评论：{review}", "--question={review}"]


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of labelled reviews in the working folder."""
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{n % 2},第{n}间房\u2028{'很好' if n % 2 else '太吵'}\n" for n in range(N_ROWS))
    (tmp_path / "reviews.csv").write_text("label,review\n" + rows, encoding="utf-8")
    (tmp_path / "tiny.py").write_text(CONFIG, encoding="utf-8")
    return tmp_path / "reviews.csv"


@pytest.fixture
def argv(table: Path) -> list[str]:
    """The command line of an experiment of two folds; add a question."""
    return [
        table.name,
        "--answer={label}",
        "--labels=1=好,0=差",
        "--folds=2",
        "--config=tiny.py",
        "--eval_args=--threads=1",
    ]


def run_in_process(words: Sequence[str], log: Path) -> None:
    main = {"train.py": train_model, "eval_metrics.py": eval_metrics.main}[words[0]]
    assert main(words[1:]) == 0


def perform(argv: Sequence[str], run: Callable[[list[str], Path], None]) -> dict:
    """What results.json holds after the experiment."""
    run_experiment(parse(ExperimentSettings, argv, ""), argv, run)
    return json.loads(Path("experiments/reviews/results.json").read_text(encoding="utf-8"))


def only_fold(model: Path) -> int:
    return int(model.parent.name.removeprefix("fold-"))


# ---------------------------------------------------------------- the straight path


def test_from_the_table_to_the_results(argv, pretrained, capsys):
    shape = "--train_args=--n_layer=2 --n_embd=64"
    argv = [*argv, PROMPTS[0], f"--init_from={pretrained}", shape]
    results = perform(argv, run_in_process)
    (prompt,) = results["prompts"]
    assert sum(fold["rows"] for fold in prompt["folds"]) == N_ROWS
    for who in ("before", "model", "majority"):
        accuracies = [fold[who]["accuracy"] for fold in prompt["folds"]]
        mean = prompt["means"][who]["accuracy"]
        assert mean == mean_over_folds(accuracies)._asdict()
    pairs = {(entry["of"], entry["to"]): entry["rows"] for entry in prompt["differences"]}
    compared = (("model", "linear"), ("together", "linear"), ("model", "before"))
    assert pairs == dict.fromkeys(compared, N_ROWS)
    folder = Path("experiments/reviews")
    tested = [
        json.loads(line)["question"]
        for path in folder.glob("prompt-1/fold-*/eval_answers.jsonl")
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]
    ]
    assert len(set(tested)) == N_ROWS and all(text.startswith("评论：") for text in tested)
    assert (folder / "results.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "before training" in shown and "before training" in (folder / "results.md").read_text(
        "utf-8"
    )


@pytest.mark.slow
def test_the_command_runs_its_commands_as_processes(argv, capsys):
    assert experiment.main([*argv, PROMPTS[1]]) == 0, capsys.readouterr().err
    assert json.loads(Path("experiments/reviews/results.json").read_text("utf-8"))["measured"] == 2


def test_the_models_are_deleted_unless_they_are_to_be_kept(argv):
    for keeps in (False, True):
        out = f"--out=experiments/{keeps}"
        run_experiment(
            parse(ExperimentSettings, [*argv, PROMPTS[0], out, f"--keep_models={keeps}"], ""),
            argv,
            StubCommands(),
        )
        fold = Path(f"experiments/{keeps}/prompt-1/fold-1")
        assert (fold / "model").exists() == (fold / "data").exists() == keeps
        assert (fold / "eval_answers.jsonl").is_file()


def test_prompts_are_compared_fold_by_fold(argv):
    def figures(model: Path) -> dict:
        better = 0.25 if "prompt-2" in str(model) else 0.0
        return {"accuracy": 0.5 + better + 0.1 * only_fold(model), "macro_f1": 0.5}

    stub = StubCommands(figures)
    first, second = perform([*argv, *PROMPTS], stub)["prompts"]
    folds = [Path(words[1]).parent for words in stub.words if words[0] == "eval_metrics.py"]
    assert [(path.parent.name[-1], path.name[-1]) for path in folds] == [
        ("1", "1"),
        ("2", "1"),
        ("1", "2"),
        ("2", "2"),
    ]
    # 0.6 and 0.7 have a standard deviation of 0.1 / √2, and their mean 0.05.
    assert first["means"]["model"]["accuracy"] == pytest.approx({"mean": 0.65, "error": 0.05})
    difference = second["to_first_prompt"]["accuracy"]
    assert difference == pytest.approx({"mean": 0.25, "error": 0.0}, abs=1e-12)
    text = Path("experiments/reviews/results.md").read_text(encoding="utf-8")
    assert "| 1 | model | 0.650 ± 0.050 |" in text and "+0.250 ± 0.000" in text


def test_the_model_is_compared_with_the_linear_model_row_by_row(argv):
    (prompt,) = perform([*argv, PROMPTS[0]], StubCommands())["prompts"]
    (entry,) = prompt["differences"]
    assert (entry["of"], entry["to"], entry["rows"]) == ("model", "linear", N_ROWS)
    assert (entry["only_first"], entry["only_second"]) == (0, N_ROWS // 4)
    assert entry["p_value"] == 2 / 2 ** (N_ROWS // 4)
    assert entry["low"] < -0.25 < entry["high"] < 0
    assert entry["accuracy"] == {"mean": -0.25, "error": 0.0}


def test_the_settings_reach_train_and_prepare(argv, pretrained):
    argv += [PROMPTS[0], f"--init_from={pretrained}", "--block_size=48", "--seed=3"]
    argv += ["--train_args=--max_iters=7 --lora_rank=2 --optimizer=adamw"]
    plan = make_plan(parse(ExperimentSettings, argv, ""))
    cell = plan.cells[1]
    words = plan.train_command(cell)
    assert words[:2] == ["train.py", "tiny.py"] and "--max_iters=7" in words
    assert {f"--init_from={pretrained}", "--block_size=48", "--resume"} <= set(words)
    prepared = plan.preparation(cell)
    assert (prepared.fold, prepared.folds, prepared.seed) == (2, 2, 3)
    assert (prepared.tokenizer, prepared.question) == (str(pretrained), "评论：{review}")
    assert f"--compare={pretrained}" in plan.eval_command(cell)


def test_one_fold_has_no_standard_error():
    assert mean_over_folds([0.5]) == (0.5, None)
    assert mean_over_folds([1.0, 2.0, 6.0]) == pytest.approx((3.0, math.sqrt(7 / 3)))


# ---------------------------------------------------------------- stopped and continued


def test_a_finished_experiment_repeats_nothing(argv):
    before = perform([*argv, PROMPTS[0]], StubCommands())
    again = StubCommands()
    assert perform([*argv, PROMPTS[0]], again) == before and not again.words


def test_an_interrupted_experiment_continues(argv, capsys):
    stub = StubCommands()
    stub.fails[4] = KeyboardInterrupt()  # the second fold is trained but not measured
    with pytest.raises(KeyboardInterrupt):
        perform([*argv, PROMPTS[0]], stub)
    assert "continues" in capsys.readouterr().out
    partial = json.loads(Path("experiments/reviews/results.json").read_text("utf-8"))
    assert (partial["measured"], partial["planned"]) == (1, 2)
    stub.fails.clear()
    assert perform([*argv, PROMPTS[0]], stub)["measured"] == 2
    assert stub.scripts == ["train.py", "eval_metrics.py"] * 2 + ["eval_metrics.py"]


def test_a_further_prompt_is_added_to_a_finished_experiment(argv):
    perform([*argv, PROMPTS[0]], StubCommands())
    more = StubCommands()
    assert perform([*argv, *PROMPTS], more)["measured"] == 4
    assert more.scripts == ["train.py", "eval_metrics.py"] * 2


def test_results_of_other_settings_are_not_mixed(argv, table):
    perform([*argv, PROMPTS[0]], StubCommands())
    changes = {
        "learning_rate was 0.006, is 0.5": [*argv, "--train_args=--learning_rate=0.5"],
        "seed was 1337, is 2": [*argv, "--seed=2"],
        "folds was 2, is 10": [*argv, "--folds=10"],
        "question was 评论：{review}, is {review}": [*argv, PROMPTS[1]],
    }
    for change, changed in changes.items():
        question = [] if PROMPTS[1] in changed else [PROMPTS[0]]
        with pytest.raises(UserError, match=change):
            perform([*changed, *question], StubCommands())
    table.write_text(table.read_text("utf-8").replace("很好", "不错"), encoding="utf-8")
    with pytest.raises(UserError, match="the input has changed"):
        perform([*argv, PROMPTS[0]], StubCommands())


def test_a_fold_that_is_not_measured_begins_anew_with_other_settings(argv):
    stub = StubCommands()
    stub.fails[2] = UserError("out of memory")
    with pytest.raises(UserError):
        perform([*argv, PROMPTS[0]], stub)
    perform([*argv, PROMPTS[1]], stub)
    assert stub.scripts == ["train.py", "eval_metrics.py"] * 3
    cell = json.loads(Path("experiments/reviews/prompt-1/fold-1/cell.json").read_text("utf-8"))
    assert cell["question"] == "{review}"


def test_damaged_results_are_named(argv):
    perform([*argv, PROMPTS[0]], StubCommands())
    Path("experiments/reviews/prompt-1/fold-2/eval.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"prompt-1.fold-2 are damaged \(it lacks 'measures'\)"):
        perform([*argv, PROMPTS[0]], StubCommands())


# ---------------------------------------------------------------- mistakes

MISTAKES = {
    "there is no file or folder absent.csv": ["absent.csv"],
    "'text' is not a column": ["--question={text}"],
    "no such setting - did you mean max_epochs": ["--train_args=--max_epoch=3"],
    "the experiment chooses dataset itself": ["--train_args=--dataset=mine"],
    "the experiment chooses split itself": ["--eval_args=--split=val"],
    "no closing quotation": ["--train_args='--max_iters=2"],
    "can't read the config file config/absent.py": ["--config=config/absent.py"],
    "there is no trained model in absent": ["--init_from=absent"],
    "are not taken for labels": ["--answer={review}", "--labels=none"],
    "it is there twice": ["--question={review}"],
    "every fold is measured in turn": ["--fold=2"],
    "must be at least 2": ["--folds=1"],
    "out is not empty": ["--out=out"],
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_one_message_and_writes_nothing(argv, message, capsys):
    Path("out").mkdir()
    Path("out/novel.txt").write_text("x", encoding="utf-8")
    wrong = MISTAKES[message]
    inputs = argv[:1] if wrong[0].startswith("--") else []
    assert experiment.main([*inputs, *argv[1:], PROMPTS[1], *wrong]) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.count("error:") == 1
    assert sorted(path.name for path in Path().iterdir()) == ["out", "reviews.csv", "tiny.py"]
    assert [path.name for path in Path("out").iterdir()] == ["novel.txt"]


def test_answers_that_are_no_labels_are_refused_with_any_tokenizer(argv, dataset, capsys):
    answer = ["--answer={review}", "--labels=none", f"--tokenizer={dataset}"]
    assert experiment.main([*argv, PROMPTS[1], *answer]) == 2
    assert "the answers of prompt 1 are not taken for labels" in capsys.readouterr().err
    assert not Path("experiments").exists()


def test_two_experiments_do_not_share_a_folder(argv):
    def start_another(words: list[str], log: Path) -> None:
        done = subprocess.run(
            [sys.executable, REPO_ROOT / "experiment.py", *argv, PROMPTS[0]],
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        raise UserError(done.stderr)

    with pytest.raises(UserError, match="works in experiments"):
        perform([*argv, PROMPTS[0]], start_another)
