"""shuoshu/core/parts.py: what stands for a whole is spread over it, each group in proportion."""

from collections import Counter
from itertools import pairwise

import pytest

from shuoshu.core.parts import even_batch_size, evenly, stratified


@pytest.mark.parametrize("total, count", [(10, 4), (10, 10), (10, 11), (9767, 1000), (7, 2)])
def test_positions_lie_at_equal_distances_from_the_first_to_the_last(total, count):
    places = evenly(total, count)
    assert len(places) == min(total, count)
    assert (places[0], places[-1]) == (0, total - 1)
    distances = {b - a for a, b in pairwise(places)}
    assert min(distances) >= 1 and max(distances) - min(distances) <= 1


def test_one_or_no_position_is_possible():
    assert (evenly(5, 1), evenly(5, 0), evenly(0, 3)) == ([0], [], [])


SORTED = ["好"] * 260 + ["坏"] * 130
ALTERNATING = ["好", "坏"] * 195
RARE = ["好"] * 380 + ["坏"] * 10


@pytest.mark.parametrize("groups", [SORTED, ALTERNATING, RARE])
@pytest.mark.parametrize("count", [20, 195, 200, 389, 390, 1000])
def test_each_group_has_its_share_whatever_the_order_of_the_rows(groups, count):
    chosen = stratified(groups, count)
    assert len(set(chosen)) == min(count, 390) and chosen == sorted(chosen)
    for group, size in Counter(groups).items():
        share = size * len(chosen) / 390
        assert abs(sum(groups[place] == group for place in chosen) - share) <= 1


def test_a_sample_is_always_the_same_and_spread_over_the_rows_of_a_group():
    chosen = stratified(["一"] * 1000, 100)
    assert chosen == stratified(["一"] * 1000, 100)
    tenths = Counter(place // 100 for place in chosen)
    assert len(tenths) == 10 and max(tenths.values()) < 20


@pytest.mark.parametrize(
    "total, largest, size", [(30, 12, 10), (480, 12, 12), (9766, 12, 12), (78, 32, 26), (3, 8, 3)]
)
def test_batches_are_as_few_as_possible_and_of_nearly_equal_size(total, largest, size):
    assert even_batch_size(total, largest) == size
    assert -(-total // size) == -(-total // largest)
