"""Model folders and checkpoints that are damaged, forged, foreign, or carry code."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import torch

import eval_metrics
import prepare
import prepare_sft
import sample
from shuoshu.models import weights
from shuoshu.training import checkpoints
from tests.conftest import TINY
from tests.in_process import train_model

FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "settings.json",
    "log.jsonl",
)
PARTS = ("manifest.json", "model.safetensors", "optimizer.safetensors", "state.json")


@pytest.fixture
def model(pretrained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pretrained, tmp_path / "model"))


def saying(folder: Path) -> list[object]:
    return [
        f"--out_dir={folder}",
        "--start=清晨，",
        "--max_new_tokens=8",
        "--temperature=0",
        "--threads=1",
    ]


def resuming(folder: Path, dataset: Path) -> list[object]:
    return [
        "--resume",
        f"--out_dir={folder}",
        f"--dataset={dataset}",
        *TINY,
        "--max_iters=150",
        "--eval_interval=50",
        "--sample_tokens=20",
    ]


def newest(folder: Path) -> Path:
    return checkpoints.list_checkpoints(folder)[-1]


def written(path: Path, header: object, body: bytes = b"", sealed: bool = True) -> None:
    """A safetensors file with any header; sealed: with a sha256 that is right."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    if sealed:
        metadata = header.setdefault("__metadata__", {})
        metadata["sha256"] = sha256(
            json.dumps({**header, "__metadata__": metadata}).encode() + body
        ).hexdigest()
        raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + body)


def taken_apart(path: Path) -> tuple[dict, bytes]:
    """The header of a weights file, without its hash, and what follows."""
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    del header["__metadata__"]["sha256"]
    return header, raw[end:]


