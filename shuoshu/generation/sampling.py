"""Batched, streaming sampling with a KV cache. A text is the same alone and in a batch.

Read first: `TextGenerator.stream` (the loop), `GrowingText.add` (where a text ends) and
`TokenSampler.draw` (how a token is chosen).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from model import GPT, KVCache
from shuoshu.generation.cpu_decoder import NextTokenFn, next_token_fn
from shuoshu.generation.utf8 import WHOLE, TextStream, Utf8Mask
from shuoshu.text.tokenizer import Tokenizer

MAX_KEPT_PROMPT = 3 / 4  # of the block; a longer prompt is not kept when the block is full
MIN_TOP_P = 1e-9  # top_p=0 means the most probable token
MAX_COMPLETION = 3  # tokens past the limit: a character has four bytes at most
MIN_TEMPERATURE = 1e-6  # a lower one is greedy; float32 would round 1e-46 to 0 and divide by it


@dataclass
class SamplingParams:
    max_new_tokens: int = 300
    temperature: float = 0.8  # below MIN_TEMPERATURE: greedy
    top_k: int | None = 200
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()  # the text ends before the first of these strings
    keeps_prompt: bool = False  # when the block is full, keep the prompt in the context


@dataclass
class Completion:
    text: str
    ids: list[int]  # without the end token
    reason: str  # "end": the end token, "stop": a stop string, "length" or "interrupted"


@dataclass
class TextEvent:
    """What one step did to one row."""

    new_text: str
    finished: Completion | None = None  # set from the row's last step on


def never_stop() -> bool:
    return False


class TextGenerator:
    """A model with its current weights, its tokenizer and the UTF-8 mask.

    During training the weights change: make a new one for each evaluation. `base` is the generator
    of the same model without its adapters: on a CPU both share one copy of the packed weights.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, base: TextGenerator | None = None) -> None:
        self.model, self.tokenizer, self.base = model, tokenizer, base
        self.block = model.config.block_size
        self.longest_kept = int(self.block * MAX_KEPT_PROMPT)  # tokens of a prompt
        self.mask = Utf8Mask(tokenizer, model.config.vocab_size, model.lm_head.weight.device)

    @cached_property
    def next_token(self) -> NextTokenFn:
        """Tokens (B, 1) → logits (B, V). Made at first use, because it may copy the weights."""
        return next_token_fn(self.model, self.base and self.base.next_token)

    @torch.inference_mode()
    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        seeds: Sequence[int],
        should_stop: Callable[[], object] = never_stop,
    ) -> Iterator[list[TextEvent]]:
        """Continues each prompt (ids of whole characters); yields one event per row and step.

        Row i draws its random numbers from seeds[i], so its text doesn't depend on the other rows.
        `should_stop` is called once per step. When it is true, each row ends with its current
        character.
        """
        rows = [GrowingText(self.tokenizer, prompt, params) for prompt in prompts]
        contexts = [row.context for row in rows]
        specials = list(self.tokenizer.specials.values())
        sampler = TokenSampler(self.mask, params, seeds, contexts, specials)
        read = [context.fitting(self.block) for context in contexts]
        room = max(map(len, read)) + params.max_new_tokens + MAX_COMPLETION
        cache = empty_cache(self.model, len(rows), room)
        logits = prefill(self.model, cache, read)
        limit = None  # why texts have to end now
        for count in itertools.count(1):  # tokens per row, the next one included
            # Past the limit, only rows inside a character go on, and only to complete it.
            tokens, states = sampler.draw(logits, only_finish=limit is not None)
            if limit == "interrupted" or should_stop():
                limit = "interrupted"
            elif count >= params.max_new_tokens:
                limit = "length"
            # One copy to the host per step: it waits for the device.
            drawn = zip(*torch.stack((tokens, states)).tolist(), strict=True)
            yield [
                row.add(token, limit if state == WHOLE else None)
                for row, (token, state) in zip(rows, drawn, strict=True)
            ]
            if all(row.finished for row in rows):
                return
            logits = self.decode_one_token(tokens, cache, contexts)

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        seeds: Sequence[int],
        should_stop: Callable[[], object] = never_stop,
    ) -> list[Completion]:
        """The finished texts of `stream`."""
        *_, last = self.stream(prompts, params, seeds, should_stop)
        return [event.finished for event in last]

    def complete_many(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        seeds: Sequence[int],
        rows: int,
        should_stop: Callable[[], object] = never_stop,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Completion | None]:
        """The finished texts of any number of prompts, in batches of `rows` of similar length.

        `progress` gets the number of prompts done after each batch. A batch that `should_stop`
        interrupts and those after it are None.
        """
        results: list[Completion | None] = [None] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
        for start in range(0, len(order), rows):
            batch = order[start : start + rows]
            completions = self.complete(
                [prompts[n] for n in batch], params, [seeds[n] for n in batch], should_stop
            )
            if should_stop():
                break
            for n, completion in zip(batch, completions, strict=True):
                results[n] = completion
            progress(start + len(batch))
        return results

    def decode_one_token(
        self, tokens: Tensor, cache: KVCache, contexts: Sequence[Context]
    ) -> Tensor:
        """Reads one token per row, which is already in its context; returns logits (B, V).

        A row whose block is full is prefilled again with the ids that `Context.fitting` selects.
        This makes room for new tokens.
        """
        full = [row for row, length in enumerate(cache.lengths) if length == self.block]
        if not full:
            return self.next_token(tokens[:, None], cache)
        logits = torch.empty(len(tokens), self.model.config.vocab_size, device=cache.k.device)
        if len(full) < len(tokens):
            # All rows are read together. A full row has no room for the token, so its length is
            # set to 0; what this call writes at position 0 is overwritten below.
            for row in full:
                cache.lengths[row] = 0
            logits = self.next_token(tokens[:, None], cache)
        prompts = [contexts[row].fitting(self.block) for row in full]
        room = max(map(len, prompts))
        refilled = empty_cache(self.model, len(full), room)
        logits[full] = prefill(self.model, refilled, prompts)
        cache.k[:, full, :, :room], cache.v[:, full, :, :room] = refilled.k, refilled.v
        for row, length in zip(full, refilled.lengths, strict=True):
            cache.lengths[row] = length
        return logits


