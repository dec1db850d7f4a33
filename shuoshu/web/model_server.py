"""Loads models, reloads them after further training, and works with them for many readers.

All models are used in one thread, so one text grows at a time and later requests wait in the
thread's queue. A text ends early when its reader stops it, closes the tab or no longer fetches it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from shuoshu.answering.answerer import Answer, Answerer
from shuoshu.answering.passages import Passage
from shuoshu.core.command_settings import AppSettings
from shuoshu.core.device import pick_device
from shuoshu.core.errors import UserError
from shuoshu.core.out_dirs import adapter_base, holds_adapter
from shuoshu.core.run_log import read_settings
from shuoshu.evaluation.copies import TrainingText
from shuoshu.generation.chat_model import ChatModel
from shuoshu.generation.judge import Judge
from shuoshu.generation.sampling import SamplingParams, TextEvent
from shuoshu.models.purpose import CONTINUES_TEXT, Purpose
from shuoshu.models.weights import folder_purpose
from shuoshu.web.model_cache import ModelCache

UPDATE_SECONDS = 0.04  # between two states of a growing text; faster updates aren't visible
POLL_SECONDS = 0.1  # how soon a reader's stop is noticed while no new state arrives
STOP_SECONDS = 2.0  # maximum wait for a stopped text to end
LEASE_SECONDS = 10.0  # a text ends when none of its states was fetched for this long
MAX_READERS = 1000  # readers that are remembered

T = TypeVar("T")
Prepare = Callable[[ChatModel], tuple[list[int], SamplingParams]]
# Gets the model, a function that says when to stop, and one that publishes a state.
JudgeWork = Callable[[Judge, Callable[[], bool], Callable[[object], None]], None]
AnswerWork = Callable[[Answerer, Callable[[], bool], Callable[[object], None]], None]


class ModelVersion(NamedTuple):
    """Identifies the weights that wrote a text, and the tokenizer of its ids."""

    tokenizer_hash: str
    step: int


@dataclass
class GenerationState:
    """One or more texts from the same prompt, growing or finished."""

    version: ModelVersion
    prompt: list[int]
    texts: list[str]
    ids: list[list[int]] = field(default_factory=list)  # only when finished
    reason: str = ""  # why they ended: "length", "time", "stop" or "end"; empty while they grow
    answer: Answer | None = None  # of a question, only when finished
    sources: Sequence[Passage] = ()  # passages of the book that speak of it
    quote: str = ""  # the nearest sentence of the book, if the question was declined


@dataclass
class ReaderState:
    """The last actions of one open page (a Gradio session), in seconds of time.monotonic()."""

    requested: float = 0.0
    started: float = 0.0
    stopped: float = 0.0
    running: int = 0  # texts that are queued or growing

    @property
    def is_cancelled(self) -> bool:
        """True if the last request was stopped."""
        return self.stopped > self.requested

    @property
    def is_waiting(self) -> bool:
        """True if the last request has neither started nor been stopped."""
        return self.requested > max(self.started, self.stopped) and not self.running


@dataclass
class Job:
    """Shared by the model's thread, which works, and the thread that fetches the states."""

    fetched: float = field(default_factory=time.monotonic)  # time of the last fetch
    is_cancelled: bool = False
    state: object = None  # the newest: a GenerationState, or what a JudgeWork publishes
    changed: threading.Event = field(default_factory=threading.Event)

    def publish(self, state: object) -> None:
        self.state = state
        self.changed.set()


