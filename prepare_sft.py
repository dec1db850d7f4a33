"""Prepares questions and answers for fine-tuning: writes token rows with their loss masks.

Reads .json, .jsonl, .csv and .tsv. The fields question/answer, instruction/input/output,
prompt/completion, messages and conversations are recognised. For other columns, --question and
--answer are templates with a {column} in braces. Answers that are a few short texts are labels.
With --passages=3 each question comes after passages of a book that speak of it.

python prepare_sft.py [FILE|FOLDER ...] [--out=FOLDER] [--tokenizer=FOLDER] [--key=value ...]
Without an input it prepares the bundled questions about the bundled novella.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from shuoshu.core.cli import command, parse
from shuoshu.core.command_settings import PrepareSftSettings


@command
def main(argv: Sequence[str]) -> None:
    settings = parse(PrepareSftSettings, argv, __doc__)
    from shuoshu.answering.reading_rows import message_writer
    from shuoshu.sft.prepare import prepare_sft

    prepare_sft(settings, message_writer)


if __name__ == "__main__":
    sys.exit(main())
