"""Files of questions and answers → conversations, with an account of what was left out and why."""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from shuoshu.core.errors import UserError
from shuoshu.core.files import error_reason, missing_path_message, open_file
from shuoshu.sft.pairs import QUESTION_SPLITS, Pair, RejectedRecords, brief, clean_pair
from shuoshu.text.encodings import MAX_FILE_BYTES, TextDecoder

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv")
SPLIT_NAMES = {
    **{name: name for name in QUESTION_SPLITS},
    "training": "train",
    "valid": "val",
    "validation": "val",
    "dev": "val",
}
TURNS = ("messages", "conversations", "conversation")  # columns that hold a whole conversation
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
PAIRS = {  # a column for the question: those that the answer may stand in; the first two count that are both there
    **{
        "question": ("answer", "response"),
        "instruction": ("output", "response"),
        "prompt": ("completion", "response"),
        "query": ("response",),
    },
    **{
        "input": ("output", "target"),
        "q": ("a",),
        "问题": ("答案", "回答"),
        "提问": ("回答",),
        "问": ("答",),
    },
}
LARGEST_DOCUMENT = 1 << 30  # bytes of JSON that is read in one piece
END = "\x1cend\x1c"  # a line put behind a table's last one: if it doesn't come back as a row of its own, a quotation mark is still open
Template = list[
    tuple[str, str | None, bool]
]  # (text, the column that follows it, whether that must say something)


class _Unfit(Exception):
    """Why a record is left out: the reason, and what is wrong with this one."""


def _text(value: object, what: str) -> str:
    """What a field says: text or a number; null says nothing."""
    if value is None or isinstance(value, str):
        return clean_pair(value or "")
    if type(value) is int or (isinstance(value, float) and math.isfinite(value)):
        return str(value).removesuffix(".0")
    raise _Unfit("wrong type", f"{what} is {brief(value)}")


# ---------------------------------------------------------------- files → records


def find_question_files(inputs: Sequence[str | Path]) -> list[Path]:
    """The files that the user names and those in folders, each once; what prepare_sft wrote into a folder is passed over."""
    found: dict[Path, Path] = {}
    for path in map(Path, inputs):
        try:
            written = {
                "meta.json",
                "tokenizer.json",
                *(f"{split}.jsonl" for split in QUESTION_SPLITS if (path / "meta.json").exists()),
            }
            inside = (
                p
                for p in path.glob("[!.]*")
                if p.suffix.lower() in SUFFIXES and p.name not in written and p.is_file()
            )
            files = [path] if path.is_file() else sorted(inside)
        except (OSError, ValueError) as error:  # ValueError: a NUL in its name
            raise UserError(f"can't look into {path}: {error_reason(error)}") from None
        if not files:
            raise UserError(
                f"the folder {path} holds no {', '.join(SUFFIXES)} of questions"
                if path.is_dir()
                else missing_path_message(path)
            )
        if files[0].suffix.lower() not in SUFFIXES:
            raise UserError(
                f"{path}: questions and answers are read from {', '.join(SUFFIXES)} (a spreadsheet can be saved as CSV)"
            )
        for file in files:
            found.setdefault(file.resolve(), file)
    if not found:
        raise UserError("no file of questions and answers is named")
    return list(found.values())


