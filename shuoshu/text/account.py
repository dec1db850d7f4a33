"""The account of a cleaned text: what each rule removed and added."""

from __future__ import annotations

from collections import Counter
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

    def add(self, other: Account) -> None:
        """Adds the counts and texts of another account."""
        self.read, self.kept = self.read + other.read, self.kept + other.kept
        self.places.update(other.places)
        self.removed.update(other.removed)
        self.added.update(other.added)
        for rule, pieces in other.pieces.items():
            self.pieces.setdefault(rule, []).extend(pieces)
