"""Measures nanoGPT's model.py where its own commands don't reach: training with our precision and
memory settings, sampling, and scoring by our evaluator.

Run as a script in a folder with a copy of nanoGPT's model.py: `from model import …` imports that
one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path[0] = str(Path.cwd())  # nanoGPT's model.py comes first
sys.path.append(str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from model import GPT, GPTConfig  # noqa: E402
from shuoshu.bench.measure import WARM_UP, Measure, rate_of, serve  # noqa: E402
from shuoshu.core.device import autocast, peak_memory, pick_dtype, setup_process, synchronize  # noqa: E402
from shuoshu.evaluation.loss import score  # noqa: E402
from shuoshu.text.dataset import TextDataset, text_windows  # noqa: E402
from shuoshu.text.tokenizer import Tokenizer  # noqa: E402


def start_worker(job: dict) -> tuple[dict, Measure]:
    device = setup_process(job["device"], job["threads"], tf32=True, tuned_malloc=job["tamed"])
    facts, measure = {"train": training, "sample": sampling, "score": scoring}[job["kind"]](
        device, rate_of, **job["how"]
    )
    return facts, lambda what, **how: measure(**how)


def training(
    device: torch.device,
    rate: Callable[..., float],
    shape: dict,
    dtype: str,
    rows: int,
    micro_steps: int,
    compiled: bool,
) -> tuple[dict, Measure]:
    """Tokens/s of its model and its optimiser under autocast: forward, backward, clipping, step."""
    model = GPT(GPTConfig(bias=False, **shape)).to(device)
    forward = torch.compile(model) if compiled else model
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), device.type)
    tokens, block = (
        np.memmap("data/bench/train.bin", dtype=np.uint16, mode="r"),
        shape["block_size"],
    )
    draw = np.random.default_rng(1337)

    def step() -> float:
        for _ in range(micro_steps):
            at = draw.integers(len(tokens) - block, size=rows)[:, None] + np.arange(block + 1)
            both = torch.from_numpy(tokens[at].astype(np.int64)).to(device)
            with autocast(device, getattr(torch, dtype)):
                _, loss = forward(both[:, :-1].contiguous(), both[:, 1:].contiguous())
            (loss / micro_steps).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize(device)
        return rows * block * micro_steps

    for _ in range(WARM_UP):
        step()
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "memory": peak_memory(device),
    }
    return facts, lambda seconds: rate(step, seconds)


def sampling(
    device: torch.device, rate: Callable[..., float], shape: dict, tokens: int, dtype: str
) -> tuple[dict, Measure]:
    """Tokens/s of its generate() after prompts of half a block, with random weights."""
    model = GPT(GPTConfig(bias=False, **shape)).to(device).eval()
    kind = pick_dtype(dtype, device)

    def generate(rows: int, count: int) -> float:
        prompts = torch.randint(
            shape["vocab_size"], (rows, shape["block_size"] // 2), device=device
        )
        with torch.no_grad(), autocast(device, kind):
            model.generate(prompts, count, temperature=0.8, top_k=200)
        synchronize(device)
        return rows * count

    generate(1, WARM_UP)
    return {"dtype": str(kind).removeprefix("torch.")}, lambda rows: rate(
        lambda: generate(rows, tokens), 0
    )


def scoring(device: torch.device, rate: Callable[..., float], data: str) -> tuple[dict, Measure]:
    """Bits per byte of one of its checkpoints on our validation text, by our evaluator, in fp32."""
    val, end = TextDataset(Path(data), "val"), Tokenizer.load(data).end

    def measure(checkpoint: str) -> float:
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        model = GPT(GPTConfig(**saved["model_args"])).to(device)
        model.load_state_dict(
            {name.removeprefix("_orig_mod."): tensor for name, tensor in saved["model"].items()}
        )

        def losses(ids: torch.Tensor, targets: torch.Tensor, reduction: str) -> torch.Tensor:
            logits, _ = model(
                ids, targets.clamp(min=0)
            )  # only with targets does it return all logits
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)

        windows = text_windows(val.tokens, end, saved["model_args"]["block_size"], 16)
        return score(losses, model, windows, end, torch.float32).bits_per(val.bytes)

    return {"bytes": val.bytes}, measure


if __name__ == "__main__":
    serve(start_worker)
