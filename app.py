"""Serves a page in the browser: ask questions, continue stories, compare models, see the training.

python app.py [OUT_DIR ...] [--host=ADDRESS --auth=USER:PASSWORD] [--port=N]
Without OUT_DIR it shows every out-… folder here that holds a model.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from shuoshu.core.cli import command, parse
from shuoshu.core.command_settings import AppSettings
from shuoshu.core.errors import UserError
from shuoshu.core.out_dirs import find_models, require_model


@command
def main(argv: Sequence[str]) -> int:
    settings = parse(AppSettings, argv, __doc__)
    folders = [Path(name) for name in settings.out_dirs] or find_models()
    for folder in folders:
        require_model(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads these when it is imported
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        from shuoshu.web.server import serve
    except ImportError as error:
        raise UserError(
            f"the page needs a package that is not installed ({error}):"
            " pip install -r requirements.txt"
        ) from None
    return serve(settings, folders)


if __name__ == "__main__":
    sys.exit(main())