# ---------------------------------------------------------------- a model folder


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_in_a_model_folder_is_refused_or_changes_nothing(
    model: Path, name: str, capsys: pytest.CaptureFixture, count_fault: Callable
) -> None:
    assert sample.main([str(word) for word in saying(model)]) == 0
    right = capsys.readouterr().out
    whole = (model / name).read_bytes()
    for number in range(40):
        count_fault("tried")
        at = number * (len(whole) - 1) // 39
        (model / name).write_bytes(
            whole[:at] + bytes([whole[at] ^ (1 << number % 8)]) + whole[at + 1 :]
        )
        code = sample.main([str(word) for word in saying(model)])
        out, err = capsys.readouterr()
        assert (code == 0 and out == right) or (
            code == 2 and err.startswith("error: ") and str(model) in err
        ), (at, code, out, err)
        count_fault("refused" if code else "survived")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_file_that_is_cut_anywhere_is_refused(model: Path, name: str, refused: Callable) -> None:
    whole = (model / name).read_bytes()
    for length in (0, 1, 7, 8, 9, len(whole) // 3, len(whole) // 2, len(whole) - 2):
        (model / name).write_bytes(whole[:length])
        refused(sample.main, saying(model), model)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("kind", ["gone", "pipe", "device", "folder", "endless"])
def test_a_model_file_of_another_kind_is_refused(
    model: Path, name: str, kind: str, refused: Callable, little_memory: None
) -> None:
    path = model / name
    if kind == "endless":
        os.truncate(path, 600 << 20)
    else:
        path.unlink()
        makers = {
            "pipe": os.mkfifo,
            "device": lambda path: path.symlink_to("/dev/zero"),
            "folder": Path.mkdir,
            "gone": lambda path: None,
        }
        makers[kind](path)
    refused(sample.main, saying(model), model)


CONFIGS = {
    "llama": {"model_type": "llama"},
    "no type": {"model_type": None},
    "a billion layers": {"num_hidden_layers": 10**9},
    "a vocabulary of 10^12": {"vocab_size": 10**12},
    "400 TB": {"vocab_size": 9_000_000, "hidden_size": 9_000_000},
    "500 layers": {"num_hidden_layers": 500, "hidden_size": 8192, "intermediate_size": 100_000},
    "an endless context": {"max_position_embeddings": 10**9},
    "another width": {"hidden_size": 72},
    "fewer layers": {"num_hidden_layers": 1},
    "more layers": {"num_hidden_layers": 3},
    "other heads": {"num_attention_heads": 4},
    "no heads": {"num_attention_heads": 0},
    "odd heads": {"head_dim": 33},
    "NaN": {"rms_norm_eps": float("nan")},
    "infinite": {"rope_theta": float("inf"), "rope_parameters": None},
    "NaN dropout": {"dropout": float("nan")},
    "negative": {"vocab_size": -1},
    "a text": {"hidden_size": "64"},
    "a list": {"hidden_size": [64]},
    "a truth": {"num_hidden_layers": True},
    "tied by a text": {"tie_word_embeddings": "no"},
    "rope as text": {"rope_parameters": "default"},
    "scaled": {"rope_scaling": {"type": "linear"}},
    "another base": {
        "rope_theta": 5e5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
    },
}
RAW = {
    "empty": b"",
    "a list": b"[]",
    "null": b"null",
    "NUL": bytes(50),
    "brackets": b"[" * 200_000,
    "digits": b'{"vocab_size": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("fault", CONFIGS)
def test_another_shape_is_refused_before_allocating(
    model: Path, fault: str, refused: Callable, little_memory: None
) -> None:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps({**config, **CONFIGS[fault]}), encoding="utf-8")
    assert "alloc" not in refused(
        sample.main, saying(model), model
    )  # not because the memory was not there


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("fault", RAW)
def test_invalid_json_is_refused(model: Path, name: str, fault: str, refused: Callable) -> None:
    (model / name).write_bytes(RAW[fault])
    refused(sample.main, saying(model), model, name)


def test_another_models_tokenizer_is_refused(model: Path, text: str, refused: Callable) -> None:
    from shuoshu.text.tokenizer import train_bpe

    other = train_bpe([text[::-1]], 512)
    (model / "tokenizer.json").write_text(other.to_json(), encoding="utf-8")
    refused(sample.main, saying(model), model, "config.json or tokenizer.json is not the one")


# ---------------------------------------------------------------- headers of weights


def shifted(header: dict, by: int) -> dict:
    for name, entry in header.items():
        if name != "__metadata__":
            entry["data_offsets"] = [offset + by for offset in entry["data_offsets"]]
    return header


def changed(name: str, **fields: object) -> Callable[[dict], dict]:
    return lambda header: {**header, name: {**header[name], **fields}}


NORM = "model.norm.weight"
HEADERS: dict[str, Callable[[dict], dict]] = {
    "a missing tensor": lambda header: {
        name: entry for name, entry in header.items() if name != NORM
    },
    "an extra tensor": lambda header: {
        **header,
        "extra": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]},
    },
    "a renamed tensor": lambda header: {
        name.replace("self_attn", "attention"): entry for name, entry in header.items()
    },
    "another shape": changed(NORM, shape=[8, 8]),
    "a shape too large": changed(NORM, shape=[10**12]),
    "a negative shape": changed(NORM, shape=[-64]),
    "a shape that overflows": changed(NORM, shape=[1 << 32, 1 << 32]),
    "no dtype": changed(NORM, dtype="F13"),
    "another dtype": changed(NORM, dtype="I64"),
    "offsets out of range": changed(NORM, data_offsets=[0, 1 << 50]),
    "offsets backwards": changed(NORM, data_offsets=[256, 0]),
    "offsets below zero": changed(NORM, data_offsets=[-256, 0]),
    "offsets that overlap": changed(NORM, data_offsets=[0, 256]),
    "all shifted": lambda header: shifted(header, 4),
    "an entry that is none": lambda header: {**header, NORM: None},
    "no step": lambda header: {**header, "__metadata__": {"step": "many"}},
    "a step of 5,000 digits": lambda header: {**header, "__metadata__": {"step": "9" * 5000}},
    "turns that are none": lambda header: {**header, "__metadata__": {"step": "1", "turns": "²"}},
    "metadata that is no text": lambda header: {**header, "__metadata__": {"step": 5}},
}


@pytest.mark.parametrize("fault", HEADERS)
def test_a_forged_header_is_refused_despite_a_valid_hash(
    model: Path, fault: str, refused: Callable, little_memory: None
) -> None:
    header, body = taken_apart(model / "model.safetensors")
    written(model / "model.safetensors", HEADERS[fault](header), body)
    refused(sample.main, saying(model), model)


