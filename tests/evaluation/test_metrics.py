"""shuoshu/metrics.py: every measure equals its plain definition, another library or a published figure."""

import json
import re
from itertools import islice, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuoshu.core.errors import REPO_ROOT
from shuoshu.evaluation import baselines, intervals, metrics
from shuoshu.evaluation import copies as evaluation_copies

FEW = st.text(alphabet="甲乙丙，", max_size=24)  # small alphabets make much in common
MIXED = st.text(alphabet="甲乙，。 \n　aBé7８", max_size=16)
SIGNS = st.text(
    alphabet="甲乙ab\U0001f600\ud83d\ude00 \n", max_size=40
)  # an emoji, and the halves of one


def plain_lcs(a, b) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


def f1(answer: str, reference: str) -> float:
    return metrics.rouge_l(answer, reference)[2]


# ---------------------------------------------------------------- one answer against its reference


def test_units_are_characters_with_words_and_numbers_whole():
    found = metrics.units("他在1985年买了 iPhone15，naïve　Ｗｉｎ９５！")
    assert list(found) == [
        *"他在",
        "1985",
        *"年买了",
        "iPhone",
        "15",
        "，",
        "naïve",
        "Ｗｉｎ",
        "９５",
        "！",
    ]
    assert list(metrics.units("甲 乙\n丙\u3000丁\u2003")) == list("甲乙丙丁")
    assert list(metrics.units("cafe\u0301 déjà-vu don't")) == [
        "cafe\u0301",
        "déjà",
        "-",
        "vu",
        "don",
        "'",
        "t",
    ]
    assert list(metrics.units("ab 12\n", chars=True)) == list("ab 12\n")
    assert list(metrics.units(" \n")) == list(metrics.units("")) == []


@given(MIXED)
def test_units_lose_and_change_nothing_but_blanks(text):
    found = list(metrics.units(text))
    assert "".join(found) == "".join(text.split())
    assert all(len(unit) == 1 or re.fullmatch("[aBé]+|[7８]+", unit) for unit in found)


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
def test_rouge_l_is_its_formula(answer, reference, beta):
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
        if answer or reference:  # two empty texts are nothing in common to it
            expected = theirs.score(reference, answer)["rougeL"]
            assert metrics.rouge_l(answer, reference, chars=True) == pytest.approx(
                tuple(expected), abs=1e-12
            )

    same()


def test_identical_chinese_is_one_and_a_reordered_sentence_is_known():
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
        assert metrics.rouge_l(prompt + answer + "\n", reference, beta=1 / 0.99, chars=True)[
            2
        ] == pytest.approx(published, abs=1e-12)


def test_words_are_compared_whole_and_only_chars_counts_blanks():
    assert f1("Tom", "Tim") == 0 and metrics.rouge_l("Tom", "Tim", chars=True)[2] == pytest.approx(
        2 / 3
    )
    assert f1("甲 乙\n", "甲乙") == 1 and metrics.rouge_l("甲 乙", "甲乙", chars=True)[
        2
    ] == pytest.approx(0.8)
    assert f1("tom", "Tom") == 0


def test_the_definition_names_what_was_chosen():
    assert "F1" in metrics.definition() and "β" not in metrics.definition()
    assert "β = 1.0101" in metrics.definition(beta=1 / 0.99)
    assert metrics.definition() != metrics.definition(chars=True)


def test_exact_match_ignores_outer_blanks_only():
    assert metrics.exact_match(" 甲乙\n", "甲乙")
    assert not metrics.exact_match("甲 乙", "甲乙") and not metrics.exact_match("甲乙。", "甲乙")


def test_char_f1_counts_units_as_often_as_they_occur():
    assert metrics.char_f1("乙甲", "甲乙") == 1.0
    assert metrics.char_f1("甲甲甲", "甲乙") == pytest.approx(2 / 5)  # one in common of 3 and 2
    assert metrics.char_f1("1985年", "1986年") == pytest.approx(1 / 2)
    assert (metrics.char_f1("", ""), metrics.char_f1("", "甲"), metrics.char_f1("乙", "甲")) == (
        1.0,
        0.0,
        0.0,
    )


@given(MIXED, MIXED)
def test_char_f1_is_never_below_rouge_l(a, b):
    assert metrics.char_f1(a, b) >= f1(a, b) - 1e-12


# ---------------------------------------------------------------- many answers


