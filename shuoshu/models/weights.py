"""A Hugging Face model folder: written atomically, verified when read."""

from __future__ import annotations

import hashlib
import json
import math
import typing
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from model import GPT, GPTConfig
from shuoshu.core.errors import UserError
from shuoshu.core.files import (
    error_reason,
    read_json,
    require_disk_space,
    write_atomically,
    write_synced_text,
)
from shuoshu.core.out_dirs import adapter_base, holds_adapter, require_model, weights_path
from shuoshu.models.adapters import (
    Adapter,
    apply_adapter,
    base_fingerprint,
    check_base,
    read_adapter,
)
from shuoshu.models.families import config_from_hf, config_to_hf
from shuoshu.models.lora import share_parameters
from shuoshu.models.purpose import (
    CONTINUES_TEXT,
    Purpose,
    foreign_purpose,
    inherited_purpose,
    purpose_metadata,
    read_purpose,
)
from shuoshu.models.tensor_files import (
    INDEX_FILE,
    WEIGHTS_FILE,
    StoredTensor,
    folder_tensors,
    peek_metadata,
    read_metadata,
    tensor_bytes,
    write_tensors,
)
from shuoshu.text.tokenizer import Tokenizer
from shuoshu.text.tokenizer_folder import load_tokenizer

# What reading a damaged folder can raise.
LOAD_ERRORS = (ValueError, TypeError, KeyError, AttributeError, OSError, RuntimeError)
LOAD_ERRORS += (RecursionError,)
# Of GPTConfig: older models have none of these, so their default leaves a fingerprint as it was.
LATER_FIELDS = {"qk_norm", "qkv_bias", "rope_scaling"}
# In old files of Llama models, which the config gives as well.
DERIVED_TENSORS = "rotary_emb.inv_freq"
# A larger model than its file by this factor isn't built, since its norms would fill the memory.
MAX_MISSING = 4
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def folder_purpose(folder: Path, base: str | Path | None = None) -> Purpose:
    """The purpose of the model or adapter in a folder, without reading its weights.

    UserError if there is none, if a file is damaged, or if an adapter's base is missing.
    """
    require_model(folder)
    path = weights_path(folder)
    metadata = {} if path.name == INDEX_FILE else peek_metadata(path)
    if metadata:
        return read_purpose(metadata)
    if not holds_adapter(folder):
        return foreign_purpose(load_tokenizer(folder))
    purpose = folder_purpose(adapter_base(folder, base))
    if (folder / "tokenizer.json").is_file():
        return inherited_purpose(purpose, load_tokenizer(folder))
    return purpose


# ---------------------------------------------------------------- the model folder


