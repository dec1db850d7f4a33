"""Prepared data that is damaged, swapped, forged, or deleted while it is read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import eval_metrics
import prepare
import prepare_sft
from shuoshu.core.errors import REPO_ROOT
from shuoshu.core.files import sha256_of
from shuoshu.evaluation.copies import TrainingText
from shuoshu.text import dataset as text_dataset
from tests.conftest import QUIET, TINY
from tests.in_process import before_steps, train_model


@pytest.fixture
def book(dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset, tmp_path / "book"))


@pytest.fixture
def facts(qa: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(qa, tmp_path / "facts"))


def training(folder: Path, *more: object) -> list[object]:
    return [
        f"--dataset={folder}",
        *TINY,
        "--max_iters=2",
        f"--out_dir={folder.parent / 'out'}",
        *more,
    ]


def tuning(folder: Path, model: Path) -> list[object]:
    return [
        REPO_ROOT / "config" / "sft.py",
        f"--dataset={folder}",
        f"--init_from={model}",
        *QUIET,
        "--max_iters=2",
        f"--out_dir={folder.parent / 'out'}",
    ]


def edited(folder: Path, change: Callable[[dict], object]) -> None:
    """Changes meta.json."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    change(meta)
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def forged(folder: Path, name: str, raw: bytes) -> None:
    """Replaces a file and updates its sha256 in meta.json."""
    (folder / name).write_bytes(raw)
    split, kind = name.split(".", 1)
    key = {"bin": "sha256", "mask.bin": "mask_sha256", "jsonl": "pairs_sha256"}[kind]
    edited(folder, lambda meta: meta["splits"][split].update({key: sha256_of(folder / name)}))


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def an_endless_file(path: Path) -> None:
    os.truncate(path, 3 << 30)


