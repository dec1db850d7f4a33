"""sample.py: prompts from flags, files, pipes and chats; texts to the terminal or a file."""

import csv
import io
import json
import os
import shutil
import signal
from types import SimpleNamespace

import pytest

import sample
from shuoshu.answering import sample_command, terminal_chat
from shuoshu.core.command_settings import SampleSettings
from shuoshu.core.errors import UserError
from shuoshu.generation import prompt_files
from shuoshu.generation.sampling import TextGenerator
from shuoshu.models import weights as models_weights
from shuoshu.models.purpose import Purpose
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


def test_several_texts_differ_and_have_headers(ask):
    text = ask("--start=赵", "--start=柳青禾", "--num_samples=2")
    parts = [part.split("\n", 1)[1] for part in text.split("--- ")[1:]]
    assert len(parts) == 4 and len(set(parts)) == 4
    assert parts[0].startswith("赵") and parts[3].startswith("柳青禾")


def test_a_prompt_may_come_from_a_file_or_a_pipe(ask, tmp_path, monkeypatch):
    (tmp_path / "p.txt").write_text("清晨，沈砚\n", encoding="utf-8")
    expected = ask("--start=清晨，沈砚")
    assert ask(f"--start=FILE:{tmp_path / 'p.txt'}") == expected
    monkeypatch.setattr("sys.stdin", io.StringIO("清晨，沈砚\n"))
    assert ask() == expected


def test_special_tokens_and_rare_characters_in_a_prompt_are_text(ask):
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
    column = "model_answer" if suffix == "csv" else "answer"  # the file's own answers are kept
    assert [r[column] for r in rows] == [r[f"{column}_2"] for r in rows]  # greedy
    assert [r["question" if suffix == "csv" else "prompt"] for r in rows] == texts
    for row, text in zip(rows, texts, strict=True):
        assert ask(f"--start={text}", "--temperature=0") == text + row[column] + "\n"


def test_an_interrupted_run_writes_the_finished_answers(
    ask, tmp_path, monkeypatch, capsys, pretrained
):
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
    assert prompt_files.read_prompts(tmp_path / "a.jsonl").prompts == ["a\u2028b\x85c"]