def write_model_folder(
    out_dir: Path,
    config: GPTConfig,
    tokenizer: Tokenizer,
    system: str = "",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes all files of a Hugging Face model folder except the weights, which are in `dtype`."""
    ids = {
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad,
        "bos_token_id": tokenizer.bos_token_id,
    }
    eos = {"eos_token_id": tokenizer.eos_token_ids}  # one, or a list
    generation = {**ids, **eos, "do_sample": True, "temperature": 0.8, "top_k": 200}
    content = config_to_hf(config, str(dtype).removeprefix("torch."))
    files = {
        "config.json": json.dumps({**content, **ids}, indent=1),
        "generation_config.json": json.dumps(generation, indent=1),
        **tokenizer.files(config.block_size, system),
    }
    for name, text in files.items():
        write_atomically(out_dir / name, lambda path, text=text: write_synced_text(path, text))


def weights_fingerprint(config: GPTConfig, tokenizer: Tokenizer) -> str:
    """A hash of the tokenizer and of the config values that weights depend on."""
    shape = asdict(config) | {"dropout": None, "block_size": None}
    del shape["max_context"]
    for field in fields(config):
        if field.name in LATER_FIELDS and shape[field.name] == field.default:
            del shape[field.name]
    return hashlib.sha256(json.dumps([shape, tokenizer.hash], sort_keys=True).encode()).hexdigest()


def weights_metadata(
    config: GPTConfig, tokenizer: Tokenizer, step: int, purpose: Purpose
) -> dict[str, str]:
    """The metadata of a file of weights."""
    belongs = weights_fingerprint(config, tokenizer)
    return {"step": str(step), **purpose_metadata(purpose), "belongs": belongs}


def save_weights(
    out_dir: Path, model: GPT, tokenizer: Tokenizer, step: int, purpose: Purpose = CONTINUES_TEXT
) -> None:
    """Replaces the folder's model.safetensors; OSError if the disk has no room for it."""
    metadata = weights_metadata(model.config, tokenizer, step, purpose)
    require_disk_space(out_dir, tensor_bytes(model.tensors().values()))
    write_atomically(
        out_dir / WEIGHTS_FILE, lambda path: write_tensors(path, model.tensors(), metadata)
    )


class LoadedModel(typing.NamedTuple):
    """The content of a model folder."""

    model: GPT
    tokenizer: Tokenizer
    step: int  # of the training that saved it
    purpose: Purpose
    adapter: Adapter | None = None


class _SkipInit(TorchFunctionMode):
    """Within this context, modules are made without drawing their weights.

    Memory that is never written costs nothing until a tensor of the file replaces it.
    """

    DRAWS = frozenset(("kaiming_uniform_", "uniform_", "normal_", "fill_"))

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function.__name__ in self.DRAWS:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def model_from_tensors(
    config: GPTConfig, stored: dict[str, StoredTensor], dtype: torch.dtype
) -> GPT:
    """A model with the stored weights, converted to `dtype` one at a time.

    ValueError if they don't fit the config.
    """
    c = config
    heads = 2 * (c.n_head + c.n_kv_head) * c.head_dim  # rows of the four projections
    size = c.n_layer * c.n_embd * (heads + 3 * c.n_hidden) + c.vocab_size * c.n_embd
    numbers = sum(math.prod(tensor.shape) for tensor in stored.values())
    if size > MAX_MISSING * numbers:
        raise ValueError(f"its weights have {numbers:,} numbers, config.json describes {size:,}")
    with _SkipInit():
        model = GPT(config)
    stored = {name: each for name, each in stored.items() if not name.endswith(DERIVED_TENSORS)}
    if config.tie_embeddings and HEAD in stored:
        _check_tied_head(stored)
    model.check_tensors(stored)
    # The largest first, while there is the most room for a tensor in two types.
    own = dict(model.named_parameters())
    for name in sorted(own, key=lambda name: -own[name].numel()):
        weight = stored[name].read(dtype)
        if not all(map(torch.isfinite, weight.aminmax())):
            raise ValueError("its weights are not finite")
        own[name].data = weight
    return model


def _check_tied_head(stored: dict[str, StoredTensor]) -> None:
    """ValueError if the head in the file isn't the embedding, though config.json ties them."""
    if EMBEDDING in stored and not torch.equal(stored[EMBEDDING].read(), stored[HEAD].read()):
        raise ValueError(f"{HEAD} differs from {EMBEDDING}, though config.json ties them")


def read_config_json(folder: Path) -> GPTConfig:
    """The model's config; UserError that names the file if it is damaged or of another model."""
    path = folder / "config.json"
    try:
        content = read_json(path)
        if not isinstance(content, dict):
            raise ValueError("it holds no JSON object")
        return config_from_hf(content)
    except LOAD_ERRORS as error:
        raise UserError(
            f"the model in {folder} can't be loaded: {path.name}: {error_reason(error)}"
        ) from None


def model_config(folder: Path, base: str | Path | None = None) -> GPTConfig:
    """The config of the model in a folder, or of the base of the adapter in it."""
    if holds_adapter(folder):
        folder = adapter_base(folder, base)
    return read_config_json(folder)


def change_config(config: GPTConfig, **changes: object) -> GPTConfig:
    """A config with another dropout or block_size; max_context keeps the model's longest row."""
    context = max(config.max_context or 0, config.block_size)
    changed = replace(config, **changes)
    return replace(changed, max_context=context if context > changed.block_size else None)


def load_model(
    folder: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    base: str | Path | None = None,
    **changes: object,
) -> LoadedModel:
    """The model in a folder; UserError if anything in it is missing, damaged or inconsistent.

    `base` is the folder of the model below an adapter, unless it is where the adapter says.
    `changes` may override the config's dropout and block_size.
    """
    folder = Path(folder)
    require_model(folder)
    if holds_adapter(folder):
        base = adapter_base(folder, base)
        loaded = with_adapter(load_model(base, device, dtype, **changes), base, folder)
        convert_weights(loaded.model, dtype)
        return loaded
    metadata = read_metadata(folder / WEIGHTS_FILE) if (folder / WEIGHTS_FILE).exists() else {}
    tokenizer = load_tokenizer(folder)
    config = read_config_json(folder)
    try:
        model = model_from_tensors(change_config(config, **changes), folder_tensors(folder), dtype)
    except LOAD_ERRORS as error:
        raise UserError(f"the model in {folder} can't be loaded: {error_reason(error)}") from None
    fingerprint = weights_fingerprint(config, tokenizer)
    if metadata.get("belongs", fingerprint) != fingerprint:
        raise UserError(
            f"{folder}: config.json or tokenizer.json is not the one that model.safetensors "
            "was saved with: copy the whole folder again"
        )
    if model.config.vocab_size < tokenizer.n_vocab:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.n_vocab:,} entries, the model only "
            f"{model.config.vocab_size:,}: they don't belong together"
        )
    step = int(metadata.get("step", 0))
    purpose = read_purpose(metadata) if metadata else foreign_purpose(tokenizer)
    return LoadedModel(model.to(device).eval(), tokenizer, step, purpose)


