"""Folders of Qwen2, Qwen3 and Llama give transformers' logits; what is no such model is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shuoshu.core.errors import UserError
from shuoshu.models import weights
from shuoshu.models.weights import load_model
from tests.models.families import (
    LLAMA3_ROPE,
    SMALL,
    change_config,
    change_tensors,
    greedy_ids,
    read_config,
    reference,
    their_greedy_ids,
    write_model,
    write_old_fields,
)

TOLERANCE = 1e-4
IDS = torch.randint(0, SMALL["vocab_size"], (2, 150), generator=torch.Generator().manual_seed(0))
SHARDED = {"shard_size": "40KB"}

# Each value of each difference at least once: family, dtype, shards, tied, head_dim, rotary
# positions, old fields.
VARIANTS = {
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "qwen3, tied, bfloat16, shards": {
        "model_type": "qwen3",
        "head_dim": 16,
        "tie_word_embeddings": True,
        "dtype": torch.bfloat16,
        **SHARDED,
    },
    "qwen2, tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2, float16, shards": {"model_type": "qwen2", "dtype": torch.float16, **SHARDED},
    "llama, scaled": {"model_type": "llama", "head_dim": 16, "rope_parameters": LLAMA3_ROPE},
    "llama, tied, shards": {"model_type": "llama", "tie_word_embeddings": True, **SHARDED},
    "llama, as many key-value heads, bfloat16": {
        "model_type": "llama",
        "num_key_value_heads": 4,
        "dtype": torch.bfloat16,
    },
}
OPTIONAL = ("head_dim", "rms_norm_eps", "rope_theta", "tie_word_embeddings", "attention_bias")
OPTIONAL += ("mlp_bias", "hidden_act", "torch_dtype")  # transformers has defaults for these
OLD = {  # the changes that make config.json an older one
    "qwen3": lambda folder: write_old_fields(folder),
    "qwen2, float16, shards": lambda folder: write_old_fields(folder),
    "llama, scaled": lambda folder: write_old_fields(folder),
    "llama, as many key-value heads, bfloat16": lambda folder: (
        write_old_fields(folder),
        change_config(folder, without=OPTIONAL, num_key_value_heads=None),
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """folders(variant): its folder, written once."""
    root, written = tmp_path_factory.mktemp("families"), {}

    def folder(variant: str) -> Path:
        if variant not in written:
            written[variant] = write_model(root / str(len(written)), **VARIANTS[variant])
        return written[variant]

    return folder


@pytest.fixture
def copy_of(folders: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """copy_of(variant): a copy that a test may change."""
    return lambda variant: Path(shutil.copytree(folders(variant), tmp_path / "model"))


@torch.no_grad()
def largest_difference(folder: Path) -> float:
    """Between our logits and transformers', both in float32."""
    ours = load_model(folder, dtype=torch.float32).model(IDS)
    return (ours - reference(folder)(IDS).logits).abs().max().item()


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(folders, variant):
    folder = folders(variant)
    is_sharded = (folder / "model.safetensors.index.json").exists()
    assert is_sharded == ("shard_size" in VARIANTS[variant])
    assert largest_difference(folder) < TOLERANCE


@pytest.mark.parametrize("variant", ["qwen3", "qwen2, tied", "llama, scaled"])
def test_greedy_text_equals_transformers(folders, variant):
    prompt = IDS[0, :50].tolist()
    ids = greedy_ids(load_model(folders(variant)).model, prompt, 100)
    assert ids == their_greedy_ids(reference(folders(variant)), prompt, 100)
    assert len(set(ids[50:])) > 10  # no loop, in which equality would say little


@pytest.mark.parametrize("variant", OLD)
def test_logits_equal_transformers_with_the_fields_of_older_files(copy_of, variant):
    folder = copy_of(variant)
    OLD[variant](folder)
    assert "rope_parameters" not in read_config(folder)
    assert largest_difference(folder) < TOLERANCE


def test_the_oldest_name_of_a_scalings_kind_is_read(copy_of):
    folder = copy_of("llama, scaled")
    write_old_fields(folder, kind="type")
    assert largest_difference(folder) < TOLERANCE


