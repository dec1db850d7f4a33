"""What a reader may ask for: every value from the page or the API is checked here before a model sees it."""

from __future__ import annotations

import math
import secrets
from typing import NamedTuple

from shuoshu.core.command_settings import SampleSettings
from shuoshu.core.errors import UserError
from shuoshu.web.labels import bilingual_message

LONGEST = 20_000  # characters of a question or a beginning
LOOKED = 2_000  # characters that are looked into


class Range(NamedTuple):
    low: float
    high: float
    step: float
    default: float


def ranges(longest: int) -> dict[str, Range]:
    """What a reader may turn, and how far; `longest` is the page's own limit in tokens."""
    return {
        "temperature": Range(0, 2, 0.05, 0.8),
        "top_p": Range(0.05, 1, 0.05, 1),
        "top_k": Range(0, 1000, 1, 200),
        "max_new_tokens": Range(1, longest, 1, min(200, longest)),
        "repetition_penalty": Range(1, 2, 0.05, 1),
    }


def parse_text(value: object, longest: int = LONGEST) -> str:
    """A text that is not too long, what UTF-8 can't hold replaced."""
    if not isinstance(value, str):
        raise UserError(bilingual_message("no_text", type(value).__name__))
    if len(value) > longest:
        raise UserError(bilingual_message("long", longest, len(value)))
    return value.encode("utf-8", "replace").decode()


def parse_settings(values: dict[str, object], longest: int) -> SampleSettings:
    """Settings for one text; None stands for a default, without a seed each text is another one."""
    chosen: dict[str, object] = {}
    for name, knob in ranges(longest).items():
        if values.get(name) is not None:
            chosen[name] = _number(
                name, values[name], knob.low, knob.high, is_whole=isinstance(knob.step, int)
            )
    chosen.setdefault("max_new_tokens", ranges(longest)["max_new_tokens"].default)
    if chosen.get("top_k") == 0:
        chosen["top_k"] = None
    seed = values.get("seed")
    if isinstance(seed, str):  # the page's own field, which may be empty
        seed = (
            int(seed)
            if seed.strip().isascii() and seed.strip().isdigit() and len(seed) < 20
            else seed.strip() or None
        )
    return SampleSettings(
        **chosen,
        seed=secrets.randbelow(2**31)
        if seed is None
        else _number("seed", seed, 0, 2**53, is_whole=True),
    )


def _number(name: str, value: object, low: float, high: float, is_whole: bool = False) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or (isinstance(value, float) and not math.isfinite(value))
    ):
        raise UserError(
            bilingual_message(
                "no_number", name, type(value).__name__ if not isinstance(value, float) else value
            )
        )
    if not low <= value <= high:
        raise UserError(bilingual_message("bounds", name, f"{low:g}", f"{high:g}"))
    if is_whole and value != int(value):
        raise UserError(bilingual_message("no_whole", name, value))
    return int(value) if is_whole else value


def parse_history(value: object) -> list[dict[str, str]]:
    """[[question, answer], …] as a conversation's messages."""
    if not isinstance(value or [], list) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in value or []
    ):
        raise UserError(bilingual_message("history"))
    if len(value or []) > 100:
        raise UserError(bilingual_message("bounds", "history", 0, 100))
    roles = ("user", "assistant")
    return [
        {"role": role, "content": parse_text(part)}
        for pair in value or []
        for role, part in zip(roles, pair, strict=True)
    ]
