"""Adapters as PEFT's folders: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import regex

from model import GPT
from shuoshu.core.errors import UserError
from shuoshu.core.files import (
    error_reason,
    read_json,
    require_disk_space,
    sha256_of,
    write_atomically,
    write_synced_text,
)
from shuoshu.core.out_dirs import ADAPTER_CONFIG, ADAPTER_WEIGHTS, base_name
from shuoshu.core.settings import LORA_TARGETS
from shuoshu.models.lora import LoraConfig, add_lora, short_targets, target_layers
from shuoshu.models.tensor_files import (
    read_metadata,
    stored_tensors,
    tensor_bytes,
    weight_files,
    write_tensors,
)

PREFIX = "base_model.model."  # PEFT's, before the names of the parameters
A_END, B_END = ".lora_A.weight", ".lora_B.weight"
# What makes an adapter more than low-rank updates. Each field may be absent, empty or false.
REFUSED_FIELDS = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "fan_in_fan_out",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "megatron_config",
    "loftq_config",
)
# Other initialisations, such as pissa, change the weights of the base.
KEEP_THE_BASE = (True, False, None, "gaussian", "orthogonal", "eva")
MAX_PATTERNS, MAX_PATTERN_LENGTH = 2000, 300
PATTERN_SECONDS = 2  # for all patterns and layers of an adapter together
ADAPTER_ERRORS = (ValueError, TypeError, KeyError, AttributeError, OSError, RuntimeError)
ADAPTER_ERRORS += (RecursionError, OverflowError, regex.error)


@dataclass(frozen=True)
class Adapter:
    """A LoRA, and the model whose layers it changes."""

    lora: LoraConfig
    base: str  # the folder of the base; of PEFT's adapters it may be the name of a download
    fingerprint: str | None  # of the base, see base_fingerprint; None: PEFT stores none


# ---------------------------------------------------------------- the base


def base_fingerprint(folder: Path, belongs: str) -> str:
    """A hash of the weights in a base's folder, and of `belongs`, its config and tokenizer."""
    hashes = [_sha256_once(path, _version(path)) for path in weight_files(folder)]
    return hashlib.sha256(json.dumps([belongs, *hashes]).encode()).hexdigest()


@lru_cache(maxsize=256)
def _sha256_once(path: Path, version: tuple[int, ...]) -> str:
    """The sha256 of a file, read once while its version stays: a base may have many GB."""
    return sha256_of(path)


def _version(path: Path) -> tuple[int, ...]:
    """Changes with the file's content: st_ctime_ns does even if a program resets st_mtime_ns."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def adapter_from_state(values: dict) -> Adapter:
    """The adapter whose asdict() a checkpoint stores; TypeError or KeyError if it is damaged."""
    lora = LoraConfig(**{**values["lora"], "targets": tuple(values["lora"]["targets"])})
    return Adapter(**{**values, "lora": lora})


def check_base(folder: Path, adapter: Adapter, base: Path, fingerprint: str) -> None:
    """UserError if the adapter was trained on another base than the one with this fingerprint."""
    if adapter.fingerprint not in (None, fingerprint):
        raise UserError(
            f"{base} is not, or no longer, the model that the adapter in {folder} was trained on:"
            " restore that model, or name the folder where it is with --base=FOLDER"
        )


# ---------------------------------------------------------------- writing


def lora_to_json(lora: LoraConfig, base: str) -> dict:
    """The content of adapter_config.json."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "revision": None,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": list(lora.targets),
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": lora.ranks,
        "alpha_pattern": lora.alphas,
        "use_rslora": lora.rslora,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "init_lora_weights": True,
    }


def write_adapter_folder(out_dir: Path, adapter: Adapter, tokenizer_files: dict[str, str]) -> None:
    """Writes all files of an adapter's folder except the weights."""
    content = json.dumps(lora_to_json(adapter.lora, adapter.base), indent=1, ensure_ascii=False)
    files = {ADAPTER_CONFIG: content, **tokenizer_files}
    for name, text in files.items():
        write_atomically(out_dir / name, lambda path, text=text: write_synced_text(path, text))


def save_adapter(out_dir: Path, model: GPT, adapter: Adapter, metadata: dict[str, str]) -> None:
    """Replaces the folder's weights; OSError if the disk has no room for them."""
    tensors = {PREFIX + name: tensor for name, tensor in model.tensors().items()}
    metadata = {**metadata, "base": adapter.fingerprint}
    require_disk_space(out_dir, tensor_bytes(tensors.values()))
    write_atomically(out_dir / ADAPTER_WEIGHTS, lambda path: write_tensors(path, tensors, metadata))


# ---------------------------------------------------------------- reading


def read_adapter(folder: Path) -> tuple[Adapter, dict[str, str]]:
    """The adapter in a folder and the metadata of its weights; UserError if it can't be used."""
    path = folder / ADAPTER_WEIGHTS
    metadata = read_metadata(path)
    try:
        content = read_json(folder / ADAPTER_CONFIG)
        if not isinstance(content, dict):
            raise ValueError(f"{ADAPTER_CONFIG} holds no JSON object")
        shapes = {name: tensor.shape for name, tensor in stored_tensors(path).items()}
        lora = lora_from_json(content, _layer_ranks(shapes))
        return Adapter(lora, base_name(folder), metadata.get("base")), metadata
    except ADAPTER_ERRORS as error:
        raise UserError(f"the adapter in {folder} can't be used: {error_reason(error)}") from None


