"""The terminal's tables fit 100 columns."""

from __future__ import annotations

import json

from shuoshu.core.terminal import display_width
from shuoshu.evaluation.results_table import MAX_COLUMNS, count_phrase, format_results


def test_counts_are_spelt_by_number_and_lengths_by_name() -> None:
    counts = {"tokens": 5584, "prompts": 1, "window": 64}
    phrases = [count_phrase(name, count) for name, count in counts.items()]
    assert phrases == ["5,584 tokens", "1 prompt", "window 64"]


def table_lines(terminal: str) -> list[str]:
    """The lines without those whose length depends on a path."""
    return [
        line
        for line in terminal.splitlines()
        if not line.startswith(("  data ", "  copies ", "  written to "))
    ]


def test_the_tables_fit_100_columns(evaluated) -> None:
    lines = table_lines(evaluated.terminal)
    assert max(map(display_width, lines)) <= MAX_COLUMNS == 100
    titles = "out-pretrain test", "difference test"
    for text in ("above_lookup_joined_rouge_l", *titles, "ROUGE-L F1"):
        assert any(text in line for line in lines)


def test_long_chinese_names_and_wide_figures_fit_100_columns(evaluated) -> None:
    evaluation = json.loads(json.dumps(evaluated.evaluation))
    wide = {"value": -0.123456, "low": -0.234567, "high": -0.012345}
    for measures in evaluation["measures"].values():
        measures |= {
            "above_lookup_joined_rouge_l": wide,
            "perplexity": {"value": 1e6, "low": 1e5, "high": 1e7},
        }
    evaluation["compare"][0]["model"] = "/家/" + "很长的输出文件夹" * 5
    lines = table_lines(format_results(evaluation, None))
    assert max(map(display_width, lines)) <= MAX_COLUMNS
    assert sum("文件夹 train" in line for line in lines) == 1
    assert sum("measure " in line for line in lines) > 3
