"""Records to conversations: applies layouts and labels, and rejects records that can't be used."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from shuoshu.core.command_settings import PrepareSftSettings
from shuoshu.core.errors import UserError
from shuoshu.core.terminal import counted
from shuoshu.sft.layouts import Layout, Template, find_column, known_layout, parse_template
from shuoshu.sft.pairs import (
    MAX_COLUMNS_SHOWN,
    Pair,
    RejectedRecords,
    clean_field,
    label_key,
    merge_equal_labels,
    preview,
    scalar_text,
)
from shuoshu.sft.question_files import read_records
from shuoshu.text.dataset import QUESTION_SPLITS

SPLIT_NAMES = {
    **{name: name for name in QUESTION_SPLITS},
    "training": "train",
    "valid": "val",
    "validation": "val",
    "dev": "val",
}
ROLE_NAMES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
Labels = dict[float | str, str]  # value of the answer column → answer
MESSAGE_FIELDS = ("role", "from", "content", "value")
UNQUOTABLE = frozenset('"$`\\!{}\n')  # in a name within a template that a shell reads


class UnusableRecord(Exception):
    """A record that is left out. Arguments: the reason, and what is wrong with this record."""


class Conversation(NamedTuple):
    """A record's messages, and what of the record is not in them."""

    messages: list[dict[str, str]]
    unanswered: str = ""  # the last question, if no answer follows
    replaced_system: str = ""  # the system message that another one replaces


def parse_pairs(
    paths: Sequence[Path], settings: PrepareSftSettings
) -> tuple[list[Pair], RejectedRecords]:
    """(conversations in all files, rejected records).

    Raises UserError if a file can't be read, or if the settings don't fit its columns.
    """
    if bool(settings.question) != bool(settings.answer):
        raise UserError(
            "--question and --answer go together:"
            " one is the template of the question, the other of its answer"
        )
    labels = parse_labels(settings.labels or "")
    pairs: list[Pair] = []
    rejected = RejectedRecords()
    for path in paths:
        records = read_records(path, settings.encoding, rejected)
        parser = _RecordParser(path, records, settings, labels)
        for number, record in records:
            source = clean_field(f"{path.name}, row {number}")
            try:
                pairs.append(parser.parse(record, source))
            except UnusableRecord as error:
                reason, detail = error.args
                rejected.add(reason, source, detail)
        rejected.notes += parser.notes()
        rejected.unused += parser.unused
        rejected.unused_advice = rejected.unused_advice or parser.unused_advice()
    if not labels:
        rejected.notes += merge_equal_labels(pairs)
    return pairs, rejected


