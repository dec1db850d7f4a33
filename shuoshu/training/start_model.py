"""The model that a run starts from: random, that of a folder, or that of a checkpoint."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from model import GPT, GPTConfig
from shuoshu.core.errors import UserError
from shuoshu.core.files import error_reason, same_path
from shuoshu.core.out_dirs import find_base, flag, holds_adapter, require_model
from shuoshu.core.settings import LORA_TARGETS, ModelSettings, TrainSettings
from shuoshu.models.adapters import Adapter, adapter_from_state, check_base
from shuoshu.models.families import config_from_hf
from shuoshu.models.lora import LoraConfig, add_lora, set_lora_dropout
from shuoshu.models.weights import (
    LoadedModel,
    folder_fingerprint,
    load_adapted,
    load_model,
    model_config,
)
from shuoshu.text.tokenizer import Tokenizer
from shuoshu.training.checkpoints import read_state
from shuoshu.training.data import RunData

VOCAB_MULTIPLE = 64  # matrix units prefer round sizes; sampling masks the padding entries
# Length of rows of text unless block_size is set: a model's whole context may need much memory.
MAX_TEXT_BLOCK = 1024
LORA_DETAILS = ("lora_alpha", "lora_dropout", "lora_targets", "lora_rslora")


@dataclass
class StartModel:
    """The model of a run. The parameters that the run trains require gradients."""

    model: GPT
    settings: TrainSettings  # with the shape of the model
    adapter: Adapter | None = None  # None: all parameters are trained


def start_model(
    settings: TrainSettings, data: RunData, dtype: torch.dtype, checkpoint: Path | None
) -> StartModel:
    """The model of a run that computes in `dtype`. A checkpoint's weights are loaded later."""
    torch.manual_seed(settings.seed)
    if checkpoint:
        return _model_of_checkpoint(settings, data.tokenizer, dtype, checkpoint)
    if settings.init_from == "scratch":
        if settings.lora_rank:
            raise UserError(
                f"lora_rank={settings.lora_rank} needs a trained model: set --init_from=FOLDER"
            )
        if data.label_block and "block_size" not in settings.given:
            settings = replace(settings, block_size=data.label_block)
        return StartModel(GPT(_scratch_config(settings, data.tokenizer)), settings)
    return _model_of_folder(settings, data, dtype)


