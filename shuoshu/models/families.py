"""The families of models that can be read and written, and their config.json."""

from __future__ import annotations

import math
from dataclasses import astuple
from typing import NamedTuple

from model import GPTConfig, RopeScaling


class Family(NamedTuple):
    """What distinguishes a family's block from that of the others."""

    architecture: str  # the class in transformers
    qk_norm: bool
    qkv_bias: bool
    models: str  # examples, for messages


FAMILIES = {  # by model_type in config.json
    "qwen3": Family("Qwen3ForCausalLM", True, False, "Qwen3 and models of Shuoshu"),
    "qwen2": Family("Qwen2ForCausalLM", False, True, "Qwen1.5, Qwen2 and Qwen2.5"),
    "llama": Family("LlamaForCausalLM", False, False, "Llama 3 to 3.3 and SmolLM2"),
}
# Field of GPTConfig: its name in config.json, type, smallest and largest value.
# The weights' size doesn't bound n_layer and block_size, so a malicious config.json could use up
# all memory with them.
HF_FIELDS = {
    "vocab_size": ("vocab_size", int, 1, 10**7),
    "block_size": ("max_position_embeddings", int, 1, 1 << 20),
    "n_layer": ("num_hidden_layers", int, 1, 1000),
    "n_head": ("num_attention_heads", int, 1, 10**7),
    "n_kv_head": ("num_key_value_heads", int, 1, 10**7),
    "n_embd": ("hidden_size", int, 1, 10**7),
    "head_dim": ("head_dim", int, 1, 10**7),
    "n_hidden": ("intermediate_size", int, 1, 10**7),
    "tie_embeddings": ("tie_word_embeddings", bool, False, True),
    "norm_eps": ("rms_norm_eps", float, 0, 1e12),
    "dropout": ("dropout", float, 0, 0.99),
    "rope_theta": ("rope_theta", float, 1, 1e12),
}
SCALING_FIELDS = (  # of RopeScaling, in its order
    ("factor", float, 1, 1e6),
    ("low_freq_factor", float, 0, 1e6),
    ("high_freq_factor", float, 0, 1e6),
    ("original_max_position_embeddings", int, 1, 1 << 24),
)
# What transformers takes for a missing field.
DEFAULTS = {
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
    "dropout": GPTConfig.dropout,
    "rope_theta": GPTConfig.rope_theta,
}
MAX_TABLE_NUMBERS = 1 << 28  # of the table of positions: block_size times head_dim
UNSUPPORTED = (  # field, and what it stands for if it is set
    ("use_sliding_window", "attention in sliding windows"),
    ("attention_bias", "biases of all projections of the attention"),
    ("mlp_bias", "biases in the MLP"),
    ("quantization_config", "quantised weights"),
    ("num_experts", "a mixture of experts"),
    ("num_local_experts", "a mixture of experts"),
)


