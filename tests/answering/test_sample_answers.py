"""sample.py: recalled, written, declined and read answers, their notes, and the passages."""

from __future__ import annotations

import csv
import io
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import sample
from shuoshu.answering.knowledge import ANSWERS, TAUGHT
from shuoshu.answering.passages import Passage
from shuoshu.answering.reading import fitting_passages, read_message
from shuoshu.generation.sampling import TextGenerator
from shuoshu.sft.dataset import read_pairs

UNRELATED = "孙悟空是谁？"
DECLINED = "这个问题没有教过我。"
NEVER = "--precision=1"  # no trial of this model is that sure of an unrelated question


class Output:
    """What sample.py printed."""

    def __init__(self, out: str, err: str) -> None:
        self.out, self.err = out, err


@pytest.fixture
def ask(tuned: Path, capsys: pytest.CaptureFixture) -> Callable[..., Output]:
    def ask(*arguments: str, out_dir: Path = tuned, code: int = 0) -> Output:
        argv = [f"--out_dir={out_dir}", "--threads=1", "--device=cpu", *arguments]
        assert sample.main(argv) == code
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Output(*captured)

    return ask


@pytest.fixture(scope="module")
def taught(qa: Path) -> tuple[str, str]:
    """A question of the training with its answer."""
    record = read_pairs(qa, "train")[0]
    return record["question"], record["answer"]


@pytest.fixture
def copied(tuned: Path, tmp_path: Path) -> Path:
    """A copy of the model, for a test to change."""
    ignored = shutil.ignore_patterns("checkpoints")
    return Path(shutil.copytree(tuned, tmp_path / "copied", ignore=ignored))


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "海船.txt"
    path.write_text("第一回　铁尺\n\n沈砚把铁尺埋在槐树底下。\n" * 3, encoding="utf-8")
    return path


# ---------------------------------------------------------------- recall, write, decline


def test_a_taught_question_is_recalled_word_for_word(ask, taught):
    question, answer = taught
    output = ask(f"--start={question}", "--answer_by=recall")
    assert output.out == f"{answer}\n"
    assert output.err == "(recalled, 0.99 likely right)\n"


def test_a_written_answer_is_rated(ask, taught):
    output = ask(f"--start={taught[0]}", "--answer_by=write")
    assert output.out == f"{taught[1]}\n"
    assert output.err.startswith("(written, 0.") and output.err.count("\n") == 1


def test_an_unrelated_question_is_declined_with_the_nearest_ones(ask, qa):
    output = ask(f"--start={UNRELATED}", NEVER)
    assert output.out == f"{DECLINED}\n"
    note, nearest, quote, *passages = output.err.splitlines()
    assert note.startswith("(declined: the nearest answer is 0.")
    questions = nearest.removeprefix("taught questions near it: ").split(" / ")
    assert set(questions) <= {record["question"] for record in read_pairs(qa, "train")}
    assert passages[0].startswith("[1] 《book》")  # of the text behind the model
    assert quote.removeprefix("the book's nearest sentence: ") in "\n".join(passages)


def test_without_a_precision_nothing_is_declined(ask):
    output = ask(f"--start={UNRELATED}", "--precision=0")
    assert output.out.strip() != DECLINED and "declined" not in output.err


def test_a_chat_notes_each_answer(ask, taught, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{taught[0]}\n{UNRELATED}\n"))
    output = ask("--chat", NEVER)
    assert [reply.strip() for reply in output.out.split("\n> ")[1:]] == [taught[1], DECLINED, ""]
    assert "(recalled, 0.99" in output.err and "(declined" in output.err


def test_several_texts_are_only_written(ask, taught):
    output = ask(f"--start={taught[0]}", "--num_samples=2")
    assert output.out.count(taught[1]) == 2 and not output.err
    for flag in ("--num_samples=2", "--temperature=0.5", "--stop=。", "--system=你是老船夫。"):
        error = ask("--start=x", "--answer_by=recall", flag, code=2).err
        assert "chooses among taught answers" in error and flag.partition("=")[0] in error


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--answer_by=write", "--precision=0.5"], "--precision is for --answer_by=auto"),
        (["--sources", "--continue_text"], "--continue_text answers no questions"),
        (["--answer_by=read", "--book=nowhere.txt"], "no file or folder nowhere.txt"),
    ],
)
def test_settings_that_do_not_go_together_are_one_message(ask, arguments, message):
    assert message in ask("--start=x", *arguments, code=2).err


