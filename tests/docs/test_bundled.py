"""The bundled book and its questions: their size, the evidence of the answers, and the variety of the questions."""

import json
import math
import re
from collections import Counter, defaultdict
from itertools import pairwise

import pytest

from shuoshu.core.errors import REPO_ROOT
from shuoshu.text.books import Book, find_files, read_books
from tests.evaluation.helpers import plain_lcs

FIELDS = {"question", "answer", "chapter", "evidence", "fact", "split"}
# Smallest edit distance between two phrasings of one fact, as a share of the longer one. Below it they share a clause word for word
# (为什么…不… / 为何…不…), and a lookup by characters finds one from the other.
MIN_DISTANCE = 0.4
REPETITION_OF_A_CLASSIC = (
    0.0015  # share of spans of 12 Chinese characters that occur more than once in 西游记
)


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> Book:
    files = find_files([str(REPO_ROOT / "data" / "novella")])
    (book,), bad = read_books(files, tmp_path_factory.mktemp("cleaned"))
    assert not bad
    return book


@pytest.fixture(scope="module")
def novel(book) -> str:
    return book.file.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return [
        row
        for path in sorted((REPO_ROOT / "data" / "novella_qa").glob("chapters-*.json"))
        for row in json.loads(path.read_text(encoding="utf-8"))
    ]


@pytest.fixture(scope="module")
def facts(rows) -> dict[str, list[dict]]:
    by_fact = defaultdict(list)
    for row in rows:
        by_fact[row["fact"]].append(row)
    return by_fact


def chapters_of(novel: str, book: Book) -> list[str]:
    starts = [start for _, start in book.chapters] + [len(novel)]
    return [novel[a:b] for a, b in pairwise(starts)]


# ---------------------------------------------------------------- the book


def test_the_book_is_long_enough_and_its_chapters_are_recognised(book, novel):
    assert len(book.chapters) == 24 and len(novel) >= 60_000
    for title, _ in book.chapters:
        assert re.fullmatch(r"第[一二三四五六七八九十]+回 (\S{7,8}) (\S{7,8})", title), title
    assert all(len(chapter) > 2_500 for chapter in chapters_of(novel, book))


def test_cleaning_leaves_the_book_unchanged(book, novel):
    (found,) = find_files([str(REPO_ROOT / "data" / "novella")])
    assert novel == found.read_text(encoding="utf-8")
    assert not book.account.places and not any(book.odd.values())


def test_the_last_chapter_is_the_validation_text(book):
    book.cut(0.05)
    assert book.val_from == book.chapters[-1][1]


def test_the_book_is_plain_text_in_one_script(novel):
    assert set(re.findall(r"[^\u4e00-\u9fff]", novel)) <= set("，。！？：；、“”‘’《》（）…— \n")
    assert "\n\n\n" not in novel and not re.search(r"^[ 　]|[ 　]$", novel, re.MULTILINE)


def test_the_book_repeats_itself_less_than_a_classic(novel):
    letters = re.sub(r"[^\u4e00-\u9fff]", "", novel)
    spans = Counter(letters[i : i + 12] for i in range(len(letters) - 11))
    repeated = sum(n for n in spans.values() if n > 1)
    assert repeated / sum(spans.values()) < REPETITION_OF_A_CLASSIC


# ---------------------------------------------------------------- the questions


def test_there_are_enough_facts_and_phrasings(rows, facts):
    assert all(row.keys() == FIELDS for row in rows)
    assert len(facts) >= 160 and min(map(len, facts.values())) >= 8 and len(rows) >= 1280
    assert all(
        len({(r["answer"], r["chapter"], r["evidence"]) for r in group}) == 1
        for group in facts.values()
    )
    assert all(2 <= len(row["answer"]) <= 150 for row in rows)
    assert sum(len(row["answer"]) >= 40 for row in rows) >= len(rows) / 3