class ModelServer:
    def __init__(
        self,
        folders: Sequence[Path],
        settings: AppSettings,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self.folders = {str(folder): folder for folder in folders}
        self.settings, self.lease_seconds = settings, lease_seconds
        self._cache = ModelCache(settings, pick_device(settings.device))
        # One thread for all models: each thread that computes gets its own OpenMP threads, and
        # they would compete for the cores.
        self._worker = ThreadPoolExecutor(1, "model")
        # model name → (settings of its run, training text)
        self._training_texts: dict[str, tuple[dict, TrainingText | None]] = {}
        self._training_texts_lock = threading.Lock()
        self._readers: dict[str, ReaderState] = {}
        self._is_closed = False

    # ------------------------------------------------------------ models

    def purpose(self, name: str) -> Purpose:
        """What a model was trained for, without loading it. A damaged one continues text."""
        try:
            return folder_purpose(self.folders[name], self.settings.base)
        except UserError:
            return CONTINUES_TEXT

    def base_folder(self, name: str) -> Path | None:
        """The folder of the model that this one was trained from; None if it is not known."""
        folder = self.folders[name]
        if not holds_adapter(folder):
            init_from = read_settings(folder).get("settings", {}).get("init_from")
            return Path(init_from) if isinstance(init_from, str) else None
        try:
            return adapter_base(folder, self.settings.base)
        except UserError:
            return None

    def model(self, name: str) -> ChatModel:
        """The model with its newest weights."""
        return self.run(name, lambda model: model)

    def run(self, name: str, function: Callable[[ChatModel], T]) -> T:
        """Calls `function` with a model in the model's thread; returns its result."""
        return self._worker.submit(lambda: function(self._cache.load(self.folders[name]))).result()

    def training_text(self, name: str) -> TrainingText | None:
        """The text that a model was pretrained on; None if it is no longer there.

        It is read again when the model was trained on another text.
        """
        saved = read_settings(self.folders[name])
        with self._training_texts_lock:
            settings, text = self._training_texts.get(name, (None, None))
            if text is None or settings != saved:
                text = TrainingText.find(self.folders[name])
                self._training_texts[name] = saved, text
            return text

    def close(self) -> None:
        """Ends what is running; accepts no further requests."""
        self._is_closed = True
        self._worker.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------ readers

    def reader(self, session: str) -> ReaderState:
        """The state of a session; the oldest sessions are forgotten."""
        while len(self._readers) >= MAX_READERS and session not in self._readers:
            del self._readers[next(iter(self._readers))]
        return self._readers.setdefault(session, ReaderState())

    def note_request(self, session: str) -> None:
        """Notes a new request, so that an earlier stop doesn't cancel it."""
        self.reader(session).requested = time.monotonic()

    def stop(self, session: str) -> bool:
        """Cancels the reader's queued or growing text and waits until it ended.

        Returns True if the request was only queued.
        """
        reader = self.reader(session)
        was_waiting = reader.is_waiting
        reader.stopped = now = time.monotonic()
        while reader.running and time.monotonic() < now + STOP_SECONDS:
            time.sleep(0.02)
        return was_waiting

    # ------------------------------------------------------------ texts

    def generate(
        self,
        name: str,
        prepare: Prepare,
        seeds: Sequence[int],
        reader: ReaderState | None = None,
    ) -> Iterator[GenerationState]:
        """Generates one text per seed, side by side; yields their newest state as they grow.

        `prepare` gets the model and returns the prompt's ids and the sampling parameters. The texts
        end within a token when the iterator is closed (a closed tab) or the reader stops. Nothing
        is yielded after a stop.
        """
        return self._states(partial(self._generate, name, prepare, seeds), reader)

    def judge(
        self, name: str, work: JudgeWork, reader: ReaderState | None = None
    ) -> Iterator[object]:
        """Calls `work` with a model that labels; yields the newest of the states it publishes.

        `work` gets the model, a function that says when to stop, and one that publishes a state.
        The iterator ends as that of `generate` does.
        """

        def run(job: Job) -> None:
            judge = self._cache.load_judge(self.folders[name])
            work(judge, self._stop_check(job), job.publish)

        return self._states(run, reader)

    def answer(
        self, name: str, work: AnswerWork, reader: ReaderState | None = None
    ) -> Iterator[GenerationState]:
        """The same with a model that answers questions, and what is kept beside it."""

        def run(job: Job) -> None:
            answerer = self._cache.load_answerer(self.folders[name])
            work(answerer, self._stop_check(job), job.publish)

        return self._states(run, reader)

    def _states(self, work: Callable[[Job], None], reader: ReaderState | None) -> Iterator[object]:
        """Runs `work` in the model's thread; yields the newest state of its job until it ends."""
        reader = reader or ReaderState()
        if reader.is_cancelled:
            return
        job = Job()
        reader.started, reader.running = time.monotonic(), reader.running + 1
        future = self._worker.submit(work, job)
        try:
            shown, is_done = None, False
            while not is_done and reader.stopped < reader.started:
                job.fetched = time.monotonic()
                is_done = future.done()  # read before the state, so that none is missed
                job.changed.wait(0 if is_done else POLL_SECONDS)
                job.changed.clear()
                if job.state is not shown and reader.stopped < reader.started:
                    shown = job.state
                    yield shown
                    time.sleep(UPDATE_SECONDS)
            if is_done:
                future.result()  # raises what the work raised
        finally:
            job.is_cancelled = True
            reader.running -= 1

    def _stop_check(self, job: Job) -> Callable[[], bool]:
        """A function that says whether to stop: the time, from now on, is up or nobody waits."""
        deadline = time.monotonic() + self.settings.max_seconds

        def should_stop() -> bool:
            now = time.monotonic()
            is_fetched = now - job.fetched <= self.lease_seconds
            return now > deadline or not is_fetched or job.is_cancelled or self._is_closed

        return should_stop

    def _generate(self, name: str, prepare: Prepare, seeds: Sequence[int], job: Job) -> None:
        """Publishes the states of the texts; runs in the model's thread."""
        model = self._cache.load(self.folders[name])
        prompt, sampling = prepare(model)
        version = ModelVersion(model.tokenizer.hash, model.step)
        should_stop = self._stop_check(job)
        texts = [""] * len(seeds)
        for events in model.stream([prompt] * len(seeds), sampling, seeds, should_stop):
            texts = [text + event.new_text for text, event in zip(texts, events, strict=True)]
            if all(event.finished for event in events):
                job.publish(finished_state(version, prompt, events))
            else:
                job.publish(GenerationState(version, prompt, texts))


def finished_state(
    version: ModelVersion, prompt: list[int], events: Sequence[TextEvent]
) -> GenerationState:
    """The last state. If the texts ended for different reasons, a limit comes before an end."""
    rows = [event.finished for event in events]
    reasons = {row.reason for row in rows}
    reason = next(r for r in ("interrupted", "length", "stop", "end") if r in reasons)
    return GenerationState(
        version,
        prompt,
        [row.text for row in rows],
        [row.ids for row in rows],
        "time" if reason == "interrupted" else reason,
    )
