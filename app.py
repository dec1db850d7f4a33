"""A page in the browser: ask the book, continue the story, compare models, look inside, see how training went.

python app.py [OUT_DIR ...] [--host=ADDRESS --auth=USER:PASSWORD] [--port=N]
Without OUT_DIR it shows every out-… folder here that holds a model.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from shuoshu.core.cli import command, parse
from shuoshu.core.errors import UserError
from shuoshu.core.settings import AppSettings


@command
def main(argv: Sequence[str]) -> int:
    settings = parse(AppSettings, argv, __doc__)
    folders = [Path(name) for name in settings.out_dirs] or models_here()
    for folder in folders:
        if not (folder / "model.safetensors").is_file():
            raise UserError(
                f"there is no trained model in {folder}: train one with\n  python train.py --out_dir={folder}"
            )
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads these when it is imported
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        from shuoshu.web.server import serve
    except ImportError as error:
        raise UserError(
            f"the page needs what is not installed here ({error}): pip install -r requirements.txt"
        ) from None
    return serve(settings, folders)


def models_here() -> list[Path]:
    """The out-… folders with a model, the newest first."""
    found = sorted(Path().glob("out-*/model.safetensors"), key=lambda path: -path.stat().st_mtime)
    if not found:
        raise UserError(
            "there is no model in any out-… folder here: make one with\n  python prepare.py\n  python train.py\nor name its folder"
        )
    return [path.parent for path in found]


if __name__ == "__main__":
    sys.exit(main())
