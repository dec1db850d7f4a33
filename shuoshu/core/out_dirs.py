"""Trained models and prepared data in the working folder, and the commands that messages name."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

from shuoshu.core.errors import UserError
from shuoshu.core.files import error_reason, read_json, same_path

DEFAULT_FOLDERS = ("out-sft", "out-pretrain")  # what config/sft.py and config/pretrain.py write
BUNDLED_OUT_DIRS = {"novella": "out-pretrain", "novella_qa": "out-sft"}  # by dataset
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MODEL_MARKS = ("config.json", "model.safetensors", ADAPTER_CONFIG, ADAPTER_WEIGHTS, "checkpoints")
# What a folder of a model has: a file that says what it is, and weights or their index.
MODEL_FILES = (
    ("config.json", "model.safetensors"),
    ("config.json", "model.safetensors.index.json"),
    (ADAPTER_CONFIG, ADAPTER_WEIGHTS),
)
# Weights that are not read: most may carry code, some are quantised.
OTHER_WEIGHTS = ("pytorch_model*.bin*", "*.pth", "*.pt", "*.ckpt", "*.gguf", "*.h5", "*.msgpack")
MAX_MODELS_SHOWN = 5


def flag(name: str, value: object) -> str:
    """--name=value as it must be typed into a shell."""
    return shlex.quote(f"--{name}={value}")


# ---------------------------------------------------------------- trained models


def find_models() -> list[Path]:
    """The out-* folders here that hold a model, the newest first; UserError if there is none."""
    folders = _newest_first(Path().glob("out-*"))
    if not folders:
        raise _no_model_error("any out-… folder here", "app.py ")
    return folders


def newest_model(command: str) -> Path:
    """The newer of out-sft and out-pretrain.

    If neither holds a model, the UserError proposes `command`, completed by another model's folder.
    """
    folders = _newest_first(map(Path, DEFAULT_FOLDERS))
    if not folders:
        raise _no_model_error(" or ".join(DEFAULT_FOLDERS), command)
    return folders[0]


def holds_model(folder: Path) -> bool:
    """Whether the folder has a model or an adapter: weights and what describes them."""
    return weights_path(folder) is not None


def holds_adapter(folder: Path) -> bool:
    """Whether the folder has an adapter, which needs its base, instead of a model."""
    path = weights_path(folder)
    return path is not None and path.name == ADAPTER_WEIGHTS


def weights_path(folder: Path) -> Path | None:
    """The folder's file of weights, or their index; None if it holds no model."""
    for names in MODEL_FILES:
        paths = [folder / name for name in names]
        if all(path.is_file() for path in paths):
            return paths[-1]
    return None


def models_here() -> list[Path]:
    """The folders here that hold a model, whatever their names, the newest first."""
    return _newest_first(Path().glob("*"))


def _newest_first(folders: Iterable[Path]) -> list[Path]:
    """Those of the folders that hold models, sorted by the times of the weights."""
    weights = [path for folder in folders if (path := weights_path(folder))]
    return [path.parent for path in sorted(weights, key=lambda path: -path.stat().st_mtime)]


def require_model(folder: Path) -> None:
    """UserError that says what the folder holds instead if it holds no trained model."""
    if holds_model(folder):
        return
    if (folder / "train.mask.bin").is_file():
        raise UserError(
            f"{folder} holds prepared questions, not a model: fine-tune one with"
            f" config/sft.py and {flag('dataset', dataset_name(folder))}"
        )
    if holds_data(folder):
        raise UserError(
            f"{folder} holds prepared data, not a model: train one with\n"
            f"  {training_command(folder)}"
        )
    if (folder / "model.safetensors").is_file():
        raise UserError(f"{folder} has weights but no config.json: copy the model's whole folder")
    if others := [path.name for pattern in OTHER_WEIGHTS for path in sorted(folder.glob(pattern))]:
        raise UserError(
            f"{folder} has its weights in {others[0]}: only safetensors files are read, as"
            " model.safetensors; download those, or let transformers save the model again"
        )
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    if (folder / "checkpoints").is_dir():
        weights = ADAPTER_WEIGHTS if is_adapter else "model.safetensors"
        raise UserError(
            f"{folder} has checkpoints but no {weights}: its run ended before it kept"
            f" a model; continue it with\n  python train.py --resume {flag('out_dir', folder)}"
        )
    if is_adapter:
        raise UserError(
            f"{folder} has {ADAPTER_CONFIG} but no {ADAPTER_WEIGHTS}: copy the adapter's whole"
            " folder, or save it as safetensors with PEFT if it is adapter_model.bin"
        )
    require_downloaded(folder)
    raise _no_model_error(str(folder), out_dir=folder)


