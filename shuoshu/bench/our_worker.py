"""Measures Shuoshu and the limits of the machine in a process of its own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from model import GPT, GPTConfig
from shuoshu.bench.measure import WARM_UP, Measure, rate_of, serve
from shuoshu.core.cli import parse
from shuoshu.core.device import (
    describe_machine,
    free_memory,
    peak_memory,
    setup_process,
    synchronize,
)
from shuoshu.core.distributed import Processes
from shuoshu.core.files import Lock
from shuoshu.core.settings import ModelSettings, TrainSettings
from shuoshu.generation.chat_model import ChatModel
from shuoshu.generation.sampling import SamplingParams
from shuoshu.models.cpu_kernels import MAX_CONTEXT
from shuoshu.models.weights import LoadedModel
from shuoshu.text.dataset import find_dataset, read_meta
from shuoshu.text.tokenizer import Tokenizer
from shuoshu.training.optimizers import Muon, orthogonalize
from shuoshu.training.run import build_run
from shuoshu.training.step import SkippedSteps, train_step
from shuoshu.training.trainer import Trainer


def start_worker(job: dict) -> tuple[dict, Measure]:
    device = setup_process(job["device"], job["threads"], tf32=True)
    rate = rate_of
    facts, own = {"train": training, "sample": sampling, "scale": growing}[job["kind"]](
        device, rate, **job["how"]
    )
    measures = {
        job["kind"]: own,
        "matrix": lambda seconds, dtype: rate(product(device, dtype), seconds),
        "memory": lambda seconds: rate(copy(device), seconds),
    }
    measures["peak"] = lambda: peak_memory(device)
    return {
        **describe_machine(device),
        "device": str(device),
        **facts,
    }, lambda what, **how: measures[what](**how)


def product(device: torch.device, dtype: str) -> Callable[[], float]:
    """A matrix product large enough for the best rate; returns floating-point operations."""
    n = 8192 if device.type == "cuda" else 2048
    a, b, c = (torch.ones(n, n, device=device, dtype=getattr(torch, dtype)) for _ in range(3))

    def step() -> float:
        torch.mm(a, b, out=c)
        synchronize(device)
        return 2.0 * n**3

    return step


def copy(device: torch.device) -> Callable[[], float]:
    """A copy far larger than any cache; returns bytes read and written."""
    a = torch.ones(1 << 28, device=device)
    b = torch.empty_like(a)

    def step() -> float:
        b.copy_(a)
        synchronize(device)
        return 2.0 * a.numel() * a.element_size()

    return step


def training(
    device: torch.device,
    rate: Callable[..., float],
    words: list[str],
    patience: float = math.inf,
) -> tuple[dict, Measure]:
    """Tokens/s of train.py's step on its own batches, after about `patience` seconds of warm-up."""
    settings = parse(TrainSettings, words, "")
    run = build_run(settings, Processes(), device, Lock(Path(settings.out_dir)))
    trainer, data, state = run.trainer, run.data, run.state
    skips = SkippedSteps(trainer, data, state, run.out_dir)
    trainer.raw.train()

    def step() -> float:
        train_step(trainer, data, state, skips)
        synchronize(device)
        state.step += 1
        return data.train.count_targets(
            (state.step - 1) * data.rows_per_step,
            data.rows_per_step,
            trainer.block_size,
            run.settings.seed,
        )

    began = time.perf_counter()
    for done in range(WARM_UP):
        if not done or time.perf_counter() - began < patience:
            step()
    total, inner = trainer.raw.count_parameters()
    facts = {
        "parameters": total,
        "inner": inner,
        "vocabulary": trainer.raw.config.vocab_size,
        "dtype": run.settings.dtype,
    }
    facts |= {
        "compiled": trainer.is_compiled,
        "flops_per_token": trainer.raw.flops_per_token(),
        "memory": peak_memory(device),
    }
    facts |= {
        "context": trainer.block_size,
        "rows": data.rows_per_step,
        "optimizer_flops": orthogonalising(trainer),
        "settings": asdict(run.settings),
    }
    return facts, lambda seconds: rate(step, seconds)


