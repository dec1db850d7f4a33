"""answers.json and taught.jsonl: what is kept beside a model, and what damage to it does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shuoshu.answering import knowledge as knowledge_module
from shuoshu.answering.confidence import LOOKUP_WEIGHTS, AnswerWeights
from shuoshu.answering.knowledge import (
    ANSWERS,
    TAUGHT,
    Fit,
    Knowledge,
    is_current,
    read_knowledge,
    write_knowledge,
)
from shuoshu.answering.taught import Taught
from shuoshu.core.errors import UserError
from shuoshu.core.files import sha256_of
from tests.answering.conftest import BOOK

TRIALS = [(0.97, True), (0.9, True), (0.8, False), (0.6, True), (0.3, False), (1 / 3, False)]
FITS = {
    "book": Fit(AnswerWeights(LOOKUP_WEIGHTS), TRIALS, 0.8, 0.7),
    "alone": Fit(AnswerWeights(LOOKUP_WEIGHTS[:3]), TRIALS, 0.6, 0.7),
}


@pytest.fixture
def folder(tmp_path: Path, taught: Taught) -> Path:
    """A folder of a model, with knowledge. The model is only hashed here."""
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    write_knowledge(tmp_path, taught, FITS)
    return tmp_path


def read_message(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        read_knowledge(folder, BOOK)
    return str(error.value)


def change(folder: Path, content: dict) -> None:
    (folder / ANSWERS).write_text(json.dumps(content), encoding="utf-8")


# ---------------------------------------------------------------- reading and writing


def test_knowledge_is_read_as_it_was_written(folder: Path, taught: Taught) -> None:
    knowledge = read_knowledge(folder, BOOK)
    assert isinstance(knowledge, Knowledge) and knowledge.fit == FITS["book"]
    assert knowledge.taught.questions == taught.questions
    assert knowledge.taught.answers == taught.answers
    assert knowledge.taught.owners.tolist() == taught.owners.tolist()
    assert knowledge.lookups.book is not None and knowledge.fit.default == "auto"
    assert is_current(folder)


def test_without_the_book_the_fit_that_needs_none_is_used(folder: Path) -> None:
    knowledge = read_knowledge(folder, [])
    assert knowledge.fit == FITS["alone"] and knowledge.lookups.book is None
    assert knowledge.fit.default == "write"


def test_knowledge_that_was_made_without_a_book_does_not_use_one(tmp_path, folder, taught) -> None:
    write_knowledge(folder, taught, {"alone": FITS["alone"]})
    assert read_knowledge(folder, BOOK).lookups.book is None


def test_the_knowledge_of_other_weights_is_none(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"trained further")
    assert read_knowledge(folder, BOOK) is None and not is_current(folder)


def test_a_folder_without_knowledge_or_without_a_model_has_none(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert read_knowledge(folder, BOOK) is None and not is_current(folder)
    (folder / ANSWERS).unlink()
    assert read_knowledge(folder, BOOK) is None and not is_current(folder)


def test_a_full_disk_leaves_the_files_as_they_were(
    folder: Path, taught: Taught, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(path: Path, text: str) -> str:
        path.write_text(text[:9], encoding="utf-8")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(knowledge_module, "write_synced_text", full)
    with pytest.raises(OSError, match="No space"):
        write_knowledge(folder, Taught.of_pairs([("甲？", "乙"), ("丙？", "丁")]), FITS)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize(
    "content",
    ["", "{", "null", "[]", "7", '"text"', "[" * 100_000, '{"format": 2}', '{"format": 1}', "\0"],
)
def test_a_file_that_is_not_answers_json_is_an_error_with_advice(folder: Path, content) -> None:
    (folder / ANSWERS).write_text(content, encoding="utf-8")
    message = read_message(folder)
    assert "answers.json is damaged" in message and "delete it" in message
    assert f"python eval_metrics.py {folder}" in message and not is_current(folder)


DAMAGES: dict[str, Callable[[dict], object]] = {
    "no model": lambda c: c.pop("model_sha256"),
    "the model is a number": lambda c: c.update(model_sha256=7),
    "no hash of the questions": lambda c: c.pop("taught_sha256"),
    "no fits": lambda c: c.pop("fits"),
    "fits are a list": lambda c: c.update(fits=["book"]),
    "fits are a number": lambda c: c.update(fits=3),
    "no fit alone": lambda c: c.update(fits={}),
    "a fit is null": lambda c: c["fits"].update(book=None),
    "weights are a list": lambda c: c["fits"]["book"].update(weights=[1]),
    "weights lack a name": lambda c: c["fits"]["book"]["weights"].pop("lookups"),
    "a weight too few": lambda c: c["fits"]["book"]["weights"].update(lookups=[1, 1, 1]),
    "a weight is NaN": lambda c: c["fits"]["book"]["weights"].update(write=[float("nan"), 0]),
    "a weight is huge": lambda c: c["fits"]["book"]["weights"].update(write=[10**400, 0]),
    "a probability above 1": lambda c: c["fits"]["book"].update(trials=[[1.5, True]]),
    "a trial is a number": lambda c: c["fits"]["book"].update(trials=[1]),
    "trials are nested": lambda c: c["fits"]["book"].update(trials=[[[[0.5]], True]]),
    "a measure is NaN": lambda c: c["fits"]["book"]["val_rouge_l"].update(auto=float("nan")),
    "a measure is lost": lambda c: c["fits"]["book"]["val_rouge_l"].pop("write"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_value_is_an_error_with_advice(folder: Path, damage) -> None:
    content = json.loads((folder / ANSWERS).read_text(encoding="utf-8"))
    damage(content)
    change(folder, content)
    message = read_message(folder)
    assert "answers.json is damaged" in message and "delete it" in message


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_raises_anything_but_the_error(
    data: st.DataObject, folder: Path, damage: Callable
) -> None:
    fits = {name: fit.to_json() for name, fit in FITS.items()}
    hashes = [sha256_of(folder / name) for name in ("model.safetensors", TAUGHT)]
    content = {"format": 1, "model_sha256": hashes[0], "taught_sha256": hashes[1], "fits": fits}
    change(folder, damage(data, content))
    try:
        knowledge = read_knowledge(folder, BOOK)
    except UserError as error:
        assert "delete it" in str(error)
    else:
        assert knowledge is None or 0 <= knowledge.fit.threshold(0.9) <= 1.1


def test_a_pipe_in_place_of_the_file_is_no_knowledge(folder: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("Windows has no mkfifo")
    (folder / ANSWERS).unlink()
    os.mkfifo(folder / ANSWERS)
    assert read_knowledge(folder, BOOK) is None and not is_current(folder)


@pytest.mark.parametrize("damage", ["changed", "missing", "a folder"])
def test_taught_questions_that_are_not_those_of_the_fit_are_an_error(folder, damage) -> None:
    path = folder / TAUGHT
    lines = path.read_text(encoding="utf-8")
    path.unlink()
    if damage == "changed":
        path.write_text(lines.replace("沈砚", "老陆"), encoding="utf-8")
    if damage == "a folder":
        path.mkdir()
    message = read_message(folder)
    assert "taught.jsonl" in message and "python eval_metrics.py" in message


# ---------------------------------------------------------------- the threshold


def fit_of(*trials: tuple[float, bool]) -> Fit:
    return Fit(AnswerWeights(LOOKUP_WEIGHTS), list(trials))


@pytest.mark.parametrize("precision, threshold", [(0, 0), (1, 0.9), (0.75, 0.6), (0.5, 0.3)])
def test_the_threshold_is_the_lowest_with_that_share_of_right_answers(precision, threshold) -> None:
    trials = [(0.3, False), (0.97, True), (0.6, True), (0.8, False), (0.9, True), (1 / 3, False)]
    assert fit_of(*trials).threshold(precision) == threshold


def test_of_trials_with_one_probability_all_or_none_are_above_the_threshold() -> None:
    trials = [(0.9, True), (0.9, False), (0.95, True), (0.5, True), (0.5, False), (0.5, False)]
    for order in (trials, trials[::-1]):
        assert fit_of(*order).threshold(1) == 0.95
        assert fit_of(*order).threshold(0.6) == 0.9
        assert fit_of(*order).threshold(0.5) == 0.5


def test_no_threshold_reaches_the_precision_of_wrong_answers() -> None:
    assert fit_of((0.9, False), (0.2, True)).threshold(0.9) > 1
    assert fit_of((0.9, False), (0.2, True)).threshold(0.5) == 0.2
    assert fit_of().threshold(0.9) == 0


def test_a_share_that_is_reached_exactly_counts() -> None:
    trials = [(1 - n / 100, n >= 11) for n in range(25)]
    assert 0.56 * 25 > 14  # in floating point
    assert fit_of(*trials).threshold(0.56) == trials[-1][0]
