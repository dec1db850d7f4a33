"""prepare_sft.py and prepare.py with another model's tokenizer: rows, files, notes, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import prepare
import prepare_sft
from shuoshu.core.errors import UserError
from shuoshu.core.settings import TrainSettings
from shuoshu.generation.answers import read_questions
from shuoshu.sft.dataset import QuestionDataset
from shuoshu.sft.pairs import Pair, RejectedRecords
from shuoshu.sft.rendering import cut_question, render_pairs
from shuoshu.text.dataset import TextDataset
from shuoshu.text.tokenizer_folder import load_tokenizer
from shuoshu.training.data import RunData
from tests.sft.helpers import conversation, write
from tests.text.foreign_helpers import write_folder


@pytest.fixture(scope="session")
def qwen(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A downloaded folder's tokenizer and a config.json with a long context."""
    folder = write_folder(tmp_path_factory.mktemp("qwen") / "model", "qwen", text)
    write(folder / "config.json", {"max_position_embeddings": 40_960, "eos_token_id": 602})
    return folder


@pytest.fixture(scope="session")
def prepared(qwen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations of one and of two turns, prepared with it."""
    top = tmp_path_factory.mktemp("prepared")
    rows = [{"question": f"问{n}？", "answer": f"答{n}。"} for n in range(20)]
    rows += [{"messages": conversation(f"一{n}", f"二{n}", f"三{n}", f"四{n}")} for n in range(20)]
    write(top / "rows.json", rows)
    arguments = [str(top / "rows.json"), f"--out={top / 'data'}", f"--tokenizer={qwen}"]
    assert prepare_sft.main([*arguments, "--show=30"]) == 0
    return top / "data"


def test_the_data_folder_has_the_models_tokenizer_and_exact_rows(
    qwen: Path, prepared: Path
) -> None:
    foreign = load_tokenizer(qwen)
    assert load_tokenizer(prepared).hash == foreign.hash
    assert load_tokenizer(prepared).ends == foreign.ends
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (prepared / name).read_bytes() == (qwen / name).read_bytes()
    for split in ("train", "val"):
        dataset = QuestionDataset(prepared, split)
        for question in read_questions(prepared, split, foreign):
            expected = [*question.ids, *foreign.encode_answer(question.reference)]
            row, mask = dataset.row(question.rows[-1])  # the last row has the last answer
            assert row.tolist() == expected
            n_trained = len(expected) - len(question.ids)
            assert mask.tolist() == [0] * len(question.ids) + [1] * n_trained
            turns = sum(m["role"] == "user" for m in question.messages)
            assert len(question.rows) == turns  # an earlier answer has a row of its own


def test_the_summary_and_the_rows_are_readable(prepared: Path, qwen: Path, capsys) -> None:
    source = prepared.parent / "rows.json"
    arguments = [str(source), f"--out={prepared.parent / 'again'}", f"--tokenizer={qwen}"]
    assert prepare_sft.main([*arguments, "--show=50"]) == 0
    shown = capsys.readouterr().out
    assert "split over several rows" not in shown
    assert "train.py config/lora.py" in shown and "paraphrases" not in shown
    assert "<|im_start|>assistant\n<think>\n\n</think>\n\n⟦答3。<|im_end|>⟧" in shown


def test_another_tokenizer_over_the_same_data_leaves_no_file_of_the_first(
    qwen: Path, prepared: Path, pretrained: Path
) -> None:
    out = prepared.parent / "twice"
    arguments = [str(prepared.parent / "rows.json"), f"--out={out}"]
    assert prepare_sft.main([*arguments, f"--tokenizer={qwen}"]) == 0
    assert (out / "tokenizer_config.json").exists()
    assert prepare_sft.main([*arguments, f"--tokenizer={pretrained}"]) == 0
    assert not (out / "tokenizer_config.json").exists()
    assert not (out / "generation_config.json").exists()
    assert load_tokenizer(out).kind != "foreign"


def test_files_of_others_are_not_overwritten(qwen: Path, prepared: Path, capsys) -> None:
    out = prepared.parent / "theirs"
    out.mkdir()
    write(out / "generation_config.json", {})
    arguments = [str(prepared.parent / "rows.json"), f"--out={out}", f"--tokenizer={qwen}"]
    assert prepare_sft.main(arguments) == 2
    assert "generation_config.json would be overwritten" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["generation_config.json"]


def test_a_tokenizer_without_a_template_prepares_text_but_no_questions(
    text: str, tmp_path: Path, capsys
) -> None:
    base = write_folder(tmp_path / "base", "llama", text, chat_template=None)
    write(tmp_path / "rows.json", [{"question": "a", "answer": "b"}])
    arguments = [str(tmp_path / "rows.json"), f"--out={tmp_path / 'qa'}", f"--tokenizer={base}"]
    assert prepare_sft.main(arguments) == 2
    assert "has no chat template" in capsys.readouterr().err
    assert not (tmp_path / "qa").exists()
    write(tmp_path / "book.txt", text)
    out = tmp_path / "book"
    arguments = [str(tmp_path / "book.txt"), f"--out={out}", f"--tokenizer={base}"]
    assert prepare.main(arguments) == 0
    foreign, tokens = load_tokenizer(out), TextDataset(out, "train").tokens.tolist()
    assert tokens[-1] == foreign.end and tokens.count(foreign.end) == 1
    assert foreign.decode(tokens).startswith(text[:20])
    data = RunData(TrainSettings(dataset=str(out)))
    ids, targets = next(data.val_batches(32, 1))
    assert ids[0, 0] == foreign.start != foreign.end and targets[0, 0] == data.val.tokens[0]
    assert data.end == foreign.end


def test_questions_cant_be_changed_in_training(prepared: Path) -> None:
    settings = TrainSettings(dataset=str(prepared), paraphrases=6, question_drop=0.05)
    with pytest.raises(
        UserError, match=r"use config/lora.py, or set --question_drop=0 --paraphrases=0$"
    ):
        RunData(settings)
    data = RunData(TrainSettings(dataset=str(prepared)))
    assert data.end == data.tokenizer.answer_end != data.tokenizer.end


def test_long_answers_are_split_and_long_questions_cut(qwen: Path) -> None:
    foreign = load_tokenizer(qwen)
    messages = conversation("问" * 200, "短答。", "再问", "长答，" * 90)
    width = len(foreign.render([*messages[:-1], {"role": "assistant", "content": None}])[0]) + 120
    [rendered] = render_pairs(
        [Pair(messages, "rows.json, row 1")], foreign, width, "window", RejectedRecords()
    )
    assert len(rendered.rows) > 2 and all(len(ids) <= width for ids, _ in rendered.rows)
    runs = [[i for i, m in zip(ids, mask, strict=True) if m] for ids, mask in rendered.rows]
    assert runs[0] == foreign.encode_answer("短答。")
    assert [i for run in runs[1:] for i in run] == foreign.encode_answer("长答，" * 90)
    cut = cut_question(foreign, conversation("问" * 400, "短答。"), 120)
    ids, mask = foreign.render(cut)
    assert len(ids) <= 120 and np.sum(mask) == len(foreign.encode_answer("短答。"))


def test_a_folder_of_sentencepiece_is_refused_before_anything_is_written(
    tmp_path: Path, capsys
) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "tokenizer.model").write_bytes(b"\x0a\x0e")
    write(tmp_path / "rows.json", json.dumps([{"question": "a", "answer": "b"}]))
    arguments = [str(tmp_path / "rows.json"), f"--out={tmp_path / 'qa'}"]
    assert prepare_sft.main([*arguments, f"--tokenizer={tmp_path / 'old'}"]) == 2
    assert "it has tokenizer.model but no tokenizer.json" in capsys.readouterr().err
    assert not (tmp_path / "qa").exists()


def test_an_adapter_without_a_tokenizer_asks_for_its_base(tmp_path: Path, capsys) -> None:
    (tmp_path / "adapter").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "adapter" / name).write_bytes(b"{}")
    write(tmp_path / "rows.json", json.dumps([{"question": "a", "answer": "b"}]))
    arguments = [str(tmp_path / "rows.json"), f"--out={tmp_path / 'qa'}"]
    assert prepare_sft.main([*arguments, f"--tokenizer={tmp_path / 'adapter'}"]) == 2
    assert "name the model that it was trained on" in capsys.readouterr().err
