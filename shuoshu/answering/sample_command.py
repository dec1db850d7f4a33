"""Runs sample.py: reads prompts or questions, writes the texts to the terminal or a file."""

from __future__ import annotations

import itertools
from pathlib import Path

from shuoshu.answering.answer_files import write_answers
from shuoshu.answering.passages import PassageIndex
from shuoshu.answering.sections import file_sections
from shuoshu.answering.terminal_chat import TerminalChat, text_seed
from shuoshu.answering.ways import require_fitting_settings
from shuoshu.core.command_settings import SampleSettings
from shuoshu.core.device import setup_process
from shuoshu.core.distributed import StopFlag
from shuoshu.core.errors import UserError
from shuoshu.generation.chat_model import generation_dtype
from shuoshu.generation.label_command import run_labels
from shuoshu.generation.prompt_files import command_line_prompts, read_prompts, require_writable
from shuoshu.models.weights import folder_purpose, load_model


def run(settings: SampleSettings, out_dir: Path) -> int:
    """Generates what the settings ask for with the model in `out_dir`; returns the exit code."""
    require_fitting_settings(settings)
    purpose = folder_purpose(out_dir, settings.base)
    if purpose.labelling and not settings.continue_text:
        return run_labels(settings, out_dir, purpose.labelling)
    # Inputs come first: a wrong path must not cost the time to load a model.
    if settings.infile:
        file = read_prompts(Path(settings.infile))
        require_writable(Path(settings.outfile))
    elif not settings.chat:
        prompts = command_line_prompts(settings.start)
    book = PassageIndex(file_sections(settings.book)) if settings.book else None
    device = setup_process(settings.device, settings.threads)
    dtype = generation_dtype(settings.dtype, device)
    loaded = load_model(out_dir, device, dtype, settings.base)
    terminal = TerminalChat(settings, loaded, out_dir, book)
    if settings.chat:
        return chat(terminal)
    if settings.infile:
        return write_answers(terminal, file)
    stream_to_terminal(terminal, prompts)
    return 0


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
            terminal.reply(prompt, [], text_seed(terminal.settings.seed, number), stop)
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
        seed = text_seed(terminal.settings.seed, number)
        try:
            with StopFlag() as stop:  # Ctrl-C ends an answer, not the conversation
                answer = terminal.reply(question, history, seed, stop)
        except UserError as error:
            print(error)
            continue
        history.append({"role": "user", "content": question})
        history.append({"role": "assistant", "content": answer})
    return 0
