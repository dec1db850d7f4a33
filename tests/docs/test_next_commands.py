"""The commands that prepare.py, prepare_sft.py and train.py print as the next ones work as printed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import pytest

import prepare
import prepare_sft
import sample
from shuoshu.core.out_dirs import training_command
from tests.conftest import TINY
from tests.in_process import train_model

SHORT = [
    "--max_iters=1",
    "--max_epochs=none",
    "--sample_tokens=0",
    "--device=cpu",
    "--dtype=float32",
    "--threads=1",
]
TUNED = ["--eval_questions=1"]  # further settings of a short fine-tuning


@pytest.fixture
def here(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a novel and questions about it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text(text[:8000], encoding="utf-8")
    pairs = [{"question": f"第{n}问：谁在渡口？", "answer": f"第{n}个人。"} for n in range(30)]
    (tmp_path / "mine.json").write_text(json.dumps(pairs), encoding="utf-8")
    return tmp_path


@pytest.fixture
def prepared(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The novel is prepared in data/mine, and what that printed is read."""
    assert prepare.main(["mine.txt", "--vocab_size=300"]) == 0
    capsys.readouterr()


@pytest.fixture(params=["", "-2"], ids=["empty folder", "after quickstart.sh"])
def suffix(request: pytest.FixtureRequest, here: Path) -> str:
    """What is added to the name of a default folder, which after quickstart.sh is not empty."""
    for name in ("out-pretrain", "out-sft") if request.param else ():
        (here / name).mkdir()
        (here / name / "settings.json").write_text("{}", encoding="utf-8")
    return request.param


@pytest.fixture
def follow(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """follow(*settings) runs the command printed last, reduced by settings; returns its words."""

    def run(*reduced: str) -> list[str]:
        (line,) = [
            row for row in capsys.readouterr().out.splitlines() if row.split()[:1] == ["next"]
        ]
        python, script, *words = shlex.split(line)[1:]
        main = {"train.py": train_model, "sample.py": sample.main}[script]
        assert python == "python"
        assert main([*words, *reduced]) == 0, capsys.readouterr().err
        return words

    return run


def out_dir_of(words: list[str]) -> str:
    return next(word.removeprefix("--out_dir=") for word in words if "--out_dir=" in word)


@pytest.mark.usefixtures("suffix")
def test_every_next_command_works_as_printed(follow: Callable) -> None:
    for number in ("", "-2"):  # the second time, the folders of the first are not empty
        assert prepare.main(["mine.txt", "--out=data/mine", "--vocab_size=300"]) == 0
        out_dir = out_dir_of(follow(*TINY, *SHORT))
        assert out_dir == f"out-mine{number}"
        follow("--max_new_tokens=1", "--threads=1")
        assert prepare_sft.main(["mine.json", "--out=data/qa", f"--tokenizer={out_dir}"]) == 0
        words = follow(*SHORT, *TUNED)
        assert out_dir_of(words) == f"out-qa{number}" and f"--init_from={out_dir}" in words
        follow("--max_new_tokens=1", "--threads=1")


def test_the_bundled_data_goes_to_the_default_folders_if_they_are_unused(suffix: str) -> None:
    for name, out_dir in (("novella", "out-pretrain"), ("novella_qa", "out-sft")):
        command = training_command(Path("data") / name)
        assert command == f"python train.py --dataset={name} --out_dir={out_dir}{suffix}"


@pytest.mark.usefixtures("here")
def test_the_model_of_a_tokenizer_from_a_data_folder_is_found(follow: Callable) -> None:
    assert prepare.main(["mine.txt", "--vocab_size=300"]) == 0
    prepared = ["mine.json", "--out=data/qa", "--tokenizer=data/mine"]
    follow(*TINY, *SHORT)
    follow("--max_new_tokens=1", "--threads=1")
    assert prepare_sft.main(prepared) == 0
    assert {"--init_from=out-mine", "--block_size=256"} <= set(follow(*SHORT, *TUNED))


@pytest.mark.usefixtures("prepared")
def test_without_a_model_of_the_tokenizer_random_weights_are_trained(follow: Callable) -> None:
    assert prepare_sft.main(["mine.json", "--out=data/qa", "--tokenizer=data/mine"]) == 0
    assert "--init_from=scratch" in follow(*TINY, *SHORT, *TUNED)


def test_questions_that_cannot_be_paraphrased_are_trained_without(
    here: Path, pretrained: Path, follow: Callable
) -> None:
    rows = [
        {"question": f"{a}{b}？", "answer": "先" if a < b else "后", "split": "train"}
        for a, b in permutations("甲乙丙丁", 2)
    ]
    (here / "alike.json").write_text(json.dumps(rows), encoding="utf-8")
    assert prepare_sft.main(["alike.json", f"--tokenizer={pretrained}"]) == 0
    assert "--paraphrases=0" in follow(*SHORT, *TUNED)


def test_a_table_of_labels_is_trained_as_printed(here: Path, follow: Callable) -> None:
    rows = [f"{n}{'雨雪'[n % 2] * (n + 1)}。风,{n % 2}\n" for n in range(60)]
    (here / "reviews.csv").write_text("".join(["text,label\n", *rows]), encoding="utf-8")
    assert prepare_sft.main(["reviews.csv", "--question={text}", "--answer={label}"]) == 0
    block_size = json.loads((here / "data/reviews/meta.json").read_text())["block_size"]
    words = follow(*SHORT, "--n_layer=1", "--n_embd=32", "--n_head=2")
    assert words[0] == "config/labels.py" and block_size == 64
    config = json.loads((Path(out_dir_of(words)) / "config.json").read_text())
    assert config["max_position_embeddings"] == block_size


@pytest.mark.usefixtures("prepared")
def test_a_folder_outside_data_is_found_although_data_has_one_of_its_name(
    here: Path, follow: Callable
) -> None:
    assert prepare.main(["mine.txt", "--out=mine", "--vocab_size=310"]) == 0
    assert f"--dataset={here / 'mine'}" in follow(*TINY, *SHORT)
