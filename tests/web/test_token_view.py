"""Looking inside a text: probabilities, alternatives, copies, and their HTML."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from shuoshu.evaluation.copies import MIN_MARKED, TrainingText
from shuoshu.generation.chat_model import ChatModel
from shuoshu.generation.sampling import SamplingParams
from shuoshu.generation.utf8 import WHOLE, TextStream
from shuoshu.models.weights import load_model
from shuoshu.web import token_view

EVIL = "<script>alert(1)</script> **b** <img src=x onerror=alert(1)> '\"& \x00\x1b\x7f\x85\r"


@pytest.fixture(scope="module")
def model(pretrained: Path) -> ChatModel:
    return ChatModel(load_model(pretrained))


@pytest.fixture(scope="module")
def training_text(pretrained: Path) -> TrainingText:
    return TrainingText.find(pretrained)


@pytest.fixture(scope="module")
def line(text: str) -> str:
    """A line of the training text."""
    return next(line for line in text.split("\n")[40:] if len(line) > 60)


# ---------------------------------------------------------------- probabilities


def forward_probability(model: ChatModel, context: list[int], token: int, state: int) -> float:
    """The probability of a token after a context, by one forward pass and the UTF-8 mask."""
    with torch.inference_mode():
        hidden = model.model.hidden(torch.tensor([context]))
        logits = model.model.lm_head(hidden)[0, -1].float()
    logits = logits.masked_fill(model.mask.forbidden[state], -torch.inf)
    return logits.softmax(-1)[token].item()


def forward_probabilities(model: ChatModel, prompt: list[int], ids: list[int]) -> list[float]:
    """The probability of each of `ids` after everything before it."""
    all_ids, state, chances = [*prompt, *ids], WHOLE, []
    for at in range(len(prompt), len(all_ids)):
        chances.append(forward_probability(model, all_ids[:at], all_ids[at], state))
        state = max(WHOLE, int(model.mask.after[state, all_ids[at]]))
    return chances


def test_probabilities_within_a_block_equal_those_of_forward_passes(model):
    tokenizer, text = model.tokenizer, "在渡口🏮点灯。é"
    prompt, ids = tokenizer.encode("清晨，沈砚"), tokenizer.encode(text)
    pieces = token_view.token_probabilities(model, prompt, ids)
    expected = forward_probabilities(model, prompt, ids)
    assert "".join(piece.text for piece in pieces) == text
    product = math.prod(piece.probability for piece in pieces)
    assert product == pytest.approx(math.prod(expected), rel=1e-3, abs=0)

    # The lamp is several tokens, first … last. Its piece has the product of their probabilities.
    prefixes = [tokenizer.decode(ids[: n + 1]) for n in range(len(ids))]
    last = next(n for n, prefix in enumerate(prefixes) if "🏮" in prefix)
    first = next(n for n, prefix in enumerate(prefixes) if "\ufffd" in prefix)
    lamp = next(piece for piece in pieces if "🏮" in piece.text)
    product = math.prod(expected[first : last + 1])
    assert last > first and lamp.probability == pytest.approx(product, rel=1e-3, abs=0)


def has_half_a_block_of_context(
    model: ChatModel, ids: list[int], at: int, probability: float
) -> bool:
    """True if it is the probability of ids[at] after a context of half a block or more."""
    lengths = range(min(at, model.block // 2), min(at, model.block) + 1)
    return any(
        math.isclose(
            probability,
            forward_probability(model, ids[at - length : at], ids[at], WHOLE),
            rel_tol=1e-3,
        )
        for length in lengths
    )


def test_beyond_a_block_each_piece_has_half_a_block_of_context(model):
    prompt = model.tokenizer.encode("清晨，沈砚")
    params = SamplingParams(max_new_tokens=2 * model.block + 20)
    [written] = model.complete([prompt], params, [1])
    ids, state, stream = [*prompt, *written.ids], WHOLE, TextStream(model.tokenizer)
    pieces = iter(token_view.token_probabilities(model, prompt, written.ids))
    probabilities = {}  # index of a token → its probability, for pieces of one token
    for at in range(len(prompt), len(ids)):
        before, state = state, int(model.mask.after[state, ids[at]])
        if stream.push(ids[at]):
            piece = next(pieces)
            if before == WHOLE:
                probabilities[at] = piece.probability
    chosen = list(probabilities)[::5]
    assert len(chosen) > 8 and chosen[-1] > 2 * model.block
    for at in chosen:
        assert has_half_a_block_of_context(model, ids, at, probabilities[at]), at


def test_alternatives_are_sorted_and_begin_with_the_choice_of_a_greedy_text(model):
    params = SamplingParams(max_new_tokens=40, temperature=0)
    [greedy] = model.complete([[model.tokenizer.end]], params, [1])
    for piece in token_view.token_probabilities(model, [], greedy.ids):
        chances = [chance for _, chance in piece.others]
        assert chances == sorted(chances, reverse=True)
        assert len(chances) <= token_view.MAX_ALTERNATIVES
        assert min(chances) >= token_view.MIN_PROBABILITY
        text, chance = piece.others[0]
        is_part_of_character = text.startswith("<")
        assert is_part_of_character or piece.text.startswith(text)
        assert is_part_of_character or piece.probability <= chance + 1e-6


@pytest.mark.parametrize(
    "odd", ["a\x00b\x7f", "e\u0301\u200d👩‍👩‍👧", "?\ufffd?", " \n\t", "ÿ" * 200]
)
def test_the_pieces_of_an_odd_text_are_the_text(model, odd):
    pieces = token_view.token_probabilities(model, [], model.tokenizer.encode(odd))
    assert "".join(piece.text for piece in pieces) == odd
    assert all(0 <= piece.probability <= 1 for piece in pieces)


# ---------------------------------------------------------------- HTML


def test_the_html_of_a_text_with_markup_has_only_our_own_markup(training_text, line):
    piece = token_view.TokenPiece(EVIL, 0.5, [(EVIL, 0.5), (None, 0.1)])
    pieces = token_view.pieces_html([piece], "context")
    html = pieces + token_view.copied_html(EVIL + line + EVIL, training_text)
    assert "<mark>" in html and "<script" not in html and "<img" not in html
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]", html)
    ours = {"div", "p", "span", "br", "button", "mark", "sup", "ol", "li"}
    assert set(re.findall(r"<(\w+)", html)) <= ours
    [others] = re.findall(r'data-others="([^"]*)"', html)
    assert "<" not in others and "&quot;" in others


def test_a_copied_span_has_its_book_and_chapter(training_text, line):
    html = token_view.copied_html(f"我说：{line[5:35]}！？", training_text)
    assert f"<mark>{line[5:35]}<sup>1</sup></mark>" in html
    assert re.search(r"<li>《book》第.回.*30 字", html)
    broken = token_view.copied_html(line[-20:] + "\n", training_text)
    assert f"{line[-20:]}<sup>1</sup></mark>" in broken  # not after the line break
    short = line[5 : 5 + MIN_MARKED - 1]
    assert "<mark>" not in token_view.copied_html(short, training_text)


def test_without_the_training_text_copies_are_unknown(line):
    html = token_view.copied_html(line, None)
    assert "can't be found" in html.replace("&#x27;", "'") and "No 8" not in html


def test_a_training_text_that_is_too_long_is_not_searched(training_text, line, monkeypatch):
    monkeypatch.setattr(token_view, "MAX_SEARCHED", training_text.characters - 1)
    html = token_view.copied_html(line, training_text)
    assert f"over {training_text.characters - 1:,} characters" in html and "<mark>" not in html
