"""Checkpoints: written to a staging folder, synced, verified by sha256, then renamed.

out_dir holds the best model as a Hugging Face folder; out_dir/checkpoints/step-000500/ holds
everything needed to resume. All files are safetensors or JSON: nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import re
import shutil
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

FORMAT = 1
KEPT_CHECKPOINTS = 2  # per run
REPLACED_SUFFIX = ".before"  # of a checkpoint while it is being replaced


# ---------------------------------------------------------------- checkpoints


def save_checkpoint(
    out_dir: Path, step: int, model: GPT, optimizer: dict[str, Tensor], state: dict
) -> Path:
    """Writes checkpoints/step-…/ and returns it; older checkpoints are removed after the rename."""
    home = out_dir / "checkpoints"
    home.mkdir(exist_ok=True)  # without parents: a missing out_dir may be an unmounted disk
    weights = model.tensors()
    require_disk_space(home, tensor_bytes([*weights.values(), *optimizer.values()]) + 100_000)
    folder = home / f"step-{step:06d}"
    staging = home / f".{folder.name}.{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        hashes = {
            "model.safetensors": write_tensors(
                staging / "model.safetensors", weights, {"step": str(step)}
            ),
            "optimizer.safetensors": write_tensors(
                staging / "optimizer.safetensors", optimizer, {"step": str(step)}
            ),
            "state.json": write_synced_text(
                staging / "state.json",
                json.dumps({"format": FORMAT, "step": step, **state}, ensure_ascii=False, indent=1),
            ),
        }
        for name, digest in hashes.items():
            verify_sha256(staging / name, digest)
        write_synced_text(
            staging / "manifest.json", json.dumps({"format": FORMAT, "sha256": hashes}, indent=1)
        )
        sync_folder(staging)
        _put_in_place(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    for old in [path for path in list_checkpoints(out_dir) if _rank(path) < _rank(folder)][
        : 1 - KEPT_CHECKPOINTS
    ]:  # newer ones may be damaged: leave them
        shutil.rmtree(old, ignore_errors=True)
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


def list_checkpoints(out_dir: Path) -> list[Path]:
    """The checkpoint folders, oldest first, whether valid or not."""
    named = (
        path
        for path in (out_dir / "checkpoints").glob("step-*")
        if re.fullmatch(f"step-[0-9]+({re.escape(REPLACED_SUFFIX)})?", path.name)
    )
    return sorted(named, key=_rank)


def _rank(folder: Path) -> tuple[int, bool]:
    """Sort key: the step; a replaced checkpoint comes before its replacement."""
    return int(folder.name[5:].removesuffix(REPLACED_SUFFIX)), not folder.name.endswith(
        REPLACED_SUFFIX
    )


def remove_partial_files(out_dir: Path) -> None:
    """Removes partly written files of a killed run."""
    ours = re.compile(
        r"\.(model\.safetensors|log\.jsonl|samples\.md|loss\.png|report\.html|eval_answers\.jsonl|(eval|config|generation_config|tokenizer|tokenizer_config|settings)\.json|step-\d+)\.\d+"
    )
    for path in [
        path
        for folder in (out_dir, out_dir / "checkpoints")
        for path in folder.glob(".*")
        if ours.fullmatch(path.name)
    ]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


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
            raise ValueError(
                f"its state has format {state['format']!r:.20}, this version reads {FORMAT}"
            )
        return (
            load_file(folder / "model.safetensors"),
            load_file(folder / "optimizer.safetensors"),
            state,
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(
            f"{folder} can't be resumed from: {error_reason(error)}; "
            "remove it, and --resume takes the one before"
        ) from None
