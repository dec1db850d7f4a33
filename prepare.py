"""Novels in, tokens out: data/<name>/{train,val}.bin, tokenizer.json and meta.json.

Reads .txt, .zip and .gz in any usual encoding, and takes out what doesn't belong to the story, with an account of it.

python prepare.py [FILE|FOLDER ...] [--out=data/<name>] [--tokenizer=bpe|chars|gpt2|FOLDER] [--key=value ...]
With no input it prepares the bundled novella.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from shuoshu.core.cli import command, parse
from shuoshu.core.settings import PrepareSettings


@command
def main(argv: Sequence[str]) -> None:
    settings = parse(PrepareSettings, argv, __doc__)
    from shuoshu.text.prepare import prepare

    prepare(settings)


if __name__ == "__main__":
    sys.exit(main())
