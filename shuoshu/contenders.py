"""Ours, and the machine's own limits, each measured in a process of its own: python -m shuoshu.contenders."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from model import GPT, GPTConfig
from shuoshu import batches, runtime
from shuoshu.batches import IGNORE
from shuoshu.checkpoint import Loaded, load_model
from shuoshu.commandline import parse
from shuoshu.generate import Sampling, complete
from shuoshu.loop import batches_from, train_step
from shuoshu.run import Run
from shuoshu.scoring import score, text_windows
from shuoshu.settings import TrainSettings
from shuoshu.tokenizer import Tokenizer
from shuoshu.voice import Voice
from shuoshu.worker import WARM_UP, Measure, rate_of, rate_of_one, serve


def begin(job: dict) -> tuple[dict, Measure]:
    runtime.keep_memory()
    torch.set_float32_matmul_precision("high")
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    kinds = {"machine": machine, "train": training, "sample": sampling, "encode": encoding, "score": scoring}
    return kinds[job["kind"]](runtime.pick_device(job["device"]), **job["how"])


def machine(device: torch.device, dtype: str) -> tuple[dict, Measure]:
    """FLOP/s of a large matrix product, bytes/s of a large copy."""
    n, kind = 8192 if device.type == "cuda" else 2048, runtime.pick_dtype(dtype, device)
    a, b, c = (torch.ones(n, n, device=device, dtype=kind) for _ in range(3))
    facts = {**runtime.describe(device), "device": str(device), "dtype": str(kind).removeprefix("torch."), "matrix": n}

    def product() -> float:
        torch.mm(a, b, out=c)
        runtime.synchronise(device)
        return 2.0 * n**3

    def copy() -> float:
        c.copy_(a)
        runtime.synchronise(device)
        return 2.0 * a.numel() * a.element_size()

    return facts, lambda what, seconds: rate_of({"matrix": product, "memory": copy}[what], seconds)


def training(device: torch.device, words: list[str], pad_to: int | None) -> tuple[dict, Measure]:
    """Tokens/s of train.py's own step on its own batches, or on rows padded to one width."""
    run = Run(parse(TrainSettings, words, ""), runtime.Processes(), device)
    counts: list[float] = []
    feed = counted(batches_from(run, 0), counts, pad_to)
    run.raw.train()

    def step() -> float:
        counts.clear()
        train_step(run, feed)
        runtime.synchronise(device)
        run.state.step += 1
        return statistics.fmean(counts)

    for _ in range(WARM_UP):
        step()
    total, inner = run.raw.count_parameters()
    facts = {"parameters": total, "inner": inner, "vocabulary": run.raw.config.vocab_size, "dtype": run.settings.dtype}
    facts |= {"flops_per_token": run.raw.flops_per_token(), "compiled": run.model is not run.raw}
    return facts, lambda seconds: {**rate_of(step, seconds), "memory": runtime.peak_memory(device)}


def counted(feed: Iterator[tuple[Tensor, Tensor, int]], counts: list[float], pad_to: int | None) -> Iterator[tuple[Tensor, Tensor, int]]:
    """The same batches, padded where asked; the step's number of trained tokens goes into `counts`."""
    for ids, targets, count in feed:
        counts.append(count)
        missing = max(0, (pad_to or 0) - ids.shape[1])
        yield F.pad(ids, (0, missing)), F.pad(targets, (0, missing), value=IGNORE), count


def sampling(device: torch.device, data: str, shape: dict, rows: int, tokens: int, dtype: str) -> tuple[dict, Measure]:
    """Tokens/s of rows of text after prompts of half a block, as sample.py makes them; the weights are random."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.load(data)
    config = GPTConfig(vocab_size=-(-tokenizer.n_vocab // 64) * 64, **shape)
    voice = Voice(Loaded(GPT(config).to(device).eval(), tokenizer, 0, 0), device, dtype)
    prompts = [(tokenizer.encode("话") * config.block_size)[: config.block_size // 2]] * rows

    def texts() -> float:
        done = complete(voice.model, tokenizer, prompts, Sampling(max_new_tokens=tokens), range(rows), mask=voice.mask)
        return sum(len(text.ids) for text in done)

    complete(voice.model, tokenizer, prompts, Sampling(max_new_tokens=WARM_UP), range(rows), mask=voice.mask)
    weights = sum(p.numel() * p.element_size() for name, p in voice.model.named_parameters() if "embed_tokens" not in name)
    return {"dtype": str(next(voice.model.parameters()).dtype), "weights": weights}, partial(rate_of_one, texts)


def encoding(device: torch.device, data: str, file: str) -> tuple[dict, Measure]:
    """Bytes/s of tiktoken by itself, one thread, the text in pieces as prepare.py has them."""
    tokenizer = Tokenizer.load(data)
    text = Path(file).read_text(encoding="utf-8")
    pieces = [text[start : start + 40_000] for start in range(0, len(text), 40_000)]
    size = len(text.encode())

    def encode() -> float:
        for piece in pieces:
            tokenizer.encode_to_numpy(piece)
        return size

    return {"bytes": size}, partial(rate_of_one, encode)


def scoring(device: torch.device, data: str) -> tuple[dict, Measure]:
    """Bits per byte of the validation text by the model in a folder, in float32."""
    val = batches.TokenFile(Path(data), "val")

    def measure(model: str, block: int) -> dict:
        gpt, tokenizer, *_ = load_model(model, device)
        scored = score(gpt, gpt, text_windows(val.tokens, tokenizer.end, block, 16), tokenizer.end, torch.float32)
        return {"bits_per_byte": scored.bits_per(val.bytes), "loss": scored.loss}

    return {"bytes": val.bytes}, measure


if __name__ == "__main__":
    serve(begin)
