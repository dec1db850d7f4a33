"""Safetensors files: written with a hash of their content, read one tensor at a time."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import typing
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from shuoshu.core.errors import UserError
from shuoshu.core.files import error_reason, open_file, read_json
from shuoshu.text.dataset import TASKS

SAFETENSORS_DTYPES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.uint8: "U8",
}
WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
HEADER_BYTES = 300  # of one tensor, at most
MAX_HEADER_BYTES = 1 << 24  # a longer header is a sign of damage
HASH_CHUNK_BYTES = 1 << 20  # of a file at a time
PIECE_NUMBERS = 1 << 20  # of a tensor at a time
MAX_NAME, MAX_DIMENSIONS = 200, 8  # of a tensor; messages show both
# What reading a damaged header can raise.
HEADER_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


# ---------------------------------------------------------------- writing


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """An upper bound of the size of a file of these tensors, in bytes."""
    return sum(t.numel() * t.element_size() + HEADER_BYTES for t in tensors)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """Writes and syncs a safetensors file; returns its sha256.

    Equal content gives equal bytes, unlike with safetensors' own writer, which shuffles the
    metadata. A sha256 of the header and the data is added to the metadata.
    """
    arrays = {name: t.detach().cpu().contiguous() for name, t in sorted(tensors.items())}
    raw = {name: t.reshape(-1).view(torch.uint8).numpy() for name, t in arrays.items()}
    header: dict[str, typing.Any] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0  # in the data, which follows the header
    for name, tensor in arrays.items():
        end = offset + raw[name].nbytes
        header[name] = {
            "dtype": SAFETENSORS_DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    digest = hashlib.sha256(json.dumps(header).encode())
    for piece in raw.values():
        digest.update(piece)
    header["__metadata__"]["sha256"] = digest.hexdigest()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data to 8 bytes
    file_digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in (len(text).to_bytes(8, "little") + text, *raw.values()):
            file.write(piece)
            file_digest.update(piece)
        file.flush()
        os.fsync(file.fileno())
    return file_digest.hexdigest()


# ---------------------------------------------------------------- reading


def read_header(file: typing.BinaryIO, size: int) -> dict:
    """The header of a safetensors file of `size` bytes; ValueError if it is damaged."""
    start = file.read(8)
    if start == b"version ":
        raise ValueError("it is a pointer of Git LFS; git lfs pull, run in its folder, fetches it")
    length = int.from_bytes(start, "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise ValueError("its header is cut off or missing")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return header


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a weights file, {} if another program wrote it.

    UserError if the file is damaged: the content of our files must match their sha256.
    """
    try:
        with open_file(path) as file:
            header = read_header(file, path.stat().st_size)
            metadata = _own_metadata(header)
            if not metadata:
                return {}
            expected = metadata.pop("sha256")
            digest = hashlib.sha256(json.dumps(header).encode())
            while chunk := file.read(HASH_CHUNK_BYTES):
                digest.update(chunk)
        if digest.hexdigest() != expected:
            raise ValueError("its content doesn't match its sha256")
        return metadata
    except HEADER_ERRORS as error:
        raise damaged_file(path, error) from None


def peek_metadata(path: Path) -> dict[str, str]:
    """The same metadata, without reading the weights that it describes."""
    try:
        with open_file(path) as file:
            return _own_metadata(read_header(file, path.stat().st_size))
    except HEADER_ERRORS as error:
        raise damaged_file(path, error) from None


def _own_metadata(header: dict) -> dict[str, str]:
    """The metadata in a header, {} if another program wrote it; ValueError if it is damaged."""
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict):
        raise ValueError("its metadata is no JSON object")
    if "sha256" not in metadata and "step" not in metadata:
        return {}
    for name in ("step", "turns", "passages"):
        if not re.fullmatch("[0-9]{1,15}", metadata.get(name, "0")):
            raise ValueError(f"its {name} are not a number")
    if metadata.get("task", "text") not in TASKS:
        raise ValueError("its task is none of text, questions and labels")
    if not isinstance(metadata.get("system", ""), str):
        raise ValueError("its system message is not a text")
    return metadata


def damaged_file(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is damaged or not a safetensors file: {error_reason(error)};"
        " copy it again, or train again"
    )


