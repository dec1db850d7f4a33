"""Every measure equals its plain definition, another library or a published figure."""

from __future__ import annotations

import json
import re
from itertools import islice, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuoshu.evaluation import metrics
from tests.evaluation.helpers import (
    f1,
    plain_lcs,
)

# Texts of a small alphabet have much in common.
FEW = st.text(alphabet="甲乙丙，", max_size=24)
MIXED = st.text(alphabet="甲乙，。 \n　aBé7８", max_size=16)


# ---------------------------------------------------------------- one answer and its reference


def test_units_are_characters_but_words_and_numbers_whole():
    mixed = metrics.units("他在1985年买了 iPhone15，naïve　Ｗｉｎ９５！")
    assert " ".join(mixed) == "他 在 1985 年 买 了 iPhone 15 ， naïve Ｗｉｎ ９５ ！"
    assert list(metrics.units("甲 乙\n丙\u3000丁\u2003")) == list("甲乙丙丁")
    accented = metrics.units("cafe\u0301 déjà-vu don't")
    assert " ".join(accented) == "cafe\u0301 déjà - vu don ' t"
    assert list(metrics.units("ab 12\n", chars=True)) == list("ab 12\n")
    assert list(metrics.units(" \n")) == list(metrics.units("")) == []


@given(MIXED)
def test_units_drop_nothing_but_white_space(text):
    units = metrics.units(text)
    assert "".join(units) == "".join(text.split())
    assert all(len(unit) == 1 or re.fullmatch("[aBé]+|[7８]+", unit) for unit in units)


@given(MIXED | FEW, MIXED | FEW)
def test_rouge_l_finds_the_longest_common_subsequence_of_units(answer, reference):
    a, r = metrics.units(answer), metrics.units(reference)
    precision, recall, _ = metrics.rouge_l(answer, reference)
    if a and r:
        assert precision * len(a) == pytest.approx(plain_lcs(a, r))
        assert recall * len(r) == pytest.approx(plain_lcs(a, r))


def test_rouge_l_is_exact_for_long_texts():
    random = np.random.default_rng(0)
    for length in (63, 64, 65, 129, 300):  # the library computes in words of 64 bits
        for alphabet in ("甲乙丙丁戊己庚", ["甲", "ab", "12", "，"]):
            answer, reference = (
                "".join(random.choice(list(alphabet), n)) for n in (length, 2 * length)
            )
            common = plain_lcs(metrics.units(answer), metrics.units(reference))
            precision = metrics.rouge_l(answer, reference)[0]
            assert precision == common / len(metrics.units(answer))


@given(FEW, FEW, st.floats(0.1, 10))
def test_rouge_l_equals_its_formula(answer, reference, beta):
    precision, recall, f = metrics.rouge_l(answer, reference, beta)
    common = plain_lcs(answer, reference)
    if common:
        assert (precision, recall) == (common / len(answer), common / len(reference))
        assert f == pytest.approx(
            1 / ((1 / precision + beta**2 / recall) / (1 + beta**2)), rel=1e-12
        )
        assert f1(answer, reference) == pytest.approx(
            2 * common / (len(answer) + len(reference)), rel=1e-12
        )
    else:
        assert precision == recall == f == (not answer and not reference)


def test_rouge_l_by_character_equals_rouge_score():
    from rouge_score import rouge_scorer, tokenizers

    class Characters(tokenizers.Tokenizer):
        def tokenize(self, text):
            return list(text)

    theirs = rouge_scorer.RougeScorer(["rougeL"], tokenizer=Characters())

    @given(MIXED | FEW, MIXED | FEW)
    def same(answer, reference):
        if answer or reference:  # which gives two empty texts 0
            expected = theirs.score(reference, answer)["rougeL"]
            assert metrics.rouge_l(answer, reference, chars=True) == pytest.approx(
                tuple(expected), abs=1e-12
            )

    same()


