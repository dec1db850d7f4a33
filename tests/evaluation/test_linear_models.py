"""The strongest linear model is chosen on validation, and no text or label breaks it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from shuoshu.evaluation import linear_models
from shuoshu.evaluation.label_measures import cross_fitted, log_losses
from shuoshu.evaluation.linear_models import (
    LINEAR_KINDS,
    LinearKind,
    TextFeatures,
    shared_length,
    strongest,
)

LABELS = ["差", "好"]
NOISE = "子丑寅卯辰巳午未申酉戌亥"
TFIDF_1 = next(kind for kind in LINEAR_KINDS if kind[1:] == ("tfidf", "logistic", 1.0))


def reviews(
    n: int, seed: int, labels: tuple[str, ...] = ("差", "好"), share: float = 0.85
) -> tuple[list, list]:
    """Texts of noise: in a `share` of them their own label stands, in the others any label."""
    random = np.random.default_rng(seed)
    texts, chosen = [], []
    for number in range(n):
        label = labels[number % len(labels)]
        cue = label if random.random() < share else random.choice(labels)
        noise = random.choice(list(NOISE), 14)
        texts.append("".join([*noise[:7], cue, *noise[7:]]))
        chosen.append(label)
    return texts, chosen


def accuracy(model: linear_models.LinearModel, texts: list, true: list, labels: list) -> float:
    chosen = model.log_probabilities(texts).argmax(axis=1)
    return np.mean([labels[best] == label for best, label in zip(chosen, true, strict=True)])


# ---------------------------------------------------------------- the models


@pytest.mark.parametrize("labels", [("差", "好"), ("甲", "乙", "丙", "丁")])
def test_the_model_learns_what_speaks_for_each_label(labels):
    model = strongest(*reviews(160, 0, labels), *reviews(80, 1, labels), labels)
    texts, true = reviews(80, 2, labels)
    assert accuracy(model, texts, true, labels) > 0.75
    log_probabilities = model.log_probabilities(texts)
    assert log_probabilities.shape == (80, len(labels))
    assert np.exp(log_probabilities).sum(axis=1) == pytest.approx(1)
    assert (
        -np.log(len(labels))
        < -log_losses(log_probabilities, np.array([labels.index(label) for label in true])).mean()
    )


def test_probabilities_one_by_one_equal_those_of_a_batch():
    model = strongest(*reviews(60, 0), *reviews(20, 1), LABELS)
    texts, _ = reviews(7, 2)
    one_by_one = [model.log_probabilities([text])[0] for text in texts]
    assert np.array(one_by_one) == pytest.approx(model.log_probabilities(texts))
    assert model.log_probabilities([]).shape == (0, 2)


def test_plain_tfidf_equals_scikit_learns_pipeline(monkeypatch):
    monkeypatch.setattr(linear_models, "LINEAR_KINDS", [TFIDF_1])
    train, asked = reviews(100, 0), reviews(20, 1)[0]
    vectors = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True, min_df=2)
    expected = make_pipeline(vectors, LogisticRegression(C=1, max_iter=300)).fit(*train)
    assert list(expected.classes_) == ["好", "差"]  # by code point
    found = strongest(*train, [], [], ["好", "差"]).log_probabilities(asked)
    assert np.exp(found) == pytest.approx(expected.predict_proba(asked), abs=1e-5)


def test_nb_weighted_binary_features_equal_a_pipeline_of_counts(monkeypatch):
    kind = next(kind for kind in LINEAR_KINDS if kind.features == "nb_binary")
    monkeypatch.setattr(linear_models, "LINEAR_KINDS", [kind])
    (texts, true), asked = reviews(100, 0), reviews(20, 1)[0]
    asked = [text + text[:5] for text in asked]  # occurrences aren't counted
    vectors = CountVectorizer(analyzer="char", ngram_range=(1, 3), min_df=2, binary=True)
    counts, is_good = vectors.fit_transform(texts).toarray(), np.array(true) == "好"
    good, bad = (1 + counts[rows].sum(axis=0) for rows in (is_good, ~is_good))
    ratio = np.log(good / good.sum() / (bad / bad.sum()))
    classifier = LogisticRegression(C=kind.c, max_iter=300).fit(counts * ratio, is_good)
    expected = classifier.predict_proba(vectors.transform(asked).toarray() * ratio)
    found = strongest(texts, true, [], [], LABELS).log_probabilities(asked)
    assert np.exp(found) == pytest.approx(expected, abs=1e-4)


def test_naive_bayes_weights_equal_their_definition():
    features, matrix = TextFeatures.fit(["甲乙甲", "甲丙", "乙丙", "甲丙"])
    is_label = np.array([True, True, False, False])
    column = features.vectorizers[0].vocabulary_
    assert set(column) == {"甲", "乙", "丙", "甲丙"}
    # Texts of the label with 甲, 乙, 丙, 甲丙: 2, 1, 1, 1; of the others: 1, 1, 2, 1. Plus one.
    expected = {"甲": 3 / 9, "乙": 2 / 9, "丙": 2 / 9, "甲丙": 2 / 9}
    other = {"甲": 2 / 9, "乙": 2 / 9, "丙": 3 / 9, "甲丙": 2 / 9}
    weights = linear_models.naive_bayes_weights(matrix, is_label)
    for term, number in column.items():
        assert weights[number] == pytest.approx(np.log(expected[term] / other[term])), term


@pytest.mark.parametrize("kind", LINEAR_KINDS, ids=lambda kind: kind.name)
def test_each_kind_of_model_learns_with_and_without_spaces(kind, monkeypatch):
    monkeypatch.setattr(linear_models, "LINEAR_KINDS", [kind])
    for read in (str, lambda text: " ".join(f"w{ord(character)}" for character in text)):
        train, val, test = (reviews(n, seed) for seed, n in enumerate((160, 80, 80)))
        train, val, test = (([*map(read, texts)], true) for texts, true in (train, val, test))
        assert accuracy(strongest(*train, *val, LABELS), *test, LABELS) > 0.75


# ---------------------------------------------------------------- the choice


def test_the_most_accurate_model_on_validation_is_chosen():
    train, val = reviews(40, 5, share=0.5), reviews(30, 105, share=0.5)  # they disagree on these
    true = np.array([LABELS.index(label) for label in val[1]])
    chosen = strongest(*train, *val, LABELS)
    merits = {}
    for kind in LINEAR_KINDS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(linear_models, "LINEAR_KINDS", [kind])
            alone = strongest(*train, *val, LABELS)
        alone.correction = None
        corrected = cross_fitted(alone.log_probabilities(val[0]), true)
        right = (corrected.argmax(axis=1) == true).mean()
        merits[kind.name] = (right, -log_losses(corrected, true).mean())
    assert len(set(merits.values())) > 1
    assert chosen.name == max(merits, key=merits.get)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_model_that_learns_nothing_is_not_chosen(swapped, monkeypatch):
    kinds = [TFIDF_1, LinearKind("deaf", "tfidf", "logistic", 1e-9)]
    monkeypatch.setattr(linear_models, "LINEAR_KINDS", kinds[::-1] if swapped else kinds)
    assert strongest(*reviews(60, 0), *reviews(40, 1), LABELS).name == TFIDF_1.name


def test_without_validation_the_first_kind_is_fitted():
    model = strongest(*reviews(100, 0), [], [], LABELS)
    assert model.name == LINEAR_KINDS[0].name and model.correction is None
    assert accuracy(model, *reviews(60, 1), LABELS) > 0.75


def test_validation_texts_add_no_features_and_no_weights(monkeypatch):
    monkeypatch.setattr(linear_models, "LINEAR_KINDS", [TFIDF_1])
    train, (texts, true) = reviews(60, 0), reviews(40, 1)
    chosen = strongest(*train, [text + "未见之字" for text in texts], true, LABELS)
    alone = strongest(*train, [], [], LABELS)
    assert np.array_equal(chosen.weights, alone.weights)


def test_the_svms_margins_become_probabilities(monkeypatch):
    """Raw margins are too timid: corrected ones have a much lower loss on other texts."""
    monkeypatch.setattr(
        linear_models, "LINEAR_KINDS", [k for k in LINEAR_KINDS if k.classifier == "svm"]
    )
    model = strongest(*reviews(300, 0), *reviews(300, 1), LABELS)
    texts, true = reviews(300, 2)
    numbers = np.array([LABELS.index(label) for label in true])
    corrected = log_losses(model.log_probabilities(texts), numbers).mean()
    model.correction = None
    assert corrected < log_losses(model.log_probabilities(texts), numbers).mean() - 0.01


# ---------------------------------------------------------------- hostile data


def test_a_label_may_be_missing_in_validation_or_in_training():
    labels = ["甲", "乙", "丙"]
    texts, true = reviews(90, 0, tuple(labels))
    without = [number for number, label in enumerate(true) if label != "丙"]
    few = [texts[n] for n in without], [true[n] for n in without]
    model = strongest(texts, true, *few, labels)
    assert accuracy(model, *reviews(90, 1, tuple(labels)), labels) > 0.6
    model = strongest(*few, texts, true, labels)
    log_probabilities = model.log_probabilities(texts)
    assert np.isfinite(log_probabilities).all()
    assert 2 not in log_probabilities.argmax(axis=1)
    assert accuracy(model, *few, labels) > 0.75


def test_twenty_rows_are_enough_for_a_model():
    model = strongest(*reviews(20, 0), *reviews(4, 1), LABELS)
    assert accuracy(model, *reviews(100, 2), LABELS) > 0.6


@pytest.mark.parametrize(
    "texts",
    [
        pytest.param([""] * 6, id="empty"),
        pytest.param([" \n", "", "。", "!", "?", "  "], id="signs"),
        pytest.param([*"甲乙丙丁戊己"], id="nothing twice"),
        pytest.param(["", "好", "", "好吃", "\0", "🙂"], id="some empty"),
    ],
)
@pytest.mark.parametrize("n_val", [0, 1, 6])
def test_texts_without_common_features_give_a_model(texts, n_val):
    true = ["差", "好", "差", "差", "差", "好"]
    model = strongest(texts, true, texts[:n_val], true[:n_val], LABELS)
    found = model.log_probabilities(["", "好吃", "new words"])
    assert found.shape == (3, 2) and np.isfinite(found).all()


def test_without_features_the_labels_have_their_shares():
    found = strongest([""] * 8, ["差"] * 6 + ["好"] * 2, [], [], LABELS).log_probabilities(["好"])
    assert np.exp(found[0]) == pytest.approx([0.75, 0.25], abs=0.01)


def test_a_single_label_is_certain():
    found = strongest(["好", "很好"], ["好"] * 2, [], [], LABELS).log_probabilities(["差", ""])
    assert np.exp(found[:, 1]) == pytest.approx(1)


# ---------------------------------------------------------------- bounds


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(0, 200))
def test_shortened_texts_fit_into_the_total_and_no_longer_ones_would(lengths, total):
    length = shared_length(lengths, total)
    assert sum(min(length, own) for own in lengths) <= total
    if length < max(lengths, default=0):
        assert sum(min(length + 1, own) for own in lengths) > total


def test_a_long_text_keeps_its_beginning_and_its_end(monkeypatch):
    monkeypatch.setattr(linear_models, "MAX_TRAINING_CHARACTERS", 4 * 3)
    features, matrix = TextFeatures.fit(["甲乙丙丁戊己庚"] * 2 + ["甲乙"] * 2)
    assert features.max_length == 4  # the short texts leave their share to the long ones
    assert set("".join(features.vectorizers[0].vocabulary_)) == set("甲乙己庚 ")
    long = features.transform(["甲乙丙丁丁丁丁丁丁丁戊己庚"])
    assert (long != matrix[0]).nnz == 0


def test_the_number_of_features_is_bounded(monkeypatch):
    monkeypatch.setattr(linear_models, "MAX_FEATURES", 10)
    assert TextFeatures.fit(reviews(40, 0)[0])[1].shape[1] == 10
    assert TextFeatures.fit(["the cat sat", "the cat ran"] * 3)[1].shape[1] <= 20


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["房间很大，iPhone 能用 WiFi", "早餐 OK"], None),
        (["部屋は広い", "朝食が良い"], None),
        (["ห้องพักกว้าง", "อาหารเช้าดี"], None),
        (["The room is large 🙂", "Breakfast was good 🙂🙂"], "room is"),
        (["Комната большая", "Завтрак хороший"], "комната большая"),
    ],
    ids=["Chinese", "Japanese", "Thai", "English", "Russian"],
)
def test_words_are_read_where_texts_have_spaces(texts, words):
    characters, *others = TextFeatures.fit(texts)[0].vectorizers
    assert characters.analyzer == ("char_wb" if words else "char")
    assert [words in other.vocabulary_ for other in others] == ([True] if words else [])
