"""Trains a GPT: pretraining on novels, or fine-tuning on questions and answers.

python train.py [config/FILE.py ...] [--key=value ...]
Without a config it reads config/pretrain.py. Later configs override earlier ones, and the command
line overrides all. --resume continues the run in --out_dir with its settings; settings on the
command line override them. The training loop is in shuoshu/training/loop.py.
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
    settings = parse_settings(argv)
    from shuoshu.training.loop import train

    return train(settings)


def parse_settings(argv: Sequence[str]) -> TrainSettings:
    """The settings of the run that `argv` describes; UserError lists every mistake."""
    settings = parse(TrainSettings, argv, __doc__, default_config="config/pretrain.py")
    if settings.resume and (saved := saved_settings(Path(settings.out_dir))):
        # The saved settings replace the config files, which may have changed since the run began.
        settings = parse(TrainSettings, argv, __doc__, base=saved)
    return settings


def saved_settings(out_dir: Path) -> dict | None:
    """The settings of the run in this folder; None without a settings.json."""
    path = out_dir / "settings.json"
    if not path.is_file():
        return None
    switches = {"resume": False, "overwrite": False, "dry_run": False}
    try:
        return {**read_json(path)["settings"], "out_dir": str(out_dir), **switches}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error_reason(error)}): remove it, and repeat the run's settings"
            " together with --resume"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