def test_scaled_positions_are_not_plain_ones_and_reach_beyond_the_original_length(copy_of):
    assert IDS.shape[1] > 2 * LLAMA3_ROPE["original_max_position_embeddings"]
    folder = copy_of("llama, scaled")
    before = load_model(folder).model(IDS)
    change_config(folder, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    assert (load_model(folder).model(IDS) - before).abs().max() > 0.1


# ---------------------------------------------------------------- what real folders hold besides


def test_a_stored_head_that_equals_the_tied_embedding_is_read(copy_of):
    folder = copy_of("qwen2, tied")
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    change_tensors(folder, {"lm_head.weight": embedding.clone()})
    assert largest_difference(folder) < TOLERANCE


def test_a_stored_head_that_differs_from_the_tied_embedding_is_refused(copy_of):
    folder = copy_of("qwen2, tied")
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    changed = embedding.clone()
    changed[7, 7] += 1
    change_tensors(folder, {"lm_head.weight": changed})
    with pytest.raises(UserError, match="lm_head"):
        load_model(folder)


def test_an_untied_model_needs_its_head(copy_of):
    folder = copy_of("qwen3")
    change_tensors(folder, {"lm_head.weight": None})
    with pytest.raises(UserError, match=r"lm_head\.weight is missing"):
        load_model(folder)


def test_the_frequencies_that_old_llama_files_store_are_not_needed(copy_of):
    folder = copy_of("llama, scaled")
    name = "model.layers.{}.self_attn.rotary_emb.inv_freq"
    change_tensors(folder, {name.format(layer): torch.ones(8) for layer in range(2)})
    assert largest_difference(folder) < TOLERANCE


def test_a_window_that_is_not_in_use_is_read(copy_of):
    folder = copy_of("qwen2, tied")
    unused = {"use_sliding_window": False, "sliding_window": 64, "max_window_layers": 1}
    change_config(folder, without=("layer_types",), **unused)
    assert largest_difference(folder) < TOLERANCE


def test_a_shorter_context_is_asked_for_at_loading(folders):
    model = load_model(folders("llama, scaled"), block_size=40).model
    assert model.config.block_size == 40 and len(model.cos) == 40
    whole = load_model(folders("llama, scaled")).model
    torch.testing.assert_close(model(IDS[:, :40]), whole(IDS)[:, :40], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_come_in_the_dtype_asked_for(folders, dtype):
    for variant in ("qwen3", "qwen2, float16, shards"):
        model = load_model(folders(variant), dtype=dtype).model
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}


# ---------------------------------------------------------------- written back


@pytest.mark.parametrize("variant", ["qwen3", "qwen2, tied", "llama, scaled"])
def test_what_is_written_back_opens_in_transformers_in_its_family(folders, variant, tmp_path):
    loaded = load_model(folders(variant), block_size=200)  # the length of the files remains
    weights.write_model_folder(tmp_path, loaded.model.config, loaded.tokenizer)
    weights.save_weights(tmp_path, loaded.model, loaded.tokenizer, 1)
    before, after = read_config(folders(variant)), read_config(tmp_path)
    for name in ("model_type", "architectures", "eos_token_id", "max_position_embeddings"):
        assert after[name] == before[name], name
    with torch.no_grad():
        theirs, ours = reference(tmp_path)(IDS).logits, loaded.model(IDS)
    assert (theirs - ours).abs().max() < TOLERANCE
    assert largest_difference(tmp_path) < TOLERANCE


# ---------------------------------------------------------------- refused by name

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
REFUSED = {  # the changes to config.json, and what the message has to name
    "sliding windows": ({"use_sliding_window": True, "sliding_window": 64}, "sliding"),
    "one sliding layer": ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding"),
    "yarn": ({"rope_parameters": YARN | {"rope_theta": 1e4}}, "yarn"),
    "yarn of old": ({"rope_scaling": YARN, "rope_theta": 1e4}, "yarn"),
    "linear": ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
    "dynamic": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
    "partial rotation": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "partial rotation of now": (
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        "partial_rotary_factor",
    ),
    "positions by layer": (
        {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}},
        "differ between kinds of layers",
    ),
    "experts": ({"num_experts": 8}, "num_experts"),
    "qwen3_moe": ({"model_type": "qwen3_moe"}, "qwen3_moe"),
    "mixtral": ({"model_type": "mixtral"}, "mixtral"),
    "gemma": ({"model_type": "gemma"}, "gemma"),
    "mistral": ({"model_type": "mistral"}, "mistral"),
    "gpt2": ({"model_type": "gpt2"}, "gpt2"),
    "no type": ({"model_type": None}, "model_type"),
    "attention biases": ({"attention_bias": True}, "attention_bias"),
    "mlp biases": ({"mlp_bias": True}, "mlp_bias"),
    "gelu": ({"hidden_act": "gelu"}, "gelu"),
    "quantised": ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "quantization"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_another_architecture_is_refused_by_name(copy_of, kind):
    changes, name = REFUSED[kind]
    folder = copy_of("llama, tied, shards")
    change_config(folder, without=("rope_parameters",) if "rope_scaling" in changes else ())
    change_config(folder, **changes)
    with pytest.raises(UserError) as refusal:
        load_model(folder)
    message = str(refusal.value)
    assert name in message and str(folder) in message, message
    assert len(message) < 500 and "\n" not in message, message


def test_the_refusal_of_a_family_names_those_that_are_read(copy_of):
    folder = copy_of("llama, tied, shards")
    change_config(folder, model_type="gemma")
    with pytest.raises(UserError) as refusal:
        load_model(folder)
    assert all(name in str(refusal.value) for name in ("qwen2", "qwen3", "llama"))


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.gguf", "tf_model.h5"]
)
def test_weights_in_another_format_are_refused_by_name(copy_of, name):
    folder = copy_of("qwen3")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(json.dumps({}).encode())
    with pytest.raises(UserError, match="safetensors") as refusal:
        load_model(folder)
    assert name in str(refusal.value)
