"""One measurement of nanoGPT's model.py that its own commands can't make.

It trains with our precision and memory settings, samples, or scores with our evaluator.
It runs in a folder with nanoGPT's model.py, which `import model` finds before ours.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import model as nanogpt
from shuoshu.bench.worker import WARM_UP, rate_of, run_job
from shuoshu.core.device import autocast, peak_memory, pick_dtype, synchronize
from shuoshu.evaluation.loss import score
from shuoshu.text.dataset import TextDataset
from shuoshu.text.tokenizer_folder import load_tokenizer
from shuoshu.text.windows import text_windows

SEED = 1337


def train(
    device: torch.device,
    shape: dict,
    dtype: str,
    batch: tuple[int, int],
    compiled: bool,
    seconds: float,
) -> dict:
    """Tokens/s of its model and its optimizer under autocast: forward, backward, clipping, step.

    `batch`: rows of a micro-batch, and micro-batches of a step.
    """
    rows, micro_steps = batch
    model = nanogpt.GPT(nanogpt.GPTConfig(bias=False, **shape)).to(device)
    forward = torch.compile(model) if compiled else model
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), device.type)
    tokens = np.memmap("data/bench/train.bin", dtype=np.uint16, mode="r")
    block, draw = shape["block_size"], np.random.default_rng(SEED)

    def step() -> float:
        for _ in range(micro_steps):
            starts = draw.integers(len(tokens) - block, size=rows)
            windows = tokens[starts[:, None] + np.arange(block + 1)].astype(np.int64)
            ids = torch.from_numpy(windows).to(device)  # (rows, block + 1)
            with autocast(device, getattr(torch, dtype)):
                _, loss = forward(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
            (loss / micro_steps).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize(device)
        return rows * block * micro_steps

    for _ in range(WARM_UP):
        step()
    rate = rate_of(step, seconds)
    parameters = sum(p.numel() for p in model.parameters())
    facts = {"compiled": compiled, "parameters": parameters, "memory": peak_memory(device)}
    return {"facts": facts, "figures": {"tokens": rate}}


def sample(device: torch.device, shape: dict, tokens: int, dtype: str, batches: list[int]) -> dict:
    """Tokens/s of its generate() by batch size, with random weights after half a block."""
    model = nanogpt.GPT(nanogpt.GPTConfig(bias=False, **shape)).to(device).eval()
    precision, half = pick_dtype(dtype, device), shape["block_size"] // 2

    def sampled(rows: int, count: int) -> float:
        prompts = torch.randint(shape["vocab_size"], (rows, half), device=device)
        with torch.no_grad(), autocast(device, precision):
            model.generate(prompts, count, temperature=0.8, top_k=200)
        synchronize(device)
        return rows * count

    sampled(1, WARM_UP)
    figures = {str(n): rate_of(lambda n=n: sampled(n, tokens), 0) for n in batches}
    return {"facts": {"dtype": str(precision).removeprefix("torch.")}, "figures": figures}


def score_checkpoints(device: torch.device, data: str, checkpoints: list[str]) -> dict:
    """Bits per byte of its checkpoints on our validation text, by our evaluator, in fp32."""
    val, end = TextDataset(Path(data), "val"), load_tokenizer(data).end
    results = []
    for path in checkpoints:
        saved = torch.load(path, map_location=device, weights_only=True)
        model = nanogpt.GPT(nanogpt.GPTConfig(**saved["model_args"])).to(device)
        tensors = {name.removeprefix("_orig_mod."): t for name, t in saved["model"].items()}
        model.load_state_dict(tensors)

        def losses(ids: torch.Tensor, targets: torch.Tensor, reduction: str, model=model):
            logits, _ = model(ids, targets.clamp(min=0))  # without targets: the last logits only
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)

        windows = text_windows(val.tokens, end, saved["model_args"]["block_size"], 16)
        results.append(score(losses, model, windows, end).bits_per(val.bytes))
    return {"bits_per_byte": results}


if __name__ == "__main__":
    run_job({"train": train, "sample": sample, "score": score_checkpoints})
