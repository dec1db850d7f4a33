"""Saving that survives a kill, loading that trusts nothing: files written aside, hashed, synced, and renamed when whole.

out_dir holds the best model as a Hugging Face folder; out_dir/checkpoints/step-000500/ holds all that a run needs to go on.
Everything is safetensors or JSON: nothing is ever unpickled.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import typing
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from model import GPT, GPTConfig
from shuoshu.core.cli import UserError
from shuoshu.core.files import open_file, read_json, reason_of, sha256_of, size
from shuoshu.core.saving import sync_folder, verify, write_text, write_whole
from shuoshu.text.tokenizer import Tokenizer

FORMAT = 1
KEEP = 2  # checkpoints of a run
BEFORE = ".before"  # the end of the name of a checkpoint that is being replaced
_DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64", torch.uint8: "U8"}


# ---------------------------------------------------------------- weights


def need_room(folder: Path, needed: int) -> None:
    """OSError if the folder's disk has not so many bytes left."""
    usage = shutil.disk_usage(folder)
    if usage.total and usage.free < needed:  # some network drives know no total
        raise OSError(errno.ENOSPC, f"no room on the disk: {size(needed)} are needed, {size(usage.free)} are free")


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of a file of these tensors, at most."""
    return sum(tensor.numel() * tensor.element_size() + 300 for tensor in tensors)  # each has its line in the header


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """A safetensors file whose bytes depend on its content alone (the library shuffles the metadata), synced; its sha256.

    The metadata gains a sha256 over the rest of the header and all that follows it.
    """
    arrays = {name: t.detach().cpu().contiguous() for name, t in sorted(tensors.items())}
    raw = {name: t.reshape(-1).view(torch.uint8).numpy() for name, t in arrays.items()}
    header: dict[str, typing.Any] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    for name, tensor in arrays.items():
        end = offset + raw[name].nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    digest = hashlib.sha256(json.dumps(header).encode())
    for piece in raw.values():
        digest.update(piece)
    header["__metadata__"]["sha256"] = digest.hexdigest()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    whole = hashlib.sha256()
    with path.open("wb") as file:
        for piece in (len(text).to_bytes(8, "little") + text, *raw.values()):
            file.write(piece)
            whole.update(piece)
        file.flush()
        os.fsync(file.fileno())
    return whole.hexdigest()


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; UserError if the file is not whole."""
    try:
        with open_file(path) as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(1 << 24, path.stat().st_size - 8):
                raise ValueError("its header is cut off, or none")
            header = json.loads(file.read(length))
            metadata = header["__metadata__"]
            expected = metadata.pop("sha256")
            digest = hashlib.sha256(json.dumps(header).encode())
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        if digest.hexdigest() != expected:
            raise ValueError("its content doesn't match its sha256")
        if not all(re.fullmatch("[0-9]{1,15}", metadata.get(name, "0")) for name in ("step", "turns")):
            raise ValueError("its step or its turns are no number")
        return metadata
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged or no weights file of Shuoshu: {reason_of(error)}; copy it anew, or train again") from None


# ---------------------------------------------------------------- the model folder


def write_model_folder(out_dir: Path, config: GPTConfig, tokenizer: Tokenizer) -> None:
    """All of a Hugging Face model folder but the weights."""
    ids = {"eos_token_id": tokenizer.end, "pad_token_id": tokenizer.pad, "bos_token_id": None}
    files = {
        "config.json": json.dumps({**config.to_hf(), **ids}, indent=1),
        "generation_config.json": json.dumps({**ids, "do_sample": True, "temperature": 0.8, "top_k": 200}, indent=1),
        **tokenizer.files(config.block_size),
    }
    for name, text in files.items():
        write_whole(out_dir / name, lambda path, text=text: write_text(path, text))


def belongings(config: GPTConfig, tokenizer: Tokenizer) -> str:
    """A hash of the tokenizer and all of the shape that weights depend on: without these they are only numbers."""
    shape = asdict(config) | {"dropout": None, "block_size": None}
    return hashlib.sha256(json.dumps([shape, tokenizer.hash], sort_keys=True).encode()).hexdigest()


def save_weights(out_dir: Path, model: GPT, tokenizer: Tokenizer, step: int, turns: int = 0) -> None:
    """Replaces the folder's model.safetensors."""
    metadata = {"step": str(step), "turns": str(turns), "belongs": belongings(model.config, tokenizer)}
    need_room(out_dir, size_of(model.tensors().values()))
    write_whole(out_dir / "model.safetensors", lambda path: write_tensors(path, model.tensors(), metadata))


class Loaded(typing.NamedTuple):
    model: GPT
    tokenizer: Tokenizer
    step: int
    turns: int  # questions in a row that it learned to answer; 0: it continues text


