"""Layouts: which columns of a record hold the question, the answer and the system message.

A layout follows from known column names or from the user's templates:

    {"instruction": "译", "input": "雨", "output": "rain"}   question "译\\n雨", answer "rain"
    --question="评论：{review} 好吗？" --answer="{label}"     texts of the columns review and label
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

from shuoshu.core.errors import UserError
from shuoshu.sft.pairs import preview

TURN_COLUMNS = ("messages", "conversations", "conversation")  # hold a whole conversation
# Column of the question → columns that may hold its answer. If several pairs of columns are there,
# the first one in this order counts.
PAIR_COLUMNS = {
    "question": ("answer", "response"),
    "instruction": ("output", "response"),
    "prompt": ("completion", "response"),
    "query": ("response",),
    "input": ("output", "target"),
    "q": ("a",),
    "问题": ("答案", "回答"),
    "提问": ("回答",),
    "问": ("答",),
}


class TemplatePiece(NamedTuple):
    """A fixed text, then the text of a column."""

    literal: str
    column: str | None
    is_required: bool = True  # a record in which the column is empty can't be used


Template = Sequence[TemplatePiece]


@dataclass
class Layout:
    """The templates of a conversation's parts; an empty one means that there is no such part."""

    question: Template = ()
    answer: Template = ()
    system: Template = ()
    turns: Template = ()  # one column: the whole conversation as a list of messages
    history: Template = ()  # one column: the turns before the question, as [question, answer]

    def columns(self) -> set[str | None]:
        """All columns that the templates use."""
        return {piece.column for part in fields(self) for piece in getattr(self, part.name)}


def known_layout(columns: Iterable[str]) -> Layout | None:
    """The layout of a record with these columns; None if their names aren't known ones."""
    names = {column.casefold(): column for column in columns}
    layout = Layout()
    if "system" in names:
        layout.system = [TemplatePiece("", names["system"], is_required=False)]
    if "history" in names:
        layout.history = [TemplatePiece("", names["history"], is_required=False)]
    if turns := next((names[name] for name in TURN_COLUMNS if name in names), None):
        layout.turns = [TemplatePiece("", turns)]
        return layout
    for question, answers in PAIR_COLUMNS.items():
        answer = next((name for name in answers if name in names), None)
        if question in names and answer:
            layout.question = [TemplatePiece("", names[question])]
            layout.answer = [TemplatePiece("", names[answer])]
            if question == "instruction" and "input" in names:
                layout.question.append(TemplatePiece("\n", names["input"], is_required=False))
            return layout
    return None


def find_column(option: str, name: str, columns: Mapping[str, str], path: Path) -> str:
    """The column that is meant by a name: the one called so, else so in lower case.

    `columns` maps the names that the file's columns may be called by to the columns. Raises
    UserError, with the columns, if there is none.
    """
    column = columns.get(name, columns.get(name.casefold()))
    if column is None:
        available = preview(", ".join(dict.fromkeys(columns.values())), 400)
        raise UserError(
            f"--{option}: {preview(name)!r} is not a column of {path}; its columns are: {available}"
        )
    return column


def parse_template(option: str, text: str, columns: Mapping[str, str], path: Path) -> Template:
    """Parses a template: {name} is a column's text, {{ and }} are braces, \\n begins a new line.

    A name may have any characters except braces. Raises UserError if a brace has no partner or
    find_column doesn't know a name.
    """
    template, literal = [], ""
    for token in _template_tokens(text):
        if token in ("{", "}"):
            raise UserError(
                f"--{option}: a {token} has no partner in {preview(text)!r};"
                " write {column} for a column's text, and {{ or }} for a brace in the text"
            )
        if token[0] == "{" and token != "{{":
            template.append(TemplatePiece(literal, find_column(option, token[1:-1], columns, path)))
            literal = ""
        else:
            literal += token[0] if token in ("{{", "}}") else token
    if option != "system" and not template:
        raise UserError(
            f"--{option} names no column, so every row would get the same text:"
            " add a column's name in braces"
        )
    return [*template, TemplatePiece(literal, None)]


def template_ends(text: str) -> tuple[str, str]:
    """What stands before the first column of a template and after the last one."""
    tokens = _template_tokens(text)
    is_column = [len(token) > 1 and token[0] == "{" != token[1] for token in tokens]
    if True not in is_column:
        return "", ""
    first, last = is_column.index(True), len(tokens) - is_column[::-1].index(True)
    literal = {"{{": "{", "}}": "}"}
    before, after = (
        "".join(literal.get(token, token) for token in part)
        for part in (tokens[:first], tokens[last:])
    )
    return before.lstrip(), after.rstrip()


def template_columns(text: str) -> list[str]:
    """The names of the columns in a template, each once."""
    tokens = _template_tokens(text)
    names = [token[1:-1] for token in tokens if token[0] == "{" and token not in ("{", "{{")]
    return list(dict.fromkeys(names))


def _template_tokens(text: str) -> list[str]:
    """A template's columns in braces, single and double braces, and the texts between them."""
    return re.findall(r"\{\{|\}\}|\{[^{}]*\}|[{}]|[^{}]+", text.replace("\\n", "\n"))
