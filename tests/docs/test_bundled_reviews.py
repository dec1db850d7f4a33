"""The bundled reviews: their size, their labels, and that no two of them are alike."""

import csv
import re
from collections import Counter

import pytest

from shuoshu.core.errors import REPO_ROOT

FILE = REPO_ROOT / "data" / "reviews" / "reviews.csv"
MAX_SIMILARITY = 0.5  # Jaccard similarity of the character trigrams of two reviews


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with FILE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def trigrams(text: str) -> set[str]:
    letters = re.sub(r"[\W_]", "", text).lower()
    return {letters[i : i + 3] for i in range(len(letters) - 2)}


def test_there_are_600_reviews_of_which_three_fifths_are_satisfied(rows):
    assert all(row.keys() == {"label", "review"} for row in rows)
    assert Counter(row["label"] for row in rows) == {"1": 360, "0": 240}


def test_reviews_are_short_except_for_a_few(rows):
    lengths = [len(row["review"]) for row in rows]
    assert min(lengths) >= 12 and all(n <= 120 or 250 <= n <= 400 for n in lengths)
    assert 10 <= sum(n >= 250 for n in lengths) <= 15


def test_some_cells_need_quoting(rows):
    for mark in (",", '"', "\n"):
        assert sum(mark in row["review"] for row in rows) >= 10, mark


def test_no_two_reviews_are_alike(rows):
    sets = [trigrams(row["review"]) for row in rows]
    for i, a in enumerate(sets):
        for j, b in enumerate(sets[:i]):
            common = len(a & b)
            assert common < MAX_SIMILARITY * (len(a) + len(b) - common), (rows[i], rows[j])


def test_the_order_of_rows_does_not_give_the_label_away(rows):
    labels = [row["label"] for row in rows]
    for start in range(0, 600, 100):
        assert 45 <= labels[start : start + 100].count("1") <= 75
