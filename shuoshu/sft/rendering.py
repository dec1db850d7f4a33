"""Rendering: conversations to rows of tokens. Shortens or splits those that are too long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from shuoshu.core.errors import UserError
from shuoshu.core.terminal import shorten
from shuoshu.sft.pairs import Pair, RejectedRecords
from shuoshu.text.tokenizer import RenderedRow, Tokenizer

# Room for the answer that a long question must leave in each row, in tokens and as a share of the
# row. With less room an answer would need too many rows.
MIN_ANSWER_TOKENS, MIN_ANSWER_SHARE = 16, 1 / 8
MIN_QUESTION_CHARACTERS = 16  # of a shortened question; fewer don't say what is asked
MIN_TEXT_CHARACTERS = 4  # of them outside the question's template


class RenderedPair(NamedTuple):
    pair: Pair
    rows: list[RenderedRow]  # several if the answer is too long for one, or: see render_rows


def render_pairs(
    pairs: Sequence[Pair],
    tokenizer: Tokenizer,
    width: int,
    too_long: str,
    rejected: RejectedRecords,
) -> list[RenderedPair]:
    """The rows of each pair, up to `width` tokens each.

    Pairs that are too long are split over several rows if `too_long` is "window" and their
    questions leave room; else they go to `rejected`. Raises UserError if it is "error".
    """
    rendered: list[RenderedPair] = []
    long: list[tuple[int, Pair]] = []  # (tokens, pair)
    for pair in pairs:
        rows = tokenizer.render_rows(pair.prompted)
        length = max(len(ids) for ids, _ in rows)
        if length > width:
            long.append((length, pair))
            rows = _split_rows(rows, width) if too_long == "window" else []
        if rows:
            rendered.append(RenderedPair(pair, rows))
        else:
            rejected.add("too long", pair.source, f"{length:,} tokens: {pair.question}")
    if long and too_long == "error":
        raise UserError(_too_long_message(long, len(pairs), width))
    return rendered


def _too_long_message(long: list[tuple[int, Pair]], count: int, width: int) -> str:
    length, pair = max(long, key=lambda item: item[0])
    question = shorten(" ".join(pair.question.split()), 90)
    shorter = "  --too_long=cut_question  removes the middle of their questions"
    if pair.reading:
        shorter = "  fewer --passages         leaves more room for the answers"
    return (
        f"{len(long):,} of {count:,} pairs are longer than the model's {width - 1:,} tokens."
        f" The longest, {pair.source}, has {length:,}:\n"
        f"  {question}\n"
        f"choose --block_size={length - 1} (and train with it), which fits all, or\n"
        "  --too_long=drop          leaves these pairs out\n"
        f"{shorter}\n"
        "  --too_long=window        splits their answers over several rows"
    )


def _split_rows(rows: Sequence[RenderedRow], width: int) -> list[RenderedRow]:
    """The rows, with several in place of each that is too long; empty if one can't be split."""
    result: list[RenderedRow] = []
    for ids, mask in rows:
        parts = [(ids, mask)] if len(ids) <= width else split_long_answer(ids, mask, width)
        if parts is None:
            return []
        result += parts
    return result


def is_split(rows: Sequence[RenderedRow], tokenizer: Tokenizer) -> bool:
    """Whether an answer is split over several of these rows."""
    return any(ids[-1] != tokenizer.answer_end for ids, _ in rows)


def split_long_answer(ids: list[int], mask: list[int], width: int) -> list[RenderedRow] | None:
    """Splits a conversation that is too long over several rows; each trains a part of the answer.

    Each row has all before the last answer, then the end of the previous part as context, then the
    next part. Example: an answer of 9 tokens, room for 4 of them, trained ones in brackets:

        question [1 2 3 4]    question 3 4 [5 6]    question 5 6 [7 8]    question 7 8 [9]

    None if the question leaves too little room for the answer.
    """
    start = len(ids) - mask[::-1].index(0)  # of the last answer
    room = width - start
    if room < max(MIN_ANSWER_TOKENS, int(width * MIN_ANSWER_SHARE)):
        return None
    rows, done = [(ids[:width], mask[:width])], width
    while done < len(ids):
        context = min(done - start, room // 2)
        end = min(len(ids), done + room - context)
        row = ids[:start] + ids[done - context : end]
        rows.append((row, [0] * (start + context) + [1] * (end - done)))
        done = end
    return rows


def cut_long_questions(
    pairs: Sequence[Pair],
    tokenizer: Tokenizer,
    width: int,
    ends: tuple[str, str] = ("", ""),
    labels: Sequence[str] = (),
) -> int:
    """Removes the middle of questions where that makes a pair fit; returns their number.

    With labels, a question leaves room for the longest one, so that its length doesn't tell its
    label. `ends`: see cut_question.
    """
    longest = longest_answer(tokenizer, labels) if labels else None
    count = 0
    for pair in pairs:
        *before, answer = pair.messages
        messages = [*before, {**answer, "content": longest}] if longest else pair.messages
        if row_length(tokenizer, messages) > width:
            cut = cut_question(tokenizer, messages, width, ends)
            if cut:
                last = pair.messages[-2]["content"]
                pair.uncut = last if labels and cut[-2]["content"] != last else None
                pair.messages, count = [*cut[:-1], answer], count + 1
    return count


def longest_answer(tokenizer: Tokenizer, answers: Sequence[str]) -> str:
    """The answer with the most tokens."""
    return max(answers, key=lambda answer: len(tokenizer.encode_answer(answer)))


def row_length(tokenizer: Tokenizer, messages: Sequence[dict[str, str]]) -> int:
    """The number of tokens of the conversation's longest row."""
    return max(len(ids) for ids, _ in tokenizer.render_rows(messages))


def cut_question(
    tokenizer: Tokenizer,
    messages: list[dict[str, str]],
    width: int,
    ends: tuple[str, str] = ("", ""),
) -> list[dict[str, str]] | None:
    """The conversation with … for the middle of its longest question, so that it fits.

    `ends` are the texts that a template puts before and after each question; they stay. As much of
    the question as possible remains. None if too little of it would remain.
    """
    longest = max((m for m in messages if m["role"] == "user"), key=lambda m: len(m["content"]))
    text = without_ends(longest["content"], ends)
    before, after = ends if text != longest["content"] else ("", "")
    low = max(MIN_TEXT_CHARACTERS, MIN_QUESTION_CHARACTERS - len(before + after))
    high = len(text)
    best = None
    while low < high:  # binary search for the largest number of characters that fits
        remaining = (low + high) // 2
        short = text[: (remaining + 1) // 2] + "…" + text[len(text) - remaining // 2 :]
        content = before + short + after
        cut = [{**m, "content": content} if m is longest else m for m in messages]
        if row_length(tokenizer, cut) <= width:
            best, low = cut, remaining + 1
        else:
            high = remaining
    return best


def without_ends(text: str, ends: tuple[str, str]) -> str:
    """What stands between the ends of a template; the whole text if it doesn't have them."""
    before, after = ends
    has_ends = text.startswith(before) and text.endswith(after)
    if not has_ends or len(text) <= len(before) + len(after):
        return text
    return text[len(before) : len(text) - len(after)]
