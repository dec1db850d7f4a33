"""Perplexity of a text equals that of transformers; continuations are measured."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from shuoshu.models import weights
from shuoshu.text.dataset import TextDataset, read_meta
from tests.evaluation.helpers import (
    copy_model,
    measure,
    prepare_text,
    read_answers,
    value,
)


def test_text_perplexity_equals_that_of_transformers(
    text_evaluated, text_home: Path, dataset: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(text_home).float().eval()
    _, tokenizer, *_ = weights.load_model(text_home)
    tokens, block, nats = TextDataset(dataset, "val").tokens.astype(np.int64).tolist(), 64, 0.0
    for start in range(0, len(tokens), block):
        targets = torch.tensor(tokens[start : start + block])
        ids = torch.tensor([[tokenizer.end, *tokens][start : start + len(targets)]])
        with torch.no_grad():
            logp = theirs(ids).logits[0].double().log_softmax(-1)
        nats -= logp.gather(1, targets[:, None]).sum().item()
    perplexity = value(text_evaluated, "val", "perplexity_disjoint")
    assert math.log(perplexity) * len(tokens) == pytest.approx(nats, rel=1e-5)
    assert perplexity == pytest.approx(math.exp(nats / len(tokens)), rel=1e-4)


def test_overlapping_windows_give_a_lower_perplexity_on_the_same_tokens(
    text_evaluated, pretrained: Path, dataset: Path, tmp_path: Path
) -> None:
    meta = read_meta(dataset)["splits"]["val"]
    counts = {name: meta[name] for name in ("tokens", "characters", "bytes")}
    assert text_evaluated["counts"]["val"] == {**counts, "window": 64, "stride": 32, "prompts": 4}
    assert value(text_evaluated, "val", "perplexity") < value(
        text_evaluated, "val", "perplexity_disjoint"
    )
    scale = value(text_evaluated, "val", "bits_per_char") / value(
        text_evaluated, "val", "bits_per_byte"
    )
    assert scale == pytest.approx(counts["bytes"] / counts["characters"])
    disjoint = measure(
        copy_model(pretrained, tmp_path / "out"), "--stride=64", "--limit=1", "--max_new_tokens=1"
    )
    assert value(disjoint, "val", "perplexity") == value(disjoint, "val", "perplexity_disjoint")
    assert value(disjoint, "val", "perplexity_disjoint") == value(
        text_evaluated, "val", "perplexity_disjoint"
    )


def test_continuations_are_measured_beside_the_text_itself(
    text_evaluated, text_home: Path, dataset: Path
) -> None:
    rows, tokens = read_answers(text_home), TextDataset(dataset, "val").tokens
    _, tokenizer, *_ = weights.load_model(text_home)
    text = tokenizer.decode(tokens.tolist())
    assert len(rows) == 4
    for row in rows:  # a character that is cut in two is in neither part
        assert re.search(f"{re.escape(row['question'])}.?{re.escape(row['reference'])}", text)
        assert row["answer"] != row["reference"]
    assert rows[0]["question"] in text[:200] and rows[-1]["reference"] in text[-200:]
    assert value(text_evaluated, "val", "mean_length") == np.mean(
        [len(row["answer"]) for row in rows]
    )
    assert value(text_evaluated, "val", "reference_length") == np.mean(
        [len(row["reference"]) for row in rows]
    )
    assert {
        "distinct_1",
        "repetition",
        "copy_longest",
        "copy_rate",
        "reference_copy_rate",
    } <= text_evaluated["measures"]["val"].keys()
    report = (text_home / "report.html").read_text(encoding="utf-8")
    assert report.count("True continuation") == 4


def test_models_with_different_blocks_continue_the_same_prompts(
    pretrained: Path, tmp_path: Path
) -> None:
    out_dir = copy_model(pretrained, tmp_path / "out")
    short = copy_model(pretrained, tmp_path / "short")
    config = json.loads((short / "config.json").read_text(encoding="utf-8"))
    (short / "config.json").write_text(
        json.dumps({**config, "max_position_embeddings": 16}), encoding="utf-8"
    )
    evaluation = measure(out_dir, f"--compare={short}", "--max_new_tokens=4", "--limit=500")
    difference = evaluation["compare"][0]["difference"]["val"]
    assert "mean_length" in difference
    assert "perplexity" not in difference  # the windows differ
    assert (
        value(evaluation, "val", "perplexity")
        < evaluation["compare"][0]["measures"]["val"]["perplexity"]["value"]
    )


@pytest.mark.parametrize("characters, has_prompts", [(100, False), (1000, True)])
def test_a_text_too_short_for_prompts_still_has_a_perplexity(
    pretrained: Path, text: str, tmp_path: Path, characters: int, has_prompts: bool
) -> None:
    options = f"--tokenizer={pretrained}", "--val_fraction=0.3"
    data = prepare_text(tmp_path, "short", text[:characters], *options)
    out_dir = copy_model(pretrained, tmp_path / "out")
    evaluation = measure(out_dir, f"--data={data}")
    counts = evaluation["counts"]["val"]
    assert counts["tokens"] > 0 and (counts["prompts"] > 0) == has_prompts
    assert value(evaluation, "val", "perplexity") > 1
    assert ("mean_length" in evaluation["measures"]["val"]) == has_prompts
    assert len(read_answers(out_dir)) == counts["prompts"]
