"""Training on from a model that others made: its family is kept, its context is cut for text, a resumed run is exact."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

import prepare
import prepare_sft
from shuoshu.core.files import sha256_of
from shuoshu.core.out_dirs import weights_path
from shuoshu.models.weights import load_model
from shuoshu.sft.tokenizer_choice import context_length
from tests.in_process import killed_at, records, train_model
from tests.models.adapter_folders import write_peft_adapter
from tests.models.families import read_config, reference, write_json, write_model
from tests.training.test_lora_training import LORA

TUNE = ["--optimizer=adamw", "--learning_rate=0.003", "--batch_size=2", "--max_iters=6"]
TUNE += ["--eval_interval=3", "--save_interval=2", "--dtype=float32", "--device=cpu", "--threads=1"]
TUNE += ["--sample_tokens=0", "--eval_tokens=200"]


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A folder of the family with biases, with a context longer than rows of text are by default."""
    home = tmp_path_factory.mktemp("foreign")
    return write_model(home / "qwen2", "qwen2", max_position_embeddings=2048)


@pytest.fixture(scope="module")
def book(foreign, tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign-data")
    text = "\n".join(f"The lamp of number {number} is lit and burning." for number in range(400))
    (folder / "book.txt").write_text(text, encoding="utf-8")
    argv = [str(folder / "book.txt"), f"--out={folder / 'book'}", f"--tokenizer={foreign}"]
    assert prepare.main([*argv, "--val_fraction=0.2"]) == 0
    return folder / "book"


@pytest.fixture(scope="module")
def qa(foreign, tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign-questions")
    rows = [f"where is lamp {number}?,at door {number % 7}" for number in range(60)]
    (folder / "qa.csv").write_text("\n".join(["question,answer", *rows]), encoding="utf-8")
    argv = [str(folder / "qa.csv"), f"--out={folder / 'qa'}", f"--tokenizer={foreign}"]
    assert prepare_sft.main(argv) == 0
    return folder / "qa"


def test_training_all_weights_keeps_the_family_and_resumes_exactly(foreign, book, tmp_path, capsys):
    command = [f"--dataset={book}", f"--init_from={foreign}", *TUNE]
    capsys.readouterr()
    assert train_model([*command, f"--out_dir={tmp_path / 'one'}"]) == 0
    assert "1,024 tokens of the 2,048 that the model can read" in capsys.readouterr().out
    assert train_model([*command, f"--out_dir={tmp_path / 'two'}"], killed_at(5)) == 130
    assert train_model(["--resume", f"--out_dir={tmp_path / 'two'}"]) == 0
    one, two = (sha256_of(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one == two
    config = read_config(tmp_path / "one")
    assert config["model_type"] == "qwen2" and config["max_position_embeddings"] == 2048
    ids = torch.arange(5, 45)[None]
    ours = load_model(tmp_path / "one").model(ids)
    torch.testing.assert_close(ours, reference(tmp_path / "one")(ids).logits, atol=1e-4, rtol=0)
    assert (ours - load_model(foreign).model(ids)).abs().max() > 0.01


def test_an_adapter_of_questions_trains_and_resumes_exactly(foreign, qa, tmp_path, capsys):
    command = [*LORA, f"--dataset={qa}", f"--init_from={foreign}"]
    assert train_model([*command, f"--out_dir={tmp_path / 'one'}"]) == 0
    losses = [record["val_loss"] for record in records(tmp_path / "one", "eval")]
    assert losses[-1] < losses[0] - 0.2
    assert train_model([*command, f"--out_dir={tmp_path / 'two'}"], killed_at(6)) == 130
    assert train_model([LORA[0], "--resume", f"--out_dir={tmp_path / 'two'}"]) == 0
    one, two = (sha256_of(weights_path(tmp_path / name)) for name in ("one", "two"))
    assert one == two
    loaded = load_model(tmp_path / "one")
    assert loaded.purpose.task == "questions" and loaded.tokenizer.has_template
    # The folder's own tokenizer files prepare data that fit the base, too.
    argv = [
        str(qa.parent / "qa.csv"),
        f"--out={tmp_path / 'qa'}",
        f"--tokenizer={tmp_path / 'one'}",
    ]
    capsys.readouterr()
    assert prepare_sft.main(argv) == 0
    assert f"config/lora.py --dataset={tmp_path / 'qa'} --init_from={tmp_path / 'one'}" in (
        capsys.readouterr().out
    )
    assert context_length(tmp_path / "one") == 2048
    (shutil.copytree(tmp_path / "one", tmp_path / "bare") / "tokenizer.json").unlink()
    assert prepare_sft.main([*argv[:2], f"--tokenizer={tmp_path / 'bare'}"]) == 2
    assert "has no tokenizer of its own" in capsys.readouterr().err
    command = [*LORA, f"--dataset={tmp_path / 'qa'}", f"--init_from={tmp_path / 'one'}"]
    assert train_model([*command, f"--out_dir={tmp_path / 'three'}", "--max_iters=1"]) == 0


@pytest.mark.parametrize("how", [[], ["--overwrite"], ["--resume"]])
def test_a_run_never_replaces_a_model_that_was_downloaded(how, foreign, qa, tmp_path, capsys):
    folder = shutil.copytree(foreign, tmp_path / "downloaded")
    before = {path.name: sha256_of(path) for path in folder.iterdir()}
    for start in ([], [*LORA, f"--init_from={foreign}"]):
        command = [*start, f"--dataset={qa}", f"--out_dir={folder}", "--max_iters=1", *how]
        assert train_model(command) == 2
        error = capsys.readouterr().err
        assert "no run of train.py wrote it; choose another --out_dir" in error
    assert {path.name: sha256_of(path) for path in folder.iterdir()} == before


def test_text_for_anothers_model_proposes_to_train_that_model(foreign, tmp_path, capsys):
    (tmp_path / "book.txt").write_text("The lamp is lit.\n" * 200, encoding="utf-8")
    argv = [str(tmp_path / "book.txt"), f"--out={tmp_path / 'book'}", f"--tokenizer={foreign}"]
    assert prepare.main(argv) == 0
    assert f"config/lora.py --dataset={tmp_path / 'book'} --init_from={foreign}" in (
        capsys.readouterr().out
    )


def test_a_name_on_hugging_face_instead_of_a_folder_gets_the_download_command(qa, capsys):
    name = "Qwen/Qwen3-0.6B"
    commands = (
        lambda: train_model([*LORA, f"--dataset={qa}", f"--init_from={name}"]),
        lambda: prepare_sft.main([str(qa.parent / "qa.csv"), f"--tokenizer={name}"]),
        lambda: prepare.main([str(qa.parent / "qa.csv"), f"--tokenizer={name}"]),
    )
    for command in commands:
        assert command() == 2
        assert f"hf download {name} --local-dir=Qwen3-0.6B" in capsys.readouterr().err


def test_an_adapter_keeps_the_template_that_it_is_trained_with(foreign, qa, tmp_path):
    """PEFT's adapter brings a template that its base lacks; training goes on with it."""
    adapter = write_peft_adapter(tmp_path / "adapter", foreign)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(foreign / name, adapter / name)
    config = json.loads((adapter / "tokenizer_config.json").read_text())
    config["chat_template"] = config["chat_template"].replace("<|im_start|>", "<|im_start|>the ")
    write_json(adapter / "tokenizer_config.json", config)
    source, data = str(qa.parent / "qa.csv"), tmp_path / "qa"
    assert prepare_sft.main([source, f"--out={data}", f"--tokenizer={adapter}"]) == 0
    command = [*LORA, f"--dataset={data}", f"--init_from={adapter}", "--lora_alpha=8"]
    assert train_model([*command, f"--out_dir={tmp_path / 'out'}", "--max_iters=1"]) == 0
    question = [{"role": "user", "content": "where?"}, {"role": "assistant", "content": None}]
    tokenizer = load_model(tmp_path / "out").tokenizer
    assert tokenizer.render(question) == load_model(adapter).tokenizer.render(question)
    assert tokenizer.render(question) != load_model(foreign).tokenizer.render(question)


def test_an_adapter_with_a_tokenizer_ends_where_its_base_does(foreign, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(foreign, base)
    write_json(base / "generation_config.json", {"eos_token_id": [2, 1]})
    adapter = write_peft_adapter(tmp_path / "adapter", base)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, adapter / name)
    assert load_model(adapter).tokenizer.ends == load_model(base).tokenizer.ends == {0, 1, 2}
    assert load_model(adapter).tokenizer.eos_token_id == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "muon's rates would spoil it: use config/lora.py"),
        (["--optimizer=adamw", "--lora_alpha=8"], "lora_alpha set without lora_rank"),
    ],
)
def test_all_weights_of_anothers_model_are_not_trained_by_mistake(
    arguments, message, foreign, qa, tmp_path, capsys
):
    command = [*arguments, f"--dataset={qa}", f"--init_from={foreign}", "--max_iters=1"]
    assert train_model([*command, f"--out_dir={tmp_path / 'out'}"]) == 2
    assert message in capsys.readouterr().err
