"""Labels of texts: which they are, what to check about them, and texts that are nearly the same."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from shuoshu.core.errors import UserError
from shuoshu.core.terminal import counted
from shuoshu.sft.conversations import parse_labels
from shuoshu.sft.pairs import Pair, closed_set_labels, normalized, preview
from shuoshu.sft.rendering import without_ends
from shuoshu.sft.splits import Group

LINK = re.compile("(?:https?://|www[.]|t[.]co/)[!-~]+")  # Chinese may follow without a blank
KEPT_CATEGORIES = ("L", "M", "N", "So")  # letters, accents, numbers, emoji


def labels_of(pairs: list[Pair], given: str | None) -> list[str] | None:
    """The labels, the most frequent first: those `given` with --labels, or a closed set of answers.

    None if the answers are no labels. UserError if --labels leaves less than two.
    """
    if not given:
        return closed_set_labels(pairs)
    counts = Counter(pair.answer for pair in pairs)
    if len(counts) == 1:
        [(label, count)] = counts.items()
        raise UserError(
            f"all {counted(count, 'row')} have the label {preview(label, 40)}: labels need two or"
            f" more; check --labels and the column of --answer"
        )
    return [label for label, _ in counts.most_common()] or None


def label_notes(pairs: Sequence[Pair], given: str | None) -> list[str]:
    """What to check about the labels: unused ones, rare ones, those that look alike."""
    counts = Counter(pair.answer for pair in pairs)
    trained = {pair.answer for pair in pairs if pair.split == "train"}
    notes = []
    if unused := [label for label in parse_labels(given or "").values() if label not in counts]:
        notes.append(f"no row has {_listed(unused)} of --labels")
    if untrained := [label for label in counts if label not in trained]:
        notes.append(f"no training row has {_listed(untrained)}: nothing teaches it")
    if single := [label for label, count in counts.items() if count == 1]:
        notes.append(f"only one row has {_listed(single)}: that can't be both taught and measured")
    alike: dict[str, list[str]] = {}
    for label in counts:
        alike.setdefault(normalized(label), []).append(label)
    for labels in alike.values():
        if len(labels) > 1:
            both = ", ".join(f"{label} ({counted(counts[label], 'row')})" for label in labels)
            notes.append(f"labels that differ in case or width only: {both}; --labels joins them")
    return notes


def _listed(labels: Sequence[str]) -> str:
    return f"the label{'s' * (len(labels) > 1)} {preview(', '.join(dict.fromkeys(labels)), 60)}"


# ---------------------------------------------------------------- nearly the same text


def core_of(text: str) -> str:
    """What remains of a text without links, punctuation and blanks, case and width.

    A text that has nothing else is only normalized.
    """
    words = LINK.sub(" ", normalized(text))
    core = "".join(c for c in words if unicodedata.category(c).startswith(KEPT_CATEGORIES))
    return core or normalized(text)


def alike_groups(pairs: Sequence[Pair], ends: tuple[str, str]) -> list[Group]:
    """The groups of two or more pairs whose texts have the same core.

    `ends` are those of the questions' template.
    """
    groups: dict[str, Group] = {}
    for pair in pairs:
        groups.setdefault(core_of(without_ends(pair.question, ends)), []).append(pair)
    return [group for group in groups.values() if len(group) > 1]


def conflicts(groups: Sequence[Group]) -> list[Group]:
    """The groups that have several labels."""
    return [group for group in groups if len({pair.answer for pair in group}) > 1]
