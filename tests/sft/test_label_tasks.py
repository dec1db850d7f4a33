"""prepare_sft.py on tables of labelled texts: folds, tokenizer, block, labels, what is printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from shuoshu.sft.dataset import read_pairs
from shuoshu.text import dataset as text_dataset

QUESTIONS = [{"question": f"第{n}问：谁在渡口？", "answer": f"第{n}个人。"} for n in range(30)]

# ---------------------------------------------------------------- folds


def test_the_tests_of_all_folds_are_all_rows(prepare, tmp_path: Path) -> None:
    sources = []
    for fold in (1, 2, 3):
        printed = prepare(QUESTIONS, "--folds=3", f"--fold={fold}")
        assert f"test is fold {fold} of 3" in printed
        sources += [pair["source"] for pair in read_pairs(tmp_path / "out", "test")]
    assert sorted(sources) == sorted(f"rows.json, row {n + 1}" for n in range(30))
    recorded = text_dataset.read_meta(tmp_path / "out")["settings"]
    assert (recorded["folds"], recorded["fold"]) == (3, 3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--fold=3"], "fold=3 needs the number of folds"),
        (["--folds=3"], "folds=3 needs the fold that is the test: --fold=1 to 3"),
        (["--folds=3", "--fold=4"], "fold=4: there are 3 folds"),
        (["--folds=3", "--fold=0"], "fold=0: must be at least 1"),
        (["--folds=1", "--fold=1"], "folds=1: must be at least 2"),
        (["--folds=31", "--fold=1"], "30 different questions can't make so many folds"),
    ],
)
def test_an_impossible_fold_is_one_message(
    prepare, tmp_path: Path, arguments: list[str], message: str
) -> None:
    assert message in prepare(QUESTIONS, *arguments, code=2) and not (tmp_path / "out").exists()
