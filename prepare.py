"""Prepares novels for training: writes train.bin, val.bin, tokenizer.json and meta.json.

Reads .txt, .zip and .gz in UTF-8, GB18030, Big5, UTF-16 or Windows-1252. Removes what isn't part of
the story, and reports what it removed.

python prepare.py [FILE|FOLDER ...] [--out=FOLDER] [--tokenizer=bpe|chars|gpt2] [--key=value ...]
Without an input it prepares the bundled novella.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from shuoshu.core.cli import command, parse
from shuoshu.core.command_settings import PrepareSettings


@command
def main(argv: Sequence[str]) -> None:
    settings = parse(PrepareSettings, argv, __doc__)
    from shuoshu.text.prepare import prepare

    prepare(settings)


if __name__ == "__main__":
    sys.exit(main())
