"""Where trained models are: folders with a model.safetensors and its config.json."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from shuoshu.core.errors import UserError

DEFAULT_FOLDERS = ("out-sft", "out-pretrain")  # what config/sft.py and config/pretrain.py write


def find_models() -> list[Path]:
    """The out-* folders here that hold a model, the newest first; UserError if there is none."""
    folders = _newest_first(Path().glob("out-*"))
    if not folders:
        raise no_model_error("any out-… folder here")
    return folders


def newest_model() -> Path:
    """The newer of out-sft and out-pretrain; UserError if neither holds a model."""
    folders = _newest_first(map(Path, DEFAULT_FOLDERS))
    if not folders:
        raise no_model_error(" or ".join(DEFAULT_FOLDERS))
    return folders[0]


def require_model(folder: Path) -> None:
    """UserError if the folder holds no trained model."""
    if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
        raise no_model_error(str(folder), f" --out_dir={folder}")


def no_model_error(place: str, flags: str = "") -> UserError:
    """The error to raise; `flags` are added to the command that trains."""
    return UserError(
        f"there is no trained model in {place}: train one with\n"
        f"  python prepare.py\n  python train.py{flags}"
    )


def _newest_first(folders: Iterable[Path]) -> list[Path]:
    weights = [path for folder in folders if (path := folder / "model.safetensors").is_file()]
    return [path.parent for path in sorted(weights, key=lambda path: -path.stat().st_mtime)]
