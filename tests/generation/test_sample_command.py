"""sample.py: prompts from everywhere, texts to the terminal or a file."""

import csv
import io
import json
import os
import shutil
import signal
from types import SimpleNamespace

import pytest

import sample
from shuoshu.core.errors import UserError
from shuoshu.generation import prompt_files, sample_command
from shuoshu.generation.chat_model import ChatModel
from shuoshu.generation.sampling import TextGenerator
from shuoshu.sft.dataset import read_pairs

QUICK = ["--max_new_tokens=12", "--threads=1", "--device=cpu"]


@pytest.fixture
def ask(pretrained, capsys):
    def ask(*arguments):
        code = sample.main([f"--out_dir={pretrained}", *QUICK, *arguments])
        out = capsys.readouterr()
        assert code == 0, out.err
        return out.out

    return ask


def test_a_text_begins_with_its_prompt_and_repeats_with_its_seed(ask):
    text = ask("--start=清晨，沈砚")
    assert text.startswith("清晨，沈砚") and len(text) > 8
    assert ask("--start=清晨，沈砚") == text != ask("--start=清晨，沈砚", "--seed=7")


def test_several_prompts_and_samples_differ_and_are_told_apart(ask):
    text = ask("--start=赵", "--start=柳青禾", "--num_samples=2")
    parts = [part.split("\n", 1)[1] for part in text.split("--- ")[1:]]
    assert len(parts) == 4 and len(set(parts)) == 4
    assert parts[0].startswith("赵") and parts[3].startswith("柳青禾")


def test_the_prompt_may_stand_in_a_file_or_come_through_a_pipe(ask, tmp_path, monkeypatch):
    (tmp_path / "p.txt").write_text("清晨，沈砚\n", encoding="utf-8")
    expected = ask("--start=清晨，沈砚")
    assert ask(f"--start=FILE:{tmp_path / 'p.txt'}") == expected
    monkeypatch.setattr("sys.stdin", io.StringIO("清晨，沈砚\n"))
    assert ask() == expected


def test_special_tokens_and_odd_signs_in_a_prompt_are_text(ask):
    assert ask("--start=<|endoftext|><|user|> \ud800\x00 e\u0301").startswith(
        "<|endoftext|><|user|>"
    )


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "txt"])
def test_a_file_of_prompts_becomes_a_file_of_answers(ask, tmp_path, suffix):
    texts = (
        ["清晨，沈砚", "赵铁匠\n说：“", "柳青禾"]
        if suffix != "txt"
        else ["清晨，沈砚", "赵铁匠说：“", "柳青禾"]
    )
    path = tmp_path / f"in.{suffix}"
    if suffix == "csv":
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file).writerows(
                [["id", "question", "answer"], *([str(i), t, "x"] for i, t in enumerate(texts))]
            )
    elif suffix == "jsonl":
        path.write_text("\n".join(json.dumps({"prompt": t}) for t in texts), encoding="utf-8")
    else:
        path.write_text("\n\n".join(texts), encoding="utf-8")
    ask(
        f"--in={path}",
        f"--out={tmp_path / 'out' / 'o.csv'}",
        "--num_samples=2",
        "--batch_size=2",
        "--temperature=0",
    )
    with (tmp_path / "out" / "o.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    column = "model_answer" if suffix == "csv" else "answer"  # the file's own column stays
    assert [r[column] for r in rows] == [r[f"{column}_2"] for r in rows]  # greedy
    assert [r["question" if suffix == "csv" else "prompt"] for r in rows] == texts
    for row, text in zip(rows, texts, strict=True):
        assert ask(f"--start={text}", "--temperature=0") == text + row[column] + "\n"


def test_interrupted_it_writes_what_is_done(ask, tmp_path, monkeypatch, capsys, pretrained):
    (tmp_path / "in.txt").write_text("\n".join("清晨黄昏"), encoding="utf-8")
    real, calls = TextGenerator.complete, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(TextGenerator, "complete", interrupted)
    target = tmp_path / "o.jsonl"
    assert (
        sample.main(
            [
                f"--out_dir={pretrained}",
                *QUICK,
                f"--in={tmp_path / 'in.txt'}",
                f"--out={target}",
                "--batch_size=2",
            ]
        )
        == 130
    )
    rows = [json.loads(line) for line in target.read_text(encoding="utf-8").split("\n") if line]
    assert len(rows) == 4 and sum(bool(row["answer"]) for row in rows) == 2


def test_a_line_separator_inside_json_is_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a\u2028b\x85c"}\n', encoding="utf-8")
    assert prompt_files.read_prompts(tmp_path / "a.jsonl")[1] == ["a\u2028b\x85c"]


def test_without_a_folder_the_newest_model_is_taken(pretrained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sample.main(["--start=x"]) == 2 and "python train.py" in capsys.readouterr().err
    (tmp_path / "out-pretrain").symlink_to(pretrained)
    assert sample.main(["--start=赵", *QUICK]) == 0 and capsys.readouterr().out.startswith("赵")


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--in=x.csv"], "go together"),
        (["--in=x.csv", "--out=y.csv"], "can't read x.csv"),
        (["--in=README.md", "--out=y.csv"], ".csv, .jsonl and .txt"),
        (["--start=FILE:nowhere.txt"], "nowhere.txt"),
        (["--temperature=-1"], "at least 0"),
        (["--top_k=0"], "at least 1"),
        (["--temperature=nan"], "finite"),
    ],
)
def test_a_mistake_is_one_message(pretrained, capsys, arguments, told):
    assert sample.main([f"--out_dir={pretrained}", *arguments]) == 2
    err = capsys.readouterr().err
    assert told in err and "Traceback" not in err


