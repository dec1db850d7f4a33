"""Folders of others' models that are damaged, forged or incomplete, or that reach outside themselves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import prepare_sft
import sample
from shuoshu.core.errors import REPO_ROOT, UserError
from shuoshu.models.weights import load_model
from tests.faults.test_models import written
from tests.in_process import train_model
from tests.models.families import (
    LLAMA3_ROPE,
    change_config,
    change_tensors,
    read_config,
    write_json,
    write_model,
)

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
NORM, EMBEDDING = "model.norm.weight", "model.embed_tokens.weight"
GATE = "model.layers.1.mlp.gate_proj.weight"
FIRST_NORM = "model.layers.0.input_layernorm.weight"
FIRST, SECOND, LAST = (f"model-0000{number}-of-00007.safetensors" for number in (1, 2, 7))


def saying(folder: Path) -> list[object]:
    return [f"--out_dir={folder}", "--start=lamp", "--max_new_tokens=4", "--threads=1"]


@pytest.fixture(scope="session")
def whole_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model in one file, and one in shards."""
    root = tmp_path_factory.mktemp("foreign")
    one = write_model(root / "one", "llama", head_dim=16, rope_parameters=LLAMA3_ROPE)
    return {"one": one, "shards": write_model(root / "shards", "qwen2", shard_size="40KB")}


@pytest.fixture
def one(whole_folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole_folders["one"], tmp_path / "model"))


@pytest.fixture
def shards(whole_folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole_folders["shards"], tmp_path / "model"))


def test_the_folders_are_read_as_long_as_nothing_is_wrong(one, tmp_path, whole_folders, capsys):
    assert sample.main([str(word) for word in saying(one)]) == 0
    assert sample.main([str(word) for word in saying(whole_folders["shards"])]) == 0


