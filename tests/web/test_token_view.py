"""Looking inside a text: probabilities, alternatives, what was copied, and all of it as HTML."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from shuoshu.evaluation.copies import MIN_MARKED, TrainingText
from shuoshu.generation.chat_model import ChatModel
from shuoshu.generation.sampling import SamplingParams
from shuoshu.generation.utf8 import WHOLE, TextStream, Utf8Mask
from shuoshu.models import weights
from shuoshu.web import token_view

EVIL = "<script>alert(1)</script> **b** <img src=x onerror=alert(1)> '\"& \x00\x1b\x7f\x85\r"


@pytest.fixture(scope="module")
def voice(pretrained: Path) -> ChatModel:
    return ChatModel(weights.load_model(pretrained), torch.device("cpu"))


@pytest.fixture(scope="module")
def sources(pretrained: Path) -> TrainingText:
    return TrainingText.find(pretrained)


def plain(voice, context: list[int], token: int, state: int) -> float:
    """The probability of a token after a context, by a forward pass and the mask alone."""
    with torch.inference_mode():
        logits = voice.model.lm_head(voice.model.hidden(torch.tensor([context])))[0, -1].float()
    return (
        logits.masked_fill(
            Utf8Mask(voice.tokenizer, len(logits), logits.device).forbidden[state], -torch.inf
        )
        .softmax(-1)[token]
        .item()
    )


def by_hand(voice: ChatModel, prompt: list[int], ids: list[int]) -> list[float]:
    """The probability of each token after all that came before it."""
    whole, state, chances = [*prompt, *ids], WHOLE, []
    for at in range(len(prompt), len(whole)):
        chances.append(plain(voice, whole[:at], whole[at], state))
        state = max(WHOLE, int(voice.mask.after[state, whole[at]]))
    return chances


def test_within_a_block_a_piece_is_as_likely_as_a_plain_forward_pass_holds_it(voice):
    prompt, ids = voice.tokenizer.encode("清晨，沈砚"), voice.tokenizer.encode("在渡口🏮点灯。é")
    pieces, expected = (
        token_view.token_probabilities(voice, prompt, ids),
        by_hand(voice, prompt, ids),
    )
    assert "".join(piece.text for piece in pieces) == "在渡口🏮点灯。é"
    assert math.prod(piece.probability for piece in pieces) == pytest.approx(
        math.prod(expected), rel=1e-3, abs=0
    )
    lamp = next(piece for piece in pieces if "🏮" in piece.text)
    at = next(n for n in range(len(ids)) if "🏮" in voice.tokenizer.decode(ids[: n + 1]))
    first = next(n for n in range(at + 1) if "\ufffd" in voice.tokenizer.decode(ids[: n + 1]))
    assert at > first and lamp.probability == pytest.approx(
        math.prod(expected[first : at + 1]), rel=1e-3, abs=0
    )


def is_seen_after_half_a_block(
    voice: ChatModel, whole: list[int], at: int, probability: float
) -> bool:
    """Whether it is the probability of whole[at] after some context that is as long as can be, or half a block at least."""
    contexts = range(min(at, voice.block // 2), min(at, voice.block) + 1)
    return any(
        math.isclose(probability, plain(voice, whole[at - n : at], whole[at], WHOLE), rel_tol=1e-3)
        for n in contexts
    )


def test_beyond_a_block_a_piece_is_seen_after_half_a_block_at_least(voice):
    prompt = voice.tokenizer.encode("清晨，沈砚")
    params = SamplingParams(max_new_tokens=2 * voice.block + 20)
    [written] = voice.complete([prompt], params, [1])
    pieces, spelling, single, state = (
        iter(token_view.token_probabilities(voice, prompt, written.ids)),
        TextStream(voice.tokenizer),
        {},
        WHOLE,
    )
    for at, token in enumerate(written.ids, len(prompt)):
        before, state = state, int(voice.mask.after[state, token])
        if spelling.push(token):
            piece = next(pieces)
            single |= {at: piece.probability} if before == WHOLE else {}
    chosen = [*single][::5]
    assert len(chosen) > 8 and chosen[-1] > 2 * voice.block
    assert [
        at
        for at in chosen
        if not is_seen_after_half_a_block(voice, [*prompt, *written.ids], at, single[at])
    ] == []


def test_alternatives_are_sorted_likely_and_hold_the_choice_of_a_greedy_text(voice):
    params = SamplingParams(max_new_tokens=40, temperature=0)
    [greedy] = voice.complete([[voice.tokenizer.end]], params, [1])
    for piece in token_view.token_probabilities(voice, [], greedy.ids):
        chances = [p for _, p in piece.others]
        assert (
            chances == sorted(chances, reverse=True)
            and len(chances) <= token_view.STRONGEST
            and min(chances) >= token_view.LEAST
        )
        first = piece.others[0]
        assert first[0].startswith("<") or (
            piece.text.startswith(first[0]) and piece.probability <= first[1] + 1e-6
        )


def test_a_readers_own_odd_text_is_looked_into_whole(voice):
    for odd in ("a\x00b\x7f", "e\u0301\u200d👩‍👩‍👧", "?\ufffd?", " \n\t", "ÿ" * 200):
        pieces = token_view.token_probabilities(voice, [], voice.tokenizer.encode(odd))
        assert "".join(piece.text for piece in pieces) == odd
        assert all(0 <= piece.probability <= 1 for piece in pieces)


def test_pieces_and_copies_hold_no_markup_but_the_pages_own(sources, text):
    line = next(line for line in text.split("\n")[40:] if len(line) > 60)
    shown = token_view.pieces_html(
        [token_view.Piece(EVIL, 0.5, [(EVIL, 0.5), (None, 0.1)])], "known"
    ) + token_view.copied_html(EVIL + line + EVIL, sources)
    assert "<mark>" in shown
    assert (
        "<script" not in shown
        and "<img" not in shown
        and not re.search(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]", shown)
    )
    assert set(re.findall(r"<(\w+)", shown)) <= {
        "div",
        "p",
        "span",
        "br",
        "button",
        "mark",
        "sup",
        "ol",
        "li",
    }
    [others] = re.findall(r'data-others="([^"]*)"', shown)
    assert "<" not in others and "&quot;" in others


def test_a_copied_span_names_its_book_and_chapter(sources, text):
    line = next(line for line in text.split("\n")[40:] if len(line) > 60)
    shown = token_view.copied_html(f"我说：{line[5:35]}！？", sources)
    assert re.search(rf"<mark>{re.escape(line[5:35])}<sup>1</sup></mark>", shown)
    assert re.search(r"<li>《book》第.回.*30 字", shown)
    assert "<mark>" not in token_view.copied_html(line[5 : 5 + MIN_MARKED - 1], sources)


def test_without_its_training_text_a_copy_is_not_denied():
    shown = token_view.copied_html("清晨", None)
    assert "no longer there" in shown and "verbatim" not in shown
