"""Models at the service of many readers: loaded when asked for, loaded again when trained further, one text after the other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from shuoshu.core.command_settings import AppSettings
from shuoshu.core.device import pick_device, setup_process
from shuoshu.core.errors import UserError
from shuoshu.core.run_log import read_settings
from shuoshu.evaluation.copies import TrainingText
from shuoshu.generation.chat_model import ChatModel
from shuoshu.generation.sampling import SamplingParams
from shuoshu.models.weights import load_model, read_metadata

PAUSE = 0.04  # seconds between two states of a growing text: an eye sees no more
LEASE = 10.0  # seconds without anybody fetching a text's next state after which it ends


@dataclass
class GenerationState:
    """Texts as far as they have grown, side by side."""

    prompt: list[int]
    texts: list[str]
    ids: list[list[int]]
    maker: tuple[str, int] = ("", 0)  # the hash of its tokenizer, the steps of its training
    reason: str = ""  # while they grow; then why they ended: "end", "length", "time", where texts differ "length" before "end"


@dataclass
class ReaderState:
    """When somebody last asked for a text, was served, and wanted no more of it."""

    asked: float = 0.0
    served: float = 0.0
    stopped: float = 0.0
    writing: int = 0  # texts that are being written for them


@dataclass
class _Job:
    """What the model's thread and the one who waits for its text tell each other."""

    fetched: float = field(default_factory=time.monotonic)
    draft: GenerationState | None = None  # the newest
    grew: threading.Event = field(default_factory=threading.Event)

    def put(self, draft: GenerationState) -> None:
        self.draft = draft
        self.grew.set()


class ModelServer:
    def __init__(self, folders: Sequence[Path], settings: AppSettings) -> None:
        self.folders = {str(folder): folder for folder in folders}
        self.settings, self.device = settings, pick_device(settings.device)
        self._worker = ThreadPoolExecutor(
            1, "model"
        )  # one thread: each new one would bring its own set of helpers, and compete
        self._kept: dict[str, tuple[tuple[int, ...], ChatModel]] = {}
        self._texts: dict[str, tuple[dict, TrainingText | None]] = {}
        self._reading = threading.Lock()
        self._readers: dict[str, ReaderState] = {}
        self._is_closed = False

    def turns(self, name: str) -> int:
        """How many questions in a row a model learned to answer; 0: it continues text. Read from its file, without loading it."""
        try:
            return int(read_metadata(self.folders[name] / "model.safetensors").get("turns", 0))
        except (UserError, ValueError):
            return 0

    def close(self) -> None:
        """Ends what is being written and takes nothing more."""
        self._is_closed = True
        self._worker.shutdown(wait=False, cancel_futures=True)

    def voice(self, name: str) -> ChatModel:
        return self._worker.submit(self._voice, name).result()

    def do(self, name: str, work: Callable[[ChatModel], object]) -> object:
        """What `work` makes of a model, in the model's thread."""
        return self._worker.submit(lambda: work(self._voice(name))).result()

    def sources(self, name: str) -> TrainingText | None:
        """The text behind a model; read again when the model was trained on another one."""
        saved = read_settings(self.folders[name])
        with self._reading:
            if (
                name not in self._texts
                or self._texts[name][0] != saved
                or self._texts[name][1] is None
            ):
                self._texts[name] = saved, TrainingText.find(self.folders[name])
            return self._texts[name][1]

    def reader(self, session: str) -> ReaderState:
        while len(self._readers) > 1000 and session not in self._readers:
            del self._readers[next(iter(self._readers))]
        return self._readers.setdefault(session, ReaderState())

    def asked(self, session: str) -> None:
        """A text is asked for: what was stopped before doesn't concern it."""
        self.reader(session).asked = time.monotonic()

    def stop(self, session: str) -> bool:
        """Ends what is written for a reader, or drops what waits; returns when it has ended: whether it only waited."""
        reader = self.reader(session)
        only_waited = reader.asked > max(reader.served, reader.stopped) and not reader.writing
        reader.stopped = end = time.monotonic()
        while reader.writing and time.monotonic() < end + 2:
            time.sleep(0.02)
        return only_waited

    def write(
        self,
        name: str,
        ask: Callable[[ChatModel], tuple[list[int], SamplingParams]],
        seeds: Sequence[int],
        reader: ReaderState | None = None,
    ) -> Iterator[GenerationState]:
        """A text for each seed, as they grow; closing the iterator ends them within a token, and so does a reader's stop."""
        reader = reader or ReaderState()
        if reader.stopped > reader.asked:
            return
        job = _Job()
        reader.served, reader.writing = time.monotonic(), reader.writing + 1
        future = self._worker.submit(self._write, job, name, ask, seeds)
        try:
            shown, is_done = None, False
            while not is_done and reader.stopped < reader.served:
                job.fetched = time.monotonic()
                is_done = future.done()  # asked before the draft is read, so that none is missed
                job.grew.wait(0 if is_done else 0.1)
                job.grew.clear()
                if job.draft is not shown and reader.stopped < reader.served:
                    shown = job.draft
                    yield shown
                    time.sleep(PAUSE)
            if is_done:
                future.result()
        finally:
            job.fetched = -LEASE
            reader.writing -= 1

    def _write(
        self,
        job: _Job,
        name: str,
        ask: Callable[[ChatModel], tuple[list[int], SamplingParams]],
        seeds: Sequence[int],
    ) -> None:
        voice = self._voice(name)
        prompt, sampling = ask(voice)
        maker = voice.tokenizer.hash, voice.step
        deadline = time.monotonic() + self.settings.max_seconds

        def should_stop() -> bool:
            now = time.monotonic()
            return now > deadline or now - job.fetched > LEASE or self._is_closed

        texts = [""] * len(seeds)
        for events in voice.stream([prompt] * len(seeds), sampling, seeds, should_stop):
            if all(event.finished for event in events):
                completions = [event.finished for event in events]
                reasons = {row.reason for row in completions}
                reason = next(
                    told for told in ("interrupted", "length", "stop", "end") if told in reasons
                )
                job.put(
                    GenerationState(
                        prompt,
                        [row.text for row in completions],
                        [row.ids for row in completions],
                        maker,
                        "time" if reason == "interrupted" else reason,
                    )
                )
            else:
                texts = [text + row.new_text for text, row in zip(texts, events, strict=True)]
                job.put(GenerationState(prompt, texts, [], maker))

    def _voice(self, name: str) -> ChatModel:
        """The model as its folder now has it; while it is being replaced, as it was before."""
        folder, kept = self.folders[name], self._kept.get(name)
        try:
            facts = (folder / "model.safetensors").stat()
            stamp = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
            if kept is None or kept[0] != stamp:
                kept = self._kept[name] = (
                    stamp,
                    ChatModel(load_model(folder, self.device), self.device, self.settings.dtype),
                )
        except (OSError, UserError):
            if kept is None:
                raise
        return kept[1]


def start_model_process(settings: AppSettings) -> None:
    """What this process needs before its first tensor."""
    setup_process(settings.device, settings.threads)
