"""Fuzzing: any file is read or refused with a UserError.

There is never another exception, and never a wrong result from a file with a right checksum.
`pytest tests/faults/test_fuzz.py --long` takes minutes instead of seconds.
"""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shuoshu.core import run_log
from shuoshu.core.cli import parse
from shuoshu.core.command_settings import (
    EvalSettings,
    PrepareSettings,
    PrepareSftSettings,
    SampleSettings,
)
from shuoshu.core.errors import UserError
from shuoshu.core.run_log import read_settings
from shuoshu.core.settings import TrainSettings
from shuoshu.evaluation.copies import TrainingText
from shuoshu.generation import prompt_files
from shuoshu.generation.answers import read_questions
from shuoshu.models import weights
from shuoshu.sft.conversations import parse_pairs
from shuoshu.sft.dataset import QuestionDataset
from shuoshu.sft.pairs import Pair
from shuoshu.text import dataset as text_dataset
from shuoshu.text.books import read_books
from shuoshu.text.tokenizer import Tokenizer
from shuoshu.text.tokenizer_folder import load_tokenizer
from shuoshu.training import checkpoints, plots
from tests.faults.test_models import PARTS, taken_apart, written
from tests.faults.test_novels import TXT, zipped
from train import saved_settings

IS_LONG = "--long" in sys.argv
pytestmark = [pytest.mark.slow] if IS_LONG else []  # no time limit


def fuzz(examples: int) -> settings:
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    quiet += [HealthCheck.data_too_large, HealthCheck.large_base_example]
    return settings(
        max_examples=examples * (15 if IS_LONG else 1), deadline=None, suppress_health_check=quiet
    )


@pytest.fixture
def survives_or_refuses(count_fault: Callable[[str], None]) -> Callable:
    """A context that counts success as survived and a UserError as refused."""

    @contextmanager
    def around() -> Iterator[None]:
        count_fault("tried")
        try:
            yield
        except UserError as error:
            assert 0 < len(str(error)) < 20_000
            count_fault("refused")
        else:
            count_fault("survived")

    return around


JUNK = [b"\0", b"\xff", b"[" * 2000, b"9" * 4400, b'"', b"\\ud800", b"NaN", b"-1", b"1e999"]


def hurt_bytes(data: st.DataObject, raw: bytes) -> bytes:
    """The bytes with some of them changed, removed, doubled or inserted."""
    made = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(made) - 1)))
        length = data.draw(st.sampled_from([1, 1, 2, 5, 50]))
        junk = st.binary(max_size=4) | st.sampled_from([*JUNK, bytes(made[at : at + length])])
        made[at : at + data.draw(st.sampled_from([0, length]))] = data.draw(junk)
    return bytes(made)


def hurt_json(data: st.DataObject, damage: Callable, document: object) -> bytes:
    """The document as JSON, with a value or some bytes changed."""
    if data.draw(st.booleans()):
        return json.dumps(damage(data, document)).encode()
    return hurt_bytes(data, json.dumps(document).encode())


# ---------------------------------------------------------------- settings

KEYS = ["n_layer", "seed", "dropout", "dataset", "compile", "out_dir", "max_iters", "resume"]
KEYS += ["unknown", "_hidden", "n-head", "in", "chat", "start", "inputs"]
VALUES = ["1", "-1", "2.5", "'x'", "''", "None", "True", "nan", "1e999", "9" * 30, "'\\ud800'"]
VALUES += ["'\\0'", "[]", "(1,)", "{}", "x", "0x10", "1_0", "１", "é", "\0"]
SIGNS = ["=", "==", "\n", "\n  ", "(", ")", "+", "-", "if "]
SIGNS += ["else ", "lambda: ", "import math", "math.inf", "#", "'''", ":", ";", "@"]
WORDS = st.sampled_from([*KEYS, *VALUES, *SIGNS])


@fuzz(200)
@given(source=st.lists(WORDS, max_size=12).map("".join).map(str.encode) | st.binary(max_size=40))
def test_any_config_file(tmp_path: Path, survives_or_refuses: Callable, source: bytes) -> None:
    (tmp_path / "config.py").write_bytes(source)
    with survives_or_refuses():
        parse(TrainSettings, [str(tmp_path / "config.py")], "")


@fuzz(200)
@given(
    cls=st.sampled_from(
        [TrainSettings, PrepareSettings, PrepareSftSettings, SampleSettings, EvalSettings]
    ),
    argv=st.lists(
        st.text(max_size=8)
        | st.builds(
            "{}{}{}{}".format,
            st.sampled_from(["--", "-", ""]),
            st.sampled_from(KEYS),
            st.sampled_from(["=", " ", ""]),
            st.sampled_from(VALUES),
        )
    ),
)
def test_any_command_line(survives_or_refuses: Callable, cls: type, argv: list[str]) -> None:
    with survives_or_refuses():
        try:
            parse(cls, argv, "")
        except SystemExit as end:
            assert end.code == 0 and {"--help", "-h"} & set(argv)


