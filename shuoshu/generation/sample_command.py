"""Prompts and questions from the command line, a pipe or a file; what the model makes of them to the terminal or a file."""

from __future__ import annotations

import csv
import errno
import io
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from shuoshu.core.device import setup_process
from shuoshu.core.distributed import StopFlag
from shuoshu.core.errors import UserError
from shuoshu.core.files import error_reason, read_text, write_atomically, write_synced_text
from shuoshu.core.settings import SampleSettings
from shuoshu.generation.chat_model import ChatModel
from shuoshu.models.weights import LoadedModel, load_model
from shuoshu.sft.question_files import parse_json

COLUMNS = (
    "prompt",
    "question",
    "instruction",
    "start",
    "text",
    "问题",
)  # where a file's prompts stand, the first that is there


def run(settings: SampleSettings, out_dir: Path) -> int:
    """What sample.py does once its settings are known; the exit code."""
    if settings.infile:
        rows, prompts = read_file(Path(settings.infile))
        check_target(Path(settings.outfile))
    elif not settings.chat:
        prompts = list(command_line_prompts(settings))
    device = setup_process(settings.device, settings.threads)
    speaker = TerminalChat(settings, load_model(out_dir, device), device)
    if settings.chat:
        return chat(speaker)
    if settings.infile:
        return write_answers(speaker, rows, prompts)
    stream_to_terminal(speaker, prompts)
    return 0


class TerminalChat(ChatModel):
    """A voice that tells the terminal what the settings ask for."""

    def __init__(self, settings: SampleSettings, loaded: LoadedModel, device: torch.device) -> None:
        super().__init__(loaded, device, settings.dtype)
        self.settings, self.answers = (
            settings,
            self.task == "questions" and not settings.continue_text,
        )
        if settings.chat and not self.answers:
            raise UserError(
                "this model continues text and answers no questions: fine-tune it (python train.py config/sft.py), or use --start"
            )
        self.params = self.sampling_params(settings, self.answers)

    def ids(self, text: str) -> list[int]:
        """A prompt as the model reads it."""
        return self.question_ids(text) if self.answers else self.tokenizer.encode(text)

    def say(self, ids: list[int], seed: int, stop: StopFlag) -> str:
        """Streams one text to the terminal; returns it."""
        said = ""
        for [event] in self.stream([ids], self.params, [seed], lambda: stop.raised):
            print(event.new_text, end="", flush=True)
            said += event.new_text
        print(flush=True)
        if self.answers and event.finished.reason == "length":
            print(
                f"(cut at --max_new_tokens={self.params.max_new_tokens})",
                file=sys.stderr,
                flush=True,
            )
        return said


def seed_of(settings: SampleSettings, number: int) -> int:
    """A seed for each text: they differ within a call, and don't depend on how texts are put into batches."""
    return (settings.seed * 1_000_003 + number) % 2**63


# ---------------------------------------------------------------- to the terminal


def command_line_prompts(settings: SampleSettings) -> Iterator[str]:
    starts = settings.start
    if not starts:
        starts = (
            ("",) if sys.stdin is None or sys.stdin.isatty() else (sys.stdin.read().rstrip("\n"),)
        )
    for start in starts:
        if start.startswith("FILE:"):
            path = Path(start.removeprefix("FILE:"))
            try:
                yield read_text(path).rstrip("\n")
            except (OSError, ValueError) as error:
                raise UserError(f"can't read the prompt in {path}: {error_reason(error)}") from None
        else:
            yield start


def stream_to_terminal(speaker: TerminalChat, prompts: list[str]) -> None:
    """Streams one text after the other; several are told apart by a line."""
    texts = [prompt for prompt in prompts for _ in range(speaker.settings.num_samples)]
    with StopFlag() as stop:
        for number, prompt in enumerate(texts):
            if len(texts) > 1:
                asked = f"  {prompt}" if speaker.answers else ""
                print(
                    f"{'' if number == 0 else chr(10)}--- {number + 1}/{len(texts)}{asked}",
                    flush=True,
                )
            if not speaker.answers:
                print(prompt, end="", flush=True)
            speaker.say(speaker.ids(prompt), seed_of(speaker.settings, number), stop)
            if stop.raised:
                raise KeyboardInterrupt


def chat(speaker: TerminalChat) -> int:
    """Question by question; what was said before is kept as far as it fits, and as the model learned to follow it. The exit code."""
    alone = (
        "; it learned to answer questions one by one, so each stands alone"
        if speaker.turns == 1
        else ""
    )
    print(f"Ask a question. /new forgets what was said, an empty line ends{alone}.")
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
            ids = speaker.question_ids(question, history)
        except UserError as error:
            print(error)
            continue
        with StopFlag() as stop:  # Ctrl-C ends an answer, not the conversation
            said = speaker.say(ids, seed_of(speaker.settings, number), stop)
        history += [{"role": "user", "content": question}, {"role": "assistant", "content": said}]
    return 0