def read_records(
    path: Path, encoding: str | None = None, dropped: RejectedRecords | None = None
) -> list[tuple[int, dict]]:
    """The numbered records of a file: a list's from 1, by line in JSON Lines, a table's as a spreadsheet counts (the header is row 1)."""
    dropped = RejectedRecords() if dropped is None else dropped
    name, suffix, records = clean_pair(path.name), path.suffix.lower(), []
    try:
        with open_file(path, LARGEST_DOCUMENT if suffix == ".json" else MAX_FILE_BYTES) as file:
            decoder = TextDecoder(file, encoding)
            for number, row in (_table_rows if suffix in (".csv", ".tsv") else _json_rows)(
                decoder, suffix
            ):
                dropped.read += 1
                if isinstance(row, dict):
                    records.append((number, row))
                elif isinstance(row, tuple):
                    dropped.add(
                        "wrong number of cells",
                        f"{name}, row {number}",
                        f"{len(row)} cells: {row[0]} …",
                    )
                else:
                    dropped.add("wrong type", f"{name}, row {number}", f"the row is {brief(row)}")
        if not records:
            raise UserError(
                "it holds no rows: objects in JSON, or lines under a header with as many cells"
            )
    except OSError as error:
        how = (
            "; cut it into several files, or write it as .jsonl, a line an object"
            if error.errno == errno.EFBIG
            else ""
        )
        raise UserError(f"{path}: it can't be read ({error_reason(error)}){how}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if decoder.broken:
        dropped.notes.append(
            f"{name}: {decoder.broken:,} places can't be read as {decoder.encoding} and became �"
        )
    return records


def _table_rows(decoder: TextDecoder, suffix: str) -> Iterator[tuple[int, dict | tuple]]:
    csv.field_size_limit(2**31 - 1)
    lines = (
        line.replace("\0", "") for part in decoder.parts() for line in io.StringIO(part, newline="")
    )
    first = next((line for line in lines if line.strip()), "")
    delimiter = next(
        (sign for sign in ("\t,;" if suffix == ".tsv" else ",\t;") if sign in first), ","
    )
    reader = csv.reader(chain([first], lines, [END]), delimiter=delimiter)
    try:
        header, before = [cell.strip() for cell in next(reader)], reader.line_num
        if twice := [name for name, count in Counter(header).items() if name and count > 1]:
            raise UserError(f"several columns are called {brief(twice[0])}: rename them")
        for number, cells in enumerate(reader, 2):
            if cells == [END]:
                return
            if cells and cells[-1].endswith(END):
                break
            if cells:
                yield (
                    number,
                    dict(zip(header, cells, strict=True))
                    if len(cells) == len(header)
                    else tuple(cells),
                )
            before = reader.line_num
    except csv.Error as error:
        raise UserError(f"line {reader.line_num}: {error}") from None
    raise UserError(
        f"a quotation mark in the row that follows line {before} is never closed: close it, or double it if it belongs to the text"
    )


def _json_rows(decoder: TextDecoder, suffix: str) -> Iterable[tuple[int, object]]:
    if suffix == ".jsonl" and not decoder.head[decoder.bom_bytes :].lstrip(b"\0\t\r\n ").startswith(
        b"["
    ):
        lines = (line for part in decoder.parts() for line in io.StringIO(part, newline=""))
    else:
        text = "".join(decoder.parts())
        try:
            return enumerate(_list_in(loads(text)), 1)
        except UserError as error:
            if "(Extra data)" not in str(error) or not text[:1000].lstrip().startswith("{"):
                raise
        lines = text.split("\n")  # JSON Lines by another name
    return ((number, loads(line, number)) for number, line in enumerate(lines, 1) if line.strip())


def loads(text: str, line: int = 1) -> object:
    """A JSON document, or one line of JSON Lines; UserError says where it is none."""
    try:  # a number too long to be one stays text
        return json.loads(
            text,
            strict=False,
            parse_int=lambda digits: int(digits) if len(digits) < 4000 else digits,
            object_pairs_hook=_once,
        )
    except json.JSONDecodeError as error:
        raise UserError(
            f"line {line + error.lineno - 1}, column {error.colno}: this is not JSON ({error.msg}); mend the file there"
        ) from None
    except _Twice as error:
        raise UserError(
            f"line {line}: an object has two fields called {brief(str(error))}: leave one"
        ) from None
    except RecursionError:
        raise UserError(
            f"line {line}: brackets are nested too deeply for questions and answers"
        ) from None


class _Twice(Exception):
    """An object with two fields of this name."""


def _once(fields: list[tuple[str, object]]) -> dict:
    made = dict(fields)
    if len(made) < len(fields):
        raise _Twice(
            next(name for name, count in Counter(name for name, _ in fields).items() if count > 1)
        )
    return made


def _list_in(document: object) -> list:
    """A JSON document's list: itself, or the only one inside an object; an object that is a record by itself is a list of one."""
    if isinstance(document, list):
        return document
    inside = document if isinstance(document, dict) else {}
    lists = {
        name: rows
        for name, rows in inside.items()
        if isinstance(rows, list) and rows and isinstance(rows[0], dict)
    }
    if _shape(inside) and not any(_shape(rows[0]) for rows in lists.values()):
        return [document]
    if len(lists) != 1:
        told = f"several ({brief(', '.join(lists))}): leave one in the file" if lists else "none"
        raise UserError(f"a list of objects is wanted, and this holds {told}")
    return next(iter(lists.values()))


# ---------------------------------------------------------------- records → conversations


def parse_pairs(paths: Sequence[Path], settings: object) -> tuple[list[Pair], RejectedRecords]:
    """The files' conversations, by `settings`: question, answer, system (templates), labels, group, encoding; and what was left out."""
    if bool(settings.question) != bool(settings.answer):
        raise UserError(
            "--question and --answer go together: one says how the question is put, the other what is to be answered"
        )
    labels = _labels(settings.labels or "")
    pairs, dropped = [], RejectedRecords()
    for path in paths:
        records = read_records(path, settings.encoding, dropped)
        kinds = dict.fromkeys(tuple(record) for _, record in records)
        names = dict.fromkeys(chain.from_iterable(kinds))
        columns = {**{name.casefold(): name for name in names}, **{name: name for name in names}}
        asked = {
            part: _template(part, text, columns, path)
            for part in ("question", "answer", "system")
            if (text := getattr(settings, part))
        }
        group = (
            _template("group", f"{{{settings.group}}}", columns, path)[0][1]
            if settings.group
            else None
        )
        shapes = {kind: {} if settings.question else _shape(kind) for kind in kinds}
        if all(shape is None for shape in shapes.values()):
            raise UserError(_unknown(path, *records[0]))
        for number, record in records:
            source, shape = clean_pair(f"{path.name}, row {number}"), shapes[tuple(record)]
            try:
                if shape is None:
                    raise _Unfit("empty", "it has no question or no answer")
                pairs.append(
                    _pair(record, {**shape, **asked}, source, columns.get("split"), group, labels)
                )
            except _Unfit as unfit:
                dropped.add(unfit.args[0], source, unfit.args[1])
    return pairs, dropped


def _pair(
    record: dict,
    shape: dict[str, Template],
    source: str,
    split: str | None,
    group: str | None,
    labels: dict[float | str, str],
) -> Pair:
    messages = _messages(record, shape)
    if labels:
        answer = messages[-1]["content"]
        if _number(answer) not in labels:
            raise _Unfit("not in --labels", answer)
        messages[-1]["content"] = labels[_number(answer)]
    name = _text(record.get(split), "split").lower()
    if name and name not in SPLIT_NAMES:
        raise UserError(
            f"{source}: the split {brief(name)} is none of {', '.join(QUESTION_SPLITS)}"
        )
    used = {split, *(column for template in shape.values() for _, column, _ in template)}
    facts = {
        clean_pair(name): clean_pair(v) if isinstance(v, str) else v
        for name, v in record.items()
        if name not in used and _is_scalar(v)
    }
    return Pair(
        messages, source, SPLIT_NAMES.get(name), _text(record.get(group), "group") or None, facts
    )


def _is_scalar(value: object) -> bool:
    return isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))