def test_the_links_of_the_hubs_cache_are_followed(shards, tmp_path):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(shards.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(Path("..", "blobs", str(number)))
    assert load_model(shards).model.config.n_layer == 2


# ---------------------------------------------------------------- the index


def read_index(folder: Path) -> dict:
    return json.loads((folder / INDEX).read_text(encoding="utf-8"))


def placed(names: object) -> Callable[[dict], object]:
    """An index in which the model's last norm is in another file."""
    return lambda index: {**index, "weight_map": {**index["weight_map"], NORM: names}}


INDEXES: dict[str, Callable[[dict], object]] = {
    "a missing file": placed("model-00009-of-00007.safetensors"),
    "a device": placed("/dev/zero"),
    "a folder": placed("."),
    "an empty name": placed(""),
    "a name with NUL": placed("model\0.safetensors"),
    "a pickled file": placed("pytorch_model.bin"),
    "the config": placed("config.json"),
    "a number": placed(1),
    "a list": placed([FIRST]),
    "nothing": placed(None),
    "another shard": placed(FIRST),
    "a tensor that no shard has": lambda index: {
        **index,
        "weight_map": {**index["weight_map"], "model.extra": FIRST},
    },
    "a tensor left out": lambda index: {
        **index,
        "weight_map": {name: file for name, file in index["weight_map"].items() if name != NORM},
    },
    "a shard left out": lambda index: {
        **index,
        "weight_map": {n: f for n, f in index["weight_map"].items() if f != SECOND},
    },
    "no tensors": lambda index: {**index, "weight_map": {}},
    "no map": lambda index: {"metadata": {}},
    "a map that is a list": lambda index: {**index, "weight_map": list(index["weight_map"])},
    "a list instead of an object": lambda index: [index],
    "null": lambda index: None,
}


@pytest.mark.parametrize("fault", INDEXES)
def test_an_index_that_is_wrong_is_refused(
    shards: Path, fault: str, refused: Callable, little_memory: None
) -> None:
    assert read_index(shards)["weight_map"][NORM] == LAST
    write_json(shards / INDEX, INDEXES[fault](read_index(shards)))
    refused(sample.main, saying(shards), shards)


@pytest.mark.parametrize("name", ["../outside.safetensors", "absolute", "inside/a.safetensors"])
def test_weights_outside_the_folder_are_not_read(
    shards: Path, name: str, tmp_path: Path, refused: Callable
) -> None:
    name = str(tmp_path / "outside.safetensors") if name == "absolute" else name
    tensors = load_file(shards / LAST)
    norm = {NORM: tensors.pop(NORM)}
    save_file(tensors, shards / LAST)
    (shards / "inside").mkdir()
    save_file(norm, shards / "beside.safetensors")
    save_file(norm, shards / name)
    write_json(shards / INDEX, placed("beside.safetensors")(read_index(shards)))
    load_model(shards)
    write_json(shards / INDEX, placed(name)(read_index(shards)))
    refused(sample.main, saying(shards), shards, INDEX)


def test_a_clone_without_its_large_files_is_told_how_to_fetch_them(
    one: Path, refused: Callable
) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    (one / "model.safetensors").write_text(pointer, encoding="utf-8")
    refused(sample.main, saying(one), one, "git lfs pull")


@pytest.mark.parametrize("raw", [b"", b"{", b"[" * 200_000, bytes(50), b"\xff\xfe"])
def test_an_index_that_is_not_json_is_refused(shards: Path, raw: bytes, refused: Callable) -> None:
    (shards / INDEX).write_bytes(raw)
    refused(sample.main, saying(shards), shards)


def test_a_tensor_in_two_shards_is_refused(shards: Path, refused: Callable) -> None:
    path = shards / SECOND
    tensors = load_file(path)
    assert NORM not in tensors
    save_file({**tensors, NORM: torch.ones(48)}, path)
    refused(sample.main, saying(shards), shards, NORM)


@pytest.mark.parametrize("kind", ["gone", "pipe", "device", "folder", "loop", "empty", "cut off"])
def test_a_shard_of_another_kind_is_refused(
    shards: Path, kind: str, refused: Callable, little_memory: None
) -> None:
    path = shards / SECOND
    raw = path.read_bytes()
    path.unlink()
    makers: dict[str, Callable[[Path], object]] = {
        "pipe": os.mkfifo,
        "device": lambda path: path.symlink_to("/dev/zero"),
        "folder": Path.mkdir,
        "loop": lambda path: path.symlink_to(path.name),
        "gone": lambda path: None,
        "empty": lambda path: path.write_bytes(b""),
        "cut off": lambda path: path.write_bytes(raw[:-1]),
    }
    makers[kind](path)
    refused(sample.main, saying(shards), shards, path.name)


# ---------------------------------------------------------------- headers and data


def taken_apart(path: Path) -> tuple[dict, bytes]:
    """The header of a weights file, and the data after it."""
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:end]), raw[end:]


def changed(name: str, **fields: object) -> Callable[[dict], dict]:
    return lambda header: {**header, name: {**header[name], **fields}}


def moved(name: str, by: int) -> Callable[[dict], dict]:
    """A header in which a tensor's data begins and ends elsewhere."""
    return lambda header: changed(name, data_offsets=[o + by for o in offsets(header, name)])(
        header
    )


def offsets(header: dict, name: str) -> list[int]:
    return header[name]["data_offsets"]


