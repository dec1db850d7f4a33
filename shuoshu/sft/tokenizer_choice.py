"""The tokenizer and the block size of the rows: a model's, or for labels trained on their texts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from shuoshu.core.command_settings import PrepareSftSettings
from shuoshu.core.errors import UserError
from shuoshu.core.files import error_reason, is_count, read_json
from shuoshu.core.out_dirs import (
    adapter_base,
    flag,
    holds_adapter,
    models_here,
    require_downloaded,
)
from shuoshu.sft.pairs import Pair, why_not_closed
from shuoshu.sft.rendering import row_length
from shuoshu.text.tokenizer import MAX_TRAINING_BYTES, Tokenizer, train_bpe, vocab_size_for
from shuoshu.text.tokenizer_folder import OTHER_FORMATS, load_tokenizer

DEFAULT_TOKENIZER = "out-pretrain"  # for questions
DEFAULT_BLOCK_SIZE = 256  # for a folder with a tokenizer but no model
OWN_BLOCK_SIZES = (64, 128, 256, 512)  # with a tokenizer trained here: the first that is enough
MIN_WHOLE_SHARE = 0.98  # of the training rows, which fit whole into a block that is enough


class TokenizerChoice(NamedTuple):
    tokenizer: Tokenizer
    block_size: int  # maximum length of a row in tokens
    folder: Path | None  # where the tokenizer is from; None: trained here


def tokenizer_of(folder: Path, settings: PrepareSftSettings) -> TokenizerChoice:
    """The tokenizer in a folder, with the context length of the model there.

    Raises UserError if there is no tokenizer or the model's config.json is damaged.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", *OTHER_FORMATS)):
        require_downloaded(folder)
        if holds_adapter(folder):
            raise UserError(
                f"the adapter in {folder} has no tokenizer of its own:"
                " name the model that it was trained on, --tokenizer=BASE"
            )
        models = [model for model in models_here() if (model / "tokenizer.json").is_file()]
        advice = "pretrain a model first\n  python prepare.py\n  python train.py\nor "
        example = flag("tokenizer", models[0]) if models else "--tokenizer=FOLDER"
        raise UserError(
            f"there is no tokenizer in {folder}: {'' if models else advice}"
            f"name the out_dir of the model to fine-tune, for example with {example}"
        )
    block_size = context_length(folder)
    tokenizer = load_tokenizer(folder)
    tokenizer.require_template()
    return TokenizerChoice(tokenizer, settings.block_size or block_size, folder)


def default_tokenizer(
    pairs: list[Pair], has_labels: bool, settings: PrepareSftSettings
) -> TokenizerChoice:
    """The tokenizer if --tokenizer names none: one of their own for labels, else the default.

    Raises UserError if there is no default tokenizer here.
    """
    if has_labels:
        return own_tokenizer(pairs, settings)
    try:
        return tokenizer_of(Path(DEFAULT_TOKENIZER), settings)
    except UserError as error:
        if not settings.answer:
            raise
        raise UserError(
            f"{not_labels_note(pairs)}.\nQuestions need a model's tokenizer, and {error}"
        ) from None


def not_labels_note(pairs: list[Pair]) -> str:
    """Why the answers are not taken for labels, and what to do if they are some."""
    counts = Counter(pair.answer for pair in pairs)
    advice = "; if they are labels, name them with --labels" if len(counts) > 1 else ""
    return f"the answers are not taken for labels: {why_not_closed(counts, pairs)}{advice}"


def context_length(folder: Path) -> int:
    """The context of the model in a folder, or of the base of its adapter, else the default.

    UserError if the file that says it is damaged.
    """
    config = folder / "config.json"
    if holds_adapter(folder):
        with suppress(UserError):  # there is no such base: train.py takes another by --base
            config = adapter_base(folder) / "config.json"
    try:
        if not config.exists():
            return DEFAULT_BLOCK_SIZE
        content = read_json(config)
        block_size = content.get("block_size", content["max_position_embeddings"])
        if not is_count(block_size) or not block_size:
            raise ValueError("max_position_embeddings is not a length")
        return block_size
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{config} is damaged ({error_reason(error)}): copy the model's folder again"
        ) from None


# ---------------------------------------------------------------- trained here


def own_tokenizer(pairs: Sequence[Pair], settings: PrepareSftSettings) -> TokenizerChoice:
    """A byte-level BPE trained on the training pairs, with a block size chosen by their lengths."""
    training = [pair for pair in pairs if pair.split == "train"]
    texts = [message["content"] for pair in training for message in pair.messages]
    size = sum(len(text.encode()) for text in texts)
    sample = texts[:: math.ceil(size / MAX_TRAINING_BYTES) or 1]
    tokenizer = train_bpe(sample, vocab_size_for(sum(map(len, texts))))
    block_size = settings.block_size
    if not block_size:
        block_size = enough_for([row_length(tokenizer, pair.messages) for pair in training])
    return TokenizerChoice(tokenizer, block_size, None)


def enough_for(lengths: Sequence[int]) -> int:
    """The smallest block in OWN_BLOCK_SIZES into which almost all rows fit, else the largest."""
    for block_size in OWN_BLOCK_SIZES:
        # The targets are shifted by one token.
        n_whole = sum(length <= block_size + 1 for length in lengths)
        if n_whole >= MIN_WHOLE_SHARE * len(lengths):
            return block_size
    return OWN_BLOCK_SIZES[-1]
