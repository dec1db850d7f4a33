"""Writes a model with an adapter as one Hugging Face folder."""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from pathlib import Path

import torch

from model import GPT
from shuoshu.core.errors import UserError
from shuoshu.core.files import error_reason, format_bytes
from shuoshu.core.out_dirs import adapter_base, flag, holds_adapter, is_unused, require_model
from shuoshu.core.terminal import print_line
from shuoshu.models.lora import merge_lora
from shuoshu.models.tensor_files import WEIGHTS_FILE, folder_tensors
from shuoshu.models.weights import (
    LOAD_ERRORS,
    LoadedModel,
    load_adapted,
    save_weights,
    write_model_folder,
)


def merge(folder: Path, out: Path, base: str | None, dtype_name: str) -> int:
    """Writes the merged model to `out`; returns the exit code."""
    require_model(folder)
    if not holds_adapter(folder):
        raise UserError(f"{folder} holds a whole model, not an adapter: there is nothing to merge")
    if not is_unused(out):
        raise UserError(f"{out} is not empty: choose another folder with --out")
    base = adapter_base(folder, base)
    dtype = stored_dtype(base) if dtype_name == "auto" else getattr(torch, dtype_name)
    loaded = load_adapted(folder, "cpu", dtype, base)
    merge_lora(loaded.model)
    check_finite(loaded.model, dtype)
    write_whole_folder(out, loaded)
    size = format_bytes((out / WEIGHTS_FILE).stat().st_size)
    precision = str(dtype).removeprefix("torch.")
    print_line(f"merged     {base} and the adapter in {folder}; {out} has {size} in {precision}")
    print_line(f'next       python sample.py {flag("out_dir", out)} --start="…"')
    return 0


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype of most of the weights in a model's folder; UserError if it is damaged."""
    try:
        tensors = folder_tensors(folder).values()
    except LOAD_ERRORS as error:
        raise UserError(f"the model in {folder} can't be loaded: {error_reason(error)}") from None
    sizes: Counter[torch.dtype] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += math.prod(tensor.shape)
    return sizes.most_common(1)[0][0]


def check_finite(model: GPT, dtype: torch.dtype) -> None:
    """UserError if a sum is out of the dtype's range."""
    if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
        raise UserError(f"a merged weight is out of the range of {dtype}: set --dtype=float32")


def write_whole_folder(out: Path, loaded: LoadedModel) -> None:
    """Writes all files beside `out` and moves them there, so that none of them is half written."""
    place = out.resolve()  # `.` has no name
    staging = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        staging.mkdir(parents=True)
        model, tokenizer = loaded.model, loaded.tokenizer
        dtype = next(model.parameters()).dtype
        system = loaded.purpose.system
        write_model_folder(staging, model.config, tokenizer, system, dtype)
        save_weights(staging, model, tokenizer, loaded.step, loaded.purpose)
        out.mkdir(exist_ok=True)
        for path in sorted(staging.iterdir(), key=lambda path: path.name == WEIGHTS_FILE):
            path.replace(out / path.name)
    except OSError as error:
        raise UserError(f"can't write to {out}: {error_reason(error)}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
