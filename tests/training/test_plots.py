"""shuoshu/training/plots.py: when loss.png is redrawn, and which scores it shows."""

import pytest
from matplotlib.figure import Figure

from shuoshu.core.run_log import RunLog
from shuoshu.training import plots
from shuoshu.training.plots import CurvePlotter


@pytest.mark.parametrize("interval, drawings", [(0.0, 3), (1e9, 2)])
def test_pictures_are_drawn_first_in_intervals_and_at_the_end(
    tmp_path, monkeypatch, interval, drawings
):
    drawn = []
    monkeypatch.setattr(plots, "draw_curves", lambda log, path: drawn.append(path))
    plotter = CurvePlotter(RunLog(tmp_path / "log.jsonl"), tmp_path / "loss.png", interval)
    for _ in range(3):
        plotter.update()
    plotter.finish()
    plotter.finish()  # nothing new to draw
    assert len(drawn) == drawings


@pytest.mark.parametrize(
    "scores, titles, best",
    [
        (
            {"val_rouge_l": 0.7, "val_exact_match": 0.4},
            ["ROUGE-L of the answers", "exact answers"],
            "best 0.700",
        ),
        ({"val_accuracy": 0.9, "val_macro_f1": 0.8}, ["accuracy", "macro-F1"], "best 0.900"),
    ],
)
def test_the_curves_of_labels_are_accuracy_and_macro_f1(scores, titles, best):
    axes = Figure().subplots()
    plots._draw_answers(axes, [{"step": 5, "val_loss": 2.0, **scores}])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == titles
    assert [text.get_text() for text in axes.texts] == [best]


def test_while_texts_are_read_the_picture_is_shaded_and_their_loss_is_left_out():
    axes = Figure().subplots()
    steps = [{"step": 10, "reading_loss": 6.0}, {"step": 20, "loss": 0.6}]
    evals = [{"step": n, "val_loss": x, "val_accuracy": 0.5} for n, x in ((0, 0.1), (20, 0.6))]
    plots._draw_losses(axes, steps, evals)
    titles = [text.get_text() for text in axes.get_legend().get_texts()]
    assert titles == ["reading", "training loss", "validation loss"]
    assert axes.get_ylim()[1] < 1
    [mark] = axes.texts
    assert mark.xy == (20, 0.6)  # an untrained model never labels best


def test_of_equal_scores_the_one_with_the_lowest_loss_is_marked_as_in_the_choice_of_the_model():
    axes, losses = Figure().subplots(), {5: 2.0, 10: 1.0, 15: 1.5}
    record = {"val_accuracy": 0.9, "val_macro_f1": 0.8}
    plots._draw_answers(axes, [{"step": n, "val_loss": x, **record} for n, x in losses.items()])
    [mark] = axes.texts
    assert mark.xy == (10, 0.9)
