"""A look inside a text: how likely the model held each piece of it, what it would rather have written, what stands in its training text."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import torch

from shuoshu.evaluation.copies import MIN_MARKED, TrainingText
from shuoshu.evaluation.html import bilingual, escape_html
from shuoshu.generation.chat_model import ChatModel
from shuoshu.generation.utf8 import WHOLE, TextStream
from shuoshu.text.tokenizer import Tokenizer

STRONGEST = 8  # alternatives that are shown
LEAST = 0.0005  # probability of an alternative that is worth a line
CHUNK = 64  # positions whose whole vocabulary is looked at together, at most


@dataclass
class Piece:
    """A token, or as many as make a whole character."""

    text: str
    probability: float  # before temperature and top-k
    others: list[tuple[str | None, float]]  # the likeliest at its place, None: the end of the text


@torch.inference_mode()
def token_probabilities(voice: ChatModel, prompt: list[int], ids: list[int]) -> list[Piece]:
    """The pieces of `ids`, each as likely as the model held it after the prompt and what came before."""
    model, tokenizer, block = voice.model, voice.tokenizer, voice.block
    prompt = prompt or [tokenizer.end]
    whole, device = [*prompt, *ids], model.lm_head.weight.device
    pieces: list[Piece] = []
    spelling, state, probability, others = TextStream(tokenizer), WHOLE, 1.0, []
    chunk = min(CHUNK, block // 2)  # the rest of the block is context
    for start in range(len(prompt), len(whole), chunk):
        stop = min(start + chunk, len(whole))
        first = max(0, stop - 1 - block)
        hidden = model.hidden(torch.tensor([whole[first : stop - 1]], device=device))[
            0, start - 1 - first :
        ]
        for token, logits in zip(whole[start:stop], model.lm_head(hidden).float(), strict=True):
            chances = logits.masked_fill(voice.mask.forbidden[state], -torch.inf).softmax(-1)
            if not others:
                likeliest = chances.topk(min(STRONGEST, len(chances)))
                others = [
                    (token_text(tokenizer, i), p)
                    for p, i in zip(*(part.tolist() for part in likeliest), strict=True)
                    if p >= LEAST
                ]
            probability *= chances[token].item()
            state = max(
                WHOLE, int(voice.mask.after[state, token])
            )  # bytes that are no character, in a reader's own text
            if written := spelling.push(token):
                pieces.append(Piece(written, probability, others))
                probability, others = 1.0, []
    return pieces


def token_text(tokenizer: Tokenizer, token: int) -> str | None:
    """A token as a reader may see it: its text, its bytes where they are a part of a character, None for the end."""
    if token == tokenizer.end:
        return None
    spelt = tokenizer.token_bytes[token]
    try:
        return spelt.decode("utf-8")
    except UnicodeDecodeError:
        return f"<{spelt.hex(' ').upper()}>"


def shade(probability: float) -> str:
    """How dark a piece is: 0 for the certain, 1 from eight bits of surprise on."""
    return f"{min(1.0, abs(math.log2(max(probability, 1e-9))) / 8):.2f}"


def pieces_html(pieces: list[Piece], known: str) -> str:
    """The text in pieces, the less expected the darker; page.js shows a chosen one's alternatives, which each piece carries."""
    buttons = []
    for number, piece in enumerate(pieces):
        told = json.dumps([[word, round(p, 4)] for word, p in piece.others], ensure_ascii=False)
        shown = escape_html(piece.text).replace("\n", "↵\n")
        buttons.append(
            f'<button type="button" class="piece" tabindex="{0 if number == 0 else -1}" style="--s:{shade(piece.probability)}" '
            f'data-p="{piece.probability:.4f}" data-others="{escape_html(told)}" aria-pressed="false">{shown}</button>'
        )
    scale = "".join(
        f'<span class="piece" style="--s:{shade(p)}">{p:.0%}</span>'
        for p in (1, 0.5, 0.2, 0.05, 0.01)
    )
    legend = bilingual("模型当时给每一处的概率：", "How likely the model held each piece: ")
    hint = bilingual(
        "点一处看它本来还会写什么（键盘：左右键移动）。",
        "Choose a piece to see what else it might have written (keyboard: left and right).",
    )
    return (
        f'<div class="inside"><p class="soft">{legend}{scale}<br>{hint}</p>'
        f'<p class="pieces" role="group"><span class="known">{known}</span>{"".join(buttons)}</p>'
        '<div class="chosen" aria-live="polite"></div></div>'
    )


def copied_html(written: str, sources: TrainingText | None) -> str:
    """Which spans of a text stand verbatim in the training text, and where."""
    if sources is None:
        return f'<p class="soft">{bilingual("训练文本已不在原处，无法查对照抄。", "The training text is no longer there: what is copied can not be told.")}</p>'
    spans = sources.spans(written)
    if not spans:
        none = bilingual(
            f"没有 {MIN_MARKED} 字以上与训练文本逐字相同的地方。",
            f"No {MIN_MARKED} characters in a row stand verbatim in the training text.",
        )
        return f'<p class="soft">{none}</p>'
    parts, places, done = [], [], 0
    for number, (start, end, place) in enumerate(spans, 1):
        parts.append(
            f"{escape_html(written[done:start])}<mark>{escape_html(written[start:end])}<sup>{number}</sup></mark>"
        )
        places.append(
            f"<li>{escape_html(place) if place else bilingual('训练文本', 'training text')} · {bilingual(f'{end - start} 字', f'{end - start} characters')}</li>"
        )
        done = end
    head = bilingual(
        f"训练文本里逐字有的（{MIN_MARKED} 字以上）：",
        f"Verbatim in the training text ({MIN_MARKED} characters or more):",
    )
    return f'<div class="copied"><p class="soft">{head}</p><p class="text">{"".join(parts)}{escape_html(written[done:])}</p><ol>{"".join(places)}</ol></div>'
