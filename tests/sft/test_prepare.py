"""prepare_sft.py: pairs that are too long, and the files it writes and protects."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

import prepare_sft
from shuoshu.core import files
from shuoshu.sft import dataset as sft_dataset
from shuoshu.sft.dataset import QuestionDataset, read_pairs
from shuoshu.text import dataset as text_dataset
from shuoshu.text.tokenizer import Tokenizer
from shuoshu.text.tokenizer_folder import load_tokenizer

ROWS = [{"question": f"第{n}问：谁在渡口？", "answer": f"第{n}个人在渡口。"} for n in range(30)]
LONG = {"question": "最长的一问：" + "沈砚在渡口望着河面出神。" * 12, "answer": "他想着一封信。"}
LONG_ANSWER = {
    "question": "从头说起？",
    "answer": "".join(f"第{n}天，沈砚数了数铜钱。" for n in range(40)),
}


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def trained(folder: Path) -> list[str]:
    """The text of each pair's trained tokens, its rows joined."""
    dataset, tokenizer = QuestionDataset(folder, "train"), load_tokenizer(folder)
    texts = []
    for record in read_pairs(folder, "train"):
        rows = [dataset.row(n) for n in range(record["row"], record["row"] + record["rows"])]
        ids = [token for ids, mask in rows for token in ids[mask == 1].tolist()]
        texts.append(tokenizer.decode(ids))
    return texts


# ---------------------------------------------------------------- pairs that are too long


def test_too_long_pair_is_an_error_that_names_it_and_a_sufficient_block_size(
    prepare, tmp_path: Path
) -> None:
    printed = prepare([*ROWS, LONG, LONG_ANSWER], code=2)
    assert not (tmp_path / "out").exists()
    assert "2 of 32 pairs" in printed and "rows.json, row 32" in printed and "从头说起？" in printed
    assert all(
        choice in printed
        for choice in ("--too_long=drop", "--too_long=cut_question", "--too_long=window")
    )
    (block,) = re.findall(r"--block_size=(\d+)", printed)
    assert f"has {int(block) + 1:,}" in printed
    assert prepare([*ROWS, LONG, LONG_ANSWER], f"--block_size={int(block) - 1}", code=2)
    printed = prepare([*ROWS, LONG, LONG_ANSWER], f"--block_size={block}")
    assert "32 used, 0 left out" in printed
    pairs = [
        pair for split in ("train", "val", "test") for pair in read_pairs(tmp_path / "out", split)
    ]
    assert {(pair["question"], pair["answer"]) for pair in pairs} == {
        (pair["question"], pair["answer"]) for pair in [*ROWS, LONG, LONG_ANSWER]
    }


def test_dropped_pairs_are_counted_with_examples(prepare, tmp_path: Path) -> None:
    printed = prepare([*ROWS, LONG, LONG_ANSWER], "--too_long=drop")
    assert (
        "32 rows, 30 used, 2 left out" in printed
        and "2 too long, for example" in printed
        and "rows.json, row 31" in printed
    )
    assert json.loads((tmp_path / "out" / "meta.json").read_text(encoding="utf-8"))["dropped"] == {
        "too long": 2
    }


def test_long_answer_is_split_over_rows_without_loss(prepare, tmp_path: Path) -> None:
    printed = prepare(
        [{**row, "split": "train"} for row in [*ROWS, LONG_ANSWER]]
        + [{"question": "谁？", "answer": "他。", "split": "val"}],
        "--too_long=window",
    )
    assert "1 answer split over several rows" in printed
    folder = tmp_path / "out"
    dataset, last = QuestionDataset(folder, "train"), read_pairs(folder, "train")[-1]
    assert last["rows"] > 3 and last["row"] + last["rows"] == len(dataset)
    assert dataset.width <= 65
    assert trained(folder) == [row["answer"] for row in [*ROWS, LONG_ANSWER]]
    end = load_tokenizer(folder).end
    ends = [int(dataset.row(n)[0][-1]) == end for n in range(last["row"], len(dataset))]
    assert ends == [False] * (len(ends) - 1) + [True]


def test_long_question_loses_its_middle_and_the_answer_nothing(prepare, tmp_path: Path) -> None:
    printed = prepare(
        [{**row, "split": "train"} for row in [*ROWS, LONG, LONG_ANSWER]], "--too_long=cut_question"
    )
    assert (
        "1 question shortened in the middle" in printed and "1 too long" in printed
    )  # no cut makes room for that answer
    folder = tmp_path / "out"
    cut = read_pairs(folder, "train")[-1]
    assert (
        cut["question"].startswith("最长的一问：")
        and cut["question"].endswith("出神。")
        and "…" in cut["question"]
        and cut["answer"] == LONG["answer"]
    )
    assert trained(folder) == [row["answer"] for row in [*ROWS, LONG]]


# ---------------------------------------------------------------- files


