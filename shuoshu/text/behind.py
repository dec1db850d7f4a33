"""Finds the data folder of the text that a model was pretrained on."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from shuoshu.core.errors import UserError
from shuoshu.core.run_log import read_settings
from shuoshu.text.dataset import read_meta

MAX_INIT_FROM = 8  # steps from a fine-tuned model back to the pretrained one


def find_text_folder(out_dir: Path) -> Path | None:
    """The folder of the text behind a model, or behind the model that it was fine-tuned from.

    None if the folder is missing or its text has changed since.
    """
    # UserError: the folder now holds something else; OSError: its path is impossible.
    with suppress(UserError, OSError):
        for _ in range(MAX_INIT_FROM):
            saved = read_settings(out_dir)
            folder = Path(str(saved.get("data", {}).get("folder")))
            if (folder / "meta.json").is_file():
                meta = read_meta(folder)
                if meta["task"] == "text":
                    is_same = meta["splits"]["train"]["sha256"] == saved["data"].get("train")
                    return folder if is_same else None
            init_from = saved.get("settings", {}).get("init_from", "scratch")
            if init_from == "scratch":
                return None
            out_dir = Path(str(init_from))
    return None
