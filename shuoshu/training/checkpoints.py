"""Checkpoints: written to a staging folder, synced, verified by sha256, then renamed.

out_dir/checkpoints/step-000500/ holds everything that a run needs to continue after 500 steps:

    model.safetensors      the trained weights: all of the model, or an adapter
    optimizer.safetensors  the optimizers' tensors, as <parameter>/<name>: model.norm.weight/exp_avg
    state.json             format, step, run (RunState and its Plan), settings, the model's config,
                           the adapter and its base if there is one, the sha256 of the tokenizer
                           and of both splits of the data
    manifest.json          the sha256 of the three files above; written last

OutDir.save in out_dir.py puts them together. There is no random state: dropout and the order of
the rows follow from the seed and the step.
The best model is not in here: it is out_dir itself, a Hugging Face folder. All files are
safetensors or JSON, so nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model import GPT
from shuoshu.core.errors import UserError
from shuoshu.core.files import (
    error_reason,
    read_json,
    require_disk_space,
    sha256_of,
    sync_folder,
    verify_sha256,
    write_synced_text,
)
from shuoshu.models.weights import tensor_bytes, write_tensors

CHECKPOINT_FORMAT = 1
MODEL_FILE, OPTIMIZER_FILE, STATE_FILE = "model.safetensors", "optimizer.safetensors", "state.json"
MANIFEST = "manifest.json"
KEPT_CHECKPOINTS = 2  # per run
JSON_BYTES = 100_000  # room that state.json and manifest.json need at most
REPLACED_SUFFIX = ".before"  # of a checkpoint while it is being replaced


# ---------------------------------------------------------------- saving


def save_checkpoint(
    out_dir: Path, step: int, model: GPT, optimizer: dict[str, Tensor], state: dict
) -> Path:
    """Writes checkpoints/step-…/ and returns it, then removes all but the newest older one."""
    home = out_dir / "checkpoints"
    home.mkdir(exist_ok=True)  # without parents: a missing out_dir may be an unmounted disk
    weights = model.tensors()
    require_disk_space(home, tensor_bytes([*weights.values(), *optimizer.values()]) + JSON_BYTES)
    folder = home / f"step-{step:06d}"
    staging = home / f".{folder.name}.{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        metadata = {"step": str(step)}
        state = {"format": CHECKPOINT_FORMAT, "step": step, **state}
        hashes = {
            MODEL_FILE: write_tensors(staging / MODEL_FILE, weights, metadata),
            OPTIMIZER_FILE: write_tensors(staging / OPTIMIZER_FILE, optimizer, metadata),
            STATE_FILE: write_synced_text(
                staging / STATE_FILE, json.dumps(state, ensure_ascii=False, indent=1)
            ),
        }
        for name, digest in hashes.items():
            verify_sha256(staging / name, digest)
        manifest = {"format": CHECKPOINT_FORMAT, "sha256": hashes}
        write_synced_text(staging / MANIFEST, json.dumps(manifest, indent=1))
        sync_folder(staging)
        _put_in_place(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    # Newer checkpoints stay: --resume skipped them because they are damaged.
    older = [path for path in list_checkpoints(out_dir) if _age(path) < _age(folder)]
    for path in older[: 1 - KEPT_CHECKPOINTS]:
        shutil.rmtree(path, ignore_errors=True)
    return folder


def _put_in_place(staging: Path, folder: Path) -> None:
    """Renames the new checkpoint; one of the same step remains valid until then."""
    before = folder.with_name(folder.name + REPLACED_SUFFIX)
    if folder.exists():
        shutil.rmtree(before, ignore_errors=True)
        folder.rename(before)
    staging.rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(before, ignore_errors=True)


def remove_partial_files(out_dir: Path, names: Sequence[str]) -> None:
    """Removes what a killed run left of these files and of its checkpoints: .NAME.<pid>."""
    name = "|".join(map(re.escape, names))
    partial = re.compile(rf"\.({name}|step-\d+)\.\d+")
    for folder in (out_dir, out_dir / "checkpoints"):
        for path in [path for path in folder.glob(".*") if partial.fullmatch(path.name)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


# ---------------------------------------------------------------- finding and loading


def list_checkpoints(out_dir: Path) -> list[Path]:
    """The checkpoint folders, oldest first, valid or not."""
    name = re.compile(f"step-[0-9]+({re.escape(REPLACED_SUFFIX)})?")
    folders = (out_dir / "checkpoints").glob("step-*")
    return sorted((path for path in folders if name.fullmatch(path.name)), key=_age)


def _age(folder: Path) -> tuple[int, bool]:
    """Sort key: the step; a replaced checkpoint comes before its replacement."""
    step = folder.name.removeprefix("step-").removesuffix(REPLACED_SUFFIX)
    return int(step), not folder.name.endswith(REPLACED_SUFFIX)


def newest_checkpoint(out_dir: Path) -> tuple[Path | None, list[str]]:
    """(newest valid checkpoint or None, problems of the newer ones)."""
    problems = []
    for folder in reversed(list_checkpoints(out_dir)):
        problem = _problem_of(folder)
        if problem is None:
            return folder, problems
        problems.append(f"{folder}: {problem}")
    return None, problems


def _problem_of(folder: Path) -> str | None:
    """Why the checkpoint can't be used; None if it is valid."""
    try:
        manifest = read_json(folder / MANIFEST)
        if manifest["format"] != CHECKPOINT_FORMAT:
            return f"it has format {manifest['format']}, this version reads {CHECKPOINT_FORMAT}"
        if set(manifest["sha256"]) != {MODEL_FILE, OPTIMIZER_FILE, STATE_FILE}:
            return "its manifest names other files"
        for name, digest in manifest["sha256"].items():
            if sha256_of(folder / name) != digest:
                return f"{name} is damaged"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"it is incomplete ({type(error).__name__}: {error})"
    return None


def read_state(folder: Path) -> dict:
    """state.json of a checkpoint; OSError, ValueError or TypeError if it can't be used."""
    state = read_json(folder / STATE_FILE)
    if state["format"] != CHECKPOINT_FORMAT:
        raise ValueError(
            f"its state has format {state['format']!r:.20}, this version reads {CHECKPOINT_FORMAT}"
        )
    return state


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict]:
    """(weights, optimizer tensors, state.json) of a valid checkpoint; UserError if they can't be
    read."""
    try:
        state = read_state(folder)
        return load_file(folder / MODEL_FILE), load_file(folder / OPTIMIZER_FILE), state
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(
            f"{folder} can't be resumed from: {error_reason(error)};"
            " remove it, and --resume uses the checkpoint before it"
        ) from None