@pytest.mark.parametrize(
    "name, content, told",
    [
        ("a.csv", b"x,y\n1,2\n", "no column prompt"),
        ("a.csv", b"", "holds no prompt"),
        ("a.jsonl", b'{"prompt": 3}', "row 1 has no text"),
        ("a.jsonl", b"[1]", "line 1"),
        ("a.jsonl", b"{", "line 1"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.pdf", b"x", ".csv, .jsonl and .txt"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=told):
        prompt_files.read_prompts(tmp_path / name)


# ---------------------------------------------------------------- a model that answers


@pytest.fixture
def put(tuned, capsys):
    """Puts a question to the fine-tuned model by the command line."""

    def put(*arguments, code=0):
        assert (
            sample.main([f"--out_dir={tuned}", "--threads=1", "--device=cpu", *arguments]) == code
        )
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        return told.err if code else told.out

    return put


@pytest.fixture(scope="module")
def known(qa):
    """{question: answer} of the training data."""
    return {record["question"]: record["answer"] for record in read_pairs(qa, "train")}


def test_a_fine_tuned_model_answers_the_question_and_says_nothing_else(put, known):
    for question, answer in [*known.items()][:3] + [*known.items()][
        -3:
    ]:  # the last ones spell special tokens
        assert put(f"--start={question}") == f"{answer}\n"
        assert put(f"--start=  {question}\n") == f"{answer}\n"


def test_several_questions_are_told_apart(put, known):
    (one, first), (two, second) = [*known.items()][:2]
    assert (
        put(f"--start={one}", f"--start={two}")
        == f"--- 1/2  {one}\n{first}\n\n--- 2/2  {two}\n{second}\n"
    )


def test_raw_continues_text_with_a_fine_tuned_model_too(put, ask, known):
    question = next(iter(known))
    raw = put("--continue_text", f"--start={question}", "--max_new_tokens=12")
    assert raw.startswith(question) and known[question] not in raw
    texts = {
        tuple(
            put("--continue_text", f"--start={start}", "--max_new_tokens=40", f"--seed={seed}")
            for start in "清赵阿白老一不"
        )
        for seed in range(3)
    }
    assert len(texts) > 1  # drawn, as text is, unless a temperature is given


def test_answers_are_the_likeliest_unless_a_temperature_is_given(put, known):
    question = next(iter(known))
    assert len({put(f"--start={question}", f"--seed={seed}") for seed in range(4)}) == 1
    assert (
        len(
            {
                put(
                    f"--start={question}",
                    f"--seed={seed}",
                    "--temperature=30",
                    "--top_k=none",
                    "--max_new_tokens=8",
                )
                for seed in range(4)
            }
        )
        == 4
    )


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "txt"])
def test_a_file_of_questions_is_answered_whole(put, known, tmp_path, suffix):
    path, questions = tmp_path / f"in.{suffix}", list(known)
    if suffix == "csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["question", "answer"], *known.items()])
    elif suffix == "jsonl":
        path.write_text(
            "\n".join(json.dumps({"question": question}) for question in questions),
            encoding="utf-8",
        )
    else:
        path.write_text("\n".join(questions), encoding="utf-8")
    told = put(f"--in={path}", f"--out={tmp_path / 'o.jsonl'}", "--batch_size=20")
    assert f"{len(known)} of {len(known)} answers" in told
    rows = [
        json.loads(line) for line in (tmp_path / "o.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [row["model_answer" if suffix == "csv" else "answer"] for row in rows] == list(
        known.values()
    )


def test_a_chat_answers_question_after_question_and_ends_with_an_empty_line(
    put, known, monkeypatch
):
    (one, first), (two, second) = [*known.items()][:2]
    monkeypatch.setattr(
        "sys.stdin", io.StringIO(f"{one}\n{two}\n/new\n{'长' * 70}\n  {one} \n\n{two}\n")
    )
    told = put("--chat")
    _, *replies = told.split("\n> ")
    assert "longer than the 64" in replies.pop(3)  # said, and the chat goes on
    assert replies == [f"{first}\n", f"{second}\n", "", f"{first}\n", ""]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{one}\n"))  # the end of the file ends it too
    assert put("--chat").count(first) == 1


class Recorder(ChatModel):
    """A speaker of so many turns with a block of 64 that notes what it is asked."""

    def __init__(self, tokenizer, turns):
        self.tokenizer, self.turns, self.block, self.asked = tokenizer, turns, 64, []
        self.settings = SimpleNamespace(seed=1)

    def print_text(self, ids, seed, stop):
        self.asked.append(self.tokenizer.decode(ids))
        return f"{len(self.asked)}。"


@pytest.mark.parametrize(
    "turns, expected",
    [
        (1, ["a", "b", "c", "d", "e"]),
        (2, ["a", "a1。b", "b2。c", "d", "d4。e"]),
        (9, ["a", "a1。b", "a1。b2。c", "d", "d4。e"]),
    ],
)
def test_a_chat_remembers_as_many_turns_as_were_learned_until_new(
    tokenizer, monkeypatch, turns, expected
):
    speaker = Recorder(tokenizer, turns)
    monkeypatch.setattr("sys.stdin", io.StringIO("a\nb\nc\n/new\nd\ne\n\n"))
    assert sample_command.chat(speaker) == 0 and speaker.asked == expected


def test_a_chats_oldest_turns_go_when_half_the_block_is_full(tokenizer, monkeypatch):
    speaker = Recorder(tokenizer, 9)
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{letter * 6}\n" for letter in "ABCDE")))
    assert sample_command.chat(speaker) == 0
    assert speaker.asked[0] == "A" * 6 and "AAAAAA1。BBBBBB" in speaker.asked[1]
    assert speaker.asked[4].endswith("DDDDDD4。EEEEEE") and "A" not in speaker.asked[4]


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--chat", "--start=x"], "drop --start, --in and --continue_text"),
        (["--chat", "--continue_text"], "drop --start, --in and --continue_text"),
        (["--start=" + "长" * 100], "longer than the 64 that this model reads"),
        (["--start=x", "--in=x.csv", "--out=y.csv"], "exclude each other"),
    ],
)
def test_a_mistake_with_a_fine_tuned_model_is_one_message(put, arguments, told):
    assert told in put(*arguments, code=2)