def config_to_hf(config: GPTConfig, dtype: str = "float32") -> dict:
    """The content of config.json, for transformers 4 and 5."""
    model_type = family_of(config)
    values = {hf_name: getattr(config, name) for name, (hf_name, *_) in HF_FIELDS.items()}
    if (config.max_context or 0) > config.block_size:
        values["max_position_embeddings"] = config.max_context
        values["block_size"] = config.block_size
    rope_theta = values.pop("rope_theta")
    rope = {"rope_type": "default", "rope_theta": rope_theta}
    if config.rope_scaling:
        names = [name for name, *_ in SCALING_FIELDS]
        rope |= dict(zip(names, astuple(config.rope_scaling), strict=True))
        rope["rope_type"] = "llama3"
        old_rope = {name: value for name, value in rope.items() if name != "rope_theta"}
        values["rope_scaling"] = old_rope
    return {
        "architectures": [FAMILIES[model_type].architecture],
        "model_type": model_type,
        **values,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "initializer_range": 0.02,
        "rope_theta": rope_theta,
        "rope_parameters": rope,
        "use_cache": True,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def family_of(config: GPTConfig) -> str:
    """The model_type of a config; ValueError if no family has this block."""
    block = config.qk_norm, config.qkv_bias
    for model_type, family in FAMILIES.items():
        if block == (family.qk_norm, family.qkv_bias):
            return model_type
    raise ValueError("no family of models has both biases and normalised queries and keys")


def config_from_hf(content: dict) -> GPTConfig:
    """The config in the content of a config.json; ValueError names what can't be read."""
    family = FAMILIES.get(str(content.get("model_type")))
    if family is None:
        supported = "; ".join(f"{name} ({each.models})" for name, each in FAMILIES.items())
        model_type = str(content.get("model_type"))[:40]
        raise ValueError(f"model_type is {model_type!r}, but only these can be read: {supported}")
    _refuse_unsupported(content)
    scaling, rope = _read_rope(content)
    content = {**DEFAULTS, **content, **rope}
    hidden, heads = content.get("hidden_size"), content.get("num_attention_heads")
    if content.get("num_key_value_heads") is None:
        content["num_key_value_heads"] = heads
    if content.get("head_dim") is None and _is_in(hidden, int, 1, 10**7):
        content["head_dim"] = hidden // heads if _is_in(heads, int, 1, hidden) else None
    if missing := [hf_name for hf_name, *_ in HF_FIELDS.values() if content.get(hf_name) is None]:
        raise ValueError(f"it lacks {', '.join(missing)}")
    for hf_name, *limits in HF_FIELDS.values():
        _check(hf_name, content[hf_name], *limits)
    config = GPTConfig(
        **{name: content[hf_name] for name, (hf_name, *_) in HF_FIELDS.items()},
        qk_norm=family.qk_norm,
        qkv_bias=family.qkv_bias,
        rope_scaling=scaling,
    )
    if "block_size" in content:  # of a model of Shuoshu that reads a part of its context
        _check("block_size", content["block_size"], int, 1, config.block_size)
        config.max_context, config.block_size = config.block_size, content["block_size"]
    if config.n_head % config.n_kv_head or config.head_dim % 2:
        raise ValueError("query heads must be a multiple of key-value heads, and head_dim even")
    if config.block_size * config.head_dim > MAX_TABLE_NUMBERS:
        raise ValueError(f"head_dim is {config.head_dim} in a context of {config.block_size}")
    return config


def _refuse_unsupported(content: dict) -> None:
    """ValueError if the model is no plain one of its family."""
    for name, meaning in UNSUPPORTED:
        if content.get(name):
            raise ValueError(f"{name} is set: {meaning} can't be read")
    layer_types = content.get("layer_types") or []
    if not isinstance(layer_types, list) or any(t != "full_attention" for t in layer_types):
        raise ValueError(f"layer_types is {str(layer_types)[:60]}: only full_attention can be read")
    if content.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act is {str(content['hidden_act'])[:40]!r}, not 'silu'")


def _read_rope(content: dict) -> tuple[RopeScaling | None, dict]:
    """The scaling of rotary positions and, if they name one, their base as rope_theta.

    New files have both in rope_parameters, older ones have rope_theta and rope_scaling.
    """
    forms = [content.get(name) or {} for name in ("rope_scaling", "rope_parameters")]
    if not all(isinstance(form, dict) for form in forms):
        raise ValueError("its rotary positions are no JSON object")
    kinds = {form.get("rope_type", form.get("type", "default")) for form in forms if form}
    if unknown := sorted(str(kind)[:40] for kind in kinds - {"default", "llama3"}):
        raise ValueError(
            f"rotary positions are scaled by {unknown[0]!r}; only 'llama3' can be read"
        )
    if len(kinds) > 1:
        raise ValueError("rope_scaling and rope_parameters differ")
    rope = forms[0] | forms[1]
    if any(isinstance(value, dict) for value in rope.values()):
        raise ValueError("its rotary positions differ between kinds of layers: can't be read")
    if any(form.get("partial_rotary_factor", 1.0) != 1.0 for form in (content, rope)):
        raise ValueError("partial_rotary_factor is set: partly rotated heads can't be read")
    theta = {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
    if kinds <= {"default"}:
        return None, theta
    for name, *limits in SCALING_FIELDS:
        _check(name, rope.get(name), *limits)
    scaling = RopeScaling(*(rope[name] for name, *_ in SCALING_FIELDS))
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise ValueError("high_freq_factor must be above low_freq_factor")
    return scaling, theta


def _check(name: str, value: object, kind: type, low: float, high: float) -> None:
    if not _is_in(value, kind, low, high):
        raise ValueError(f"{name} is {str(value)[:40]}")


def _is_in(value: object, kind: type, low: float, high: float) -> bool:
    """Whether the value has the type and is in the range; an int is a fine float."""
    has_type = type(value) is kind or (kind is float and type(value) is int)
    return has_type and low <= value <= high and math.isfinite(value)  # NaN is in no range
