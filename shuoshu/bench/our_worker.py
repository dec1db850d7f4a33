"""One measurement of Shuoshu, and of the machine's limit, in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from model import GPT, GPTConfig
from shuoshu.bench.worker import TEXT_BEGINNING, WARM_UP, rate_of, rate_of_steps, run_job
from shuoshu.core.cli import parse
from shuoshu.core.device import describe_machine, free_memory, peak_memory, synchronize
from shuoshu.core.distributed import Processes
from shuoshu.core.files import Lock
from shuoshu.core.settings import ModelSettings, TrainSettings
from shuoshu.generation.chat_model import ChatModel, generation_dtype
from shuoshu.generation.sampling import SamplingParams
from shuoshu.models.cpu_kernels import MAX_CONTEXT
from shuoshu.models.purpose import CONTINUES_TEXT
from shuoshu.models.weights import LoadedModel, convert_weights, load_model
from shuoshu.text.dataset import find_dataset, read_meta
from shuoshu.text.tokenizer_folder import load_tokenizer
from shuoshu.training.optimizers import Muon, orthogonalize
from shuoshu.training.run import Run, build_run
from shuoshu.training.schedule import RunLength
from shuoshu.training.start_model import VOCAB_MULTIPLE
from shuoshu.training.step import SkippedSteps, train_step

SMALLEST = ["--n_layer=1", "--n_head=1", "--n_embd=8", "--block_size=8", "--batch_size=1"]


# ---------------------------------------------------------------- training


def train(device: torch.device, argv: list[str], seconds: float) -> dict:
    """Tokens/s of train.py's step on its own batches, and the rate of matrix products."""
    run = start_run(device, argv)
    step = step_of(run)
    for _ in range(WARM_UP):
        step()
    figures = {"tokens": rate_of(step, seconds)}
    facts = {**describe_machine(device), **facts_of(run), "memory": peak_memory(device)}
    figures["matrix"] = rate_of(matrix_product(device, facts["dtype"]), seconds / 4)
    return {"facts": facts, "figures": figures}


def scale(device: torch.device, argv: list[str], seconds: float) -> dict:
    """Like `train`, with the memory that the training adds to that of the smallest one.

    No figures if the estimated memory exceeds the free memory. A warm-up ends after `seconds`.
    """
    memory = {"estimate": estimated_memory(argv), "available": free_memory(device)}
    if memory["estimate"] > memory["available"]:
        return {"facts": memory, "figures": {}}
    step_of(start_run(device, [*argv, *SMALLEST, "--compile=false"]))()  # loads libraries
    before = peak_memory(device)
    run = start_run(device, argv)
    step, start = step_of(run), time.perf_counter()
    for number in range(WARM_UP):
        if not number or time.perf_counter() - start < seconds:
            step()
    facts = {**facts_of(run), **memory, "optimizer_flops": muon_flops(run)}
    figures = {"tokens": rate_of(step, seconds), "memory": max(0, peak_memory(device) - before)}
    figures["matrix"] = rate_of(matrix_product(device, facts["dtype"]), seconds / 4)
    return {"facts": facts, "figures": figures}


def lora(device: torch.device, argv: list[str], steps: int) -> dict:
    """Tokens/s of train.py's step on questions, prompts included and padding not; peak memory."""
    run = start_run(device, argv)
    data, state, losses = run.data, run.state, []
    skips = SkippedSteps(run.trainer, data, state, run.out_dir)

    def step() -> float:
        rows = state.step * data.rows_per_step, data.rows_per_step
        losses.append(train_step(run.trainer, data, state, skips).item())  # waits for the device
        state.step += 1
        return int(data.train.lengths[data.train.entries(*rows, run.settings.seed)].sum())

    figures = {"tokens": rate_of_steps(step, steps), "memory": peak_memory(device)}
    facts = {**describe_machine(device), **facts_of(run), "losses": losses}
    return {"facts": facts, "figures": figures}


def start_run(device: torch.device, argv: list[str]) -> Run:
    """The run that train.py would start."""
    settings = parse(TrainSettings, argv, "")
    run = build_run(settings, Processes(), device, Lock(Path(settings.out_dir)), draws=False)
    run.state.plan = RunLength(run.settings, run.steps_per_epoch).new_plan(run.state.step)
    run.trainer.raw.train()
    return run


def step_of(run: Run) -> Callable[[], float]:
    """A function that does one step and returns its trained tokens."""
    trainer, data, state = run.trainer, run.data, run.state
    skips = SkippedSteps(trainer, data, state, run.out_dir)

    def step() -> float:
        train_step(trainer, data, state, skips)
        synchronize(trainer.device)
        first, rows = state.step * data.rows_per_step, data.rows_per_step
        state.step += 1
        return data.train.count_targets(first, rows, trainer.block_size, run.settings.seed)

    return step


def facts_of(run: Run) -> dict:
    """The run's model, optimizer and precision, for the report."""
    trainer, model = run.trainer, run.trainer.raw
    total, inner = model.count_parameters()
    return {
        "device": str(trainer.device),
        "dtype": run.settings.dtype,
        "compiled": trainer.is_compiled,
        "parameters": total,
        "inner": inner,
        "vocabulary": model.config.vocab_size,
        "context": trainer.block_size,
        "rows": run.data.rows_per_step,
        "flops_per_token": model.flops_per_token(),
        "settings": asdict(run.settings),
    }


