"""Faults for trainings that fork_server.py forks.

Each function takes one JSON value and patches the forked process, which exits after the training.
"""

import dataclasses
import json
import os
import resource
import signal
import time
from collections import Counter
from pathlib import Path

import torch

from shuoshu.core import files
from shuoshu.core.errors import UserError
from shuoshu.models import weights
from shuoshu.training import checkpoints, data, loop, out_dir
from shuoshu.training import step as training_step
from shuoshu.training.state import RunState
from tests.faults.shared_state import BEGUN, CHECKPOINT, EVALUATION, MODEL, STEP, SharedState


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# ---------------------------------------------------------------- kills


def shared_state(path: str) -> None:
    """Writes to the shared memory what the training does."""
    shown = SharedState(Path(path))

    def during(phase, function):
        def inner(*args):
            before, shown["phase"] = shown["phase"], phase
            shown[BEGUN[phase]] += 1
            state = next((arg for arg in args if isinstance(arg, RunState)), None)
            if phase == STEP:
                shown["step"] = state.step
            result = function(*args)
            if phase == CHECKPOINT:
                shown["saved"] = state.step
            shown["phase"] = before
            return result

        return inner

    real_print_result = loop.print_result

    def print_result(*args):
        real_print_result(*args)
        shown["ended"] = 1

    loop.print_result = print_result
    loop.train_step = during(STEP, loop.train_step)
    loop.evaluate_run = during(EVALUATION, loop.evaluate_run)
    out_dir.OutDir.save = during(CHECKPOINT, out_dir.OutDir.save)
    out_dir.OutDir.write_model = during(MODEL, out_dir.OutDir.write_model)


def dies_at_point(where: list) -> None:
    """[path of the shared memory, n]: a kill before or after the n-th file operation within saves."""
    shown = SharedState(Path(where[0]))

    def watch(owner, name):
        real = getattr(owner, name)

        def inner(*args, **kwargs):
            for call in (None, real):
                if shown["phase"] in (CHECKPOINT, MODEL):
                    shown["point"] += 1
                    if shown["point"] == where[1]:
                        die()
                if call:
                    result = call(*args, **kwargs)
            return result

        setattr(owner, name, inner)

    for owner, name in (
        (os, "fsync"),
        (os, "unlink"),
        (os, "rmdir"),
        (os, "rename"),
        (os, "replace"),
        (Path, "rename"),
        (Path, "replace"),
    ):
        watch(owner, name)


def saves_in_place(_: bool) -> None:
    """Overwrites files in place, without staging folder and rename."""

    def write_whole(path, write):
        write(path)

    def save_checkpoint(out_dir, step, model, optimizer, state):
        folder = out_dir / "checkpoints" / "step-000000"
        folder.mkdir(parents=True, exist_ok=True)
        hashes = {
            "model.safetensors": weights.write_tensors(
                folder / "model.safetensors", model.tensors(), {"step": str(step)}
            ),
            "optimizer.safetensors": weights.write_tensors(
                folder / "optimizer.safetensors", optimizer, {"step": str(step)}
            ),
            "state.json": files.write_synced_text(
                folder / "state.json",
                json.dumps({"format": checkpoints.CHECKPOINT_FORMAT, "step": step, **state}),
            ),
        }
        files.write_synced_text(
            folder / "manifest.json",
            json.dumps({"format": checkpoints.CHECKPOINT_FORMAT, "sha256": hashes}),
        )

    weights.write_atomically = write_whole
    checkpoints.save_checkpoint = save_checkpoint


# ---------------------------------------------------------------- slowness, failures, counts


def slow(seconds: dict[str, float]) -> None:
    """Makes each step, or each batch of an evaluation, take longer."""
    real_step, real_batches = loop.train_step, data.RunData.val_batches

    def slow_step(*args):
        time.sleep(seconds.get("step", 0))
        return real_step(*args)

    def slow_batches(*args):
        for batch in real_batches(*args):
            time.sleep(seconds.get("batch", 0))
            yield batch

    loop.train_step, data.RunData.val_batches = slow_step, slow_batches


def fails_at(what: list) -> None:
    """[step, how]: this process is killed, raises a ValueError or a UserError."""
    real = loop.train_step

    def failing(trainer, rows, state, skips):
        if state.step == what[0]:
            if what[1] == "killed":
                die()
            raise UserError("only here") if what[1] == "mistake" else ValueError("only here")
        return real(trainer, rows, state, skips)

    loop.train_step = failing


def largest_file(size: int) -> None:
    """From the first evaluation on no file may grow beyond this many bytes."""
    real = loop.evaluate_run

    def then(*args):
        result = real(*args)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        return result

    loop.evaluate_run = then


def counts_messages(path: str) -> None:
    """Counts gloo's operations in the third step; in the second, DDP rebuilds its buckets."""
    real = loop.train_step

    def counted(trainer, rows, state, skips):
        if state.step != 2:
            return real(trainer, rows, state, skips)
        with torch.autograd.profiler.profile() as profile:
            result = real(trainer, rows, state, skips)
        names = Counter(
            event.name for event in profile.function_events if event.name.startswith("gloo:")
        )
        Path(path).write_text(json.dumps(names), encoding="utf-8")
        return result

    loop.train_step = counted


def without(names: list[str]) -> None:
    """Removes parts that a claim depends on."""
    if "no_sync" in names:
        torch.nn.parallel.DistributedDataParallel.no_sync = lambda self: training_step.nullcontext()
    if "global count" in names:
        real = training_step.micro_batches

        def counted_here(trainer, rows, step, reads):
            for batch in real(trainer, rows, step, reads):
                count = int((batch.inputs[1] >= 0).sum()) * trainer.processes.world_size
                yield dataclasses.replace(batch, count=count)

        training_step.micro_batches = counted_here
