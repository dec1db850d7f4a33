"""Text from a model: continues --start, streaming.

python sample.py --start="…" [--out_dir=FOLDER] [--num_samples=3] [--key=value ...]
python sample.py --in=prompts.csv --out=continued.csv
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from shuoshu.commandline import UserError, command, parse
from shuoshu.settings import SampleSettings


@command
def main(argv: Sequence[str]) -> int:
    settings = parse(SampleSettings, argv, __doc__)
    if (settings.infile is None) != (settings.outfile is None):
        raise UserError("--in=FILE and --out=FILE go together")
    if settings.infile and settings.start:
        raise UserError("--start and --in exclude each other")
    out_dir = Path(settings.out_dir) if settings.out_dir else newest_out_dir()
    from shuoshu.prompts import continue_prompts  # torch takes seconds to import: not before the settings are known to be right

    return continue_prompts(settings, out_dir)


def newest_out_dir() -> Path:
    """The model that was trained last."""
    found = [path for name in ("out-sft", "out-pretrain") if (path := Path(name) / "model.safetensors").is_file()]
    if not found:
        raise UserError("there is no model in out-sft or out-pretrain: train one with\n  python train.py\nor name its folder with --out_dir")
    return max(found, key=lambda path: path.stat().st_mtime).parent


if __name__ == "__main__":
    sys.exit(main())