class _RecordParser:
    """Parses the records of one file. Raises UserError if their columns can't be understood."""

    def __init__(
        self,
        path: Path,
        records: Sequence[tuple[int, dict]],
        settings: PrepareSftSettings,
        labels: Labels,
    ) -> None:
        self.labels, self.has_templates = labels, bool(settings.question)
        column_sets = dict.fromkeys(tuple(record) for _, record in records)
        names = dict.fromkeys(chain.from_iterable(column_sets))
        # A column is found by its exact name, else by its name in any case.
        columns = {**{name.casefold(): name for name in names}, **{name: name for name in names}}
        self.split_column = columns.get("split")
        self.group_column = None
        if settings.group:
            self.group_column = find_column("group", settings.group, columns, path)
        templates = {
            part: parse_template(part, text, columns, path)
            for part in ("question", "answer", "system")
            if (text := getattr(settings, part))
        }
        self.layouts: dict[tuple[str, ...], Layout | None] = {}
        for column_set in column_sets:
            layout = Layout() if settings.question else known_layout(column_set)
            self.layouts[column_set] = None if layout is None else replace(layout, **templates)
        if not any(self.layouts.values()):
            raise UserError(_unknown_columns_message(path, *records[0]))
        self.unused: Counter[str] = Counter()  # records with a value in a column that isn't used
        self.unused_characters: Counter[str] = Counter()
        self.unanswered: list[str] = []  # the sources of these conversations
        self.replaced_systems: list[str] = []

    def parse(self, record: dict, source: str) -> Pair:
        """The record's conversation. Raises UnusableRecord; UserError for an unknown split."""
        layout = self.layouts[tuple(record)]
        if layout is None:
            raise UnusableRecord("empty", "it has no question or no answer")
        messages, unanswered, replaced_system = _conversation(record, layout)
        if self.labels:
            answer = messages[-1]["content"]
            if label_key(answer) not in self.labels:
                raise UnusableRecord("not in --labels", answer)
            messages[-1]["content"] = self.labels[label_key(answer)]
        split = _field_text(record.get(self.split_column), "split").lower()
        if split and split not in SPLIT_NAMES:
            raise UserError(
                f"{source}: the split {preview(split)} is not one of {', '.join(QUESTION_SPLITS)}"
            )
        used = {self.split_column, *layout.columns()}
        extra = {
            clean_field(name): clean_field(value) if isinstance(value, str) else value
            for name, value in record.items()
            if name not in used and value is not None and scalar_text(value) is not None
        }
        group = _field_text(record.get(self.group_column), "group") or None
        self._count_unused(record, layout)
        if unanswered:
            self.unanswered.append(f"{source}: {preview(unanswered)}")
        if replaced_system:
            self.replaced_systems.append(f"{source}: {preview(replaced_system)}")
        return Pair(messages, source, SPLIT_NAMES.get(split), group, extra)

    def _count_unused(self, record: dict, layout: Layout) -> None:
        """Counts the columns, and the fields of messages, whose values nothing uses."""
        used = {self.split_column, self.group_column, *layout.columns()}
        values = {name: value for name, value in record.items() if name not in used}
        for column in (piece.column for piece in layout.history):
            if not isinstance(record[column], list):
                values[column] = record[column]
        for column in (piece.column for piece in layout.turns):
            for turn in record[column]:
                fields = {name: turn[name] for name in turn if name not in MESSAGE_FIELDS}
                values |= {f"{column}.{name}": value for name, value in fields.items()}
        for name, value in values.items():
            is_empty = value in (None, [], {}) or (isinstance(value, str) and not value.strip())
            if not is_empty:
                self.unused[clean_field(name)] += 1
                # An option is no use for an id or a score, which a table has as a text of digits.
                if isinstance(value, str) and isinstance(label_key(value), str):
                    self.unused_characters[clean_field(name)] += len(value)

    def unused_advice(self) -> str:
        """Options that put the unused column with the longest texts into the questions.

        "" if there is no such column, or if the questions come from templates or conversations.
        """
        layout = next(layout for layout in self.layouts.values() if layout)
        pieces = [piece for piece in (*layout.question, *layout.answer) if piece.column]
        if self.has_templates or len(pieces) != 2 or not self.unused_characters:
            return ""
        [(name, _)] = self.unused_characters.most_common(1)
        question, answer = (clean_field(piece.column) for piece in pieces)
        if UNQUOTABLE & {*name, *question, *answer}:
            return ""
        return f'--question="{{{name}}}\\n{{{question}}}" --answer="{{{answer}}}"'

    def notes(self) -> list[str]:
        """What the conversations lack of their records."""
        notes = []
        for sources, problem in (
            (self.unanswered, "the last question has no answer and is left out"),
            (self.replaced_systems, "--system or the column system replaces the system message"),
        ):
            if sources:
                where = counted(len(sources), "conversation")
                notes.append(f"in {where} {problem}, for example {sources[0]}")
        return notes


