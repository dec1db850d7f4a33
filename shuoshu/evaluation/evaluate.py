"""The evaluation behind eval_metrics.py: measures models on a dataset and writes the results."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from shuoshu.core.command_settings import EvalSettings
from shuoshu.core.device import describe_machine, setup_process
from shuoshu.core.errors import UserError
from shuoshu.core.files import write_atomically, write_synced_text
from shuoshu.core.out_dirs import flag, require_model
from shuoshu.core.run_log import RunLog, read_settings
from shuoshu.evaluation import metrics
from shuoshu.evaluation.copies import MIN_COPIED, TrainingText
from shuoshu.evaluation.evaluated_model import EvaluatedModel, SplitResult
from shuoshu.evaluation.html_report import report_html
from shuoshu.evaluation.measure_answers import measure_answers
from shuoshu.evaluation.measure_labels import measure_labels
from shuoshu.evaluation.measure_text import measure_text
from shuoshu.evaluation.results_table import format_results
from shuoshu.text import dataset

MEASURE = {"text": measure_text, "questions": measure_answers, "labels": measure_labels}


def evaluate(settings: EvalSettings, out_dir: Path) -> int:
    """Measures the model in out_dir and those to compare it with; returns the exit code.

    All models are measured on the same rows. Raises UserError if one can't read the data.
    """
    started = time.perf_counter()
    require_writable_folder(out_dir)
    device = setup_process(settings.device, settings.threads)
    folders = [out_dir, *map(Path, settings.compare)]
    models = [EvaluatedModel(folder, settings, device) for folder in folders]
    folder = find_data(settings, models[0])
    meta = dataset.read_meta(folder)
    for model in models:
        model.require_readable(meta, folder)
    source = TrainingText.find(out_dir)
    measure = MEASURE[meta["task"]]
    results = measure(settings, models, folder, choose_splits(meta, settings.split), source)
    evaluation = eval_json(settings, models, device, folder, meta, results)
    evaluation["seconds"] = round(time.perf_counter() - started, 1)
    write_results(out_dir, evaluation, models, results)
    print(format_results(evaluation, source))
    return 0


def require_writable_folder(out_dir: Path) -> None:
    """UserError if results can't be written there, before they cost the time to measure them."""
    require_model(out_dir)
    try:
        with tempfile.TemporaryFile(dir=out_dir):
            pass
    except OSError as error:
        raise UserError(
            f"can't write to {out_dir}: {error.strerror}; the results are written there, so make it"
            " writable, or copy the model to another folder"
        ) from None


def find_data(settings: EvalSettings, model: EvaluatedModel) -> Path:
    """The folder of --data, else that of the model's training; UserError if there is none."""
    trained_on = read_settings(model.folder).get("data", {}).get("folder")
    if not settings.data and not trained_on and model.tokenizer.kind == "foreign":
        tokenizer = flag("tokenizer", model.folder)
        raise UserError(
            f"{model.folder} doesn't say which data it was trained on: name data to measure it on"
            f" with --data=FOLDER; make it with\n  python prepare.py FILE {tokenizer}"
            f"\nor, from questions and answers,\n  python prepare_sft.py FILE {tokenizer}"
        )
    return dataset.find_dataset(settings.data or str(trained_on or "novella"))


def choose_splits(meta: dict, chosen: str | None) -> list[str]:
    """The splits to measure: `chosen`, or test if there is one, or val.

    "all" leaves out the training split of a text. Raises UserError if there is nothing to measure.
    """
    filled = [
        split for split, counts in meta["splits"].items() if counts.get("rows", counts["tokens"])
    ]
    if chosen == "all":
        splits = [split for split in filled if split != "train" or meta["task"] != "text"]
    else:
        splits = [chosen or ("test" if "test" in filled else "val")]
    if not splits or splits[0] not in filled:
        raise UserError(
            f"the split {chosen or 'val'} is empty or missing:"
            f" the data has {', '.join(filled)}; choose with --split"
        )
    return splits


def eval_json(
    settings: EvalSettings,
    models: Sequence[EvaluatedModel],
    device: torch.device,
    folder: Path,
    meta: dict,
    results: dict[str, SplitResult],
) -> dict:
    """The content of eval.json, without the time taken."""
    first = models[0]
    comparisons = [
        {
            "model": str(other.folder),
            "measures": {
                split: result.measure_sets[number].measures for split, result in results.items()
            },
            "difference": {
                split: result.differences[number - 1] for split, result in results.items()
            },
        }
        for number, other in enumerate(models[1:], 1)
    ]
    return {
        "format": 1,
        "model": str(first.folder),
        "step": first.step,
        "task": meta["task"],
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "data": {
            "folder": str(folder),
            **{split: meta["splits"][split]["sha256"] for split in results},
        },
        "settings": asdict(settings),
        "training": read_settings(first.folder).get("settings", {}),
        "machine": {
            **describe_machine(device),
            "device": str(device),
            "dtype": str(first.model.lm_head.weight.dtype).removeprefix("torch."),
        },
        "definitions": {
            **({} if meta["task"] == "labels" else text_definitions(settings)),
            **next(iter(results.values())).definitions,
        },
        "measures": {split: result.measure_sets[0].measures for split, result in results.items()},
        "counts": {split: result.counts for split, result in results.items()},
        "compare": comparisons,
        "classes": {split: result.classes for split, result in results.items() if result.classes},
    }


def text_definitions(settings: EvalSettings) -> dict[str, str]:
    """Of measures of texts that a model wrote."""
    return {
        "rouge_l": metrics.definition(settings.beta, settings.rouge == "chars"),
        "copy_rate": f"share with {MIN_COPIED} characters or more",
    }


def write_results(
    out_dir: Path,
    evaluation: dict,
    models: Sequence[EvaluatedModel],
    results: dict[str, SplitResult],
) -> None:
    """Writes eval.json, eval_answers.jsonl (worst answers first) and report.html.

    Raises UserError if the disk is full or the folder can't be written.
    """
    answers = [
        row
        for result in results.values()
        for row in sorted(result.rows, key=lambda row: row.get("list_f1", row.get("rouge_l", 0.0)))
    ]
    runs = [(str(model.folder), RunLog(model.folder / "log.jsonl").read()) for model in models]
    texts = {
        "eval.json": json.dumps(evaluation, ensure_ascii=False, indent=1),
        "eval_answers.jsonl": "".join(
            json.dumps(row, ensure_ascii=False) + "\n" for row in answers
        ),
        "report.html": report_html(evaluation, answers, runs, evaluation["settings"]["seed"]),
    }
    try:
        for name, text in texts.items():
            write_atomically(out_dir / name, lambda path, text=text: write_synced_text(path, text))
    except OSError as error:
        raise UserError(f"can't write to {out_dir}: {error.strerror}") from None
