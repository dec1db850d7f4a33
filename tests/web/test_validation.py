"""Values from the page and the API: their ranges, types and sizes."""

from __future__ import annotations

import math

import pytest

from shuoshu.core.errors import UserError
from shuoshu.web import validation
from shuoshu.web.validation import SETTING_NAMES, parse_history, parse_sampling_settings, parse_text


@pytest.mark.parametrize("name", SETTING_NAMES)
@pytest.mark.parametrize("value", ["one", [1], {}, True, math.nan, math.inf, -math.inf, b"1"])
def test_a_setting_that_is_no_number_is_named(name, value):
    with pytest.raises(UserError, match=f"{name} must be a number"):
        parse_sampling_settings({name: value}, 300)


@pytest.mark.parametrize("name, limits", validation.setting_ranges(300).items())
def test_each_setting_has_its_range(name, limits):
    for value in (limits.low, limits.high):
        assert getattr(parse_sampling_settings({name: value}, 300), name) in (value, None)
    for value in (limits.low - 0.01, limits.high + 1, 10**400, -1e308):
        with pytest.raises(UserError, match=f"{name} must be between"):
            parse_sampling_settings({name: value}, 300)
    assert limits.low <= limits.default <= limits.high


def test_the_page_passes_every_setting():
    assert (*validation.setting_ranges(300), "seed") == SETTING_NAMES


@pytest.mark.parametrize("name", ["top_k", "max_new_tokens", "seed"])
def test_a_count_with_a_fraction_is_refused(name):
    with pytest.raises(UserError, match=f"{name} must be a whole number"):
        parse_sampling_settings({name: 2.5}, 300)


def test_a_missing_seed_is_random():
    assert (
        parse_sampling_settings({"seed": 7}, 300).seed
        == parse_sampling_settings({"seed": 7.0}, 300).seed
        == 7
    )
    assert len({parse_sampling_settings({}, 300).seed for _ in range(20)}) == 20
    for seed in (-1, 1e300):
        with pytest.raises(UserError, match="seed must be between"):
            parse_sampling_settings({"seed": seed}, 300)


@pytest.mark.parametrize("text, seed", [(" 7 ", 7), ("007", 7)])
def test_a_seed_may_be_a_text_of_digits(text, seed):
    assert parse_sampling_settings({"seed": text}, 100).seed == seed
    assert (
        len({parse_sampling_settings({"seed": empty}, 100).seed for empty in ("", " ", None)}) == 3
    )
    for wrong in ("-3", "1.5", "1_0", "七", "9" * 30):
        with pytest.raises(UserError, match="seed"):
            parse_sampling_settings({"seed": wrong}, 100)


def test_the_default_length_respects_the_limit_of_the_page():
    assert parse_sampling_settings({}, 50).max_new_tokens == 50
    assert parse_sampling_settings({}, 999).max_new_tokens == validation.DEFAULT_NEW_TOKENS


def test_top_k_0_is_no_limit():
    assert parse_sampling_settings({"top_k": 0}, 50).top_k is None


def test_a_text_has_a_maximum_length_and_is_valid_utf8():
    longest = "好" * validation.MAX_TEXT_CHARS
    assert parse_text(longest) == longest
    assert parse_text("a\ud800b\udfff").encode() == b"a?b?"
    with pytest.raises(UserError, match="at most 20,000 characters, this has 100,000"):
        parse_text("好" * 100_000)


@pytest.mark.parametrize("value", [None, 3, ["a"], {"text": "a"}, b"a"])
def test_only_text_is_text(value):
    with pytest.raises(UserError, match=f"got {type(value).__name__}"):
        parse_text(value)


def test_a_history_becomes_messages():
    assert parse_history(None) == parse_history([]) == []
    assert parse_history([["问", "答"], ("谁？", "我。")]) == [
        {"role": "user", "content": "问"},
        {"role": "assistant", "content": "答"},
        {"role": "user", "content": "谁？"},
        {"role": "assistant", "content": "我。"},
    ]


@pytest.mark.parametrize(
    "value",
    [
        "问答",
        3,
        {"a": "b"},
        [["a"]],
        ["ab"],
        [["a", "b", "c"]],
        [["a", 3]],
        [["a", "b"]] * (validation.MAX_HISTORY_TURNS + 1),
        [["a", "b" * 100_000]],
    ],
)
def test_a_history_is_pairs_of_texts(value):
    with pytest.raises(UserError):
        parse_history(value)
