"""Puts passages of a book before a question, for a model that reads before it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from shuoshu.answering.passages import Passage
from shuoshu.core.errors import UserError

if TYPE_CHECKING:  # torch takes seconds to import
    from shuoshu.generation.chat_model import ChatModel

READ_PASSAGES = 3


def read_message(question: str, passages: Sequence[Passage]) -> str:
    """The user's message: the passages with book and chapter, then the question.

    It is in Chinese if the question is. Without passages it is the question alone.
    """
    if not passages:
        return question
    is_chinese = has_chinese(question)
    opening = (
        "请根据下面的段落回答问题。" if is_chinese else "Answer the question from these passages."
    )
    named = "问题：" if is_chinese else "Question: "
    return "\n\n".join([opening, *numbered_passages(passages), named + question])


def numbered_passages(passages: Sequence[Passage]) -> list[str]:
    """Each passage below a line with its number, book and chapter."""
    return [
        "\n".join((f"[{number}] {passage.source or ''}".rstrip(), passage.text))
        for number, passage in enumerate(passages, 1)
    ]


def fitting_passages(
    question: str, passages: Sequence[Passage], fits: Callable[[str], bool]
) -> list[Passage]:
    """The first passages with which the message fits; those that don't fit are dropped."""
    count = len(passages)
    while count and not fits(read_message(question, passages[:count])):
        count -= 1
    return list(passages[:count])


def read_ids(
    model: ChatModel,
    question: str,
    passages: Sequence[Passage],
    before: Sequence[dict[str, str]] = (),
    system: str | None = None,
) -> tuple[list[int], list[Passage]]:
    """The ids of a question after the first passages that fit, and these passages.

    The messages before it and the system message are as in `ChatModel.question_ids`. UserError if
    the question doesn't fit without passages.
    """
    question = question.strip()

    def fits(message: str) -> bool:
        try:
            return len(model.question_ids(message, system=system)) <= model.longest_kept
        except UserError:  # it is longer than the block
            return False

    fitting = fitting_passages(question, passages, fits)
    return model.question_ids(read_message(question, fitting), before, system), fitting


def has_chinese(text: str) -> bool:
    return any("\u4e00" <= character <= "\u9fff" for character in text)
