"""Which tokens keep a text valid UTF-8."""

from __future__ import annotations

import codecs

import numpy as np
import torch
from torch import Tensor

from shuoshu.text.tokenizer import Tokenizer


class Utf8Mask:
    """Which tokens may come next, so that the text is valid UTF-8 and ends on a whole character."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, device: torch.device) -> None:
        after, finishes = utf8_transitions(tokenizer, vocab_size)
        self.after = torch.from_numpy(after).to(device).long()  # (states, V)
        self.forbidden = self.after < 0
        self.unfinishing = ~torch.from_numpy(finishes).to(device)
        self.unfinishing[WHOLE] = False  # nothing to finish

    def apply(self, logits: Tensor, state: Tensor, only_finish: bool) -> Tensor:
        logits = logits.masked_fill(self.forbidden[state], -torch.inf)
        if only_finish:
            logits = logits.masked_fill(self.unfinishing[state], -torch.inf)
        return logits


# ---------------------------------------------------------------- text out of tokens, whole characters only


class TextStream:
    """Ids in, text out as soon as its characters are whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._bytes[token])


# Where a UTF-8 decoder can stand: between characters, n continuation bytes before the end, or after a lead byte
# whose next byte is restricted: no overlong forms, no surrogates, nothing above U+10FFFF, and not U+FFFD, the � itself.
WHOLE, LEFT1, LEFT2, LEFT3, AFTER_E0, AFTER_ED, AFTER_F0, AFTER_F4, AFTER_EF, AFTER_EFBF = range(10)
STATES = 10


def utf8_automaton() -> np.ndarray:
    """(STATES, 256) → the next state, -1 where the byte is not allowed."""
    table = np.full((STATES, 256), -1, dtype=np.int8)
    table[WHOLE, 0x00:0x80] = WHOLE
    table[WHOLE, 0xC2:0xE0] = LEFT1
    table[WHOLE, 0xE0:0xF0] = LEFT2
    table[WHOLE, 0xF0:0xF5] = LEFT3
    table[WHOLE, [0xE0, 0xED, 0xEF, 0xF0, 0xF4]] = [
        AFTER_E0,
        AFTER_ED,
        AFTER_EF,
        AFTER_F0,
        AFTER_F4,
    ]
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
    """(STATES, V) the state after each token, -1 where it may not come; and whether it only finishes a character.

    The end token may come between characters; the chat tokens and the ids that pad a model's vocabulary never.
    """
    automaton = np.vstack(
        [utf8_automaton(), np.full((1, 256), -1, dtype=np.int8)]
    )  # its last row: once wrong, always wrong
    tokens = tokenizer.token_bytes
    after = np.repeat(np.arange(STATES, dtype=np.int8)[:, None], vocab_size, axis=1)
    finishes = np.ones((STATES, vocab_size), dtype=bool)
    finishes[WHOLE] = False
    lengths = np.array([len(token) for token in tokens])
    for position in range(lengths.max()):
        ids = np.flatnonzero(lengths > position)
        byte = np.array([tokens[i][position] for i in ids])
        finishes[:, ids] &= ((byte & 0xC0) == 0x80)[None]
        after[:, ids] = automaton[after[:, ids], byte[None]]
    empty = np.flatnonzero(np.pad(lengths, (0, vocab_size - len(lengths))) == 0)
    after[:, empty] = -1
    after[WHOLE, tokenizer.end] = WHOLE
    return after, finishes & (after >= 0)
