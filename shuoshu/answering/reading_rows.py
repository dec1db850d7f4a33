"""Puts passages of a book before the questions that prepare_sft.py prepares."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shuoshu.answering.passages import PassageIndex
from shuoshu.answering.reading import read_message
from shuoshu.answering.sections import file_sections
from shuoshu.core.command_settings import PrepareSftSettings
from shuoshu.core.errors import UserError
from shuoshu.sft.tokenizer_choice import DEFAULT_TOKENIZER


def message_writer(settings: PrepareSftSettings) -> Callable[[str], str]:
    """A function that puts passages of the book before a question.

    They are found for the question alone. Raises UserError if there is no book.
    """
    model = settings.tokenizer or DEFAULT_TOKENIZER
    if settings.book:
        sections = (section for name in settings.book for section in file_sections(name))
        index: PassageIndex | None = PassageIndex(sections)
    else:
        index = PassageIndex.find(Path(model))
    if index is None:
        raise UserError(
            f"passages={settings.passages}: the text that {model} was trained on is not known or"
            " no longer there: name the book with --book=FILE"
        )
    return lambda question: read_message(question, index.search(question, count=settings.passages))
