"""Byte-level BPE: trained on the user's text, one token per character, or GPT-2's.

Token ids are merge ranks: first the 256 bytes, then the merges in order, then the special tokens.
tiktoken encodes; tokenizer.json is in Hugging Face's format.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import tiktoken

from shuoshu.core.errors import UserError

END_TOKEN, PAD_TOKEN = "<|endoftext|>", "<|pad|>"
SPECIALS = (END_TOKEN, "<|system|>", "<|user|>", "<|assistant|>", PAD_TOKEN)  # in their ids' order

# Qwen2's pre-tokenizer: contractions; words with one sign or space before them; single digits;
# punctuation with the line ends after it; white space.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
EACH_CHARACTER = r"[\s\S]"  # each character alone
MAX_TOKEN_CHARACTERS = 32  # in training; longer ones would be rulers like ======
MIN_PAIR_COUNT = 2  # in training; a rarer pair isn't merged
MAX_TRAINING_BYTES = 8_000_000  # of a sample to train on; more costs seconds and changes little
# (below this many characters of training text, vocabulary size)
VOCAB_SIZES = ((250_000, 2048), (1_000_000, 4096), (float("inf"), 8192))

# A loaded tokenizer must encode and decode this without loss.
PROBE = "雨夜 It's 12\n\n　é🙂—。\t!\r\n \u0301\0"
Ranks = dict[bytes, int]
RenderedRow = tuple[list[int], list[int]]  # ids, and a mask that is 1 where the token is trained


class Tokenizer:
    """Encodes and decodes text, and renders conversations with Shuoshu's chat tokens."""

    has_template = True  # whether it can render conversations
    bos_token_id: int | None = None  # begins each text

    def __init__(self, ranks: Ranks, specials: dict[str, int], pattern: str, kind: str) -> None:
        self.ranks, self.specials, self.pattern, self.kind = ranks, specials, pattern, kind
        self.encoding = tiktoken.Encoding(
            "shuoshu", pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials
        )
        self.n_vocab = len(ranks) + len(specials)
        self.end, self.system, self.user, self.assistant, self.pad = (
            specials[name] for name in SPECIALS
        )
        self.start = self.answer_end = self.eos_token_id = self.eos_token_ids = self.end
        self.ends = frozenset([self.end])

    def encode(self, text: str) -> list[int]:
        """Ids of a text. A special token's name in it, such as `<|endoftext|>`, is plain text."""
        return self.encoding.encode_ordinary(text)

    def encode_to_numpy(self, text: str) -> np.ndarray:
        """The same ids as a uint32 array. Releases the GIL, so that threads encode in parallel."""
        return self.encoding.encode_to_numpy(text, disallowed_special=())

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a text that the model is to continue."""
        return [*([] if self.bos_token_id is None else [self.bos_token_id]), *self.encode(text)]

    def encode_answer(self, text: str) -> list[int]:
        """The ids that are trained for an answer: its text, and the end token."""
        return [*self.encode(text), self.answer_end]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these ids; bytes that are not valid UTF-8 become �."""
        return b"".join(self.token_bytes[i] for i in ids).decode("utf-8", errors="replace")

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of each id; empty for special tokens, which have no text."""
        table = [b""] * self.n_vocab
        for token, rank in self.ranks.items():
            table[rank] = token
        return table

    def require_template(self) -> object:
        """Raises UserError if the tokenizer can't render conversations."""

    def render_rows(self, messages: Sequence[dict[str, str]]) -> list[RenderedRow]:
        """The rows that train each answer of a conversation once."""
        return [self.render(messages)]

    def render(self, messages: Sequence[dict[str, str]]) -> RenderedRow:
        """A conversation as (ids, mask). The mask is 1 on the assistant's text and its end tokens.

        If the last message's content is None, the ids end with its role, for the model to continue.
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
        """Fingerprint: tokenizers with the same hash give the same ids for every text."""
        content = [
            self.pattern,
            sorted((rank, token.hex()) for token, rank in self.ranks.items()),
            sorted(self.specials.items()),
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    # ------------------------------------------------------------ files

    def to_json(self) -> str:
        """Content of a tokenizer.json for Hugging Face's `tokenizers`."""
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

    def files(self, block_size: int, system: str = "") -> dict[str, str]:
        """The tokenizer files of a model folder: file name → content.

        The chat template begins conversations that have no system message with `system`.
        """
        if_none = "{% if not messages or messages[0]['role'] != 'system' %}"
        default_system = if_none + "{{ '<|system|>' + SYSTEM }}{% endif %}"
        # A JSON text with characters beyond ASCII is also a text in Jinja.
        spelt = json.dumps(system, ensure_ascii=False)
        template = default_system.replace("SYSTEM", spelt) if system else ""
        template += (
            "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
            "{% if message['role'] == 'assistant' %}{{ '<|endoftext|>' }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
        )
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": block_size,
            "eos_token": END_TOKEN,
            "pad_token": PAD_TOKEN,
            "clean_up_tokenization_spaces": False,
            "chat_template": template,
            "shuoshu_kind": self.kind,
        }
        return {
            "tokenizer.json": self.to_json(),
            "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=1),
        }

    def data_files(self) -> dict[str, str]:
        """The tokenizer files of a data folder: file name → content."""
        return {"tokenizer.json": self.to_json()}

    @classmethod
    def from_document(cls, document: dict) -> Tokenizer:
        """The tokenizer of a tokenizer.json. Raises ValueError if encoding could lose text."""
        bytes_of = {letter: byte for byte, letter in enumerate(byte_letters())}
        specials = {token["content"]: token["id"] for token in document["added_tokens"]}
        vocab = document["model"]["vocab"].items()
        ranks = {
            bytes(bytes_of[c] for c in name): rank for name, rank in vocab if name not in specials
        }
        pattern = document["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
        if missing := [name for name in SPECIALS if name not in specials]:
            raise ValueError(f"it lacks {', '.join(missing)}")
        if sorted([*ranks.values(), *specials.values()]) != list(range(len(ranks) + len(specials))):
            raise ValueError("its ids are not 0, 1, 2 … without a gap")
        merges = (  # a list of two names, or both in one string
            pair.split(" ") if isinstance(pair, str) else pair
            for pair in document["model"]["merges"]
        )
        pairs = [[bytes(bytes_of[c] for c in name) for name in pair] for pair in merges]
        merged_ranks = [ranks[left + right] for left, right in pairs]
        if not all(bytes([byte]) in ranks for byte in range(256)):
            raise ValueError("it has no token for some byte")
        if merged_ranks != sorted(rank for token, rank in ranks.items() if len(token) > 1):
            raise ValueError("its merges don't build its vocabulary in the order of the ids")
        kind = "chars" if pattern == EACH_CHARACTER else "bpe" if pattern == WORDS else "gpt2"
        tokenizer = cls(ranks, specials, pattern, kind)
        if tokenizer.decode(tokenizer.encode(PROBE)) != PROBE:
            raise ValueError("its pattern loses text")
        return tokenizer


# ---------------------------------------------------------------- create a tokenizer


def vocab_size_for(characters: int) -> int:
    """The size of a vocabulary for so many characters of training text."""
    return next(size for limit, size in VOCAB_SIZES if characters < limit)


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE of `vocab_size` entries, special tokens included.

    It has fewer entries if the text has no more pairs to merge.
    """
    from tokenizers import Regex, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Trainable

    model = Trainable(models.BPE())
    split = pre_tokenizers.Split(Regex(WORDS), "isolated")
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = byte_letters()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIALS),
        min_frequency=MIN_PAIR_COUNT,
        initial_alphabet=alphabet,
        max_token_length=MAX_TOKEN_CHARACTERS,
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    bytes_of = {letter: byte for byte, letter in enumerate(alphabet)}
    vocab = sorted(model.get_vocab().items(), key=lambda item: item[1])
    ranks = {bytes(bytes_of[c] for c in name): rank for name, rank in vocab}
    return Tokenizer(ranks, _special_ids(ranks), WORDS, "bpe")


def character_tokenizer(counts: Counter[str], vocab_size: int | None = None) -> Tokenizer:
    """One token per character, the most frequent first.

    Characters that don't fit into `vocab_size` are encoded as several tokens.
    """
    ranks: Ranks = {bytes([b]): b for b in range(256)}
    max_ranks = (vocab_size or 10**9) - len(SPECIALS)
    for character, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        raw = character.encode("utf-8", errors="replace")
        # BPE merges two tokens at a time, so a character of n bytes needs its prefixes as tokens.
        prefixes = [raw[:n] for n in range(2, len(raw) + 1) if raw[:n] not in ranks]
        if len(ranks) + len(prefixes) > max_ranks:
            continue
        for prefix in prefixes:
            ranks[prefix] = len(ranks)
    return Tokenizer(ranks, _special_ids(ranks), EACH_CHARACTER, "chars")


def gpt2_tokenizer() -> Tokenizer:
    """GPT-2's encoding plus the chat tokens. Raises UserError if it can't be downloaded."""
    try:
        gpt2 = tiktoken.get_encoding("gpt2")
    except Exception as error:  # tiktoken passes on all exceptions of its HTTP client
        raise UserError(
            f"GPT-2's vocabulary could not be loaded ({type(error).__name__}). tiktoken downloads "
            "it once: connect to the network, or set TIKTOKEN_CACHE_DIR to a folder that has it. "
            "--tokenizer=bpe needs no download and encodes Chinese in far fewer tokens."
        ) from None
    ranks = dict(gpt2._mergeable_ranks)
    return Tokenizer(ranks, _special_ids(ranks), gpt2._pat_str, "gpt2")


def _special_ids(ranks: Ranks) -> dict[str, int]:
    """The ids after the last rank."""
    return {name: len(ranks) + i for i, name in enumerate(SPECIALS)}


def merges_of(ranks: Ranks) -> list[tuple[bytes, bytes]]:
    """The pair of tokens that each merged token is made of, in rank order.

    tiktoken's ranks don't store the pairs. Merging a token's bytes by rank until two parts remain
    gives its pair. Raises ValueError if a token can't be made from earlier ones.
    """
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
    """The printable letter that represents each byte in tokenizer.json (GPT-2's convention)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in letters)
    letters.update({byte: chr(256 + n) for n, byte in enumerate(others)})
    return [letters[byte] for byte in range(256)]