def orthogonalising(trainer: Trainer) -> int:
    """Floating-point operations of Muon's matrix products in one step, counted on meta tensors."""
    with FlopCounterMode(display=False) as counter:
        for muon in (optimizer for optimizer in trainer.optimizers if isinstance(optimizer, Muon)):
            for group in muon.param_groups:
                orthogonalize(
                    torch.empty(len(group["params"]), *group["params"][0].shape, device="meta"),
                    muon.dtype,
                )
    return counter.get_total_flops()


def growing(
    device: torch.device, rate: Callable[..., float], words: list[str], patience: float
) -> tuple[dict, Measure]:
    """Like `training`, but skipped if the estimated memory exceeds the free memory."""
    memory = {
        "estimate": estimated(parse(TrainSettings, words, "")),
        "available": free_memory(device),
    }
    if memory["estimate"] > memory["available"]:
        return memory, lambda seconds: 0.0
    small = (
        "--n_layer=1",
        "--n_head=1",
        "--n_embd=8",
        "--block_size=8",
        "--batch_size=1",
        "--compile=false",
    )
    training(
        device, rate, [*words, *small], patience=0.0
    )  # load libraries before memory is counted
    memory["before"] = peak_memory(device)
    facts, measure = training(device, rate, words, patience=patience)
    return {**facts, **memory}, measure


def estimated(settings: TrainSettings) -> float:
    """Estimated peak bytes of a training: per parameter, and per token for the backward pass."""
    vocab_size = -(-read_meta(find_dataset(settings.dataset))["vocab_size"] // 64) * 64
    with torch.device("meta"):
        model = GPT(
            GPTConfig(
                vocab_size=vocab_size,
                **{field.name: getattr(settings, field.name) for field in fields(ModelSettings)},
            )
        )
    total, inner = model.count_parameters()
    c = model.config
    of_parameters = (
        20 * total - 4 * inner
    )  # weights, gradients, Muon's one state or AdamW's two, copies in bf16
    attention = 2 * c.n_head * c.block_size if c.block_size <= MAX_CONTEXT else 0
    of_tokens = (
        settings.batch_size
        * c.block_size
        * (c.n_layer * (110 * c.n_embd + attention) + 16 * vocab_size)
    )
    return of_parameters + max(of_tokens, 10 * inner)  # Muon works when the backward pass is done


def sampling(
    device: torch.device,
    rate: Callable[..., float],
    data: str,
    shape: dict,
    tokens: int,
    dtype: str,
) -> tuple[dict, Measure]:
    """Tokens/s of sampling after prompts of half a block, with random weights."""
    tokenizer = Tokenizer.load(data)
    config = GPTConfig(vocab_size=-(-tokenizer.n_vocab // 64) * 64, **shape)
    voice = ChatModel(
        LoadedModel(GPT(config).to(device).eval(), tokenizer, 0, "text", 0), device, dtype
    )
    prompt = (tokenizer.encode("话") * config.block_size)[: config.block_size // 2]

    def texts(rows: int, count: int) -> float:
        params = SamplingParams(max_new_tokens=count)
        done = voice.complete([prompt] * rows, params, range(rows))
        return sum(len(text.ids) for text in done)

    texts(1, WARM_UP)
    weights = sum(
        p.numel() * p.element_size()
        for name, p in voice.model.named_parameters()
        if "embed_tokens" not in name
    )
    facts = {
        "vocabulary": config.vocab_size,
        "dtype": str(voice.model.lm_head.weight.dtype).removeprefix("torch."),
        "weights": weights,
    }
    return facts, lambda rows: rate(lambda: texts(rows, tokens), 0)


if __name__ == "__main__":
    serve(start_worker)