def empty_cache(model: GPT, rows: int, positions: int) -> KVCache:
    """A cache in the precision of attention: the weights' or autocast's, but float32 on a CPU.

    It has room for so many positions, but not for more than a block.
    """
    weight = model.lm_head.weight
    kind, dtype = weight.device.type, weight.dtype
    if kind == "cpu":
        dtype = torch.float32  # CpuDecoder's
    elif torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    return KVCache(model.config, rows, positions, weight.device, dtype)


def prefill(model: GPT, cache: KVCache, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Reads prompts of any lengths into an empty cache; logits (B, V) after each one's last token.

    Prompts are padded on the right. Causal attention hides the padding from the prompt, and later
    tokens overwrite the padding's keys and values.
    """
    lengths = [len(prompt) for prompt in prompts]
    ids = torch.zeros(len(prompts), max(lengths), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.as_tensor(prompt)
    logits = model.next_logits(ids.to(cache.k.device), [length - 1 for length in lengths], cache)
    cache.lengths = lengths
    return logits


# ---------------------------------------------------------------- one text


@dataclass
class Context:
    """The ids of a row so far, prompt and new tokens."""

    ids: list[int]
    kept: int  # the first `kept` ids, the prompt, stay in the context when the block is full

    def fitting(self, block: int) -> list[int]:
        """The ids to prefill: all if they leave room in the block, else a shorter context.

        The shorter context is the kept prompt and the newest ids that fill half of the remaining
        block. A prompt of more than three quarters of the block is not kept.
        """
        if len(self.ids) < block:
            return self.ids
        kept = self.kept if self.kept <= block * MAX_KEPT_PROMPT else 0
        return self.ids[:kept] + self.ids[max(kept, len(self.ids) - (block - kept) // 2) :]


class GrowingText:
    """One row of a batch: its context, its new tokens, its text, and how it ended."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], params: SamplingParams) -> None:
        kept = len(prompt) if params.keeps_prompt else 0
        self.context = Context(list(prompt) or [tokenizer.start], kept)
        self.ends, self.ids = tokenizer.ends, []
        self.stream = StopStringStream(tokenizer, params.stop)
        self.finished: Completion | None = None

    def add(self, token: int, limit: str | None) -> TextEvent:
        """Adds the next token. Every text ends here: by end token, stop string or limit.

        limit: None, or the reason why the text must not grow further ("length", "interrupted").
        """
        if self.finished:  # its batch goes on for other rows
            return TextEvent("", self.finished)
        self.context.ids.append(token)
        if token in self.ends:
            return self._finish("", "end")
        self.ids.append(token)
        new_text = self.stream.push(token)
        if self.stream.is_stopped:
            return self._finish(new_text, "stop")
        if limit:
            return self._finish(new_text, limit)
        return TextEvent(new_text)

    def _finish(self, new_text: str, reason: str) -> TextEvent:
        new_text += self.stream.flush()
        self.finished = Completion(self.stream.text, self.ids, reason)
        return TextEvent(new_text, self.finished)


class StopStringStream:
    """Decodes the tokens of one text and cuts it before the first stop string.

    Text that may be the beginning of a stop string is withheld until the next tokens decide.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._decoder, self._stop = TextStream(tokenizer), [string for string in stop if string]
        self.text, self.is_stopped = "", False
        self._emitted = 0  # characters of the text that were returned

    def push(self, token: int) -> str:
        """Adds a token; returns the new text that is certain to stay."""
        self.text += self._decoder.push(token)
        matches = [
            at
            for string in self._stop
            if (at := self.text.find(string, max(0, self._emitted - len(string)))) >= 0
        ]
        if matches:
            self.text, self.is_stopped = self.text[: min(matches)], True
            return self.flush()
        return self._emit(len(self.text) - self._stop_prefix())

    def flush(self) -> str:
        """The text that was withheld."""
        return self._emit(len(self.text))

    def _emit(self, end: int) -> str:
        end = max(self._emitted, end)
        new, self._emitted = self.text[self._emitted : end], end
        return new

    def _stop_prefix(self) -> int:
        """Length of the longest suffix of the text that is a prefix of a stop string."""
        return max(
            (
                length
                for string in self._stop
                for length in range(1, len(string))
                if self.text.endswith(string[:length])
            ),
            default=0,
        )


# ---------------------------------------------------------------- choosing a token


class TokenSampler:
    """Chooses the next token of each row; keeps its random numbers and UTF-8 state."""

    def __init__(
        self,
        mask: Utf8Mask,
        params: SamplingParams,
        seeds: Sequence[int],
        contexts: Sequence[Context],
        specials: Sequence[int],
    ) -> None:
        device, rows = mask.after.device, len(contexts)
        self.mask, self.params = mask, params
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.state = torch.full((rows,), WHOLE, device=device)  # (B,) of the UTF-8 automaton
        self.seen = None  # (B, V): the tokens with text in the row's prompt and text
        if params.repetition_penalty != 1:
            self.seen = torch.zeros(rows, mask.after.shape[1], dtype=torch.bool, device=device)
            for row, context in enumerate(contexts):
                self.seen[row, context.ids] = True
            self.seen[:, specials] = False  # earlier answers' ends must not delay this one's

    def draw(self, logits: Tensor, only_finish: bool) -> tuple[Tensor, Tensor]:
        """Logits (B, V) → tokens (B,), and the state (B,) of the UTF-8 automaton after each.

        only_finish: a row inside a character gets a token that completes it and adds nothing.
        """
        draws = torch.stack([torch.rand((), generator=g) for g in self.generators])
        if self.seen is not None:
            logits = penalise_repetition(logits, self.seen, self.params.repetition_penalty)
        logits = self.mask.apply(logits, self.state, only_finish)
        tokens = pick(logits, self.params, draws.to(logits.device))
        self.state = self.mask.after[self.state, tokens]
        if self.seen is not None:
            self.seen.scatter_(1, tokens[:, None], True)
        return tokens, self.state


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """The logits with every seen token made less likely (CTRL, arXiv 1909.05858).

    A positive logit is divided by the penalty and a negative one multiplied: both get smaller.
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def pick(logits: Tensor, params: SamplingParams, draws: Tensor) -> Tensor:
    """One token per row by inverse transform sampling with draws (B,) from [0, 1).

    Temperature comes first, then top-k, top-p and min-p.
    """
    if params.temperature < MIN_TEMPERATURE or params.top_k == 1:
        return logits.argmax(dim=-1)
    # Subtracting the maximum keeps a low temperature from overflowing.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / params.temperature
    order = None  # (B, k): the token at each place of the sorted logits
    if params.top_k and params.top_k < logits.shape[-1]:
        logits, order = largest(logits, params.top_k)
    elif params.top_p < 1:
        logits, order = logits.sort(descending=True)
    p = logits.softmax(dim=-1)
    if params.top_p < 1:  # drop the tokens after the sum reaches top_p; the first always remains
        p = p.masked_fill(p.cumsum(dim=-1) - p >= max(params.top_p, MIN_TOP_P), 0)
    if params.min_p > 0:
        p = p.masked_fill(p < params.min_p * p.amax(dim=-1, keepdim=True), 0)
    sums = p.cumsum(dim=-1)
    total = sums[:, -1:]
    # Rounding must not raise the threshold to the total, where searchsorted finds no token.
    below_total = torch.nextafter(total, torch.zeros_like(total))
    threshold = torch.minimum(draws[:, None] * total, below_total)
    at = torch.searchsorted(sums, threshold, right=True)
    return (order.gather(1, at) if order is not None else at)[:, 0]


def largest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest logits of each row in descending order, and their positions."""
    if logits.device.type != "cpu":
        return logits.topk(count)
    # On a CPU, NumPy's partition takes a third of the time of topk.
    at = torch.from_numpy(np.argpartition(logits.numpy(), -count)[:, -count:])
    values, order = logits.gather(1, at).sort(descending=True)
    return values, at.gather(1, order)
