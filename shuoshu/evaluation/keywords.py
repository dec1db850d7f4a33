"""Measures lists as answers, such as keywords: precision, recall and F1 of their sets of items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shuoshu.core.parts import evenly
from shuoshu.evaluation.baselines import MAX_VALIDATION
from shuoshu.evaluation.intervals import paired_difference
from shuoshu.evaluation.list_picker import ListPicker, Picking
from shuoshu.evaluation.measure_set import MeasureSet
from shuoshu.generation.answers import Question
from shuoshu.sft.answer_lists import list_items

SetScores = tuple[float, float, float]  # precision, recall, F1


def set_scores(answer: Sequence[str], reference: Sequence[str]) -> SetScores:
    """Precision, recall and F1 of the answer's items; 1 if both are empty, 0 if one is."""
    answered, expected = set(answer), set(reference)
    if not answered or not expected:
        return (1.0, 1.0, 1.0) if answered == expected else (0.0, 0.0, 0.0)
    n_right = len(answered & expected)
    f1 = 2 * n_right / (len(answered) + len(expected))
    return n_right / len(answered), n_right / len(expected), f1


@dataclass
class KeywordMeasures:
    """Measures answers that are lists, and lists picked from the questions by TF-IDF."""

    separator: str
    picker: ListPicker
    picking: Picking
    n_validation: int  # questions that the picking was chosen on; 0: it is the default

    @classmethod
    def choose(
        cls, separator: str, training: Sequence[Question], validation: Sequence[Question]
    ) -> KeywordMeasures:
        """Counts the training texts' terms; chooses how to pick by F1 on the validation texts."""
        validation = [validation[n] for n in evenly(len(validation), MAX_VALIDATION)]
        picker = ListPicker(_texts(training), _lists(training, separator))
        picking = picker.choose(
            _texts(validation), _lists(validation, separator), lambda a, b: set_scores(a, b)[2]
        )
        return cls(separator, picker, picking, len(validation))

    @property
    def definition(self) -> str:
        """What is measured, for eval.json and the terminal."""
        chosen = f"chosen on {self.n_validation:,} validation questions"
        return (
            f"items separated by {self.separator}, without differences in case, width and white"
            f" space; tfidf_list: {self.picking}"
            f" ({chosen if self.n_validation else 'the default'})"
        )

    def add(
        self, measures: MeasureSet, texts: Sequence[str], asked: Sequence[Question]
    ) -> list[float]:
        """Adds the measures of the answers; returns the F1 of each."""
        answers = [list_items(text, self.separator) for text in texts]
        return self._add_scores(measures, "", answers, asked)

    def add_baseline(self, measures: MeasureSet, asked: Sequence[Question]) -> None:
        """Adds the measures of the picked lists, and how far the answers' F1 is above theirs."""
        picked = [self.picker.pick(text, self.picking) for text in _texts(asked)]
        f1 = self._add_scores(measures, "tfidf_", picked, asked)
        above = paired_difference(measures.by_row["list_f1"], f1, measures.seed)
        measures.add_interval("above_tfidf_list_f1", above)

    def _add_scores(
        self,
        measures: MeasureSet,
        prefix: str,
        lists: Sequence[Sequence[str]],
        asked: Sequence[Question],
    ) -> list[float]:
        scores = list(map(set_scores, lists, _lists(asked, self.separator)))
        for column, name in enumerate(("list_precision", "list_recall", "list_f1")):
            measures.add_mean(prefix + name, [score[column] for score in scores])
        return [f1 for _, _, f1 in scores]


def _texts(questions: Sequence[Question]) -> list[str]:
    return [question.text for question in questions]


def _lists(questions: Sequence[Question], separator: str) -> list[list[str]]:
    return [list_items(question.reference, separator) for question in questions]
