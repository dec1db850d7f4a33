"""Small foreign model folders with random weights, as transformers writes them, and older ones."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from model import GPT
from shuoshu.generation.cpu_decoder import next_token_fn
from shuoshu.generation.sampling import empty_cache, prefill
from shuoshu.text.tokenizer import byte_letters

# Head counts and widths unlike, so that a swapped pair of them shows.
SMALL = {
    "vocab_size": 320,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "initializer_range": 0.15,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# Llama-3.1's rotary positions, shrunk: of the eight frequencies of a head of 16, one is kept,
# two are between, five are divided.
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WORDS = ("the", " the", " and", "ing", "er", "is", " lamp")  # that are tokens
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n'"
    " + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_model(
    folder: Path,
    model_type: str,
    dtype: torch.dtype = torch.float32,
    shard_size: str = "1GB",
    **fields: object,
) -> Path:
    """A folder that transformers writes, with a tokenizer. Gains and biases are perturbed.

    fields: of config.json, over those of SMALL.
    """
    torch.manual_seed(len(model_type))
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SMALL | fields))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # gains of norms are near 1, biases near 0
                centre = 1 if name.endswith("norm.weight") else 0
                parameter.copy_(centre + 0.3 * torch.randn_like(parameter))
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    write_tokenizer(folder)
    return folder


def reference(folder: Path) -> PreTrainedModel:
    """The folder as transformers opens it, in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.inference_mode()
def greedy_ids(model: GPT, prompt: list[int], count: int) -> list[int]:
    """The prompt and its most probable continuation, without the mask that keeps UTF-8 valid."""
    cache, next_token = empty_cache(model, 1, len(prompt) + count), next_token_fn(model)
    logits, ids = prefill(model, cache, [prompt]), list(prompt)
    while len(ids) < len(prompt) + count:
        ids.append(logits.argmax().item())
        logits = next_token(torch.tensor([[ids[-1]]]), cache)
    return ids


def their_greedy_ids(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    """The same by transformers' generate(), which doesn't stop at an end token either."""
    ids = torch.tensor([prompt])
    limits = {"max_new_tokens": count, "min_new_tokens": count, "eos_token_id": None}
    everything = torch.ones_like(ids)  # else the padding's token in the prompt would be left out
    return model.generate(ids, attention_mask=everything, do_sample=False, **limits)[0].tolist()


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer with a few words and ChatML's tokens, before the bytes as SmolLM2's."""
    vocab = {name: i for i, name in enumerate([*SPECIALS, *byte_letters()])}
    merges = []
    for word in WORDS:
        letters = list(word.replace(" ", "Ġ"))
        for end in range(2, len(letters) + 1):
            pair = ("".join(letters[: end - 1]), letters[end - 1])
            if "".join(pair) not in vocab:
                vocab["".join(pair)] = len(vocab)
                merges.append(pair)
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIALS])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": SMALL["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        "eos_token": SPECIALS[2],
        "pad_token": SPECIALS[0],
        "chat_template": CHATML,
    }
    write_json(folder / "tokenizer_config.json", config)


# ---------------------------------------------------------------- changes to a folder


def write_json(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")


def read_config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def change_config(folder: Path, without: tuple[str, ...] = (), **fields: object) -> None:
    """Sets fields of config.json, and removes those named in `without`."""
    config = {name: value for name, value in read_config(folder).items() if name not in without}
    write_json(folder / "config.json", config | fields)


def write_old_fields(folder: Path, kind: str = "rope_type") -> None:
    """Names dtype and rotary positions in config.json as transformers 4 did.

    kind: the name of the scaling's kind; the oldest files say "type".
    """
    config = read_config(folder)
    rope = dict(config["rope_parameters"])
    theta, name = rope.pop("rope_theta"), rope.pop("rope_type")
    scaling = None if name == "default" else {kind: name, **rope}
    change_config(
        folder,
        without=("rope_parameters", "dtype"),
        rope_theta=theta,
        rope_scaling=scaling,
        torch_dtype=config["dtype"],
    )


def change_tensors(folder: Path, changes: dict[str, Tensor | None]) -> None:
    """Adds, replaces or (None) removes tensors of the folder's only weights file."""
    tensors = load_file(folder / "model.safetensors") | changes
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