@given(
    st.lists(st.tuples(FEW, st.integers(0, 5)), min_size=1, max_size=8),
    st.lists(FEW, min_size=6, max_size=12),
)
def test_the_closest_other_reference_is_that_of_brute_force(rows, pool):
    answers, references = [answer for answer, _ in rows], [pool[number] for _, number in rows]
    for answer, reference, found in zip(
        answers, references, metrics.closer_references(answers, references, pool), strict=True
    ):
        best = max(f1(answer, text) for text in pool)
        if best <= f1(answer, reference) + 1e-12:
            assert found is None
        else:
            assert f1(answer, found) == pytest.approx(best)


def test_among_hundreds_a_closer_reference_is_missed_by_none():
    random = np.random.default_rng(1)
    pool = list(
        {
            "".join(random.choice(list("甲乙丙丁戊己庚辛，。"), random.integers(1, 12)))
            for _ in range(400)
        }
    )
    answers = ["".join(random.permutation(list(pool[i]))) for i in range(60)] + pool[:20]
    references = pool[40:100] + pool[:20]
    found = metrics.closer_references(answers, references, pool)
    for answer, reference, closer in zip(answers, references, found, strict=True):
        exists = max(f1(answer, text) for text in pool) > f1(answer, reference) + 1e-12
        assert (closer is not None) == exists and (
            closer is None or f1(answer, closer) > f1(answer, reference)
        )
    assert found[60:] == [None] * 20 and sum(closer is not None for closer in found) > 40


def test_the_only_closer_reference_is_found_behind_many_anagrams():
    answer, own, closer = "甲乙丙丁戊己庚辛", "甲乙壬癸", "甲乙丙丁"
    anagrams = map("".join, permutations(reversed(answer)))
    pool = list(
        islice(
            (text for text in anagrams if plain_lcs(text, answer) <= 2), 3 * metrics.MAX_CANDIDATES
        )
    )
    assert metrics.closer_references([answer], [own], [*pool, own]) == [None]
    assert metrics.closer_references([answer], [own], [*pool, own, closer]) == [closer]


def test_equal_references_are_the_same_one_and_an_equal_score_is_not_closer():
    assert metrics.closer_references(["甲乙丙丁"], ["甲乙"], ["甲乙", "甲乙", "丙丁"]) == [None]
    assert metrics.closer_references(["甲乙丙丁"], ["甲乙"], ["甲乙", "乙丙丁"]) == ["乙丙丁"]
    assert (
        metrics.closer_references(["甲"], ["甲"], []) == [None]
        and metrics.closer_references([], [], ["甲"]) == []
    )
    assert metrics.closer_references(["", ""], ["甲", ""], ["甲", ""]) == ["", None]


def test_units_occurring_more_often_than_a_byte_counts_are_bounded_rightly():
    long, short = "甲" * 700, "甲" * 300
    assert metrics.closer_references([long], [short], [short, long[:-1]]) == [long[:-1]]


def test_distinct_counts_different_runs_over_all_texts():
    assert metrics.distinct(["甲乙甲乙"], 1) == 2 / 4 and metrics.distinct(["甲乙甲乙"], 2) == 2 / 3
    assert (
        metrics.distinct(["甲乙", "甲乙", "丙"], 2) == 1 / 2
    )  # no run goes from one text into the next
    assert metrics.distinct(["lamp lamp"], 1) == 1 / 2
    assert metrics.distinct([], 1) == metrics.distinct(["甲"], 2) == 0.0


def test_repetition_is_the_share_of_runs_seen_before():
    assert (
        metrics.repetition("甲乙丙丁戊己") == 0
        and metrics.repetition("") == metrics.repetition("甲甲甲") == 0
    )
    assert metrics.repetition("甲" * 13) == pytest.approx(9 / 10)
    assert metrics.repetition("甲乙丙丁甲乙丙丁") == pytest.approx(1 / 5)


# ---------------------------------------------------------------- copied from the training text


def longest_from(answer: str, start: int, text: str) -> int:
    return next(n for n in range(len(answer) - start, -1, -1) if answer[start : start + n] in text)


def plain_spans(answer: str, text: str, least: int) -> list[tuple[int, int, int]]:
    start, found = 0, []
    while start < len(answer):
        length = longest_from(answer, start, text)
        if length >= least:
            found.append((start, start + length, text.find(answer[start : start + length])))
        start += length if length >= least else 1
    return found


