"""Sampling: KV-cached, batched, streaming; always valid UTF-8, and the same text alone or in a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model import GPT, KVCache
from shuoshu.generation.cpu_decoder import NextTokenFn, next_token_fn
from shuoshu.generation.utf8 import WHOLE, TextStream, Utf8Mask
from shuoshu.text.tokenizer import Tokenizer


@dataclass
class SamplingParams:
    max_new_tokens: int = 300
    temperature: float = 0.8  # 0: greedy
    top_k: int | None = 200
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    keeps_prompt: bool = False  # when the block is full, the prompt is read again before the last half of what followed it


@dataclass
class Completion:
    text: str
    ids: list[int]  # the end token left out
    reason: str  # "end": the model's own end, "stop": a stop string, "length", "interrupted"


class StopStringStream:
    """The text of one row as it grows: decodes, watches for stop strings, holds back what may be the start of one."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._stream, self._stop = TextStream(tokenizer), [s for s in stop if s]
        self.text, self.told, self.ids, self.reason = "", 0, [], ""

    def push(self, token: int) -> str:
        """Takes a token, returns the new text that is certain to stay."""
        self.ids.append(token)
        self.text += self._stream.push(token)
        found = [
            at for s in self._stop if (at := self.text.find(s, max(0, self.told - len(s)))) >= 0
        ]
        if found:
            self.text, self.reason = self.text[: min(found)], "stop"
        return self._tell(0 if found else self._held_back())

    def finish(self, reason: str) -> str:
        self.reason = self.reason or reason
        return self._tell(0)

    def _tell(self, held: int) -> str:
        upto = max(self.told, len(self.text) - held)
        new, self.told = self.text[self.told : upto], upto
        return new

    def _held_back(self) -> int:
        """The longest end of the text that begins a stop string."""
        return max(
            (n for s in self._stop for n in range(1, len(s)) if self.text.endswith(s[:n])),
            default=0,
        )


