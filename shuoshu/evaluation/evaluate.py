"""What eval_metrics.py does once its settings are known: scores, answers, compares, and writes it all down."""

from __future__ import annotations

import json
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from shuoshu.core.device import describe_machine, setup_process
from shuoshu.core.errors import UserError
from shuoshu.core.files import write_atomically, write_synced_text
from shuoshu.core.run_log import RunLog, read_settings
from shuoshu.core.settings import EvalSettings
from shuoshu.core.terminal import display_width, duration, table
from shuoshu.evaluation import intervals, metrics
from shuoshu.evaluation.copies import MIN_COPIED, TrainingText
from shuoshu.evaluation.html_report import report_html
from shuoshu.evaluation.loss import score
from shuoshu.evaluation.measure_set import MeasureSet
from shuoshu.generation.answers import Question, answer, label_scores, read_questions
from shuoshu.generation.sampling import SamplingParams, TextGenerator
from shuoshu.models.weights import load_model
from shuoshu.sft.dataset import QuestionDataset, answer_batches
from shuoshu.text import dataset
from shuoshu.text.dataset import text_windows

PROMPTS, PROMPT_TOKENS, CONTINUED = (
    40,
    64,
    100,
)  # continuations of a text model: how many, of how much, for how long
MAX_COLUMNS = 100  # of the terminal


def evaluate(settings: EvalSettings, out_dir: Path) -> int:
    """Measures the model in out_dir, and those to compare it with on the same rows; the exit code."""
    began = time.perf_counter()
    device = setup_process(settings.device, settings.threads)
    subjects = [
        EvaluatedModel(Path(name), settings, device) for name in (out_dir, *settings.compare)
    ]
    saved = read_settings(out_dir)
    folder = dataset.find_dataset(
        settings.data or str(saved.get("data", {}).get("folder") or "novella")
    )
    meta = dataset.read_meta(folder)
    for subject in subjects:
        subject.check_fits(meta, folder)
    sources = TrainingText.find(out_dir)
    measure = measure_answers if meta["task"] == "questions" else measure_text
    splits = splits_of(meta, settings.split)
    results = {split: measure(settings, subjects, folder, split, sources) for split in splits}

    first = subjects[0]
    evaluation = {
        "format": 1,
        "model": str(out_dir),
        "step": first.step,
        "task": meta["task"],
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "data": {
            "folder": str(folder),
            **{split: meta["splits"][split]["sha256"] for split in splits},
        },
        "settings": asdict(settings),
        "training": saved.get("settings", {}),
        "machine": describe_machine(device)
        | {
            "device": str(device),
            "dtype": str(first.model.lm_head.weight.dtype).removeprefix("torch."),
        },
        "definitions": {
            "rouge_l": metrics.definition(settings.beta, settings.rouge == "chars"),
            "copy_rate": f"share with {MIN_COPIED} characters or more",
        },
        "measures": {split: result.measures[0] for split, result in results.items()},
        "counts": {split: result.counts for split, result in results.items()},
        "compare": [
            {
                "model": str(other.folder),
                "measures": {split: result.measures[number] for split, result in results.items()},
                "difference": {
                    split: result.differences[number - 1] for split, result in results.items()
                },
            }
            for number, other in enumerate(subjects[1:], 1)
        ],
        "classes": {split: result.classes for split, result in results.items() if result.classes},
    }
    answers = [
        row
        for result in results.values()
        for row in sorted(result.rows, key=lambda row: row.get("rouge_l", 0.0))
    ]  # the worst first
    runs = [(str(s.folder), RunLog(s.folder / "log.jsonl").read()) for s in subjects]
    evaluation["seconds"] = round(time.perf_counter() - began, 1)
    try:
        write(out_dir / "eval.json", json.dumps(evaluation, ensure_ascii=False, indent=1))
        write(
            out_dir / "eval_answers.jsonl",
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in answers),
        )
        write(out_dir / "report.html", report_html(evaluation, answers, runs, settings.seed))
    except OSError as error:
        raise UserError(f"can't write to {out_dir}: {error.strerror}") from None
    print(format_results(evaluation, sources))
    return 0


