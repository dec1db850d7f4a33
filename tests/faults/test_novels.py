"""Files that are not novels: endless, binary, zip bombs, archives with hostile paths."""

from __future__ import annotations

import gzip
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import prepare
from shuoshu.text.tokenizer import SPECIALS
from shuoshu.text.tokenizer_folder import load_tokenizer


def zipped(
    members: dict[str, bytes], mode: int = 0o600, method: int = zipfile.ZIP_DEFLATED
) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", method) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = mode << 16, method
            archive.writestr(info, content)
    return raw.getvalue()


def flagged(raw: bytes, flag: int) -> bytes:
    """A zip whose members have this general-purpose flag: 1 says encrypted."""
    raw = bytearray(raw)
    for signature, at in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        raw[raw.index(signature) + at] |= flag
    return bytes(raw)


STORY = "第一回　渡口\n\n三更天，沈砚在渡口点起一盏油灯。\n" * 30
TXT = STORY.encode()
WHOLE = zipped({"a.txt": TXT})
REFUSED: dict[str, tuple[str, bytes, str]] = {
    "empty": ("a.txt", b"", "it is empty"),
    "blank": ("a.txt", b" \r\n\t\n" * 50, "it is empty"),
    "binary": ("a.txt", bytes(range(256)) * 200, "is not a text file"),
    "random": ("a.txt", np.random.default_rng(1).bytes(100_000), "is not a text file"),
    "NUL": ("a.txt", bytes(10_000), "NUL"),
    "half NUL": ("a.txt", TXT + bytes(3 * len(TXT)), ""),
    "an empty zip": ("a.zip", zipped({}), "holds no .txt file"),
    "a zip of other files": ("a.zip", zipped({"a.exe": b"MZ"}), "holds no .txt file"),
    "no zip": ("a.zip", b"PK\3\4" + bytes(500), "damaged"),
    "a cut zip": ("a.zip", WHOLE[:-30], "damaged"),
    "a changed zip": ("a.zip", WHOLE[:60] + b"\0\0\0\0" + WHOLE[64:], "damaged"),
    "an encrypted zip": ("a.zip", flagged(WHOLE, 1), "can't be opened"),
    "a link in a zip": (
        "a.zip",
        zipped({"a.txt": b"/etc/passwd"}, mode=0o120777),
        "holds no .txt file",
    ),
    "a zip bomb": ("a.zip", zipped({"a.txt": b"a" * 30_000_000}), "it unpacks to more than"),
    "a zip bomb in pieces": (
        "a.zip",
        zipped({f"{n}.txt": b"a" * 2_000_000 for n in range(20)}),
        "it unpacks to more than",
    ),
    "a gzip bomb": ("a.txt.gz", gzip.compress(b"a\n" * 15_000_000), "it unpacks to more than"),
    "bombs one after another": (
        "a.gz",
        gzip.compress(b"a\n" * 500_000) * 30,
        "it unpacks to more than",
    ),
    "no gzip": ("a.gz", b"hello", "damaged"),
    "a cut gzip": ("a.gz", gzip.compress(TXT)[:-9], "damaged"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_file_that_is_not_a_novel_is_refused(
    tmp_path: Path, fault: str, refused: Callable
) -> None:
    name, raw, expected = REFUSED[fault]
    (tmp_path / name).write_bytes(raw)
    refused(
        prepare.main,
        [tmp_path / name, f"--out={tmp_path / 'out'}"],
        tmp_path / name,
        expected,
        "nothing was written",
    )


@pytest.mark.parametrize("name", ["a.txt", "a.zip", "a.gz"])
@pytest.mark.parametrize("head", [b"", TXT])
def test_a_file_of_gigabytes_is_refused_with_little_memory(
    tmp_path: Path, name: str, head: bytes, refused: Callable, little_memory: None
) -> None:
    (tmp_path / name).write_bytes(head)
    os.truncate(tmp_path / name, 2 << 30)
    refused(prepare.main, [tmp_path / name, f"--out={tmp_path / 'out'}"], tmp_path / name)


def test_a_path_that_is_not_a_regular_file_is_refused(tmp_path: Path, refused: Callable) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    (tmp_path / "up").symlink_to(tmp_path)
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    out = f"--out={tmp_path / 'out'}"
    for path, expected in (
        ("pipe.txt", "pipe or a device"),
        ("zero.txt", "pipe or a device"),
        ("gone.txt", "no file or folder"),
        ("x" * 300, "x"),
    ):
        refused(prepare.main, [tmp_path / path, out], expected)
    refused(prepare.main, ["/dev/zero", out], "pipe or a device")
    refused(prepare.main, [tmp_path, out], "holds no .txt, .zip, .gz file")
    refused(prepare.main, [tmp_path / "loop.txt"], "loop.txt")
    refused(prepare.main, ["a\0b.txt", out], "not UTF-8")
    (tmp_path / "a.txt").write_bytes(TXT)
    refused(prepare.main, [tmp_path / "a.txt", f"--out={tmp_path / 'loop.txt'}"], "loop.txt")
    refused(prepare.main, [tmp_path / "a.txt", f"--out={tmp_path / 'a.txt'}"], "a.txt")
    refused(prepare.main, [tmp_path / "a.txt", out, "--encoding=rot13"], "rot13")
    refused(
        prepare.main,
        [tmp_path / "a.txt", out, f"--tokenizer={tmp_path}"],
        "there is no tokenizer in",
    )


def test_with_one_bad_file_nothing_is_written(tmp_path: Path, refused: Callable) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.txt").write_bytes(TXT)
    (tmp_path / "in" / "bad.txt").write_bytes(bytes(9999))
    out = tmp_path / "out"
    refused(prepare.main, [tmp_path / "in", f"--out={out}"], "bad.txt", "--skip_bad")
    assert (
        prepare.main([str(tmp_path / "in"), f"--out={out}", "--skip_bad", "--vocab_size=300"]) == 0
    )
    refused(prepare.main, [tmp_path / "in", f"--out={out}"], "bad.txt")  # and what is there stays


def test_paths_in_archives_are_not_followed(tmp_path: Path, count_fault: Callable) -> None:
    count_fault("tried")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.zip").write_bytes(
        zipped(
            {
                "../../up.txt": TXT,
                "/abs.txt": TXT,
                "C:\\win.txt": TXT,
                "d/../../e.txt": TXT,
                "\n.txt": TXT,
            }
        )
    )
    before = sorted(path.name for path in tmp_path.iterdir())
    assert (
        prepare.main([str(tmp_path / "in"), f"--out={tmp_path / 'out'}", "--vocab_size=300"]) == 0
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "out"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "meta.json",
        "tokenizer.json",
        "train.bin",
        "val.bin",
    ]
    count_fault("survived")


def test_a_file_name_that_is_not_utf8_is_read(tmp_path: Path, count_fault: Callable) -> None:
    count_fault("tried")
    (tmp_path / "in").mkdir()
    with open(os.fsencode(tmp_path / "in") + b"/" + "雨夜.txt".encode("gb18030"), "wb") as file:  # noqa: PTH123
        file.write(TXT)
    assert (
        prepare.main([str(tmp_path / "in"), f"--out={tmp_path / 'out'}", "--vocab_size=300"]) == 0
    )
    [book] = json.loads((tmp_path / "out" / "meta.json").read_text(encoding="utf-8"))["books"]
    assert "�" in book["title"]
    count_fault("survived")


def test_special_tokens_spelled_out_are_plain_text(tmp_path: Path, count_fault: Callable) -> None:
    count_fault("tried")
    spelt = "".join(SPECIALS)
    text = f"第一回　{spelt}\n\n" + f"沈砚说：“{spelt}”{spelt}。\n" * 30
    (tmp_path / "a.zip").write_bytes(zipped({f"{spelt}.txt": text.encode()}))
    for kind in ("bpe", "chars"):
        out = tmp_path / kind
        assert (
            prepare.main(
                [str(tmp_path / "a.zip"), f"--out={out}", f"--tokenizer={kind}", "--val_fraction=0"]
            )
            == 0
        )
        tokenizer, ids = load_tokenizer(out), np.fromfile(out / "train.bin", "<u2")
        special = np.isin(ids, list(tokenizer.specials.values()))
        assert special.sum() == 1 and ids[-1] == tokenizer.end
        assert tokenizer.decode(ids[:-1].tolist()).count(spelt) == 61
    count_fault("survived")