@dataclass
class Context:
    """All ids of a row so far, of which the first `kept` are read again whenever the block is full."""

    ids: list[int]
    kept: int

    def fitting(self, block: int) -> list[int]:
        """All of it, or what of it is read again: its last half block, or the kept ones and the last half of the room beside them."""
        if len(self.ids) < block:
            return self.ids
        kept = self.kept if self.kept <= block * 3 // 4 else 0
        return self.ids[:kept] + self.ids[max(kept, len(self.ids) - (block - kept) // 2) :]


@torch.inference_mode()
def stream(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingParams,
    seeds: Sequence[int],
    mask: Utf8Mask | None = None,
    should_stop: Callable[[], object] = lambda: False,
    reader: NextTokenFn | None = None,
) -> Iterator[list[str] | list[Completion]]:
    """Continues each prompt (ids of whole characters); yields the rows' new texts step by step, at last a list of Finished.

    Row i draws from a generator seeded with seeds[i]: its text doesn't depend on the other rows. A reader reads for the model as it is now.
    """
    device, dtype, block = (
        model.lm_head.weight.device,
        model.lm_head.weight.dtype,
        model.config.block_size,
    )
    mask = mask or Utf8Mask(tokenizer, model.config.vocab_size, device)
    rows = range(len(prompts))
    histories = [
        Context(list(prompt) or [tokenizer.end], len(prompt) if sampling.keeps_prompt else 0)
        for prompt in prompts
    ]
    writers = [StopStringStream(tokenizer, sampling.stop) for _ in rows]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    state = torch.full((len(prompts),), WHOLE, device=device)
    seen = None
    if sampling.repetition_penalty != 1:
        seen = torch.zeros(len(prompts), model.config.vocab_size, dtype=torch.bool, device=device)
        for row in rows:
            seen[row, histories[row].ids] = True
    cache = KVCache(
        model.config, len(prompts), device, torch.float32 if device.type == "cpu" else dtype
    )
    logits = prefill(model, cache, [history.fitting(block) for history in histories])
    reader = reader or next_token_fn(model)

    step, interrupted = 0, False
    while not all(writer.reason for writer in writers):
        draws = torch.stack([torch.rand((), generator=g) for g in generators]).to(device)
        if seen is not None:
            logits = penalise(logits, seen, sampling.repetition_penalty)
        allowed = logits.masked_fill(mask.forbidden[state], -torch.inf)
        if step >= sampling.max_new_tokens or interrupted:  # only to let a character finish
            allowed = allowed.masked_fill(
                mask.may_not_finish[state] & (state != WHOLE)[:, None], -torch.inf
            )
        tokens = pick(allowed, sampling, draws)
        state = mask.after[state, tokens]
        if seen is not None:
            seen.scatter_(1, tokens[:, None], True)
        news, whole = [""] * len(prompts), (state == WHOLE).tolist()
        interrupted = interrupted or bool(should_stop())
        for row, token in enumerate(tokens.tolist()):
            if writers[row].reason:
                continue
            histories[row].ids.append(token)
            if token == tokenizer.end:
                news[row] = writers[row].finish("end")
                continue
            news[row] = writers[row].push(token)
            if (
                whole[row]
                and (step + 1 >= sampling.max_new_tokens or interrupted)
                and not writers[row].reason
            ):
                news[row] += writers[row].finish("interrupted" if interrupted else "length")
        yield news
        step += 1
        if not all(writer.reason for writer in writers):
            logits = advance(model, reader, cache, tokens, histories)
    yield [Completion(writer.text, writer.ids, writer.reason) for writer in writers]


def complete(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingParams,
    seeds: Sequence[int],
    **more: object,
) -> list[Completion]:
    """The finished texts alone."""
    *_, finished = stream(model, tokenizer, prompts, sampling, seeds, **more)
    return finished


def complete_many(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingParams,
    seeds: Sequence[int],
    rows: int,
    should_stop: Callable[[], object] = lambda: False,
    tell: Callable[[int], None] = lambda done: None,
) -> list[Completion | None]:
    """The finished texts of many prompts, `rows` of like length side by side; None for what a stop left undone."""
    mask, reader = (
        Utf8Mask(tokenizer, model.config.vocab_size, model.lm_head.weight.device),
        next_token_fn(model),
    )
    results: list[Completion | None] = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
    for start in range(0, len(order), rows):
        part = order[start : start + rows]
        texts, own = [prompts[n] for n in part], [seeds[n] for n in part]
        finished = complete(
            model,
            tokenizer,
            texts,
            sampling,
            own,
            mask=mask,
            should_stop=should_stop,
            reader=reader,
        )
        if should_stop():
            break
        for n, result in zip(part, finished, strict=True):
            results[n] = result
        tell(start + len(part))
    return results


def prefill(model: GPT, cache: KVCache, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Reads ragged prompts, padded on the right; logits (B, V) after each one's last token."""
    lengths = [len(prompt) for prompt in prompts]
    ids = torch.zeros(len(prompts), max(lengths), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.as_tensor(prompt)
    logits = model.next_logits(ids.to(cache.k.device), [length - 1 for length in lengths], cache)
    cache.lengths = lengths  # what the padding wrote lies beyond and is written over
    return logits


def advance(
    model: GPT, reader: NextTokenFn, cache: KVCache, tokens: Tensor, histories: Sequence[Context]
) -> Tensor:
    """One token a row → logits (B, V). Rows whose block is full read the last half of it again first."""
    block = model.config.block_size
    full = [row for row, length in enumerate(cache.lengths) if length == block]
    if not full:
        return reader(tokens[:, None], cache)
    logits = torch.empty(len(tokens), model.config.vocab_size, device=cache.k.device)
    if len(full) < len(tokens):
        for row in full:
            cache.lengths[row] = (
                0  # so that the others can go on; its own position 0 is written over below
            )
        logits = reader(tokens[:, None], cache)
    aside = KVCache(model.config, len(full), cache.k.device, cache.k.dtype)
    logits[full] = prefill(model, aside, [histories[row].fitting(block) for row in full])
    cache.k[:, full], cache.v[:, full] = aside.k, aside.v
    for row, length in zip(full, aside.lengths, strict=True):
        cache.lengths[row] = length
    return logits


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """The logits with what stands in the context made less likely, whatever their sign."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def pick(logits: Tensor, sampling: SamplingParams, draws: Tensor) -> Tensor:
    """One token a row: temperature, then top-k, top-p and min-p, then the token at which the probabilities pass draws[b]."""
    if sampling.temperature == 0 or sampling.top_k == 1:
        return logits.argmax(dim=-1)
    logits = (
        logits - logits.amax(dim=-1, keepdim=True)
    ) / sampling.temperature  # first the maximum: a tiny temperature can't overflow
    order = None
    if sampling.top_k and sampling.top_k < logits.shape[-1]:
        logits, order = largest(logits, sampling.top_k)
    elif sampling.top_p < 1:
        logits, order = logits.sort(descending=True)
    p = logits.softmax(dim=-1)
    if sampling.top_p < 1:
        p = p.masked_fill(
            p.cumsum(dim=-1) - p >= max(sampling.top_p, 1e-9), 0
        )  # the first one always stays
    if sampling.min_p > 0:
        p = p.masked_fill(p < sampling.min_p * p.amax(dim=-1, keepdim=True), 0)
    sums = p.cumsum(dim=-1)
    total = sums[:, -1:]
    threshold = torch.minimum(
        draws[:, None] * total, torch.nextafter(total, torch.zeros_like(total))
    )
    at = torch.searchsorted(sums, threshold, right=True)
    return (order.gather(1, at) if order is not None else at)[:, 0]


def largest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row, in order, and where they stand; on a CPU NumPy finds them in a third of the time."""
    if logits.device.type != "cpu":
        return logits.topk(count)
    at = torch.from_numpy(np.argpartition(logits.numpy(), -count)[:, -count:])
    values, order = logits.gather(1, at).sort(descending=True)
    return values, at.gather(1, order)
