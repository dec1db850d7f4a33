"""The output folder of a run: its lock, log, settings.json, checkpoints and model files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from shuoshu.answering.knowledge import ANSWERS, TAUGHT
from shuoshu.core.errors import UserError
from shuoshu.core.files import (
    Lock,
    error_reason,
    require_disk_space,
    write_atomically,
    write_synced_text,
)
from shuoshu.core.out_dirs import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    dataset_name,
    flag,
    holds_data,
    is_unused,
    weights_path,
)
from shuoshu.core.run_log import RunLog
from shuoshu.core.settings import TrainSettings
from shuoshu.core.terminal import print_line
from shuoshu.models.adapters import save_adapter, write_adapter_folder
from shuoshu.models.families import config_to_hf
from shuoshu.models.purpose import Purpose
from shuoshu.models.weights import (
    load_model,
    read_metadata,
    save_weights,
    tensor_bytes,
    weights_metadata,
    write_model_folder,
)
from shuoshu.training import checkpoints
from shuoshu.training.data import RunData
from shuoshu.training.optimizers import state_tensors
from shuoshu.training.plots import CurvePlotter, write_samples
from shuoshu.training.resume import settings_to_json
from shuoshu.training.state import RunState
from shuoshu.training.trainer import Trainer

# Everything that a run or eval_metrics.py writes; --overwrite deletes these and nothing else.
OWN_FILES = (
    "settings.json",
    "log.jsonl",
    "loss.png",
    "samples.md",
    "eval.json",
    "eval_answers.jsonl",
    "report.html",
    ANSWERS,
    TAUGHT,
    "model.safetensors",
    "config.json",
    "generation_config.json",
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "checkpoints",
)
# One of these shows that a run wrote the folder. Deleting ends with one of them, too.
RUN_MARKS = ("settings.json", "log.jsonl", "checkpoints")


class OutDir:
    """Writes the files of one run. `draws=False`: no loss.png."""

    def __init__(self, path: Path, lock: Lock, draws: bool = True) -> None:
        self.path = path
        self.lock = lock
        self.log = RunLog(path / "log.jsonl")
        self.saved_step: int | None = None  # the step of the newest checkpoint
        self._plotter = CurvePlotter(self.log, path / "loss.png") if draws else None
        self._failing: set[str] = set()  # files whose last write failed

    # ---------------------------------------------------------------- opening

    def find_checkpoint(self, settings: TrainSettings) -> Path | None:
        """The checkpoint to resume from, or None for a new run.

        UserError if the folder holds something that a new run would overwrite.
        """
        if settings.dry_run or not self.path.exists():
            return None
        if not self.path.is_dir():
            raise UserError(f"out_dir {self.path} is a file")
        if not settings.resume or not (self.path / "checkpoints").exists():
            self._check_holds_no_data()
        self._check_holds_no_other_model()
        if settings.resume:
            with self._fail_on_write_error():
                self.lock.take()
            return self._newest_checkpoint()
        if not settings.overwrite:
            self._check_empty()
        return None

    def _newest_checkpoint(self) -> Path | None:
        folder, problems = checkpoints.newest_checkpoint(self.path)
        for problem in problems:
            print(f"skipped {problem}")
        if folder is not None:
            return folder
        if not (self.path / "settings.json").exists():
            self._check_empty()
        if problems or weights_path(self.path):
            raise UserError(
                f"{self.path} holds no valid checkpoint to resume from;{self._use_of_model()}"
                " --overwrite deletes it and starts a new run"
            )
        print(f"nothing to resume in {self.path}: starting a new run")
        return None

    def _use_of_model(self) -> str:
        """What the folder's model is still good for; empty if it can't be loaded."""
        try:
            load_model(self.path)
        except UserError:
            return ""
        return (
            f" its model is intact: sample.py {flag('out_dir', self.path)} uses it,"
            f" train.py {flag('init_from', self.path)} --out_dir=NEW trains it further;"
        )

    def _check_holds_no_data(self) -> None:
        """UserError if a run would replace the tokenizer of prepared data."""
        if holds_data(self.path):
            raise UserError(
                f"{self.path} holds prepared data, not a run: choose another --out_dir;"
                f" {flag('dataset', dataset_name(self.path))} trains on that data"
            )

    def _check_holds_no_other_model(self) -> None:
        """UserError if a run would replace a model that was downloaded, merged or copied here."""
        if weights_path(self.path) and not any((self.path / name).exists() for name in RUN_MARKS):
            raise UserError(
                f"{self.path} is not empty: it holds a model, and no run of train.py wrote it;"
                " choose another --out_dir"
            )

    def _check_empty(self) -> None:
        """UserError if the folder holds anything but hidden files."""
        if not is_unused(self.path):
            raise UserError(
                f"{self.path} is not empty: --resume continues its run,"
                " --overwrite replaces it, --out_dir=NEW leaves it alone"
            )

    def open(self, trainer: Trainer, data: RunData, state: RunState) -> None:
        """Creates the folder with settings.json, the log, the model's config and the tokenizer.

        Deletes an overwritten run first. UserError if the folder can't be written.
        """
        settings = trainer.settings
        with self._fail_on_write_error():
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock.take()
            if not settings.resume and not settings.overwrite:
                self._check_empty()  # another run may have used the folder since the first check
            old = [self.path / name for name in OWN_FILES] if settings.overwrite else []
            if not state.step:
                self._require_space(trainer, old)
            for path in old:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            checkpoints.remove_partial_files(self.path, OWN_FILES)
            if state.has_best():
                self._check_kept_model(state)
            # settings.json comes first: it marks the folder as that of a run.
            self._write_settings(trainer, data, state)
            config = trainer.raw.config
            if trainer.adapter:
                # With those of a data folder, the folder alone gives the same tokenizer.
                files = data.tokenizer.files(config.block_size, data.system)
                files |= data.tokenizer.data_files()
                write_adapter_folder(self.path, trainer.adapter, files)
            else:
                write_model_folder(self.path, config, data.tokenizer, data.system)

    def _check_kept_model(self, state: RunState) -> None:
        """Sets `kept_step` to the step of the folder's model.

        The part of the run after the checkpoint, which is lost, may have kept a better model.
        """
        with suppress(UserError):  # a damaged model is replaced by the next better one
            path = weights_path(self.path) or self.path / "model.safetensors"
            step = int(read_metadata(path).get("step", 0))
            if step != state.kept_step:
                print(
                    f"the model in {self.path} is of step {step:,}, from the lost part of the run;"
                    f" it stays until a better one than that of step {state.best_step:,} is found"
                )
                state.kept_step = step

    def _require_space(self, trainer: Trainer, old: list[Path]) -> None:
        """UserError if the disk is too small for the run; the `old` files will be deleted.

        While a file is replaced, the old and the new one exist.
        """
        model_bytes = tensor_bytes(trainer.raw.tensors().values())
        checkpoint_bytes = trainer.bytes_per_checkpoint()
        needed = (checkpoints.KEPT_CHECKPOINTS + 1) * checkpoint_bytes + 2 * model_bytes
        freed = sum(
            path.stat().st_size for top in old for path in (top, *top.rglob("*")) if path.is_file()
        )
        require_disk_space(self.path, needed - freed)

    def _write_settings(self, trainer: Trainer, data: RunData, state: RunState) -> None:
        """Writes what is needed to repeat the run to settings.json and the log."""
        head = {
            "settings": settings_to_json(trainer.settings),
            "machine": {**trainer.machine(), "processes": trainer.processes.world_size},
            "data": {
                "folder": str(data.folder),
                "train": data.train.sha256,
                "val": data.val.sha256,
                "tokenizer": data.tokenizer.hash,
            },
        }
        text = json.dumps(head, ensure_ascii=False, indent=1)
        write_atomically(self.path / "settings.json", lambda path: write_synced_text(path, text))
        self.log.rewind(state.step, -1 if state.evaluated is None else state.evaluated)
        self.log.write("start", step=state.step, **head)

    # ---------------------------------------------------------------- write errors

    @contextmanager
    def _fail_on_write_error(self) -> Iterator[None]:
        """Turns an OSError into a UserError: used before the first step."""
        try:
            yield
        except OSError as error:
            raise UserError(f"can't write to {self.path}: {error_reason(error)}") from None

    @contextmanager
    def warn_on_write_error(
        self, what: str, say: Callable[[str], None] = print_line
    ) -> Iterator[None]:
        """Turns an OSError into one warning per outage; training continues."""
        try:
            yield
            self._failing.discard(what)
        except OSError as error:
            if what not in self._failing:
                say(
                    f"can't write {what} to {self.path}: {error_reason(error)};"
                    " the files already written are intact, training continues"
                )
            self._failing.add(what)

    # ---------------------------------------------------------------- during training

    def record(self, kind: str, **values: object) -> None:
        """Appends a line to log.jsonl."""
        with self.warn_on_write_error("log.jsonl"):
            self.log.write(kind, **values)

    def save(self, trainer: Trainer, data: RunData, state: RunState) -> None:
        """Saves a checkpoint. Without validation data it also saves the model, because no
        evaluation selects one. OSError if the disk can't be written."""
        trainer.check_weights(state.step)
        if trainer.scaler.is_enabled():
            scaler = trainer.scaler.state_dict()
            state.scale, state.scale_steps = scaler["scale"], scaler["_growth_tracker"]
        if trainer.processes.is_rank_zero:
            saved = {
                "run": asdict(state),
                "config": config_to_hf(trainer.raw.config),
                "adapter": asdict(trainer.adapter) if trainer.adapter else None,
                "settings": settings_to_json(trainer.settings),
                "tokenizer": data.tokenizer.hash,
                "data": data.hashes(),
            }
            optimizer_tensors = state_tensors(trainer.raw, trainer.optimizers)
            checkpoints.save_checkpoint(
                self.path, state.step, trainer.raw, optimizer_tensors, saved
            )
            if not len(data.val):
                self.write_model(trainer, data, state.step, data.purpose)
        self.saved_step = state.step

    def keep_model(
        self,
        trainer: Trainer,
        data: RunData,
        step: int,
        purpose: Purpose,
        say: Callable[[str], None],
    ) -> bool:
        """Makes the current model that of out_dir. False, on all ranks, if it can't be written."""
        trainer.check_weights(step)
        is_written = False
        if trainer.processes.is_rank_zero:
            name = ADAPTER_WEIGHTS if trainer.adapter else "model.safetensors"
            with self.warn_on_write_error(name, say):
                self.write_model(trainer, data, step, purpose)
                is_written = True
        return trainer.processes.broadcast(is_written)

    def write_model(self, trainer: Trainer, data: RunData, step: int, purpose: Purpose) -> None:
        """Writes the weights, or those of the adapter; OSError if the disk can't be written."""
        if trainer.adapter:
            metadata = weights_metadata(trainer.raw.config, data.tokenizer, step, purpose)
            save_adapter(self.path, trainer.raw, trainer.adapter, metadata)
        else:
            save_weights(self.path, trainer.raw, data.tokenizer, step, purpose)

    def update_pictures(self, samples: bool, say: Callable[[str], None]) -> None:
        """Rewrites samples.md, if the run has samples, and loss.png, if it is due."""
        with self.warn_on_write_error("curves and samples", say):
            if samples:
                write_samples(self.log, self.path / "samples.md")
            if self._plotter:
                self._plotter.update()

    def finish_pictures(self) -> None:
        """Draws evaluations that loss.png lacks."""
        with self.warn_on_write_error("curves and samples"):
            if self._plotter:
                self._plotter.finish()
