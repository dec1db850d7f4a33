"""What a training run consists of: data, tokenizer, model, optimisers, its folder; begun, restored, saved."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from inspect import signature
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from model import GPT, GPTConfig
from shuoshu.core.device import can_compile, describe_machine, pick_dtype
from shuoshu.core.distributed import Processes
from shuoshu.core.errors import UserError
from shuoshu.core.files import (
    Lock,
    dataclass_from_json,
    error_reason,
    require_disk_space,
    same_path,
    write_atomically,
    write_synced_text,
)
from shuoshu.core.run_log import RunLog
from shuoshu.core.settings import LENGTHS, ModelSettings, TrainSettings
from shuoshu.core.terminal import print_line
from shuoshu.generation.answers import read_questions
from shuoshu.models.weights import load_model, save_weights, tensor_bytes, write_model_folder
from shuoshu.sft.augment import QuestionNoise
from shuoshu.sft.dataset import QuestionDataset, answer_batches
from shuoshu.text import dataset
from shuoshu.text.dataset import Batch, text_windows
from shuoshu.text.tokenizer import Tokenizer
from shuoshu.training import checkpoints
from shuoshu.training.optimizers import Muon, build_optimizers, load_state_tensors, state_tensors
from shuoshu.training.state import Plan, RunState
from shuoshu.training.step import SkippedSteps

OWN_FILES = (
    "settings.json",
    "log.jsonl",
    "loss.png",
    "samples.md",
    "eval.json",
    "eval_answers.jsonl",
    "report.html",
    "model.safetensors",
    "config.json",
)
OWN_FILES += ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "checkpoints")
LOCKED = {field.name for field in fields(ModelSettings)} - {"dropout"}  # a resumed run keeps these
LOCKED |= {
    "seed",
    "paraphrases",
    "batch_size",
    "gradient_accumulation_steps",
    "optimizer",
    "init_from",
}
REPLANS = {
    *LENGTHS,
    "min_iters",
    "decay_fraction",
    "eval_interval",
    "save_interval",
}  # change one on resuming, and the rest of the run is planned anew


def wrap_in_ddp(model: nn.Module) -> DistributedDataParallel:
    """The model with its gradients summed over the processes. Its buffers, tables of positions, are the same everywhere and not sent about."""
    names = signature(DistributedDataParallel).parameters
    return DistributedDataParallel(
        model,
        **{
            next(
                name for name in ("forward_sync_buffers", "broadcast_buffers") if name in names
            ): False
        },
    )


class Run:
    """One run in one out_dir, ready to go on from `state.step`."""

    def __init__(
        self, settings: TrainSettings, processes: Processes, device: torch.device, lock: Lock
    ) -> None:
        self.settings, self.processes, self.device, self.lock = settings, processes, device, lock
        self.out_dir = Path(settings.out_dir)
        self._open_data(dataset.find_dataset(settings.dataset))

        earlier = processes.on_rank_zero(self._earlier_checkpoint)
        settings.dtype = processes.broadcast(
            str(pick_dtype(settings.dtype, device)).removeprefix("torch.")
        )
        self.dtype = getattr(torch, settings.dtype)
        self.raw = self._build_model(is_resumed=earlier is not None).to(device)
        self._check_sizes()
        muon_dtype = torch.float32 if self.dtype == torch.float32 else torch.bfloat16
        self.optimizers = build_optimizers(self.raw, settings, device, muon_dtype)
        self.rate = self.optimizers[0].param_groups[0]["full_lr"]
        self.state = RunState()
        if earlier:
            self._restore(earlier)
        self.scaler = torch.amp.GradScaler(
            device.type, init_scale=self.state.scale, enabled=self.dtype == torch.float16
        )
        wants_compile = settings.compile == "true" or (
            settings.compile == "auto" and self.task == "text" and can_compile(device)
        )
        self.model = torch.compile(self.raw) if wants_compile else self.raw
        self.forward = wrap_in_ddp(self.model) if processes.world > 1 else self.model
        self.micro_rows = min(settings.batch_size, self.rows_per_step // processes.world)
        self.skips = SkippedSteps(self)
        self.saved = self.state.step if earlier else None  # the step of the newest checkpoint
        self.log = RunLog(self.out_dir / "log.jsonl")
        self._unwritten: set[str] = set()

    def _open_data(self, folder: Path) -> None:
        """Token files of text, or rows of questions and answers; their tokenizer."""
        settings = self.settings
        meta = dataset.read_meta(folder)
        self.tokenizer = Tokenizer.load(folder)
        dataset.check_tokenizer(
            self.tokenizer,
            meta,
            f"{folder}/tokenizer.json is not the tokenizer that made the data: {dataset.PREPARE_AGAIN}",
        )
        self.rows_per_step = settings.batch_size * settings.gradient_accumulation_steps
        self.task, self.turns = meta["task"], meta.get("turns", 0)
        is_noisy = settings.question_drop or settings.question_replace
        noise = (
            QuestionNoise(self.tokenizer, settings.question_drop, settings.question_replace)
            if is_noisy
            else None
        )
        if self.task == "questions":
            self.data, self.val = (
                QuestionDataset(folder, "train", self.rows_per_step, noise),
                QuestionDataset(folder, "val"),
            )
            if settings.paraphrases and len(self.data):
                self.data.add_paraphrases(self.tokenizer, settings.paraphrases)
            self.questions = read_questions(folder, "val", self.tokenizer)[
                : settings.eval_questions
            ]
        else:
            self.data, self.val, self.questions = (
                dataset.TextDataset(folder, "train"),
                dataset.TextDataset(folder, "val"),
                [],
            )
        if self.task == "text" and (noise or settings.paraphrases or settings.select_by == "rouge"):
            raise UserError(
                f"{folder} holds text: question_drop, question_replace, reworded and select_by=rouge go with questions and answers (prepare_sft.py)"
            )
        self.selects_by_answers = bool(self.questions) and settings.select_by != "loss"

    def val_batches(self) -> Iterator[Batch]:
        """What an evaluation scores."""
        if self.task == "questions":
            return answer_batches(self.val, self.micro_rows)
        return text_windows(
            self.val.tokens[: self.settings.eval_tokens],
            self.tokenizer.end,
            self.block,
            self.micro_rows,
        )

    def _earlier_checkpoint(self) -> Path | None:
        """The checkpoint to go on from, if any; refuses to write over an earlier run unasked."""
        settings = self.settings
        if settings.dry_run or not self.out_dir.exists():
            return None
        if not self.out_dir.is_dir():
            raise UserError(f"out_dir {self.out_dir} is a file")
        if settings.resume:
            with self._fail_on_write_error():
                self.lock.take()
            folder, wrong = checkpoints.newest_checkpoint(self.out_dir)
            for problem in wrong:
                print(f"skipped {problem}")
            if folder is None and not (self.out_dir / "settings.json").exists():
                self._check_empty()
            if folder is None and (wrong or (self.out_dir / "model.safetensors").exists()):
                raise UserError(
                    f"{self.out_dir} holds no valid checkpoint to resume from; --overwrite starts anew"
                )
            if folder is None:
                print(f"nothing to resume in {self.out_dir}: starting anew")
            return folder
        if not settings.overwrite:
            self._check_empty()
        return None

    def _check_empty(self) -> None:
        """UserError if something is there that a new run would be mixed with."""
        if any(not path.name.startswith(".") for path in self.out_dir.iterdir()):
            raise UserError(
                f"{self.out_dir} is not empty: --resume goes on with its run, --overwrite replaces it, --out_dir=NEW leaves it alone"
            )

    def _build_model(self, is_resumed: bool) -> GPT:
        settings = self.settings
        if (
            settings.overwrite
            and settings.init_from != "scratch"
            and same_path(settings.init_from, self.out_dir)
        ):
            raise UserError(
                f"init_from={settings.init_from} would be overwritten: choose another --out_dir"
            )
        torch.manual_seed(settings.seed)
        shape = {field.name: getattr(settings, field.name) for field in fields(ModelSettings)}
        if settings.init_from == "scratch" or is_resumed:
            vocab_size = (
                math.ceil(self.tokenizer.n_vocab / 64) * 64
            )  # matrix units like round numbers; sampling masks the padding
            return GPT(GPTConfig(vocab_size=vocab_size, **shape))
        may_change = {
            name: shape[name] for name in ("dropout", "block_size") if name in settings.given
        }
        model, tokenizer, *_ = load_model(settings.init_from, **may_change)
        if tokenizer.hash != self.tokenizer.hash:
            raise UserError(
                f"{settings.init_from} has another tokenizer than {settings.dataset}: prepare the data with --tokenizer={settings.init_from}"
            )
        for name in shape:  # the weights say how large the model is
            its = getattr(model.config, name)
            if name in settings.given and shape[name] not in (None, its):
                raise UserError(
                    f"{name}={shape[name]}: the model in {settings.init_from} has {its}; leave it out, or choose another --init_from"
                )
            setattr(settings, name, its)
        return model.train()

    def _check_sizes(self) -> None:
        """Whether data, block and processes fit together."""
        self.block = self.raw.config.block_size
        if self.rows_per_step % self.processes.world:
            raise UserError(
                f"batch_size x gradient_accumulation_steps = {self.rows_per_step} rows a step can't be shared evenly by {self.processes.world} processes"
            )
        if self.task == "questions" and not len(self.data):
            raise UserError(
                f"{self.data.folder} has no training rows: prepare it with smaller --val_fraction and --test_fraction"
            )
        if self.task == "questions" and self.data.width - 1 > self.block:
            raise UserError(
                f"the longest row has {self.data.width} tokens, the model reads {self.block}: let it grow with --block_size={self.data.width - 1}"
            )
        if self.task == "text" and len(self.data) <= self.block:
            shorter = f", or set --block_size={len(self.data) // 2}" if len(self.data) >= 16 else ""
            raise UserError(
                f"the training text has {len(self.data):,} tokens, no more than one block of {self.block:,}: add text{shorter}"
            )
        windows = self.data.rows_per_epoch(self.block)
        self.tokens_per_step = (
            self.data.count_targets(0, windows, self.block, 0) / windows * self.rows_per_step
        )  # trained ones, on average
        self.steps_per_epoch = windows / self.rows_per_step

    def _restore(self, folder: Path) -> None:
        weights, optimizer, saved = checkpoints.load_checkpoint(folder)
        if (
            not isinstance(saved.get("settings"), dict)
            or not {"run", "data", "tokenizer"} <= saved.keys()
        ):
            raise UserError(
                f"{folder}/state.json lacks something: remove that folder, and --resume takes the one before"
            )
        if (
            saved["data"] != [self.data.sha256, self.val.sha256]
            or saved["tokenizer"] != self.tokenizer.hash
        ):
            raise UserError(
                f"{folder} was trained on other data than {self.settings.dataset}: restore that data, or start anew with --overwrite"
            )
        before, now = (
            asdict(TrainSettings()) | saved["settings"],
            asdict(self.settings),
        )  # an older run's may lack some
        changed = {name for name in now if before[name] != now[name]} - {
            "resume",
            "overwrite",
            "configs",
        }
        if locked := sorted(changed & LOCKED):
            told = ", ".join(f"{name}={now[name]} (was {before[name]})" for name in locked)
            raise UserError(
                f"a resumed run keeps its shape and its data: {told}; drop these, or start anew with --overwrite or another --out_dir"
            )
        try:
            self.raw.load_tensors(weights)
            load_state_tensors(self.raw, self.optimizers, optimizer)
            plan = saved["run"].pop("plan")
            scores = [float(score) for score in saved["run"].pop("best_scores", [])]
            older = {
                "evaluated": saved["step"],
                "kept_step": saved["run"]["best_step"],
            }  # their checkpoints don't say these
            self.state = dataclass_from_json(RunState, older | saved["run"])
            self.state.plan = (
                dataclass_from_json(Plan, plan) if plan and not changed & REPLANS else None
            )
            self.state.best_scores = scores
            planned = (
                [
                    self.state.plan.max_iters,
                    self.state.plan.eval_interval,
                    self.state.plan.save_interval,
                ]
                if self.state.plan
                else []
            )
            if (
                self.state.step != saved["step"]
                or min(planned, default=1) < 1
                or not 0 < self.state.scale < math.inf
            ):
                raise ValueError("its numbers make no run")
            if not all(torch.isfinite(parameter).all() for parameter in self.raw.parameters()):
                raise ValueError("its weights are not finite")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{folder} doesn't fit: {error_reason(error)}") from None
        if changed & {"eval_tokens", "eval_questions", "select_by"}:
            self.state.best = None  # it was another measure
        if self.processes.is_rank_zero:
            print(
                f"resuming from {folder}"
                + (f"; changed: {', '.join(sorted(changed))}" if changed else "")
            )

    def open_out_dir(self) -> None:
        """The folder, its model files and the head of its log: enough to repeat the run. What an overwritten run left goes now."""
        with self._fail_on_write_error():
            self.out_dir.mkdir(parents=True, exist_ok=True)
            self.lock.take()
            if not self.settings.resume and not self.settings.overwrite:
                self._check_empty()  # again: another run may have come and gone since
            old = [self.out_dir / name for name in OWN_FILES] if self.settings.overwrite else []
            if not self.state.step:  # a checkpoint more than are kept, and a model more than there is, for as long as it is written
                needed = (
                    checkpoints.KEPT_CHECKPOINTS + 1
                ) * self.bytes_per_checkpoint() + 2 * tensor_bytes(self.raw.tensors().values())
                going = sum(
                    path.stat().st_size
                    for top in old
                    for path in (top, *top.rglob("*"))
                    if path.is_file()
                )
                require_disk_space(self.out_dir, needed - going)
            for path in old:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            checkpoints.remove_partial_files(self.out_dir)
            self._write_head()  # what makes the folder a run's comes first
            write_model_folder(self.out_dir, self.raw.config, self.tokenizer)

    def _write_head(self) -> None:
        self.machine = describe_machine(self.device)
        self.machine |= {
            "device": str(self.device),
            "dtype": self.settings.dtype,
            "compiled": self.model is not self.raw,
        }
        head = {
            "settings": asdict(self.settings),
            "machine": {**self.machine, "processes": self.processes.world},
            "data": {
                "folder": str(self.data.folder),
                "train": self.data.sha256,
                "val": self.val.sha256,
                "tokenizer": self.tokenizer.hash,
            },
        }
        text = json.dumps(head, ensure_ascii=False, indent=1)
        write_atomically(self.out_dir / "settings.json", lambda path: write_synced_text(path, text))
        self.log.rewind(
            self.state.step, -1 if self.state.evaluated is None else self.state.evaluated
        )
        self.log.write("start", step=self.state.step, **head)

    @contextmanager
    def _fail_on_write_error(self) -> Iterator[None]:
        """Where nothing can be written, there is nothing to train for."""
        try:
            yield
        except OSError as error:
            raise UserError(f"can't write to {self.out_dir}: {error_reason(error)}") from None

    @contextmanager
    def warn_on_write_error(
        self, what: str, say: Callable[[str], None] = print_line
    ) -> Iterator[None]:
        """What can't be written in mid-run is told, once in succession, and the training goes on without it."""
        try:
            yield
            self._unwritten.discard(what)
        except OSError as error:
            if what not in self._unwritten:
                say(
                    f"can't write {what} to {self.out_dir}: {error_reason(error)}; what stands there is intact, the training goes on"
                )
            self._unwritten.add(what)

    def record(self, kind: str, **values: object) -> None:
        """A line of log.jsonl."""
        with self.warn_on_write_error("log.jsonl"):
            self.log.write(kind, **values)

    def bytes_per_checkpoint(self) -> int:
        """Of weights and optimisers, once these have begun."""
        kept = (
            p.numel() * p.element_size() * (1 if isinstance(o, Muon) else 2)
            for o in self.optimizers
            for group in o.param_groups
            for p in group["params"]
        )
        return tensor_bytes(self.raw.tensors().values()) + sum(kept)

    def keep_model(self, say: Callable[[str], None]) -> bool:
        """This step's model becomes the folder's, if the disk takes it; whether it did, in all processes."""
        self._check_weights()
        kept = False
        if self.processes.is_rank_zero:
            with self.warn_on_write_error("model.safetensors", say):
                self._write_model()
                kept = True
        return self.processes.broadcast(kept)

    def _write_model(self) -> None:
        save_weights(self.out_dir, self.raw, self.tokenizer, self.state.step, self.task, self.turns)

    def _check_weights(self) -> None:
        """No weights that are not finite are ever saved."""
        if not torch.stack(
            [torch.isfinite(parameter).all() for parameter in self.raw.parameters()]
        ).all():
            raise UserError(
                f"the weights are no longer finite after step {self.state.step:,}: lower --learning_rate; earlier checkpoints are intact"
            )

    def save(self) -> None:
        """A checkpoint; without validation text also the model itself, since no evaluation chooses it. OSError if the disk doesn't take them."""
        self._check_weights()
        if self.scaler.is_enabled():
            self.state.scale = self.scaler.get_scale()
        if self.processes.is_rank_zero:
            saved = {
                "run": asdict(self.state),
                "settings": asdict(self.settings),
                "tokenizer": self.tokenizer.hash,
            }
            saved["data"] = [self.data.sha256, self.val.sha256]
            checkpoints.save_checkpoint(
                self.out_dir,
                self.state.step,
                self.raw,
                state_tensors(self.raw, self.optimizers),
                saved,
            )
            if not len(self.val):
                self._write_model()
        self.saved = self.state.step
