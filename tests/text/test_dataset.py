"""Token files: rows depend on (seed, number), epochs cover every token, damage is reported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuoshu.core.errors import UserError
from shuoshu.text import dataset
from shuoshu.text.data_folder import DatasetWriter
from shuoshu.text.dataset import TEXT_SPLITS, TextDataset, find_dataset, read_meta

TOKENS = {"train": 203, "val": 41}


def written(folder: Path, n_vocab: int = 1000, tokens: dict[str, int] = TOKENS) -> Path:
    """A data folder with the ids 0, 1, 2 … in both splits, val's shifted by 500."""
    fake = SimpleNamespace(
        n_vocab=n_vocab,
        end=n_vocab - 1,
        kind="fake",
        hash="0" * 64,
        data_files=lambda: {"tokenizer.json": "{}"},
    )
    with DatasetWriter(folder) as writer:
        writer.open(fake)
        for split, count in tokens.items():
            writer.add(
                split, np.arange(count, dtype=np.uint32) + 500 * (split == "val"), count, 3 * count
            )
        writer.finish([], {})
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("data") / "whole")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


# ---------------------------------------------------------------- rows


@given(data=st.data(), block_size=st.integers(1, 60), seed=st.integers(0, 2**40))
def test_rows_do_not_depend_on_how_they_are_grouped(
    folder: Path, data: st.DataObject, block_size: int, seed: int
) -> None:
    first, count = data.draw(st.integers(0, 1000)), data.draw(st.integers(1, 30))
    whole = TextDataset(folder, "train").rows(first, count, block_size, seed)
    cuts = sorted({0, count, *data.draw(st.lists(st.integers(0, count), max_size=6))})
    file = TextDataset(folder, "train")
    pieces = {
        (a, b): file.rows(first + a, b - a, block_size, seed)
        for a, b in data.draw(st.permutations(list(pairwise(cuts))))
    }
    for (a, b), piece in pieces.items():
        assert (piece[0] == whole[0][a:b]).all() and (piece[1] == whole[1][a:b]).all()


@given(block_size=st.integers(1, 203), seed=st.integers(0, 2**40), epoch=st.integers(0, 5))
def test_an_epoch_trains_every_token_once_except_less_than_a_block(
    folder: Path, block_size: int, seed: int, epoch: int
) -> None:
    file = TextDataset(folder, "train")
    windows = file.rows_per_epoch(block_size)
    ids, targets = file.rows(epoch * windows, windows, block_size, seed)
    for seen in (ids, targets):  # the token at position n is n
        positions, times = np.unique(seen, return_counts=True)
        assert (times == 1).all() and len(file) - len(positions) < block_size


@given(block_size=st.integers(2, 60), seed=st.integers(0, 2**40), row=st.integers(0, 500))
def test_targets_are_the_next_ids(folder: Path, block_size: int, seed: int, row: int) -> None:
    ids, targets = TextDataset(folder, "train").rows(row, 3, block_size, seed)
    assert ids.shape == targets.shape == (3, block_size) and ids.dtype == targets.dtype == np.int64
    assert (targets[:, :-1] == ids[:, 1:]).all()
    assert (targets == (ids + 1) % TOKENS["train"]).all()


def test_epochs_and_seeds_differ(folder: Path) -> None:
    file = TextDataset(folder, "train")
    windows = file.rows_per_epoch(8)
    epochs = [file.rows(n * windows, windows, 8, seed)[0] for n in range(3) for seed in (1, 2)]
    assert len({epoch.tobytes() for epoch in epochs}) == 6
    assert (
        len({tuple(sorted(epoch[:, 0])) for epoch in epochs}) > 1
    )  # other windows, not only another order


def test_the_windows_of_an_epoch_are_shuffled(folder: Path) -> None:
    file = TextDataset(folder, "train")
    starts = file.rows(0, file.rows_per_epoch(4), 4, 7)[0][:, 0]
    assert not (np.diff(starts) == 4).mean() > 0.3


def test_ids_of_two_and_of_four_bytes_are_read(tmp_path: Path) -> None:
    for n_vocab, width in ((1 << 16, 2), ((1 << 16) + 1, 4)):
        folder = written(tmp_path / str(width), n_vocab)
        assert (folder / "train.bin").stat().st_size == width * TOKENS["train"]
        assert TextDataset(folder, "train").tokens.tolist() == list(range(TOKENS["train"]))


def test_an_empty_split_has_no_tokens(tmp_path: Path) -> None:
    assert len(TextDataset(written(tmp_path / "d", tokens={"train": 9}), "val")) == 0


# ---------------------------------------------------------------- damaged files


@pytest.mark.parametrize("change", [-1, -2, -100, +1, +2])
def test_a_file_of_another_length_is_named(copy: Path, change: int) -> None:
    raw = (copy / "val.bin").read_bytes()
    (copy / "val.bin").write_bytes(raw[:change] if change < 0 else raw + bytes(change))
    assert len(TextDataset(copy, "train")) == TOKENS["train"]
    with pytest.raises(UserError, match=r"val\.bin has .* bytes instead of 82"):
        TextDataset(copy, "val")


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "train.bin").unlink()
    with pytest.raises(UserError, match=r"train\.bin is missing"):
        TextDataset(copy, "train")


