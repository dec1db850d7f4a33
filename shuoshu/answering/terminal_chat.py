"""A model that answers or continues texts as the settings of sample.py say, on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from shuoshu.answering.answerer import Answer, Answerer, Write
from shuoshu.answering.passages import Passage, PassageIndex
from shuoshu.answering.reading import READ_PASSAGES, numbered_passages, read_ids
from shuoshu.answering.ways import given_system, open_answerer, question_flags, shows_sources
from shuoshu.core.command_settings import SampleSettings
from shuoshu.core.distributed import StopFlag
from shuoshu.core.errors import UserError
from shuoshu.core.terminal import counted
from shuoshu.generation.chat_model import ChatModel
from shuoshu.generation.sampling import Completion
from shuoshu.models.weights import LoadedModel
from shuoshu.sft.pairs import preview

MAX_SHOWN_PROBABILITY = 0.99  # nothing is certain


def text_seed(seed: int, number: int) -> int:
    """The seed of one text, which doesn't depend on the batch that the text is in."""
    return (seed * 1_000_003 + number) % 2**63


class Prompt(NamedTuple):
    """A prompt as the model gets it."""

    text: str
    ids: list[int]
    passages: list[Passage] | None = None  # that the model reads first; None: it doesn't read
    n_found: int = 0  # passages that were found; not all of them may fit


class TerminalChat(ChatModel):
    """A ChatModel that follows the settings of sample.py and prints to the terminal.

    book: of --book, else None.
    """

    def __init__(
        self,
        settings: SampleSettings,
        loaded: LoadedModel,
        out_dir: Path,
        book: PassageIndex | None = None,
    ) -> None:
        super().__init__(loaded)
        self.settings = settings
        self.is_answering = self.purpose.task == "questions" and not settings.continue_text
        flags = question_flags(settings)
        if (settings.chat or flags) and not self.is_answering:
            loaded.tokenizer.require_template()
            raise UserError(
                "this model continues text and answers no questions: fine-tune it (python train.py"
                f" config/sft.py), or {f'drop {flags}' if flags else 'use --start'}"
            )
        self.system = given_system(settings)
        if self.system and not self.is_answering:
            raise UserError("--system is for models that answer questions; this one continues text")
        self.params = self.sampling_params(settings, self.is_answering)
        self.way, self.answerer = "write", Answerer(self, None)
        if self.is_answering:
            self.way, self.answerer = open_answerer(self, settings, out_dir, book)
        self.shows_sources = shows_sources(settings)

    def prompt(
        self, text: str, history: Sequence[dict[str, str]] = (), system: str | None = None
    ) -> Prompt:
        """A prompt: rendered as a question after `history` if the model is answering.

        system: the row's own system message; --system overrides it.
        """
        if not self.is_answering:
            return Prompt(text, self.tokenizer.encode_prompt(text))
        system = system if self.system is None else self.system
        if self.way != "read":
            return Prompt(text, self.question_ids(text, history, system))
        found = self.answerer.passages.search(text, count=self.purpose.passages or READ_PASSAGES)
        ids, passages = read_ids(self, text, found, history, system)
        return Prompt(text, ids, passages, len(found))

    def answers(self, prompts: Sequence[Prompt], write: Write) -> list[Answer | None]:
        """An answer to each prompt; None for one that was stopped."""
        texts, ids = [prompt.text for prompt in prompts], [prompt.ids for prompt in prompts]
        return self.answerer.answer(texts, ids, write, self.way, self.settings.precision)

    def write_batch(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], should_stop: Callable[[], object]
    ) -> Write:
        """The function that writes the answers to some of these prompts."""

        def write(numbers: Sequence[int]) -> list[Completion | None]:
            ids, own_seeds = [prompts[n].ids for n in numbers], [seeds[n] for n in numbers]
            return self.complete_many(ids, self.params, own_seeds, len(prompts), should_stop)

        return write

    def sources(self, prompt: Prompt, answer: Answer) -> list[Passage]:
        """The passages that the model has read, else those that speak of the answer."""
        if prompt.passages is None:
            return self.answerer.sources(prompt.text, answer)
        return prompt.passages

    # ---------------------------------------------------------------- print

    def reply(self, text: str, history: Sequence[dict[str, str]], seed: int, stop: StopFlag) -> str:
        """Prints the text that follows the prompt, and notes about it to stderr; returns it.

        A text that is certain to be shown is printed as it grows.
        """
        prompt = self.prompt(text, history)
        is_streamed = not self.answerer.knowledge or self.way == "write"

        def stream(numbers: Sequence[int]) -> list[Completion]:
            return [self.print_text(prompt.ids, seed, stop)]

        silent = self.write_batch([prompt], [seed], lambda: stop.raised)
        [answer] = self.answers([prompt], stream if is_streamed else silent)
        if answer is None:
            return ""
        if not is_streamed:
            print(answer.shown(text), flush=True)
        if self.is_answering and not stop.raised:
            for note in self.notes(prompt, answer):
                print(note, file=sys.stderr, flush=True)
        return answer.shown(text)

    def print_text(self, ids: list[int], seed: int, stop: StopFlag) -> Completion:
        """Streams the text that follows these ids to the terminal."""
        for [event] in self.stream([ids], self.params, [seed], lambda: stop.raised):
            print(event.new_text, end="", flush=True)
        print(flush=True)
        return event.finished

    def notes(self, prompt: Prompt, answer: Answer) -> list[str]:
        """What the reader should know about an answer."""
        notes = []
        if answer.completion and answer.completion.reason == "length":
            notes.append(f"(cut at --max_new_tokens={self.params.max_new_tokens})")
        if prompt.passages is not None:
            notes.append(self.reading_note(prompt))
        if answer.probability is not None:
            likely = f"{min(answer.probability, MAX_SHOWN_PROBABILITY):.2f} likely right"
            before = {"recall": "recalled,", "write": "written,"}
            before["decline"] = "declined: the nearest answer is"
            notes.append(f"({before[answer.way]} {likely})")
        if answer.way == "decline" and answer.nearest:
            nearest = " / ".join(preview(question) for question in answer.nearest)
            notes.append(f"taught questions near it: {nearest}")
        if self.shows_sources or answer.way == "decline":
            passages = self.sources(prompt, answer)
            if quote := self.answerer.quote(prompt.text, answer, passages):
                notes.append(f"the book's nearest sentence: {quote}")
            notes += numbered_passages(passages)
        return notes

    def reading_note(self, prompt: Prompt) -> str:
        n_read = len(prompt.passages)
        if not prompt.n_found:
            return "(written without passages: the book has no word of the question)"
        if n_read == prompt.n_found:
            return f"(written after reading {counted(n_read, 'passage')})"
        return (
            f"(written after reading {n_read} of {counted(prompt.n_found, 'passage')}: no more fit"
            f" into the {self.block:,} tokens that this model reads)"
        )