HEADERS: dict[str, Callable[[dict], object]] = {
    "data beyond the file": moved(NORM, 1 << 40),
    "data before the file": moved(NORM, -(1 << 40)),
    "data that overlaps": lambda header: changed(
        NORM, data_offsets=[offsets(header, GATE)[0], offsets(header, GATE)[0] + 4 * 48]
    )(header),
    "one tensor's data for two": lambda header: {**header, NORM: header[FIRST_NORM]},
    "backwards": lambda header: changed(NORM, data_offsets=offsets(header, NORM)[::-1])(header),
    "shifted": moved(FIRST_NORM, 4),
    "no place": changed(NORM, data_offsets=[]),
    "a place that is null": changed(NORM, data_offsets=None),
    "a place of floats": changed(NORM, data_offsets=[0.0, 192.0]),
    "transposed": changed(GATE, shape=[48, 80]),
    "flattened": changed(GATE, shape=[48 * 80]),
    "a shape too small": changed(GATE, shape=[80, 47]),
    "a shape too large": changed(GATE, shape=[80, 10**12]),
    "a shape that overflows": changed(GATE, shape=[1 << 32, 1 << 32]),
    "a negative shape": changed(GATE, shape=[-80, -48]),
    "a shape with 0": changed(GATE, shape=[0, 48]),
    "a shape of a million ones": changed(NORM, shape=[1] * 1_000_000 + [48]),
    "a shape of texts": changed(GATE, shape=["80", "48"]),
    "a shape of truths": changed(NORM, shape=[48, True]),
    "a shape that is a number": changed(NORM, shape=48),
    "integers": changed(NORM, dtype="I32"),
    "half as wide": changed(NORM, dtype="BF16"),
    "8 bits": changed(GATE, dtype="F8_E4M3", shape=[80, 192]),
    "a type that is none": changed(NORM, dtype="F13"),
    "a type that is a list": changed(NORM, dtype=["F32"]),
    "a tensor that is null": lambda header: {**header, NORM: None},
    "a tensor that is a list": lambda header: {**header, NORM: [1, 2]},
    "an unknown tensor": lambda header: {
        ("model.norm.wait" if name == NORM else name): entry for name, entry in header.items()
    },
    "names that are long": lambda header: {
        (name + "x" * 100_000 if name == NORM else name): entry for name, entry in header.items()
    },
    "names that look like messages": lambda header: {
        ("\n\nerror: \x1b[2J" if name == NORM else name): entry for name, entry in header.items()
    },
    "metadata that is a list": lambda header: {**header, "__metadata__": []},
    "a list": lambda header: [header],
}


@pytest.mark.parametrize("fault", HEADERS)
def test_a_header_that_lies_is_refused(
    one: Path, fault: str, refused: Callable, little_memory: None
) -> None:
    header, data = taken_apart(one / WEIGHTS)
    raw = json.dumps(HEADERS[fault](header)).encode()
    written(one / WEIGHTS, raw, data, sealed=False)
    message = refused(sample.main, saying(one), one)
    assert message.count("\n") == 1 and message.rstrip("\n").isprintable(), message


def test_a_tensor_that_is_named_twice_is_refused(one: Path, refused: Callable) -> None:
    header, data = taken_apart(one / WEIGHTS)
    second = json.dumps({NORM: {**header[NORM], "data_offsets": [0, 192]}})
    raw = (json.dumps(header)[:-1] + ", " + second[1:]).encode()
    written(one / WEIGHTS, raw, data, sealed=False)
    refused(sample.main, saying(one), one)


def test_a_header_of_100_megabytes_is_refused(
    one: Path, refused: Callable, little_memory: None
) -> None:
    header, data = taken_apart(one / WEIGHTS)
    raw = json.dumps(header).encode().ljust(100 << 20)
    written(one / WEIGHTS, raw, data, sealed=False)
    refused(sample.main, saying(one), one, WEIGHTS)


