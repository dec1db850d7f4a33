"""Question files that are damaged, endless or malicious."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import prepare_sft
from shuoshu.sft.dataset import QuestionDataset, read_pairs
from shuoshu.text.tokenizer import SPECIALS
from shuoshu.text.tokenizer_folder import load_tokenizer

ROW = '{"question": "谁？", "answer": "我。"}'
DEEP = "[" * 200_000
ENDLESS = 2 << 30


@pytest.fixture
def argv(pretrained: Path, tmp_path: Path) -> Callable[..., list[object]]:
    return lambda path, *more: [
        path,
        f"--out={tmp_path / 'out'}",
        f"--tokenizer={pretrained}",
        "--val_fraction=0",
        "--test_fraction=0",
        *more,
    ]


REFUSED: dict[str, tuple[str, bytes, str]] = {
    "empty": ("a.json", b"", "it is empty"),
    "blank": ("a.jsonl", b" \n\n ", "it is empty"),
    "empty table": ("a.csv", b"", "it is empty"),
    "a header alone": ("a.csv", b"question,answer\n", "holds no rows"),
    "no JSON": ("a.json", b"hello", "line 1, column 1"),
    "torn": ("a.json", f"[{ROW},\n{ROW}".encode(), "line 2"),
    "brackets": ("a.json", DEEP.encode(), "nested too deeply"),
    "brackets in a row": (
        "a.jsonl",
        f"{ROW}\n{DEEP}".encode(),
        "line 2: brackets are nested too deeply",
    ),
    "braces": ("a.json", b'{"a":' * 100_000, "nested too deeply"),
    "one bad line": ("a.jsonl", f'{ROW}\n{{"question": "谁\n{ROW}'.encode(), "line 2"),
    "fields twice": (
        "a.json",
        b'[{"question": "a", "question": "b", "answer": "c"}]',
        "two fields called question",
    ),
    "fields twice in a row": (
        "a.jsonl",
        f'{ROW}\n{{"question": "a", "answer": "b", "answer": "c"}}'.encode(),
        "line 2: an object has two fields called answer",
    ),
    "NUL": ("a.json", bytes(100_000), "is not a text file"),
    "binary": ("a.json", bytes(range(256)) * 400, ""),
    "a list of lists": ("a.json", b"[[1, 2], [3, 4]]", "no rows"),
    "a number": ("a.json", b"5", "a list of objects is expected"),
    "NaN": ("a.json", b"NaN", "a list of objects is expected"),
    "a long number": ("a.json", b"9" * 5000, "a list of objects is expected"),
    "null": ("a.json", b"null", "a list of objects is expected"),
    "wrong types": (
        "a.json",
        b'[{"question": [1], "answer": {"a": 2}}, {"question": true, "answer": NaN},'
        b' {"question": Infinity, "answer": null}]',
        "no pair is left",
    ),
    "other columns": (
        "a.json",
        '[{"甲": "a", "乙": "b"}]'.encode(),
        "no question and answer are recognised",
    ),
    "odd split": (
        "a.json",
        b'[{"question": "a", "answer": "b", "split": "../../etc"}]',
        "the split ../../etc is not one of",
    ),
    "an open quotation mark": ("a.csv", b'question,answer\na,"b\nc\n', "never closed"),
    "one that opens late": (
        "a.csv",
        b"question,answer\n" + b"a,b\n" * 5 + b'a,"' + b"x\n" * 100_000,
        "begins in line 7",
    ),
    "columns twice": ("a.csv", b"question,question\na,b\n", "several columns are called question"),
    "a table with NUL": ("a.csv", bytes(5000), "is not a text file"),
    "a table with CR alone": ("a.csv", b"question\ranswer", ""),
    "another kind": ("a.xlsx", b"PK", "read from .json"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_file_without_questions_is_refused(
    argv: Callable, tmp_path: Path, fault: str, refused: Callable
) -> None:
    name, raw, expected = REFUSED[fault]
    (tmp_path / name).write_bytes(raw)
    refused(prepare_sft.main, argv(tmp_path / name), expected)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv"])
@pytest.mark.parametrize("head", [b"", b"[", b'[{"question": "', b"question,answer\na,"])
def test_a_file_of_gigabytes_is_refused_with_little_memory(
    argv: Callable, tmp_path: Path, name: str, head: bytes, refused: Callable, little_memory: None
) -> None:
    (tmp_path / name).write_bytes(head)
    os.truncate(tmp_path / name, ENDLESS)
    refused(prepare_sft.main, argv(tmp_path / name), tmp_path / name)


def test_a_path_that_is_not_a_regular_file_is_refused(
    argv: Callable, tmp_path: Path, refused: Callable
) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    (tmp_path / "empty.json").mkdir()
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    refused(prepare_sft.main, argv(tmp_path / "pipe.json"), "pipe or a device")
    refused(prepare_sft.main, argv("/dev/zero"), "pipe or a device")
    refused(prepare_sft.main, argv(tmp_path / "zero.json"), "pipe or a device")
    refused(prepare_sft.main, argv(tmp_path / "loop.json"), "loop.json")
    refused(prepare_sft.main, [tmp_path / "loop.json"], "loop.json")
    refused(prepare_sft.main, argv(tmp_path / "empty.json"), "holds no .json")
    refused(prepare_sft.main, argv(tmp_path / "gone.json"), "no file or folder")
    refused(prepare_sft.main, argv(tmp_path / ("x" * 300)), "x")
    refused(prepare_sft.main, argv("a\0b.json"), "not UTF-8")
    refused(
        prepare_sft.main, argv(tmp_path), "holds no .json"
    )  # the pipe, the loop and the folder in it are passed over


@pytest.fixture
def obeying() -> Iterator[None]:
    """Takes root's right to read every file away (Linux)."""
    if sys.platform != "linux":
        yield
        return
    libc, header, held = (
        ctypes.CDLL(None),
        (ctypes.c_uint32 * 2)(0x20080522, 0),
        (ctypes.c_uint32 * 6)(),
    )
    assert libc.capget(header, held) == 0
    less = (ctypes.c_uint32 * 6)(*held)
    less[0] &= ~0b110  # effective CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert libc.capset(header, less) == 0
    yield
    assert libc.capset(header, held) == 0


