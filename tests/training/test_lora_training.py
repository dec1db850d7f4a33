"""Training an adapter: only it changes, a resumed run is exact, and wrong bases are refused."""

from __future__ import annotations

import json
import shutil

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from shuoshu.core.errors import REPO_ROOT, UserError
from shuoshu.core.files import sha256_of
from shuoshu.models.purpose import CONTINUES_TEXT
from shuoshu.models.weights import load_model, save_weights
from tests.conftest import QUIET
from tests.in_process import killed_at, records, train_model
from tests.models.adapter_folders import write_adapter

LORA = [
    str(REPO_ROOT / "config" / "lora.py"),
    *QUIET,
    "--lora_rank=4",
    "--lora_dropout=0.1",
    "--learning_rate=0.01",
    "--max_iters=12",
    "--eval_interval=6",
    "--save_interval=4",
    "--select_by=loss",
    "--eval_questions=2",
]


@pytest.fixture(scope="module")
def lora(qa, pretrained):
    """The command line of a LoRA training that takes a second; add an out_dir."""
    return [*LORA, f"--dataset={qa}", f"--init_from={pretrained}"]


@pytest.fixture(scope="module")
def hashes(pretrained):
    """The content of the base before any training of an adapter."""
    return {path.name: sha256_of(path) for path in pretrained.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def trained(lora, hashes, tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("lora") / "out"
    assert train_model([*lora, f"--out_dir={out_dir}"]) == 0
    return out_dir


def weights(out_dir):
    return sha256_of(out_dir / "adapter_model.safetensors")


def losses(out_dir):
    return [record["val_loss"] for record in records(out_dir, "eval")]


def test_only_the_adapter_is_trained_and_saved(trained, pretrained, hashes):
    assert losses(trained)[-1] < losses(trained)[0] - 0.05
    after = {path.name: sha256_of(path) for path in pretrained.iterdir() if path.is_file()}
    assert after == hashes
    names = {path.name for path in trained.iterdir()}
    assert names >= {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"}
    assert not names & {"config.json", "model.safetensors"}
    for file in ("model", "optimizer"):
        tensors = load_file(trained / "checkpoints" / "step-000012" / f"{file}.safetensors")
        assert tensors and all("lora_" in name for name in tensors)
    base, model = load_model(pretrained).model, load_model(trained).model
    kept = dict(base.named_parameters())
    for name, parameter in model.named_parameters():
        assert "lora_" in name or torch.equal(parameter, kept[name])


def test_peft_and_transformers_open_the_out_dir(trained, pretrained):
    ids = torch.arange(5, 35)[None]
    ours = load_model(trained).model(ids)
    model = transformers.AutoModelForCausalLM.from_pretrained(pretrained, dtype=torch.float32)
    plain = model(ids).logits
    theirs = peft.PeftModel.from_pretrained(model, trained).eval()(ids).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert (plain - theirs).abs().max() > 0.1
    # The adapter's folder alone is enough: it names its base.
    model = transformers.AutoModelForCausalLM.from_pretrained(trained, dtype=torch.float32)
    torch.testing.assert_close(model.eval()(ids).logits, ours, atol=1e-5, rtol=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained)
    assert len(tokenizer) == load_model(trained).tokenizer.n_vocab


def test_a_killed_run_ends_with_the_same_bytes(lora, trained, tmp_path):
    out_dir = tmp_path / "out"
    assert train_model([*lora, f"--out_dir={out_dir}"], killed_at(6)) == 130
    assert (out_dir / "checkpoints" / "step-000004").exists()
    assert train_model(["--resume", f"--out_dir={out_dir}"]) == 0
    assert weights(out_dir) == weights(trained) and losses(out_dir) == losses(trained)


def test_one_process_equals_two(lora, trained, fork_server, tmp_path, hashes):
    command = [*lora, "--lora_dropout=0", "--batch_size=8"]
    assert train_model([*command, f"--out_dir={tmp_path / 'one'}"]) == 0
    out = tmp_path / "printed"
    codes = fork_server.train([*command, f"--out_dir={tmp_path / 'two'}"], out, world=2)
    assert codes == [0, 0], out.with_suffix(".0").read_text()
    one, two = (losses(tmp_path / name) for name in ("one", "two"))
    assert one == pytest.approx(two, abs=1e-5)


# ---------------------------------------------------------------- continuing an adapter


def test_training_continues_an_adapter(lora, qa, trained, tmp_path, capsys):
    command = [arg for arg in lora if "lora_" not in arg and "init_from" not in arg]
    command += ["--lora_rank=4", f"--init_from={trained}", f"--out_dir={tmp_path / 'out'}"]
    assert train_model(command) == 0
    first = losses(tmp_path / "out")[0]
    assert first == pytest.approx(losses(trained)[-1], abs=1e-4)  # where it left off
    assert losses(tmp_path / "out")[-1] < first
    mine, theirs = (
        json.loads((folder / "adapter_config.json").read_text())
        for folder in (tmp_path / "out", trained)
    )
    assert mine == theirs  # its dropout, too
    assert train_model([*command, "--overwrite", "--max_iters=1", "--lora_dropout=0.25"]) == 0
    mine = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert mine == theirs | {"lora_dropout": 0.25}
    capsys.readouterr()
    code = train_model([*command, "--lora_rank=8", "--lora_targets=q_proj", "--overwrite"])
    error = capsys.readouterr().err
    assert code == 2 and "lora_rank=8, lora_targets=q_proj: the adapter" in error
    assert "--lora_rank=4 --lora_targets=all" in error


def test_an_adapter_is_neither_trained_by_muon_nor_overwritten(
    qa, trained, pretrained, tmp_path, capsys
):
    command = [f"--dataset={qa}", f"--init_from={trained}", f"--out_dir={tmp_path / 'out'}"]
    assert train_model(command) == 2
    assert "is an adapter, which muon doesn't train" in capsys.readouterr().err
    command = [f"--init_from={trained}", f"--out_dir={trained}", "--overwrite", *LORA]
    assert train_model([*command, f"--dataset={qa}"]) == 2
    assert "would be overwritten" in capsys.readouterr().err and weights(trained)
    base = shutil.copytree(pretrained, tmp_path / "base")
    before = sha256_of(base / "model.safetensors")
    command = [f"--init_from={trained}", f"--base={base}", f"--out_dir={base}", "--overwrite"]
    assert train_model([*command, *LORA, f"--dataset={qa}"]) == 2
    assert f"the base of {trained}, would be overwritten" in capsys.readouterr().err
    assert sha256_of(base / "model.safetensors") == before
    command = [*LORA, f"--dataset={qa}", f"--init_from={trained}", "--lora_rank=none"]
    assert train_model([*command, f"--out_dir={tmp_path / 'out'}"]) == 2
    assert f"merge.py {trained} --out=FOLDER" in capsys.readouterr().err


def test_the_base_of_an_adapter_is_not_overwritten(lora, pretrained, tmp_path, capsys):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(pretrained, base)
    write_adapter(adapter, base, CONTINUES_TEXT)
    command = [*lora, f"--init_from={adapter}", f"--out_dir={base}", "--overwrite"]
    assert train_model([*command, "--lora_alpha=8"]) == 2
    assert f"{base}, the base of {adapter}, would be overwritten" in capsys.readouterr().err
    assert (base / "model.safetensors").is_file()


# ---------------------------------------------------------------- messages


def test_a_run_without_a_model_yet_is_to_be_resumed(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "out")
    (tmp_path / "out" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no adapter_model\.safetensors: its run ended before"):
        load_model(tmp_path / "out")


REFUSED = {
    "--init_from=scratch": "lora_rank=4 needs a trained model: set --init_from=FOLDER",
    "--optimizer=muon": "optimizer=muon is not for LoRA",
    "--lora_targets=q_proj,head": "'head' is none of q_proj",
    "--lora_rank=0": "must be at least 1",
}


@pytest.mark.parametrize("setting", REFUSED)
def test_settings_that_do_not_fit_are_refused(setting, lora, tmp_path, capsys):
    assert train_model([*lora, setting, f"--out_dir={tmp_path / 'out'}"]) == 2
    assert REFUSED[setting] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_is_not_resumed_on_a_base_that_changed_or_is_gone(lora, pretrained, tmp_path, capsys):
    base, out_dir = tmp_path / "base", tmp_path / "out"
    shutil.copytree(pretrained, base)
    command = [*lora, f"--init_from={base}", f"--out_dir={out_dir}"]
    assert train_model(command, killed_at(6)) == 130
    capsys.readouterr()
    base.rename(tmp_path / "moved")
    resume = ["--resume", f"--out_dir={out_dir}"]
    assert train_model(resume) == 2
    error = capsys.readouterr().err
    assert str(base) in error and "--base=FOLDER" in error
    assert train_model([*command, "--resume", "--lora_rank=8", f"--base={tmp_path / 'moved'}"]) == 2
    assert "lora_rank=8 (was 4)" in capsys.readouterr().err
    assert train_model([*resume, f"--base={tmp_path / 'moved'}"]) == 0
    model, tokenizer, *_ = load_model(tmp_path / "moved")
    model.model.norm.weight.data[0] += 0.01
    save_weights(tmp_path / "moved", model, tokenizer, step=150)
    assert train_model([*resume, f"--base={tmp_path / 'moved'}", "--max_iters=20"]) == 2
    assert "not, or no longer, the model" in capsys.readouterr().err


def test_a_dry_run_counts_the_adapter(lora, tmp_path, capsys):
    assert train_model([*lora, "--dry_run", f"--out_dir={tmp_path / 'out'}"]) == 0
    printed = capsys.readouterr().out
    rank, width, hidden, layers = 4, 64, 192, 2
    trained = layers * rank * (4 * 2 * width + 3 * (width + hidden))
    assert f"{trained:,} of them are trained" in printed
    assert f"{4 * trained / 1000:.1f} kB for the adapter" in printed