class StoredTensor(typing.NamedTuple):
    """A tensor in a file: its type, its shape and its place."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file

    def read(self, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor in its own type or another; ValueError if the file is cut off.

        It is read in pieces: a second copy of a whole tensor, or the pages of a memory map, would
        add to the memory of the process.
        """
        tensor = torch.empty(self.shape, dtype=dtype or self.dtype)
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for piece in tensor.view(-1).split(PIECE_NUMBERS):
                raw = bytearray(len(piece) * self.dtype.itemsize)
                if file.readinto(raw) != len(raw):
                    raise ValueError(f"{self.path.name} is cut off")
                piece.copy_(torch.frombuffer(raw, dtype=self.dtype))
        return tensor


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name; UserError if the file is damaged."""
    try:
        with open_file(path) as file:
            size = path.stat().st_size
            header = read_header(file, size)
            return _checked_tensors(path, header, file.tell(), size)
    except HEADER_ERRORS as error:
        raise damaged_file(path, error) from None


def _checked_tensors(path: Path, header: dict, begin: int, size: int) -> dict[str, StoredTensor]:
    """The tensors of a header, which ends at `begin`; ValueError unless they fill the file."""
    dtypes = {name: dtype for dtype, name in SAFETENSORS_DTYPES.items()}
    header.pop("__metadata__", None)
    tensors, spans = {}, []
    for name, entry in header.items():
        dtype, shape = entry["dtype"], entry["shape"]
        first, end = entry["data_offsets"]
        if len(name) > MAX_NAME or not name.isprintable() or len(shape) > MAX_DIMENSIONS:
            raise ValueError("a tensor has an impossible name or too many dimensions")
        if dtype not in dtypes:
            raise ValueError(f"{name} has the type {dtype!s:.20}, which is not supported")
        if not all(type(number) is int and number >= 0 for number in (*shape, first, end)):
            raise ValueError(f"{name} has an impossible shape or place")
        if end - first != math.prod(shape) * dtypes[dtype].itemsize:
            raise ValueError(f"{name} has a shape that doesn't fit its size")
        spans.append((first, end))
        tensors[name] = StoredTensor(path, dtypes[dtype], tuple(shape), begin + first)
    ends = [0, *(end for _, end in sorted(spans))]
    if [first for first, _ in sorted(spans)] != ends[:-1] or begin + ends[-1] != size:
        raise ValueError("its tensors overlap, leave gaps or don't end with the file")
    if not tensors:
        raise ValueError("it holds no tensors")
    return tensors


def folder_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a model folder with one weights file, or with an index and shards.

    ValueError if the shards aren't those of the index.
    """
    if (folder / WEIGHTS_FILE).exists():
        return stored_tensors(folder / WEIGHTS_FILE)
    tensors: dict[str, StoredTensor] = {}
    weight_map = read_weight_map(folder)
    for shard in sorted(set(weight_map.values())):
        for name, tensor in stored_tensors(folder / shard).items():
            if weight_map.get(name) != shard:
                raise ValueError(f"{shard} holds {name}, but {INDEX_FILE} doesn't say so")
            tensors[name] = tensor
    if missing := sorted(weight_map.keys() - tensors.keys()):
        raise ValueError(f"{weight_map[missing[0]]} lacks {missing[0]}")
    return tensors


def read_weight_map(folder: Path) -> dict[str, str]:
    """Which file of the folder holds each tensor, by the index; ValueError if it is unusable."""
    index = read_json(folder / INDEX_FILE)
    weight_map = index["weight_map"]
    for shard in set(weight_map.values()):
        if not re.fullmatch(r"[\w.-]+\.safetensors", shard):
            raise ValueError(
                f"{INDEX_FILE} names {shard[:60]!r}, no safetensors file of the folder"
            )
        if not (folder / shard).is_file():
            raise ValueError(f"{shard} is missing: {INDEX_FILE} names it")
    return weight_map


def weight_files(folder: Path) -> list[Path]:
    """The files with the folder's weights; ValueError or OSError if the index is unusable."""
    if (folder / WEIGHTS_FILE).exists():
        return [folder / WEIGHTS_FILE]
    return [folder / shard for shard in sorted(set(read_weight_map(folder).values()))]
