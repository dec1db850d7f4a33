"""The answerer of a fine-tuned model: recalls, writes or declines, and says how sure it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from shuoshu.answering.answerer import TAUGHT_PROBABILITY, Answer, Answerer
from shuoshu.answering.knowledge import Fit
from shuoshu.generation.answers import Question, answer, read_questions
from shuoshu.generation.sampling import Completion

UNTAUGHT = ["茶楼的掌柜叫什么？", "孙悟空是谁？", "🐉？"]


class Writer:
    """Writes answers by the model, or given ones; remembers which questions it was asked."""

    def __init__(self, answerer: Answerer, prompts: Sequence[list[int]], text: str | None = None):
        self.generator, self.prompts, self.text, self.asked = answerer.generator, prompts, text, []

    def __call__(self, numbers: Sequence[int]) -> list[Completion]:
        self.asked += numbers
        if self.text is not None:
            ids = self.generator.tokenizer.encode(self.text)
            return [Completion(self.text, ids, "end") for _ in numbers]
        asked = [Question([], "", list(self.prompts[n]), 12, range(0), "") for n in numbers]
        return answer(self.generator, asked, 8)


@pytest.fixture(scope="module")
def val(answerer: Answerer, qa: Path) -> list[Question]:
    return read_questions(qa, "val", answerer.generator.tokenizer)[:8]


def with_trials(answerer: Answerer, trials: list[tuple[float, bool]], **weights) -> Answerer:
    """The same answerer with another threshold, and with other weights."""
    knowledge = answerer.knowledge
    weights = dataclasses.replace(knowledge.fit.weights, **weights)
    fit = Fit(weights, trials, knowledge.fit.auto_rouge_l, knowledge.fit.write_rouge_l)
    return Answerer(answerer.generator, dataclasses.replace(knowledge, fit=fit), answerer.passages)


def ask(
    answerer: Answerer,
    texts: Sequence[str],
    way: str,
    precision: float = 0.9,
    written: str | None = None,
) -> tuple[list[Answer | None], list[int]]:
    """(the answers, the numbers of the questions that were written)."""
    prompts = [answerer.generator.question_ids(text) for text in texts]
    writer = Writer(answerer, prompts, written)
    return answerer.answer(texts, prompts, writer, way, precision), writer.asked


# ---------------------------------------------------------------- recall


def test_a_taught_question_is_recalled_word_for_word_also_with_other_white_space(
    answerer, qa
) -> None:
    taught = read_questions(qa, "train", answerer.generator.tokenizer)[:6]
    texts = [f" {q.text[:3]} {q.text[3:]}\n" for q in taught]
    for way in ("recall", "auto"):
        answers, asked = ask(answerer, texts, way)
        assert [a.text for a in answers] == [q.reference for q in taught] and not asked
        assert {(a.way, a.probability) for a in answers} == {("recall", TAUGHT_PROBABILITY)}


def test_a_taught_question_is_answered_even_if_nothing_else_is_sure_enough(answerer, qa) -> None:
    [taught] = read_questions(qa, "train", answerer.generator.tokenizer)[:1]
    strict = with_trials(answerer, [(0.999, False)])
    answers, _ = ask(strict, [taught.text, UNTAUGHT[0]], "auto", precision=1)
    assert [a.way for a in answers] == ["recall", "decline"]


def test_reworded_questions_are_recalled_with_the_nearest_taught_ones(answerer, val) -> None:
    answers, asked = ask(answerer, [q.text for q in val], "recall")
    right = [a.text == q.reference for a, q in zip(answers, val, strict=True)]
    assert sum(right) >= 6 and not asked
    assert all(0 < a.probability < 1 and len(a.nearest) == 3 for a in answers)
    exact = answerer.knowledge.taught.exact
    for found in answers:
        answers_of_nearest = [answerer.knowledge.taught.answers[exact(q)] for q in found.nearest]
        assert found.text in answers_of_nearest


def test_untaught_questions_are_less_probable(answerer, val) -> None:
    """They are about something else altogether; within a domain the fit's own tests say more."""
    known, _ = ask(answerer, [q.text for q in val], "recall")
    unknown, _ = ask(answerer, UNTAUGHT, "recall")
    mean = sum(a.probability for a in known) / len(known)
    assert max(a.probability for a in unknown) < mean


# ---------------------------------------------------------------- auto


def test_auto_declines_below_the_threshold_and_never_at_precision_0(answerer, val) -> None:
    strict = with_trials(answerer, [(0.9999, True), (0.5, False)])
    texts = [val[0].text, *UNTAUGHT]
    answers, asked = ask(strict, texts, "auto", precision=1)
    assert asked == [0, 1, 2, 3] and {a.way for a in answers[1:]} == {"decline"}
    assert answers[1].shown(texts[1]) == "这个问题没有教过我。"
    assert answers[1].shown("Who?") == "I was not taught this." and answers[1].text
    assert len(answers[1].nearest) == 3
    answers, _ = ask(strict, texts, "auto", precision=0)
    assert "decline" not in {a.way for a in answers}
    assert all(a.shown(q) == a.text for a, q in zip(answers, texts, strict=True))


