"""Texts and conversations, for the tests of tokenizers."""

from __future__ import annotations

from hypothesis import strategies as st

from shuoshu.text.tokenizer import (
    SPECIALS,
)

GPT2_FILES = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"


MIXED = [
    "第一回　风起\n\n　　沈砚说：“The lamp's still lit——第 12 页！”\n",
    "It's  I'LL we’ve\tdon't;  x\r\n\r\n  y   \n   ",
    "👩‍👧‍👦 🏳️‍🌈 𠮷野家 e\u0301 한국어 مرحبا ①②Ⅻ１２３½",
    "a\u2028b\x85c\x1cd\u200be\u3000　f\xa0g\ufeffh\0i",
    "……——！！！？？\n\n\n。。。\n.\n...\n",
    "2024-03-12 3.14159 1,000,000",
    "<|endoftext|> <|assistant|><|pad|",
    "".join(SPECIALS),
    " ",
    "\n",
    "",
]


# No unassigned characters: whether they are letters depends on a tool's Unicode version.
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=60) | st.lists(
    st.sampled_from([*"ab1 \n\t，。“雨夜'’", "  ", "\r\n", "　", "s", "🙂", "第一回"])
).map("".join)


CHAT = [
    {"role": "system", "content": "你是说书人。"},
    {"role": "user", "content": "Who is 沈砚? "},
    {"role": "assistant", "content": " 一个铁匠。\n"},
    {"role": "user", "content": "\n谢谢 🙂"},
    {"role": "assistant", "content": ""},
]
