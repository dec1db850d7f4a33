"""Prepared questions with paraphrases, and prepare_sft.py, for the tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import prepare_sft
from shuoshu.sft.dataset import QuestionDataset
from shuoshu.text.tokenizer import Tokenizer
from shuoshu.text.tokenizer_folder import load_tokenizer


@pytest.fixture(scope="session")
def tokenizer_of_qa(qa: Path) -> Tokenizer:
    return load_tokenizer(qa)


@pytest.fixture(scope="session")
def paraphrased(qa: Path, tokenizer_of_qa: Tokenizer) -> QuestionDataset:
    """The training rows with three paraphrases each."""
    dataset = QuestionDataset(qa, "train", 8)
    dataset.add_paraphrases(tokenizer_of_qa, 3)
    return dataset


@pytest.fixture
def prepare(pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """prepare(rows, *arguments) writes rows.json, prepares it into tmp_path / "out", and returns what was printed."""

    def prepare(content: list[dict], *arguments: str, code: int = 0) -> str:
        (tmp_path / "rows.json").write_text(json.dumps(content), encoding="utf-8")
        exit_code = prepare_sft.main(
            [
                str(tmp_path / "rows.json"),
                f"--out={tmp_path / 'out'}",
                f"--tokenizer={pretrained}",
                *arguments,
            ]
        )
        output = capsys.readouterr()
        assert exit_code == code, output.err
        assert "Traceback" not in output.err
        return output.err if code else output.out

    return prepare
