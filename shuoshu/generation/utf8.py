"""UTF-8 in tokens that may hold parts of characters: which may follow, and how they decode."""

from __future__ import annotations

import codecs

import numpy as np
import torch
from torch import Tensor

from shuoshu.text.tokenizer import Tokenizer


class Utf8Mask:
    """Which tokens may come next, so that a text is valid UTF-8 and ends on a whole character."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, device: torch.device) -> None:
        after, finishes = utf8_transitions(tokenizer, vocab_size)
        self.after = torch.from_numpy(after).to(device).long()  # (states, V)
        self.forbidden = self.after < 0
        self.unfinishing = ~torch.from_numpy(finishes).to(device)
        self.unfinishing[WHOLE] = False  # nothing to finish

    def apply(self, logits: Tensor, state: Tensor, only_finish: bool) -> Tensor:
        """The logits (B, V) with -inf where a token may not follow the row's state (B,).

        only_finish: inside a character, only tokens that continue it and add nothing may follow.
        """
        logits = logits.masked_fill(self.forbidden[state], -torch.inf)
        if only_finish:
            logits = logits.masked_fill(self.unfinishing[state], -torch.inf)
        return logits


class TextStream:
    """Decodes tokens one by one. Bytes of a character wait until it is whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """Adds a token; returns the characters that it completes."""
        return self._decoder.decode(self._bytes[token])


# ---------------------------------------------------------------- the automaton

# States of a UTF-8 decoder: between characters; with 1, 2 or 3 continuation bytes left; or after
# a lead byte that restricts the next byte. The restrictions exclude overlong forms (after E0, F0),
# surrogates (ED), code points above U+10FFFF (F4), and U+FFFD (EF BF BD), which is the � that
# decoders write for damaged text.
WHOLE, LEFT1, LEFT2, LEFT3, AFTER_E0, AFTER_ED, AFTER_F0, AFTER_F4, AFTER_EF, AFTER_EFBF = range(10)
STATES = 10


def utf8_automaton() -> np.ndarray:
    """(STATES, 256): the state after each byte, -1 if it is not allowed."""
    table = np.full((STATES, 256), -1, dtype=np.int8)
    table[WHOLE, 0x00:0x80] = WHOLE
    table[WHOLE, 0xC2:0xE0] = LEFT1
    table[WHOLE, 0xE0:0xF0] = LEFT2
    table[WHOLE, 0xF0:0xF5] = LEFT3
    table[WHOLE, 0xE0] = AFTER_E0
    table[WHOLE, 0xED] = AFTER_ED
    table[WHOLE, 0xEF] = AFTER_EF
    table[WHOLE, 0xF0] = AFTER_F0
    table[WHOLE, 0xF4] = AFTER_F4
    table[LEFT1, 0x80:0xC0] = WHOLE
    table[LEFT2, 0x80:0xC0] = LEFT1
    table[LEFT3, 0x80:0xC0] = LEFT2
    table[AFTER_E0, 0xA0:0xC0] = LEFT1
    table[AFTER_ED, 0x80:0xA0] = LEFT1
    table[AFTER_F0, 0x90:0xC0] = LEFT2
    table[AFTER_F4, 0x80:0x90] = LEFT2
    table[AFTER_EF, 0x80:0xC0] = LEFT1
    table[AFTER_EF, 0xBF] = AFTER_EFBF
    table[AFTER_EFBF, 0x80:0xC0] = WHOLE
    table[AFTER_EFBF, 0xBD] = -1
    return table


def utf8_transitions(tokenizer: Tokenizer, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """(after, finishes), both (STATES, V).

    after: the state after each token, -1 if it may not follow. End tokens may follow between
    characters. Other special tokens, and the ids that pad a model's vocabulary, may never follow.
    finishes: whether the token only continues the character that the state is in.
    """
    automaton = utf8_automaton()
    # State -1 indexes the last row: after a byte that is not allowed, no byte is.
    automaton = np.vstack([automaton, np.full((1, 256), -1, dtype=np.int8)])
    tokens = tokenizer.token_bytes
    after = np.repeat(np.arange(STATES, dtype=np.int8)[:, None], vocab_size, axis=1)
    finishes = np.ones((STATES, vocab_size), dtype=bool)
    finishes[WHOLE] = False
    lengths = np.array([len(token) for token in tokens])
    for position in range(lengths.max()):
        ids = np.flatnonzero(lengths > position)
        byte = np.array([tokens[i][position] for i in ids])
        finishes[:, ids] &= ((byte & 0xC0) == 0x80)[None]  # 10xxxxxx: a continuation byte
        after[:, ids] = automaton[after[:, ids], byte[None]]
    empty = np.flatnonzero(np.pad(lengths, (0, vocab_size - len(lengths))) == 0)
    after[:, empty] = -1
    after[WHOLE, list(tokenizer.ends)] = WHOLE
    return after, finishes & (after >= 0)
