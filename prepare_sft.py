"""Questions and answers in, rows of tokens with their mask out: data/<name>/{train,val,test}.bin, .mask.bin, .jsonl and meta.json.

Reads .json, .jsonl, .csv and .tsv with question/answer, instruction/input/output, prompt/completion, messages or conversations;
of anything else --question and --answer say how its columns are put, {column} by {column}.

python prepare_sft.py [FILE|FOLDER ...] [--out=data/<name>] [--tokenizer=out-pretrain] [--key=value ...]
With no input it prepares the bundled questions about the bundled novella.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from shuoshu.core.cli import command, parse
from shuoshu.core.settings import PrepareSftSettings


@command
def main(argv: Sequence[str]) -> None:
    settings = parse(PrepareSftSettings, argv, __doc__)
    from shuoshu.sft.prepare import prepare_sft

    prepare_sft(settings)


if __name__ == "__main__":
    sys.exit(main())
