"""merge.py: a base and its adapter become one folder, which transformers opens."""

from __future__ import annotations

import json
import shutil

import peft
import pytest
import torch
import transformers
from safetensors import safe_open

import merge
from shuoshu.core.settings import LORA_TARGETS
from shuoshu.models.purpose import CHATS
from shuoshu.models.weights import load_model
from tests.models.families import write_model

IDS = torch.randint(3, 300, (2, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(base, adapter) of each family and dtype that the tests use; PEFT trained the adapters."""
    home, result = tmp_path_factory.mktemp("merge"), {}
    for family, dtype in (("llama", "float32"), ("qwen2", "bfloat16")):
        base = write_model(home / family, family, getattr(torch, dtype))
        model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=list(LORA_TARGETS))
        model = peft.get_peft_model(model, config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(home / f"{family}-adapter")
        result[family] = base, home / f"{family}-adapter"
    return result


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_merged_folder_computes_what_base_and_adapter_do(family, folders, tmp_path, capsys):
    base, adapter = folders[family]
    out = tmp_path / "deep" / "merged"
    assert merge.main([str(adapter), f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    assert f"python sample.py --out_dir={out}" in printed
    unmerged = load_model(adapter).model(IDS)
    # bfloat16, in which the base is stored, rounds the merged weights.
    precision = 1e-5 if family == "llama" else 0.05
    assert (load_model(out).model(IDS) - unmerged).abs().max() < precision
    assert (load_model(base).model(IDS) - unmerged).abs().max() > 0.2
    assert load_model(out).purpose == load_model(base).purpose == CHATS
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert theirs.dtype == (torch.float32 if family == "llama" else torch.bfloat16)
    assert theirs.config.model_type == family
    assert (theirs.float()(IDS).logits - unmerged).abs().max() < precision
    transformers.AutoTokenizer.from_pretrained(out)
    assert [path.name for path in out.parent.iterdir()] == ["merged"]


def test_dtype_sets_the_precision_of_the_merged_weights(folders, tmp_path, capsys):
    _, adapter = folders["qwen2"]
    assert merge.main([str(adapter), f"--out={tmp_path / 'out'}", "--dtype=float32"]) == 0
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float32}  # noqa: SIM118
    unmerged = load_model(adapter).model(IDS)
    torch.testing.assert_close(load_model(tmp_path / "out").model(IDS), unmerged, atol=1e-5, rtol=0)


def test_base_names_a_base_that_was_moved(folders, tmp_path, capsys):
    base, adapter = folders["llama"]
    copy = shutil.copytree(adapter, tmp_path / "adapter")
    path = copy / "adapter_config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"base_model_name_or_path": "meta-llama/Llama-3.2-1B"}))
    out = tmp_path / "out"
    assert merge.main([str(copy), f"--out={out}"]) == 2
    assert "'meta-llama/Llama-3.2-1B', which is no folder" in capsys.readouterr().err
    assert not out.exists()
    assert merge.main([str(copy), f"--out={out}", f"--base={base}"]) == 0


def test_nothing_is_overwritten_and_mistakes_are_one_message(folders, tmp_path, capsys):
    base, adapter = folders["llama"]
    before = {path: path.read_bytes() for path in base.iterdir()}
    for argv, message in (
        ([str(adapter), f"--out={base}"], "is not empty"),
        ([str(base), f"--out={tmp_path / 'out'}"], "there is nothing to merge"),
        ([str(tmp_path), f"--out={tmp_path / 'out'}"], "there is no trained model in"),
        ([str(adapter)], "python merge.py OUT_DIR --out=FOLDER"),
        ([f"--out={tmp_path / 'out'}"], "python merge.py OUT_DIR --out=FOLDER"),
    ):
        assert merge.main(argv) == 2
        assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in base.iterdir()} == before
    assert not list(tmp_path.iterdir())


def test_a_damaged_base_is_one_message(folders, tmp_path, capsys):
    base, adapter = tmp_path / "base", folders["llama"][1]
    shutil.copytree(folders["llama"][0], base)
    (base / "model.safetensors").unlink()
    (base / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b.safetensors"}}')
    assert merge.main([str(adapter), f"--base={base}", f"--out={tmp_path / 'out'}"]) == 2
    assert "no safetensors file of the folder" in capsys.readouterr().err


def test_the_folder_here_may_be_the_new_one(folders, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert merge.main([str(folders["llama"][1]), "--out=."]) == 0
    assert load_model(".").adapter is None and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_leaves_nothing(folders, tmp_path, monkeypatch, capsys):
    _, adapter = folders["llama"]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shuoshu.models.weights.require_disk_space", full)
    assert merge.main([str(adapter), f"--out={tmp_path / 'out'}"]) == 2
    assert "No space left" in capsys.readouterr().err and not list(tmp_path.iterdir())
