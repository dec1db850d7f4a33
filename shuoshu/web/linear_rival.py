"""The linear model beside a model that labels: fitted to the same training data at first use."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from shuoshu.core.errors import UserError
from shuoshu.core.run_log import read_settings
from shuoshu.evaluation.linear_models import LinearModel, strongest
from shuoshu.models.purpose import Labelling
from shuoshu.sft.dataset import read_pairs
from shuoshu.sft.layouts import template_ends
from shuoshu.sft.rendering import without_ends
from shuoshu.web.labels import note_html

MAX_FITTED_CHARACTERS = 2_000_000  # of the training texts: up to half a minute


@dataclass
class Rival:
    """A linear model, or a note in HTML why there is none."""

    model: LinearModel | None
    note: str = ""


class LinearRivals:
    """The linear models of a page, each for one model that labels."""

    def __init__(self) -> None:
        # model name → (settings of its run, rival)
        self._fitted: dict[str, tuple[dict, Rival]] = {}
        self._lock = threading.Lock()

    def is_fitted(self, name: str) -> bool:
        """Whether the linear model for this one was fitted before."""
        return name in self._fitted

    def find(self, name: str, folder: Path, labelling: Labelling) -> Rival:
        """The strongest linear model on the training data of the model in a folder.

        It is fitted again when the model was trained again with other settings or data.
        """
        saved = read_settings(folder)
        with self._lock:
            settings, rival = self._fitted.get(name, (None, None))
            if rival is None or settings != saved:
                labels, ends = labelling.labels, template_ends(labelling.question)
                splits = read_splits(saved.get("data", {}).get("folder"), labels, ends)
                if splits is None:
                    return Rival(None, note_html("no_linear_data"))
                rival = fit_rival(*splits, labels)
                self._fitted[name] = saved, rival
            return rival


class Split(NamedTuple):
    texts: list[str]
    labels: list[str]


def read_splits(
    data_folder: object, labels: Sequence[str], ends: tuple[str, str]
) -> list[Split] | None:
    """The training and validation rows in a data folder; None if they aren't there.

    Their texts are without the ends of the prompt's template.
    """
    splits = [read_split(data_folder, split, ends) for split in ("train", "val")]
    are_known = all(split and set(split.labels) <= set(labels) for split in splits)
    return splits if are_known and splits[0].texts else None


def read_split(data_folder: object, split: str, ends: tuple[str, str]) -> Split | None:
    """The texts of a split, without the ends of their template; None if they aren't there."""
    try:
        pairs = read_pairs(Path(str(data_folder)), split)
    except (UserError, OSError):
        return None
    return Split(
        [without_ends(pair["uncut"], ends) for pair in pairs],
        [pair["messages"][-1]["content"] for pair in pairs],
    )


def fit_rival(train: Split, val: Split, labels: Sequence[str]) -> Rival:
    """The strongest linear model on the training rows, chosen on the validation rows."""
    if sum(map(len, train.texts)) > MAX_FITTED_CHARACTERS:
        return Rival(None, note_html("linear_data_too_long", MAX_FITTED_CHARACTERS))
    return Rival(strongest(*train, *val, list(labels)))