def a_flipped_byte(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 0x10
    path.write_bytes(raw)


DAMAGE = {
    "cut at an even byte": lambda path: os.truncate(path, path.stat().st_size - 2),
    "cut at an odd byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: os.truncate(path, path.stat().st_size + 2),
    "gone": Path.unlink,
    **{
        f.__name__.replace("_", " "): f
        for f in (a_pipe, a_device, a_folder, an_endless_file, a_flipped_byte)
    },
}


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("fault", DAMAGE)
def test_a_damaged_token_file_is_named(
    book: Path, refused: Callable, fault: str, split: str
) -> None:
    DAMAGE[fault](book / f"{split}.bin")
    refused(train_model, training(book), book / f"{split}.bin", "prepare the data again")


@pytest.mark.parametrize("name", ["train.bin", "train.mask.bin", "val.mask.bin", "val.jsonl"])
@pytest.mark.parametrize("fault", DAMAGE)
def test_a_damaged_file_of_questions_is_named(
    facts: Path, pretrained: Path, refused: Callable, fault: str, name: str
) -> None:
    if (fault, name) == ("an endless file", "val.jsonl"):
        return  # refused for its hash, which takes 10 s
    DAMAGE[fault](facts / name)
    refused(train_model, tuning(facts, pretrained), facts / name, "prepare the data again")


@pytest.mark.parametrize("fault", ["cut at an odd byte", "gone", "a flipped byte"])
@pytest.mark.parametrize("name", ["test.bin", "test.mask.bin", "test.jsonl", "train.jsonl"])
def test_evaluation_refuses_damaged_data(
    facts: Path, tuned: Path, refused: Callable, fault: str, name: str
) -> None:
    DAMAGE[fault](facts / name)
    before = sorted(tuned.rglob("*"))
    refused(eval_metrics.main, [tuned, f"--data={facts}", "--threads=1"], facts / name)
    assert sorted(tuned.rglob("*")) == before


def test_swapped_files_are_named(book: Path, refused: Callable) -> None:
    (book / "train.bin").rename(book / "x")
    (book / "val.bin").rename(book / "train.bin")
    (book / "x").rename(book / "val.bin")
    refused(train_model, training(book), book / "train.bin")


def test_ids_beyond_the_vocabulary_are_refused_despite_a_valid_hash(
    book: Path, refused: Callable
) -> None:
    ids = np.fromfile(book / "train.bin", "<u2")
    for wrong in (512, 65_535):
        ids[len(ids) // 2] = wrong
        forged(book, "train.bin", ids.tobytes())
        refused(train_model, training(book), book / "train.bin", f"{wrong:,}", "smaller than 512")


def test_a_vocabulary_larger_than_the_tokenizers_is_refused(book: Path, refused: Callable) -> None:
    ids = np.fromfile(book / "train.bin", "<u2")
    forged(book, "train.bin", np.full_like(ids, 600).tobytes())
    edited(book, lambda meta: meta.update(vocab_size=1000))
    refused(train_model, training(book), book, "is not the tokenizer that made the data")


def test_forged_questions_are_refused(facts: Path, pretrained: Path, refused: Callable) -> None:
    ids, mask, jsonl = (
        (facts / f"val.{kind}").read_bytes() for kind in ("bin", "mask.bin", "jsonl")
    )
    forged(facts, "val.bin", b"\xff" * len(ids))
    refused(train_model, tuning(facts, pretrained), facts / "val.bin", "65,535")
    forged(facts, "val.bin", ids)
    forged(facts, "val.mask.bin", b"\7" * len(mask))
    refused(train_model, tuning(facts, pretrained), facts / "val.mask.bin")
    forged(facts, "val.mask.bin", mask)
    line = json.loads(jsonl.split(b"\n")[0])
    odd = [
        {**line, "question": None},
        {**line, "answer": 7},
        {**line, "row": -1},
        {**line, "rows": 10**9},
        {**line, "row": "0"},
        {**line, "messages": [1]},
    ]
    odd += [{**line, "messages": [{"role": "wizard", "content": "x"}] * 2}]
    odd += [{**line, "messages": []}, [line], 7, None]
    damaged = [b"{", b"\xff", b"[" * 200_000, b"9" * 5000, b'{"question": "a"}']
    for raw in [*(json.dumps(record).encode() for record in odd), *damaged]:
        forged(facts, "val.jsonl", raw)
        refused(
            train_model, tuning(facts, pretrained), facts / "val.jsonl", "prepare the data again"
        )


def test_another_tokenizer_is_refused(
    book: Path, facts: Path, pretrained: Path, text: str, tmp_path: Path, refused: Callable
) -> None:
    (tmp_path / "a.txt").write_text(text[:5000], encoding="utf-8")
    assert (
        prepare.main([str(tmp_path / "a.txt"), f"--out={tmp_path / 'other'}", "--vocab_size=300"])
        == 0
    )
    for folder, argv in ((book, training(book)), (facts, tuning(facts, pretrained))):
        shutil.copy(tmp_path / "other" / "tokenizer.json", folder)
        refused(train_model, argv, folder, "is not the tokenizer that made the data")


def test_text_shorter_than_a_block_is_refused(book: Path, refused: Callable) -> None:
    refused(
        train_model, training(book, "--block_size=50000"), "more than one block of 50,000 is needed"
    )


# ---------------------------------------------------------------- meta.json


def put(*path: str, value: object) -> Callable[[dict], None]:
    """A change of meta.json: sets this field to `value`, or removes it if that is `...`."""

    def change(meta: dict) -> None:
        *parents, last = path
        for step in parents:
            meta = meta[step]
        if value is ...:
            del meta[last]
        else:
            meta[last] = value

    return change


ODD = [None, "x", -1, 2.5, 10**30, True, [], {}, float("nan"), ...]
FIELDS = [("vocab_size",), ("splits",), ("tokenizer",), ("dtype",), ("format",), ("chapters",)]
FIELDS += [("splits", "train", "tokens"), ("splits", "val", "sha256")]
FIELDS += [("splits", "train", "characters")]
QUESTION_FIELDS = [("width",), ("turns",), ("labels",)]
QUESTION_FIELDS += [("splits", "train", "rows"), ("splits", "val", "pairs_sha256")]


@pytest.mark.parametrize("field", FIELDS, ids=".".join)
@pytest.mark.parametrize("value", ODD, ids=str)
def test_a_wrong_meta_is_named(
    book: Path, refused: Callable, field: tuple[str, ...], value: object
) -> None:
    if (field == ("chapters",) and value in ([], {})) or (field == ("format",) and value is True):
        return  # a book without chapters; to Python, True is 1
    edited(book, put(*field, value=value))
    refused(train_model, training(book), book)


@pytest.mark.parametrize("field", QUESTION_FIELDS, ids=".".join)
@pytest.mark.parametrize("value", ODD, ids=str)
def test_a_wrong_meta_of_questions_is_named(
    facts: Path, pretrained: Path, refused: Callable, field: tuple[str, ...], value: object
) -> None:
    if (field == ("labels",) and not value) or (field, value) == (("labels",), ...):
        return  # answers that are no closed set
    edited(facts, put(*field, value=value))
    refused(train_model, tuning(facts, pretrained), facts)


RAW = {
    "empty": b"",
    "torn": b'{"format"',
    "NUL": b"\0" * 100,
    "brackets": b"[" * 200_000,
    "digits": b'{"format": ' + b"9" * 5000 + b"}",
    "latin": b"\xe9",
}


@pytest.mark.parametrize("fault", [*RAW, "a pipe", "a device", "a folder", "an endless file"])
def test_a_meta_that_cannot_be_read_is_named(
    book: Path, refused: Callable, fault: str, little_memory: None
) -> None:
    if fault in RAW:
        (book / "meta.json").write_bytes(RAW[fault])
    else:
        DAMAGE[fault](book / "meta.json")
    refused(train_model, training(book), book)


def test_another_dtype_is_refused(book: Path, refused: Callable) -> None:
    for dtype in ("uint32", "float64", "<u2", "object"):
        edited(book, put("dtype", value=dtype))
        refused(train_model, training(book), book)


def test_a_newer_format_is_refused(book: Path, refused: Callable) -> None:
    edited(book, put("format", value=2))
    refused(train_model, training(book), book / "meta.json", "has format 2, this version reads 1")


def test_a_byte_order_mark_does_no_harm(book: Path, count_fault: Callable) -> None:
    count_fault("tried")
    (book / "meta.json").write_bytes(b"\xef\xbb\xbf" + (book / "meta.json").read_bytes())
    assert len(text_dataset.TextDataset(book, "train")) > 0
    count_fault("survived")


def test_a_split_name_that_is_a_path_is_neither_read_nor_removed(
    facts: Path, pretrained: Path, tmp_path: Path, refused: Callable
) -> None:
    for name in ("../mine", str(tmp_path / "mine")):
        edited(facts, lambda meta, name=name: meta["splits"].update({name: meta["splits"]["val"]}))
        (tmp_path / "mine.bin").write_bytes(b"precious")
        (tmp_path / "q.json").write_text(
            '[{"question": "谁？", "answer": "我。"}]', encoding="utf-8"
        )
        refused(
            eval_metrics.main, [pretrained, f"--data={facts}", "--split=all", "--threads=1"], facts
        )
        again = [f"--out={facts}", f"--tokenizer={pretrained}"]
        again += ["--val_fraction=0", "--test_fraction=0"]  # the splits before are removed
        assert prepare_sft.main([str(tmp_path / "q.json"), *again]) == 0
        assert (tmp_path / "mine.bin").read_bytes() == b"precious"


# ---------------------------------------------------------------- in mid-run


@pytest.mark.parametrize(
    "harm", [Path.unlink, lambda path: os.truncate(path, 0)], ids=["deleted", "cut"]
)
@pytest.mark.parametrize("kind", ["text", "questions"])
def test_a_run_survives_changes_to_files_that_fit_into_memory(
    book: Path,
    facts: Path,
    pretrained: Path,
    count_fault: Callable,
    harm: Callable,
    kind: str,
) -> None:
    count_fault("tried")
    folder, argv = (book, training(book)) if kind == "text" else (facts, tuning(facts, pretrained))

    def happen(step: int) -> None:
        if step == 0:
            for path in folder.glob("*.bin"):
                harm(path)

    assert train_model([str(word) for word in argv], before_steps(happen)) == 0
    count_fault("survived")


MAPPED = """
import os, sys
from pathlib import Path
from shuoshu.text import dataset
dataset.MAX_IN_MEMORY_BYTES = 0
data = dataset.TextDataset(Path(sys.argv[1]), "train")
before = data.rows(0, 200, 64, 1)[0]
os.truncate(data.path, 0) if sys.argv[2] == "cut" else data.path.unlink()
try:
    print((data.rows(0, 200, 64, 1)[0] == before).all())
except dataset.UserError as error:
    print(error)
"""


@pytest.mark.parametrize(
    "harm, expected", [("deleted", "True"), ("cut", "was cut while it was in use")]
)
def test_a_mapped_file_may_be_deleted_but_truncation_is_an_error(
    book: Path, count_fault: Callable, harm: str, expected: str
) -> None:
    count_fault("tried")
    done = subprocess.run(
        [sys.executable, "-c", MAPPED, book, harm], cwd=REPO_ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and expected in done.stdout, done
    count_fault("survived" if harm == "deleted" else "refused")


def test_copies_are_not_searched_in_a_changed_text(
    pretrained: Path, dataset: Path, count_fault: Callable
) -> None:
    count_fault("tried")
    path = dataset / "train.bin"
    whole = path.read_bytes()
    try:
        assert TrainingText.find(pretrained) is not None
        a_flipped_byte(path)
        assert TrainingText.find(pretrained) is None
    finally:
        path.write_bytes(whole)
    count_fault("refused")
