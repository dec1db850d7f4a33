"""sample.py: prompts from everywhere, texts to the terminal or a file."""

import csv
import io
import json
import signal

import pytest

import sample
from shuoshu import prompts

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
    assert ask("--start=<|endoftext|><|user|> \ud800\x00 e\u0301").startswith("<|endoftext|><|user|>")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "txt"])
def test_a_file_of_prompts_becomes_a_file_of_answers(ask, tmp_path, suffix):
    texts = ["清晨，沈砚", "赵铁匠\n说：“", "柳青禾"] if suffix != "txt" else ["清晨，沈砚", "赵铁匠说：“", "柳青禾"]
    path = tmp_path / f"in.{suffix}"
    if suffix == "csv":
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file).writerows([["id", "question", "answer"], *([str(i), t, "x"] for i, t in enumerate(texts))])
    elif suffix == "jsonl":
        path.write_text("\n".join(json.dumps({"prompt": t}) for t in texts), encoding="utf-8")
    else:
        path.write_text("\n\n".join(texts), encoding="utf-8")
    ask(f"--in={path}", f"--out={tmp_path / 'out' / 'o.csv'}", "--num_samples=2", "--batch_size=2", "--temperature=0")
    with (tmp_path / "out" / "o.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    column = "model_answer" if suffix == "csv" else "answer"  # the file's own column stays
    assert [r[column] for r in rows] == [r[f"{column}_2"] for r in rows]  # greedy
    assert [r["question" if suffix == "csv" else "prompt"] for r in rows] == texts
    for row, text in zip(rows, texts, strict=True):
        assert ask(f"--start={text}", "--temperature=0") == text + row[column] + "\n"


def test_interrupted_it_writes_what_is_done(ask, tmp_path, monkeypatch, capsys, pretrained):
    (tmp_path / "in.txt").write_text("\n".join("清晨黄昏"), encoding="utf-8")
    real, calls = prompts.complete, []

    def interrupted(*args, should_stop, **more):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return real(*args, should_stop=should_stop, **more)

    monkeypatch.setattr(prompts, "complete", interrupted)
    target = tmp_path / "o.jsonl"
    assert sample.main([f"--out_dir={pretrained}", *QUICK, f"--in={tmp_path / 'in.txt'}", f"--out={target}", "--batch_size=2"]) == 130
    rows = [json.loads(line) for line in target.read_text(encoding="utf-8").split("\n") if line]
    assert len(rows) == 4 and sum(bool(row["answer"]) for row in rows) == 2


def test_a_line_separator_inside_json_is_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a\u2028b\x85c"}\n', encoding="utf-8")
    assert prompts.read_file(tmp_path / "a.jsonl")[1] == ["a\u2028b\x85c"]


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
    with pytest.raises(prompts.UserError, match=told):
        prompts.read_file(tmp_path / name)