def write(path: Path, text: str) -> None:
    write_atomically(path, lambda aside: write_synced_text(aside, text))


def splits_of(meta: dict, wanted: str | None) -> list[str]:
    """The splits to measure; UserError if there is nothing in them."""
    there = [split for split, facts in meta["splits"].items() if facts.get("rows", facts["tokens"])]
    if wanted == "all":
        chosen = [split for split in there if split != "train" or meta["task"] == "questions"]
    else:
        chosen = [wanted or next((split for split in ("test", "val") if split in there), "val")]
    if not chosen or chosen[0] not in there:
        raise UserError(
            f"there is nothing in the split {wanted or 'val'}: the data has {', '.join(there)}; choose with --split"
        )
    return chosen


class EvaluatedModel:
    """A model to be measured."""

    def __init__(self, folder: Path, settings: EvalSettings, device: torch.device) -> None:
        self.folder = folder
        model, self.tokenizer, self.step, *_ = load_model(folder, device)
        self.model = model.to(getattr(torch, settings.dtype))

    def check_fits(self, meta: dict, data: Path) -> None:
        """UserError if this model can't read the data."""
        message = f"{data} was prepared with another tokenizer than {self.folder}'s: prepare it with --tokenizer={self.folder}"
        dataset.check_tokenizer(self.tokenizer, meta, message)
        if meta.get("width", 0) > (block := self.model.config.block_size) + 1:
            raise UserError(
                f"the longest row of {data} has {meta['width']:,} tokens, the model in {self.folder} reads {block:,}: prepare it with --tokenizer={self.folder}"
            )


class SplitResult:
    """One split: each model's measures, the differences to the first, rows for eval_answers.jsonl."""

    def __init__(self, counts: dict) -> None:
        self.counts, self.measures, self.differences, self.rows, self.classes = (
            counts,
            [],
            [],
            [],
            {},
        )


# ---------------------------------------------------------------- text


