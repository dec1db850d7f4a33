"""The fit of recalled answers: on validation questions, cross-fitted, with controls."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shuoshu.answering.confidence import LOOKUP_WEIGHTS
from shuoshu.answering.knowledge import ANSWERS, TAUGHT, Fit
from shuoshu.answering.lookups import BookIndex
from shuoshu.answering.recall import Candidates
from shuoshu.answering.taught import Taught
from shuoshu.evaluation import model_knowledge
from shuoshu.evaluation.fit_answers import (
    VALIDATION_FOLDS,
    Validation,
    fit_answers,
    fit_lookups,
    single_questions,
)
from shuoshu.evaluation.model_knowledge import describe_knowledge, fit_knowledge, trained_questions
from shuoshu.generation.answers import Question
from shuoshu.generation.chat_model import ChatModel
from shuoshu.models.purpose import Purpose
from shuoshu.models.weights import load_model

ANSWERS_TAUGHT = tuple(f"{chr(0x4E00 + 7 * n)}{chr(0x5E00 + 11 * n)}" for n in range(30))
WRONG = "完全不对"


def validation(count: int, taught_share: float = 1.0, seed: int = 0) -> Validation:
    """Questions whose right answer mostly has the highest similarity, if it was taught."""
    draw = np.random.default_rng(seed)
    owners = np.where(draw.random(count) < taught_share, draw.integers(0, 30, count), -1)
    answers = np.stack([draw.permutation(30)[:8] for _ in range(count)]).reshape(count, 8)
    quality = draw.uniform(0.1, 0.5, (count, 1))  # of the wording: how much it tells
    similarities = np.sort(draw.uniform(0, 0.2, (count, 8)))[:, ::-1] * np.ones((4, 1, 1))
    similarities = np.moveaxis(similarities, 0, 2).copy()
    for row in np.flatnonzero(owners >= 0):
        answers[row][answers[row] == owners[row]] = answers[row, 0]
        answers[row, 0] = owners[row]
        similarities[row, 0] = quality[row] + draw.normal(0, 0.08)
    references = [ANSWERS_TAUGHT[n] if n >= 0 else "没有教过" for n in owners]
    is_right = draw.random(count) < 0.6
    written = [
        (f"{reference}。" if right else WRONG)
        for reference, right in zip(references, is_right, strict=True)
    ]
    return Validation(
        references,
        owners,
        ANSWERS_TAUGHT,
        Candidates(
            answers, similarities, similarities[:, :, 0] - 0.2, draw.normal(-9, 1, (count, 8))
        ),
        written,
        np.array([text not in ANSWERS_TAUGHT for text in written]),
        np.where(is_right, -0.2, -2.0) + draw.normal(0, 0.3, count),
    )


def answered(trials: list[tuple[float, bool]], threshold: float) -> tuple[float, float]:
    """(share of the trials at or above the threshold, share of these that are right)."""
    chosen = [is_right for p, is_right in trials if p >= threshold]
    return len(chosen) / len(trials), float(np.mean(chosen)) if chosen else 1.0


def is_sound(fit: Fit) -> bool:
    weights = fit.weights
    numbers = [*weights.lookups, *weights.joint, *weights.recall, *weights.write]
    probabilities = [p for p, _ in fit.trials]
    return (
        all(np.isfinite(numbers))
        and min(numbers) >= 0
        and all(0 <= p <= 1 for p in probabilities)
        and Fit.from_json(json.loads(json.dumps(fit.to_json()))) == fit
    )


# ---------------------------------------------------------------- the fit


def test_the_threshold_holds_for_other_questions_and_a_shuffled_confidence_has_none() -> None:
    """The control: where probabilities say nothing, almost nothing can be answered."""
    fit = fit_answers(validation(200), LOOKUP_WEIGHTS)
    others = fit_answers(validation(200, seed=1), LOOKUP_WEIGHTS).trials
    share, precision = answered(others, fit.threshold(0.9))
    assert share > 0.3 and precision > 0.8
    draw = np.random.default_rng(0)
    shuffled = draw.permutation([p for p, _ in fit.trials]).tolist()
    blind = dataclasses.replace(
        fit, trials=[(p, is_right) for p, (_, is_right) in zip(shuffled, fit.trials, strict=True)]
    )
    assert answered(blind.trials, blind.threshold(0.9))[0] < 0.1


def test_a_question_does_not_fit_its_own_trial() -> None:
    """Its reference is changed: its own probability stays, that of other folds changes."""
    data = validation(40)
    changed = dataclasses.replace(data, references=[WRONG, *data.references[1:]])
    before, after = (fit_answers(each, LOOKUP_WEIGHTS).trials for each in (data, changed))
    assert before[0][0] == after[0][0] and before[0][1] and not after[0][1]
    mine = 40 // VALIDATION_FOLDS
    assert [p for p, _ in before[:mine]] == [p for p, _ in after[:mine]]
    assert [p for p, _ in before[2 * mine :]] != [p for p, _ in after[2 * mine :]]


def test_answers_that_are_left_out_make_trials_that_are_wrong_and_less_probable() -> None:
    data = validation(60)
    trials = fit_answers(data, LOOKUP_WEIGHTS).trials
    assert len(trials) == 2 * 60
    mine = 60 // VALIDATION_FOLDS
    as_it_is, left_out = [], []
    for fold in range(VALIDATION_FOLDS):
        start = 2 * mine * fold
        as_it_is += trials[start : start + mine]
        left_out += trials[start + mine : start + 2 * mine]
    assert not any(is_right for _, is_right in left_out)
    assert np.mean([p for p, _ in left_out]) < np.mean([p for p, _ in as_it_is]) - 0.3


@pytest.mark.parametrize("taught_share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_few_questions_and_only_untaught_ones_give_a_sound_fit(count, taught_share) -> None:
    fit = fit_answers(validation(count, taught_share), LOOKUP_WEIGHTS)
    assert is_sound(fit) and len(fit.trials) >= (count if count > 1 else 0)
    without_book = validation(count, taught_share).without_book()
    assert is_sound(fit_answers(without_book, LOOKUP_WEIGHTS[:3]))


def test_one_question_is_no_reason_to_decline() -> None:
    fit = fit_answers(validation(1), LOOKUP_WEIGHTS)
    assert fit.trials == [] and fit.threshold(0.9) == 0 and fit.default == "write"


@pytest.mark.parametrize("text", [WRONG, "", None])
def test_a_model_that_is_always_wrong_or_always_right_gives_a_sound_fit(text) -> None:
    data = validation(20)
    written = data.references if text is None else [text] * 20
    fit = fit_answers(dataclasses.replace(data, written=written), LOOKUP_WEIGHTS)
    assert is_sound(fit) and fit.write_rouge_l == (1 if text is None else 0)
    assert fit.default == ("write" if text is None else "auto")


def test_candidates_that_are_all_wrong_are_not_believed() -> None:
    data = dataclasses.replace(
        validation(40, taught_share=0.0), written=[WRONG] * 40, mean_log_p=np.full(40, -0.1)
    )
    fit = fit_answers(data, LOOKUP_WEIGHTS)
    assert is_sound(fit) and fit.threshold(0.9) > 1
    assert max(p for p, _ in fit.trials) < 0.5


# ---------------------------------------------------------------- the look-ups' weights


@pytest.mark.parametrize(
    "pairs",
    [
        [("甲？", "一"), ("乙？", "二")],  # no answer has several questions
        [("甲？", "一"), ("乙？", "一")],  # there is only one answer
        [("甲？", "一"), ("乙？", "一"), ("丙？", "二")],
    ],
)
@pytest.mark.parametrize("has_book", [True, False])
def test_look_ups_of_little_data_keep_sound_weights(pairs, has_book) -> None:
    book = BookIndex(["甲是一。", "乙是二。"]) if has_book else None
    weights = fit_lookups(Taught.of_pairs(pairs), book)
    assert len(weights) == (4 if has_book else 3) and min(weights) >= 0
    if len(pairs) == 2:
        assert weights == LOOKUP_WEIGHTS[: len(weights)]


def test_questions_within_a_conversation_teach_nothing_that_stands_alone() -> None:
    def question(*messages: tuple[str, str]) -> Question:
        turns = [{"role": role, "content": text} for role, text in messages]
        return Question(turns, "他。", [1], 1, range(1), turns[-1]["content"])

    taught = single_questions(
        [
            question(("user", "谁？")),
            question(("system", "你是说书人。"), ("user", "何人？")),
            question(("user", "谁？"), ("assistant", "他。"), ("user", "真的？")),
        ]
    )
    assert taught.questions == ("谁？", "何人？")


# ---------------------------------------------------------------- beside a model


@pytest.fixture
def run(tuned: Path, qa: Path, tmp_path: Path) -> tuple[Path, Path, ChatModel]:
    """(copies of a finished run without its knowledge and of its questions, the model)."""
    out_dir = shutil.copytree(tuned, tmp_path / "out", ignore=shutil.ignore_patterns("check*"))
    folder = shutil.copytree(qa, tmp_path / "facts")
    for name in (ANSWERS, TAUGHT):
        (out_dir / name).unlink()
    change_json(out_dir / "settings.json", lambda c: c["data"].update(folder=str(folder)))
    return out_dir, folder, ChatModel(load_model(out_dir))


def change_json(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_test_questions_never_reach_the_fit(run, tuned: Path) -> None:
    out_dir, folder, model = run
    files = list(folder.glob("test*"))
    assert files
    for file in files:
        file.write_bytes(b"\xff no test questions")
    fit = fit_knowledge(out_dir, model, 8)
    as_before = json.loads((tuned / ANSWERS).read_text(encoding="utf-8"))
    again = json.loads((out_dir / ANSWERS).read_text(encoding="utf-8"))
    assert (out_dir / TAUGHT).read_bytes() == (tuned / TAUGHT).read_bytes()
    assert again["fits"].keys() == {"book", "alone"}
    for name, values in again["fits"].items():
        ours, theirs = (Fit.from_json(each) for each in (values, as_before["fits"][name]))
        assert [p for p, _ in ours.trials] == pytest.approx([p for p, _ in theirs.trials], abs=1e-4)
    assert fit.auto_rouge_l > 0.9 and f"written {fit.write_rouge_l:.3f}" in describe_knowledge(fit)


@pytest.mark.parametrize(
    "why", ["conversations", "texts", "lists", "changed", "gone", "no settings"]
)
def test_a_model_of_other_data_gets_no_knowledge(run, why: str) -> None:
    out_dir, folder, model = run
    if why == "conversations":
        model.purpose = Purpose("questions", 3)
    if why == "texts":
        model.purpose = Purpose("text", None)
    if why == "lists":
        change_json(folder / "meta.json", lambda c: c.update(separator="、"))
    if why == "changed":
        change_json(folder / "meta.json", lambda c: c["splits"]["train"].update(sha256="0" * 64))
    if why == "gone":
        shutil.rmtree(folder)
    if why == "no settings":
        (out_dir / "settings.json").write_text("[]", encoding="utf-8")
    assert trained_questions(out_dir, model) is None
    assert fit_knowledge(out_dir, model, 8) is None
    assert not (out_dir / ANSWERS).exists() and not (out_dir / TAUGHT).exists()


def test_questions_without_validation_ones_or_with_one_answer_give_no_knowledge(
    run, monkeypatch: pytest.MonkeyPatch
) -> None:
    out_dir, _, model = run
    real = model_knowledge.read_questions
    for split, limit in (("val", 0), ("train", 1)):

        def read(folder, name, tokenizer, split=split, limit=limit):
            questions = real(folder, name, tokenizer)
            return questions[:limit] if name == split else questions

        monkeypatch.setattr(model_knowledge, "read_questions", read)
        assert fit_knowledge(out_dir, model, 8) is None
        assert not (out_dir / ANSWERS).exists() and not (out_dir / TAUGHT).exists()


def test_a_single_validation_question_and_no_book_are_enough(
    run, monkeypatch: pytest.MonkeyPatch
) -> None:
    out_dir, _, model = run
    real = model_knowledge.read_questions
    monkeypatch.setattr(
        model_knowledge,
        "read_questions",
        lambda folder, name, tokenizer: real(folder, name, tokenizer)[
            : 1 if name == "val" else None
        ],
    )
    change_json(out_dir / "settings.json", lambda c: c["settings"].update(init_from="scratch"))
    fit = fit_knowledge(out_dir, model, 8)
    written = json.loads((out_dir / ANSWERS).read_text(encoding="utf-8"))
    assert list(written["fits"]) == ["alone"] and is_sound(fit)