def test_without_an_out_dir_the_newest_model_is_used(pretrained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sample.main(["--start=x"]) == 2 and "python train.py" in capsys.readouterr().err
    (tmp_path / "out-pretrain").symlink_to(pretrained)
    assert sample.main(["--start=赵", *QUICK]) == 0 and capsys.readouterr().out.startswith("赵")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--in=x.csv"], "go together"),
        (["--in=x.csv", "--out=y.csv"], "x.csv: it can't be read"),
        (["--in=README.md", "--out=y.csv"], ".csv, .tsv, .json, .jsonl, .txt"),
        (["--start=FILE:nowhere.txt"], "nowhere.txt"),
        (["--temperature=-1"], "at least 0"),
        (["--top_k=0"], "at least 1"),
        (["--temperature=nan"], "finite"),
    ],
)
def test_a_mistake_is_one_message(pretrained, capsys, arguments, message):
    assert sample.main([f"--out_dir={pretrained}", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", b"x,y\n1,2\n", "no column prompt"),
        ("a.csv", b"", "it is empty"),
        ("a.csv", b"prompt\n\n", "holds no prompt"),
        ("a.jsonl", b'{"prompt": [3]}', "row 1: its prompt is a list"),
        ("a.jsonl", b"[1]", "row 1"),
        ("a.jsonl", b"{", "line 1"),
        ("a.txt", bytes(range(256)) * 9, "not a text file"),
        ("a.pdf", b"x", ".csv, .tsv, .json, .jsonl, .txt"),
    ],
)
def test_a_bad_file_of_prompts_is_reported(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        prompt_files.read_prompts(tmp_path / name)


# ---------------------------------------------------------------- a fine-tuned model


@pytest.fixture
def ask_tuned(tuned, capsys):
    """Runs sample.py with the fine-tuned model; returns its output, or its error if code != 0."""

    def ask_tuned(*arguments, code=0):
        assert (
            sample.main([f"--out_dir={tuned}", "--threads=1", "--device=cpu", *arguments]) == code
        )
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        return output.err if code else output.out

    return ask_tuned


@pytest.fixture(scope="module")
def known(qa):
    """{question: answer} of the training data."""
    return {record["question"]: record["answer"] for record in read_pairs(qa, "train")}


def test_a_fine_tuned_model_prints_only_the_answer(ask_tuned, known):
    for question, answer in [*known.items()][:3] + [*known.items()][
        -3:
    ]:  # the last questions contain special tokens
        assert ask_tuned(f"--start={question}") == f"{answer}\n"
        assert ask_tuned(f"--start=  {question}\n") == f"{answer}\n"


def test_several_answers_have_headers_with_their_questions(ask_tuned, known):
    (one, first), (two, second) = [*known.items()][:2]
    assert (
        ask_tuned(f"--start={one}", f"--start={two}")
        == f"--- 1/2  {one}\n{first}\n\n--- 2/2  {two}\n{second}\n"
    )


def test_continue_text_works_with_a_fine_tuned_model(ask_tuned, ask, known):
    question = next(iter(known))
    raw = ask_tuned("--continue_text", f"--start={question}", "--max_new_tokens=12")
    assert raw.startswith(question) and known[question] not in raw
    texts = {
        tuple(
            ask_tuned(
                "--continue_text", f"--start={start}", "--max_new_tokens=40", f"--seed={seed}"
            )
            for start in "清赵阿白老一不"
        )
        for seed in range(3)
    }
    assert len(texts) > 1  # sampled: the default temperature of text


def test_answers_are_greedy_unless_a_temperature_is_set(ask_tuned, known):
    question = next(iter(known))
    assert len({ask_tuned(f"--start={question}", f"--seed={seed}") for seed in range(4)}) == 1
    assert (
        len(
            {
                ask_tuned(
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
def test_every_question_in_a_file_is_answered(ask_tuned, known, tmp_path, suffix):
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
    output = ask_tuned(f"--in={path}", f"--out={tmp_path / 'o.jsonl'}", "--batch_size=20")
    assert f"{len(known)} of {len(known)} answers" in output
    rows = [
        json.loads(line) for line in (tmp_path / "o.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [row["model_answer" if suffix == "csv" else "answer"] for row in rows] == list(
        known.values()
    )


def test_a_chat_answers_question_after_question_and_ends_with_an_empty_line(
    ask_tuned, known, monkeypatch
):
    (one, first), (two, second) = [*known.items()][:2]
    monkeypatch.setattr(
        "sys.stdin", io.StringIO(f"{one}\n{two}\n/new\n{'长' * 70}\n  {one} \n\n{two}\n")
    )
    output = ask_tuned("--chat")
    _, *replies = output.split("\n> ")
    assert "longer than the 64" in replies.pop(3)  # printed; the chat continues
    assert replies == [f"{first}\n", f"{second}\n", "", f"{first}\n", ""]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{one}\n"))  # the end of the input ends the chat
    assert ask_tuned("--chat").count(first) == 1


class Recorder(terminal_chat.TerminalChat):
    """A TerminalChat with a block of 64 that records the prompts and answers with their number."""

    def __init__(self, tokenizer, turns):
        self.tokenizer, self.block, self.prompts = tokenizer, 64, []
        self.purpose, self.is_answering, self.system = Purpose("questions", turns), True, None
        self.settings, self.way = SimpleNamespace(seed=1), "write"

    def reply(self, text, history, seed, stop):
        self.prompts.append(self.tokenizer.decode(self.prompt(text, history).ids))
        return f"{len(self.prompts)}。"


@pytest.mark.parametrize(
    "turns, expected",
    [
        (1, ["a", "b", "c", "d", "e"]),
        (2, ["a", "a1。b", "b2。c", "d", "d4。e"]),
        (9, ["a", "a1。b", "a1。b2。c", "d", "d4。e"]),
    ],
)
def test_a_chat_remembers_as_many_turns_as_were_trained_until_new(
    tokenizer, monkeypatch, turns, expected
):
    terminal = Recorder(tokenizer, turns)
    monkeypatch.setattr("sys.stdin", io.StringIO("a\nb\nc\n/new\nd\ne\n\n"))
    assert sample_command.chat(terminal) == 0 and terminal.prompts == expected


def test_a_chat_drops_its_oldest_turns_when_half_the_block_is_full(tokenizer, monkeypatch):
    terminal = Recorder(tokenizer, 9)
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{letter * 6}\n" for letter in "ABCDE")))
    assert sample_command.chat(terminal) == 0
    assert terminal.prompts[0] == "A" * 6 and "AAAAAA1。BBBBBB" in terminal.prompts[1]
    assert terminal.prompts[4].endswith("DDDDDD4。EEEEEE") and "A" not in terminal.prompts[4]


def test_the_system_message_of_the_training_begins_each_conversation(tokenizer, monkeypatch):
    terminal = Recorder(tokenizer, 2)
    terminal.purpose = Purpose("questions", 2, "你是老船夫。")
    ids = terminal.prompt("渡口？").ids
    messages = [("system", "你是老船夫。"), ("user", "渡口？"), ("assistant", None)]
    assert ids == tokenizer.render([{"role": r, "content": c} for r, c in messages])[0]
    assert terminal.question_ids("渡口？", system="你是柳青禾。") != ids
    assert (
        terminal.question_ids("渡口？", system="")
        == tokenizer.render([{"role": r, "content": c} for r, c in messages[1:]])[0]
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("甲？\n乙？\n丙？\n\n"))
    assert sample_command.chat(terminal) == 0
    assert [p.count("你是老船夫。") for p in terminal.prompts] == [1, 1, 1]
    assert terminal.prompts[2] == "你是老船夫。乙？2。丙？"


def test_a_rows_own_system_message_counts_unless_one_is_given(tokenizer):
    terminal = Recorder(tokenizer, 1)
    own = terminal.question_ids("渡口？", system="你是老船夫。")
    assert terminal.prompt("渡口？", system="你是老船夫。").ids == own
    terminal.system = ""
    assert terminal.prompt("渡口？", system="你是老船夫。").ids != own


@pytest.mark.parametrize(
    "given, expected", [("trained", None), ("none", ""), ("你是老船夫。", "你是老船夫。")]
)
def test_the_system_message_may_be_given(tuned, given, expected):
    settings = SampleSettings(system=given)
    loaded = models_weights.load_model(tuned)
    assert terminal_chat.TerminalChat(settings, loaded, tuned).system == expected


def test_a_model_that_continues_text_takes_no_system_message(pretrained, capsys):
    assert (
        sample.main([f"--out_dir={pretrained}", *QUICK, "--start=x", "--system=你是老船夫。"]) == 2
    )
    assert "--system is for models that answer questions" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--chat", "--start=x"], "drop --start, --in and --continue_text"),
        (["--chat", "--continue_text"], "drop --start, --in and --continue_text"),
        (["--start=" + "长" * 100], "longer than the 64 that this model reads"),
        (["--start=x", "--in=x.csv", "--out=y.csv"], "exclude each other"),
    ],
)
def test_a_mistake_with_a_fine_tuned_model_is_one_message(ask_tuned, arguments, message):
    assert message in ask_tuned(*arguments, code=2)


def test_a_pretrained_model_does_not_chat(pretrained, capsys):
    assert sample.main([f"--out_dir={pretrained}", "--chat", "--threads=1"]) == 2
    assert "config/sft.py" in capsys.readouterr().err


def test_the_newer_of_two_models_is_used(pretrained, tuned, tmp_path, monkeypatch, capsys, known):
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


def test_a_truncated_answer_is_reported(tuned, known, tmp_path, capsys):
    question = next(iter(known))
    assert (
        sample.main(
            [
                f"--out_dir={tuned}",
                f"--start={question}",
                "--answer_by=write",
                "--max_new_tokens=2",
                "--threads=1",
            ]
        )
        == 0
    )
    output = capsys.readouterr()
    assert "cut at --max_new_tokens=2" in output.err and "cut" not in output.out
    (tmp_path / "questions.txt").write_text(question + "\n", encoding="utf-8")
    assert (
        sample.main(
            [
                f"--out_dir={tuned}",
                f"--in={tmp_path / 'questions.txt'}",
                f"--out={tmp_path / 'answers.csv'}",
                "--answer_by=write",
                "--max_new_tokens=2",
                "--threads=1",
            ]
        )
        == 0
    )
    assert "1 of them were cut" in capsys.readouterr().out


def test_an_empty_question_is_refused(tuned, capsys):
    assert sample.main([f"--out_dir={tuned}", "--start= ", "--threads=1"]) == 2
    assert "the question is empty" in capsys.readouterr().err