def check_shapes(path: Path, config: GPTConfig) -> None:
    """ValueError if the weights in a file can't be those of a config, before memory is taken for either."""
    with safe_open(path, "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - it is no dict
    c = config
    layer = c.n_embd * (2 * c.n_head * c.head_dim + 2 * c.n_kv_head * c.head_dim + 3 * c.n_hidden + 2) + 2 * c.head_dim
    if c.n_layer * layer + c.n_embd + c.vocab_size * c.n_embd * (1 if c.tie_embeddings else 2) <= sum(map(math.prod, shapes.values())):
        return  # whatever else is wrong, the model is no larger than the file
    with torch.device("meta"):  # says which ones; torch takes a second to get ready for it
        GPT(config).load_tensors({name: torch.empty(shape) for name, shape in shapes.items()})


def load_model(folder: str | Path, device: torch.device | str = "cpu", **changes: object) -> Loaded:
    """The model in a folder; every way in which it can be wrong has its UserError."""
    folder = Path(folder)
    if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
        raise UserError(f"there is no trained model in {folder}: train one with\n  python train.py --out_dir={folder}")
    metadata = read_metadata(folder / "model.safetensors")
    tokenizer = Tokenizer.load(folder)
    try:
        config = GPTConfig.from_hf(read_json(folder / "config.json"))
        check_shapes(folder / "model.safetensors", config)
        model = GPT.from_pretrained(folder, **changes)
        if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
            raise ValueError("its weights are not finite")
    except (ValueError, TypeError, KeyError, AttributeError, OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"the model in {folder} can't be loaded: {reason_of(error)}") from None
    if metadata.get("belongs", belongings(config, tokenizer)) != belongings(config, tokenizer):
        raise UserError(f"{folder}: config.json or tokenizer.json is not the one that model.safetensors was saved with: copy the whole folder anew")
    if model.config.vocab_size < tokenizer.n_vocab:
        raise UserError(f"{folder}: the tokenizer has {tokenizer.n_vocab:,} entries, the model only {model.config.vocab_size:,}: they don't belong together")
    return Loaded(model.to(device).eval(), tokenizer, int(metadata.get("step", 0)), int(metadata.get("turns", 0)))


# ---------------------------------------------------------------- checkpoints


def save_checkpoint(out_dir: Path, step: int, model: GPT, optimizer: dict[str, Tensor], state: dict) -> Path:
    """checkpoints/step-…/, complete and read back before it gets its name; older ones go only after it stands."""
    home = out_dir / "checkpoints"
    home.mkdir(exist_ok=True)  # out_dir itself is not made anew: where it vanished, its disk may be gone
    weights = model.tensors()
    need_room(home, size_of([*weights.values(), *optimizer.values()]) + 100_000)
    folder = home / f"step-{step:06d}"
    aside = home / f".{folder.name}.{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        hashes = {
            "model.safetensors": write_tensors(aside / "model.safetensors", weights, {"step": str(step)}),
            "optimizer.safetensors": write_tensors(aside / "optimizer.safetensors", optimizer, {"step": str(step)}),
            "state.json": write_text(aside / "state.json", json.dumps({"format": FORMAT, "step": step, **state}, ensure_ascii=False, indent=1)),
        }
        for name, digest in hashes.items():
            verify(aside / name, digest)
        write_text(aside / "manifest.json", json.dumps({"format": FORMAT, "sha256": hashes}, indent=1))
        sync_folder(aside)
        _put_in_place(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    for old in [path for path in checkpoints(out_dir) if _rank(path) < _rank(folder)][: 1 - KEEP]:  # newer ones are damaged or not ours to judge
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _put_in_place(aside: Path, folder: Path) -> None:
    """Renames the new checkpoint; one of the same step, from before a resumption, counts until the new one stands."""
    before = folder.with_name(folder.name + BEFORE)
    if folder.exists():
        shutil.rmtree(before, ignore_errors=True)
        folder.rename(before)
    aside.rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(before, ignore_errors=True)


def checkpoints(out_dir: Path) -> list[Path]:
    """All that have their name, the oldest first."""
    named = (path for path in (out_dir / "checkpoints").glob("step-*") if re.fullmatch(f"step-[0-9]+({re.escape(BEFORE)})?", path.name))
    return sorted(named, key=_rank)


def _rank(folder: Path) -> tuple[int, bool]:
    """Its place in the order: by step; what a new one of the same step replaces comes before that."""
    return int(folder.name[5:].removesuffix(BEFORE)), not folder.name.endswith(BEFORE)


def sweep(out_dir: Path) -> None:
    """Removes what a killed run left half written."""
    ours = re.compile(
        r"\.(model\.safetensors|log\.jsonl|samples\.md|loss\.png|report\.html|eval_answers\.jsonl|(eval|config|generation_config|tokenizer|tokenizer_config|settings)\.json|step-\d+)\.\d+"
    )
    for path in [path for folder in (out_dir, out_dir / "checkpoints") for path in folder.glob(".*") if ours.fullmatch(path.name)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def newest_checkpoint(out_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest valid checkpoint, and what was wrong with those that are newer."""
    wrong = []
    for folder in reversed(checkpoints(out_dir)):
        problem = _problem_of(folder)
        if problem is None:
            return folder, wrong
        wrong.append(f"{folder}: {problem}")
    return None, wrong


def _problem_of(folder: Path) -> str | None:
    try:
        manifest = read_json(folder / "manifest.json")
        if manifest["format"] != FORMAT:
            return f"it has format {manifest['format']}, this version reads {FORMAT}"
        if set(manifest["sha256"]) != {"model.safetensors", "optimizer.safetensors", "state.json"}:
            return "its manifest names other files"
        for name, digest in manifest["sha256"].items():
            if sha256_of(folder / name) != digest:
                return f"{name} is damaged"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"it is incomplete ({type(error).__name__}: {error})"
    return None


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict]:
    """(weights, optimiser state, state) of a checkpoint that `newest_checkpoint` found valid."""
    try:
        state = read_json(folder / "state.json")
        if state["format"] != FORMAT:
            raise ValueError(f"its state has format {state['format']!r:.20}, this version reads {FORMAT}")
        return load_file(folder / "model.safetensors"), load_file(folder / "optimizer.safetensors"), state
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{folder} can't be resumed from: {reason_of(error)}; remove it, and --resume takes the one before") from None
