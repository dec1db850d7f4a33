"""nanoGPT's model.py where its own commands don't reach: bf16 and memory as ours has them, generating, our evaluator.

Run as a script in a folder that holds a copy of the peer's model.py: `from model import …` is the peer's here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path[0] = str(Path.cwd())  # the peer's model.py comes first, and our package is found as well
sys.path.append(str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from model import GPT, GPTConfig
from shuoshu.bench.measure import WARM_UP, Measure, rate_of, serve
from shuoshu.core.device import autocast, peak_memory, pick_dtype, setup_process, synchronize
from shuoshu.evaluation.loss import score
from shuoshu.text.dataset import TextDataset, text_windows
from shuoshu.text.tokenizer import Tokenizer


def start_worker(job: dict) -> tuple[dict, Measure]:
    device = setup_process(job["device"], job["threads"], job["tamed"])
    facts, measure = {"train": training, "sample": sampling, "score": scoring}[job["kind"]](
        device, partial(rate_of, clock=job["clock"]), **job["how"]
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
    """Tokens/s of its generate after prompts of half a block; the weights are random."""
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
    """Bits per byte of our validation text by one of its checkpoints, through our evaluator, in float32."""
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
            )  # with targets it gives the logits of every position
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)

        windows = text_windows(val.tokens, end, saved["model_args"]["block_size"], 16)
        return score(losses, model, windows, end, torch.float32).bits_per(val.bytes)

    return {"bytes": val.bytes}, measure


if __name__ == "__main__":
    serve(start_worker)