def test_weights_cut_anywhere_are_refused(one: Path, refused: Callable) -> None:
    whole = (one / WEIGHTS).read_bytes()
    for length in (0, 1, 7, 8, 9, 1000, len(whole) // 2, len(whole) - 1):
        (one / WEIGHTS).write_bytes(whole[:length])
        refused(sample.main, saying(one), one, WEIGHTS)
    (one / WEIGHTS).write_bytes(whole + b"\0")
    refused(sample.main, saying(one), one, WEIGHTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(
    one: Path, dtype: torch.dtype, value: float, refused: Callable
) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(one / WEIGHTS).items()}
    tensors[GATE][3, 3] = value
    save_file(tensors, one / WEIGHTS)
    refused(sample.main, saying(one), one, "not finite")


@pytest.mark.parametrize("name", [EMBEDDING, NORM, GATE])
def test_a_missing_tensor_is_named(one: Path, name: str, refused: Callable) -> None:
    change_tensors(one, {name: None})
    refused(sample.main, saying(one), one, f"{name} is missing")


def test_biases_that_the_family_has_not_are_named(one: Path, refused: Callable) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    change_tensors(one, {name: torch.zeros(64)})
    refused(sample.main, saying(one), one, name)


# ---------------------------------------------------------------- config.json

CONFIGS = {
    "a billion layers": {"num_hidden_layers": 10**9},
    "a thousand layers": {"num_hidden_layers": 1000},
    "a vocabulary of 10^12": {"vocab_size": 10**12},
    "400 TB": {"vocab_size": 9_000_000, "hidden_size": 9_000_000},
    "500 wide layers": {"num_hidden_layers": 500, "hidden_size": 8192, "intermediate_size": 10**5},
    "an endless context": {"max_position_embeddings": 10**9},
    "heads of 10^7": {"head_dim": 10**7},
    "another width": {"hidden_size": 72},
    "fewer layers": {"num_hidden_layers": 1},
    "another vocabulary": {"vocab_size": 319},
    "no heads": {"num_attention_heads": 0},
    "three key-value heads": {"num_key_value_heads": 3},
    "odd heads": {"head_dim": 15},
    "width no multiple of the heads": {"head_dim": None, "num_attention_heads": 5},
    "a negative width": {"hidden_size": -48},
    "a width that is a list": {"hidden_size": [48]},
    "a width that is a text": {"hidden_size": "48"},
    "a width that is a float": {"hidden_size": 48.0},
    "a width that is null": {"hidden_size": None},
    "layers that are a truth": {"num_hidden_layers": True},
    "tied by a number": {"tie_word_embeddings": 1},
    "eps of NaN": {"rms_norm_eps": float("nan")},
    "a negative eps": {"rms_norm_eps": -1e-5},
    "a type that is a list": {"model_type": ["llama"]},
    "layer types that are a text": {"layer_types": "full_attention"},
    "layer types that are numbers": {"layer_types": [1, 2]},
    "rotary positions that are a text": {"rope_parameters": "llama3"},
    "rotary positions that are a list": {"rope_parameters": [LLAMA3_ROPE]},
    "a kind that is a list": {"rope_parameters": {"rope_type": ["llama3"], "rope_theta": 1e4}},
    "a base of 0": {"rope_parameters": LLAMA3_ROPE | {"rope_theta": 0}},
    "a base of infinity": {"rope_parameters": LLAMA3_ROPE | {"rope_theta": float("inf")}},
    "a base that is a text": {"rope_parameters": LLAMA3_ROPE | {"rope_theta": "1e4"}},
    "a factor of 0": {"rope_parameters": LLAMA3_ROPE | {"factor": 0}},
    "a negative factor": {"rope_parameters": LLAMA3_ROPE | {"factor": -8.0}},
    "a factor of NaN": {"rope_parameters": LLAMA3_ROPE | {"factor": float("nan")}},
    "a factor that is a list": {"rope_parameters": LLAMA3_ROPE | {"factor": [8.0]}},
    "no factor": {"rope_parameters": {**LLAMA3_ROPE, "factor": None}},
    "equal frequencies": {"rope_parameters": LLAMA3_ROPE | {"low_freq_factor": 4.0}},
    "no original length": {
        "rope_parameters": LLAMA3_ROPE | {"original_max_position_embeddings": 0}
    },
}


@pytest.mark.parametrize("fault", CONFIGS)
def test_a_config_that_is_wrong_is_refused_before_allocating(
    one: Path, fault: str, refused: Callable, little_memory: None
) -> None:
    change_config(one, **CONFIGS[fault])
    message = refused(sample.main, saying(one), one)
    assert "alloc" not in message  # not because the memory was not there
    assert message.count("\n") == 1, message


def test_the_memory_of_a_long_context_is_not_taken_if_a_short_one_is_asked_for(
    one: Path, little_memory: None
) -> None:
    change_config(one, max_position_embeddings=1 << 20)
    assert len(load_model(one, block_size=64).model.cos) == 64


# ---------------------------------------------------------------- the tokenizer


def tokenizer_of(folder: Path) -> dict:
    return json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(
    one: Path, refused: Callable
) -> None:
    document = tokenizer_of(one)
    vocab = document["model"]["vocab"]
    for letter in map(chr, range(0x4E00, 0x4E00 + 320 - len(vocab) + 1)):
        vocab[letter] = len(vocab)
    write_json(one / "tokenizer.json", document)
    refused(sample.main, saying(one), one, "321", "320")


@pytest.mark.parametrize("eos", [320, 10**12, -1, "2", 2.5, True, [2, 400], [[2]], {"id": 2}])
def test_an_end_that_is_no_token_is_refused(one: Path, eos: object, refused: Callable) -> None:
    path = one / "generation_config.json"
    generation = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, generation | {"eos_token_id": eos})
    refused(sample.main, saying(one), one, "eos_token_id")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("raw", [b"", b"[]", b"null", b"7", b"[" * 200_000, b'{"a":' + b"9" * 5000])
