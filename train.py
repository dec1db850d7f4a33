"""Trains a GPT: pretraining on novels, or fine-tuning on questions and answers.

python train.py [config/FILE.py ...] [--key=value ...]
Without a config it does what config/pretrain.py says. Later configs and the command line win.
--resume goes on with the run in --out_dir, with the settings that it began with and what the command line changes.
The loop itself is in shuoshu/loop.py.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from shuoshu.core.cli import command, parse
from shuoshu.core.errors import UserError
from shuoshu.core.files import error_reason, read_json
from shuoshu.core.settings import TrainSettings


@command
def main(argv: Sequence[str]) -> int:
    settings = parse(TrainSettings, argv, __doc__, default_config="config/pretrain.py")
    if settings.resume and (saved := saved_settings(Path(settings.out_dir))):
        settings = parse(
            TrainSettings, argv, __doc__, base=saved
        )  # the config files as they were when the run began
    from shuoshu.training.loop import train

    return train(settings)


def saved_settings(out_dir: Path) -> dict | None:
    """What the run in this folder was started with."""
    path = out_dir / "settings.json"
    if not path.is_file():
        return None
    try:
        settings = read_json(path)["settings"]
        return {
            **settings,
            "out_dir": str(out_dir),
            "resume": False,
            "overwrite": False,
            "dry_run": False,
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error_reason(error)}): remove it, and give --resume the settings that the run began with"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
