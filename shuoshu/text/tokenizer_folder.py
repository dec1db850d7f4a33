"""Loads the tokenizer of a folder: Shuoshu's own, or another model's."""

from __future__ import annotations

import json
from pathlib import Path

from shuoshu.core.errors import UserError
from shuoshu.core.files import MAX_BYTES, error_reason, is_count, open_file
from shuoshu.core.out_dirs import require_downloaded
from shuoshu.text.foreign_tokenizer import ForeignTokenizer, TokenizerFolder
from shuoshu.text.tokenizer import SPECIALS, Tokenizer
from shuoshu.text.tokenizer_json import SUPPORTED

# A tokenizer's files besides tokenizer.json, as far as they are read.
CONFIG, TEMPLATE, SPECIALS_MAP = (
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
)
GENERATION = "generation_config.json"
TOKENIZER_FILES = ("tokenizer.json", CONFIG, TEMPLATE, SPECIALS_MAP, GENERATION)
OTHER_FORMATS = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The folder's tokenizer. Raises UserError if tokenizer.json is missing or not usable."""
    folder = Path(folder)
    path = folder / "tokenizer.json"
    if not path.exists():
        require_downloaded(folder)
        raise UserError(f"there is no tokenizer in {folder}: {_missing(folder)}")
    try:
        text = _read_exactly(path)
        document = json.loads(text.removeprefix("\ufeff"))
    except (OSError, ValueError, RecursionError) as error:
        reason = "its brackets are nested too deeply"
        if not isinstance(error, RecursionError):
            reason = error_reason(error)
        raise UserError(
            f"{path} is damaged: {reason}; run prepare.py again, or copy the file again"
        ) from None
    try:
        if set(SPECIALS) <= {token["content"] for token in document["added_tokens"]}:
            return Tokenizer.from_document(document)
        return ForeignTokenizer(_read_folder(folder, text, document))
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} can't be used: {error_reason(error)}") from None


def _missing(folder: Path) -> str:
    others = [name for name in OTHER_FORMATS if (folder / name).exists()]
    if not others:
        return f"tokenizer.json is missing from {folder}"
    return (
        f"it has {', '.join(others)} but no tokenizer.json; {SUPPORTED}, in a tokenizer.json"
        " (transformers' AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes one)"
    )


def _read_exactly(path: Path) -> str:
    """A UTF-8 file's text, from which its bytes can be written again."""
    with open_file(path, MAX_BYTES) as file:
        return file.read().decode("utf-8")


def _read_folder(folder: Path, text: str, document: dict) -> TokenizerFolder:
    """What the folder's other files say; UserError if one of them is damaged."""
    result = TokenizerFolder(str(folder), document, {"tokenizer.json": text})
    for name in (SPECIALS_MAP, CONFIG, TEMPLATE, GENERATION, "config.json"):
        path = folder / name
        if not path.exists():
            continue
        try:
            text = _read_exactly(path)
            if name in (SPECIALS_MAP, CONFIG, TEMPLATE):
                result.files[name] = text
            if name == TEMPLATE:
                result.template = text
                continue
            content = json.loads(text.removeprefix("\ufeff"))
            if name in (SPECIALS_MAP, CONFIG):
                result.names |= _token_names(content)
            else:
                result.eos += _eos_ids(content)
            if name == CONFIG:
                result.template = _template_in(content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} is damaged: {error_reason(error)}; copy it again") from None
    return result


def _token_names(content: dict) -> dict[str, str]:
    """bos_token, eos_token and others by name; a token is a text, or an object with its text."""
    names = {}
    for key, value in content.items():
        if isinstance(value, dict):
            value = value.get("content")
        if key.endswith("_token") and isinstance(value, str):
            names[key] = value
    return names


def _template_in(content: dict) -> str | None:
    """The chat template, of several the one that is named default."""
    template = content.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    if not isinstance(template, str | None):
        raise ValueError("its chat_template is not a text")
    return template


def _eos_ids(content: dict) -> list[int]:
    value = content.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(is_count(i) for i in ids):
        raise ValueError(f"its eos_token_id {value!r:.40} is not a token's number")
    return ids
