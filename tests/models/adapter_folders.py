"""Adapters with random weights, as this program and as PEFT write them."""

from __future__ import annotations

from pathlib import Path

import peft
import torch
from transformers import AutoModelForCausalLM

from shuoshu.core.settings import LORA_TARGETS
from shuoshu.models.adapters import Adapter, save_adapter, write_adapter_folder
from shuoshu.models.lora import LoraConfig, add_lora
from shuoshu.models.purpose import Purpose
from shuoshu.models.weights import folder_fingerprint, load_model, weights_metadata

LORA = LoraConfig(4, 8, LORA_TARGETS)


def write_adapter(
    folder: Path,
    base: Path,
    purpose: Purpose,
    step: int = 7,
    seed: int = 0,
    lora: LoraConfig = LORA,
) -> Path:
    """An adapter of ours that changes every layer of its base much."""
    loaded = load_model(base)
    add_lora(loaded.model, lora, seed)
    torch.manual_seed(seed)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    folder.mkdir(exist_ok=True)
    adapter = Adapter(lora, str(base), folder_fingerprint(base, loaded))
    write_adapter_folder(folder, adapter, loaded.tokenizer.files(64, ""))
    metadata = weights_metadata(loaded.model.config, loaded.tokenizer, step, purpose)
    save_adapter(folder, loaded.model, adapter, metadata)
    return folder


def write_peft_adapter(folder: Path, base: Path) -> Path:
    """An adapter of PEFT, which writes no tokenizer and no purpose."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=list(LORA_TARGETS))
    peft.get_peft_model(model, config).save_pretrained(folder)
    return folder