def measure_text(
    settings: EvalSettings,
    subjects: Sequence[EvaluatedModel],
    folder: Path,
    split: str,
    sources: TrainingText | None,
) -> SplitResult:
    """Perplexity of a text, by overlapping and by disjoint windows, and continuations of prompts from it."""
    file = dataset.TextDataset(folder, split)
    facts = file.meta["splits"][split]
    head = min(PROMPT_TOKENS, *(subject.model.config.block_size // 2 for subject in subjects))
    result, figures = (
        SplitResult({name: facts[name] for name in ("tokens", "characters", "bytes")}),
        [],
    )
    for number, subject in enumerate(subjects):
        block = subject.model.config.block_size
        stride = min(settings.stride or block // 2, block)
        mine = MeasureSet(settings.seed)
        for suffix, step in (("", stride), ("_disjoint", block)):
            windows = text_windows(
                file.tokens, subject.tokenizer.end, block, settings.batch_size, step
            )
            mine.add_perplexities(
                score(subject.model, subject.model, windows, subject.tokenizer.end, torch.float32),
                file.characters,
                file.bytes,
                suffix,
            )
        texts = continuations(settings, subject, file, head)
        for prefix, column in (("", 1), ("reference_", 2)) if texts else ():
            mine.add_text_statistics(prefix, [row[column] for row in texts], sources)
        figures.append(mine)
        result.measures.append(mine.measures)
        if number == 0:
            result.counts |= {"window": block, "stride": stride, "prompts": len(texts)}
            result.rows = [
                text_row(split, n, prompt, reference, written, sources)
                for n, (prompt, written, reference) in enumerate(texts)
            ]
        else:
            result.differences.append(figures[0].paired_differences(mine))
            for row, (_, written, _) in zip(result.rows, texts, strict=True):
                row.setdefault("others", {})[str(subject.folder)] = written
    return result


def continuations(
    settings: EvalSettings, subject: EvaluatedModel, file: dataset.TextDataset, head: int
) -> list[tuple[str, str, str]]:
    """(prompt of `head` tokens, what the model writes, how the text goes on) at evenly chosen places; none in a text that is too short."""
    length = settings.max_new_tokens or CONTINUED
    room = len(file) - head - length
    count = min(settings.limit or PROMPTS, max(0, room // head + 1))
    starts = np.linspace(0, max(0, room), count, dtype=int).tolist()
    cut = [file.tokens[start : start + head + length].tolist() for start in starts]
    prompts = [subject.tokenizer.decode(ids[:head]).strip("�") for ids in cut]
    sampling = SamplingParams(max_new_tokens=length)
    seeds = [settings.seed + n for n in range(count)]
    ids = [subject.tokenizer.encode(prompt) for prompt in prompts]
    generator = TextGenerator(subject.model, subject.tokenizer)
    written = generator.complete_many(
        ids, sampling, seeds, settings.batch_size, progress=progress_printer(count)
    )
    return [
        (prompt, w.text, subject.tokenizer.decode(ids[head:]).strip("�"))
        for prompt, w, ids in zip(prompts, written, cut, strict=True)
    ]


def text_row(
    split: str,
    number: int,
    question: str,
    reference: str,
    written: str,
    sources: TrainingText | None,
) -> dict:
    copied = sources.spans(written) if sources else []
    return {
        "split": split,
        "row": number,
        "question": question,
        "reference": reference,
        "answer": written,
        "copied": copied,
    }


# ---------------------------------------------------------------- answers


def measure_answers(
    settings: EvalSettings,
    subjects: Sequence[EvaluatedModel],
    folder: Path,
    split: str,
    sources: TrainingText | None,
) -> SplitResult:
    """Perplexity of the reference answers, and all that can be said of the model's own."""
    file, tokenizer = QuestionDataset(folder, split), subjects[0].tokenizer
    asked = read_questions(folder, split, tokenizer)
    if settings.limit and settings.limit < len(asked):
        asked = [asked[i] for i in np.linspace(0, len(asked) - 1, settings.limit, dtype=int)]
    taught = read_questions(folder, "train", tokenizer)
    pool = list(dict.fromkeys(q.reference for q in (*taught, *asked)))
    references = [q.reference for q in asked]
    spoken = [
        m["content"] for q in asked for m in q.messages if m["role"] == "assistant"
    ] + references  # of a conversation every turn is scored
    labels = file.meta.get("labels")
    if labels and len({q.reference for q in taught}) < 2:
        raise UserError(
            f"all training answers of {folder} are the same: there is nothing to tell apart"
        )
    result, figures = (
        SplitResult(
            {
                "questions": len(asked),
                "tokens": int(sum(file.trained[n] for q in asked for n in q.rows)),
            }
        ),
        [],
    )
    for number, subject in enumerate(subjects):
        mine = MeasureSet(settings.seed)
        chosen = answer_batches(file, settings.batch_size, (n for q in asked for n in q.rows))
        scored = score(subject.model, subject.model, chosen, tokenizer.end, torch.float32)
        mine.add_perplexities(
            scored, sum(map(len, spoken)), sum(len(text.encode()) for text in spoken)
        )
        finished = answer(
            TextGenerator(subject.model, tokenizer),
            asked,
            settings.batch_size,
            progress=progress_printer(len(asked), split),
            max_new_tokens=settings.max_new_tokens,
        )
        texts = [f.text for f in finished]
        rouge = [
            metrics.rouge_l(text, r, settings.beta, settings.rouge == "chars")
            for text, r in zip(texts, references, strict=True)
        ]
        closer = metrics.closer_references(texts, references, pool)
        for column, name in ((2, "rouge_l"), (0, "rouge_l_precision"), (1, "rouge_l_recall")):
            mine.add_mean(name, [scores[column] for scores in rouge])
        mine.add_mean(
            "exact_match",
            [metrics.exact_match(text, r) for text, r in zip(texts, references, strict=True)],
        )
        mine.add_mean(
            "char_f1", [metrics.char_f1(text, r) for text, r in zip(texts, references, strict=True)]
        )
        mine.add_mean("stop_rate", [f.reason == "end" for f in finished])
        mine.add_mean("wrong_question_rate", [other is not None for other in closer])
        mine.add_text_statistics("", texts, sources)
        chances = (
            classify(
                mine, subject, asked, labels, settings.batch_size, result if number == 0 else None
            )
            if labels
            else None
        )
        figures.append(mine)
        result.measures.append(mine.measures)
        if number == 0:
            mine.add_text_statistics("reference_", references, sources)
            add_lookup_baselines(mine, settings, taught, asked, labels)
            for n, q in enumerate(asked):
                row = text_row(split, q.rows[0], q.text, q.reference, texts[n], sources)
                row |= {
                    "rouge_l": rouge[n][2],
                    "exact": metrics.exact_match(texts[n], q.reference),
                    "char_f1": mine.by_row["char_f1"][n],
                }
                row |= {"stop": finished[n].reason, "closer_to": closer[n]}
                result.rows.append(
                    row
                    | (
                        {"probabilities": dict(zip(labels, chances[n].tolist(), strict=True))}
                        if labels
                        else {}
                    )
                )
        else:
            result.differences.append(figures[0].paired_differences(mine))
            for row, text in zip(result.rows, texts, strict=True):
                row.setdefault("others", {})[str(subject.folder)] = text
    return result


def classify(
    mine: MeasureSet,
    subject: EvaluatedModel,
    asked: Sequence[Question],
    labels: Sequence[str],
    rows: int,
    result: SplitResult | None,
) -> np.ndarray:
    """Accuracy and F1 where the answers are a closed set: the likeliest label counts. The labels' probabilities by question."""
    generator = TextGenerator(subject.model, subject.tokenizer)
    scores = label_scores(generator, asked, labels, rows)
    chances = np.exp(scores - scores.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    predicted = np.array([labels[best] for best in scores.argmax(axis=1)])
    whole = add_classification(mine, "", predicted, [q.reference for q in asked], labels)
    if result is not None:
        result.classes = {
            "labels": labels,
            "confusion": whole["confusion"],
            "per_class": whole["labels"],
        }
    return chances


def add_classification(
    mine: MeasureSet,
    prefix: str,
    predicted: np.ndarray,
    actual: Sequence[str],
    labels: Sequence[str],
) -> dict:
    mine.add_mean(prefix + "accuracy", [p == a for p, a in zip(predicted, actual, strict=True)])
    truth = np.array(actual)
    mine.add_aggregate(
        prefix + "macro_f1",
        truth,
        lambda chosen: metrics.classification(predicted[chosen], truth[chosen], labels)["macro_f1"],
        rounds=500,
    )
    return metrics.classification(predicted, truth, labels)


def add_lookup_baselines(
    mine: MeasureSet,
    settings: EvalSettings,
    taught: Sequence[Question],
    asked: Sequence[Question],
    labels: Sequence[str] | None,
) -> None:
    """The baselines: what a look-up by characters answers, or of a closed set the commonest label and TF-IDF + logistic regression."""
    known, answers = (
        ["\n".join(m["content"] for m in q.messages) for q in taught],
        [q.reference for q in taught],
    )
    new, actual = (
        ["\n".join(m["content"] for m in q.messages) for q in asked],
        [q.reference for q in asked],
    )
    for name, found in (
        ("lookup_", metrics.lookup_nearest(known, answers, new)),
        ("lookup_joined_", metrics.lookup_joined(known, answers, new)),
    ):
        scores = [
            metrics.rouge_l(text, r, settings.beta, settings.rouge == "chars")[2]
            for text, r in zip(found, actual, strict=True)
        ]
        mine.add_mean(name + "rouge_l", scores)
        mine.add_interval(
            f"above_{name}rouge_l",
            intervals.paired_difference(mine.by_row["rouge_l"], scores, mine.seed),
        )
    if labels:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        vectors = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True)
        fitted = LogisticRegression(C=10, max_iter=1000).fit(vectors.fit_transform(known), answers)
        add_classification(
            mine,
            "majority_",
            np.array([Counter(answers).most_common(1)[0][0]] * len(asked)),
            actual,
            labels,
        )
        add_classification(mine, "tfidf_", fitted.predict(vectors.transform(new)), actual, labels)


# ---------------------------------------------------------------- what the reader sees


def progress_printer(total: int, what: str = "") -> Callable[[int], None]:
    """Progress on a terminal."""
    if not sys.stderr.isatty():
        return lambda done: None
    return lambda done: print(
        f"\r{what} {done:,}/{total:,}",
        end="\n" if done == total else "",
        file=sys.stderr,
        flush=True,
    )


def format_results(evaluation: dict, sources: TrainingText | None) -> str:
    """The measures as a table of the terminal."""
    columns = [(split, measures) for split, measures in evaluation["measures"].items()]
    for other in evaluation["compare"]:
        columns += [
            (f"{Path(other['model']).name} {split}", measures)
            for split, measures in other["measures"].items()
        ]
        columns += [
            (f"difference {split}", measures) for split, measures in other["difference"].items()
        ]
    names = list(dict.fromkeys(name for _, measures in columns for name in measures))
    tables = []
    while columns:
        count = 3
        while (
            max(map(display_width, (part := side_by_side(names, columns[:count])).split("\n")))
            > MAX_COLUMNS
            and count > 1
        ):
            count -= 1
        tables.append(part)
        columns = columns[count:]
    facts = [("data", evaluation["data"]["folder"])]
    facts += [
        (split, ", ".join(f"{value:,} {name}" for name, value in counted.items()))
        for split, counted in evaluation["counts"].items()
    ]
    if evaluation["task"] == "questions":
        facts += zip(
            ("ROUGE-L", "", ""),
            textwrap.wrap(evaluation["definitions"]["rouge_l"], MAX_COLUMNS - 15),
            strict=False,
        )
    facts.append(
        (
            "copies",
            f"from {sources.folder}"
            if sources
            else "not measured: the text that the model was pretrained on is no longer there",
        )
    )
    facts.append(
        (
            "written to",
            f"{evaluation['model']}/eval.json, eval_answers.jsonl, report.html in {duration(evaluation['seconds'])}",
        )
    )
    return "\n".join([*tables, *(f"  {name:<12} {fact}" for name, fact in facts)])


def side_by_side(names: Sequence[str], columns: Sequence[tuple[str, dict]]) -> str:
    rows: list[list[object]] = [["measure", *(fitted(title, 24) for title, _ in columns)]]
    rows += [
        [name, *(format_with_interval(measures.get(name)) for _, measures in columns)]
        for name in names
        if any(name in measures for _, measures in columns)
    ]
    return table(rows)


def fitted(title: str, columns: int) -> str:
    """The title, or its end: a split stands there."""
    while display_width(title) > columns:
        title = "…" + title.lstrip("…")[1:]
    return title


def format_with_interval(entry: dict[str, float] | None) -> str:
    """0.812 [0.76, 0.86]."""
    if entry is None:
        return ""
    digits = 1 if abs(entry["value"]) >= 100 else 2 if abs(entry["value"]) >= 10 else 3
    value = f"{entry['value']:,.{digits}f}"
    return value + (
        f" [{entry['low']:,.{digits}f}, {entry['high']:,.{digits}f}]" if "low" in entry else ""
    )
