"""Small folders of others' tokenizers, with chat templates that behave like those of real models."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from shuoshu.text.tokenizer import WORDS, byte_letters

ENGLISH = "The lamp is lit, and the man who lit it is 48 years old. It's late: don't wait! " * 20

CHATML = (  # begins with a default system message
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou answer briefly.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADERS = (  # begins with a token and a system message with a date; trims contents
    "{{- bos_token }}"
    "{%- if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{{- '<|start|>system<|header|>\n\nToday Date: 26 Jul 2024\n\n' + system + '<|eot|>' }}"
    "{%- for message in rest %}"
    "{{- '<|start|>' + message.role + '<|header|>\n\n' + message.content | trim + '<|eot|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|start|>assistant<|header|>\n\n' }}{% endif %}"
)
THOUGHTS = (  # writes an empty thought before the last answer only, and when it asks
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% generation %}{{ message.content + '<|im_end|>\n' }}{% endgeneration %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
TURNS = (  # a line end before the end token
    "{% for message in messages %}{{ message.role + ': ' + message.content }}"
    "{% if message.role == 'assistant' %}{{ '\n<|endoftext|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
FAMILIES = ("qwen", "llama", "smol", "turns")
TEMPLATES = {"qwen": THOUGHTS, "llama": HEADERS, "smol": CHATML, "turns": TURNS}


def write_folder(folder: Path, family: str, text: str, **config: object) -> Path:
    """A downloaded model's tokenizer files. config: over the fields of tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, fields = {
        "qwen": nfc_tokenizer,
        "llama": bos_tokenizer,
        "smol": specials_first_tokenizer,
        "turns": nfc_tokenizer,
    }[family](text)
    tokenizer.save(str(folder / "tokenizer.json"))
    fields |= {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATES[family]}
    fields |= config
    (folder / "tokenizer_config.json").write_text(json.dumps(fields), encoding="utf-8")
    return folder


def train(text: str, splitter: pre_tokenizers.PreTokenizer, **options: object) -> Tokenizer:
    """A byte-level BPE of 600 entries."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = splitter, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        **{"vocab_size": 600, "initial_alphabet": byte_letters(), "show_progress": False} | options
    )
    tokenizer.train_from_iterator([ENGLISH, text[:20_000]], trainer)
    return tokenizer


def words(pattern: str = WORDS) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, byte_level])


def nfc_tokenizer(text: str) -> tuple[Tokenizer, dict]:
    """Like Qwen3's: NFC; special tokens after the vocabulary, and others that are plain text."""
    tokenizer = train(text, words())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    plain = [AddedToken(name, normalized=False) for name in ("<think>", "</think>")]
    tokenizer.add_tokens(plain)
    return tokenizer, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None}


def bos_tokenizer(text: str) -> tuple[Tokenizer, dict]:
    """Like Llama 3's: whole words before merges, a token before each text."""
    tokenizer = train(text, words(WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")))
    document = json.loads(tokenizer.to_str())
    document["model"]["ignore_merges"] = True
    vocab = document["model"]["vocab"]
    # A word that no merge makes, and special tokens that text must not find; one is a whole word.
    vocab |= {"Ġxyzzy": len(vocab), "<|eot|>": len(vocab) + 1, "reserved": len(vocab) + 2}
    tokenizer = Tokenizer.from_str(json.dumps(document))
    tokenizer.add_special_tokens(["<|begin|>", "<|end_of_text|>", "<|start|>", "<|header|>"])
    tokenizer.add_special_tokens(["<|eot|>", "reserved"])
    begin = [("<|begin|>", tokenizer.token_to_id("<|begin|>"))]
    bos = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=begin)
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), bos])
    return tokenizer, {
        "bos_token": {"__type": "AddedToken", "content": "<|begin|>"},
        "eos_token": "<|eot|>",
    }


def specials_first_tokenizer(text: str) -> tuple[Tokenizer, dict]:
    """Like SmolLM2's: special tokens before the bytes, single digits, no control characters."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = [letter for byte, letter in enumerate(byte_letters()) if byte not in (4, 6, 0xF1)]
    tokenizer = train(
        text,
        pre_tokenizers.Sequence([digits, byte_level]),
        special_tokens=specials,
        initial_alphabet=alphabet,
    )
    return tokenizer, {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
