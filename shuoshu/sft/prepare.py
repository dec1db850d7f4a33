"""The prepare_sft.py pipeline: read questions, reject, split, render as rows, write, summarize."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from shuoshu.core.command_settings import PrepareSftSettings
from shuoshu.core.errors import REPO_ROOT, UserError
from shuoshu.core.files import error_reason, is_count, read_json
from shuoshu.core.out_dirs import (
    adapter_base,
    flag,
    holds_adapter,
    models_here,
    require_downloaded,
)
from shuoshu.sft.conversations import parse_pairs
from shuoshu.sft.dataset import write_rows
from shuoshu.sft.pairs import closed_set_labels, drop_repeats
from shuoshu.sft.question_files import find_question_files
from shuoshu.sft.rendering import RenderedPair, cut_long_questions, is_split, render_pairs
from shuoshu.sft.splits import Fold, SplitRule, split_pairs
from shuoshu.sft.summary import Preparation, questions_summary, rejected_lines, show_rows
from shuoshu.text.data_folder import target_folder
from shuoshu.text.tokenizer import Tokenizer
from shuoshu.text.tokenizer_folder import OTHER_FORMATS, load_tokenizer

BUNDLED = REPO_ROOT / "data" / "novella_qa"
DEFAULT_BLOCK_SIZE = 256  # for a folder with a tokenizer but no model
RECORDED_SETTINGS = (
    "inputs",
    "question",
    "answer",
    "system",
    "labels",
    "group",
    "too_long",
    "val_fraction",
    "test_fraction",
    "folds",
    "fold",
    "seed",
)


def prepare_sft(settings: PrepareSftSettings) -> None:
    """Runs prepare_sft.py.

    Raises UserError, and writes nothing, if a file or a setting is unusable.
    """
    began = time.perf_counter()
    result = prepare_questions(settings)
    print(questions_summary(result, settings, time.perf_counter() - began))
    if settings.show:
        show_rows(result.folder, settings.show)


def prepare_questions(settings: PrepareSftSettings) -> Preparation:
    """Writes the data folder; returns what the summary needs."""
    inputs = settings.inputs or (str(BUNDLED),)
    files = find_question_files(inputs)
    folder = target_folder(settings, "questions", BUNDLED, files)
    tokenizer, block_size = tokenizer_to_use(settings)
    width = block_size + 1  # the targets are shifted by one token

    pairs, rejected = parse_pairs(files, settings)
    n_cut = 0
    if settings.too_long == "cut_question":
        # Before repeats are dropped: cutting can make questions equal.
        n_cut = cut_long_questions(pairs, tokenizer, width)
    pairs = drop_repeats(pairs, rejected)
    has_given_splits = any(pair.split for pair in pairs)
    has_labels = closed_set_labels(pairs) is not None
    split_pairs(pairs, split_rule(settings, has_labels))
    rendered = render_pairs(pairs, tokenizer, width, settings.too_long, rejected)
    if not any(pair.split == "train" for pair, _ in rendered):
        lines = "".join(f"\n  {line}" for line in rejected_lines(rejected))
        raise UserError(f"no pair is left to train on, of {rejected.read:,} rows read{lines}")

    labels = closed_set_labels(pairs)
    if settings.labels and not labels:
        labels = sorted({pair.answer for pair in pairs})
    systems = system_messages(rendered)
    record = {
        "task": "labels" if labels else "questions",
        "turns": max(_count_answers(pair) for pair in rendered),
        "labels": labels,
        "system": systems[0] if len(systems) == 1 else "",
        "sources": [str(file) for file in files],
        "read": rejected.read,
        "dropped": dict(rejected.counts),
        "settings": {name: getattr(settings, name) for name in RECORDED_SETTINGS},
    }
    try:
        meta = write_rows(folder, tokenizer, rendered, record)
    except OSError as error:
        raise UserError(f"can't write to {folder}: {error.strerror}") from None
    return Preparation(
        folder=folder,
        meta=meta,
        rendered=rendered,
        rejected=rejected,
        block_size=block_size,
        n_cut=n_cut,
        n_split=sum(is_split(rows, tokenizer) for _, rows in rendered),
        has_given_splits=has_given_splits,
        n_systems=len(systems),
    )


def split_rule(settings: PrepareSftSettings, has_labels: bool) -> SplitRule:
    """How the settings split the pairs."""
    fold = Fold(settings.fold, settings.folds) if settings.fold and settings.folds else None
    fractions = settings.val_fraction, settings.test_fraction
    return SplitRule(*fractions, settings.seed, fold, has_labels)


def system_messages(rendered: Sequence[RenderedPair]) -> list[str]:
    """The different system messages of the training pairs; "" stands for none."""
    first = [pair.messages[0] for pair, _ in rendered if pair.split == "train"]
    return list(
        {message["content"] if message["role"] == "system" else "": None for message in first}
    )


def _count_answers(rendered: RenderedPair) -> int:
    return sum(message["role"] == "assistant" for message in rendered.pair.messages)


def tokenizer_to_use(settings: PrepareSftSettings) -> tuple[Tokenizer, int]:
    """(tokenizer, context length of the model in its folder).

    Raises UserError if there is no tokenizer or the model's config.json is damaged.
    """
    folder = Path(settings.tokenizer)
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
    return tokenizer, settings.block_size or block_size


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
