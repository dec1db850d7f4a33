"""One measurement of transformers and PEFT, in a process of its own.

It trains an adapter as transformers' Trainer does, or writes texts by generate().
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import peft
import torch
import transformers
from torch import nn

from shuoshu.bench.worker import TEXT_BEGINNING, WARM_UP, rate_of, rate_of_steps, run_job
from shuoshu.core.cli import parse
from shuoshu.core.device import autocast, peak_memory, synchronize
from shuoshu.core.settings import TrainSettings
from shuoshu.sft.dataset import QuestionDataset
from shuoshu.text.dataset import IGNORE, find_dataset

LIBRARY_VERSIONS = {"transformers": transformers.__version__, "peft": peft.__version__}
Rows = tuple[np.ndarray, int]  # the numbers of a batch's rows, and the width to pad them to


# ---------------------------------------------------------------- training


def train_adapter(
    device: torch.device, argv: list[str], dtype: str, order: str, steps: int
) -> dict:
    """Tokens/s of training an adapter with PEFT: forward, backward, clipping, AdamW.

    `argv` is that of our train.py; `order` is a key of ORDERS. As in model(input_ids, labels=…),
    all positions get logits. Rows are padded at the end, which needs no attention mask.
    """
    settings, precision = parse(TrainSettings, argv, ""), getattr(torch, dtype)
    model = adapted_model(settings, precision).to(device).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=0, fused=True)
    data = QuestionDataset(find_dataset(settings.dataset), "train", settings.batch_size)
    batches, losses = ORDERS[order](data, settings), []

    def step() -> float:
        numbers, width = next(batches)
        ids, labels = (torch.from_numpy(x).to(device) for x in padded_rows(data, numbers, width))
        with autocast(device, precision):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())  # waits for the device
        return int(data.lengths[numbers].sum())

    figures = {"tokens": rate_of_steps(step, steps), "memory": peak_memory(device)}
    return {"facts": {**LIBRARY_VERSIONS, "order": order, "losses": losses}, "figures": figures}


def adapted_model(settings: TrainSettings, dtype: torch.dtype) -> nn.Module:
    """The model of init_from with PEFT's adapter. In bfloat16, the adapter stays in float32."""
    base = transformers.AutoModelForCausalLM.from_pretrained(settings.init_from, dtype=dtype)
    config = peft.LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=list(settings.target_names()),
        use_rslora=settings.lora_rslora,
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(base, config)


def our_batches(data: QuestionDataset, settings: TrainSettings) -> Iterator[Rows]:
    """The batches of our train.py: rows of similar length, padded to one of a few widths."""
    size, first = settings.batch_size, 0
    while True:
        place = first, size, 0, settings.seed
        ids, _ = data.rows(*place)
        yield data.row_ids(*place), ids.shape[1] + 1  # ids lack the last token
        first += size


def random_batches(data: QuestionDataset, settings: TrainSettings) -> Iterator[Rows]:
    """Rows in random order, padded to the longest of the batch."""
    draw = np.random.default_rng(settings.seed)
    while True:
        order = draw.permutation(len(data))
        for first in range(0, len(order) - settings.batch_size + 1, settings.batch_size):
            numbers = order[first : first + settings.batch_size]
            yield numbers, int(data.lengths[numbers].max())


ORDERS = {"ours": our_batches, "random": random_batches}


def padded_rows(
    data: QuestionDataset, numbers: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """(ids, labels) of these rows, each (rows, width)."""
    ids = np.zeros((len(numbers), width), np.int64)
    labels = np.full((len(numbers), width), IGNORE, np.int64)
    for place, number in enumerate(numbers):
        row, mask = data.row(number)
        ids[place, : len(row)] = row
        labels[place, : len(row)] = np.where(mask == 1, row, IGNORE)
    return ids, labels


# ---------------------------------------------------------------- sampling


def generate(device: torch.device, base: str, tokens: int, dtype: str, batches: list[int]) -> dict:
    """Tokens/s of generate() by batch size, with a folder's weights. No text ends early."""
    precision = getattr(torch, dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=precision)
    model = model.to(device).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    prompt = torch.tensor([tokenizer.encode(TEXT_BEGINNING)], device=device)

    def generated(rows: int, count: int) -> float:
        ids = prompt.repeat(rows, 1)
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            pad_token_id=0,
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=True,
            temperature=0.8,
            top_k=200,
        )
        synchronize(device)
        return rows * count

    generated(1, WARM_UP)
    figures = {str(n): rate_of(lambda n=n: generated(n, tokens), 0) for n in batches}
    return {"facts": {**LIBRARY_VERSIONS, "dtype": dtype}, "figures": figures}


if __name__ == "__main__":
    run_job({"train": train_adapter, "generate": generate})