def _shape(columns: Iterable[str]) -> dict[str, Template] | None:
    """What stands in which column, if the columns' names are known ones."""
    names = {column.casefold(): column for column in columns}
    shape = {part: [("", names[part], False)] for part in ("system", "history") if part in names}
    if turns := next((names[name] for name in TURNS if name in names), None):
        return {**shape, "turns": [("", turns, True)]}
    question, answer = next(
        ((q, a) for q, answers in PAIRS.items() for a in answers if q in names and a in names),
        (None, None),
    )
    if question is None:
        return None
    more = [("\n", names["input"], False)] if question == "instruction" and "input" in names else []
    return {
        **shape,
        "question": [("", names[question], True), *more],
        "answer": [("", names[answer], True)],
    }


def _unknown(path: Path, number: int, record: dict) -> str:
    row = "".join(
        f"\n  {brief(name, 30)}: {brief(value)}" for name, value in islice(record.items(), 30)
    )
    return (
        f"{path}: no question and answer are recognised among the columns of row {number}:{row}\n"
        'Say how to put them, as in --question="What is this: {column}?" --answer="{other column}". Recognised are question/answer, instruction/output, '
        "prompt/completion, messages, conversations.\n(What stands in lists inside a row must become rows first; a table has its columns' names in row 1.)"
    )


