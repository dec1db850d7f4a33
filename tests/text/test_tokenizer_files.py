"""Tokenizer files: read by Hugging Face's tools and by us, refused if damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HFTokenizer
from transformers import AutoTokenizer

from shuoshu.core.errors import UserError
from shuoshu.text.tokenizer import (
    SPECIALS,
    Tokenizer,
    train_bpe,
)
from shuoshu.text.tokenizer_folder import load_tokenizer
from tests.text.tokenizer_helpers import CHAT, MIXED


@pytest.fixture(scope="session")
def folder(each: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer's files of a model folder."""
    path = tmp_path_factory.mktemp(each.kind)
    for name, content in each.files(256).items():
        (path / name).write_text(content, encoding="utf-8", newline="\n")
    return path


def test_transformers_reads_the_folder(each: Tokenizer, folder: Path, text: str) -> None:
    other = AutoTokenizer.from_pretrained(folder)
    for piece in [*MIXED, text]:
        if not any(name in piece for name in SPECIALS):
            assert other(piece)["input_ids"] == each.encode(piece)
            assert other.decode(each.encode(piece)) == piece
    assert (other.eos_token_id, other.pad_token_id, len(other), other.model_max_length) == (
        each.end,
        each.pad,
        each.n_vocab,
        256,
    )


def test_the_chat_template_renders_like_render(each: Tokenizer, folder: Path) -> None:
    other = AutoTokenizer.from_pretrained(folder)
    assert other.apply_chat_template(CHAT, return_dict=False) == each.render(CHAT)[0]
    open_chat = [*CHAT[:2], {"role": "assistant", "content": None}]
    assert (
        other.apply_chat_template(CHAT[:2], add_generation_prompt=True, return_dict=False)
        == each.render(open_chat)[0]
    )


def test_the_chat_template_begins_with_the_system_message_of_the_training(
    each: Tokenizer, tmp_path: Path
) -> None:
    system = '你是"老船夫"。\n{{ 只 }} 答 {% 两 %} 字\\。🏮\''
    for name, content in each.files(256, system).items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    other = AutoTokenizer.from_pretrained(tmp_path)
    asked = CHAT[1:2]
    first = [{"role": "system", "content": system}]
    assert other.apply_chat_template(asked, return_dict=False) == each.render([*first, *asked])[0]
    assert other.apply_chat_template(CHAT, return_dict=False) == each.render(CHAT)[0]


def test_a_loaded_tokenizer_is_the_one_saved(each: Tokenizer, folder: Path) -> None:
    loaded = load_tokenizer(folder)
    assert loaded.hash == each.hash
    assert loaded.to_json() == each.to_json()
    assert loaded.kind == each.kind or each.kind == "gpt2"


def test_a_tokenizer_saved_by_hugging_face_is_read(
    each: Tokenizer, twin: HFTokenizer, tmp_path: Path
) -> None:
    twin.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).hash == each.hash


def test_other_tokenizers_have_other_hashes(
    tokenizer: Tokenizer, chars: Tokenizer, text: str
) -> None:
    assert (
        len(
            {
                tokenizer.hash,
                chars.hash,
                train_bpe([text], 400).hash,
                train_bpe([text[:5000]], 512).hash,
            }
        )
        == 4
    )
    assert train_bpe([text], 512).hash == tokenizer.hash


def test_a_folder_without_a_tokenizer_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no tokenizer in"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "[" * 100_000, '{"model": {}}'],
    ids=["empty", "torn", "list", "null", "deep", "foreign"],
)
def test_a_damaged_tokenizer_is_reported(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_file_that_is_not_utf_8_is_reported(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match=r"tokenizer\.json is damaged"):
        load_tokenizer(tmp_path)


def test_an_unsupported_tokenizer_is_refused_with_the_reason(tmp_path: Path) -> None:
    from tokenizers import models, trainers

    foreign = HFTokenizer(models.BPE())
    foreign.train_from_iterator(
        ["hello world"], trainers.BpeTrainer(vocab_size=300, show_progress=False)
    )
    foreign.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="not ByteLevel; supported is byte-level BPE"):
        load_tokenizer(tmp_path)


def small_document() -> dict:
    return json.loads(train_bpe(["雨夜雨夜雨夜ababab" * 5], 266).to_json())


@given(data=st.data())
def test_every_tokenizer_that_loads_can_encode(
    data: st.DataObject, damage, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A damaged file raises a UserError, or is a tokenizer that encodes, decodes and can be saved."""
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.mkdir(exist_ok=True)
    (path / "tokenizer.json").write_text(
        json.dumps(damage(data, small_document())), encoding="utf-8"
    )
    try:
        loaded = load_tokenizer(path)
    except UserError as error:
        assert "tokenizer.json" in str(error)
        return
    assert loaded.decode(loaded.encode(MIXED[0])) == MIXED[0]
    assert loaded.to_json() and loaded.hash


def misspell(document: dict) -> None:
    vocab = document["model"]["vocab"]
    vocab["!" * 9] = vocab.pop("!")


def unmake(document: dict) -> None:
    del document["model"]["merges"][0]


def reorder(document: dict) -> None:
    document["model"]["merges"].reverse()


def nonsense(document: dict) -> None:
    document["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "("


def swallow(document: dict) -> None:
    document["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "[a-z]+"


@pytest.mark.parametrize("harm", [misspell, unmake, reorder, nonsense, swallow])
def test_a_tokenizer_that_would_lose_text_is_refused(tmp_path: Path, harm) -> None:
    document = small_document()
    harm(document)
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(UserError, match=r"tokenizer\.json can't be used"):
        load_tokenizer(tmp_path)