def muon_flops(run: Run) -> int:
    """Floating-point operations of Muon's matrix products in one step, counted on meta tensors."""
    with FlopCounterMode(display=False) as counter:
        for muon in (o for o in run.trainer.optimizers if isinstance(o, Muon)):
            for group in muon.param_groups:
                shape = len(group["params"]), *group["params"][0].shape
                orthogonalize(torch.empty(shape, device="meta"), muon.dtype)
    return counter.get_total_flops()


def estimated_memory(argv: list[str]) -> float:
    """Estimated peak bytes of a training.

    Per parameter: weight, gradient, Muon's one state or AdamW's two, copies in bf16. Per token:
    what the backward pass needs. Muon's own 10 bytes are used after the backward pass.
    """
    settings = parse(TrainSettings, argv, "")
    vocab_size = padded(read_meta(find_dataset(settings.dataset))["vocab_size"])
    shape = {field.name: getattr(settings, field.name) for field in fields(ModelSettings)}
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_size=vocab_size, **shape))
    total, inner = model.count_parameters()
    c = model.config
    # Our CPU attention stores its probabilities for rows up to this length.
    attention = 2 * c.n_head * c.block_size if c.block_size <= MAX_CONTEXT else 0
    per_token = c.n_layer * (110 * c.n_embd + attention) + 16 * vocab_size
    tokens = settings.batch_size * c.block_size
    return 20 * total - 4 * inner + max(tokens * per_token, 10 * inner)


def padded(vocab_size: int) -> int:
    """The vocabulary of a model, as train.py rounds it up."""
    return -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


# ---------------------------------------------------------------- sampling


def sample(
    device: torch.device, data: str, shape: dict, tokens: int, dtype: str, batches: list[int]
) -> dict:
    """Tokens/s of sampling by batch size, with random weights after prompts of half a block."""
    tokenizer = load_tokenizer(data)
    gpt = GPT(GPTConfig(vocab_size=padded(tokenizer.n_vocab), **shape)).to(device).eval()
    convert_weights(gpt, generation_dtype(dtype, device))
    model = ChatModel(LoadedModel(gpt, tokenizer, 0, CONTINUES_TEXT))
    half = gpt.config.block_size // 2
    prompt = (tokenizer.encode("话") * half)[:half]

    figures = sampling_rates(model, prompt, batches, tokens)
    facts = {
        **describe_machine(device),
        "device": str(device),
        "dtype": str(gpt.lm_head.weight.dtype).removeprefix("torch."),
        "vocabulary": gpt.config.vocab_size,
    }
    if device.type == "cuda":  # each token reads all weights but the embedding
        named = gpt.named_parameters()
        weights = sum(p.numel() * p.element_size() for name, p in named if "embed" not in name)
        limit = rate_of(memory_copy(device), 1.0) / weights
        figures |= {f"{n} limit": n * limit for n in batches}
    return {"facts": facts, "figures": figures}


def generate(device: torch.device, base: str, tokens: int, dtype: str, batches: list[int]) -> dict:
    """Tokens/s of sampling by batch size, with the weights of a folder."""
    precision = generation_dtype(dtype, device)
    model = ChatModel(load_model(base, device, precision))
    prompt = model.tokenizer.encode(TEXT_BEGINNING)

    figures = sampling_rates(model, prompt, batches, tokens)
    facts = {**describe_machine(device), "device": str(device)}
    facts["dtype"] = str(precision).removeprefix("torch.")
    return {"facts": facts, "figures": figures}


def sampling_rates(
    model: ChatModel, prompt: list[int], batches: list[int], tokens: int
) -> dict[str, float]:
    """Sampled tokens/s by the number of texts that are written at once."""

    def sample_texts(rows: int, count: int) -> float:
        params = SamplingParams(max_new_tokens=count)
        return sum(len(c.ids) for c in model.complete([prompt] * rows, params, range(rows)))

    sample_texts(1, WARM_UP)
    return {str(n): rate_of(lambda n=n: sample_texts(n, tokens), 0) for n in batches}


# ---------------------------------------------------------------- the machine


def matrix_product(device: torch.device, dtype: str) -> Callable[[], float]:
    """A matrix product large enough for the best rate; returns floating-point operations."""
    n = 8192 if device.type == "cuda" else 2048
    a, b, c = (torch.ones(n, n, device=device, dtype=getattr(torch, dtype)) for _ in range(3))

    def step() -> float:
        torch.mm(a, b, out=c)
        synchronize(device)
        return 2.0 * n**3

    return step


def memory_copy(device: torch.device) -> Callable[[], float]:
    """A copy far larger than any cache; returns bytes read and written."""
    a = torch.ones(1 << 28, device=device)
    b = torch.empty_like(a)

    def step() -> float:
        b.copy_(a)
        synchronize(device)
        return 2.0 * a.numel() * a.element_size()

    return step


if __name__ == "__main__":
    jobs = {"train": train, "scale": scale, "lora": lora, "sample": sample, "generate": generate}
    run_job(jobs)
