"""A Hugging Face model folder: written atomically, verified when read."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import typing
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model import GPT, GPTConfig, config_from_hf, config_to_hf
from shuoshu.core.errors import UserError
from shuoshu.core.files import (
    error_reason,
    open_file,
    read_json,
    require_disk_space,
    write_atomically,
    write_synced_text,
)
from shuoshu.core.out_dirs import require_model
from shuoshu.text.dataset import TASKS
from shuoshu.text.tokenizer import Tokenizer

SAFETENSORS_DTYPES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.uint8: "U8",
}
HEADER_BYTES = 300  # of one tensor, at most
MAX_HEADER_BYTES = 1 << 24  # a longer header is a sign of damage
HASH_CHUNK_BYTES = 1 << 20  # of a file at a time


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """An upper bound of the size of a file of these tensors, in bytes."""
    return sum(t.numel() * t.element_size() + HEADER_BYTES for t in tensors)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """Writes and syncs a safetensors file; returns its sha256.

    Equal content gives equal bytes, unlike with safetensors' own writer, which shuffles the
    metadata. A sha256 of the header and the data is added to the metadata.
    """
    arrays = {name: t.detach().cpu().contiguous() for name, t in sorted(tensors.items())}
    raw = {name: t.reshape(-1).view(torch.uint8).numpy() for name, t in arrays.items()}
    header: dict[str, typing.Any] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0  # in the data, which follows the header
    for name, tensor in arrays.items():
        end = offset + raw[name].nbytes
        header[name] = {
            "dtype": SAFETENSORS_DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    digest = hashlib.sha256(json.dumps(header).encode())
    for piece in raw.values():
        digest.update(piece)
    header["__metadata__"]["sha256"] = digest.hexdigest()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data to 8 bytes
    file_digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in (len(text).to_bytes(8, "little") + text, *raw.values()):
            file.write(piece)
            file_digest.update(piece)
        file.flush()
        os.fsync(file.fileno())
    return file_digest.hexdigest()


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a weights file; UserError if its content doesn't match its sha256."""
    try:
        with open_file(path) as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, path.stat().st_size - 8):
                raise ValueError("its header is cut off or missing")
            header = json.loads(file.read(length))
            metadata = header["__metadata__"]
            expected = metadata.pop("sha256")
            digest = hashlib.sha256(json.dumps(header).encode())
            while chunk := file.read(HASH_CHUNK_BYTES):
                digest.update(chunk)
        if digest.hexdigest() != expected:
            raise ValueError("its content doesn't match its sha256")
        for name in ("step", "turns"):
            if not re.fullmatch("[0-9]{1,15}", metadata.get(name, "0")):
                raise ValueError("its step or turns are not a number")
        if metadata.get("task", "text") not in TASKS:
            raise ValueError("its task is neither text nor questions")
        if not isinstance(metadata.get("system", ""), str):
            raise ValueError("its system message is not a text")
        return metadata
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged or not a weights file of Shuoshu: {error_reason(error)}; "
            "copy it again, or train again"
        ) from None


class Purpose(typing.NamedTuple):
    """What a model was trained for."""

    task: str = "text"  # "text": it continues text; "questions": it answers
    turns: int = 0  # successive questions it was trained to answer; 0: it continues text
    # Begins each conversation of the training; empty if there is none or if they differ.
    system: str = ""


CONTINUES_TEXT = Purpose()


def read_purpose(metadata: dict[str, str]) -> Purpose:
    """The purpose in the metadata of a weights file."""
    turns = int(metadata.get("turns", 0))
    # Weights of earlier versions have no task.
    task = metadata.get("task", "questions" if turns else "text")
    return Purpose(task, turns, metadata.get("system", ""))


# ---------------------------------------------------------------- the model folder