def test_auto_gives_the_more_probable_of_the_recalled_and_the_written_answer(answerer) -> None:
    kinds = {}
    for name, bias in (("doubts", 99.0), ("believes", 0.0)):
        changed = with_trials(answerer, [], recall=(0, 0, 0, 3.0), write=(0.0, bias))
        [found], asked = ask(changed, UNTAUGHT[:1], "auto", written="没有人知道。")
        kinds[name] = found.way, found.completion is not None
        assert asked == [0]
    assert kinds == {"doubts": ("recall", False), "believes": ("write", True)}


def test_auto_writes_nothing_where_recall_is_sure(answerer, val) -> None:
    sure = with_trials(answerer, [(0.6, True)], recall=(0, 0, 0, 0), write=(1, 0))
    answers, asked = ask(sure, [val[0].text], "auto", precision=0)  # all have probability 0.5
    assert not asked and answers[0].way == "recall"
    answers, asked = ask(sure, [val[0].text], "auto", precision=0.9)
    assert asked == [0]


def test_a_written_answer_that_is_another_taught_answer_is_not_believed(answerer, val) -> None:
    [recalled], _ = ask(answerer, [val[0].text], "recall")
    other = next(a for a in answerer.knowledge.taught.answers if a != recalled.text)
    [written], _ = ask(answerer, [val[0].text], "write", written=other)
    assert (written.text, written.way, written.probability) == (other, "write", 0)
    [agreed], _ = ask(answerer, [val[0].text], "write", written=recalled.text)
    assert agreed.probability == recalled.probability
    [nearly], _ = ask(answerer, [val[0].text], "write", written=other[:-1])
    assert (nearly.text, nearly.probability) == (other[:-1], 0)
    [new], _ = ask(answerer, [val[0].text], "write", written="没有人知道。")
    assert 0 < new.probability < 1
    [empty], _ = ask(answerer, [val[0].text], "write", written="")
    assert 0 <= empty.probability <= 1


# ---------------------------------------------------------------- write


def test_the_model_alone_writes_what_it_writes_without_an_answerer(answerer, val) -> None:
    answers, asked = ask(answerer, [q.text for q in val], "write")
    assert asked == list(range(len(val))) and {a.way for a in answers} == {"write"}
    completions = Writer(answerer, [q.ids for q in val])(range(len(val)))
    assert [a.completion for a in answers] == completions


@pytest.mark.parametrize("way", ["write", "auto"])
def test_a_question_whose_writing_was_stopped_has_no_answer(answerer, way) -> None:
    prompts = [answerer.generator.question_ids(text) for text in UNTAUGHT]
    strict = with_trials(answerer, [(0.9999, True), (0.5, False)])
    answers = strict.answer(UNTAUGHT, prompts, lambda numbers: [None] * len(numbers), way, 1)
    assert answers == [None] * len(UNTAUGHT)
    plain = Answerer(answerer.generator, None)
    assert plain.answer(["谁？"], [[1]], lambda numbers: [None], way, 1) == [None]


def test_without_knowledge_the_model_writes_and_nothing_is_known_of_it(answerer) -> None:
    plain = Answerer(answerer.generator, None)
    [found], asked = ask(plain, ["谁？"], "auto")
    assert (found.way, found.probability, asked) == ("write", None, [0])
    assert plain.default_way == "write" and plain.sources("谁？", found) == []


# ---------------------------------------------------------------- all


@pytest.mark.parametrize("way", ["write", "recall", "auto"])
def test_questions_in_a_batch_are_answered_like_each_alone(answerer, qa, val, way) -> None:
    taught = read_questions(qa, "train", answerer.generator.tokenizer)[:1]
    texts = [*(q.text for q in val[:3]), *(q.text for q in taught), *UNTAUGHT]
    together, _ = ask(answerer, texts, way)
    for text, found in zip(texts, together, strict=True):
        [alone], _ = ask(answerer, [text], way)
        assert (found.text, found.way, found.nearest) == (alone.text, alone.way, alone.nearest)
        assert found.probability == pytest.approx(alone.probability, abs=1e-5)


def test_no_questions_have_no_answers(answerer) -> None:
    for way in ("write", "recall", "auto"):
        assert ask(answerer, [], way) == ([], [])


def test_the_passages_of_the_book_stand_beside_an_answer(answerer, val) -> None:
    [found], _ = ask(answerer, [val[0].text], "recall")
    sources = answerer.sources(val[0].text, found)
    assert len(sources) == 3 and all("《book》第" in passage.source for passage in sources)
    found.way = "decline"  # its text is wrong and must not lead the search
    assert answerer.sources(val[0].text, found) == answerer.passages.search(val[0].text)
