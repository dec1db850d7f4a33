"""Runs sample.py: reads prompts or questions, writes the texts to the terminal or a file."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from shuoshu.core.command_settings import TRAINED, SampleSettings
from shuoshu.core.device import setup_process
from shuoshu.core.distributed import StopFlag
from shuoshu.core.errors import UserError
from shuoshu.generation.chat_model import ChatModel, generation_dtype
from shuoshu.generation.label_command import run_labels
from shuoshu.generation.prompt_files import (
    PromptFile,
    command_line_prompts,
    new_columns,
    read_prompts,
    require_writable,
    write_prompt_rows,
)
from shuoshu.models.weights import LoadedModel, folder_purpose, load_model


def run(settings: SampleSettings, out_dir: Path) -> int:
    """Generates what the settings ask for with the model in `out_dir`; returns the exit code."""
    purpose = folder_purpose(out_dir, settings.base)
    if purpose.labelling and not settings.continue_text:
        return run_labels(settings, out_dir, purpose.labelling)
    # Inputs come first: a wrong path must not cost the time to load a model.
    if settings.infile:
        file = read_prompts(Path(settings.infile))
        require_writable(Path(settings.outfile))
    elif not settings.chat:
        prompts = command_line_prompts(settings.start)
    device = setup_process(settings.device, settings.threads)
    dtype = generation_dtype(settings.dtype, device)
    terminal = TerminalChat(settings, load_model(out_dir, device, dtype, settings.base))
    if settings.chat:
        return chat(terminal)
    if settings.infile:
        return write_answers(terminal, file)
    stream_to_terminal(terminal, prompts)
    return 0


class TerminalChat(ChatModel):
    """A ChatModel that follows the settings of sample.py and prints to the terminal."""

    def __init__(self, settings: SampleSettings, loaded: LoadedModel) -> None:
        super().__init__(loaded)
        self.settings = settings
        self.is_answering = self.purpose.task == "questions" and not settings.continue_text
        if settings.chat and not self.is_answering:
            loaded.tokenizer.require_template()
            raise UserError(
                "this model continues text and answers no questions:"
                " fine-tune it (python train.py config/sft.py), or use --start"
            )
        # None: the message of the training.
        self.system = {TRAINED: None, "none": ""}.get(settings.system, settings.system)
        if self.system and not self.is_answering:
            raise UserError("--system is for models that answer questions; this one continues text")
        self.params = self.sampling_params(settings, self.is_answering)

    def prompt_ids(
        self, prompt: str, history: Sequence[dict[str, str]] = (), system: str | None = None
    ) -> list[int]:
        """A prompt's ids: rendered as a question after `history` if the model is answering.

        system: the row's own system message; --system overrides it.
        """
        if self.is_answering:
            system = system if self.system is None else self.system
            return self.question_ids(prompt, history, system)
        return self.tokenizer.encode_prompt(prompt)

    def print_text(self, ids: list[int], seed: int, stop: StopFlag) -> str:
        """Streams the text that follows these ids to the terminal; returns it."""
        text = ""
        for [event] in self.stream([ids], self.params, [seed], lambda: stop.raised):
            print(event.new_text, end="", flush=True)
            text += event.new_text
        print(flush=True)
        if self.is_answering and event.finished.reason == "length":
            limit = f"(cut at --max_new_tokens={self.params.max_new_tokens})"
            print(limit, file=sys.stderr, flush=True)
        return text


def text_seed(settings: SampleSettings, number: int) -> int:
    """The seed of one text, which doesn't depend on the batch that the text is in."""
    return (settings.seed * 1_000_003 + number) % 2**63


# ---------------------------------------------------------------- to the terminal


def stream_to_terminal(terminal: TerminalChat, prompts: list[str]) -> None:
    """Streams num_samples texts for each prompt, with a header line if there are several.

    Raises KeyboardInterrupt after a signal, once the current text has ended.
    """
    texts = [prompt for prompt in prompts for _ in range(terminal.settings.num_samples)]
    with StopFlag() as stop:
        for number, prompt in enumerate(texts):
            if len(texts) > 1:
                gap = "\n" if number else ""
                question = f"  {prompt}" if terminal.is_answering else ""
                print(f"{gap}--- {number + 1}/{len(texts)}{question}", flush=True)
            if not terminal.is_answering:
                print(prompt, end="", flush=True)
            seed = text_seed(terminal.settings, number)
            terminal.print_text(terminal.prompt_ids(prompt), seed, stop)
            if stop.raised:
                raise KeyboardInterrupt


def chat(terminal: TerminalChat) -> int:
    """Answers questions in turn until an empty line; returns the exit code.

    Earlier turns stay in the context as far as `question_ids` keeps them.
    """
    single = " This model answers each question without the earlier ones."
    print(
        "Ask a question. /new starts over, an empty line ends."
        + (single if terminal.purpose.turns == 1 else "")
    )
    history: list[dict[str, str]] = []
    for number in itertools.count():
        try:
            question = input("\n> ").strip()
        except (EOFError, KeyboardInterrupt):
            question = ""
        if not question:
            return 0
        if question == "/new":
            history = []
            continue
        try:
            ids = terminal.prompt_ids(question, history)
        except UserError as error:
            print(error)
            continue
        with StopFlag() as stop:  # Ctrl-C ends an answer, not the conversation
            answer = terminal.print_text(ids, text_seed(terminal.settings, number), stop)
        history.append({"role": "user", "content": question})
        history.append({"role": "assistant", "content": answer})
    return 0


# ---------------------------------------------------------------- to a file


def write_answers(terminal: TerminalChat, file: PromptFile) -> int:
    """Writes the rows with the texts in new columns: answer, answer_2 …; returns the exit code.

    The texts of rows without a usable prompt are empty, and after a signal those not finished.
    """
    settings, samples = terminal.settings, terminal.settings.num_samples
    prompts = file.usable("answer", lambda text, system: terminal.prompt_ids(text, system=system))
    texts = [(row, sample) for row in prompts for sample in range(samples)]
    ids = [prompts[row] for row, _ in texts]
    seeds = [text_seed(settings, row * samples + sample) for row, sample in texts]

    def print_progress(done: int) -> None:
        print(f"\r{done:,}/{len(ids):,}", end="", file=sys.stderr, flush=True)

    with StopFlag() as stop:
        results = terminal.complete_many(
            ids, terminal.params, seeds, settings.batch_size, lambda: stop.raised, print_progress
        )
    print(file=sys.stderr)
    columns = ["answer", *(f"answer_{number}" for number in range(2, samples + 1))]
    columns = new_columns(file.rows, columns)
    for row in file.rows:
        row.update(dict.fromkeys(columns, ""))
    for (row, sample), result in zip(texts, results, strict=True):
        file.rows[row][columns[sample]] = result.text if result else ""
    write_prompt_rows(Path(settings.outfile), file.rows)
    finished = [result for result in results if result]
    kind = "answers" if terminal.is_answering else "continuations"
    print(f"{len(finished):,} of {len(ids):,} {kind} in {settings.outfile}")
    cut = sum(result.reason == "length" for result in finished)
    if cut and terminal.is_answering:
        print(f"{cut:,} of them were cut at --max_new_tokens={settings.max_new_tokens}")
    return 128 + stop.raised if stop.raised else 0
