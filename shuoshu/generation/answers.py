"""Reads prepared questions, answers them in batches, and scores labels as answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shuoshu.generation.sampling import (
    Completion,
    SamplingParams,
    TextGenerator,
    empty_cache,
    never_stop,
    prefill,
)
from shuoshu.sft.dataset import read_pairs
from shuoshu.text.tokenizer import Tokenizer


@dataclass
class Question:
    messages: list[dict[str, str]]  # all before the answer
    reference: str
    ids: list[int]  # the rendered messages, up to where the answer begins
    length: int  # of the reference, in tokens
    rows: range  # its rows in the dataset; a long answer has several

    @property
    def text(self) -> str:
        """The last message, without the conversation before it."""
        return self.messages[-1]["content"]


def render_question(tokenizer: Tokenizer, messages: Sequence[dict[str, str]]) -> list[int]:
    """The ids of a conversation, up to where the assistant's answer begins."""
    return tokenizer.render([*messages, {"role": "assistant", "content": None}])[0]


def read_questions(folder: Path, split: str, tokenizer: Tokenizer) -> list[Question]:
    """The questions of a split with their references."""
    questions = []
    for record in read_pairs(folder, split):
        *messages, answer = record["messages"]
        reference = answer["content"]
        ids, length = render_question(tokenizer, messages), len(tokenizer.encode(reference))
        rows = range(record["row"], record["row"] + record["rows"])
        questions.append(Question(messages, reference, ids, length, rows))
    return questions


def answer(
    generator: TextGenerator,
    questions: Sequence[Question],
    rows: int,
    should_stop: Callable[[], object] = never_stop,
    progress: Callable[[int], None] = lambda done: None,
    max_new_tokens: int | None = None,
) -> list[Completion | None]:
    """The greedy answer to each question, in batches of `rows`; None if stopped before it.

    An answer is cut at `max_new_tokens`, by default a little over twice the longest reference.
    `progress` gets the number of answers done after each batch.
    """
    longest = max((question.length for question in questions), default=0)
    limit = max_new_tokens or 2 * longest + 8
    params = SamplingParams(max_new_tokens=limit, temperature=0.0, keeps_prompt=True)
    prompts, seeds = [question.ids for question in questions], [0] * len(questions)
    return generator.complete_many(prompts, params, seeds, rows, should_stop, progress)


@torch.inference_mode()
def label_log_likelihoods(
    generator: TextGenerator, questions: Sequence[Question], labels: Sequence[str], rows: int
) -> np.ndarray:
    """(questions, labels): the log-likelihood of each label as the answer, end token included.

    Questions are read in batches of `rows`, once for all labels. A question that leaves no room in
    the block for the longest label loses its beginning, so that all labels see the same context.
    """
    model, tokenizer = generator.model, generator.tokenizer
    label_ids = [tokenizer.encode_answer(label) for label in labels]
    # The last id of a label is predicted but not read.
    longest = max(map(len, label_ids)) - 1
    room = max(1, generator.block - longest)
    scores = np.zeros((len(questions), len(labels)))
    order = sorted(range(len(questions)), key=lambda n: len(questions[n].ids))
    for start in range(0, len(order), rows):
        batch = order[start : start + rows]
        prompts = [questions[n].ids[-room:] for n in batch]
        cache = empty_cache(model, len(batch), max(map(len, prompts)) + longest)
        logits = prefill(model, cache, prompts)
        first = float64_log_softmax(logits)
        lengths = list(cache.lengths)
        for column, ids in enumerate(label_ids):
            cache.lengths = list(lengths)  # forget the previous label; it is overwritten
            total = first[:, ids[0]].clone()
            for token, following in pairwise(ids):
                tokens = torch.full((len(batch), 1), token, device=cache.k.device)
                logits = model.next_logits(tokens, torch.zeros_like(tokens[:, 0]), cache)
                total += float64_log_softmax(logits)[:, following]
            scores[batch, column] = total.numpy()
    return scores


def float64_log_softmax(logits: Tensor) -> Tensor:
    """log_softmax on the CPU, because Apple GPUs have no float64."""
    return logits.cpu().double().log_softmax(-1)
