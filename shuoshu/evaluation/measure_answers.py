"""Measures models on questions: perplexity of the references, and how good their answers are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from shuoshu.answering.answerer import Answerer
from shuoshu.core.command_settings import EvalSettings
from shuoshu.evaluation import metrics
from shuoshu.evaluation.baselines import Lookups, add_baselines
from shuoshu.evaluation.copies import TrainingText
from shuoshu.evaluation.evaluated_model import (
    EvaluatedModel,
    SplitResult,
    answer_row,
    progress_printer,
)
from shuoshu.evaluation.keywords import KeywordMeasures
from shuoshu.evaluation.loss import score
from shuoshu.evaluation.measure_set import MeasureSet
from shuoshu.evaluation.measure_ways import add_untaught, add_ways, open_ways, ways_definition
from shuoshu.generation.answers import Question, answer, limit_questions, read_questions
from shuoshu.generation.sampling import Completion, TextGenerator
from shuoshu.sft.dataset import QuestionDataset, answer_batches
from shuoshu.text.dataset import read_meta
from shuoshu.text.tokenizer import Tokenizer


@dataclass
class QuestionSet:
    """The questions of one split, and the training questions."""

    split: str
    data: QuestionDataset
    asked: list[Question]
    training: list[Question]

    @classmethod
    def read(
        cls,
        settings: EvalSettings,
        folder: Path,
        split: str,
        tokenizer: Tokenizer,
        training: list[Question],
    ) -> QuestionSet:
        """All questions of the split, or a part of `settings.limit`: each answer in proportion."""
        asked = limit_questions(read_questions(folder, split, tokenizer), settings.limit)
        return cls(split, QuestionDataset(folder, split), asked, training)

    @property
    def references(self) -> list[str]:
        return [question.reference for question in self.asked]

    @property
    def rows(self) -> list[int]:
        """The dataset's rows; a long answer has several."""
        return [row for question in self.asked for row in question.rows]

    @property
    def scored_texts(self) -> list[str]:
        """The texts whose tokens are scored: every assistant turn of a conversation."""
        earlier = [
            message["content"]
            for question in self.asked
            for message in question.messages
            if message["role"] == "assistant"
        ]
        return earlier + self.references


class Tools(NamedTuple):
    """What the answers of every split are measured with."""

    lookups: Lookups
    source: TrainingText | None  # None: the training text is missing
    lists: KeywordMeasures | None  # None: the answers are no lists
    answerer: Answerer | None  # None: the first model doesn't recall


def measure_answers(
    settings: EvalSettings,
    models: Sequence[EvaluatedModel],
    folder: Path,
    splits: Sequence[str],
    source: TrainingText | None,
) -> dict[str, SplitResult]:
    """Measures the models and the baselines on each split."""
    meta, tokenizer = read_meta(folder), models[0].tokenizer
    training = read_questions(folder, "train", tokenizer)
    validation = read_questions(folder, "val", tokenizer)
    lookups = Lookups.choose(settings, training, validation)
    lists = None
    if separator := meta.get("separator"):
        lists = KeywordMeasures.choose(separator, training, validation)
    tools = Tools(lookups, source, lists, open_ways(models[0]))
    results = {}
    for split in splits:
        questions = QuestionSet.read(settings, folder, split, tokenizer, training)
        results[split] = measure_split(settings, models, questions, tools)
    add_untaught(results)
    return results


def measure_split(
    settings: EvalSettings,
    models: Sequence[EvaluatedModel],
    questions: QuestionSet,
    tools: Tools,
) -> SplitResult:
    """Measures each model's greedy answers; adds the baselines to the first model's measures."""
    lookups, source, lists, answerer = tools
    tokens = int(sum(questions.data.trained[row] for row in questions.rows))
    result = SplitResult({"questions": len(questions.asked), "tokens": tokens})
    result.definitions["lookups"] = lookups.definition
    if lists:
        result.definitions["lists"] = lists.definition
    if answerer:
        result.definitions["ways"] = ways_definition(answerer)
    for model in models:
        measures = MeasureSet(settings.seed)
        add_reference_perplexities(measures, model, questions)
        completions = answer(
            TextGenerator(model.model, model.tokenizer),
            questions.asked,
            settings.batch_size,
            progress=progress_printer(len(questions.asked), questions.split),
            max_new_tokens=settings.max_new_tokens,
        )
        texts = [completion.text for completion in completions]
        scores = add_answer_scores(measures, settings, questions, completions)
        if lists:
            for row, f1 in zip(scores, lists.add(measures, texts, questions.asked), strict=True):
                row["list_f1"] = f1
        copies = source.find_copies(texts + questions.references) if source else []
        measures.add_text_statistics("", texts, copies[: len(texts)])
        if model is models[0]:
            measures.add_text_statistics("reference_", questions.references, copies[len(texts) :])
            add_baselines(measures, settings, lookups, questions.asked)
            if lists:
                lists.add_baseline(measures, questions.asked)
            if answerer:
                ways = add_ways(measures, settings, answerer, questions.asked, completions)
                scores = [row | way for row, way in zip(scores, ways, strict=True)]
            result.rows = answer_rows(questions, texts, scores)
            result.add_copies(copies)
        result.add(model.folder, measures, texts)
    return result


def add_reference_perplexities(
    measures: MeasureSet, model: EvaluatedModel, questions: QuestionSet
) -> None:
    rows_at_once = model.rows(questions.data.width)
    batches = answer_batches(questions.data, rows_at_once, questions.rows)
    scored = score(model.model, model.model, batches, model.tokenizer.answer_end)
    texts = questions.scored_texts
    n_bytes = sum(len(text.encode()) for text in texts)
    measures.add_perplexities(scored, sum(map(len, texts)), n_bytes)


def add_answer_scores(
    measures: MeasureSet,
    settings: EvalSettings,
    questions: QuestionSet,
    completions: Sequence[Completion],
) -> list[dict]:
    """Compares the answers with their references; returns each answer's scores for its row."""
    references = questions.references
    pairs = list(zip([completion.text for completion in completions], references, strict=True))
    rouge = [
        metrics.rouge_l(text, reference, settings.beta, settings.rouge == "chars")
        for text, reference in pairs
    ]
    exact = [metrics.exact_match(text, reference) for text, reference in pairs]
    char_f1 = [metrics.char_f1(text, reference) for text, reference in pairs]
    all_references = [question.reference for question in questions.training] + references
    closer = metrics.closer_references(
        [text for text, _ in pairs], references, list(dict.fromkeys(all_references))
    )
    for column, name in ((2, "rouge_l"), (0, "rouge_l_precision"), (1, "rouge_l_recall")):
        measures.add_mean(name, [scores[column] for scores in rouge])
    measures.add_mean("exact_match", exact)
    measures.add_mean("char_f1", char_f1)
    measures.add_mean("stop_rate", [completion.reason == "end" for completion in completions])
    measures.add_mean("wrong_question_rate", [text is not None for text in closer])
    return [
        {
            "rouge_l": rouge[n][2],
            "exact": exact[n],
            "char_f1": char_f1[n],
            "stop": completion.reason,
            "closer_to": closer[n],
        }
        for n, completion in enumerate(completions)
    ]


def answer_rows(questions: QuestionSet, texts: Sequence[str], scores: Sequence[dict]) -> list[dict]:
    """One row per question for eval_answers.jsonl."""
    rows = []
    for n, question in enumerate(questions.asked):
        row = answer_row(
            questions.split, question.rows[0], question.text, question.reference, texts[n]
        )
        rows.append(row | scores[n])
    return rows
