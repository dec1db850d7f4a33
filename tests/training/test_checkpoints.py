"""Checkpoints and weights: written completely or not at all, damage is detected."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from shuoshu.core import files
from shuoshu.core.errors import REPO_ROOT, UserError
from shuoshu.models import weights as models_weights
from shuoshu.models.tensor_files import StoredTensor
from shuoshu.training import checkpoints

TENSORS = {
    "b": torch.arange(6).reshape(2, 3).float(),
    "a": torch.ones(3, dtype=torch.bfloat16),
    "c": torch.tensor(7.0),
    "n": torch.arange(3),
}


def test_safetensors_reads_what_write_tensors_writes(tmp_path):
    models_weights.write_tensors(tmp_path / "x.safetensors", TENSORS, {"step": "5"})
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == TENSORS.keys() and all(
        torch.equal(read[k], v) and read[k].dtype == v.dtype for k, v in TENSORS.items()
    )
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt" and file.metadata()["step"] == "5"


def test_the_bytes_depend_on_the_content_alone(tmp_path):
    models_weights.write_tensors(tmp_path / "x", TENSORS, {"step": "5"})
    models_weights.write_tensors(tmp_path / "y", dict(reversed(TENSORS.items())), {"step": "5"})
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_a_flipped_bit_or_a_truncation_is_detected(pretrained, tmp_path):
    whole = (pretrained / "model.safetensors").read_bytes()
    folder = shutil.copytree(
        pretrained, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoints")
    )
    header = int.from_bytes(whole[:8], "little")
    at = [*range(0, 8 + header, 97), 8 + header - 9, len(whole) // 2, len(whole) - 1]
    damaged = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in at] + [
        whole[:n] for n in (0, 7, 100, len(whole) - 1)
    ]
    for content in damaged:
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(UserError, match=r"damaged|can't be loaded"):
            models_weights.load_model(folder)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    files.write_atomically(tmp_path / "x.txt", lambda path: files.write_synced_text(path, "old"))

    def fail(path):
        path.write_text("ne", encoding="utf-8")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_atomically(tmp_path / "x.txt", fail)
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"] and (tmp_path / "x.txt").read_text(
        encoding="utf-8"
    ) == "old"


def test_two_checkpoints_are_kept_and_the_newest_valid_one_is_found(pretrained, tmp_path):
    model, *_ = models_weights.load_model(pretrained)
    for step in (10, 20, 30):
        checkpoints.save_checkpoint(tmp_path, step, model, {"m": torch.ones(2)}, {"fact": step})
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "step-000020",
        "step-000030",
    ]
    newest, wrong = checkpoints.newest_checkpoint(tmp_path)
    assert newest.name == "step-000030" and not wrong
    weights, optimizer, state = checkpoints.load_checkpoint(newest)
    assert (
        state["fact"] == 30
        and torch.equal(optimizer["m"], torch.ones(2))
        and torch.equal(weights["lm_head.weight"], model.lm_head.weight)
    )

    (newest / "optimizer.safetensors").write_bytes(b"cut")
    older, wrong = checkpoints.newest_checkpoint(tmp_path)
    assert older.name == "step-000020" and "optimizer.safetensors is damaged" in wrong[0]
    (older / "manifest.json").unlink()
    none, wrong = checkpoints.newest_checkpoint(tmp_path)
    assert none is None and len(wrong) == 2


def test_checkpoints_are_ordered_by_their_number(pretrained, tmp_path):
    model, *_ = models_weights.load_model(pretrained)
    for step in (999_000, 1_000_000, 1_001_000):
        checkpoints.save_checkpoint(tmp_path, step, model, {}, {})
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path)] == [
        "step-1000000",
        "step-1001000",
    ]
    assert checkpoints.newest_checkpoint(tmp_path)[0].name == "step-1001000"


def test_an_incomplete_model_folder_is_refused_with_one_message(pretrained, tmp_path):
    with pytest.raises(UserError, match=r"no trained model(?s:.)*python train\.py"):
        models_weights.load_model(tmp_path)
    folder = shutil.copytree(
        pretrained, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoints")
    )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    wrong = {
        "model_type": "gpt2",
        "num_hidden_layers": 10**9,
        "max_position_embeddings": 2.5,
        "rms_norm_eps": None,
    }
    cases = [
        ({key: value}, str(value) if key == "model_type" else key) for key, value in wrong.items()
    ]
    for change, expected in [
        *cases,
        ({"hidden_size": 72}, "shape"),
        ({"hidden_size": "x"}, "hidden_size"),
        ({"num_hidden_layers": 3}, "missing"),
    ]:
        (folder / "config.json").write_text(json.dumps(config | change), encoding="utf-8")
        with pytest.raises(UserError, match=f"can't be loaded.*{expected}"):
            models_weights.load_model(folder)


def test_a_config_larger_than_the_weights_is_refused_before_allocating(
    pretrained, tmp_path, monkeypatch
):
    folder = shutil.copytree(
        pretrained, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoints")
    )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    monkeypatch.setattr(StoredTensor, "read", lambda tensor: pytest.fail("the weights were read"))
    names = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
    )
    for name in names:
        (folder / "config.json").write_text(
            json.dumps(config | {name: 10 * config[name]}), encoding="utf-8"
        )
        with pytest.raises(UserError, match=r"can't be loaded.*(shape|missing|multiple|describes)"):
            models_weights.load_model(folder)


def test_an_extra_tensor_does_not_justify_more_layers(pretrained, tmp_path, monkeypatch):
    folder = shutil.copytree(
        pretrained, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoints")
    )
    metadata, tensors = (
        models_weights.read_metadata(folder / "model.safetensors"),
        load_file(pretrained / "model.safetensors"),
    )
    models_weights.write_tensors(
        folder / "model.safetensors",
        tensors | {"model.layers.999.mlp.up_proj.weight": torch.zeros(1)},
        metadata,
    )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(
        json.dumps(config | {"num_hidden_layers": 1000}), encoding="utf-8"
    )
    monkeypatch.setattr(StoredTensor, "read", lambda tensor: pytest.fail("the weights were read"))
    with pytest.raises(UserError, match=r"can't be loaded.*(missing|describes)"):
        models_weights.load_model(folder)


def test_sampling_does_not_import_torchs_compiler(pretrained):
    """Importing the compiler takes as long as importing torch itself."""
    code = "import sys, sample; sample.main(sys.argv[1:]); sys.exit('torch._dynamo' in sys.modules)"
    words = [
        f"--out_dir={pretrained}",
        "--start=阿迟",
        "--max_new_tokens=2",
        "--device=cpu",
        "--threads=1",
    ]
    assert (
        subprocess.run(
            [sys.executable, "-c", code, *words], cwd=REPO_ROOT, stdout=subprocess.DEVNULL
        ).returncode
        == 0
    )


def test_the_weights_file_records_the_number_of_turns(pretrained, tuned):
    assert models_weights.load_model(pretrained).purpose == models_weights.CONTINUES_TEXT
    loaded = models_weights.load_model(tuned)
    assert loaded.purpose.turns == 1 and loaded.step > 0
    assert models_weights.read_metadata(tuned / "model.safetensors")["turns"] == "1"


def test_a_model_saved_before_turns_were_counted_continues_text(pretrained, tmp_path):
    folder = shutil.copytree(
        pretrained, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoints")
    )
    model = models_weights.load_model(pretrained).model
    models_weights.write_tensors(folder / "model.safetensors", model.tensors(), {"step": "7"})
    assert models_weights.load_model(folder)[2:4] == (7, models_weights.CONTINUES_TEXT)
