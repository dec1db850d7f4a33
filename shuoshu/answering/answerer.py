"""Answers questions in one of several ways, and says how sure it is.

write   the model writes the answer
recall  the model and the look-ups choose among the taught answers
auto    recall where that is sure, else write where that is surer, else decline
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shuoshu.answering.confidence import accepted, choose, write_signals
from shuoshu.answering.knowledge import Knowledge, read_knowledge
from shuoshu.answering.likelihood import mean_log_probability
from shuoshu.answering.passages import Passage, PassageIndex
from shuoshu.answering.quoting import best_sentence
from shuoshu.answering.reading import has_chinese
from shuoshu.answering.recall import find_candidates, with_likelihoods
from shuoshu.generation.sampling import Completion, TextGenerator

TAUGHT_PROBABILITY = 0.99  # of the answer to the very question that was taught
SURE = 0.5  # from this probability on, auto does not write an answer to compare
NEAREST = 3  # taught questions that a declined answer names

Write = Callable[[Sequence[int]], Sequence[Completion | None]]  # numbers of questions → texts


@dataclass
class Answer:
    """An answer, how it was found, and how probably it is right."""

    text: str  # also of a declined answer: what it would have been
    way: str  # "write", "recall" or "decline"
    probability: float | None = None  # None: nothing is known about it
    nearest: list[str] = field(default_factory=list)  # taught questions
    completion: Completion | None = None  # of a written one

    def shown(self, question: str) -> str:
        """The text for the reader: a declined answer says so, in Chinese if the question is."""
        if self.way != "decline":
            return self.text
        return "这个问题没有教过我。" if has_chinese(question) else "I was not taught this."


class Answerer:
    """Answers the questions of one model.

    knowledge: what is kept beside the model, None if there is nothing. passages: of the book behind
    the model, None if there is none.
    """

    def __init__(
        self,
        generator: TextGenerator,
        knowledge: Knowledge | None,
        passages: PassageIndex | None = None,
    ) -> None:
        self.generator, self.knowledge, self.passages = generator, knowledge, passages

    @classmethod
    def open(cls, out_dir: Path, generator: TextGenerator) -> Answerer:
        """With what is kept beside the model in out_dir; UserError if it is damaged."""
        passages = PassageIndex.find(out_dir)
        windows = passages.windows() if passages else []
        return cls(generator, read_knowledge(out_dir, windows), passages)

    def sources(self, question: str, answer: Answer) -> list[Passage]:
        """The passages of the book that speak of a question and its answer, the best first."""
        if not self.passages:
            return []
        return self.passages.search(question, "" if answer.way == "decline" else answer.text)

    def quote(self, question: str, answer: Answer, passages: Sequence[Passage]) -> str:
        """The sentence of the book nearest to a declined question; "" for any other."""
        return best_sentence(question, passages) if answer.way == "decline" else ""

    @property
    def default_way(self) -> str:
        return self.knowledge.fit.default if self.knowledge else "write"

    def answer(
        self,
        questions: Sequence[str],
        prompts: Sequence[Sequence[int]],
        write: Write,
        way: str,
        precision: float,
    ) -> list[Answer | None]:
        """An answer to each question, whose ids are in `prompts`; None for one that was stopped.

        precision: the share of right answers among those given; auto declines the others. Without
        knowledge every answer is written, and nothing is known of its probability.
        """
        if not self.knowledge:
            completions = write(range(len(questions)))
            return [done and Answer(done.text, "write", completion=done) for done in completions]
        recalled = self.recall(questions, prompts)
        if way == "recall":
            return recalled
        threshold = self.knowledge.fit.threshold(precision)
        sure = max(threshold, SURE)
        # The very question that was taught is never declined, whatever the precision.
        is_sure = [
            answer.probability >= sure or self.knowledge.taught.exact(question) is not None
            for answer, question in zip(recalled, questions, strict=True)
        ]
        unsure = [n for n, is_one in enumerate(is_sure) if way == "write" or not is_one]
        answers: list[Answer | None] = list(recalled)
        for number, completion in zip(unsure, write(unsure), strict=True):
            written = self.rate(completion, prompts[number], recalled[number])
            if way == "write" or not written:
                answers[number] = written
            elif max(written.probability, recalled[number].probability) < threshold:
                answers[number].way = "decline"
            elif written.probability > recalled[number].probability:
                answers[number] = written
        return answers

    def recall(self, questions: Sequence[str], prompts: Sequence[Sequence[int]]) -> list[Answer]:
        """The best taught answer to each question."""
        knowledge, taught = self.knowledge, self.knowledge.taught
        answers: list[Answer | None] = [None] * len(questions)
        open_ = []
        for number, question in enumerate(questions):
            exact = taught.exact(question)
            if exact is None:
                open_.append(number)
            else:
                answers[number] = Answer(taught.answers[exact], "recall", TAUGHT_PROBABILITY)
        if open_:
            texts = [questions[n] for n in open_]
            weights = knowledge.fit.weights
            candidates = find_candidates(knowledge.lookups, texts, weights.lookups)
            candidates = with_likelihoods(
                candidates, taught.answers, self.generator, [prompts[n] for n in open_]
            )
            best, probabilities = choose(candidates, weights)
            for row, number in enumerate(open_):
                order = candidates.answers[row, np.argsort(-probabilities[row], kind="stable")]
                answers[number] = Answer(
                    taught.answers[candidates.answers[row, best[row]]],
                    "recall",
                    float(probabilities[row, best[row]]),
                    knowledge.lookups.nearest_questions(texts[row], order[:NEAREST].tolist()),
                )
        return answers

    def rate(
        self, completion: Completion | None, prompt: Sequence[int], recalled: Answer
    ) -> Answer | None:
        """A written answer with its probability.

        One that repeats a taught answer has that of the recalled one if they are the same, else 0:
        the others were found less probable.
        """
        if completion is None:
            return None
        copied = self.knowledge.taught.copied(completion.text)
        if copied is None:
            probability = written_probability(self.generator, completion, prompt, self.knowledge)
        else:
            is_same = self.knowledge.taught.answers[copied] == recalled.text
            probability = recalled.probability if is_same else 0.0
        return Answer(completion.text, "write", probability, recalled.nearest, completion)


def written_probability(
    generator: TextGenerator, completion: Completion, prompt: Sequence[int], knowledge: Knowledge
) -> float:
    """How probably a written answer that repeats no taught one is right; 0 if it is empty."""
    if not completion.text.strip():
        return 0.0
    mean = mean_log_probability(generator, prompt, completion.ids)
    return float(accepted(write_signals(np.array([mean])), knowledge.fit.weights.write)[0])