def test_a_model_that_continues_text_answers_in_no_way(ask, pretrained):
    output = ask("--start=x", "--answer_by=read", out_dir=pretrained, code=2)
    assert "answers no questions" in output.err and "--answer_by" in output.err


# ---------------------------------------------------------------- what is kept beside the model


def test_recall_without_what_is_kept_says_how_to_make_it(ask, copied, taught):
    (copied / ANSWERS).unlink()
    output = ask(f"--start={taught[0]}", out_dir=copied)
    assert output.out == f"{taught[1]}\n" and not output.err  # as before there was recall
    for flag in ("--answer_by=recall", "--answer_by=auto", "--precision=0.5"):
        error = ask("--start=x", flag, out_dir=copied, code=2).err
        assert f"{flag.removesuffix('=0.5')} needs" in error
        assert f"python eval_metrics.py {copied}" in error


def test_what_was_made_for_other_weights_is_not_used(ask, copied, taught):
    content = json.loads((copied / ANSWERS).read_text(encoding="utf-8"))
    content["model_sha256"] = "0" * 64
    (copied / ANSWERS).write_text(json.dumps(content), encoding="utf-8")
    output = ask(f"--start={taught[0]}", out_dir=copied)
    assert output.out == f"{taught[1]}\n" and not output.err
    error = ask("--start=x", "--answer_by=recall", out_dir=copied, code=2).err
    assert "fits other weights" in error and "eval_metrics.py" in error


@pytest.mark.parametrize(
    "name, content",
    [(ANSWERS, b"{"), (ANSWERS, b'{"format": 1}'), (TAUGHT, b"\xff\x00"), (TAUGHT, b"")],
)
def test_damage_is_one_message(ask, copied, name, content):
    (copied / name).write_bytes(content)
    error = ask("--start=x", out_dir=copied, code=2).err
    assert f"{ANSWERS} is damaged" in error and "python eval_metrics.py" in error


# ---------------------------------------------------------------- files


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_file_of_questions_gets_answers_ways_and_probabilities(ask, taught, tmp_path):
    path, target = tmp_path / "in.csv", tmp_path / "out.csv"
    path.write_text(f"question\n{UNRELATED}\n{taught[0]}\n \n", encoding="utf-8")
    output = ask(f"--in={path}", f"--out={target}", NEVER, "--sources", "--batch_size=1")
    assert "2 of 2 answers" in output.out and "1 recalled, 0 written, 1 declined" in output.out
    declined, recalled, empty = read_csv(target)
    assert (declined["answer"], declined["answered_by"]) == ("", "decline")
    assert (recalled["answer"], recalled["answered_by"]) == (taught[1], "recall")
    assert recalled["probability"] == "0.99" and 0 <= float(declined["probability"]) < 0.99
    assert recalled["sources"].startswith("[1] 《book》")
    assert set(empty.values()) <= {"", " "}


def test_an_interrupted_file_keeps_the_finished_answers(ask, taught, tmp_path, monkeypatch):
    path, target = tmp_path / "in.txt", tmp_path / "out.jsonl"
    path.write_text(f"{taught[0]}\n{UNRELATED}{UNRELATED}\n", encoding="utf-8")
    real, calls = TextGenerator.complete, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(TextGenerator, "complete", interrupted)
    ask(f"--in={path}", f"--out={target}", "--answer_by=write", "--batch_size=1", code=130)
    rows = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert sorted(row["answered_by"] for row in rows) == ["", "write"]
    assert [row["probability"] for row in rows].count(None) == 1


def test_sources_of_several_texts_are_refused(ask, tmp_path):
    arguments = [f"--in={tmp_path / 'x.txt'}", f"--out={tmp_path / 'o.csv'}", "--num_samples=2"]
    assert "drop --num_samples" in ask(*arguments, "--sources", code=2).err


