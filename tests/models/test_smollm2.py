"""Real weights, SmolLM2-135M-Instruct: our logits, texts and ids are transformers'."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from shuoshu.models import weights
from shuoshu.models.weights import LoadedModel, load_model
from tests.models.families import greedy_ids, their_greedy_ids

ENGLISH = "The capital of France is Paris. The capital of Germany is Berlin. Water is made of hydrogen and"
QUESTION = [{"role": "user", "content": "Tell me about the sea, and about the ships of old."}]

SHAPE = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")
SHAPE += ("num_attention_heads", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps")
SHAPE += ("rope_parameters", "tie_word_embeddings", "eos_token_id")


@pytest.fixture(scope="module")
def theirs(smollm2_folder: Path) -> PreTrainedModel:
    return LlamaForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def their_tokenizer(smollm2_folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(smollm2_folder)


@pytest.fixture(scope="module")
def ours(smollm2_folder: Path) -> LoadedModel:
    return load_model(smollm2_folder, dtype=torch.float32, block_size=512)


@torch.no_grad()
def test_the_weights_are_converted_rightly(theirs, their_tokenizer):
    ids = their_tokenizer(ENGLISH, return_tensors="pt").input_ids
    result = theirs(ids, labels=ids)
    assert result.loss < 2.6  # nats a token; 3.3 with the rows of q and k as GGUF stores them
    assert their_tokenizer.decode(result.logits[0, -1].argmax()) == " oxygen"


@torch.no_grad()
def test_logits_equal_transformers(theirs, their_tokenizer, ours):
    ids = their_tokenizer(ENGLISH * 5, return_tensors="pt").input_ids
    assert (ours.model(ids) - theirs(ids).logits).abs().max() < 1e-3


@torch.no_grad()
def test_greedy_text_equals_transformers(theirs, their_tokenizer, ours, pytestconfig):
    prompt = their_tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True)["input_ids"]
    count = 200 if pytestconfig.getoption("--long") else 12  # a tenth of a second each, and theirs
    ids = greedy_ids(ours.model, prompt, count)
    assert ids == their_greedy_ids(theirs, prompt, count)
    assert "sea" in their_tokenizer.decode(ids[len(prompt) :])


def test_its_tokenizer_gives_transformers_ids(their_tokenizer, ours, text):
    for piece in (ENGLISH, text[:3000], "It's 1,024 lamps…\n\n\t  x = 12**3\n", "<|im_end|> é🙂"):
        expected = their_tokenizer(piece, split_special_tokens=True).input_ids
        assert ours.tokenizer.encode(piece) == expected
        assert ours.tokenizer.decode(expected) == piece


def test_what_is_written_back_opens_in_transformers(
    theirs, their_tokenizer, ours, tmp_path, pytestconfig
):
    weights.write_model_folder(tmp_path, ours.model.config, ours.tokenizer)
    config = LlamaConfig.from_pretrained(tmp_path)
    for name in SHAPE:
        assert getattr(config, name) == getattr(theirs.config, name), name
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer(ENGLISH).input_ids == their_tokenizer(ENGLISH).input_ids
    render = {"tokenize": False, "add_generation_prompt": True}
    rendered = tokenizer.apply_chat_template(QUESTION, **render)
    assert rendered == their_tokenizer.apply_chat_template(QUESTION, **render)
    if pytestconfig.getoption("--long"):  # half a gigabyte; small models' are written in each run
        weights.save_weights(tmp_path, ours.model, ours.tokenizer, 1)
        again = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        pairs = zip(theirs.named_parameters(), again.parameters(), strict=True)
        assert all(torch.equal(before, after) for (_, before), after in pairs)