# ---------------------------------------------------------------- files


def check_target(path: Path) -> None:
    """UserError if the answers could not be written there; better now than after an hour."""
    if path.suffix.lower() not in WRITERS:
        raise UserError(f"--out={path}: answers are written to .csv or .jsonl")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            raise OSError(errno.EEXIST, "something stands there that is no file")
        with path.open("ab"):
            pass
        if not path.stat().st_size:
            path.unlink()
    except OSError as error:
        raise UserError(f"can't write {path}: {error.strerror}") from None


def write_answers(speaker: TerminalChat, rows: list[dict], prompts: list[str]) -> int:
    """Continues every prompt, like lengths side by side, and writes the rows with a column `answer` more (`answer_2` …).

    Interrupted, it writes what is done. The exit code.
    """
    settings = speaker.settings
    texts = [speaker.ids(prompt) for prompt in prompts for _ in range(settings.num_samples)]
    seeds = [seed_of(settings, number) for number in range(len(texts))]
    with StopFlag() as stop:
        results = speaker.complete_many(
            texts,
            speaker.params,
            seeds,
            settings.batch_size,
            lambda: stop.raised,
            lambda done: print(f"\r{done:,}/{len(texts):,}", end="", file=sys.stderr, flush=True),
        )
    answers = {number: result.text for number, result in enumerate(results) if result}
    cut = sum(result.reason == "length" for result in results if result) if speaker.answers else 0
    print(file=sys.stderr)
    column = "model_answer" if any("answer" in row for row in rows) else "answer"
    for number, row in enumerate(rows):
        for sample in range(settings.num_samples):
            row[column if sample == 0 else f"{column}_{sample + 1}"] = answers.get(
                number * settings.num_samples + sample, ""
            )
    path = Path(settings.outfile)
    try:
        write_atomically(path, lambda aside: WRITERS[path.suffix.lower()](aside, rows))
    except OSError as error:
        raise UserError(f"can't write {path}: {error.strerror}") from None
    print(
        f"{len(answers):,} of {len(texts):,} {'answers' if speaker.answers else 'continuations'} in {path}"
    )
    if cut:
        print(f"{cut:,} of them were cut at --max_new_tokens={settings.max_new_tokens}")
    return 128 + stop.raised if stop.raised else 0


def read_file(path: Path) -> tuple[list[dict], list[str]]:
    """(rows, prompts) of a .csv, .jsonl or .txt."""
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise UserError(f"can't read {path}: {error_reason(error)}") from None
    suffix = path.suffix.lower()
    if suffix == ".txt":
        rows: list[dict] = [{"prompt": line} for line in text.split("\n") if line.strip()]
    elif suffix == ".csv":
        try:
            reader = csv.DictReader(
                io.StringIO(text, newline=""), restkey="more", restval="", strict=True
            )
            rows = [dict(row) for row in reader]
        except csv.Error as error:
            raise UserError(
                f"{path}, line {reader.line_num}: {error} (is a quotation mark open, or not doubled?)"
            ) from None
    elif suffix == ".jsonl":
        rows = []
        for number, line in enumerate(text.split("\n"), 1):
            try:
                row = parse_json(line, number) if line.strip() else None
            except UserError as error:
                raise UserError(f"{path}, {error}") from None
            if isinstance(row, dict):
                rows.append(row)
            elif row is not None:
                raise UserError(f'{path}, line {number}: an object like {{"prompt": …}} is wanted')
    else:
        raise UserError(f"{path}: prompts are read from .csv, .jsonl and .txt")
    if not rows:
        raise UserError(f"{path} holds no prompt")
    column = next((name for name in COLUMNS if name in rows[0]), None)
    if column is None:
        raise UserError(
            f"{path} has no column {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}; it has {', '.join(map(str, rows[0]))}"
        )
    if bad := [
        number for number, row in enumerate(rows, 1) if not isinstance(row.get(column), str)
    ]:
        raise UserError(f"{path}: row {bad[0]} has no text in its column {column}")
    return rows, [row[column] for row in rows]


def write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
        writer = csv.DictWriter(
            file, list(dict.fromkeys(key for row in rows for key in row)), restval=""
        )
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(path: Path, rows: list[dict]) -> None:
    write_synced_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


WRITERS = {".csv": write_csv, ".jsonl": write_jsonl}