def test_rouge_l_of_known_chinese_sentences():
    assert metrics.rouge_l("黛玉听了这话。", "黛玉听了这话。") == (1.0, 1.0, 1.0)
    assert f1(
        "黛玉听了，又喜又惊，不觉又悲叹。", "黛玉听了这话，不觉又喜又惊，又悲又叹。"
    ) == pytest.approx(0.8, abs=1e-12)
    assert metrics.rouge_l("甲乙", "甲乙丙丁") == (1.0, 0.5, pytest.approx(2 / 3, abs=1e-12))


def test_a_published_table_is_reproduced():
    prompt = "介绍一下《天龙八部》的主角？"
    reference = "《天龙八部》中有许多主要角色，其中包括段誉、虚竹、乔峰、王语嫣、阿朱、阿紫等。每个角色都有独特的个性和故事线。"
    other = "《天龙八部》中有许多著名的武功绝学，如乔峰的降龙十八掌、虚竹的达摩剑法、慕容复的九阳真经等，这些武功以其独特的招式和威力成为小说中的亮点之一。"
    for answer, published in [(reference, 0.8810625611818101), (other, 0.298531968876132)]:
        f = metrics.rouge_l(prompt + answer + "\n", reference, beta=1 / 0.99, chars=True)[2]
        assert f == pytest.approx(published, abs=1e-12)


def test_words_are_compared_whole_and_only_chars_counts_white_space():
    assert f1("Tom", "Tim") == f1("tom", "Tom") == 0 and f1("甲 乙\n", "甲乙") == 1
    assert metrics.rouge_l("Tom", "Tim", chars=True)[2] == pytest.approx(2 / 3)
    assert metrics.rouge_l("甲 乙", "甲乙", chars=True)[2] == pytest.approx(0.8)


def test_the_definition_names_the_options():
    assert "F1" in metrics.definition() and "β" not in metrics.definition()
    assert "β = 1.0101" in metrics.definition(beta=1 / 0.99)
    assert metrics.definition() != metrics.definition(chars=True)


def test_exact_match_ignores_outer_white_space_only():
    assert metrics.exact_match(" 甲乙\n", "甲乙")
    assert not metrics.exact_match("甲 乙", "甲乙")
    assert not metrics.exact_match("甲乙。", "甲乙")


def test_char_f1_counts_units_as_often_as_they_occur():
    assert metrics.char_f1("乙甲", "甲乙") == 1.0
    assert metrics.char_f1("甲甲甲", "甲乙") == pytest.approx(2 / 5)  # one in common of 3 and 2
    assert metrics.char_f1("1985年", "1986年") == pytest.approx(1 / 2)
    assert metrics.char_f1("", "") == 1 and metrics.char_f1("", "甲") == 0
    assert metrics.char_f1("乙", "甲") == 0


@given(MIXED, MIXED)
def test_char_f1_is_never_below_rouge_l(a, b):
    assert metrics.char_f1(a, b) >= f1(a, b) - 1e-12


# ---------------------------------------------------------------- many answers


@given(
    st.lists(st.tuples(FEW, st.integers(0, 5)), min_size=1, max_size=8),
    st.lists(FEW, min_size=6, max_size=12),
)
def test_the_closest_other_reference_equals_brute_force(rows, pool):
    answers = [answer for answer, _ in rows]
    references = [pool[number] for _, number in rows]
    closer = metrics.closer_references(answers, references, pool)
    for answer, reference, text in zip(answers, references, closer, strict=True):
        best = max(f1(answer, other) for other in pool)
        if best <= f1(answer, reference) + 1e-12:
            assert text is None
        else:
            assert f1(answer, text) == pytest.approx(best)


def test_no_closer_reference_among_hundreds_is_missed():
    random = np.random.default_rng(1)
    letters = list("甲乙丙丁戊己庚辛，。")
    pool = ["".join(random.choice(letters, random.integers(1, 12))) for _ in range(400)]
    pool = list(dict.fromkeys(pool))
    answers = ["".join(random.permutation(list(pool[i]))) for i in range(60)] + pool[:20]
    references = pool[40:100] + pool[:20]
    closer = metrics.closer_references(answers, references, pool)
    for answer, reference, text in zip(answers, references, closer, strict=True):
        exists = max(f1(answer, other) for other in pool) > f1(answer, reference) + 1e-12
        assert (text is not None) == exists
        assert text is None or f1(answer, text) > f1(answer, reference)
    assert closer[60:] == [None] * 20 and closer.count(None) < 40


