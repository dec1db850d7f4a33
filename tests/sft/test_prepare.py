"""prepare_sft.py: nothing cut in silence, nothing of the user's written over, an account of all that was read."""

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

ROWS = [{"question": f"第{n}问：谁在渡口？", "answer": f"第{n}个人在渡口。"} for n in range(30)]
LONG = {"question": "最长的一问：" + "沈砚在渡口望着河面出神。" * 12, "answer": "他想着一封信。"}
LONG_ANSWER = {
    "question": "从头说起？",
    "answer": "".join(f"第{n}天，沈砚数了数铜钱。" for n in range(40)),
}


@pytest.fixture
def prepare(pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """prepare(rows, *arguments) writes rows.json, prepares it into tmp_path / "out", and tells what was printed."""

    def prepare(content: list[dict], *arguments: str, code: int = 0) -> str:
        (tmp_path / "rows.json").write_text(json.dumps(content), encoding="utf-8")
        found = prepare_sft.main(
            [
                str(tmp_path / "rows.json"),
                f"--out={tmp_path / 'out'}",
                f"--tokenizer={pretrained}",
                *arguments,
            ]
        )
        told = capsys.readouterr()
        assert found == code, told.err
        assert "Traceback" not in told.err
        return told.err if code else told.out

    return prepare


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def trained(folder: Path) -> list[str]:
    """The text of each pair's trained tokens, its rows joined."""
    file, tokenizer = QuestionDataset(folder, "train"), Tokenizer.load(folder)
    made = []
    for record in read_pairs(folder, "train"):
        parts = [file.row(n) for n in range(record["row"], record["row"] + record["rows"])]
        made.append(
            tokenizer.decode([token for ids, mask in parts for token in ids[mask == 1].tolist()])
        )
    return made


# ---------------------------------------------------------------- what is too long


def test_a_pair_that_is_too_long_is_an_error_that_names_it_and_the_block_that_does_fit(
    prepare, tmp_path: Path
) -> None:
    told = prepare([*ROWS, LONG, LONG_ANSWER], code=2)
    assert not (tmp_path / "out").exists()
    assert "2 of 32 pairs" in told and "rows.json, row 32" in told and "从头说起？" in told
    assert all(
        choice in told
        for choice in ("--too_long=drop", "--too_long=cut_question", "--too_long=window")
    )
    (block,) = re.findall(r"--block_size=(\d+)", told)
    assert f"has {int(block) + 1:,}" in told
    assert prepare([*ROWS, LONG, LONG_ANSWER], f"--block_size={int(block) - 1}", code=2)
    told = prepare([*ROWS, LONG, LONG_ANSWER], f"--block_size={block}")
    assert "32 used, 0 left out" in told
    pairs = [
        pair for split in ("train", "val", "test") for pair in read_pairs(tmp_path / "out", split)
    ]
    assert {(pair["question"], pair["answer"]) for pair in pairs} == {
        (pair["question"], pair["answer"]) for pair in [*ROWS, LONG, LONG_ANSWER]
    }


def test_what_is_dropped_is_told(prepare, tmp_path: Path) -> None:
    told = prepare([*ROWS, LONG, LONG_ANSWER], "--too_long=drop")
    assert (
        "32 rows, 30 used, 2 left out" in told
        and "2 too long, for example" in told
        and "rows.json, row 31" in told
    )
    assert json.loads((tmp_path / "out" / "meta.json").read_text(encoding="utf-8"))["dropped"] == {
        "too long": 2
    }


def test_a_long_answer_goes_on_over_several_rows_and_none_of_it_is_lost(
    prepare, tmp_path: Path
) -> None:
    told = prepare(
        [{**row, "split": "train"} for row in [*ROWS, LONG_ANSWER]]
        + [{"question": "谁？", "answer": "他。", "split": "val"}],
        "--too_long=window",
    )
    assert "1 answers go on over several rows" in told
    folder = tmp_path / "out"
    file, records = QuestionDataset(folder, "train"), read_pairs(folder, "train")
    assert (
        records[-1]["rows"] > 3
        and records[-1]["row"] + records[-1]["rows"] == len(file)
        and file.width <= 65
    )
    assert trained(folder) == [row["answer"] for row in [*ROWS, LONG_ANSWER]]
    end = Tokenizer.load(folder).end
    ends = [int(file.row(n)[0][-1]) == end for n in range(records[-1]["row"], len(file))]
    assert ends == [False] * (len(ends) - 1) + [True]


def test_a_long_question_loses_its_middle_and_an_answer_nothing(prepare, tmp_path: Path) -> None:
    told = prepare(
        [{**row, "split": "train"} for row in [*ROWS, LONG, LONG_ANSWER]], "--too_long=cut_question"
    )
    assert (
        "1 questions had their middle taken out" in told and "1 too long" in told
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


def test_the_readable_pairs_say_where_they_stand(prepare, tmp_path: Path) -> None:
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


def test_the_files_are_those_that_meta_describes(prepare, tmp_path: Path) -> None:
    prepare(ROWS)
    folder = tmp_path / "out"
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    assert sum(facts["pairs"] for facts in meta["splits"].values()) == 30 and set(
        meta["splits"]
    ) == {"train", "val", "test"}
    for split, facts in meta["splits"].items():
        for key, name in (
            ("sha256", f"{split}.bin"),
            ("mask_sha256", f"{split}.mask.bin"),
            ("pairs_sha256", f"{split}.jsonl"),
        ):
            assert facts[key] == files.sha256_of(folder / name)
        file = QuestionDataset(folder, split)
        assert (facts["rows"], facts["tokens"]) == (len(file), file.ids.size) and facts[
            "answer_tokens"
        ] == file.mask.sum()
        answers = [record["answer"] for record in read_pairs(folder, split)]
        assert (facts["characters"], facts["bytes"]) == (
            len("".join(answers)),
            len("".join(answers).encode()),
        )
    assert set(bytes_in(folder)) == {
        "meta.json",
        "tokenizer.json",
        *(f"{s}{x}" for s in meta["splits"] for x in (".bin", ".mask.bin", ".jsonl")),
    }


def test_the_same_command_gives_the_same_bytes(prepare, tmp_path: Path) -> None:
    prepare(ROWS)
    before = bytes_in(tmp_path / "out")
    prepare(ROWS)
    assert bytes_in(tmp_path / "out") == before
    prepare(ROWS, "--seed=2")
    assert bytes_in(tmp_path / "out") != before


def test_a_split_that_is_no_longer_there_leaves_no_file(prepare, tmp_path: Path) -> None:
    prepare(ROWS)
    (tmp_path / "out" / "notes.txt").write_text("mine", encoding="utf-8")
    prepare(ROWS, "--test_fraction=0", "--val_fraction=0")
    assert not list((tmp_path / "out").glob("test.*")) and (tmp_path / "out" / "notes.txt").exists()
    assert (
        len(QuestionDataset(tmp_path / "out", "val")) == 0
        and len(QuestionDataset(tmp_path / "out", "train")) == 30
    )


@pytest.mark.parametrize("moment", ["writing", "meta"])
def test_a_failure_leaves_the_old_folder_as_it_was(
    prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    prepare(ROWS)
    before = bytes_in(tmp_path / "out")
    monkeypatch.setattr(
        *{"writing": (sft_dataset, "record_of"), "meta": (Tokenizer, "to_json")}[moment], fail
    )
    assert "No space left" in prepare(ROWS[:20], "--test_fraction=0", code=2)
    assert bytes_in(tmp_path / "out") == before
    shutil.rmtree(tmp_path / "out")
    prepare(ROWS, code=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["train.jsonl", "test.jsonl", "val.bin", "tokenizer.json"])
def test_a_users_own_file_is_never_written_over(prepare, tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text('{"question": "谁？", "answer": "我。"}', encoding="utf-8")
    assert name in (told := prepare(ROWS, code=2)) and "--out=" in told
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


def test_what_is_read_is_never_written_over(prepare, tmp_path: Path, pretrained: Path) -> None:
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


def test_prepared_text_is_never_written_over(
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


def test_a_folder_that_can_not_be_made_is_told(prepare, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file stands in its place", encoding="utf-8")
    assert "can't write" in prepare(ROWS, code=2)


# ---------------------------------------------------------------- what is told


def test_all_that_is_left_out_is_told_with_examples(prepare) -> None:
    bad = [
        {"question": "第1问：谁在渡口？", "answer": "第1个人在渡口。"},
        {"question": "第2问：谁在渡口？", "answer": "没有人。"},
        {"question": "", "answer": "空。"},
    ]
    bad += [{"question": ["列"], "answer": "表。"}]
    told = prepare([*ROWS, *bad])
    assert "34 rows, 30 used, 4 left out" in told
    for reason, row in (
        ("duplicate", 31),
        ("contradictory", 32),
        ("empty", 33),
        ("wrong type", 34),
    ):
        assert re.search(rf"1 {reason}, for example\n.*row {row}", told), reason


def test_leaks_between_the_splits_are_told(prepare) -> None:
    question = "清晨的时候，沈砚在城南的渡口到底做了什么事情呢？"
    split = [
        {"question": question, "answer": "等船。", "split": "train"},
        {"question": question, "answer": "等船。", "split": "val"},
    ]
    told = prepare([*split, {"question": "那" + question, "answer": "等船。", "split": "test"}])
    assert (
        "1 validation or test questions stand among the training questions too" in told
        and "1 validation or test questions are nearly the same" in told
    )
    assert "no questions are held out" in prepare(ROWS[:1])


def test_templates_and_labels_make_a_closed_set(prepare, tmp_path: Path) -> None:
    reviews = [
        {"review": f"茶{'好' if n % 3 else '凉'}，第{n}回来", "label": int(n % 3 > 0)}
        for n in range(60)
    ]
    told = prepare(
        reviews,
        "--question=评论：{review} 是正面还是负面？",
        "--answer={label}",
        "--labels=1=正面,0=负面",
    )
    assert "a closed set of 2 answers" in told and text_dataset.read_meta(tmp_path / "out")[
        "labels"
    ] == ["正面", "负面"]
    for split in ("train", "val", "test"):  # a third of each is negative
        answers = [pair["answer"] for pair in read_pairs(tmp_path / "out", split)]
        assert abs(answers.count("负面") - len(answers) / 3) <= 1


def test_rows_are_shown_as_the_model_gets_them(prepare) -> None:
    rows = [
        {"question": "<|endoftext|>是🙂什么？", "answer": "“一个记号。”", "split": "train"},
        {**ROWS[0], "split": "val"},
    ]
    assert prepare(rows, "--show=3").endswith(
        "\nrow 0  <|user|><|endoftext|>是🙂什么？<|assistant|>⟦“一个记号。”<|endoftext|>⟧\n"
    )


def test_the_next_command_names_the_folder(prepare, tmp_path: Path) -> None:
    assert f"python train.py config/sft.py --dataset={tmp_path / 'out'}" in prepare(ROWS)


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--tokenizer=nowhere"], "no tokenizer in nowhere"),
        (["--val_fraction=0.5", "--test_fraction=0.5"], "leave nothing to train on"),
        (["--question={question}"], "go together"),
        (["--block_size=16", "--too_long=drop"], "no pair is left to train on, of 30 rows read"),
        (["--too_long=cut"], "one of error, drop, cut_question, window"),
    ],
)
def test_a_mistake_is_one_message_and_nothing_is_written(
    prepare, tmp_path: Path, arguments: list[str], told: str
) -> None:
    assert told in prepare(ROWS, *arguments, code=2) and not (tmp_path / "out").exists()


def test_without_a_model_it_says_which_commands_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert prepare_sft.main([]) == 2
    assert "python prepare.py\n  python train.py" in capsys.readouterr().err


def test_with_no_input_it_prepares_the_bundled_questions_whole(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert prepare_sft.main([f"--tokenizer={pretrained}", "--block_size=512"]) == 0
    told = capsys.readouterr().out
    assert "0 left out" in told and "too long" not in told and "leaks        none" in told
    assert (
        "python train.py config/sft.py --init_from=" in told
        and told.rstrip().endswith("--block_size=512")
        and (tmp_path / "data" / "novella_qa" / "meta.json").is_file()
    )


def test_questions_that_cutting_makes_equal_are_told_and_not_taught(prepare) -> None:
    rows = [
        {"question": "甲" * 100 + f"{n}" + "乙" * 100, "answer": f"第{n}个答案。"}
        for n in range(10)
    ]
    told = prepare([*rows, *ROWS], "--too_long=cut_question")
    assert (
        "9 contradictory" in told
        and "questions had their middle taken out" in told
        and "leaks        none" in told
    )


def test_labels_make_a_closed_set_of_however_few_rows(prepare, tmp_path: Path) -> None:
    reviews = [{"review": f"第{n}间房", "label": n % 2} for n in range(14)]
    prepare(reviews, "--question={review}", "--answer={label}", "--labels=1=正面,0=负面")
    assert text_dataset.read_meta(tmp_path / "out")["labels"] == sorted(["正面", "负面"])
