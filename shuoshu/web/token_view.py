"""Looks inside a text: each token's probability, its alternatives, and what was copied.

Returns HTML for the page; `token_probabilities` is also the result of the API's /inside.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shuoshu.evaluation.copies import MIN_MARKED, TrainingText
from shuoshu.evaluation.html import escape_html
from shuoshu.evaluation.report_answers import mark_copies
from shuoshu.generation.chat_model import ChatModel
from shuoshu.generation.utf8 import WHOLE, TextStream
from shuoshu.text.tokenizer import Tokenizer
from shuoshu.web.labels import text_html

MAX_ALTERNATIVES = 8  # per piece
MIN_PROBABILITY = 0.0005  # of an alternative
MAX_CHUNK = 64  # positions whose logits are in memory at a time
MAX_SEARCHED = 100_000_000  # characters of the training text: some seconds
DARKEST_BITS = 8  # a piece with this much surprise has the darkest shade
LEGEND = (1, 0.5, 0.2, 0.05, 0.01)  # probabilities whose shades the legend shows

Alternative = tuple[str | None, float]  # (text, probability); None: the end of the text


@dataclass
class TokenPiece:
    """One token, or several that form a character together. Field names are the API's."""

    text: str
    probability: float  # before temperature, top-k and top-p; the product if several tokens
    others: list[Alternative]  # most probable first tokens in its place, the chosen one included


@torch.inference_mode()
def token_probabilities(model: ChatModel, prompt: list[int], ids: list[int]) -> list[TokenPiece]:
    """The pieces of `ids` with the model's probability of each, given the prompt and earlier ids.

    When the text is longer than the block, each piece is predicted from at least half a block.
    """
    tokenizer = model.tokenizer
    prompt = prompt or [tokenizer.start]  # as in generation
    all_ids = [*prompt, *ids]
    stream, pieces = TextStream(tokenizer), []
    state, probability, others = WHOLE, 1.0, []  # of the piece that is being put together
    chunk = min(MAX_CHUNK, model.block // 2)  # the rest of the block is context
    for start in range(len(prompt), len(all_ids), chunk):
        stop = min(start + chunk, len(all_ids))
        logits = chunk_logits(model, all_ids, start, stop)
        for token, row in zip(all_ids[start:stop], logits, strict=True):
            chances = row.masked_fill(model.mask.forbidden[state], -torch.inf).softmax(-1)
            others = others or alternatives(tokenizer, chances)
            probability *= chances[token].item()
            # A reader's own text may hold bytes that form no character. The state restarts there.
            state = max(WHOLE, int(model.mask.after[state, token]))
            if text := stream.push(token):
                pieces.append(TokenPiece(text, probability, others))
                probability, others = 1.0, []
    return pieces


def chunk_logits(model: ChatModel, ids: Sequence[int], start: int, stop: int) -> Tensor:
    """Logits (stop - start, V) that predict ids[start:stop], each from the ids before it."""
    first = max(0, stop - 1 - model.block)
    gpt = model.model
    context = torch.tensor([ids[first : stop - 1]], device=gpt.lm_head.weight.device)
    hidden = gpt.hidden(context)[0, start - 1 - first :]  # (stop - start, C)
    return gpt.lm_head(hidden).float()


def alternatives(tokenizer: Tokenizer, chances: Tensor) -> list[Alternative]:
    """The most probable tokens of chances (V,)."""
    top = chances.topk(min(MAX_ALTERNATIVES, len(chances)))
    return [
        (token_text(tokenizer, token), chance)
        for chance, token in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        if chance >= MIN_PROBABILITY
    ]


def token_text(tokenizer: Tokenizer, token: int) -> str | None:
    """A token's text, its bytes as <E6 B8> if they are a part of a character, None for the end.

    A special token's text is its name.
    """
    if token in tokenizer.ends:
        return None
    names = [name for name, number in tokenizer.specials.items() if number == token]
    if names:
        return names[0]
    token_bytes = tokenizer.token_bytes[token]
    try:
        return token_bytes.decode("utf-8")
    except UnicodeDecodeError:
        return f"<{token_bytes.hex(' ').upper()}>"


# ---------------------------------------------------------------- HTML


def shade(probability: float) -> str:
    """How dark a piece is, from 0 (certain) to 1 (a surprise of DARKEST_BITS or more).

    page.css turns it into a colour.
    """
    bits = abs(math.log2(max(probability, 1e-9)))
    return f"{min(1.0, bits / DARKEST_BITS):.2f}"


def pieces_html(pieces: list[TokenPiece], context: str) -> str:
    """The text in pieces, the less probable the darker, after the HTML of its context.

    Each piece carries its alternatives, which page.js shows when the reader chooses it.
    """
    buttons = "".join(piece_button(piece, number == 0) for number, piece in enumerate(pieces))
    legend = "".join(
        f'<span class="piece" style="--shade:{shade(p)}">{p:.0%}</span>' for p in LEGEND
    )
    return (
        '<div class="inside">'
        f'<p class="soft">{text_html("probability_legend")}{legend}<br>'
        f"{text_html('choose_piece')}</p>"
        f'<p class="pieces" role="group"><span class="context">{context}</span>{buttons}</p>'
        '<div class="chosen" aria-live="polite"></div></div>'
    )


def piece_button(piece: TokenPiece, is_first: bool) -> str:
    """A piece as a button; only the first is reached by Tab, the others by the arrow keys."""
    others = json.dumps([[text, round(p, 4)] for text, p in piece.others], ensure_ascii=False)
    text = escape_html(piece.text).replace("\n", "↵\n")
    return (
        f'<button type="button" class="piece" tabindex="{0 if is_first else -1}"'
        f' style="--shade:{shade(piece.probability)}" data-p="{piece.probability:.4f}"'
        f' data-others="{escape_html(others)}" aria-pressed="false">{text}</button>'
    )


def copied_html(text: str, training_text: TrainingText | None) -> str:
    """The text with its copies from the training text marked, and a list of where they are."""
    if training_text is None:
        return f'<p class="soft">{text_html("no_training_text")}</p>'
    if training_text.characters > MAX_SEARCHED:
        return f'<p class="soft">{text_html("training_text_too_long", MAX_SEARCHED)}</p>'
    [(_, spans)] = training_text.find_copies([text])
    if not spans:
        return f'<p class="soft">{text_html("no_copies", MIN_MARKED)}</p>'
    segments = mark_copies(text, spans).segments
    marked = "".join(segment_html(segment, number) for segment, number in segments)
    places = []
    for start, stop, place in spans:
        name = escape_html(place) if place else text_html("training_text")
        places.append(f"<li>{name} · {text_html('characters', stop - start)}</li>")
    return (
        f'<div class="copied"><p class="soft">{text_html("copies", MIN_MARKED)}</p>'
        f'<p class="text">{marked}</p><ol>{"".join(places)}</ol></div>'
    )


def segment_html(segment: str, number: int | None) -> str:
    """A part of a text; a copy is marked and has the number of its place."""
    if number is None:
        return escape_html(segment)
    visible = segment.rstrip()  # the number comes before a line break, not on the next line
    rest = escape_html(segment[len(visible) :])
    return f"<mark>{escape_html(visible)}<sup>{number}</sup></mark>{rest}"