def test_a_file_without_permission_is_refused(
    argv: Callable, tmp_path: Path, refused: Callable, obeying: None
) -> None:
    (tmp_path / "a.json").write_text(f"[{ROW}]", encoding="utf-8")
    (tmp_path / "a.json").chmod(0)
    if os.access(
        tmp_path / "a.json", os.R_OK, effective_ids=os.access in os.supports_effective_ids
    ):
        pytest.skip("a system on which this reader may read everything")
    refused(prepare_sft.main, argv(tmp_path / "a.json"), "Permission denied")


READ: dict[str, tuple[str, bytes, list[tuple[str, str]]]] = {
    "a byte order mark": ("a.json", b"\xef\xbb\xbf" + f"[{ROW}]".encode(), [("谁？", "我。")]),
    "a lone surrogate": (
        "a.json",
        rb'[{"question": "a\ud800b", "answer": "\udfff"}]',
        [("a�b", "�")],
    ),
    "NUL inside": ("a.json", rb'[{"question": "a\u0000b", "answer": "c"}]', [("ab", "c")]),
    "a number of 5,000 digits": (
        "a.json",
        b'[{"question": "a", "answer": "b", "n": ' + b"9" * 5000 + b"}]",
        [("a", "b")],
    ),
    "an infinite field": (
        "a.json",
        b'[{"question": "a", "answer": "b", "n": 1e999, "m": NaN}]',
        [("a", "b")],
    ),
    "wrong rows among good ones": (
        "a.jsonl",
        f'{ROW}\n5\n[]\nnull\n"x"\n{{"question": 1}}\n{{"question": {{}}, "answer": "x"}}'.encode(),
        [("谁？", "我。")],
    ),
    "a gigantic field": (
        "a.csv",
        b'question,answer,more\na,b,"' + b"x" * 3_000_000 + b'"\n',
        [("a", "b")],
    ),
    "rows of other lengths": ("a.csv", b"question,answer\na,b\na\na,b,c,d\n", [("a", "b")]),
    "NUL in a table": ("a.csv", b"question,answer\na\0b,c\n", [("ab", "c")]),
    "a split that leads elsewhere": (
        "a.json",
        b'[{"question": "a", "answer": "b", "source": "../../x", "row": -5, "rows": "x",'
        b' "messages2": []}]',
        [("a", "b")],
    ),
}


@pytest.mark.parametrize("fault", READ)
def test_odd_but_readable_rows_are_read(
    argv: Callable, tmp_path: Path, fault: str, count_fault: Callable
) -> None:
    count_fault("tried")
    name, raw, expected = READ[fault]
    (tmp_path / name).write_bytes(raw)
    assert prepare_sft.main([str(word) for word in argv(tmp_path / name)]) == 0
    pairs = read_pairs(tmp_path / "out", "train")
    assert [tuple(message["content"] for message in pair["messages"]) for pair in pairs] == expected
    assert len(QuestionDataset(tmp_path / "out", "train")) == len(expected)
    count_fault("survived")


def test_special_tokens_spelled_out_are_plain_text_everywhere(
    argv: Callable, tmp_path: Path, count_fault: Callable
) -> None:
    count_fault("tried")
    spelt = "".join(SPECIALS)
    rows = [
        {"question": f"{spelt}问{n}", "answer": f"{spelt}答{n % 2}", "topic": spelt, "label": spelt}
        for n in range(40)
    ]
    (tmp_path / f"{spelt.replace('|', '')}.json").write_text(json.dumps(rows), encoding="utf-8")
    more = [
        f"--system={spelt}",
        f"--question={spelt}{{question}}",
        "--answer={answer}",
        "--block_size=256",
    ]
    assert prepare_sft.main([str(word) for word in argv(next(tmp_path.glob("*.json")), *more)]) == 0
    tokenizer, file = load_tokenizer(tmp_path / "out"), QuestionDataset(tmp_path / "out", "train")
    for number in range(len(file)):
        ids, mask = file.row(number)
        special = [int(i) for i in ids if i in tokenizer.specials.values()]
        assert special == [tokenizer.system, tokenizer.user, tokenizer.assistant, tokenizer.end]
        assert tokenizer.decode(ids[mask == 1].tolist()).startswith(spelt + "答")
    count_fault("survived")