def _layer_ranks(shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """{layer: rank} of the tensors in a file; ValueError names one that is not LoRA's."""
    ranks = {}
    for name, shape in shapes.items():
        if not name.startswith(PREFIX) or not name.endswith((A_END, B_END)) or len(shape) != 2:
            raise ValueError(f"{name[:100]} is not a low-rank update of a linear layer")
        layer = name.removeprefix(PREFIX).removesuffix(A_END).removesuffix(B_END)
        rank = shape[0] if name.endswith(A_END) else shape[1]
        if ranks.setdefault(layer, rank) != rank or not rank:
            raise ValueError(f"{name[:100]} has shape {shape}, which doesn't fit its other half")
    if not ranks or 2 * len(ranks) != len(shapes):
        raise ValueError("its weights are not pairs of lora_A and lora_B")
    return ranks


def lora_from_json(content: dict, ranks: dict[str, int]) -> LoraConfig:
    """The LoRA that adapter_config.json describes, of layers with these ranks.

    target_modules is not read: the names of the tensors say which layers are adapted. ValueError if
    a field has a wrong value or isn't supported.
    """
    _check_support(content)
    rank, alpha = content.get("r", 8), content.get("lora_alpha", 8)  # PEFT's defaults
    dropout, rslora = content.get("lora_dropout", 0.0), content.get("use_rslora", False)
    rank_pattern = _compiled(content, "rank_pattern")
    alpha_pattern = _compiled(content, "alpha_pattern")
    own_ranks, own_alphas = {}, {}
    deadline = time.monotonic() + PATTERN_SECONDS
    for layer, found in ranks.items():
        expected = _first_match(rank_pattern, layer, rank, deadline)
        if expected != found:
            raise ValueError(f"{layer[:80]} has rank {found}, but {ADAPTER_CONFIG} says {expected}")
        own_ranks |= {layer: found} if found != rank else {}
        own = _first_match(alpha_pattern, layer, alpha, deadline)
        own_alphas |= {layer: own} if own != alpha else {}
    numbers = [alpha, *own_alphas.values()]
    if type(rank) is not int or not all(_is_number(number) for number in numbers):
        raise ValueError("r, lora_alpha or alpha_pattern is not a number")
    if not _is_number(dropout) or not 0 <= dropout < 1 or type(rslora) is not bool:
        raise ValueError("lora_dropout or use_rslora is out of range")
    return LoraConfig(rank, alpha, tuple(ranks), dropout, rslora, own_ranks, own_alphas)


def _check_support(content: dict) -> None:
    """ValueError names what is beyond plain LoRA."""
    if content.get("peft_type") != "LORA":
        raise ValueError(f"peft_type is {str(content.get('peft_type'))[:40]!r}, not 'LORA'")
    if content.get("bias", "none") != "none":
        raise ValueError(f"bias={str(content['bias'])[:40]} is not supported, only none")
    if wrong := [name for name in REFUSED_FIELDS if content.get(name)]:
        raise ValueError(f"{', '.join(wrong)}: not supported, only plain LoRA of linear layers")
    start = content.get("init_lora_weights", True)
    if start not in KEEP_THE_BASE:
        raise ValueError(
            f"init_lora_weights={str(start)[:40]} changes the base's weights: convert the adapter"
            " to plain LoRA with PEFT's save_pretrained"
        )


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _compiled(content: dict, name: str) -> list[tuple[regex.Pattern, object]]:
    """The patterns of rank_pattern or alpha_pattern, which are ends of names or expressions."""
    patterns = content.get(name) or {}
    if len(patterns) > MAX_PATTERNS or any(len(key) > MAX_PATTERN_LENGTH for key in patterns):
        raise ValueError(f"{name} is too long")
    return [(regex.compile(rf"(.*\.)?({key})$"), value) for key, value in patterns.items()]


def _first_match(
    patterns: list[tuple[regex.Pattern, object]], layer: str, default: object, deadline: float
) -> object:
    """The value of the first pattern that fits the layer; ValueError after the deadline."""
    try:
        for pattern, value in patterns:
            if (seconds := deadline - time.monotonic()) <= 0:
                raise TimeoutError
            if pattern.match(layer, timeout=seconds):
                return value
    except TimeoutError:
        raise ValueError("matching rank_pattern and alpha_pattern takes too long") from None
    return default


def apply_adapter(model: GPT, adapter: Adapter, folder: Path) -> Adapter:
    """Adds the adapter in `folder` to the model of its base; UserError if it doesn't fit.

    The result names its targets as short as this model allows.
    """
    try:
        layers = target_layers(model, LORA_TARGETS)
        if unknown := sorted(set(adapter.lora.targets) - set(layers)):
            raise ValueError(f"it changes {unknown[0][:100]}, which is no layer of its base")
        add_lora(model, adapter.lora)
        stored = stored_tensors(folder / ADAPTER_WEIGHTS)
        tensors = {name.removeprefix(PREFIX): tensor.read() for name, tensor in stored.items()}
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise ValueError("its weights are not finite")
        model.load_tensors(tensors)
        targets = short_targets(model, adapter.lora.targets)
        return replace(adapter, lora=replace(adapter.lora, targets=targets))
    except ADAPTER_ERRORS as error:
        raise UserError(f"the adapter in {folder} can't be used: {error_reason(error)}") from None