def require_downloaded(folder: Path) -> None:
    """UserError if this is the name of a model on Hugging Face (OWNER/NAME), and no folder here."""
    if not folder.is_absolute() and len(folder.parts) == 2 and not folder.parent.exists():
        name, place = shlex.quote(str(folder)), flag("local-dir", folder.name)
        raise UserError(
            f"there is no folder {folder} here: if this is a model's name on Hugging Face,"
            f" download it and name the folder\n  hf download {name} {place}"
        )


def _no_model_error(
    place: str, command: str | None = None, out_dir: Path | None = None
) -> UserError:
    """Names the models that exist, or the commands that train one."""
    models = models_here()
    if models:
        advice = f"the models here are {', '.join(map(str, models[:MAX_MODELS_SHOWN]))}"
        advice += f" and {len(models) - MAX_MODELS_SHOWN} more" * (len(models) > MAX_MODELS_SHOWN)
        if command:
            advice += f"; for example\n  python {command}{shlex.quote(str(models[0]))}"
    else:
        where = f" {flag('out_dir', unused_out_dir(out_dir))}" if out_dir else ""
        advice = f"train one with\n  python prepare.py\n  python train.py{where}"
    return UserError(f"there is no trained model in {place}: {advice}")


# ---------------------------------------------------------------- bases of adapters


def adapter_base(folder: Path, base: str | Path | None = None) -> Path:
    """The folder of the model below the adapter in `folder`, or `base`, the user's --base.

    UserError if there is no model.
    """
    return find_base(folder, base_name(folder), base)


def base_name(folder: Path) -> str:
    """What the adapter in a folder says of its base: a path, a download's name, or nothing.

    UserError if adapter_config.json is damaged.
    """
    try:
        name = read_json(folder / ADAPTER_CONFIG)["base_model_name_or_path"] or ""
        if not isinstance(name, str) or "\0" in name:
            raise ValueError("base_model_name_or_path is not a path")
        return name
    except KeyError:
        return ""
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"the adapter in {folder} can't be used: {error_reason(error)}") from None


def find_base(folder: Path, named: str, base: str | Path | None = None) -> Path:
    """The base of the adapter in `folder`, which names it by a path from here or from `folder`.

    `base` replaces the name. UserError if there is no model.
    """
    places = [Path(named), folder / named] if named else []
    for place in [Path(base)] if base else places:
        with suppress(OSError):  # the name is too long for a path
            if holds_adapter(place):
                merge = shlex.join(["python", "merge.py", str(place), "--out=FOLDER"])
                raise UserError(
                    f"{place}, the base of {folder}, is an adapter itself: make it a model with\n"
                    f"  {merge}"
                )
            if holds_model(place):
                return place
    if base:
        raise UserError(f"--base={base}: there is no model in that folder")
    if not named:
        raise UserError(
            f"the adapter in {folder} doesn't say which model it was trained on: name the folder"
            " of that model with --base=FOLDER"
        )
    raise UserError(
        f"the adapter in {folder} was trained on {named[:150]!r}, which is no folder with a model"
        " here: name the folder of that model with --base=FOLDER"
    )


# ---------------------------------------------------------------- prepared data, new runs


def holds_data(folder: Path) -> bool:
    """Whether the folder is one that prepare.py or prepare_sft.py wrote."""
    return (folder / "meta.json").is_file()


def dataset_name(folder: Path) -> str:
    """The value of --dataset with which train.py finds this data folder."""
    name = folder.name if folder.parent == Path("data") else str(folder)
    found_first = Path("data") / name
    is_found = same_path(found_first, folder) or not holds_data(found_first)
    return name if is_found else str(folder.resolve())


def is_unused(folder: Path) -> bool:
    """Whether a new run may write here: there is nothing, or an empty folder."""
    if not folder.exists():
        return True
    return folder.is_dir() and all(path.name.startswith(".") for path in folder.iterdir())


def unused_out_dir(folder: Path) -> Path:
    """This folder if a new run may write there; else the first such one of folder-2, folder-3, …"""
    if is_unused(folder):
        return folder
    others = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    return next(other for other in others if is_unused(other))


def training_command(folder: Path, config: str | None = None, arguments: Sequence[str] = ()) -> str:
    """The command that trains on this data folder, in a folder of its own."""
    name = folder.resolve().name
    out_dir = unused_out_dir(Path(BUNDLED_OUT_DIRS.get(name, f"out-{name}")))
    words = ["train.py", *([config] if config else []), f"--dataset={dataset_name(folder)}"]
    return shlex.join(["python", *words, *arguments, f"--out_dir={out_dir}"])
