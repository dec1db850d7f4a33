"""The account of a cleaned text: what each rule removed and added."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Account:
    """Accounts for every character: read - removed + added = kept, with one line for each rule."""

    read: int = 0
    kept: int = 0
    places: Counter = field(default_factory=Counter)  # per rule: how often it was applied
    removed: Counter = field(default_factory=Counter)  # per rule: characters
    added: Counter = field(default_factory=Counter)  # per rule: characters
    pieces: dict[str, list[str]] = field(default_factory=dict)  # removed texts, layout excluded

    def record(self, rule: str, before: str, after: str = "") -> str:
        """Records that `rule` replaces `before` by `after`; returns `after`."""
        self.count(rule, len(before), len(after))
        self.pieces.setdefault(rule, []).append(before)
        return after

    def count(self, rule: str, removed: int, added: int = 0, places: int = 1) -> None:
        """Counts characters without storing the text."""
        self.places[rule] += places
        self.removed[rule] += removed
        self.added[rule] += added

    def substitute(self, pattern: re.Pattern, after: str, text: str, rule: str) -> str:
        """pattern.subn, counted under `rule`; `after` is plain text."""
        changed, places = pattern.subn(after, text)
        if places:
            added = places * len(after)
            self.count(rule, len(text) - len(changed) + added, added, places)
        return changed

    def remove_lines(self, lines: list[str], rule_of: Mapping[int, str]) -> list[str]:
        """Removes the lines whose indices are in `rule_of`, which also names the rule of each."""
        for i in sorted(rule_of):
            self.record(rule_of[i], lines[i] + "\n")
        return [line for i, line in enumerate(lines) if i not in rule_of]

    def add(self, other: Account) -> None:
        """Adds the counts and texts of another account."""
        self.read, self.kept = self.read + other.read, self.kept + other.kept
        self.places.update(other.places)
        self.removed.update(other.removed)
        self.added.update(other.added)
        for rule, pieces in other.pieces.items():
            self.pieces.setdefault(rule, []).extend(pieces)
