"""Reads prepared questions and answers them in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shuoshu.core.parts import stratified
from shuoshu.generation.sampling import (
    Completion,
    SamplingParams,
    TextGenerator,
    never_stop,
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
    uncut: str  # the last message before its middle was cut and without passages before it

    @property
    def text(self) -> str:
        """The last question, without passages and the conversation before it."""
        return self.uncut

    @property
    def whole_text(self) -> str:
        """The last message with the conversation before it."""
        return "\n".join(message["content"] for message in self.messages)

    @property
    def raw_text(self) -> str:
        """The whole text before its middle was cut, and without passages."""
        return "\n".join([*(message["content"] for message in self.messages[:-1]), self.uncut])


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
        uncut = record["uncut"]
        questions.append(Question(messages, reference, ids, length, rows, uncut))
    return questions


def limit_questions(questions: list[Question], limit: int | None) -> list[Question]:
    """All questions, or `limit` of them: each answer in proportion."""
    if not limit:
        return questions
    chosen = stratified([question.reference for question in questions], limit)
    return [questions[number] for number in chosen]


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
