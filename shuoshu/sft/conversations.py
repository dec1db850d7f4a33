"""Records to conversations: applies layouts and labels, and rejects records that can't be used."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

from shuoshu.core.command_settings import PrepareSftSettings
from shuoshu.core.errors import UserError
from shuoshu.sft.layouts import Layout, Template, known_layout, parse_template
from shuoshu.sft.pairs import QUESTION_SPLITS, Pair, RejectedRecords, clean_field, preview
from shuoshu.sft.question_files import read_records

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
MAX_COLUMNS_SHOWN = 30  # in the message about unknown columns
Labels = dict[float | str, str]  # value of the answer column → answer


class UnusableRecord(Exception):
    """A record that is left out. Arguments: the reason, and what is wrong with this record."""


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
        self.labels = labels
        column_sets = dict.fromkeys(tuple(record) for _, record in records)
        names = dict.fromkeys(chain.from_iterable(column_sets))
        # A column is found by its exact name, else by its name in any case.
        columns = {**{name.casefold(): name for name in names}, **{name: name for name in names}}
        self.split_column = columns.get("split")
        self.group_column = None
        if settings.group:
            template = parse_template("group", f"{{{settings.group}}}", columns, path)
            self.group_column = template[0].column
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

    def parse(self, record: dict, source: str) -> Pair:
        """The record's conversation. Raises UnusableRecord; UserError for an unknown split."""
        layout = self.layouts[tuple(record)]
        if layout is None:
            raise UnusableRecord("empty", "it has no question or no answer")
        messages = _messages(record, layout)
        if self.labels:
            answer = messages[-1]["content"]
            if _label_key(answer) not in self.labels:
                raise UnusableRecord("not in --labels", answer)
            messages[-1]["content"] = self.labels[_label_key(answer)]
        split = _field_text(record.get(self.split_column), "split").lower()
        if split and split not in SPLIT_NAMES:
            raise UserError(
                f"{source}: the split {preview(split)} is not one of {', '.join(QUESTION_SPLITS)}"
            )
        used = {self.split_column, *layout.columns()}
        extra = {
            clean_field(name): clean_field(value) if isinstance(value, str) else value
            for name, value in record.items()
            if name not in used and _is_scalar(value)
        }
        group = _field_text(record.get(self.group_column), "group") or None
        return Pair(messages, source, SPLIT_NAMES.get(split), group, extra)


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
        "(Lists inside a row must become rows first; a table has its columns' names in row 1.)"
    )


# ---------------------------------------------------------------- messages


def _messages(record: dict, layout: Layout) -> list[dict[str, str]]:
    """The conversation of a record: a system message if there is one, then user and assistant.

    A last question without an answer is dropped. Raises UnusableRecord.
    """
    turns = record[layout.turns[0].column] if layout.turns else _question_turns(record, layout)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise UnusableRecord("wrong type", "the conversation is not a list of messages")
    messages = [_message(turn) for turn in turns]
    system = ""
    if messages and messages[0]["role"] == "system":
        system = messages.pop(0)["content"]
    system = _fill(record, layout.system) or system
    if messages and messages[-1]["role"] == "user":
        messages.pop()
    if not messages:
        raise UnusableRecord("empty", "there is no answer")
    if not all(message["content"] for message in messages):
        raise UnusableRecord("empty", "a message is empty")
    roles = [message["role"] for message in messages]
    if roles != ["user", "assistant"] * (len(messages) // 2):
        raise UnusableRecord(
            "wrong type", f"user and assistant don't alternate: {', '.join(roles)}"
        )
    return ([{"role": "system", "content": system}] if system else []) + messages


def _question_turns(record: dict, layout: Layout) -> list[dict[str, object]]:
    """The turns of a record with a question, an answer, and perhaps a history of earlier ones."""
    last = [_fill(record, layout.question), _fill(record, layout.answer)]
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


def _fill(record: dict, template: Template) -> str:
    """The text of a template with the record's values."""
    text = ""
    for literal, column, is_required in template:
        value = "" if column is None else _field_text(record.get(column), column)
        if column is not None and is_required and not value:
            raise UnusableRecord("empty", f"{column} is empty")
        text += literal + value
    return clean_field(text)


def _field_text(value: object, name: str) -> str:
    """The text of a field that holds text or a number; "" for null. Else UnusableRecord."""
    if value is None or isinstance(value, str):
        return clean_field(value or "")
    if type(value) is int or (isinstance(value, float) and math.isfinite(value)):
        return str(value).removesuffix(".0")
    raise UnusableRecord("wrong type", f"{name} is {preview(value)}")


def _is_scalar(value: object) -> bool:
    """Whether a value is text, a boolean or a finite number."""
    return isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))


# ---------------------------------------------------------------- labels


def parse_labels(text: str) -> Labels:
    """Parses --labels="1=正面,0=负面". Raises UserError if it is malformed."""
    labels: Labels = {}
    for entry in re.split("[,，]", text) if text else ():
        value, _, label = (clean_field(part) for part in entry.partition("="))
        if not value or not label or _label_key(value) in labels:
            problem = "is given twice" if value and label else "is not VALUE=LABEL"
            raise UserError(f'--labels: {entry!r} {problem}; write --labels="1=正面,0=负面"')
        labels[_label_key(value)] = label
    return labels


def _label_key(text: str) -> float | str:
    """A number's value, so that 1.0 equals 1; any other text unchanged."""
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text
