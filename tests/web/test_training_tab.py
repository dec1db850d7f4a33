"""The tab Training: curves and measures of a run, also of a damaged or unfinished one."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from pathlib import Path

import pytest

from shuoshu.core.command_settings import AppSettings
from shuoshu.web.model_server import ModelServer
from shuoshu.web.service import PageService
from shuoshu.web.training_tab import training_html


@pytest.fixture
def folder(tuned: Path, tmp_path: Path) -> Path:
    """A copy of the fine-tuned model, whose records a test may change."""
    ignored = shutil.ignore_patterns("checkpoints")
    return Path(shutil.copytree(tuned, tmp_path / "out-copy", ignore=ignored))


def report(folder: Path) -> str:
    """The document in the tab's frame."""
    service = PageService(ModelServer([folder], AppSettings(device="cpu", threads=1)))
    [document] = re.findall(r'srcdoc="([^"]*)"', training_html(service, str(folder)))
    return unescape(document)


def test_before_an_evaluation_the_tab_shows_curves_samples_and_settings(folder):
    document = report(folder)
    assert "Not measured yet: python eval_metrics.py" in document
    assert document.count('class="curve') >= 3 and "<details open>" in document
    assert "Samples through time" in document and "n_layer" in document and "folder" in document


DAMAGED = ["", "{", "[]", "3", "[" * 5000, "\ud800", '{"model": "x"}']
DAMAGED += [f'{{"model": "x", "measures": {measures}}}' for measures in ("3", "[1]", '{"val": 3}')]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_evaluation_counts_as_none(folder, content):
    (folder / "eval.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    document = report(folder)
    assert "Not measured yet" in document and "Training curves" in document


def test_measures_come_from_the_evaluation(folder):
    measures = {"val": {"rouge_l": {"value": 0.875, "low": 0.8, "high": 0.9}}}
    evaluation = {"model": "<b>m</b>", "measures": measures}
    (folder / "eval.json").write_text(json.dumps(evaluation), encoding="utf-8")
    document = report(folder)
    assert "0.875" in document and "Not measured yet" not in document and "<b>m</b>" not in document


@pytest.mark.parametrize(
    "tail",
    [
        b'{"kind": "step", "st',
        b"\xff\xfe",
        b"[]\n3\n",
        b'{"kind": "step", "step": "x", "loss": null}\n',
    ],
)
def test_a_log_with_an_incomplete_end_is_shown_up_to_there(folder, tail):
    with (folder / "log.jsonl").open("ab") as log:
        log.write(tail)
    assert report(folder).count('class="curve') >= 3


def test_without_a_log_the_tab_still_opens(folder):
    (folder / "log.jsonl").unlink()
    (folder / "settings.json").write_text("{", encoding="utf-8")
    assert "Not measured yet" in report(folder)