def _scratch_config(settings: TrainSettings, tokenizer: Tokenizer) -> GPTConfig:
    vocab_size = math.ceil(tokenizer.n_vocab / VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    return GPTConfig(vocab_size=vocab_size, **_shape(settings))


def _shape(settings: TrainSettings) -> dict[str, object]:
    return {field.name: getattr(settings, field.name) for field in fields(ModelSettings)}


# ---------------------------------------------------------------- from a folder


def _model_of_folder(settings: TrainSettings, data: RunData, dtype: torch.dtype) -> StartModel:
    """The model in init_from, with its adapter, with a new one, or to be trained as a whole."""
    folder = Path(settings.init_from)
    if settings.overwrite and same_path(folder, settings.out_dir):
        raise UserError(f"init_from={folder} would be overwritten: choose another --out_dir")
    loaded = _load(settings, data.task, dtype, folder)
    if loaded.tokenizer.hash != data.tokenizer.hash:
        raise UserError(
            f"{settings.init_from} has another tokenizer than {settings.dataset}:"
            f" prepare the data with {flag('tokenizer', settings.init_from)}"
        )
    model, adapter = loaded.model.train(), loaded.adapter
    if adapter and settings.overwrite and same_path(adapter.base, settings.out_dir):
        raise UserError(
            f"{adapter.base}, the base of {folder}, would be overwritten: choose another --out_dir"
        )
    changes = _checked_shape(settings, model)
    if adapter:
        changes |= _checked_lora(settings, adapter.lora)
        dropout = changes["lora_dropout"]
        set_lora_dropout(model, dropout)
        adapter = replace(adapter, lora=replace(adapter.lora, dropout=dropout))
    elif settings.lora_rank:
        adapter = _new_adapter(settings, folder, loaded)
    else:
        _check_method(settings, folder, data.tokenizer)
    return StartModel(model, replace(settings, **changes), adapter)


def _check_method(settings: TrainSettings, folder: Path, tokenizer: Tokenizer) -> None:
    """UserError if training all weights is probably a mistake."""
    unused = [name for name in LORA_DETAILS if name in settings.given]
    if unused:
        raise UserError(
            f"{', '.join(unused)} set without lora_rank, which would train all weights:"
            " add --lora_rank=16, or leave them out"
        )
    is_ours = tokenizer.kind != "foreign" or (folder / "settings.json").is_file()
    if settings.optimizer == "muon" and not is_ours and "optimizer" not in settings.given:
        raise UserError(
            f"{folder} was trained by others, and muon's rates would spoil it: use config/lora.py,"
            " for all weights with --lora_rank=none --learning_rate=4e-5, or set --optimizer"
        )


def _load(settings: TrainSettings, task: str, dtype: torch.dtype, folder: Path) -> LoadedModel:
    """The model in a folder. Weights that are not trained may be in bfloat16."""
    require_model(folder)
    changes = {}
    if "dropout" in settings.given:
        changes["dropout"] = settings.dropout
    if "block_size" in settings.given:
        changes["block_size"] = settings.block_size
    elif task == "text":
        context = model_config(folder, settings.base).block_size
        changes["block_size"] = min(context, MAX_TEXT_BLOCK)
    if holds_adapter(folder):
        if settings.optimizer == "muon":
            raise UserError(
                f"{folder} is an adapter, which muon doesn't train: use config/lora.py, or set"
                " --optimizer=adamw"
            )
        return load_adapted(folder, "cpu", frozen_dtype(dtype), settings.base, **changes)
    weights = frozen_dtype(dtype) if settings.lora_rank else torch.float32
    return load_model(folder, dtype=weights, **changes)


def frozen_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of weights that are not trained if the run computes in `dtype`."""
    return dtype if dtype == torch.bfloat16 else torch.float32


def _checked_shape(settings: TrainSettings, model: GPT) -> dict[str, object]:
    """The model's shape as settings; UserError if the user gave another one."""
    own = {name: getattr(model.config, name) for name in _shape(settings)}
    given = {name: getattr(settings, name) for name in own if name in settings.given}
    others = [name for name, size in given.items() if size not in (None, own[name])]
    if others:
        flags = " ".join(f"--{name}={own[name]}".lower() for name in others)
        raise UserError(
            f"{', '.join(f'{name}={given[name]}' for name in others)}: the model in"
            f" {settings.init_from} has another shape; set {flags}, or choose another --init_from"
        )
    return own


def _new_adapter(settings: TrainSettings, folder: Path, loaded: LoadedModel) -> Adapter:
    """Adds an adapter to the model."""
    lora = LoraConfig(
        rank=settings.lora_rank,
        alpha=settings.lora_alpha,
        targets=settings.target_names(),
        dropout=settings.lora_dropout,
        rslora=settings.lora_rslora,
    )
    add_lora(loaded.model, lora, settings.seed)
    return Adapter(lora, str(folder.resolve()), folder_fingerprint(folder, loaded))


def _checked_lora(settings: TrainSettings, lora: LoraConfig) -> dict[str, object]:
    """The settings of an adapter; UserError if the user gave others."""
    adapted = {target.rpartition(".")[2] for target in lora.targets}
    targets = tuple(name for name in LORA_TARGETS if name in adapted)
    own = {
        "lora_rank": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_rslora": lora.rslora,
        "lora_targets": "all" if targets == LORA_TARGETS else ",".join(targets),
    }
    others = [name for name in own if own[name] != getattr(settings, name)]
    others = [name for name in others if name in settings.given]
    if set(settings.target_names()) == adapted:
        others = [name for name in others if name != "lora_targets"]
    if settings.lora_rank is None and "lora_rank" in others:
        raise UserError(
            f"lora_rank=none: {settings.init_from} is an adapter; to train all weights, make it a"
            f" model with\n  python merge.py {shlex.quote(settings.init_from)} --out=FOLDER"
        )
    if others:
        given = ", ".join(f"{name}={getattr(settings, name)}".lower() for name in others)
        flags = " ".join(f"--{name}={own[name]}".lower() for name in others)
        raise UserError(
            f"{given}: the adapter in {settings.init_from} has others; set {flags},"
            " or start a new one from its base"
        )
    is_given = "lora_dropout" in settings.given
    return own | {"lora_dropout": settings.lora_dropout if is_given else lora.dropout}


# ---------------------------------------------------------------- from a checkpoint


def _model_of_checkpoint(
    settings: TrainSettings, tokenizer: Tokenizer, dtype: torch.dtype, checkpoint: Path
) -> StartModel:
    """The model whose weights a checkpoint holds, or the base and the adapter whose it holds."""
    try:
        saved = read_state(checkpoint)
        config = _scratch_config(settings, tokenizer)  # older checkpoints store none
        if "config" in saved:
            config = replace(config_from_hf(saved["config"]), dropout=settings.dropout)
        if not saved.get("adapter"):
            return StartModel(GPT(config), settings)
        adapter = adapter_from_state(saved["adapter"])
        adapter = replace(adapter, lora=replace(adapter.lora, dropout=settings.lora_dropout))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"{checkpoint} can't be resumed from: {error_reason(error)}") from None
    base = find_base(Path(settings.out_dir), adapter.base, settings.base)
    changes = {"dropout": settings.dropout, "block_size": config.block_size}
    loaded = load_model(base, "cpu", frozen_dtype(dtype), **changes)
    check_base(Path(settings.out_dir), adapter, base, folder_fingerprint(base, loaded))
    add_lora(loaded.model, adapter.lora, settings.seed)
    adapter = replace(adapter, base=str(base.resolve()))
    return StartModel(loaded.model.train(), settings, adapter)
