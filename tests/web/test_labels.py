"""The page's texts: all are used, and all are in both languages."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from shuoshu.core.command_settings import AppSettings
from shuoshu.core.errors import REPO_ROOT
from shuoshu.web.components import I18N
from shuoshu.web.labels import ERRORS, LABELS, SCRIPT_TEXTS, TEXTS, error_text, text_html
from shuoshu.web.model_server import ModelServer
from shuoshu.web.page import build_page
from shuoshu.web.service import PageService

WEB = REPO_ROOT / "shuoshu" / "web"


def sources(pattern: str) -> str:
    files = [path for path in sorted(WEB.glob(pattern)) if path.name != "labels.py"]
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


def test_the_page_uses_every_label_and_no_other(tuned: Path, pretrained: Path, label_model: Path):
    settings = AppSettings(device="cpu", threads=1)
    page = build_page(PageService(ModelServer([tuned, pretrained, label_model], settings)))
    config = json.dumps(page.get_config_file(), default=str)
    assert set(re.findall(r"translation_metadata[^}]*?key\W+(\w+)", config)) == set(LABELS)


@pytest.mark.parametrize(
    "texts, call, files",
    [
        (TEXTS, "(?:text|note)_html", "*.py"),
        (ERRORS, "error_text", "*.py"),
        (SCRIPT_TEXTS, "text", "page.js"),
    ],
)
def test_every_text_is_used_and_every_used_text_exists(texts, call, files):
    source = sources(files)
    used = set(re.findall(rf"""\b{call}\(\s*["'](\w+)["']""", source))
    assert used <= set(texts) <= set(re.findall(r"""["'](\w+)["']""", source))


def test_every_text_is_in_both_languages_with_the_same_placeholders():
    for zh, en in [*LABELS.values(), *TEXTS.values(), *ERRORS.values(), *SCRIPT_TEXTS.values()]:
        assert zh.strip() and en.strip()
        assert re.findall(r"\{.*?\}", zh) == re.findall(r"\{.*?\}", en)
    assert set(I18N.translations["zh"]) == set(I18N.translations["en"]) == set(LABELS)


def test_an_error_is_shown_in_both_languages_and_a_text_in_one():
    error = error_text("too_long", 20_000, 5)
    assert "20,000" in error and "太长" in error and "Too long" in error
    assert 'lang="zh"' in text_html("length") and 'lang="en"' in text_html("length")