# ---------------------------------------------------------------- passages


def test_sources_follow_an_answer_outside_of_stdout(ask, taught, book):
    output = ask(f"--start={taught[0]}", "--sources")
    assert output.out == f"{taught[1]}\n" and "\n[1] 《book》" in output.err
    output = ask("--start=铁尺埋在哪里？", f"--book={book}", "--precision=0")
    assert "[1] 《海船》第一回 铁尺" in output.err and "沈砚把铁尺埋在槐树底下。" in output.err


def test_a_model_of_others_reads_passages_before_it_answers(ask, book, chat_folder, monkeypatch):
    seen, real = [], TextGenerator.stream

    def spy(self, prompts, *rest):
        seen.append(self.tokenizer.decode(prompts[0]))
        return real(self, prompts, *rest)

    monkeypatch.setattr(TextGenerator, "stream", spy)
    monkeypatch.setattr("sys.stdin", io.StringIO("铁尺？\n槐树？\n"))
    book.write_text("铁尺在槐树下。\n", encoding="utf-8")
    arguments = ["--chat", "--answer_by=read", f"--book={book}", "--max_new_tokens=4"]
    output = ask(*arguments, out_dir=chat_folder)
    passage = "[1] 《海船》\n铁尺在槐树下。\n\n问题："
    assert f"{passage}铁尺？" in seen[0]
    # The second prompt has its own passage only; the first question is as it was asked.
    assert f"{passage}槐树？" in seen[1] and seen[1].count("[1]") == 1 and "铁尺？" in seen[1]
    assert output.err.count("(written after reading 1 passage)") == 2
    assert "--book=FILE" in ask("--start=x", "--answer_by=read", out_dir=chat_folder, code=2).err
    error = ask("--start=x", "--answer_by=recall", out_dir=chat_folder, code=2).err
    assert "trained here on single questions" in error


def test_passages_that_do_not_fit_are_dropped_and_reported(ask, tmp_path):
    (tmp_path / "q.txt").write_text("沈砚？\n", encoding="utf-8")
    output = ask("--start=沈砚？", "--answer_by=read", "--max_new_tokens=4")
    assert "after reading 0 of 3 passages: no more fit into the 64 tokens" in output.err
    output = ask(
        f"--in={tmp_path / 'q.txt'}",
        f"--out={tmp_path / 'o.csv'}",
        "--answer_by=read",
        "--max_new_tokens=4",
    )
    assert "1 question came with fewer passages" in output.out


def test_the_last_passages_are_dropped_first():
    passages = [Passage(letter * 10, None, 0, 1.0) for letter in "abc"]
    for count in range(4):
        longest = len(read_message("x?", passages[:count]))
        fitting = fitting_passages("x?", passages, lambda text, most=longest: len(text) <= most)
        assert fitting == passages[:count]


@pytest.mark.parametrize("flag", ["--answer_by=read", "--sources"])
def test_without_a_text_behind_the_model_a_book_is_asked_for(ask, copied, flag):
    settings = json.loads((copied / "settings.json").read_text(encoding="utf-8"))
    settings["settings"]["init_from"] = "scratch"
    (copied / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    assert "--book=FILE" in ask("--start=x", flag, out_dir=copied, code=2).err


@pytest.mark.parametrize("content", [b"", b" \n\n", bytes(range(256)) * 40])
def test_a_book_that_is_no_text_is_one_message(ask, tmp_path, content):
    (tmp_path / "b.txt").write_bytes(content)
    error = ask("--start=x", "--answer_by=read", f"--book={tmp_path / 'b.txt'}", code=2).err
    assert "can't read the book" in error and "b.txt" in error


def test_a_book_in_one_long_line_is_read(ask, tmp_path):
    (tmp_path / "b.txt").write_text("风吹过街道" * 20_000 + "铁尺" + "雨" * 9, encoding="utf-8")
    output = ask("--start=铁尺？", f"--book={tmp_path / 'b.txt'}", "--answer_by=write")
    assert "铁尺雨雨" in output.err
