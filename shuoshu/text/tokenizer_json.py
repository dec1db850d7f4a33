"""Another model's tokenizer.json: what is supported of it, and the library's tokenizer for it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from shuoshu.text.tokenizer import byte_letters

SUPPORTED = "supported is byte-level BPE, as in Qwen, Llama 3, SmolLM2 and GPT-2"
# Bytes that text needs. SmolLM2 has no tokens for some others, control characters for example.
TEXT_BYTES = [*b"\t\n\r", *range(0x20, 0x7F), *range(0x80, 0xC0), *range(0xC2, 0xF1)]

# They make a text at most a few times longer. Others may replace text by much longer text.
NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"}


def refuse_unsupported(document: dict) -> None:
    """ValueError that says why a tokenizer.json is not supported."""
    model = document["model"]
    kind = model.get("type", "BPE" if "merges" in model else "of an unknown kind")
    splitters = list(components(document.get("pre_tokenizer"), "pretokenizers"))
    decoders = {part.get("type") for part in components(document.get("decoder"), "decoders")}
    normalizers = {
        str(part.get("type")) for part in components(document.get("normalizer"), "normalizers")
    }
    byte_levels = [part for part in splitters if part.get("type") == "ByteLevel"]
    reason = None
    if kind != "BPE":
        reason = f"its model is {kind}"
    elif model.get("byte_fallback") or any(part.get("type") == "Metaspace" for part in splitters):
        reason = "it is a SentencePiece tokenizer (byte_fallback or Metaspace)"
    elif not byte_levels or "ByteLevel" not in decoders:
        reason = "its pre-tokenizer or its decoder is not ByteLevel"
    elif unknown := sorted(normalizers - NORMALIZERS):
        reason = f"its normalizer is {unknown[0][:40]}"
    elif model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        reason = "its tokens have prefixes or suffixes inside words"
    elif any(part.get("add_prefix_space") for part in byte_levels):
        reason = "it adds a space before each text (add_prefix_space)"
    if reason:
        raise ValueError(f"{reason}; {SUPPORTED}")
    letters = byte_letters()
    if missing := [byte for byte in TEXT_BYTES if letters[byte] not in model["vocab"]]:
        raise ValueError(f"it has no token for the byte {missing[0]:#04x}")


def components(part: dict | None, members: str) -> Iterable[dict]:
    """The part itself, or those of a Sequence of parts."""
    if part is None:
        return
    if part.get("type") != "Sequence":
        yield part
        return
    for member in part[members]:
        yield from components(member, members)


def plain_tokenizer(document: dict, added: Mapping[str, int]):
    """The library's tokenizer without added tokens. Raises ValueError if it can't be made.

    With `ignore_merges`, a name in the vocabulary is taken whole. So this one's vocabulary lacks
    the names of added tokens.
    """
    from tokenizers import Tokenizer as LibraryTokenizer
    from tokenizers.models import BPE

    model = document["model"]
    vocab = {name: number for name, number in model["vocab"].items() if name not in added}
    merges = [  # two names in one string, or a list of them
        tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]
    ]
    shell = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": document.get("normalizer"),
        "pre_tokenizer": document["pre_tokenizer"],
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    try:
        tokenizer = LibraryTokenizer.from_str(json.dumps(shell))
        ignore_merges = bool(model.get("ignore_merges"))
        tokenizer.model = BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges)
    except Exception as error:  # the library raises plain Exceptions
        raise ValueError(f"the tokenizers library refuses it ({error})") from None
    return tokenizer


def prepended_token(post_processor: dict | None, added: Mapping[str, int]) -> int | None:
    """The id that a tokenizer's post-processor puts before each text, None if there is none."""
    for part in components(post_processor, "processors"):
        first = part["single"][0] if part.get("type") == "TemplateProcessing" else {}
        if "SpecialToken" in first:
            return added[first["SpecialToken"]["id"]]
    return None
