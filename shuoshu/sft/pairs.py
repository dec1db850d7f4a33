"""Questions with their answers: repeats, closed sets of answers, equal labels."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from shuoshu.core.terminal import counted, display_width, shorten

MAX_EXAMPLES = 3  # stored for each reason to reject a record
MAX_COLUMNS_SHOWN = 30  # in a message
# Answers are a closed set (labels of a classification) within these limits.
MIN_LABELS, MAX_LABELS = 2, 20
MIN_PAIRS_PER_LABEL = 10  # on average
MAX_LABEL_COLUMNS = 40  # display width


@dataclass
class Pair:
    """A conversation that ends with the answer to learn; usually a question and its answer."""

    messages: list[dict[str, str]]
    source: str  # "file.json, row 17"
    split: str | None = None
    group: str | None = None
    extra: dict = field(default_factory=dict)  # the record's other texts, numbers and booleans
    uncut: str | None = None  # the last question, if its middle was cut and the answer is a label
    reading: str | None = None  # passages of a book with the question, if the model reads them

    @property
    def question(self) -> str:
        """The text that the model reads before it answers."""
        return "\n".join(message["content"] for message in self.messages[:-1])

    @property
    def prompted(self) -> list[dict[str, str]]:
        """The messages as the model reads them: with the passages of a book, if there are any."""
        if self.reading is None:
            return self.messages
        *before, question, answer = self.messages
        return [*before, {**question, "content": self.reading}, answer]

    @property
    def answer(self) -> str:
        return self.messages[-1]["content"]


class Rejection(NamedTuple):
    """Why a row of a file is not a record."""

    reason: str
    detail: str
    record: dict | None = None  # the row's values, if it has columns


@dataclass
class RejectedRecords:
    """The number of records read, and which were rejected, by reason and with examples."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    read: int = 0
    unused: Counter[str] = field(default_factory=Counter)  # rows with a value in an unused column
    unused_advice: str = ""  # an option that uses one of these columns
    notes: list[str] = field(default_factory=list)  # other things to print about the files

    def add(self, reason: str, source: str, text: str = "") -> None:
        """Counts a rejected record; `text` is what is wrong with it."""
        self.counts[reason] += 1
        if self.counts[reason] <= MAX_EXAMPLES:
            example = f"{source}: {preview(text)}" if text else source
            self.examples.setdefault(reason, []).append(example)


def clean_field(text: str) -> str:
    """The text as valid Unicode with \\n at line ends; removes NUL, BOMs and outer white space."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "").replace("\ufeff", "")
    return re.sub("[\ud800-\udfff]", "�", text).strip()


def scalar_text(value: object) -> str | None:
    """The text of a text, a finite number or a boolean, "" for null; None for anything else."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value).removesuffix(".0")
    return None


def preview(value: object, columns: int = 70) -> str:
    """A field's value on one line, shortened to this width."""
    if isinstance(value, str):
        # A character has at most two columns; the rest allows for white space that is joined.
        return shorten(" ".join(clean_field(value[: 4 * columns]).split()), columns)
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    return json.dumps(value)[:columns]


# ---------------------------------------------------------------- repeats and closed sets


def normalized(text: str) -> str:
    """The text without differences in width, case and white space, for comparisons."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def drop_repeats(
    pairs: list[Pair], rejected: RejectedRecords, within_splits: bool = True
) -> list[Pair]:
    """The pairs whose question is new in its split, or without `within_splits` in all of them.

    The others go to `rejected`: "duplicate" with the same answer, "contradictory" with another.
    """
    first: dict[tuple[str | None, str], Pair] = {}
    for pair in pairs:
        split = pair.split if within_splits else None
        known = first.setdefault((split, normalized(pair.question)), pair)
        if known is not pair:
            is_same = normalized(known.answer) == normalized(pair.answer)
            reason = "duplicate" if is_same else "contradictory"
            detail = f"{preview(pair.question, 40)} → {preview(pair.answer, 25)}"
            rejected.add(reason, pair.source, detail)
    return list(first.values())


def closed_set_labels(pairs: list[Pair]) -> list[str] | None:
    """The different answers, the most frequent first, if they are a closed set; else None.

    A closed set has few answers, all short and each with many pairs; no pair has several turns.
    """
    counts = Counter(pair.answer for pair in pairs)
    if why_not_closed(counts, pairs):
        return None
    return [answer for answer, _ in counts.most_common()]


def why_not_closed(counts: Counter[str], pairs: list[Pair]) -> str:
    """Why the pairs' answers, of which these are the counts, are no closed set; "" if they are."""
    if len(counts) < MIN_LABELS:
        return "all rows have the same answer" if counts else "there are no rows"
    if len(counts) > MAX_LABELS:
        return f"there are {len(counts):,} different answers, more than {MAX_LABELS}"
    if long := [answer for answer in counts if not is_short(answer)]:
        return f"an answer is longer than {MAX_LABEL_COLUMNS} columns: {preview(long[0], 40)}"
    if len(pairs) < MIN_PAIRS_PER_LABEL * len(counts):
        return (
            f"{len(pairs):,} rows are few for {len(counts)} different answers,"
            f" fewer than {MIN_PAIRS_PER_LABEL} for each"
        )
    earlier_roles = {message["role"] for pair in pairs for message in pair.messages[:-1]}
    return "some conversations have several turns" if "assistant" in earlier_roles else ""


def is_short(answer: str) -> bool:
    """Whether the answer has the length of a label."""
    return len(answer) <= MAX_LABEL_COLUMNS and display_width(answer) <= MAX_LABEL_COLUMNS


def label_key(label: str) -> float | str:
    """A number's value, so that 1.0 equals 1; true is 1 and false is 0. Other text is unchanged."""
    try:
        number = float({"true": "1", "false": "0"}.get(label.casefold(), label))
    except ValueError:
        return label
    return number if math.isfinite(number) else label


def merge_equal_labels(pairs: list[Pair]) -> list[str]:
    """Writes equal labels alike if the answers are a closed set of numbers and booleans.

    The shortest spelling becomes the label. Returns a note if an answer changes.
    """
    counts = Counter(pair.answer for pair in pairs)
    if not all(isinstance(label_key(answer), float) for answer in counts):
        return []
    labels: dict[float | str, str] = {}
    for answer in sorted(counts, key=lambda answer: (len(answer), -counts[answer])):
        labels.setdefault(label_key(answer), answer)
    changed = {answer: labels[label_key(answer)] for answer in counts}
    changed = {answer: label for answer, label in changed.items() if answer != label}
    merged = Counter(changed.get(pair.answer, pair.answer) for pair in pairs)
    if not changed or why_not_closed(merged, pairs):
        return []
    for pair in pairs:
        pair.messages[-1]["content"] = changed.get(pair.answer, pair.answer)
    merges = [f"{old} → {new} ({counted(counts[old], 'row')})" for old, new in changed.items()]
    return [f"equal labels are one label: {', '.join(merges)}"]
