"""What a folder's model is for: its training says so, or its chat template."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from shuoshu.core.errors import UserError
from shuoshu.models.purpose import CHATS, CONTINUES_TEXT, Purpose
from shuoshu.models.weights import folder_purpose, load_model
from tests.models.adapter_folders import write_adapter, write_peft_adapter
from tests.models.families import write_model

BRIEF = Purpose("questions", 1, "你是老船夫。")


def without_template(folder: Path) -> Path:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    del config["chat_template"]
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder


def templated_adapter(root: Path) -> Path:
    """An adapter of PEFT for a base without a chat template, saved with a tokenizer that has one."""
    base = write_model(root / "base", "llama")
    adapter = write_peft_adapter(root / "adapter", base)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, adapter)
    without_template(base)
    return adapter


FOLDERS: dict[str, tuple[Callable[[Path], Path], Purpose]] = {
    "a chat model": (lambda root: write_model(root / "m", "qwen2"), CHATS),
    "a chat model in shards": (
        lambda root: write_model(root / "m", "qwen2", shard_size="40KB"),
        CHATS,
    ),
    "a base model": (
        lambda root: without_template(write_model(root / "m", "llama")),
        CONTINUES_TEXT,
    ),
    "our adapter": (
        lambda root: write_adapter(root / "a", write_model(root / "m", "qwen2"), BRIEF),
        BRIEF,
    ),
    "our adapter of text": (
        lambda root: write_adapter(root / "a", write_model(root / "m", "qwen2"), CONTINUES_TEXT),
        CONTINUES_TEXT,
    ),
    "an adapter of PEFT": (
        lambda root: write_peft_adapter(root / "a", write_model(root / "m", "qwen2")),
        CHATS,
    ),
    "an adapter of PEFT with a template": (templated_adapter, CHATS),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_the_purpose_of_a_folder_is_known_before_and_after_loading(kind, tmp_path):
    make, purpose = FOLDERS[kind]
    folder = make(tmp_path)
    assert folder_purpose(folder) == load_model(folder).purpose == purpose


def test_our_own_models_keep_the_purpose_of_their_training(pretrained, tuned):
    for folder, expected in ((pretrained, CONTINUES_TEXT), (tuned, Purpose("questions", 1))):
        assert folder_purpose(folder) == load_model(folder).purpose == expected


def test_the_purpose_is_found_without_reading_the_weights(tuned, tmp_path):
    folder = Path(shutil.copytree(tuned, tmp_path / "out", ignore=shutil.ignore_patterns("check*")))
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert folder_purpose(folder) == Purpose("questions", 1)
    with pytest.raises(UserError, match="doesn't match its sha256"):
        load_model(folder)


def test_a_folder_without_a_model_has_no_purpose(tmp_path):
    with pytest.raises(UserError, match="there is no trained model"):
        folder_purpose(tmp_path)