@given(SIGNS, SIGNS, st.integers(1, 12), st.data())
def test_copies_are_those_of_brute_force(text, answer, least, data):
    if text:  # a piece of the text and strange signs among the answer
        start = data.draw(st.integers(0, len(text)))
        answer = (
            answer[:10]
            + text[start : start + 15]
            + data.draw(st.sampled_from(["", "丁", "\uffff"]))
            + answer[10:]
        )
    copies = evaluation_copies.CopyIndex(text)
    assert copies.longest(answer) == max(
        (longest_from(answer, i, text) for i in range(len(answer))), default=0
    )
    assert copies.spans(answer, least) == plain_spans(answer, text, least)


@given(st.text(max_size=60), st.text(max_size=20))
def test_copies_are_those_of_brute_force_in_any_script(text, answer):
    answer = text[7:19] + answer + text[:5]
    copies = evaluation_copies.CopyIndex(text)
    assert copies.longest(answer) == max(
        (longest_from(answer, i, text) for i in range(len(answer))), default=0
    )
    assert copies.spans(answer, 3) == plain_spans(answer, text, 3)


def test_copies_in_a_book_are_found_at_their_first_place(text):
    copies = evaluation_copies.CopyIndex(text)
    middle = text[15_000:15_040]
    (span,) = copies.spans("甲甲" + middle + "甲甲", min_length=20)
    start, end, place = span
    assert (start, end) == (2, 42) and place == text.find(middle)
    assert copies.longest("甲甲" + middle + "甲甲") == 40
    assert copies.longest(text[-9:] + "甲") == 9 and copies.longest("\U0001f600") == 0
    assert copies.spans(text, 20) == [(0, len(text), 0)]
    assert (
        evaluation_copies.CopyIndex("甲乙，甲丙").spans("甲", min_length=1)
        == evaluation_copies.CopyIndex("甲丙，甲乙").spans("甲", min_length=1)
        == [(0, 1, 0)]
    )
    assert [copies.longest(text[9000 : 9000 + n]) for n in range(40)] == list(range(40))


def test_the_longest_copy_is_found_where_an_earlier_span_runs_into_it():
    copies = evaluation_copies.CopyIndex("子丑寅卯辰巳午未。辰巳午未申酉戌亥甲乙")
    answer = "子丑寅卯辰巳午未申酉戌亥甲乙"
    assert copies.spans(answer) == [
        (0, 8, 0)
    ]  # what is left of the second one is shorter than eight
    assert copies.longest(answer) == 10


def test_nothing_is_copied_from_or_into_nothing():
    assert (
        evaluation_copies.CopyIndex("").spans("甲乙丙丁甲乙丙丁") == []
        and evaluation_copies.CopyIndex("").longest("甲") == 0
    )
    assert (
        evaluation_copies.CopyIndex("甲乙丙").spans("") == []
        and evaluation_copies.CopyIndex("甲乙丙").longest("") == 0
    )
    assert (
        evaluation_copies.CopyIndex("甲" * 10 + "乙").spans("甲" * 40 + "乙", min_length=35) == []
    )  # would begin long before the text does
    assert (
        evaluation_copies.CopyIndex("甲乙丙").longest("甲乙丙丁") == 3
        and evaluation_copies.CopyIndex("甲乙丙").spans("甲乙丙丁") == []
    )


# ---------------------------------------------------------------- how sure a figure is


def test_the_interval_is_repeatable_and_around_the_mean():
    values = np.random.default_rng(3).random(200).tolist()
    mean, low, high = intervals.bootstrap_mean(values, seed=5)
    assert (mean, low, high) == intervals.bootstrap_mean(values, seed=5) and (
        low,
        high,
    ) != intervals.bootstrap_mean(values, seed=6)[1:]
    assert mean == pytest.approx(np.mean(values)) and low < mean < high
    error = np.std(values) / len(values) ** 0.5
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_the_interval_covers_the_truth_nineteen_times_in_twenty():
    random = np.random.default_rng(0)
    samples = [random.random(60) for _ in range(300)]
    covered = sum(
        low <= 0.5 <= high
        for _, low, high in (intervals.bootstrap_mean(sample, rounds=400) for sample in samples)
    )
    assert 0.90 * 300 <= covered <= 0.98 * 300


