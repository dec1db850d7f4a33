"""Labels are measured beside a linear model; no fit is judged on the rows that it saw."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from shuoshu.core.errors import UserError
from shuoshu.evaluation import measure_labels
from shuoshu.evaluation.evaluated_model import EvaluatedModel
from shuoshu.evaluation.measure_labels import LabelScorer
from tests.evaluation.helpers import measure, read_answers
from tests.in_process import train_model
from tests.labelled_texts import SETTINGS, prepared

LABELS = ["满意", "不满意"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("labels"))


@pytest.fixture(scope="module", params=["", "--label_weights=满意=1,不满意=3"])
def trained(request, data, tmp_path_factory):
    """A model that hardly learnt, so that it is wrong about some texts."""
    out_dir = tmp_path_factory.mktemp("runs") / "out"
    command = [*SETTINGS, f"--dataset={data}", f"--out_dir={out_dir}", "--max_iters=16"]
    assert train_model([*command, *filter(None, [request.param])]) == 0
    return out_dir


@pytest.fixture(scope="module")
def evaluation(trained):
    return measure(trained, "--split=all")


def test_the_measures_are_those_of_the_rows(trained, evaluation):
    for split in ("val", "test"):
        rows = [row for row in read_answers(trained) if row["split"] == split]
        true = [row["reference"] for row in rows]
        measures = evaluation["measures"][split]
        for prefix in ("", "linear_", *(["together_"] if split == "test" else [])):
            table = np.array([[row[prefix + "probabilities"][n] for n in LABELS] for row in rows])
            predicted = [LABELS[n] for n in table.argmax(axis=1)]
            expected = {
                "accuracy": sklearn_metrics.accuracy_score(true, predicted),
                "macro_f1": sklearn_metrics.f1_score(true, predicted, average="macro"),
                "log_loss": sklearn_metrics.log_loss(
                    [LABELS.index(label) for label in true], table, labels=[0, 1]
                ),
            }
            for name, value in expected.items():
                assert measures[prefix + name]["value"] == pytest.approx(value, abs=1e-4), name
        test = evaluation["classes"][split]["mcnemar"]
        right = {
            who: np.array([max(row[who], key=row[who].get) == row["reference"] for row in rows])
            for who in ("probabilities", "linear_probabilities")
        }
        model, linear = right.values()
        assert (test["only_first"], test["only_second"]) == (
            (model & ~linear).sum(),
            (linear & ~model).sum(),
        )
    assert "together_accuracy" not in evaluation["measures"]["val"]  # it was fitted there


def test_on_validation_no_text_is_judged_by_a_fit_that_saw_it(trained, monkeypatch):
    fits = []
    real = measure_labels.cross_fitted

    def recorded(scores, true, *fit):
        fits.append(fit[0].__name__ if fit else "fit_bias")
        return real(scores, true, *fit)

    monkeypatch.setattr(measure_labels, "cross_fitted", recorded)
    measure(trained, "--split=val")
    settings = json.loads((trained / "settings.json").read_text(encoding="utf-8"))["settings"]
    own = "fit_scale" if settings["label_weights"] else "fit_bias"
    assert fits == [own, "fit_bias"]  # of the model and of the linear model
    fits.clear()
    measure(trained, "--split=test")
    assert not fits


def test_the_linear_model_reads_texts_without_the_prompts_words(trained, monkeypatch):
    read = []
    real = measure_labels.strongest

    def recorded(train_texts, *others):
        read.extend(train_texts)
        return real(train_texts, *others)

    monkeypatch.setattr(measure_labels, "strongest", recorded)
    measure(trained)
    assert read and not any(text.startswith("评：") for text in read)
    assert all(row["question"].startswith("评：") for row in read_answers(trained))


def test_a_model_that_votes_on_other_labels_is_refused(trained):
    from shuoshu.core.command_settings import EvalSettings

    model = EvaluatedModel(trained, EvalSettings(), "cpu")
    assert LabelScorer(model, LABELS[::-1]).columns == [1, 0]
    with pytest.raises(
        UserError, match="labels texts as 满意, 不满意, but the data has the labels"
    ):
        LabelScorer(model, ["满意", "一般"])
