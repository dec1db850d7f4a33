"""eval_metrics.py: eval.json, eval_answers.jsonl, comparisons, splits and error messages."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from shuoshu.evaluation import intervals, metrics
from shuoshu.text.dataset import read_meta
from tests.evaluation.helpers import (
    FILES,
    LABELS,
    copy_model,
    measure,
    prepare_questions,
    prepare_text,
    read_answers,
    refused,
    value,
)

FIELDS = {"format", "model", "step", "task", "date", "data", "settings", "training", "machine"}
FIELDS |= {"definitions", "measures", "counts", "compare", "classes", "seconds"}
DOCUMENTED = {"perplexity", "perplexity_without_end", "bits_per_char", "bits_per_byte"}
DOCUMENTED |= {"rouge_l", "rouge_l_precision", "rouge_l_recall", "exact_match", "char_f1"}
DOCUMENTED |= {"stop_rate", "wrong_question_rate", "mean_length", "repetition"}
DOCUMENTED |= {"copy_longest", "copy_rate", "reference_copy_longest", "reference_copy_rate"}
LOOKUPS = {"lookup_rouge_l", "lookup_joined_rouge_l", "lookup_answers_rouge_l"}
DOCUMENTED |= LOOKUPS | {f"above_{name}" for name in LOOKUPS}


def test_eval_json_has_the_documented_names_and_intervals_around_their_values(evaluated) -> None:
    evaluation = evaluated.evaluation
    assert list(evaluation["measures"]) == ["train", "val", "test"]
    for measures in evaluation["measures"].values():
        assert measures.keys() >= DOCUMENTED
        for name, entry in measures.items():
            if "distinct" in name:
                assert entry.keys() == {"value"}
            else:
                assert entry.keys() == {"value", "low", "high"}
                assert entry["low"] - 1e-9 <= entry["value"] <= entry["high"] + 1e-9, name
    assert evaluation.keys() >= FIELDS
    definition = evaluation["definitions"]["rouge_l"]
    assert "longest common subsequence" in definition and "β" not in definition


def test_every_question_has_a_row_whose_scores_average_to_the_measures(evaluated, qa: Path) -> None:
    evaluation, rows = evaluated.evaluation, evaluated.answers
    meta = read_meta(qa)
    assert [row["split"] for row in rows] == [
        split for split in ("train", "val", "test") for _ in range(meta["splits"][split]["pairs"])
    ]
    assert len({(row["split"], row["row"]) for row in rows}) == len(rows)
    for split in ("train", "val", "test"):
        these = [row for row in rows if row["split"] == split]
        for name, key in (("rouge_l", "rouge_l"), ("exact_match", "exact"), ("char_f1", "char_f1")):
            assert value(evaluation, split, name) == pytest.approx(
                np.mean([row[key] for row in these])
            )
        assert value(evaluation, split, "stop_rate") == np.mean(
            [row["stop"] == "end" for row in these]
        )
        assert value(evaluation, split, "wrong_question_rate") == np.mean(
            [row["closer_to"] is not None for row in these]
        )
        assert value(evaluation, split, "mean_length") == pytest.approx(
            np.mean([len(row["answer"]) for row in these])
        )


def test_a_comparison_is_paired_over_the_same_rows(evaluated, pretrained: Path) -> None:
    evaluation, rows = evaluated.evaluation, evaluated.answers
    (other,) = evaluation["compare"]
    assert other["model"] == str(pretrained)
    for split, changes in other["difference"].items():
        these = sorted((row for row in rows if row["split"] == split), key=lambda row: row["row"])
        pairs = [
            (row["rouge_l"], metrics.rouge_l(row["others"][str(pretrained)], row["reference"])[2])
            for row in these
        ]
        mean, low, high = intervals.paired_difference(
            *zip(*pairs, strict=True), evaluation["settings"]["seed"]
        )
        assert changes["rouge_l"] == pytest.approx({"value": mean, "low": low, "high": high})
        assert {"perplexity", "bits_per_char", "exact_match", "copy_rate"} <= changes.keys()
        assert not [name for name in changes if name.startswith(("lookup", "above", "reference"))]
        for name, change in changes.items():
            assert change["value"] == pytest.approx(
                value(evaluation, split, name) - other["measures"][split][name]["value"]
            ), name
            assert change["low"] - 1e-9 <= change["value"] <= change["high"] + 1e-9
        assert changes["perplexity"]["high"] < 0 < changes["rouge_l"]["low"]


def test_split_and_limit_choose_the_questions(
    tuned: Path, qa: Path, pretrained: Path, tmp_path: Path, capsys
) -> None:
    rows = json.loads((qa.parent / "facts.json").read_text(encoding="utf-8"))
    rows = [
        {**row, "split": "untaught" if row["split"] == "test" else row["split"]} for row in rows
    ]
    data = prepare_questions(tmp_path, "qa", rows, pretrained)
    out_dir = copy_model(tuned, tmp_path / "out")

    def measured_splits(*more: str) -> list[str]:
        return list(measure(out_dir, "--max_new_tokens=12", *more)["measures"])

    assert measured_splits("--limit=3") == ["test"]  # of the data that the model was trained on
    on_data = f"--data={data}"
    assert measured_splits(on_data, "--limit=3") == ["val"]
    assert measured_splits(on_data, "--split=untaught", "--limit=5") == ["untaught"]
    answers = read_answers(out_dir)
    assert len({row["row"] for row in answers}) == 5
    scores = [row["rouge_l"] for row in answers]
    assert scores == sorted(scores)  # the worst first
    assert measured_splits(on_data, "--split=all", "--limit=2") == ["train", "val", "untaught"]
    message = refused(capsys, out_dir, on_data, "--split=test")
    assert "the split test is empty or missing: the data has train, val, untaught" in message


def test_without_validation_text_the_training_text_can_be_measured(
    pretrained: Path, text: str, tmp_path: Path, capsys
) -> None:
    tokenizer = f"--tokenizer={pretrained}"
    data = prepare_text(tmp_path, "all", text[:3000], tokenizer, "--val_fraction=0")
    out_dir = copy_model(pretrained, tmp_path / "out")
    for split in ([], ["--split=val"], ["--split=all"]):
        message = refused(capsys, out_dir, f"--data={data}", *split)
        assert "the data has train; choose with --split" in message
    short = "--limit=2", "--max_new_tokens=4"
    evaluation = measure(out_dir, f"--data={data}", "--split=train", *short)
    assert value(evaluation, "train", "perplexity") > 1


def test_a_repeated_evaluation_differs_in_date_and_duration_only(
    tuned: Path, tmp_path: Path
) -> None:
    out_dir = copy_model(tuned, tmp_path / "out")
    repeated = []
    for _ in range(2):
        evaluation = measure(out_dir, "--limit=6")
        del evaluation["date"], evaluation["seconds"]
        repeated.append((evaluation, read_answers(out_dir)))
    assert repeated[0] == repeated[1]


def test_the_seed_changes_the_intervals_but_not_the_values(tuned: Path, tmp_path: Path) -> None:
    out_dir = copy_model(tuned, tmp_path / "out")
    first, second = (
        measure(out_dir, "--limit=6", f"--seed={seed}")["measures"]["test"] for seed in (0, 1)
    )
    assert first["rouge_l"]["value"] == second["rouge_l"]["value"] and first != second


def test_the_report_loads_nothing_from_outside(evaluated) -> None:
    page = evaluated.report
    assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")
    assert not re.search(r"https?://|src=|href=|url\(|@import|//[a-z]", page)
    for text in ("ROUGE-L", "答非所问率", "Wrong-question rate", "前后比较"):
        assert text in page


# ---------------------------------------------------------------- errors


def test_every_mistake_has_its_own_message(
    tuned: Path, pretrained: Path, qa: Path, dataset: Path, text: str, tmp_path: Path, capsys
) -> None:
    assert f"there is no trained model in {tmp_path}" in refused(capsys, tmp_path)
    assert f"there is no trained model in {tmp_path}" in refused(
        capsys, tuned, f"--compare={tmp_path}"
    )
    assert f"--compare={pretrained}" in refused(capsys, tuned, pretrained)
    assert "must be one of" in refused(capsys, tuned, "--split=valid")
    assert "there is no prepared data in" in refused(capsys, tuned, f"--data={tmp_path / 'gone'}")
    assert "the split untaught is empty or missing: the data has train, val, test" in refused(
        capsys, tuned, "--split=untaught"
    )
    assert "the split test is empty or missing: the data has train, val" in refused(
        capsys, pretrained, "--split=test"
    )
    data = prepare_text(tmp_path, "other", text[:5000], "--vocab_size=300")
    message = refused(capsys, pretrained, f"--data={data}")
    assert "another tokenizer" in message and f"--tokenizer={pretrained}" in message
    moved = copy_model(tuned, tmp_path / "moved")
    saved = json.loads((moved / "settings.json").read_text(encoding="utf-8"))
    saved["data"]["folder"] = str(tmp_path / "gone")
    (moved / "settings.json").write_text(json.dumps(saved), encoding="utf-8")
    assert f"there is no prepared data in {tmp_path / 'gone'}" in refused(capsys, moved)
    assert not any((moved / name).exists() for name in FILES)


def test_rows_longer_than_a_model_reads_are_refused(
    tuned: Path, qa: Path, tmp_path: Path, capsys
) -> None:
    short = copy_model(tuned, tmp_path / "short")
    config = json.loads((short / "config.json").read_text(encoding="utf-8"))
    longest = read_meta(qa)["width"]
    for arguments, block, code in (
        ([tuned, f"--compare={short}"], longest - 2, 2),
        ([short], longest - 2, 2),
        ([short, "--limit=1"], longest - 1, 0),
    ):
        (short / "config.json").write_text(
            json.dumps({**config, "max_position_embeddings": block}), encoding="utf-8"
        )
        if code:
            message = refused(capsys, *arguments)
            assert f"has {longest} tokens, the model in {short} reads {block}" in message
            assert f"--tokenizer={short}" in message
        else:
            measure(*arguments)


def test_a_single_training_label_is_refused(pretrained: Path, tmp_path: Path, capsys) -> None:
    rows = [
        {"question": f"{n}？", "answer": LABELS[n >= 20], "split": "train" if n < 20 else "val"}
        for n in range(24)
    ]
    data = prepare_questions(tmp_path, "one", rows, pretrained)
    out_dir = copy_model(pretrained, tmp_path / "out")
    assert "all training answers" in refused(capsys, out_dir, f"--data={data}")