def test_a_pretrained_model_does_not_chat(pretrained, capsys):
    assert sample.main([f"--out_dir={pretrained}", "--chat", "--threads=1"]) == 2
    assert "config/sft.py" in capsys.readouterr().err


def test_of_two_models_the_one_trained_last_answers(
    pretrained, tuned, tmp_path, monkeypatch, capsys, known
):
    question = next(iter(known))
    monkeypatch.chdir(tmp_path)
    for name, source, age in (("out-pretrain", pretrained, 100), ("out-sft", tuned, 0)):
        shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("checkpoints"))
        os.utime(tmp_path / name / "model.safetensors", (1e9 - age, 1e9 - age))
    assert sample.main([f"--start={question}", *QUICK, "--max_new_tokens=40"]) == 0
    assert capsys.readouterr().out == known[question] + "\n"
    os.utime(tmp_path / "out-pretrain" / "model.safetensors", (1e9 + 5, 1e9 + 5))
    assert sample.main([f"--start={question}", *QUICK]) == 0
    assert capsys.readouterr().out.startswith(question)


def test_an_answer_that_is_cut_is_told(tuned, known, tmp_path, capsys):
    question = next(iter(known))
    assert (
        sample.main(
            [f"--out_dir={tuned}", f"--start={question}", "--max_new_tokens=2", "--threads=1"]
        )
        == 0
    )
    told = capsys.readouterr()
    assert "cut at --max_new_tokens=2" in told.err and "cut" not in told.out
    (tmp_path / "asked.txt").write_text(question + "\n", encoding="utf-8")
    assert (
        sample.main(
            [
                f"--out_dir={tuned}",
                f"--in={tmp_path / 'asked.txt'}",
                f"--out={tmp_path / 'said.csv'}",
                "--max_new_tokens=2",
                "--threads=1",
            ]
        )
        == 0
    )
    assert "1 of them were cut" in capsys.readouterr().out


def test_an_empty_question_is_a_mistake(tuned, capsys):
    assert sample.main([f"--out_dir={tuned}", "--start= ", "--threads=1"]) == 2
    assert "the question is empty" in capsys.readouterr().err