def test_readable_pairs_name_their_source_and_rows(prepare, tmp_path: Path) -> None:
    talk = {
        "messages": [
            {"role": "system", "content": "你是老船夫。"},
            {"role": "user", "content": "船呢？"},
            {"role": "assistant", "content": "走了。"},
        ]
    }
    talk["messages"] += [
        {"role": "user", "content": "人呢？"},
        {"role": "assistant", "content": "也走了。"},
    ]
    (tmp_path / "talk.jsonl").write_text(
        json.dumps({**talk, "split": "train", "chapter": 3}), encoding="utf-8"
    )
    prepare([{**row, "split": "train"} for row in ROWS], str(tmp_path / "talk.jsonl"))
    folder = tmp_path / "out"
    lines = [
        json.loads(line)
        for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert lines[0] == {
        **ROWS[0],
        "split": "train",
        "source": "rows.json, row 1",
        "row": 0,
        "rows": 1,
    }
    assert lines[-1] == {
        **talk,
        "chapter": 3,
        "split": "train",
        "source": "talk.jsonl, row 1",
        "row": 30,
        "rows": 1,
    }
    assert text_dataset.read_meta(folder)["turns"] == 2
    assert trained(folder)[-1] == "走了。也走了。"


@pytest.mark.parametrize(
    "messages, recorded, told",
    [
        (("你是老船夫。",), "你是老船夫。", "system       你是老船夫。: before every question"),
        (("你是老船夫。", "你是柳青禾。"), "", "2 different messages"),
        (("你是老船夫。", ""), "", "2 different messages"),
        (("",), "", None),
    ],
)
def test_the_system_message_of_all_conversations_is_recorded(
    prepare, tmp_path: Path, messages: tuple[str, ...], recorded: str, told: str | None
) -> None:
    rows = [{**row, "system": messages[n % len(messages)]} for n, row in enumerate(ROWS)]
    printed = prepare(rows)
    assert text_dataset.read_meta(tmp_path / "out")["system"] == recorded
    assert told in printed if told else "system  " not in printed


def test_files_match_the_hashes_and_counts_in_meta(prepare, tmp_path: Path) -> None:
    prepare(ROWS)
    folder = tmp_path / "out"
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    assert sum(entry["pairs"] for entry in meta["splits"].values()) == 30
    assert set(meta["splits"]) == {"train", "val", "test"}
    for split, entry in meta["splits"].items():
        for key, name in (
            ("sha256", f"{split}.bin"),
            ("mask_sha256", f"{split}.mask.bin"),
            ("pairs_sha256", f"{split}.jsonl"),
        ):
            assert entry[key] == files.sha256_of(folder / name)
        dataset = QuestionDataset(folder, split)
        assert (entry["rows"], entry["tokens"]) == (len(dataset), dataset.ids.size)
        assert entry["answer_tokens"] == dataset.mask.sum()
        answers = "".join(record["answer"] for record in read_pairs(folder, split))
        assert (entry["characters"], entry["bytes"]) == (len(answers), len(answers.encode()))
    assert set(bytes_in(folder)) == {
        "meta.json",
        "tokenizer.json",
        *(f"{s}{x}" for s in meta["splits"] for x in (".bin", ".mask.bin", ".jsonl")),
    }


def test_same_command_gives_the_same_bytes(prepare, tmp_path: Path) -> None:
    prepare(ROWS)
    before = bytes_in(tmp_path / "out")
    prepare(ROWS)
    assert bytes_in(tmp_path / "out") == before
    prepare(ROWS, "--seed=2")
    assert bytes_in(tmp_path / "out") != before


def test_files_of_a_split_that_is_gone_are_removed(prepare, tmp_path: Path) -> None:
    prepare(ROWS)
    (tmp_path / "out" / "notes.txt").write_text("mine", encoding="utf-8")
    prepare(ROWS, "--test_fraction=0", "--val_fraction=0")
    assert not list((tmp_path / "out").glob("test.*")) and (tmp_path / "out" / "notes.txt").exists()
    assert (
        len(QuestionDataset(tmp_path / "out", "val")) == 0
        and len(QuestionDataset(tmp_path / "out", "train")) == 30
    )


@pytest.mark.parametrize("moment", ["writing", "meta"])
def test_failed_write_leaves_the_old_folder_unchanged(
    prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    prepare(ROWS)
    before = bytes_in(tmp_path / "out")
    monkeypatch.setattr(
        *{"writing": (sft_dataset, "readable_record"), "meta": (Tokenizer, "to_json")}[moment], fail
    )
    assert "No space left" in prepare(ROWS[:20], "--test_fraction=0", code=2)
    assert bytes_in(tmp_path / "out") == before
    shutil.rmtree(tmp_path / "out")
    prepare(ROWS, code=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["train.jsonl", "test.jsonl", "val.bin", "tokenizer.json"])
def test_users_own_file_is_never_overwritten(prepare, tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text('{"question": "谁？", "answer": "我。"}', encoding="utf-8")
    assert name in (printed := prepare(ROWS, code=2)) and "--out=" in printed
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


def test_input_file_is_never_overwritten(prepare, tmp_path: Path, pretrained: Path) -> None:
    prepare(ROWS)
    before = bytes_in(tmp_path / "out")
    assert (
        prepare_sft.main(
            [
                str(tmp_path / "out" / "train.jsonl"),
                f"--out={tmp_path / 'out'}",
                f"--tokenizer={pretrained}",
            ]
        )
        == 2
    )
    assert bytes_in(tmp_path / "out") == before
    assert (
        prepare_sft.main(
            [
                str(tmp_path / "out" / "train.jsonl"),
                f"--out={tmp_path / 'again'}",
                f"--tokenizer={pretrained}",
            ]
        )
        == 0
    )


def test_prepared_text_is_never_overwritten(
    dataset: Path, pretrained: Path, tmp_path: Path, capsys
) -> None:
    book = shutil.copytree(dataset, tmp_path / "book")
    before = bytes_in(book)
    (tmp_path / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")
    assert (
        prepare_sft.main(
            [str(tmp_path / "rows.json"), f"--out={book}", f"--tokenizer={pretrained}"]
        )
        == 2
    )
    assert capsys.readouterr().err and bytes_in(book) == before


def test_folder_that_can_not_be_created_is_an_error(prepare, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file with the folder's name", encoding="utf-8")
    assert "can't write" in prepare(ROWS, code=2)
