"""Wrong command lines, config files and prompt files."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import eval_metrics
import prepare
import prepare_sft
import sample
import train
from shuoshu.text.tokenizer import SPECIALS
from tests.conftest import TINY

CONFIGS: dict[str, tuple[bytes, str]] = {
    "a syntax error": (b"n_layer = 1\nn_head = = 2", "line 2"),
    "an unknown key": (b"n_layers = 3", "did you mean n_layer"),
    "a wrong type": (b'n_layer = "3"', "should be a whole number"),
    "exit": (b"exit()", "SystemExit"),
    "exit with success": (b"import sys; sys.exit(0)", "SystemExit"),
    "an exception": (b"1 / 0", "ZeroDivisionError"),
    "an exception whose message fails": (
        b"class E(Exception):\n    def __str__(self): 1 / 0\nraise E",
        "config.py",
    ),
    "a failed import": (b"import no_such_module", "no_such_module"),
    "brackets": (b"a = " + b"(" * 200_000, "config.py"),
    "minus signs": (b"n_layer = " + b"-" * 100_000 + b"1", "config.py"),
    "recursion": (b"def f(): return f()\nf()", "RecursionError"),
    "NUL": (b"n_layer = 1\0", "config.py"),
    "binary": (bytes(range(256)), "is not a config file"),
    "GBK": ("n_layer = 2  # 层".encode("gb18030"), "is not a config file"),
    "UTF-16": ("n_layer = 2".encode("utf-16"), "is not a config file"),
    "a huge number": (b"n_layer = 10**5000", "bits"),
    "a huge negative number": (b"seed = -10**5000", "bits"),
    "beyond a float": (b"head_lr = 10**400", "head_lr"),
    "infinite": (b"head_lr = float('inf')", "not a finite number"),
    "NaN": (b"dropout = float('nan')", "not a finite number"),
    "empty text": (b"dataset = ''", "must not be empty"),
    "a lone surrogate": (b"dataset = '\\ud800'", ""),
    "NUL in a text": (b"out_dir = 'a\\0b'", ""),
    "an object that can't be shown": (
        b"class R:\n    def __repr__(self): 1 / 0\nn_layer = R()",
        "n_layer",
    ),
    "a key that is odd": (b"globals()['\\ud800'] = 1", "no such setting"),
}


@pytest.mark.parametrize("fault", CONFIGS)
def test_a_wrong_config_file_is_refused(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch, fault: str, refused: Callable
) -> None:
    monkeypatch.chdir(tmp_path)
    raw, expected = CONFIGS[fault]
    (tmp_path / "config.py").write_bytes(raw)
    refused(train.main, ["config.py"], expected)


def test_a_config_that_is_not_a_regular_file_is_refused(
    tmp_path: Path, refused: Callable, little_memory: None
) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "zero.py").symlink_to("/dev/zero")
    (tmp_path / "loop.py").symlink_to(tmp_path / "loop.py")
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "large.py").touch()
    os.truncate(tmp_path / "large.py", 2 << 30)
    for name in ("pipe.py", "zero.py", "loop.py", "folder.py", "large.py", "gone.py", "x" * 300):
        refused(train.main, [tmp_path / name], "can't read the config file", tmp_path / name)


def test_a_byte_order_mark_in_a_config_does_no_harm(tmp_path: Path, refused: Callable) -> None:
    (tmp_path / "config.py").write_bytes(b"\xef\xbb\xbfdataset = 'nowhere'\r\nn_layer = 1\r\n")
    refused(train.main, [tmp_path / "config.py"], "no prepared data in data/nowhere")


COMMANDS = {
    "train": train.main,
    "prepare": prepare.main,
    "prepare_sft": prepare_sft.main,
    "sample": sample.main,
    "eval_metrics": eval_metrics.main,
}
WORDS: list[tuple[str, str]] = [
    ("--no_such_key=1", "no such setting"),
    ("--", ""),
    ("--=", ""),
    ("---", ""),
    ("--\ud8ff=1", "no such setting"),
    ("--seed=nan", "not a finite number"),
    ("--seed=inf", "not a finite number"),
    ("--seed=-1", "must be at least 0"),
    ("--seed=", "''"),
    ("--seed", "needs a value"),
    ("--seed=" + "9" * 5000, "finite"),
    ("--seed=" + "9" * 4000, "must be at most"),
    ("--seed=1e300", "must be at most"),
    ("--seed=1.5", "not a whole number"),
    ("--seed=\udcff", "not a number"),
    ("--seed=a\0b", "not a number"),
    ("--\0", "no such setting"),
]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "word, expected", WORDS, ids=[word[:20].encode("unicode_escape").decode() for word, _ in WORDS]
)
def test_an_invalid_argument_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    word: str,
    expected: str,
    refused: Callable,
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(COMMANDS[command], [word], expected)


HUGE = [
    *(
        f"--{name}=1000000000000"
        for name in (
            "n_layer",
            "n_head",
            "n_kv_head",
            "n_embd",
            "head_dim",
            "n_hidden",
            "block_size",
            "batch_size",
            "threads",
        )
    ),
    *(f"--{name}=" for name in ("dataset", "out_dir", "init_from", "device")),
    *(
        "--out_dir=/dev/null/x",
        "--out_dir=/proc/x",
        "--init_from=/dev/null",
        "--dataset=/dev/zero",
        "--dataset=" + "x" * 300,
        "--device=cuda:99",
        "--device=\n",
    ),
]


@pytest.mark.parametrize("word", HUGE, ids=lambda word: word[:40])
def test_an_out_of_range_setting_of_train_is_refused(
    dataset: Path, tmp_path: Path, word: str, refused: Callable, little_memory: None
) -> None:
    refused(
        train.main,
        [f"--dataset={dataset}", *TINY, "--max_iters=1", f"--out_dir={tmp_path / 'out'}", word],
    )


@pytest.mark.parametrize(
    "word",
    [
        "--num_samples=1000000000000",
        "--threads=100000",
        "--batch_size=10000000000",
        "--out_dir=/dev/null",
        "--out_dir=" + "x" * 300,
    ],
)
def test_an_out_of_range_setting_of_sample_is_refused(
    pretrained: Path, word: str, refused: Callable, little_memory: None
) -> None:
    refused(sample.main, [f"--out_dir={pretrained}", "--start=x", word])


# ---------------------------------------------------------------- files of prompts


@pytest.fixture
def ask(pretrained: Path, tmp_path: Path) -> Callable[..., list[object]]:
    more = ["--max_new_tokens=2", "--temperature=0", "--threads=1", f"--out_dir={pretrained}"]
    return lambda path, out="out.csv": [f"--in={path}", f"--out={tmp_path / out}", *more]


PROMPTS: dict[str, tuple[str, bytes, str]] = {
    "empty": ("a.csv", b"", "it is empty"),
    "empty text": ("a.txt", b"\n\n", "it is empty"),
    "a header alone": ("a.csv", b"prompt\n", "holds no prompt"),
    "one bad line": ("a.jsonl", b'{"prompt": "a"}\n{"prompt": ', "line 2"),
    "brackets": ("a.jsonl", b"[" * 200_000, "line 1"),
    "no object": ("a.jsonl", b"[1]", "row 1"),
    "wrong types": ("a.jsonl", b'{"prompt": {}}\n{"prompt": [1]}', "row 1"),
    "NaN": ("a.jsonl", b'{"prompt": NaN}', "row 1"),
    "fields twice": ("a.jsonl", b'{"prompt": "a", "prompt": "b"}', "two fields called prompt"),
    "no column": ("a.csv", b"x,y\n1,2\n", "has no column prompt"),
    "an open quotation mark": ("a.csv", b'prompt\n"a\nb\n', "quotation mark"),
    "binary": ("a.txt", bytes(range(256)) * 9, "not a text file"),
    "another kind": ("a.pdf", b"x", "read from .csv"),
}


@pytest.mark.parametrize("fault", PROMPTS)
def test_a_wrong_prompt_file_is_refused(
    tmp_path: Path, ask: Callable, fault: str, refused: Callable
) -> None:
    name, raw, expected = PROMPTS[fault]
    (tmp_path / name).write_bytes(raw)
    (tmp_path / "out.csv").write_bytes(b"before")
    refused(sample.main, ask(tmp_path / name), tmp_path / name, expected)


def test_a_prompt_file_that_is_not_a_regular_file_is_refused(
    tmp_path: Path, ask: Callable, pretrained: Path, refused: Callable, little_memory: None
) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "large.txt").touch()
    os.truncate(tmp_path / "large.txt", 2 << 30)
    for name in (
        "pipe.txt",
        "zero.txt",
        "loop.txt",
        "folder.txt",
        "large.txt",
        "gone.txt",
        "x" * 300 + ".txt",
    ):
        refused(sample.main, ask(tmp_path / name), tmp_path / name)
        refused(
            sample.main,
            [f"--out_dir={pretrained}", f"--start=FILE:{tmp_path / name}"],
            tmp_path / name,
        )
    (tmp_path / "a.txt").write_text("x", encoding="utf-8")
    os.mkfifo(tmp_path / "pipe.csv")
    for out in ("pipe.csv", "out.pdf", "folder.txt", "loop.txt/a.csv", "a.txt/a.csv"):
        refused(sample.main, ask(tmp_path / "a.txt", out), out.split("/")[0])


def test_odd_prompts_are_answered_and_no_row_is_lost(
    tmp_path: Path, ask: Callable, count_fault: Callable
) -> None:
    spelt = "".join(SPECIALS)
    odd = [
        "清晨，",
        spelt,
        "a\ud800b",
        "a\0b",
        "\ufeff",
        "",
        "x" * 5000,
        "\r\n\x85\u2028",
        "=cmd()",
        '"',
        "🙂" * 40,
    ]
    for name in ("out.csv", "out.jsonl"):
        count_fault("tried")
        rows = [{"prompt": prompt, "\ud800note": number} for number, prompt in enumerate(odd)]
        (tmp_path / "in.jsonl").write_text(
            "\n".join(json.dumps(row) for row in rows), encoding="utf-8"
        )
        assert sample.main([str(word) for word in ask(tmp_path / "in.jsonl", name)]) == 0
        with (tmp_path / name).open(encoding="utf-8", newline="") as file:
            read = (
                list(csv.DictReader(file))
                if name.endswith("csv")
                else [json.loads(line) for line in file.read().split("\n") if line]
            )
        assert len(read) == len(odd) and read[1]["prompt"] == spelt and read[0]["prompt"] == odd[0]
        count_fault("survived")