def _messages(record: dict, shape: dict[str, Template]) -> list[dict[str, str]]:
    """A record's conversation: a system prompt or none, then user and assistant in turn; a last question without answer is left away."""
    if "turns" in shape:
        turns = record[shape["turns"][0][1]]
    else:
        history = record.get(shape["history"][0][1]) if "history" in shape else None
        turns = [
            *(history if isinstance(history, list) else []),
            [_filled(record, shape["question"]), _filled(record, shape["answer"])],
        ]
        if any(not isinstance(turn, list) or len(turn) != 2 for turn in turns):
            raise _Unfit("wrong type", "the history is no list of [question, answer]")
        turns = [
            {"role": role, "content": text}
            for turn in turns
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise _Unfit("wrong type", "the conversation is no list of messages")
    messages = []
    for turn in turns:
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if content is None or not isinstance(role, str) or role.lower() not in ROLES:
            raise _Unfit("wrong type", f"role {brief(role, 20)}, content {brief(content, 20)}")
        messages.append({"role": ROLES[role.lower()], "content": _text(content, "a message")})
    system = messages.pop(0)["content"] if messages and messages[0]["role"] == "system" else ""
    system = _filled(record, shape.get("system", [])) or system
    if messages and messages[-1]["role"] == "user":
        messages.pop()
    if not messages or not all(message["content"] for message in messages):
        raise _Unfit("empty", "a message is empty" if messages else "nobody answers")
    if [message["role"] for message in messages] != ["user", "assistant"] * (len(messages) // 2):
        raise _Unfit(
            "wrong type",
            f"user and assistant don't take turns: {', '.join(message['role'] for message in messages)}",
        )
    return [{"role": "system", "content": system}] * bool(system) + messages


def _template(flag: str, text: str, columns: dict[str, str], path: Path) -> Template:
    """A template's pieces: {name} is a column's text and nothing more, {{ and }} are braces, a written \\n begins a line."""
    try:
        pieces = list(string.Formatter().parse(text.replace("\\n", "\n")))
    except ValueError as error:
        raise UserError(
            f"--{flag}: {error}; {{column}} is a column's text, {{{{ and }}}} are braces of your own"
        ) from None
    for _, name, form, conversion in pieces:
        if name is not None and (
            form or conversion or not columns.keys() & {name, name.casefold()}
        ):
            there = brief(", ".join(dict.fromkeys(columns.values())), 400)
            raise UserError(
                f"--{flag}: in braces stands one of the columns of {path} and nothing more ({there}), not {brief(name)!r}"
            )
    if flag != "system" and all(name is None for _, name, _, _ in pieces):
        raise UserError(
            f"--{flag} names no column, so that every row would get the same text: write {{column}} into it"
        )
    return [
        (literal, None if name is None else columns.get(name, columns.get(name.casefold())), True)
        for literal, name, _, _ in pieces
    ]


def _filled(record: dict, template: Template) -> str:
    text = ""
    for literal, column, is_needed in template:
        value = "" if column is None else _text(record.get(column), column)
        if column is not None and is_needed and not value:
            raise _Unfit("empty", f"{column} is empty")
        text += literal + value
    return clean_pair(text)


def _number(text: str) -> float | str:
    """A number by its value, so that 1.0 is 1; any other text as it is."""
    try:
        return float(text) if math.isfinite(float(text)) else text
    except ValueError:
        return text


def _labels(text: str) -> dict[float | str, str]:
    labels: dict[float | str, str] = {}
    for entry in re.split("[,，]", text) if text else ():
        value, _, label = (clean_pair(part) for part in entry.partition("="))
        if not value or not label or _number(value) in labels:
            raise UserError(
                f'--labels: {entry!r} is {"given twice" if value and label else "no VALUE=LABEL"}; write --labels="1=正面,0=负面"'
            )
        labels[_number(value)] = label
    return labels
