"""Questions put to a fine-tuned model: read from a prepared folder, rendered, answered in batches, or decided among labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from model import GPT, KVCache
from shuoshu.generation.sampling import Completion, SamplingParams, complete_many, prefill
from shuoshu.sft.dataset import read_pairs
from shuoshu.text.tokenizer import Tokenizer


@dataclass
class Question:
    messages: list[dict[str, str]]  # all that comes before the answer
    reference: str
    ids: list[int]  # the messages rendered, open for the answer
    length: int  # of the reference in tokens
    rows: range  # its rows in the file

    @property
    def text(self) -> str:
        return self.messages[-1]["content"]


def render_question(tokenizer: Tokenizer, messages: Sequence[dict[str, str]]) -> list[int]:
    """The ids that a conversation has up to where the assistant's answer begins."""
    return tokenizer.render([*messages, {"role": "assistant", "content": None}])[0]


def read_questions(folder: Path, split: str, tokenizer: Tokenizer) -> list[Question]:
    """The questions of a split with their references."""
    made = []
    for record in read_pairs(folder, split):
        *messages, last = record["messages"]
        rows = range(record["row"], record["row"] + record["rows"])
        made.append(
            Question(
                messages,
                last["content"],
                render_question(tokenizer, messages),
                len(tokenizer.encode(last["content"])),
                rows,
            )
        )
    return made


def answer(
    model: GPT,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    rows: int,
    should_stop: Callable[[], object] = lambda: False,
    tell: Callable[[int], None] = lambda done: None,
    longest: int | None = None,
) -> list[Completion | None]:
    """The likeliest answer to each, cut off at `longest` tokens (none: twice the longest reference)."""
    longest = longest or 2 * max((question.length for question in questions), default=0) + 8
    sampling = SamplingParams(max_new_tokens=longest, temperature=0.0, keeps_prompt=True)
    return complete_many(
        model,
        tokenizer,
        [question.ids for question in questions],
        sampling,
        [0] * len(questions),
        rows,
        should_stop,
        tell,
    )


@torch.inference_mode()
def label_scores(
    model: GPT,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    labels: Sequence[str],
    rows: int,
) -> np.ndarray:
    """(questions, labels): the log-likelihood of each label, end token included, as the answer. The questions are read once for all labels."""
    device, dtype = model.lm_head.weight.device, model.lm_head.weight.dtype
    spelt = [[*tokenizer.encode(label), tokenizer.end] for label in labels]
    room = max(
        1, model.config.block_size - max(map(len, spelt)) + 1
    )  # of a question that fits beside its own label alone, the end is read
    scores = np.zeros((len(questions), len(labels)))
    order = sorted(range(len(questions)), key=lambda n: len(questions[n].ids))
    for start in range(0, len(order), rows):
        part = order[start : start + rows]
        cache = KVCache(model.config, len(part), device, dtype)
        first = (
            prefill(model, cache, [questions[n].ids[-room:] for n in part]).double().log_softmax(-1)
        )
        lengths = list(cache.lengths)
        for column, ids in enumerate(spelt):
            cache.lengths = list(lengths)  # what the label before wrote is written over
            total, logits = first[:, ids[0]].clone(), None
            for token, following in pairwise(ids):
                logits = model.next_logits(
                    torch.full((len(part), 1), token, device=device), [0] * len(part), cache
                )
                total += logits.double().log_softmax(-1)[:, following]
            scores[part, column] = total.cpu().numpy()
    return scores
