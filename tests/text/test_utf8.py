"""shuoshu/generation/utf8.py: tokens to text in whole characters only."""

from __future__ import annotations

import numpy as np
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from shuoshu.generation.utf8 import STATES, WHOLE, TextStream, utf8_automaton, utf8_transitions
from shuoshu.text.tokenizer import (
    WORDS,
    Tokenizer,
)
from tests.text.tokenizer_helpers import ANY_TEXT


@given(text=ANY_TEXT)
def test_a_stream_returns_characters_as_soon_as_they_are_whole(each: Tokenizer, text: str) -> None:
    text = text.replace("\ufffd", "")
    stream, shown, raw = TextStream(each), "", b""
    for token in each.encode(text):
        shown += stream.push(token)
        raw += each.token_bytes[token]
        assert shown == raw.decode("utf-8", errors="ignore")
    assert shown == text


@given(text=ANY_TEXT)
def test_a_stream_of_single_bytes_returns_no_replacement_character(
    tokenizer: Tokenizer, text: str
) -> None:
    text = text.replace("\ufffd", "")
    stream = TextStream(tokenizer)
    assert (
        "".join(stream.push(tokenizer.ranks[bytes([byte])]) for byte in text.encode("utf-8"))
        == text
    )


def test_special_tokens_have_no_text(each: Tokenizer) -> None:
    stream = TextStream(each)
    assert "".join(stream.push(i) for i in range(len(each.ranks), each.n_vocab)) == ""


def is_beginning(raw: bytes) -> bool:
    """Whether strict UTF-8 decoding accepts these bytes as a prefix of a text without a �."""
    if "\ufffd".encode() in raw:
        return False
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return True


def state_after(raw: bytes) -> int:
    automaton, state = utf8_automaton(), WHOLE
    for byte in raw:
        state = int(automaton[state, byte])
        if state < 0:
            return -1
    return state


PREFIXES = [
    b"",
    b"\xc3",
    b"\xe9",
    b"\xf1\x80",
    b"\xf1",
    b"\xe0",
    b"\xed",
    b"\xf0",
    b"\xf4",
    b"\xef",
    b"\xef\xbf",
]  # a path into every state, and one more


def test_every_state_is_reached() -> None:
    assert {state_after(prefix) for prefix in PREFIXES} == set(range(STATES))


def test_the_automaton_accepts_what_pythons_decoder_accepts() -> None:
    for prefix in PREFIXES:
        for first in range(256):
            assert (state_after(prefix + bytes([first])) >= 0) == is_beginning(
                prefix + bytes([first])
            )
    for first in range(0xC0, 0x100):
        for second in range(256):
            for tail in (b"", b"\x80", b"\xbd", b"\xbf\x80", b"a"):
                raw = bytes([first, second]) + tail
                assert (state_after(raw) >= 0) == is_beginning(raw), raw


def test_transitions_agree_with_pythons_decoder(each: Tokenizer) -> None:
    after, finishes = utf8_transitions(each, each.n_vocab)
    for prefix in PREFIXES:
        state = state_after(prefix)
        for token, spelt in list(enumerate(each.token_bytes))[:: max(1, len(each.ranks) // 3000)]:
            if not spelt:
                continue
            assert after[state, token] == (state_after(prefix + spelt))
            assert (after[state, token] >= 0) == is_beginning(prefix + spelt)
            only_finishes = (
                bool(prefix)
                and is_beginning(prefix + spelt)
                and all(0x80 <= byte < 0xC0 for byte in spelt)
            )
            assert finishes[state, token] == only_finishes


@given(picks=st.lists(st.integers(0, 2**32), max_size=60))
def test_a_walk_along_allowed_tokens_is_text(
    each: Tokenizer, walls: tuple[np.ndarray, np.ndarray], picks: list[int]
) -> None:
    after, _ = walls
    state, raw = WHOLE, b""
    for pick in picks:
        allowed = np.flatnonzero(after[state] >= 0)
        token = int(allowed[pick % len(allowed)])
        state, raw = int(after[state, token]), raw + each.token_bytes[token]
        assert is_beginning(raw)
    assert (state == WHOLE) == (raw.decode("utf-8", errors="ignore").encode("utf-8") == raw)
    while state != WHOLE:  # every character can be completed
        token = int(np.flatnonzero(walls[1][state])[0])
        state, raw = int(after[state, token]), raw + each.token_bytes[token]
    assert "\ufffd" not in raw.decode("utf-8")


@pytest.fixture(scope="session")
def walls(each: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    return utf8_transitions(each, each.n_vocab + 51)


def test_chat_tokens_and_padding_are_forbidden_and_the_end_token_inside_characters(
    each: Tokenizer, walls: tuple[np.ndarray, np.ndarray]
) -> None:
    after, finishes = walls
    assert after.shape == finishes.shape == (STATES, each.n_vocab + 51)
    never = [
        each.system,
        each.user,
        each.assistant,
        each.pad,
        *range(each.n_vocab, each.n_vocab + 51),
    ]
    assert (after[:, never] == -1).all() and not finishes[:, never].any()
    assert after[WHOLE, each.end] == WHOLE
    assert (after[WHOLE + 1 :, each.end] == -1).all() and not finishes[:, each.end].any()


def test_words_are_split_like_the_pattern(tokenizer: Tokenizer) -> None:
    assert tokenizer.pattern == WORDS
    pieces = tiktoken.Encoding(
        "bytes",
        pat_str=WORDS,
        mergeable_ranks={bytes([b]): b for b in range(256)},
        special_tokens={},
    )
    assert len(pieces.encode_ordinary("雨")) == 3
