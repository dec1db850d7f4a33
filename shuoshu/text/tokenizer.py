"""Byte-level BPE: trained on the user's text, one token per character, or GPT-2's; stored as a tokenizer.json that any tool reads.

Token ids are merge ranks: 256 bytes first, then each merge in order, then the special tokens. tiktoken does the encoding.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import tiktoken

from shuoshu.core.errors import UserError
from shuoshu.core.files import error_reason, read_json

END, SYSTEM, USER, ASSISTANT, PAD = SPECIALS = (
    "<|endoftext|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|pad|>",
)

# Words with the sign before them, single digits, punctuation with the line ends after it, white space: Qwen2's way of cutting text.
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CHARACTERS = r"[\s\S]"  # every character by itself

PROBE = "雨夜 It's 12\n\n　é🙂—。\t!\r\n \u0301\0"
Ranks = dict[bytes, int]


class Tokenizer:
    def __init__(self, ranks: Ranks, specials: dict[str, int], pattern: str, kind: str) -> None:
        self.ranks, self.specials, self.pattern, self.kind = ranks, specials, pattern, kind
        self.encoding = tiktoken.Encoding(
            "shuoshu", pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials
        )
        self.n_vocab = len(ranks) + len(specials)
        self.end, self.system, self.user, self.assistant, self.pad = (
            specials[name] for name in SPECIALS
        )

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text: `<|endoftext|>` written in it is letters, never the special token."""
        return self.encoding.encode_ordinary(text)

    def encode_to_numpy(self, text: str) -> np.ndarray:
        """The same ids as an array of uint32; it leaves Python's lock, so that threads encode on all cores."""
        return self.encoding.encode_to_numpy(text, disallowed_special=())

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(self.token_bytes[i] for i in ids).decode("utf-8", errors="replace")

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of every id; special tokens have none, since they are no part of any text."""
        table = [b""] * self.n_vocab
        for token, rank in self.ranks.items():
            table[rank] = token
        return table

    def render(self, messages: Sequence[dict[str, str]]) -> tuple[list[int], list[int]]:
        """A conversation as (ids, mask), grown together; the mask is 1 on what the assistant is to say, end tokens included.

        An assistant's last message that is None is left open, for the model to fill in.
        """
        ids: list[int] = []
        mask: list[int] = []

        def add(tokens: Sequence[int], trained: int) -> None:
            ids.extend(tokens)
            mask.extend([trained] * len(tokens))

        for message in messages:
            add([self.specials[f"<|{message['role']}|>"]], 0)
            if message["content"] is not None:
                trained = int(message["role"] == "assistant")
                add(self.encode(message["content"]) + [self.end] * trained, trained)
        return ids, mask

    @cached_property
    def hash(self) -> str:
        """Two tokenizers with this hash give the same ids to every text."""
        content = [
            self.pattern,
            sorted((rank, token.hex()) for token, rank in self.ranks.items()),
            sorted(self.specials.items()),
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    # ------------------------------------------------------------ files

    def to_json(self) -> str:
        """tokenizer.json as Hugging Face's `tokenizers` reads it."""
        letters = byte_letters()
        spell = {token: "".join(letters[b] for b in token) for token in self.ranks}
        merges = [[spell[left], spell[right]] for left, right in merges_of(self.ranks)]
        special = {
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        byte_level = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": False,
        }
        document = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": i, "content": name, **special}
                for name, i in sorted(self.specials.items(), key=lambda item: item[1])
            ],
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {
                        "type": "Split",
                        "pattern": {"Regex": self.pattern},
                        "behavior": "Isolated",
                        "invert": False,
                    },
                    byte_level,
                ],
            },
            "post_processor": None,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {spell[token]: rank for token, rank in self.ranks.items()},
                "merges": merges,
            },
        }
        return json.dumps(document, ensure_ascii=False, indent=1)

    def files(self, block_size: int) -> dict[str, str]:
        """What a model folder needs of the tokenizer, by file name."""
        template = (
            "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
            "{% if message['role'] == 'assistant' %}{{ '<|endoftext|>' }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
        )
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": block_size,
            "eos_token": END,
            "pad_token": PAD,
            "clean_up_tokenization_spaces": False,
            "chat_template": template,
            "shuoshu_kind": self.kind,
        }
        return {
            "tokenizer.json": self.to_json(),
            "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=1),
        }

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """The tokenizer in a folder; UserError if there is none or it is of a kind that can't be used here."""
        path = Path(folder) / "tokenizer.json"
        try:
            document = read_json(path)
        except OSError as error:
            raise UserError(
                f"there is no tokenizer in {folder}: can't read {path} ({error.strerror})"
            ) from None
        except ValueError as error:
            raise UserError(
                f"{path} is damaged: {error}; make it again with prepare.py or copy it anew"
            ) from None
        try:
            return cls._from_document(document)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise UserError(
                f"{path} can't be used: {error_reason(error)}; only byte-level BPE with Shuoshu's chat tokens is read"
            ) from None

    @classmethod
    def _from_document(cls, document: dict) -> Tokenizer:
        letters = {letter: byte for byte, letter in enumerate(byte_letters())}
        specials = {token["content"]: token["id"] for token in document["added_tokens"]}
        vocab = {
            name: rank for name, rank in document["model"]["vocab"].items() if name not in specials
        }
        ranks = {bytes(letters[c] for c in spelt): rank for spelt, rank in vocab.items()}
        pattern = document["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
        if missing := [name for name in SPECIALS if name not in specials]:
            raise ValueError(f"it lacks {', '.join(missing)}")
        if sorted([*ranks.values(), *specials.values()]) != list(range(len(ranks) + len(specials))):
            raise ValueError("its ids are not 0, 1, 2 … without a gap")
        spelt = [
            [
                bytes(letters[c] for c in part)
                for part in (pair.split(" ") if isinstance(pair, str) else pair)
            ]
            for pair in document["model"]["merges"]
        ]
        order = [ranks[left + right] for left, right in spelt]
        if not all(bytes([byte]) in ranks for byte in range(256)):
            raise ValueError("it has no token for some byte")
        if order != sorted(rank for token, rank in ranks.items() if len(token) > 1):
            raise ValueError("its merges don't make its vocabulary in the order of the ids")
        kind = "chars" if pattern == CHARACTERS else "bpe" if pattern == WORDS else "gpt2"
        made = cls(ranks, specials, pattern, kind)
        if made.decode(made.encode(PROBE)) != PROBE:
            raise ValueError("its pattern leaves text out")
        return made


# ---------------------------------------------------------------- making one


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of `vocab_size` entries, special tokens included (fewer where the text has no more pairs to merge)."""
    from tokenizers import Regex, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Trainable

    model = Trainable(models.BPE())
    cut = pre_tokenizers.Split(Regex(WORDS), "isolated")
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = byte_letters()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIALS),
        min_frequency=2,
        initial_alphabet=alphabet,
        max_token_length=32,
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    bytes_of = {letter: byte for byte, letter in enumerate(alphabet)}
    vocab = sorted(model.get_vocab().items(), key=lambda item: item[1])
    ranks = {bytes(bytes_of[c] for c in spelt): rank for spelt, rank in vocab}
    return Tokenizer(ranks, _reserve(ranks), WORDS, "bpe")


def character_tokenizer(counts: Counter[str], vocab_size: int | None = None) -> Tokenizer:
    """One token per character, the commonest first; what finds no room in `vocab_size` is spelt in bytes."""
    ranks: Ranks = {bytes([b]): b for b in range(256)}
    room = (vocab_size or 10**9) - len(SPECIALS)
    for character, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        spelt = character.encode("utf-8", errors="replace")
        steps = [spelt[:n] for n in range(2, len(spelt) + 1) if spelt[:n] not in ranks]
        if len(ranks) + len(steps) > room:
            continue
        for step in steps:
            ranks[step] = len(ranks)
    return Tokenizer(ranks, _reserve(ranks), CHARACTERS, "chars")


def gpt2_tokenizer() -> Tokenizer:
    """GPT-2's encoding with the chat tokens appended."""
    try:
        gpt2 = tiktoken.get_encoding("gpt2")
    except Exception as error:  # tiktoken lets its HTTP client's many exceptions through
        raise UserError(
            f"GPT-2's vocabulary could not be loaded ({type(error).__name__}). tiktoken downloads it once: connect to the network, "
            "or set TIKTOKEN_CACHE_DIR to a folder that already holds it. --tokenizer=bpe needs no download and suits Chinese far better."
        ) from None
    ranks = dict(gpt2._mergeable_ranks)
    return Tokenizer(ranks, _reserve(ranks), gpt2._pat_str, "gpt2")


def _reserve(ranks: Ranks) -> dict[str, int]:
    return {name: len(ranks) + i for i, name in enumerate(SPECIALS)}


def merges_of(ranks: Ranks) -> list[tuple[bytes, bytes]]:
    """The two parts that each merged token was made of: what merging by rank leaves just before the last merge."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) == 1:
            continue
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            best = min(
                range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], rank)
            )
            if ranks.get(parts[best] + parts[best + 1], rank) >= rank:
                raise ValueError(f"token {rank} can't be made by merging earlier ones")
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        merges.append((parts[0], parts[1]))
    return merges


def byte_letters() -> list[str]:
    """The printable letter that stands for each byte in tokenizer.json (GPT-2's convention)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in letters)
    letters.update({byte: chr(256 + n) for n, byte in enumerate(others)})
    return [letters[byte] for byte in range(256)]
