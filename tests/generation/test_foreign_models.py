"""sample.py with the folders of others' models and with adapters."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import sample
from shuoshu.answering import sample_command
from shuoshu.generation.chat_model import ChatModel
from shuoshu.models.purpose import Purpose
from shuoshu.models.weights import load_model
from tests.models.adapter_folders import write_adapter, write_peft_adapter

QUICK = ["--max_new_tokens=12", "--threads=1", "--device=cpu"]
TURNS = [
    ("Who lit the lamp?", "The man."),
    ("When?", "At nine, in the rain."),
    ("Why?", "It's dark."),
]
QUESTION = "And then?"


@pytest.fixture(scope="session")
def adapter_folder(chat_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    return write_adapter(folder, chat_folder, Purpose("questions", 2))


@pytest.fixture(scope="session")
def chat_model(chat_folder: Path) -> ChatModel:
    return ChatModel(load_model(chat_folder))


def conversation(system: str | None, turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    for question, answer in turns:
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    return messages


def their_ids(folder: Path, messages: list[dict[str, str]]) -> list[int]:
    messages = [*messages, {"role": "user", "content": QUESTION}]
    theirs = AutoTokenizer.from_pretrained(folder)
    return theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]


def output(capsys: pytest.CaptureFixture, *arguments: object, code: int = 0) -> str:
    assert sample.main([*QUICK, *map(str, arguments)]) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


# ---------------------------------------------------------------- questions


@pytest.mark.parametrize("turns", [0, 1, 3])
@pytest.mark.parametrize("system", [None, "You are a sailor."])
def test_a_question_is_asked_as_the_folders_template_writes_it(
    chat_folder, chat_model, turns, system
):
    before = conversation(None, TURNS[:turns])
    ids = chat_model.question_ids(QUESTION, before, system)
    assert ids == their_ids(chat_folder, conversation(system, TURNS[:turns]))


def test_without_a_system_message_the_template_may_write_its_own(chat_folder, chat_model):
    for system in (None, "", " "):
        ids = chat_model.question_ids(QUESTION, system=system)
        assert ids == their_ids(chat_folder, [])
        assert "You answer briefly." in chat_model.tokenizer.decode(ids)


def test_as_many_turns_are_kept_as_fit_into_half_the_block(chat_folder, chat_model, monkeypatch):
    before, encoded = conversation(None, TURNS * 500), []
    cls, real = type(chat_model.tokenizer), type(chat_model.tokenizer).encode
    monkeypatch.setattr(cls, "encode", lambda self, text: encoded.append(text) or real(self, text))
    ids = chat_model.question_ids(QUESTION, before)
    turns, half = chat_model.tokenizer.decode(ids).count("assistant\n") - 1, chat_model.block // 2
    assert turns > 1 and ids == their_ids(chat_folder, before[-2 * turns :])
    assert len(ids) <= half < len(their_ids(chat_folder, before[-2 * turns - 2 :]))
    assert len(encoded) < 500  # not once per turn of 1,500


def test_a_chat_remembers_its_turns(chat_folder, monkeypatch, capsys):
    asked = []
    real = sample_command.TerminalChat.question_ids
    monkeypatch.setattr(
        sample_command.TerminalChat,
        "question_ids",
        lambda self, text, before, system: (
            asked.append(list(before)) or real(self, text, before, system)
        ),
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("Who?\nWhen?\n/new\nWhy?\n\n"))
    text = output(capsys, f"--out_dir={chat_folder}", "--chat", "--max_new_tokens=4")
    assert "without the earlier ones" not in text
    assert [len(before) for before in asked] == [0, 2, 0] and asked[1][0]["content"] == "Who?"


def test_a_base_model_is_not_asked(chat_folder, tmp_path, capsys):
    folder = Path(shutil.copytree(chat_folder, tmp_path / "base"))
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert output(capsys, f"--out_dir={folder}", "--start=the lamp").startswith("the lamp")
    assert "has no chat template, so it can't be asked" in output(
        capsys, f"--out_dir={folder}", "--chat", code=2
    )


# ---------------------------------------------------------------- adapters


def test_an_adapter_answers_as_the_merged_model(adapter_folder, chat_folder, capsys):
    asked = "--start=Who lit the lamp?"
    model = ChatModel(load_model(adapter_folder))
    [expected] = model.complete(
        [model.question_ids("Who lit the lamp?")],
        model.sampling_params(sample_command.SampleSettings(max_new_tokens=12), answers=True),
        [0],
    )
    text = output(capsys, f"--out_dir={adapter_folder}", asked)
    assert text == expected.text + "\n" != output(capsys, f"--out_dir={chat_folder}", asked)


def test_the_base_of_an_adapter_may_have_moved(chat_folder, tmp_path, capsys):
    base = Path(shutil.copytree(chat_folder, tmp_path / "base"))
    adapter = write_peft_adapter(tmp_path / "adapter", base)
    asked = [f"--out_dir={adapter}", "--start=Who lit the lamp?"]
    before = output(capsys, *asked)
    base.rename(tmp_path / "moved")
    assert "--base=FOLDER" in output(capsys, *asked, code=2)
    assert output(capsys, *asked, f"--base={tmp_path / 'moved'}") == before


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize("name, dtype", [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_weights_are_read_in_the_type_that_generates(
    chat_folder, adapter_folder, name, dtype, monkeypatch, capsys
):
    asked, read = [], sample_command.load_model

    def spy(folder, device, dtype, base):
        asked.append((dtype, read(folder, device, dtype, base)))
        return asked[-1][1]

    monkeypatch.setattr(sample_command, "load_model", spy)
    for folder in (chat_folder, adapter_folder):
        assert output(capsys, f"--out_dir={folder}", "--start=Who?", f"--dtype={name}")
    for given, loaded in asked:
        assert given == dtype == loaded.model.lm_head.weight.dtype
        assert {parameter.dtype for parameter in loaded.model.parameters()} == {dtype}