@fuzz(100)
@given(data=st.data())
def test_any_saved_settings(
    pretrained: Path,
    tmp_path: Path,
    damage: Callable,
    survives_or_refuses: Callable,
    data: st.DataObject,
) -> None:
    saved = json.loads((pretrained / "settings.json").read_text(encoding="utf-8"))
    (tmp_path / "settings.json").write_bytes(hurt_json(data, damage, saved))
    read_settings(tmp_path)
    with survives_or_refuses():
        parse(TrainSettings, [], "", base=saved_settings(tmp_path))
    with survives_or_refuses():
        TrainingText.find(tmp_path)


# ---------------------------------------------------------------- questions and prompts

CONVERSATION = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
RECORDS = [
    {"question": "谁？", "answer": "我。", "n": 1, "split": "train"},
    {"question": "何时？", "answer": "三更天。", "n": 2.5, "split": "val"},
    {"messages": CONVERSATION, "system": "s", "history": [["a", "b"]]},
]
TABLE = 'question,answer,n\r\n谁？,我。,1\r\n"a\nb","c""d",2\r\n'


def check_pairs(pairs: list[Pair], tokenizer: Tokenizer) -> None:
    for pair in pairs:
        values = [pair.messages, pair.extra, pair.source, pair.group]
        json.dumps(values, ensure_ascii=False, allow_nan=False).encode()
        ids, mask = tokenizer.render(pair.messages)
        special = sum(i in tokenizer.specials.values() for i in ids)
        answers = sum(m["role"] == "assistant" for m in pair.messages)
        assert special == len(pair.messages) + answers and mask[-1] == 1


@fuzz(300)
@given(data=st.data(), kind=st.sampled_from(["json", "jsonl", "csv", "tsv"]))
def test_any_file_of_questions(
    tmp_path: Path,
    tokenizer: Tokenizer,
    damage: Callable,
    survives_or_refuses: Callable,
    data: st.DataObject,
    kind: str,
) -> None:
    records = damage(data, RECORDS) if data.draw(st.booleans()) else RECORDS
    lines = "\n".join(
        json.dumps(record) for record in (records if isinstance(records, list) else [records])
    )
    raw = (json.dumps(records) if kind == "json" else lines if kind == "jsonl" else TABLE).encode()
    path = tmp_path / f"a.{kind}"
    path.write_bytes(hurt_bytes(data, raw) if data.draw(st.booleans()) else raw)
    with survives_or_refuses():
        check_pairs(parse_pairs([path], PrepareSftSettings())[0], tokenizer)


@fuzz(150)
@given(data=st.data(), kind=st.sampled_from(["txt", "jsonl", "csv"]))
def test_any_file_of_prompts(
    tmp_path: Path,
    tokenizer: Tokenizer,
    survives_or_refuses: Callable,
    data: st.DataObject,
    kind: str,
) -> None:
    raw = {
        "txt": "清晨，\n黄昏，",
        "jsonl": '{"prompt": "a"}\n{"prompt": "b", "n": [1]}',
        "csv": 'prompt,n\n"a\n""b",1\nc,2\n',
    }[kind].encode()
    (tmp_path / f"a.{kind}").write_bytes(hurt_bytes(data, raw))
    with survives_or_refuses():
        file = prompt_files.read_prompts(tmp_path / f"a.{kind}")
        for prompt in file.prompts:
            tokenizer.encode(prompt or "")
        for suffix, write in prompt_files.WRITERS.items():
            write(tmp_path / f"out{suffix}", file.rows)
            (tmp_path / f"out{suffix}").read_text(encoding="utf-8")


# ---------------------------------------------------------------- novels


@fuzz(200)
@given(data=st.data(), suffix=st.sampled_from([".txt", ".zip", ".gz"]))
def test_any_novel(
    tmp_path: Path, survives_or_refuses: Callable, data: st.DataObject, suffix: str
) -> None:
    text = data.draw(
        st.sampled_from(
            [TXT[:690], TXT[:690].decode().encode("gb18030"), TXT[:690].decode().encode("utf-16")]
        )
        | st.binary(max_size=200)
    )
    raw = {".txt": text, ".zip": zipped({"a.txt": text}), ".gz": gzip.compress(text)}[suffix]
    (tmp_path / f"a{suffix}").write_bytes(
        hurt_bytes(data, raw) if data.draw(st.booleans()) else raw
    )
    with survives_or_refuses():
        books, bad = read_books([tmp_path / f"a{suffix}"], tmp_path)
        for book in books:
            book.cut(0.1)
            kept = "".join(section.text for _, section in book.splits())
            assert len(kept) == book.characters == book.account.kept and kept.encode()
            json.dumps([book.title, book.source], ensure_ascii=False).encode()
        assert bool(books) != bool(bad)
        if bad:
            raise UserError(bad[0][1])


# ---------------------------------------------------------------- data, models, checkpoints


