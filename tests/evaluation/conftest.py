"""Models measured once for all tests of this folder."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest

from shuoshu.text.dataset import read_meta
from tests.evaluation.helpers import (
    LABELS,
    Evaluated,
    copy_model,
    measure,
    prepare_questions,
    read_answers,
)


@pytest.fixture(scope="session")
def home(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_model(tuned, tmp_path_factory.mktemp("measured") / "out-sft")


@pytest.fixture(scope="session")
def evaluated(home: Path, pretrained: Path) -> Evaluated:
    """The fine-tuned model, compared with the pretrained one, on all splits."""
    with contextlib.redirect_stdout(io.StringIO()) as terminal:
        evaluation = measure(home, f"--compare={pretrained}", "--split=all", "--max_new_tokens=24")
    report = (home / "report.html").read_text(encoding="utf-8")
    return Evaluated(evaluation, read_answers(home), report, terminal.getvalue())


@pytest.fixture(scope="session")
def text_home(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_model(pretrained, tmp_path_factory.mktemp("text") / "out-pretrain")


@pytest.fixture(scope="session")
def text_evaluated(text_home: Path) -> dict:
    return measure(text_home, "--limit=4", "--max_new_tokens=40")


@pytest.fixture(scope="session")
def closed(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 questions with one of two answers; one word of the question decides."""
    folder = tmp_path_factory.mktemp("closed")
    rows = [
        {
            "question": f"第{n}回{'走' * (n % 7)}{'雨' if n % 3 else '晴'}？",
            "answer": LABELS[n % 3 == 0],
        }
        for n in range(60)
    ]
    data = prepare_questions(folder, "closed", rows, pretrained, "--test_fraction=0.2")
    assert read_meta(data)["labels"] == LABELS
    return data