@pytest.mark.parametrize("tokens", [TOKENS, {"train": 50, "val": 50}], ids=["unequal", "equal"])
def test_swapped_files_are_named(tmp_path: Path, tokens: dict[str, int]) -> None:
    folder = written(tmp_path / "d", tokens=tokens)
    (folder / "train.bin").rename(folder / "x")
    (folder / "val.bin").rename(folder / "train.bin")
    (folder / "x").rename(folder / "val.bin")
    for split in TEXT_SPLITS:
        with pytest.raises(UserError, match=rf"{split}\.bin"):
            TextDataset(folder, split)


def test_one_changed_bit_is_reported(copy: Path) -> None:
    raw = bytearray((copy / "train.bin").read_bytes())
    raw[100] ^= 1
    (copy / "train.bin").write_bytes(raw)
    with pytest.raises(UserError, match=r"train\.bin is not the file that meta\.json describes"):
        TextDataset(copy, "train")


@given(data=st.data())
def test_a_damaged_meta_is_reported(
    folder: Path, data: st.DataObject, damage: Callable, tmp_path_factory: pytest.TempPathFactory
) -> None:
    damaged = tmp_path_factory.getbasetemp() / "damaged-meta"
    shutil.copytree(folder, damaged, dirs_exist_ok=True)
    document = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    (damaged / "meta.json").write_text(json.dumps(damage(data, document)), encoding="utf-8")
    for split in TEXT_SPLITS:
        try:
            assert len(TextDataset(damaged, split)) == TOKENS[split]
        except UserError as error:
            assert "meta.json" in str(error) or f"{split}.bin" in str(error)


def lose_a_count(meta: dict) -> None:
    del meta["splits"]["train"]["characters"]


def spell_a_count(meta: dict) -> None:
    meta["splits"]["train"]["tokens"] = "203"


def unknown_count(meta: dict) -> None:
    meta["splits"]["train"]["tokens"] = None


def listed(meta: dict) -> None:
    meta["splits"] = list(meta["splits"].values())


def lose_the_width(meta: dict) -> None:
    del meta["dtype"]


@pytest.mark.parametrize(
    "harm", [lose_a_count, spell_a_count, unknown_count, listed, lose_the_width]
)
def test_a_meta_without_a_field_is_reported(copy: Path, harm: Callable[[dict], None]) -> None:
    meta = json.loads((copy / "meta.json").read_text(encoding="utf-8"))
    harm(meta)
    (copy / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    with pytest.raises(UserError, match=r"meta\.json"):
        TextDataset(copy, "train")


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000],
    ids=["empty", "torn", "list", "null", "no utf-8", "deep"],
)
def test_a_meta_that_is_not_an_object_is_reported(copy: Path, raw: bytes) -> None:
    (copy / "meta.json").write_bytes(raw)
    with pytest.raises(UserError, match=r"meta\.json can't be read"):
        read_meta(copy)


def test_another_format_is_reported(copy: Path) -> None:
    meta = json.loads((copy / "meta.json").read_text(encoding="utf-8"))
    (copy / "meta.json").write_text(
        json.dumps({**meta, "format": dataset.META_FORMAT + 1}), encoding="utf-8"
    )
    with pytest.raises(
        UserError,
        match=f"has format {dataset.META_FORMAT + 1}, this version reads {dataset.META_FORMAT}",
    ):
        read_meta(copy)


# ---------------------------------------------------------------- finding and writing folders


def test_a_dataset_is_found_by_name_or_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(Path("data/mine"))
    assert (
        find_dataset("mine").resolve()
        == find_dataset("data/mine").resolve()
        == find_dataset(str(tmp_path / "data" / "mine")).resolve()
        == tmp_path / "data" / "mine"
    )


def test_the_error_for_a_missing_dataset_says_how_to_make_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"python prepare\.py$"):
        find_dataset("novella")
    with pytest.raises(
        UserError,
        match=r"python prepare\.py YOUR_NOVEL\.txt --out=data.mine\n(?s:.*)python prepare_sft\.py YOURS\.json --out=data.mine$",
    ):
        find_dataset("mine")


def test_a_writer_that_fails_leaves_no_files(copy: Path) -> None:
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    fake = SimpleNamespace(
        n_vocab=9, end=8, kind="fake", hash="", data_files=lambda: {"tokenizer.json": "{}"}
    )
    with pytest.raises(ZeroDivisionError), DatasetWriter(copy) as writer:
        writer.open(fake)
        writer.add("train", np.arange(5))
        raise ZeroDivisionError
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_a_writer_that_fails_before_it_has_a_tokenizer_leaves_no_files(copy: Path) -> None:
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    with pytest.raises(ZeroDivisionError), DatasetWriter(copy) as writer:
        (writer.staging / "000000.txt").write_text("文\n", encoding="utf-8")  # a cleaned book
        raise ZeroDivisionError
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_a_writer_that_fails_removes_the_folders_it_made(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), DatasetWriter(tmp_path / "data" / "mine"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="can't write to"):
        written(tmp_path / "file")
