"""Merges an adapter into the model that it was trained on: writes one Hugging Face folder.

python merge.py OUT_DIR --out=FOLDER [--base=FOLDER] [--dtype=DTYPE]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from shuoshu.core.cli import command, parse
from shuoshu.core.command_settings import MergeSettings
from shuoshu.core.errors import UserError


@command
def main(argv: Sequence[str]) -> int:
    settings = parse(MergeSettings, argv, __doc__)
    if len(settings.out_dirs) != 1 or settings.out is None:
        raise UserError(
            "name the folder of one adapter, and a new one for the model:\n"
            "  python merge.py OUT_DIR --out=FOLDER"
        )
    from shuoshu.models.merge import merge

    return merge(Path(settings.out_dirs[0]), Path(settings.out), settings.base, settings.dtype)


if __name__ == "__main__":
    sys.exit(main())
