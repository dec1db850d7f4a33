"""Resuming a run: which settings may change, and loading a checkpoint into the model."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import torch

from model import GPT
from shuoshu.core.errors import UserError
from shuoshu.core.files import error_reason
from shuoshu.core.settings import LENGTHS, ModelSettings, TrainSettings
from shuoshu.training import checkpoints
from shuoshu.training.data import RunData
from shuoshu.training.optimizers import load_state_tensors
from shuoshu.training.state import RunState, state_from_json

# A resumed run can't change these.
LOCKED = {field.name for field in fields(ModelSettings)} - {"dropout"}
LOCKED |= {
    "seed",
    "paraphrases",
    "judge_by",
    "read_fraction",
    "label_weights",
    "batch_size",
    "gradient_accumulation_steps",
    "optimizer",
    "init_from",
    "lora_rank",
    "lora_alpha",
    "lora_targets",
    "lora_rslora",
}
# If one of these changes, the rest of the run gets a new Plan.
PLAN_SETTINGS = {*LENGTHS, "min_iters", "decay_fraction"}
# If one of these changes, earlier evaluations are not comparable.
MEASURE_SETTINGS = {"eval_tokens", "eval_questions", "select_by"}
# Settings of a single command, not of the run: they are not reported as changed.
COMMAND_SETTINGS = {"resume", "overwrite", "configs", "base"}


def settings_to_json(settings: TrainSettings) -> dict[str, object]:
    """The settings for settings.json and state.json, without the names of the given ones."""
    names = (field.name for field in fields(settings))
    return {name: getattr(settings, name) for name in names if name != "given"}


def restore(
    folder: Path,
    settings: TrainSettings,
    data: RunData,
    model: GPT,
    optimizers: list[torch.optim.Optimizer],
) -> tuple[RunState, list[str]]:
    """Loads a checkpoint into the model and the optimizers.

    Returns its state and the names of the settings that changed. UserError if it doesn't fit.
    """
    weights, optimizer_tensors, saved = checkpoints.load_checkpoint(folder)
    changed = _check_settings(folder, saved, settings, data)
    try:
        model.load_tensors(weights)
        load_state_tensors(model, optimizers, optimizer_tensors)
        state = state_from_json(saved["run"], saved["step"])
        if not all(torch.isfinite(tensor).all() for tensor in weights.values()):
            raise ValueError("its weights are not finite")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} doesn't fit this run: {error_reason(error)}") from None
    if changed & PLAN_SETTINGS:
        state.plan = None
    # Older checkpoints chose another part of the validation data, if they measured a part.
    is_other_part = "best_measure" not in saved["run"] and not data.val_is_complete
    if changed & MEASURE_SETTINGS or state.best_measure != data.measure or is_other_part:
        state.forget_best()
    return state, sorted(changed)


def _check_settings(folder: Path, saved: dict, settings: TrainSettings, data: RunData) -> set[str]:
    """The names of changed settings; UserError if the data or a locked setting changed."""
    if (
        not isinstance(saved.get("settings"), dict)
        or not {"run", "data", "tokenizer"} <= saved.keys()
    ):
        raise UserError(
            f"{folder}/state.json is incomplete:"
            " remove that folder, and --resume uses the checkpoint before it"
        )
    if saved["data"] != data.hashes() or saved["tokenizer"] != data.tokenizer.hash:
        raise UserError(
            f"{folder} was trained on other data than {settings.dataset}:"
            " restore that data, or start again with --overwrite"
        )
    # A checkpoint may lack settings that were added after it: they had their defaults.
    before = settings_to_json(TrainSettings()) | saved["settings"]
    now = settings_to_json(settings)
    changed = {name for name in now if before[name] != now[name]} - COMMAND_SETTINGS
    if locked := sorted(changed & LOCKED):
        changes = ", ".join(f"{name}={now[name]} (was {before[name]})" for name in locked)
        raise UserError(
            f"a resumed run keeps its model shape and its data: {changes};"
            " leave these out, or start again with --overwrite or another --out_dir"
        )
    return changed
