"""Runs eval_metrics.py and reads what it wrote, for the tests of this folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

import eval_metrics
import prepare
import prepare_sft
from shuoshu.evaluation import metrics

FILES = ("eval.json", "eval_answers.jsonl", "report.html")
LABELS = ["好", "不好，因为船票只剩两张了"]


class Evaluated(NamedTuple):
    """What eval_metrics.py wrote and printed."""

    evaluation: dict  # eval.json
    answers: list[dict]  # eval_answers.jsonl
    report: str
    terminal: str


def copy_model(model: Path, home: Path) -> Path:
    """Copies a model folder without its checkpoints, for one test."""
    return shutil.copytree(model, home, ignore=shutil.ignore_patterns("checkpoints", *FILES))


def measure(out_dir: Path, *more: object) -> dict:
    """Runs eval_metrics.py and returns eval.json."""
    assert eval_metrics.main([str(out_dir), "--device=cpu", "--threads=1", *map(str, more)]) == 0
    return json.loads((out_dir / "eval.json").read_text(encoding="utf-8"))


def read_answers(out_dir: Path) -> list[dict]:
    return [
        json.loads(line)
        for line in (out_dir / "eval_answers.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def value(evaluation: dict, split: str, name: str) -> float:
    return evaluation["measures"][split][name]["value"]


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Runs eval_metrics.py, which must fail with one message; returns it."""
    capsys.readouterr()
    assert eval_metrics.main([*map(str, arguments), "--device=cpu", "--threads=1"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("error") == 1
    assert "Traceback" not in message
    return message


def prepare_questions(
    folder: Path, name: str, rows: list[dict], pretrained: Path, *more: str
) -> Path:
    """Prepares rows of questions with a model's tokenizer."""
    file, out = folder / f"{name}.json", folder / name
    file.write_text(json.dumps(rows), encoding="utf-8")
    assert prepare_sft.main([str(file), f"--out={out}", f"--tokenizer={pretrained}", *more]) == 0
    return out


def prepare_text(folder: Path, name: str, text: str, *more: str) -> Path:
    """Prepares a text as a book."""
    file, out = folder / f"{name}.txt", folder / name
    file.write_text(text, encoding="utf-8")
    assert prepare.main([str(file), f"--out={out}", *more]) == 0
    return out


def plain_lcs(a: Sequence, b: Sequence) -> int:
    """The longest common subsequence by the textbook algorithm."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


def f1(answer: str, reference: str) -> float:
    return metrics.rouge_l(answer, reference)[2]
