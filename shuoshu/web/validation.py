"""Checks every value that comes from the page or the API before a model sees it."""

from __future__ import annotations

import math
import re
import secrets
from typing import NamedTuple

from shuoshu.core.command_settings import SampleSettings
from shuoshu.core.errors import UserError
from shuoshu.sft.pairs import clean_field
from shuoshu.web.labels import error_text

MAX_TEXT_CHARS = 20_000  # of a question or a beginning
MAX_INSPECTED_CHARS = 2_000
MAX_HISTORY_TURNS = 100
MAX_JUDGED_TEXTS = 200
MAX_JUDGED_CHARS = 200_000  # of these texts together
MAX_JS_INTEGER = 2**53  # larger integers lose digits in JavaScript
MAX_SEED_DIGITS = 19
DEFAULT_NEW_TOKENS = 200
ANSWER_WAYS = ("auto", "write", "recall", "read")

# The order in which the page passes its settings.
SETTING_NAMES = ("temperature", "top_p", "top_k", "max_new_tokens", "repetition_penalty", "seed")


class Range(NamedTuple):
    low: float
    high: float
    step: float  # an integer if the setting is one
    default: float


def setting_ranges(max_new_tokens: int) -> dict[str, Range]:
    """The range of every setting but the seed; `max_new_tokens` is the limit of this page."""
    return {
        "temperature": Range(0, 2, 0.05, 0.8),
        "top_p": Range(0.05, 1, 0.05, 1),
        "top_k": Range(0, 1000, 1, 200),
        "max_new_tokens": Range(1, max_new_tokens, 1, min(DEFAULT_NEW_TOKENS, max_new_tokens)),
        "repetition_penalty": Range(1, 2, 0.05, 1),
    }


def parse_text(value: object, max_chars: int = MAX_TEXT_CHARS) -> str:
    """The text, with "?" for what UTF-8 can't encode. Raises UserError if it is too long."""
    if not isinstance(value, str):
        raise UserError(error_text("not_text", type(value).__name__))
    if len(value) > max_chars:
        raise UserError(error_text("too_long", max_chars, len(value)))
    return value.encode("utf-8", "replace").decode()


def parse_sampling_settings(values: dict[str, object], max_new_tokens: int) -> SampleSettings:
    """Settings for one text; None means the default. Raises UserError if one is out of range.

    Without a seed, each text gets a random one.
    """
    ranges = setting_ranges(max_new_tokens)
    parsed: dict[str, object] = {"max_new_tokens": ranges["max_new_tokens"].default}
    for name, limits in ranges.items():
        if values.get(name) is not None:
            is_integer = isinstance(limits.step, int)
            parsed[name] = _number(name, values[name], limits.low, limits.high, is_integer)
    if parsed.get("top_k") == 0:
        parsed["top_k"] = None
    if values.get("precision") is not None:
        parsed["precision"] = _number("precision", values["precision"], 0, 1, is_integer=False)
    if way := values.get("answer_by"):
        if way not in ANSWER_WAYS:
            raise UserError(error_text("unknown_way", ", ".join(ANSWER_WAYS)))
        parsed["answer_by"] = way
    return SampleSettings(**parsed, seed=_seed(values.get("seed")))


def _seed(value: object) -> int:
    if isinstance(value, str):  # the page's own text field
        value = value.strip() or None
    if value is None:
        return secrets.randbelow(2**31)
    is_digits = isinstance(value, str) and value.isascii() and value.isdigit()
    if is_digits and len(value) <= MAX_SEED_DIGITS:
        value = int(value)
    return _number("seed", value, 0, MAX_JS_INTEGER, is_integer=True)


def _number(name: str, value: object, low: float, high: float, is_integer: bool) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or (isinstance(value, float) and not math.isfinite(value)):
        got = value if isinstance(value, float) else type(value).__name__
        raise UserError(error_text("not_number", name, got))
    if not low <= value <= high:
        raise UserError(error_text("out_of_range", name, f"{low:g}", f"{high:g}"))
    if is_integer and value != int(value):
        raise UserError(error_text("not_integer", name, value))
    return int(value) if is_integer else value


def parse_history(value: object) -> list[dict[str, str]]:
    """[[question, answer], …] as the messages of a conversation."""
    pairs = value or []
    is_pairs = isinstance(pairs, list) and all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs
    )
    if not is_pairs:
        raise UserError(error_text("not_history"))
    if len(pairs) > MAX_HISTORY_TURNS:
        raise UserError(error_text("out_of_range", "history", 0, MAX_HISTORY_TURNS))
    return [
        {"role": role, "content": parse_text(text)}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def parse_texts(value: object) -> list[str]:
    """Texts to judge, without outer white space. Raises UserError if one is empty or too long."""
    if not isinstance(value, list):
        raise UserError(error_text("not_texts"))
    if len(value) > MAX_JUDGED_TEXTS:
        raise UserError(error_text("too_many_texts", MAX_JUDGED_TEXTS, len(value)))
    texts = [clean_field(parse_text(text)) for text in value]
    if not all(texts):
        raise UserError(error_text("no_text"))
    if (total := sum(map(len, texts))) > MAX_JUDGED_CHARS:
        raise UserError(error_text("too_long", MAX_JUDGED_CHARS, total))
    return texts


def parse_table(value: object) -> list[str]:
    """The lines of a pasted table that aren't blank. Raises UserError if a line is too long."""
    lines = re.split("\r\n|\r|\n", parse_text(value, MAX_JUDGED_CHARS))
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_TEXT_CHARS:
            raise UserError(error_text("line_too_long", number, MAX_TEXT_CHARS, len(line)))
    return parse_texts([line for line in lines if clean_field(line)] or [""])
