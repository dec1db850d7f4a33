"""What torch.compile is given: a backend that lists the graphs stands for the compiler."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from shuoshu.text.dataset import TextDataset
from shuoshu.training import dry_run
from shuoshu.training.validate import measure_validation
from tests.in_process import train_model

SHORT = ["--compile=true", "--max_iters=4", "--eval_interval=4", "--sample_tokens=0"]


class Graph(NamedTuple):
    trains: bool
    is_static: bool  # it has no size that is known only when it runs
    rows: int


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """The graphs that are compiled, in order."""
    compiled = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> object:
        is_static = not any(isinstance(x, torch.SymInt) for x in inputs)
        ids = [x for x in inputs if getattr(x, "dtype", None) == torch.long and x.ndim == 2]
        [rows] = {len(x) for x in ids}
        compiled.append(Graph(torch.is_grad_enabled(), is_static, rows))
        return graph

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    return compiled


def test_text_has_one_static_graph_for_evaluations_and_one_for_steps(
    graphs: list[Graph], tiny: list[str], dataset: Path, tmp_path: Path
) -> None:
    windows = -(-len(TextDataset(dataset, "val")) // 64)
    assert windows % 4  # batches of four would leave a short one
    assert train_model([*tiny, *SHORT, "--n_layer=1", f"--out_dir={tmp_path / 'out'}"]) == 0
    assert [(graph.trains, graph.is_static) for graph in graphs] == [(False, True), (True, True)]
    assert graphs[1].rows == 4


def test_a_dry_run_measures_the_graphs_of_the_run(
    graphs: list[Graph], tiny: list[str], tmp_path: Path
) -> None:
    command = [*tiny, *SHORT, "--n_layer=1", f"--out_dir={tmp_path / 'out'}"]
    assert train_model([*command, "--dry_run"]) == 0
    dry = list(graphs)
    torch.compiler.reset()
    assert train_model(command) == 0
    assert graphs == [*dry, *dry] and len(dry) == 2


def test_a_dry_run_does_not_time_the_compilation(
    graphs: list[Graph], tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph_counts = []

    def measure(run: object, stop: object) -> object:
        result = measure_validation(run, stop)
        graph_counts.append(len(graphs))
        return result

    monkeypatch.setattr(dry_run, "measure_validation", measure)
    command = [*tiny, *SHORT, "--n_layer=1", f"--out_dir={tmp_path / 'out'}"]
    assert train_model([*command, "--dry_run"]) == 0
    assert graph_counts == [1, 1]  # the second evaluation, which is timed, compiles nothing


def test_questions_of_all_widths_share_one_graph(
    graphs: list[Graph], sft: list[str], tmp_path: Path
) -> None:
    changes = ["--init_from=scratch", "--n_layer=1", "--n_head=2", "--n_embd=64", "--batch_size=4"]
    changes += ["--max_iters=12", "--eval_questions=1"]
    assert train_model([*sft, *SHORT, *changes, f"--out_dir={tmp_path / 'out'}"]) == 0
    assert [(graph.trains, graph.is_static) for graph in graphs] == [(False, False), (True, False)]
