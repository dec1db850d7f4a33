"""shuoshu/training/plots.py: when loss.png is redrawn."""

import pytest

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
