"""Prompts from the command line, a pipe or a file; the model's continuations to the terminal or a file."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from model import GPT
from shuoshu import checkpoint, runtime
from shuoshu.commandline import UserError
from shuoshu.generate import Sampling, Utf8Mask, complete, stream
from shuoshu.settings import SampleSettings
from shuoshu.tokenizer import Tokenizer

COLUMNS = ("prompt", "question", "instruction", "start", "text")  # where a file's prompts stand, the first that is there


def continue_prompts(settings: SampleSettings, out_dir: Path) -> int:
    """What sample.py does once its settings are known; the exit code."""
    if settings.infile:
        rows, prompts = read_file(Path(settings.infile))
        check_target(Path(settings.outfile))
    else:
        prompts = list(command_line_prompts(settings))
    runtime.keep_memory()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = runtime.pick_device(settings.device)
    model, tokenizer, _ = checkpoint.load_model(out_dir, device)
    wanted = "float32" if settings.dtype == "auto" and device.type != "cuda" else settings.dtype
    model = model.to(runtime.pick_dtype(wanted, device))
    if settings.infile:
        return write_answers(settings, model, tokenizer, rows, prompts)
    tell(settings, model, tokenizer, prompts)
    return 0


def sampling_of(settings: SampleSettings) -> Sampling:
    return Sampling(**{name: getattr(settings, name) for name in Sampling.__dataclass_fields__})


def seed_of(settings: SampleSettings, number: int) -> int:
    """A seed for each text: they differ within a call, and don't depend on how texts are put into batches."""
    return (settings.seed * 1_000_003 + number) % 2**63


# ---------------------------------------------------------------- to the terminal


def command_line_prompts(settings: SampleSettings) -> Iterator[str]:
    starts = settings.start
    if not starts:
        starts = ("",) if sys.stdin is None or sys.stdin.isatty() else (sys.stdin.read().rstrip("\n"),)
    for start in starts:
        if start.startswith("FILE:"):
            path = Path(start.removeprefix("FILE:"))
            try:
                yield path.read_text(encoding="utf-8-sig").rstrip("\n")
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"can't read the prompt in {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from None
        else:
            yield start


def tell(settings: SampleSettings, model: GPT, tokenizer: Tokenizer, prompts: list[str]) -> None:
    """Streams one text after the other; several are told apart by a line."""
    mask = Utf8Mask(tokenizer, model.config.vocab_size, model.lm_head.weight.device)
    texts = [prompt for prompt in prompts for _ in range(settings.num_samples)]
    with runtime.StopFlag() as stop:
        for number, prompt in enumerate(texts):
            if len(texts) > 1:
                print(f"{'' if number == 0 else chr(10)}--- {number + 1}/{len(texts)}", flush=True)
            print(prompt, end="", flush=True)
            seeds = [seed_of(settings, number)]
            for news in stream(model, tokenizer, [tokenizer.encode(prompt)], sampling_of(settings), seeds, mask, lambda: stop.raised):
                if isinstance(news[0], str):
                    print(news[0], end="", flush=True)
            print(flush=True)
            if stop.raised:
                raise KeyboardInterrupt


# ---------------------------------------------------------------- files


def check_target(path: Path) -> None:
    """UserError if the answers could not be written there; better now than after an hour."""
    if path.suffix.lower() not in WRITERS:
        raise UserError(f"--out={path}: answers are written to .csv or .jsonl")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):
            pass
        if not path.stat().st_size:
            path.unlink()
    except OSError as error:
        raise UserError(f"can't write {path}: {error.strerror}") from None


def write_answers(settings: SampleSettings, model: GPT, tokenizer: Tokenizer, rows: list[dict], prompts: list[str]) -> int:
    """Continues every prompt, like lengths side by side, and writes the rows with a column `answer` more (`answer_2` …).

    Interrupted, it writes what is done. The exit code.
    """
    mask = Utf8Mask(tokenizer, model.config.vocab_size, model.lm_head.weight.device)
    texts = [(tokenizer.encode(prompt), n) for n, prompt in enumerate(p for p in prompts for _ in range(settings.num_samples))]
    texts.sort(key=lambda item: len(item[0]))
    answers: dict[int, str] = {}
    with runtime.StopFlag() as stop:
        for start in range(0, len(texts), settings.batch_size):
            part = texts[start : start + settings.batch_size]
            seeds = [seed_of(settings, n) for _, n in part]
            results = complete(model, tokenizer, [ids for ids, _ in part], sampling_of(settings), seeds, mask=mask, should_stop=lambda: stop.raised)
            if stop.raised:
                break
            answers |= {n: result.text for (_, n), result in zip(part, results, strict=True)}
            print(f"\r{len(answers):,}/{len(texts):,}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    column = "model_answer" if any("answer" in row for row in rows) else "answer"
    for number, row in enumerate(rows):
        for sample in range(settings.num_samples):
            row[column if sample == 0 else f"{column}_{sample + 1}"] = answers.get(number * settings.num_samples + sample, "")
    path = Path(settings.outfile)
    try:
        checkpoint.write_whole(path, lambda aside: WRITERS[path.suffix.lower()](aside, rows))
    except OSError as error:
        raise UserError(f"can't write {path}: {error.strerror}") from None
    print(f"{len(answers):,} of {len(texts):,} continuations in {path}")
    return 128 + stop.raised if stop.raised else 0


def read_file(path: Path) -> tuple[list[dict], list[str]]:
    """(rows, prompts) of a .csv, .jsonl or .txt."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"can't read {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from None
    suffix = path.suffix.lower()
    if suffix == ".txt":
        rows: list[dict] = [{"prompt": line} for line in text.split("\n") if line.strip()]
    elif suffix == ".csv":
        try:
            rows = [dict(row) for row in csv.DictReader(io.StringIO(text, newline=""), restkey="more", restval="")]
        except csv.Error as error:
            raise UserError(f"{path}: {error}") from None
    elif suffix == ".jsonl":
        rows = []
        for number, line in enumerate(text.split("\n"), 1):
            try:
                row = json.loads(line) if line.strip() else None
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}, line {number}: {error}") from None
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
        raise UserError(f"{path} has no column {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}; it has {', '.join(map(str, rows[0]))}")
    if bad := [number for number, row in enumerate(rows, 1) if not isinstance(row.get(column), str)]:
        raise UserError(f"{path}: row {bad[0]} has no text in its column {column}")
    return rows, [row[column] for row in rows]


def write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), restval="")
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(path: Path, rows: list[dict]) -> None:
    checkpoint.write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


WRITERS = {".csv": write_csv, ".jsonl": write_jsonl}