def _unknown_columns_message(path: Path, number: int, record: dict) -> str:
    columns = "".join(
        f"\n  {preview(name, 30)}: {preview(value)}"
        for name, value in islice(record.items(), MAX_COLUMNS_SHOWN)
    )
    return (
        f"{path}: no question and answer are recognised among the columns of row {number}:"
        f"{columns}\n"
        'Name the columns in templates: --question="What is this: {column}?"'
        ' --answer="{other column}".\n'
        "Recognised without templates: question/answer, instruction/output, prompt/completion,"
        " messages, conversations.\n"
        "(Lists and objects inside a row must become columns of text first; a table has its"
        " columns' names in row 1.)"
    )


# ---------------------------------------------------------------- messages


def _conversation(record: dict, layout: Layout) -> Conversation:
    """The conversation of a record: a system message if there is one, then user and assistant.

    Raises UnusableRecord.
    """
    turns = record[layout.turns[0].column] if layout.turns else _question_turns(record, layout)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise UnusableRecord("wrong type", "the conversation is not a list of messages")
    messages = [_message(turn) for turn in turns]
    own_system = unanswered = ""
    if messages and messages[0]["role"] == "system":
        own_system = messages.pop(0)["content"]
    system = fill_template(record, layout.system) or own_system
    if messages and messages[-1]["role"] == "user":
        unanswered = messages.pop()["content"]
    if not messages:
        raise UnusableRecord("empty", "there is no answer")
    if not all(message["content"] for message in messages):
        raise UnusableRecord("empty", "a message is empty")
    roles = [message["role"] for message in messages]
    if roles != ["user", "assistant"] * (len(messages) // 2):
        raise UnusableRecord(
            "wrong type", f"user and assistant don't alternate: {', '.join(roles)}"
        )
    replaced = own_system if own_system != system else ""
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return Conversation(messages, unanswered, replaced)


def _question_turns(record: dict, layout: Layout) -> list[dict[str, object]]:
    """The turns of a record with a question, an answer, and perhaps a history of earlier ones."""
    last = [fill_template(record, layout.question), fill_template(record, layout.answer)]
    history = record.get(layout.history[0].column) if layout.history else None
    exchanges = [*history, last] if isinstance(history, list) else [last]
    if any(not isinstance(exchange, list) or len(exchange) != 2 for exchange in exchanges):
        raise UnusableRecord("wrong type", "the history is not a list of [question, answer]")
    return [
        {"role": role, "content": text}
        for exchange in exchanges
        for role, text in zip(("user", "assistant"), exchange, strict=True)
    ]


def _message(turn: dict) -> dict[str, str]:
    """A message as {"role", "content"}; ShareGPT's names are from and value."""
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    if content is None or not isinstance(role, str) or role.lower() not in ROLE_NAMES:
        raise UnusableRecord(
            "wrong type", f"role {preview(role, 20)}, content {preview(content, 20)}"
        )
    return {"role": ROLE_NAMES[role.lower()], "content": _field_text(content, "a message")}


def fill_template(record: dict, template: Template) -> str:
    """The text of a template with the record's values; raises UnusableRecord."""
    text = ""
    for literal, column, is_required in template:
        value = "" if column is None else _field_text(record.get(column), column)
        if column is not None and is_required and not value:
            raise UnusableRecord("empty", f"{column} is empty")
        text += literal + value
    return clean_field(text)


def _field_text(value: object, name: str) -> str:
    """The text of a field. Raises UnusableRecord if it holds a list or the like."""
    text = scalar_text(value)
    if text is None:
        raise UnusableRecord("wrong type", f"{name} is {preview(value)}")
    return clean_field(text)


# ---------------------------------------------------------------- labels


def parse_labels(text: str) -> Labels:
    """Parses --labels="1=正面,0=负面". Raises UserError if it is malformed."""
    labels: Labels = {}
    for entry in re.split("[,，]", text) if text else ():
        value, _, label = (clean_field(part) for part in entry.partition("="))
        if not value or not label or label_key(value) in labels:
            problem = "is given twice" if value and label else "is not VALUE=LABEL"
            raise UserError(f'--labels: {entry!r} {problem}; write --labels="1=正面,0=负面"')
        labels[label_key(value)] = label
    return labels