def test_a_document_that_is_no_json_object_is_refused(
    one: Path, name: str, raw: bytes, refused: Callable
) -> None:
    (one / name).write_bytes(raw)
    refused(sample.main, saying(one), one, name)


# ---------------------------------------------------------------- wherever a model is read


@pytest.mark.parametrize("fault", ["config.json", "tokenizer.json", INDEX])
def test_the_commands_refuse_a_bad_folder(
    shards: Path, fault: str, dataset: Path, tmp_path: Path, refused: Callable
) -> None:
    whole = (shards / fault).read_bytes()
    (shards / fault).write_bytes(whole[: len(whole) // 2])
    new = [f"--dataset={dataset}", f"--init_from={shards}", f"--out_dir={tmp_path / 'new'}"]
    refused(train_model, [*new, "--device=cpu", "--dtype=float32"], shards)
    if fault == "tokenizer.json":
        questions = tmp_path / "a.json"
        questions.write_text('[{"question": "Who?", "answer": "Me."}]', encoding="utf-8")
        out = f"--out={tmp_path / 'out'}"
        refused(prepare_sft.main, [questions, out, f"--tokenizer={shards}"], shards)


@pytest.mark.parametrize("name", ["config.json", INDEX, "tokenizer.json", "generation_config.json"])
@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_document_of_a_foreign_folder(
    whole_folders: dict[str, Path],
    tmp_path: Path,
    name: str,
    damage: Callable,
    count_fault: Callable,
    data: st.DataObject,
) -> None:
    folder = tmp_path / "model"
    if not folder.exists():
        shutil.copytree(whole_folders["shards"], folder)
    document = json.loads((whole_folders["shards"] / name).read_text(encoding="utf-8"))
    write_json(folder / name, damage(data, document))
    count_fault("tried")
    try:
        loaded = load_model(folder, block_size=32)
    except UserError as error:
        assert str(folder) in str(error) and len(str(error)) < 3000
        count_fault("refused")
    else:
        text = "the lamp is 12 é🙂"
        assert loaded.model(torch.tensor([loaded.tokenizer.encode(text)])).isfinite().all()
        count_fault("survived")


# ---------------------------------------------------------------- memory

MEASURE = """
import re, sys, torch
from pathlib import Path
from shuoshu.models.weights import load_model

def memory(kind):
    return 1024 * int(re.search(kind + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

load_model(sys.argv[1])  # a small one: what loading itself needs
for dtype in torch.bfloat16, torch.float32:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
    before = memory("VmRSS")
    model = load_model(sys.argv[2], dtype=dtype, block_size=512).model
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    print((memory("VmHWM") - before) / weights)
    del model
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from /proc")
def test_loading_takes_little_more_memory_than_the_weights(
    large: Path, whole_folders: dict[str, Path]
) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", MEASURE, whole_folders["one"], large]
    done = subprocess.run(words, cwd=REPO_ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shares = [float(line) for line in done.stdout.split()]
    assert len(shares) == 2 and all(0.9 < share < 1.15 for share in shares), shares


@pytest.fixture(scope="module")
def large(whole_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 70 million random numbers in bfloat16, 140 MB, in two shards."""
    folder = Path(shutil.copytree(whole_folders["one"], tmp_path_factory.mktemp("large") / "model"))
    (folder / WEIGHTS).unlink()
    shape = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 3}
    change_config(folder, **shape, vocab_size=10_000, num_attention_heads=16, head_dim=64)
    noise = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)).bfloat16()
    tensors = {
        name: noise.repeat(1 + size.numel() // len(noise))[: size.numel()].view(size)
        for name, size in large_shapes(read_config(folder)).items()
    }
    names, weight_map = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    write_json(folder / INDEX, {"metadata": {}, "weight_map": weight_map})
    return folder


def large_shapes(config: dict) -> dict[str, torch.Size]:
    """The names and shapes of a model's tensors, from transformers."""
    from transformers import AutoConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(AutoConfig.for_model(**config))
    return {name: parameter.shape for name, parameter in model.named_parameters()}
