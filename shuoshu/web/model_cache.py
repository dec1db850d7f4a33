"""The models in memory: loaded when they are asked for, again after their files changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from shuoshu.answering.answerer import Answerer
from shuoshu.answering.knowledge import ANSWERS
from shuoshu.core.command_settings import AppSettings
from shuoshu.core.errors import UserError
from shuoshu.core.out_dirs import adapter_base, holds_adapter
from shuoshu.generation.chat_model import ChatModel, generation_dtype
from shuoshu.generation.judge import Judge
from shuoshu.models.weights import LoadedModel, convert_weights, load_model, with_adapter

MAX_LOADED_MODELS = 3  # models in memory, without adapters: two to compare and one more
WEIGHTS_GLOB = "[!.]*.safetensors*"  # files of weights, or their index

Stamp = tuple[tuple[str | int, ...], ...]


@dataclass(eq=False)
class CachedModel:
    folder: Path
    stamp: Stamp  # of the folder's files, when they were read
    loaded: LoadedModel
    generator: ChatModel
    base: CachedModel | None = None  # of an adapter: the model whose weights it shares
    judge: Judge | None = None  # made at first use
    answerer: Answerer | None = None  # likewise
    answers_stamp: Stamp = ()  # of the file of its answers


class ModelCache:
    """An adapter and its base have one copy of the base's weights."""

    def __init__(self, settings: AppSettings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.dtype = generation_dtype(settings.dtype, device)
        self._cached: dict[Path, CachedModel] = {}  # the last one was used last

    def load(self, folder: Path) -> ChatModel:
        """The model or adapter in a folder, with its newest weights."""
        return self._newest(folder).generator

    def load_judge(self, folder: Path) -> Judge:
        """The same of a model that labels. UserError if the newest weights don't label."""
        known = self._newest(folder)
        if known.loaded.purpose.labelling is None:
            raise UserError(f"the model in {folder} was trained again and labels no texts now")
        if known.judge is None:
            known.judge = Judge(known.loaded, known.generator)
            known.judge.block = known.generator.block
        return known.judge

    def load_answerer(self, folder: Path) -> Answerer:
        """The same of a model that answers questions, with the answers that it was taught.

        UserError if what is kept beside the model is damaged.
        """
        known = self._newest(folder)
        stamp = stamp_of(folder, ANSWERS)
        if known.answerer is None or known.answers_stamp != stamp:
            known.answerer = Answerer.open(folder, known.generator)
            known.answers_stamp = stamp
        return known.answerer

    def _newest(self, folder: Path) -> CachedModel:
        """Training replaces the files of a model one by one. Until they fit together, the model
        that was loaded before stays in use.
        """
        path = folder.resolve()
        known = self._cached.pop(path, None)
        try:
            known = self._read(folder, known)
        except (OSError, UserError):
            if known is None or not self._is_usable(known):
                raise
        self._cached[path] = known
        self._drop_oldest()
        return known

    def _is_usable(self, known: CachedModel) -> bool:
        """Whether its base, if it has one, was not replaced."""
        return known.base is None or known.base in self._cached.values()

    def _read(self, folder: Path, known: CachedModel | None) -> CachedModel:
        """The model in a folder, which is `known` if its files are those of `known`."""
        stamp = stamp_of(folder)
        is_same = known is not None and known.stamp == stamp
        if not holds_adapter(folder):
            return known if is_same else self._read_model(folder, stamp)
        if is_same:
            base = self._newest(known.base.folder)
        else:
            base = self._newest(adapter_base(folder, self.settings.base))
        return known if is_same and known.base is base else self._read_adapter(folder, stamp, base)

    def _read_model(self, folder: Path, stamp: Stamp) -> CachedModel:
        loaded = load_model(folder, self.device, self.dtype)
        return CachedModel(folder, stamp, loaded, self._generator(loaded))

    def _read_adapter(self, folder: Path, stamp: Stamp, base: CachedModel) -> CachedModel:
        loaded = with_adapter(base.loaded, base.folder, folder)
        convert_weights(loaded.model, self.dtype)
        generator = self._generator(loaded, base.generator)
        return CachedModel(folder, stamp, loaded, generator, base)

    def _generator(self, loaded: LoadedModel, base: ChatModel | None = None) -> ChatModel:
        generator = ChatModel(loaded, base)
        generator.block = min(generator.block, self.settings.block_size)
        return generator

    def _drop_oldest(self) -> None:
        """Drops the least recently used model of too many, and the adapters that share it."""
        models = [path for path, cached in self._cached.items() if cached.base is None]
        if len(models) > MAX_LOADED_MODELS:
            dropped = self._cached.pop(models[0])
            cached = self._cached.items()
            self._cached = {path: each for path, each in cached if each.base is not dropped}


def stamp_of(folder: Path, pattern: str = WEIGHTS_GLOB) -> Stamp:
    """Another one means that the files were replaced. OSError if they just were."""
    stats = [(path.name, path.stat()) for path in sorted(folder.glob(pattern))]
    return tuple((name, stat.st_mtime_ns, stat.st_size, stat.st_ino) for name, stat in stats)
