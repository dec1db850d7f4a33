"""The sentence of the passages that answers a question."""

from __future__ import annotations

import pytest

from shuoshu.answering.passages import Passage, PassageIndex
from shuoshu.answering.quoting import best_sentence


def passages(*texts: str) -> list[Passage]:
    return [Passage(text, None, 0, 1.0) for text in texts]


FERRY = "船夫老周撑着船。雨下了三天。渡口的铁牛重九百斤。老周说：“过河要等雨停。”"
INN = "客店里没有人。铁牛是谁铸的？掌柜的姓冯。"


@pytest.mark.parametrize(
    "question, sentence",
    [
        ("铁牛有多重？", "渡口的铁牛重九百斤。"),
        ("客店的掌柜姓什么？", "掌柜的姓冯。"),
        ("雨下了几天？", "雨下了三天。"),
    ],
)
def test_the_sentence_that_shares_rare_terms_is_quoted(question: str, sentence: str) -> None:
    assert best_sentence(question, passages(FERRY, INN)) == sentence


def test_a_sentence_that_asks_is_quoted_only_if_there_is_no_other() -> None:
    assert best_sentence("铁牛是谁铸的？", passages(INN, FERRY)) == "渡口的铁牛重九百斤。"
    assert best_sentence("铁牛是谁铸的？", passages("铁牛是谁铸的？")) == "铁牛是谁铸的？"


def test_words_that_every_sentence_has_count_little() -> None:
    text = (
        "The miller and the boy slept. The boy sold the grey mule for ten crowns. The miller sang."
    )
    sentence = "The boy sold the grey mule for ten crowns."
    assert best_sentence("How much was the mule of the miller?", passages(text)) == sentence


def test_a_quotation_mark_without_its_other_half_is_removed() -> None:
    text = "“信念不了。扔进江里。”他说。"
    assert best_sentence("信念不了怎么办？", passages(text)) == "信念不了。"
    assert best_sentence("扔进哪里？江里？", passages(text)) == "扔进江里。"


def test_without_passages_or_shared_terms_nothing_fails() -> None:
    assert best_sentence("谁？", []) == ""
    assert best_sentence("谁？", passages("", "。。。")) == ""
    assert best_sentence("xyz", passages(INN)) in INN


def test_passages_of_an_index_are_quoted_word_for_word() -> None:
    index = PassageIndex.from_texts([("书", FERRY + "\n" + INN)])
    sentence = best_sentence("铁牛有多重？", index.search("铁牛有多重？"))
    assert sentence == "渡口的铁牛重九百斤。"
