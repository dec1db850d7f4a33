"""The prepare commands overwrite only their own data; prepared data is refused as a model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import app
import eval_metrics
import prepare
import prepare_sft
import sample
from shuoshu.text import data_folder
from shuoshu.text.dataset import TextDataset
from tests.faults.conftest import contents
from tests.in_process import train_model

ROWS = [{"question": f"第{n}问：谁在渡口？", "answer": f"第{n}个人。"} for n in range(20)]


@pytest.fixture
def novel(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A short novel in an otherwise empty working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "novel.txt").write_text(text[:6000], encoding="utf-8")
    return tmp_path / "novel.txt"


@pytest.fixture
def asked(novel: Path, tmp_path: Path, pretrained: Path) -> list[str]:
    """The command line that prepares questions, without --out."""
    (tmp_path / "novel.json").write_text(json.dumps(ROWS), encoding="utf-8")
    return ["novel.json", f"--tokenizer={pretrained}"]


def model(pretrained: Path, folder: Path) -> Path:
    """A copy of the model, without its checkpoints."""
    return Path(shutil.copytree(pretrained, folder, ignore=shutil.ignore_patterns("checkpoints")))


# ---------------------------------------------------------------- what is never replaced


@pytest.mark.parametrize("command", ["prepare.py", "prepare_sft.py"])
@pytest.mark.parametrize("lost", ["", "model.safetensors", "tokenizer.json"])
def test_a_trained_model_is_never_prepared_over(
    novel: Path, asked: list[str], pretrained: Path, refused: Callable, command: str, lost: str
) -> None:
    folder = model(pretrained, novel.parent / "out-mine")
    if lost:
        (folder / lost).unlink()
    main, argv = (prepare.main, [novel]) if command == "prepare.py" else (prepare_sft.main, asked)
    refused(main, [*argv, "--out=out-mine"], "out-mine holds a trained model", "--out=data/NAME")


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "tokenizer.json", "meta.json"])
def test_a_foreign_file_is_never_replaced_by_a_prepared_text(
    novel: Path, refused: Callable, name: str
) -> None:
    (novel.parent / "mine").mkdir()
    (novel.parent / "mine" / name).write_text('{"precious": 1}', encoding="utf-8")
    refused(prepare.main, [novel, "--out=mine"], f"mine/{name} would be overwritten")


def test_a_foreign_file_beside_prepared_questions_is_never_replaced(
    asked: list[str], refused: Callable
) -> None:
    assert prepare_sft.main([*asked, "--out=qa", "--test_fraction=0"]) == 0
    Path("qa/test.jsonl").write_text("precious", encoding="utf-8")
    refused(prepare_sft.main, [*asked, "--out=qa"], "qa/test.jsonl would be overwritten")


def test_data_of_the_other_kind_is_never_replaced(
    novel: Path, asked: list[str], refused: Callable
) -> None:
    assert prepare_sft.main([*asked, "--out=qa"]) == 0
    assert prepare.main([str(novel), "--out=book", "--vocab_size=300"]) == 0
    refused(prepare.main, [novel, "--out=qa"], "qa holds prepared questions", "--out=data/NAME")
    refused(prepare_sft.main, [*asked, "--out=book"], "book holds prepared text")


@pytest.mark.parametrize("command", ["prepare.py", "prepare_sft.py"])
def test_another_input_of_the_same_name_needs_its_own_folder(
    novel: Path, asked: list[str], refused: Callable, command: str
) -> None:
    first, *more = [novel.name, "--vocab_size=300"] if command == "prepare.py" else asked
    main = prepare.main if command == "prepare.py" else prepare_sft.main
    Path("b").mkdir()
    other = shutil.copy(first, "b")
    assert main([first, *more]) == 0
    refused(main, [other, *more], f"data made from {first}", "--out=data/NAME")
    assert main([other, *more, "--out=data/novel"]) == 0  # as the message says
    refused(main, [first, *more], f"data made from {other}")


# ---------------------------------------------------------------- what is replaced


def test_the_same_input_is_prepared_again(novel: Path) -> None:
    for size in (300, 310):
        assert prepare.main(["novel.txt", f"--vocab_size={size}"]) == 0
        assert TextDataset(Path("data/novel"), "train").meta["vocab_size"] == size
    novel.write_text("他来了。\n" * 500, encoding="utf-8")  # edited, and named in another way
    assert prepare.main([str(novel), "--vocab_size=300"]) == 0


@pytest.mark.parametrize("command", ["prepare.py", "prepare_sft.py"])
@pytest.mark.parametrize("moved", [1, 2, 3])
def test_data_of_a_killed_preparation_is_replaced(
    novel: Path,
    asked: list[str],
    monkeypatch: pytest.MonkeyPatch,
    count_fault: Callable,
    command: str,
    moved: int,
) -> None:
    count_fault("tried")
    argv = ["novel.txt", "--vocab_size=300"] if command == "prepare.py" else asked
    main = prepare.main if command == "prepare.py" else prepare_sft.main
    assert main([*argv, "--out=whole"]) == 0
    staged = Path("data/novel/.writing-1")
    shutil.copytree("whole", staged)
    for name in ["train.bin", "val.bin", "tokenizer.json"][:moved]:  # the kill came after these
        (staged / name).rename(staged.parent / name)
    assert main(argv) == 0
    shutil.rmtree(staged)
    whole, again = (contents(Path(folder)) for folder in ("whole", "data/novel"))
    assert whole == again
    count_fault("survived")


def test_data_of_another_format_is_prepared_again(novel: Path) -> None:
    assert prepare.main(["novel.txt", "--vocab_size=300"]) == 0
    meta = Path("data/novel/meta.json")
    old = json.loads(meta.read_text(encoding="utf-8")) | {"format": 0}
    meta.write_text(json.dumps(old), encoding="utf-8")
    assert prepare.main(["novel.txt", "--vocab_size=300"]) == 0
    assert TextDataset(Path("data/novel"), "train").meta["format"] == data_folder.META_FORMAT


# ---------------------------------------------------------------- data, where a model is expected


@pytest.mark.parametrize("flags", [[], ["--overwrite"], ["--resume"]])
def test_no_run_starts_in_prepared_data(
    tiny: list[str], dataset: Path, tmp_path: Path, refused: Callable, flags: list[str]
) -> None:
    shutil.copytree(dataset, tmp_path / "mine")
    command = [*tiny, "--max_iters=1", f"--out_dir={tmp_path / 'mine'}", *flags]
    message = refused(train_model, command, "mine holds prepared data", "another --out_dir")
    assert "--overwrite" not in message


def test_prepared_data_is_no_model(
    novel: Path, asked: list[str], pretrained: Path, refused: Callable
) -> None:
    assert prepare.main(["novel.txt", "--vocab_size=300"]) == 0
    assert prepare_sft.main([*asked, "--out=data/qa"]) == 0
    command = "\n  python train.py --dataset=novel --out_dir=out-novel"
    for main, words in (
        (sample.main, ["--out_dir=data/novel", "--start=x"]),
        (eval_metrics.main, ["data/novel"]),
        (app.main, ["data/novel"]),
        (train_model, ["--dataset=novel", "--init_from=data/novel", "--out_dir=out-x"]),
    ):
        refused(main, words, "data/novel holds prepared data, not a model", command)
    refused(sample.main, ["--out_dir=data/qa", "--start=x"], "questions", "--dataset=qa")
    (Path("out-novel")).mkdir()
    Path("out-novel/notes.txt").write_text("mine", encoding="utf-8")
    refused(app.main, ["data/novel"], command + "-2")


# ---------------------------------------------------------------- models that are not where they are sought


@pytest.mark.parametrize("command", ["sample.py --out_dir=", "eval_metrics.py "])
def test_without_a_default_model_the_others_are_named_with_a_command(
    novel: Path, pretrained: Path, refused: Callable, command: str
) -> None:
    main = sample.main if command.startswith("sample") else eval_metrics.main
    refused(main, [], "python prepare.py\n  python train.py")
    model(pretrained, Path("out-mine"))
    refused(main, [], "the models here are out-mine", f"\n  python {command}out-mine")


def test_a_mistyped_model_is_answered_with_the_models_here(
    novel: Path, pretrained: Path, refused: Callable
) -> None:
    model(pretrained, Path("mine"))
    refused(
        sample.main,
        ["--out_dir=mien", "--start=x"],
        "no trained model in mien: the models here are mine",
    )
    refused(app.main, [], "python app.py mine")
    refused(prepare_sft.main, [], "no tokenizer in out-pretrain", "--tokenizer=mine")


def test_an_incomplete_model_is_told_from_none(
    novel: Path, pretrained: Path, refused: Callable
) -> None:
    folder = model(pretrained, Path("out-mine"))
    (folder / "config.json").rename(folder / "checkpoints")
    asking = ["--out_dir=out-mine", "--start=x"]
    refused(sample.main, asking, "out-mine has weights but no config.json")
    (folder / "checkpoints").rename(folder / "config.json")
    (folder / "model.safetensors").unlink()
    (folder / "checkpoints").mkdir()
    refused(
        sample.main,
        asking,
        "out-mine has checkpoints but no model.safetensors",
        "python train.py --resume --out_dir=out-mine",
    )


def test_a_folder_with_a_blank_is_quoted_in_every_command(
    novel: Path, asked: list[str], pretrained: Path, refused: Callable
) -> None:
    Path("my run/checkpoints").mkdir(parents=True)
    refused(sample.main, ["--out_dir=my run", "--start=x"], "--resume '--out_dir=my run'")
    model(pretrained, Path("my model"))
    refused(prepare_sft.main, asked[:1], "for example with '--tokenizer=my model'")
    refused(train_model, ["--dataset=my data"], "YOUR_NOVEL.txt '--out=data/my data'")
    Path("b").mkdir()
    for folder in (".", "b"):
        shutil.copy(novel, Path(folder) / "my novel.txt")
    assert prepare.main(["my novel.txt", "--vocab_size=300"]) == 0
    refused(prepare.main, ["b/my novel.txt"], "replace that data with '--out=data/my novel'")