@fuzz(250)
@given(data=st.data(), of_rows=st.booleans())
def test_any_meta(
    dataset: Path,
    qa: Path,
    tokenizer: Tokenizer,
    tmp_path: Path,
    damage: Callable,
    survives_or_refuses: Callable,
    data: st.DataObject,
    of_rows: bool,
) -> None:
    whole, folder = qa if of_rows else dataset, tmp_path / "data"
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    right = json.loads((whole / "meta.json").read_text(encoding="utf-8"))
    (folder / "meta.json").write_bytes(hurt_json(data, damage, right))
    with survives_or_refuses():
        meta = text_dataset.read_meta(folder)
        text_dataset.check_tokenizer(load_tokenizer(folder), meta, "another tokenizer")
        if "width" in meta:
            made = QuestionDataset(folder, "train").rows(0, 8, 64, 1)
            assert (made[0] == QuestionDataset(qa, "train").rows(0, 8, 64, 1)[0]).all()
            read_questions(folder, "val", tokenizer)
        else:
            assert (
                text_dataset.TextDataset(folder, "train").rows(0, 8, 64, 1)[0]
                == text_dataset.TextDataset(dataset, "train").rows(0, 8, 64, 1)[0]
            ).all()
            TrainingText(folder).find_copies(["三更天，沈砚在渡口"])


@fuzz(200)
@given(data=st.data())
def test_any_header_of_weights(
    pretrained: Path,
    tmp_path: Path,
    damage: Callable,
    survives_or_refuses: Callable,
    data: st.DataObject,
) -> None:
    shutil.copytree(
        pretrained,
        tmp_path / "model",
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("checkpoints"),
    )
    path = tmp_path / "model" / "model.safetensors"
    header, body = taken_apart(path)
    path.write_bytes((pretrained / "model.safetensors").read_bytes())
    is_forged = data.draw(st.booleans())
    if is_forged:
        forged = damage(data, header)
        try:
            written(path, forged, body)
        except (AttributeError, TypeError):  # it can't be sealed
            written(path, json.dumps(forged).encode(), body, sealed=False)
    else:
        path.write_bytes(hurt_bytes(data, path.read_bytes()))
    with survives_or_refuses():
        loaded = weights.load_model(tmp_path / "model")
        if not is_forged:
            right = weights.load_model(pretrained).model.tensors()
            assert all(
                torch.equal(tensor, right[name]) for name, tensor in loaded.model.tensors().items()
            )


@fuzz(60)
@given(data=st.data(), name=st.sampled_from(["tokenizer.json", "config.json"]))
def test_any_tokenizer_and_any_config(
    pretrained: Path,
    tmp_path: Path,
    damage: Callable,
    survives_or_refuses: Callable,
    data: st.DataObject,
    name: str,
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(
        pretrained, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("checkpoints")
    )
    document = json.loads((pretrained / name).read_bytes())
    (folder / name).write_bytes(hurt_json(data, damage, document))
    with survives_or_refuses():
        loaded, right = weights.load_model(folder), weights.load_model(pretrained)
        assert loaded.tokenizer.hash == right.tokenizer.hash
        ids = torch.arange(min(40, loaded.model.config.block_size))[None]
        assert torch.equal(loaded.model(ids), right.model(ids))
    (folder / "model.safetensors").unlink()
    with survives_or_refuses():  # without weights to compare with
        tokenizer = load_tokenizer(folder)
        assert (
            tokenizer.decode(tokenizer.encode("雨夜，<|endoftext|> x")) == "雨夜，<|endoftext|> x"
        )


@fuzz(100)
@given(data=st.data(), name=st.sampled_from(PARTS))
def test_any_checkpoint(
    pretrained: Path,
    tmp_path: Path,
    damage: Callable,
    data: st.DataObject,
    name: str,
    count_fault: Callable,
) -> None:
    shutil.copytree(pretrained / "checkpoints", tmp_path / "checkpoints", dirs_exist_ok=True)
    folder, raw = (
        tmp_path / "checkpoints" / "step-000150",
        (pretrained / "checkpoints" / "step-000150" / name).read_bytes(),
    )
    is_json = name.endswith("json") and data.draw(st.booleans())
    (folder / name).write_bytes(
        json.dumps(damage(data, json.loads(raw))).encode() if is_json else hurt_bytes(data, raw)
    )
    count_fault("tried")
    used, problems = checkpoints.newest_checkpoint(tmp_path)
    assert used is not None and len(problems) == (used != folder)
    assert used != folder or (folder / name).read_bytes() == raw or name == "manifest.json"
    checkpoints.load_checkpoint(used)
    count_fault("survived" if used == folder else "refused")


@fuzz(100)
@given(data=st.data())
def test_any_log(
    pretrained: Path, tmp_path: Path, damage: Callable, data: st.DataObject, count_fault: Callable
) -> None:
    lines = (pretrained / "log.jsonl").read_bytes().split(b"\n")
    number = data.draw(st.integers(0, len(lines) - 2))
    lines[number] = hurt_json(data, damage, json.loads(lines[number]))
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(lines))
    draws = data.draw(st.integers(0, 19)) == 0  # takes long
    count_fault("tried")
    log = run_log.RunLog(tmp_path / "log.jsonl")
    log.rewind(100, 100)
    plots.write_samples(log, tmp_path / "samples.md")
    if draws:
        plots.draw_curves(log, tmp_path / "loss.png")
    count_fault("survived")