def test_few_values_give_plain_numbers():
    assert intervals.bootstrap_mean([]) == (0.0, 0.0, 0.0) and intervals.bootstrap_mean([0.25]) == (
        0.25,
        0.25,
        0.25,
    )
    assert intervals.bootstrap_mean([True, True]) == (
        1.0,
        1.0,
        1.0,
    ) and intervals.paired_difference([], []) == (
        0.0,
        0.0,
        0.0,
    )


def test_a_paired_difference_sees_what_two_intervals_hide():
    random = np.random.default_rng(4)
    hard = random.random(100)
    better = np.clip(hard + 0.05 + 0.01 * random.standard_normal(100), 0, 2)
    (_, _, high), (_, low, _) = intervals.bootstrap_mean(hard), intervals.bootstrap_mean(better)
    assert low < high
    mean, low, high = intervals.paired_difference(better, hard)
    assert 0.04 < low < mean < high < 0.06
    with pytest.raises(ValueError):
        intervals.paired_difference([1.0], [1.0, 2.0])


def test_any_statistic_has_an_interval():
    values = np.random.default_rng(1).random(200)

    def median(rows):
        return np.median(values[rows])

    value, low, high = intervals.bootstrap_statistic(median, len(values), rounds=200)
    assert value == np.median(values) and low < value < high


# ---------------------------------------------------------------- what to compare with, and closed sets

QUESTIONS = [
    "沈砚在渡口等谁？",
    "渡口等着沈砚的人是谁？",
    "顾三娘的药铺在哪里？",
    "药铺开在哪条街？",
]
ANSWERS = ["老船夫。", "老船夫。", "在城南。", "在城南。"]


def test_looking_up_gives_the_answer_of_the_nearest_question():
    for look_up in (baselines.lookup_nearest, baselines.lookup_joined):
        assert look_up(
            QUESTIONS, ANSWERS, ["谁在渡口等沈砚？", "顾三娘把药铺开在哪里？", *QUESTIONS]
        ) == ["老船夫。", "在城南。", *ANSWERS]
        assert look_up(QUESTIONS, ANSWERS, []) == [] and look_up([], [], ["甲"]) == look_up(
            [""], ["乙"], ["甲"]
        ) == [""]


def test_joined_questions_of_an_answer_help_one_another():
    questions, answers = ["子丑寅", "卯辰巳", "子卯午未"], ["甲", "甲", "乙"]
    assert baselines.lookup_nearest(questions, answers, ["卯子"]) == ["乙"]
    assert baselines.lookup_joined(["子丑", "卯辰", "子午未申"], answers, ["卯子"]) == ["甲"]


def test_large_sets_are_looked_up_in_blocks_with_the_same_result():
    random = np.random.default_rng(2)
    words = ["".join(random.choice(list("子丑寅卯辰巳午未申酉戌亥"), 9)) for _ in range(3000)]
    answers = [str(number) for number in range(3000)]
    some = random.permutation(3000)[:2900]  # more than fit into one block
    assert baselines.lookup_nearest(words, answers, [words[i] for i in some]) == [
        answers[words.index(words[i])] for i in some
    ]


def test_the_lookups_are_as_strong_as_they_are_known_to_be():
    rows = [
        row
        for path in sorted((REPO_ROOT / "data" / "novella_qa").glob("chapters-*.json"))
        for row in json.loads(path.read_text(encoding="utf-8"))
    ]
    taught, asked = ([row for row in rows if row["split"] == split] for split in ("train", "val"))

    def score(look_up):
        found = look_up(
            [row["question"] for row in taught],
            [row["answer"] for row in taught],
            [row["question"] for row in asked],
        )
        return np.mean(
            [f1(answer, row["answer"]) for answer, row in zip(found, asked, strict=True)]
        )

    # With plain counts instead of their logarithms: 0.623 and 0.740. A weaker baseline would flatter the model.
    assert score(baselines.lookup_nearest) >= 0.62 and score(baselines.lookup_joined) >= 0.76


def test_classification_equals_scikit_learn():
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    labels = ["好", "坏", "平", "无"]  # the last one is predicted, but never right

    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=30))
    def same(rows):
        predicted, actual = np.array(rows).T
        confusion = metrics.confusion_matrix(predicted, actual, len(labels))
        by_label = metrics.label_scores(confusion, labels)
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
    assert metrics.label_scores(confusion, ["好", "坏"])["好"] == {
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "support": 0,
    }