def test_the_evidence_of_each_answer_is_in_its_chapter(facts, book, novel):
    chapters = chapters_of(novel, book)
    without = 0
    for group in facts.values():
        row = group[0]
        without += not row["evidence"]
        assert row["evidence"] in chapters[row["chapter"] - 1], row
    assert 0 < without <= 20
    assert {group[0]["chapter"] for group in facts.values()} == set(range(1, 25))


def test_some_questions_have_no_answer_in_the_book(facts):
    silent = [group for group in facts.values() if not group[0]["evidence"]]
    assert sum(map(len, silent)) >= 40
    assert all(re.search("书里|书中|没有|只", group[0]["answer"]) for group in silent)


def test_each_fact_has_one_val_and_one_test_question_and_thirty_facts_are_untaught(facts):
    untaught = [group for group in facts.values() if {r["split"] for r in group} == {"untaught"}]
    assert len(untaught) == 30
    for group in facts.values():
        counts = Counter(r["split"] for r in group)
        assert group in untaught or (
            counts["val"] == counts["test"] == 1 and counts["train"] == len(group) - 2
        )


def test_no_question_is_asked_twice(rows):
    assert len({row["question"] for row in rows}) == len(rows)


def test_phrasings_of_a_fact_are_different_sentences(facts):
    for group in facts.values():
        questions = [r["question"] for r in group]
        for i, a in enumerate(questions):
            for b in questions[:i]:
                assert edit_distance(a, b) >= MIN_DISTANCE * max(len(a), len(b)), (a, b)


def edit_distance(a: str, b: str) -> int:
    """The Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


# ---------------------------------------------------------------- baselines: lookup of the nearest question


def vectors(
    texts: list[str], longest: int, idf: dict[str, float] | None = None
) -> tuple[list[dict[str, float]], dict[str, float]]:
    """(unit TF-IDF vectors over character n-grams up to `longest`, idf); by default idf is that of `texts`."""
    counts = [
        Counter(t[i : i + n] for n in range(1, longest + 1) for i in range(len(t) - n + 1))
        for t in texts
    ]
    if idf is None:
        found = Counter(span for count in counts for span in count)
        idf = {span: math.log((1 + len(texts)) / (1 + n)) + 1 for span, n in found.items()}
    made = []
    for count in counts:
        vector = {span: n * idf[span] for span, n in count.items() if span in idf}
        norm = math.sqrt(sum(x * x for x in vector.values())) or 1.0
        made.append({span: x / norm for span, x in vector.items()})
    return made, idf


def looked_up(
    documents: list[str], answers: list[str], questions: list[str], longest: int
) -> list[str]:
    index, idf = vectors(documents, longest)
    found = []
    for vector in vectors(questions, longest, idf)[0]:
        scores = [
            sum(x * document.get(span, 0.0) for span, x in vector.items()) for document in index
        ]
        found.append(answers[scores.index(max(scores))])
    return found


def rouge_l(a: str, b: str) -> float:
    """F1 of the longest common subsequence, by character."""
    return 2 * plain_lcs(a, b) / (len(a) + len(b))


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_lookup_does_not_answer_most_questions(rows, split):
    """Prints the ROUGE-L of both lookups: pytest tests/docs/test_bundled.py -k lookup -s"""
    taught = [row for row in rows if row["split"] == "train"]
    asked = [row for row in rows if row["split"] == split]
    questions = [row["question"] for row in asked]
    joined = defaultdict(str)
    for row in taught:
        joined[row["answer"]] += row["question"] + "\n"
    nearest = looked_up(
        [row["question"] for row in taught], [row["answer"] for row in taught], questions, 2
    )
    best = looked_up(list(joined.values()), list(joined), questions, 1)
    scores = [
        sum(rouge_l(a, row["answer"]) for a, row in zip(found, asked, strict=True)) / len(asked)
        for found in (nearest, best)
    ]
    print(
        f"\n{split}: {len(asked)} questions; ROUGE-L looked up by the nearest taught question {scores[0]:.3f}, by all of an answer's {scores[1]:.3f}"
    )
    assert scores[0] < 0.85 and scores[1] < 0.85