def test_many_anagrams_do_not_hide_the_only_closer_reference():
    answer, own, closer = "甲乙丙丁戊己庚辛", "甲乙壬癸", "甲乙丙丁"
    anagrams = map("".join, permutations(reversed(answer)))
    far_anagrams = (text for text in anagrams if plain_lcs(text, answer) <= 2)
    pool = list(islice(far_anagrams, 3 * metrics.MAX_CANDIDATES))
    assert metrics.closer_references([answer], [own], [*pool, own]) == [None]
    assert metrics.closer_references([answer], [own], [*pool, own, closer]) == [closer]


def test_an_equal_score_is_not_closer():
    assert metrics.closer_references(["甲乙丙丁"], ["甲乙"], ["甲乙", "甲乙", "丙丁"]) == [None]
    assert metrics.closer_references(["甲乙丙丁"], ["甲乙"], ["甲乙", "乙丙丁"]) == ["乙丙丁"]
    assert metrics.closer_references(["甲"], ["甲"], []) == [None]
    assert metrics.closer_references([], [], ["甲"]) == []
    assert metrics.closer_references(["", ""], ["甲", ""], ["甲", ""]) == ["", None]


def test_the_bound_counts_hundreds_of_equal_units():
    long, short = "甲" * 700, "甲" * 300
    assert metrics.closer_references([long], [short], [short, long[:-1]]) == [long[:-1]]


def test_distinct_counts_different_n_grams_over_all_texts():
    assert metrics.distinct(["甲乙甲乙"], 1) == 2 / 4
    assert metrics.distinct(["甲乙甲乙"], 2) == 2 / 3
    # No n-gram crosses from one text into the next.
    assert metrics.distinct(["甲乙", "甲乙", "丙"], 2) == 1 / 2
    assert metrics.distinct(["lamp lamp"], 1) == 1 / 2
    assert metrics.distinct([], 1) == metrics.distinct(["甲"], 2) == 0.0


def test_repetition_is_the_share_of_repeated_4_grams():
    for text in ("甲乙丙丁戊己", "", "甲甲甲"):
        assert metrics.repetition(text) == 0
    assert metrics.repetition("甲" * 13) == pytest.approx(9 / 10)
    assert metrics.repetition("甲乙丙丁甲乙丙丁") == pytest.approx(1 / 5)


# ---------------------------------------------------------------- closed sets of answers


def test_classification_equals_scikit_learn():
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    labels = ["好", "坏", "平", "无"]  # the last one is predicted, but never right

    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=30))
    def same(rows):
        predicted, actual = np.array(rows).T
        confusion = metrics.confusion_matrix(predicted, actual, len(labels))
        by_label = metrics.label_measures(confusion, labels)
        expected = precision_recall_fscore_support(
            actual, predicted, labels=range(4), zero_division=0
        )
        for name, column in zip(("precision", "recall", "f1", "support"), expected, strict=True):
            assert [by_label[label][name] for label in labels] == column.tolist()
        assert metrics.label_f1(confusion).tolist() == expected[2].tolist()
        assert confusion.tolist() == confusion_matrix(actual, predicted, labels=range(4)).tolist()
        json.dumps(by_label)

    same()


def test_classification_of_nothing_is_zero():
    nothing = np.zeros(0, np.int64)
    confusion = metrics.confusion_matrix(nothing, nothing, 2)
    assert confusion.tolist() == [[0, 0], [0, 0]]
    scores = metrics.label_measures(confusion, ["好", "坏"])["好"]
    assert scores == {"precision": 0, "recall": 0, "f1": 0, "support": 0}