UNSEALED = {
    "10 GB": (10 << 30).to_bytes(8, "little") + b"{}" * 50,
    "2^63": (1 << 63).to_bytes(8, "little") + b"{}" * 50,
    "2^64 - 1": b"\xff" * 8 + b"{}" * 50,
    "99 MB": (99_000_000).to_bytes(8, "little") + b"{}" * 50,
    "nothing": bytes(8),
    "brackets": (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "objects": (600_000).to_bytes(8, "little") + b'{"a":' * 120_000,
    "a list": (2).to_bytes(8, "little") + b"[]",
    "no metadata": (2).to_bytes(8, "little") + b"{}",
    "metadata as list": (19).to_bytes(8, "little") + b'{"__metadata__":[]}',
    "a number": (5).to_bytes(8, "little") + b"12345",
    "no text": (4).to_bytes(8, "little") + b"\xff\xfe\xfd\xfc",
}


@pytest.mark.parametrize("fault", UNSEALED)
def test_an_invalid_header_is_refused_with_little_memory(
    model: Path, fault: str, refused: Callable, little_memory: None
) -> None:
    (model / "model.safetensors").write_bytes(UNSEALED[fault])
    refused(
        sample.main,
        saying(model),
        model / "model.safetensors",
        "is damaged or not a safetensors file",
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_refused(model: Path, value: float, refused: Callable) -> None:
    loaded = weights.load_model(model)
    with torch.no_grad():
        loaded.model.lm_head.weight[3, 3] = value
    weights.save_weights(model, loaded.model, loaded.tokenizer, 1)
    refused(sample.main, saying(model), model, "not finite")


# ---------------------------------------------------------------- code inside


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, (f"touch {os.environ['SENTINEL']}",)


def test_nothing_is_ever_unpickled(
    pretrained: Path,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    count_fault: Callable,
) -> None:
    monkeypatch.setenv("SENTINEL", str(tmp_path / "ran"))
    pickle.loads(pickle.dumps(Evil()))
    assert (tmp_path / "ran").exists()  # that is what it would do
    (tmp_path / "ran").unlink()
    folder = tmp_path / "model"
    for number, name in enumerate(
        (*FILES, *(f"{newest(pretrained).relative_to(pretrained)}/{part}" for part in PARTS))
    ):
        count_fault("tried")
        shutil.copytree(pretrained, folder)
        if number % 2:
            torch.save(Evil(), folder / name)
        else:
            (folder / name).write_bytes(pickle.dumps(Evil(), protocol=number // 2))
        codes = [sample.main([str(word) for word in saying(folder)])]
        codes.append(
            eval_metrics.main(
                [str(folder), f"--data={dataset}", "--limit=1", "--max_new_tokens=1", "--threads=1"]
            )
        ) if name in FILES else None
        codes.append(train_model([str(word) for word in resuming(folder, dataset)]))
        codes.append(
            train_model(
                [
                    f"--dataset={dataset}",
                    *TINY,
                    f"--init_from={folder}",
                    f"--out_dir={folder / 'new'}",
                    "--max_iters=1",
                ]
            )
        )
        assert set(codes) <= {0, 2} and not (tmp_path / "ran").exists(), (name, codes)
        shutil.rmtree(folder)
        count_fault("refused" if 2 in codes else "survived")


# ---------------------------------------------------------------- wherever a model is read


def test_every_command_that_reads_a_model_refuses_a_bad_one(
    model: Path, pretrained: Path, dataset: Path, tmp_path: Path, refused: Callable
) -> None:
    text, questions = tmp_path / "a.txt", tmp_path / "a.json"
    text.write_text("雨夜。\n" * 50, encoding="utf-8")
    questions.write_text('[{"question": "谁？", "answer": "我。"}]', encoding="utf-8")
    out = f"--out={tmp_path / 'out'}"
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        whole = (model / name).read_bytes()
        for raw in (whole[: len(whole) // 2], b"[" * 100_000, b""):
            (model / name).write_bytes(raw)
            refused(
                train_model,
                [
                    f"--dataset={dataset}",
                    *TINY,
                    f"--init_from={model}",
                    f"--out_dir={tmp_path / 'new'}",
                ],
                model,
            )
            refused(eval_metrics.main, [model, f"--data={dataset}", "--threads=1"], model)
            refused(
                eval_metrics.main,
                [pretrained, f"--compare={model}", f"--data={dataset}", "--threads=1"],
                model,
            )
            if name != "model.safetensors":
                refused(prepare_sft.main, [questions, out, f"--tokenizer={model}"], model)
            if name == "tokenizer.json":
                refused(prepare.main, [text, out, f"--tokenizer={model}"], model)
        (model / name).write_bytes(whole)