def load_adapted(
    folder: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    base: str | Path | None = None,
    **changes: object,
) -> LoadedModel:
    """As load_model, of an adapter to be trained on or merged.

    Its own weights are in float32, and it has its base's fingerprint.
    """
    base = adapter_base(folder, base)
    below = load_model(base, device, dtype, **changes)
    loaded = with_adapter(below, base, folder)
    fingerprint = loaded.adapter.fingerprint or folder_fingerprint(base, below)
    return loaded._replace(adapter=replace(loaded.adapter, fingerprint=fingerprint))


def with_adapter(loaded: LoadedModel, base: Path, folder: Path) -> LoadedModel:
    """The model with the adapter in `folder`; it shares the parameters of `loaded`, from `base`.

    UserError if the adapter was trained on another model.
    """
    adapter, metadata = read_adapter(folder)
    if adapter.fingerprint:  # else it is PEFT's, and reading the base twice would be no use
        check_base(folder, adapter, base, folder_fingerprint(base, loaded))
    model = share_parameters(loaded.model)
    adapter = apply_adapter(model, adapter, folder)
    tokenizer = _adapter_tokenizer(folder, loaded, metadata.get("belongs"))
    purpose = read_purpose(metadata) if metadata else inherited_purpose(loaded.purpose, tokenizer)
    return LoadedModel(
        model.eval(),
        tokenizer,
        int(metadata.get("step", 0)),
        purpose,
        replace(adapter, base=str(base.resolve())),
    )


def _adapter_tokenizer(folder: Path, loaded: LoadedModel, belongs: str | None) -> Tokenizer:
    """The tokenizer that was saved with an adapter, else the base's.

    Its chat template may be another one. UserError if its ids are others. `belongs` is what
    weights_fingerprint gave when our program saved the adapter.
    """
    is_same = belongs == weights_fingerprint(loaded.model.config, loaded.tokenizer)
    if is_same or not (folder / "tokenizer.json").is_file():
        return loaded.tokenizer
    tokenizer, known = load_tokenizer(folder), loaded.tokenizer.token_bytes
    same = tokenizer.token_bytes[: len(known)] == known
    if not same or tokenizer.n_vocab > loaded.model.config.vocab_size:
        raise UserError(f"{folder} has another tokenizer than the model that it was trained on")
    if tokenizer.kind == "foreign":
        tokenizer.add_ends(sorted(loaded.tokenizer.ends))
    return tokenizer


def folder_fingerprint(folder: Path, loaded: LoadedModel) -> str:
    """What tells the model in a folder from every other one."""
    return base_fingerprint(folder, weights_fingerprint(loaded.model.config, loaded.tokenizer))


def convert_weights(model: GPT, dtype: torch.dtype) -> GPT:
    """The same model with its weights in `dtype`. Its position tables stay in float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model