def write_model_folder(
    out_dir: Path, config: GPTConfig, tokenizer: Tokenizer, system: str = ""
) -> None:
    """Writes all files of a Hugging Face model folder except the weights."""
    ids = {"eos_token_id": tokenizer.end, "pad_token_id": tokenizer.pad, "bos_token_id": None}
    generation = {**ids, "do_sample": True, "temperature": 0.8, "top_k": 200}
    files = {
        "config.json": json.dumps({**config_to_hf(config), **ids}, indent=1),
        "generation_config.json": json.dumps(generation, indent=1),
        **tokenizer.files(config.block_size, system),
    }
    for name, text in files.items():
        write_atomically(out_dir / name, lambda path, text=text: write_synced_text(path, text))


def weights_fingerprint(config: GPTConfig, tokenizer: Tokenizer) -> str:
    """A hash of the tokenizer and of the config values that weights depend on."""
    shape = asdict(config) | {"dropout": None, "block_size": None}
    return hashlib.sha256(json.dumps([shape, tokenizer.hash], sort_keys=True).encode()).hexdigest()


def save_weights(
    out_dir: Path, model: GPT, tokenizer: Tokenizer, step: int, purpose: Purpose = CONTINUES_TEXT
) -> None:
    """Replaces the folder's model.safetensors; OSError if the disk has no room for it."""
    metadata = {
        "step": str(step),
        "task": purpose.task,
        "turns": str(purpose.turns),
        "system": purpose.system,
        "belongs": weights_fingerprint(model.config, tokenizer),
    }
    require_disk_space(out_dir, tensor_bytes(model.tensors().values()))
    write_atomically(
        out_dir / "model.safetensors", lambda path: write_tensors(path, model.tensors(), metadata)
    )


class LoadedModel(typing.NamedTuple):
    """The content of a model folder."""

    model: GPT
    tokenizer: Tokenizer
    step: int  # of the training that saved it
    purpose: Purpose


def check_shapes(path: Path, config: GPTConfig) -> None:
    """ValueError if a file's shapes don't fit a config. Allocates no memory for the model.

    A damaged config.json could otherwise ask for more memory than the machine has.
    """
    with safe_open(path, "pt") as file:
        names = file.keys()
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    c = config
    heads = 2 * (c.n_head + c.n_kv_head) * c.head_dim  # rows of the four projections
    block = c.n_embd * (heads + 3 * c.n_hidden + 2) + 2 * c.head_dim  # parameters
    outer = c.vocab_size * c.n_embd * (1 if c.tie_embeddings else 2)
    if c.n_layer * block + c.n_embd + outer <= sum(map(math.prod, shapes.values())):
        return  # the model is no larger than the file, so it can be built
    # On the meta device load_tensors only compares shapes. The first use costs torch a second,
    # so the check above comes first.
    with torch.device("meta"):
        GPT(config).load_tensors({name: torch.empty(shape) for name, shape in shapes.items()})


# What reading a damaged folder can raise.
LOAD_ERRORS = (ValueError, TypeError, KeyError, AttributeError, OSError, RuntimeError)
LOAD_ERRORS += (SafetensorError,)


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


def load_model(
    folder: str | Path, device: torch.device | str = "cpu", **changes: object
) -> LoadedModel:
    """The model in a folder; UserError if anything in it is missing, damaged or inconsistent.

    `changes` may override the config's dropout and block_size.
    """
    folder = Path(folder)
    require_model(folder)
    metadata = read_metadata(folder / "model.safetensors")
    tokenizer = Tokenizer.load(folder)
    config = read_config_json(folder)
    try:
        check_shapes(folder / "model.safetensors", config)
        model = GPT.from_pretrained(folder, **changes)
        if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
            raise ValueError("its weights are not finite")
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
    return LoadedModel(model.to(device).eval(), tokenizer, step, read_purpose(metadata))


def convert_weights(model: GPT, dtype: torch.dtype) -> GPT:
    """The same model with its weights in `dtype`. Its position tables stay in float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model
