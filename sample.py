"""Generates text: continues --start, or answers it if the model is fine-tuned on questions.

A model that was trained on labels gives their probabilities instead.

python sample.py --start="…" [--out_dir=FOLDER] [--num_samples=3] [--key=value ...]
python sample.py --chat
python sample.py --in=questions.csv --out=answers.csv
python sample.py --in=unlabelled.csv --out=predictions.csv --out_dir=out-labels
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from shuoshu.core.cli import command, parse
from shuoshu.core.command_settings import SampleSettings
from shuoshu.core.errors import UserError
from shuoshu.core.out_dirs import newest_model


@command
def main(argv: Sequence[str]) -> int:
    settings = parse(SampleSettings, argv, __doc__)
    if (settings.infile is None) != (settings.outfile is None):
        raise UserError("--in=FILE and --out=FILE go together")
    if settings.infile and settings.start:
        raise UserError("--start and --in exclude each other")
    if settings.chat and (settings.infile or settings.start or settings.continue_text):
        raise UserError(
            "--chat reads its questions from the terminal: drop --start, --in and --continue_text"
        )
    out_dir = Path(settings.out_dir) if settings.out_dir else newest_model("sample.py --out_dir=")
    from shuoshu.answering.sample_command import run

    return run(settings, out_dir)


if __name__ == "__main__":
    sys.exit(main())
