"""eval_metrics.py: figures that agree with a computation by hand, and everything that is written down about them."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import eval_metrics
import prepare
import prepare_sft
from model import GPT
from shuoshu.core.terminal import display_width
from shuoshu.evaluation import intervals, metrics
from shuoshu.evaluation.copies import MIN_COPIED, MIN_MARKED, TrainingText
from shuoshu.evaluation.results_table import MAX_COLUMNS, format_results
from shuoshu.generation.answers import Question, label_scores, read_questions, render_question
from shuoshu.generation.sampling import TextGenerator
from shuoshu.models import weights
from shuoshu.sft.dataset import QuestionDataset
from shuoshu.text.dataset import TextDataset, read_meta

FILES = ("eval.json", "eval_answers.jsonl", "report.html")


def copied(model: Path, home: Path) -> Path:
    """A model folder of a test's own, without its checkpoints."""
    return shutil.copytree(model, home, ignore=shutil.ignore_patterns("checkpoints", *FILES))


def measure(out_dir: Path, *more: object) -> dict:
    """What eval.json says after a measurement."""
    assert eval_metrics.main([str(out_dir), "--device=cpu", "--threads=1", *map(str, more)]) == 0
    return json.loads((out_dir / "eval.json").read_text(encoding="utf-8"))


def answers_of(out_dir: Path) -> list[dict]:
    return [
        json.loads(line)
        for line in (out_dir / "eval_answers.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def value(evaluation: dict, split: str, name: str) -> float:
    return evaluation["measures"][split][name]["value"]


@pytest.fixture(scope="module")
def home(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(tuned, tmp_path_factory.mktemp("measured") / "out-sft")


@pytest.fixture(scope="module")
def evaluated(home: Path, pretrained: Path) -> tuple[dict, list[dict], str, str]:
    """(eval.json, its answers, the report, the terminal) of the fine-tuned model beside the one that it was."""
    with contextlib.redirect_stdout(io.StringIO()) as terminal:
        evaluation = measure(home, f"--compare={pretrained}", "--split=all", "--max_new_tokens=24")
    return (
        evaluation,
        answers_of(home),
        (home / "report.html").read_text(encoding="utf-8"),
        terminal.getvalue(),
    )


@pytest.fixture(scope="module")
def text_home(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(pretrained, tmp_path_factory.mktemp("text") / "out-pretrain")


@pytest.fixture(scope="module")
def text_evaluated(text_home: Path) -> dict:
    return measure(text_home, "--limit=4", "--max_new_tokens=40")


# ---------------------------------------------------------------- perplexity


def test_the_perplexity_of_answers_is_that_of_their_tokens_by_hand(
    evaluated, tuned: Path, qa: Path
) -> None:
    model, tokenizer, *_ = weights.load_model(tuned)
    file, nats, ends, tokens = QuestionDataset(qa, "val"), 0.0, 0.0, 0
    for number in range(len(file)):
        ids, mask = file.row(number)
        with torch.no_grad():
            chances = model(torch.from_numpy(ids)[None])[0].double().softmax(-1)
        for place in np.flatnonzero(mask):
            cost = -math.log(chances[place - 1, ids[place]].item())
            nats, ends, tokens = (
                nats + cost,
                ends + cost * (ids[place] == tokenizer.end),
                tokens + 1,
            )
    characters = "".join(q.reference for q in read_questions(qa, "val", tokenizer))
    evaluation = evaluated[0]
    assert evaluation["counts"]["val"] == {"questions": len(file), "tokens": tokens}
    assert value(evaluation, "val", "perplexity") == pytest.approx(
        math.exp(nats / tokens), rel=1e-6
    )
    assert value(evaluation, "val", "perplexity_without_end") == pytest.approx(
        math.exp((nats - ends) / (tokens - len(file))), rel=1e-6
    )
    assert value(evaluation, "val", "bits_per_char") == pytest.approx(
        (nats - ends) / math.log(2) / len(characters), rel=1e-4
    )
    assert value(evaluation, "val", "bits_per_byte") == pytest.approx(
        (nats - ends) / math.log(2) / len(characters.encode()), rel=1e-4
    )


def test_every_turn_of_a_conversation_counts_for_its_bits_per_character(
    pretrained: Path, tmp_path: Path
) -> None:
    turns = [("谁？", "老船夫解开缆绳，望着河面出神。"), ("哪里？", "渡口。")]
    said = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    rows = [{"messages": said, "split": split} for split in ("train", "val")]
    (tmp_path / "talk.json").write_text(json.dumps(rows), encoding="utf-8")
    assert (
        prepare_sft.main(
            [str(tmp_path / "talk.json"), f"--out={tmp_path / 'talk'}", f"--tokenizer={pretrained}"]
        )
        == 0
    )
    evaluation = measure(
        copied(pretrained, tmp_path / "out"), f"--data={tmp_path / 'talk'}", "--max_new_tokens=1"
    )
    model, tokenizer, *_ = weights.load_model(pretrained)
    ids, mask = tokenizer.render(said)
    with torch.no_grad():
        logp = model(torch.tensor([ids]))[0].double().log_softmax(-1)
    nats = -sum(
        logp[n - 1, ids[n]].item() for n in range(len(ids)) if mask[n] and ids[n] != tokenizer.end
    )
    assert value(evaluation, "val", "bits_per_char") == pytest.approx(
        nats / math.log(2) / sum(len(answer) for _, answer in turns), rel=1e-5
    )


def test_the_perplexity_of_text_is_that_of_transformers_on_the_same_folder(
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
    assert math.log(value(text_evaluated, "val", "perplexity_disjoint")) * len(
        tokens
    ) == pytest.approx(nats, rel=1e-5)
    assert abs(
        value(text_evaluated, "val", "perplexity_disjoint") - math.exp(nats / len(tokens))
    ) < 1e-4 * math.exp(nats / len(tokens))


def test_overlapping_windows_say_more_than_disjoint_ones_over_the_same_tokens(
    text_evaluated, pretrained: Path, dataset: Path, tmp_path: Path
) -> None:
    facts = read_meta(dataset)["splits"]["val"]
    counts = {name: facts[name] for name in ("tokens", "characters", "bytes")}
    assert text_evaluated["counts"]["val"] == {**counts, "window": 64, "stride": 32, "prompts": 4}
    assert value(text_evaluated, "val", "perplexity") < value(
        text_evaluated, "val", "perplexity_disjoint"
    )
    scale = value(text_evaluated, "val", "bits_per_char") / value(
        text_evaluated, "val", "bits_per_byte"
    )
    assert scale == pytest.approx(counts["bytes"] / counts["characters"])
    disjoint = measure(
        copied(pretrained, tmp_path / "out"), "--stride=64", "--limit=1", "--max_new_tokens=1"
    )
    assert value(disjoint, "val", "perplexity") == value(disjoint, "val", "perplexity_disjoint")
    assert value(disjoint, "val", "perplexity_disjoint") == value(
        text_evaluated, "val", "perplexity_disjoint"
    )


# ---------------------------------------------------------------- answers


def test_eval_json_has_the_promised_names_and_intervals_that_hold_their_values(evaluated) -> None:
    promised = {
        "perplexity",
        "bits_per_char",
        "bits_per_byte",
        "rouge_l",
        "exact_match",
        "char_f1",
        "stop_rate",
        "wrong_question_rate",
    }
    promised |= {
        "lookup_rouge_l",
        "lookup_joined_rouge_l",
        "copy_rate",
        "perplexity_without_end",
        "rouge_l_precision",
        "rouge_l_recall",
    }
    promised |= {
        "mean_length",
        "repetition",
        "copy_longest",
        "reference_copy_longest",
        "reference_copy_rate",
        "above_lookup_rouge_l",
    }
    evaluation = evaluated[0]
    assert list(evaluation["measures"]) == ["train", "val", "test"]
    for measures in evaluation["measures"].values():
        assert promised <= measures.keys()
        for name, entry in measures.items():
            assert entry.keys() == (
                {"value"} if "distinct" in name else {"value", "low", "high"}
            ), name
            assert (
                entry.get("low", -math.inf) - 1e-9
                <= entry["value"]
                <= entry.get("high", math.inf) + 1e-9
            ), name
    assert {
        "format",
        "model",
        "step",
        "date",
        "data",
        "settings",
        "training",
        "machine",
        "definitions",
        "counts",
        "compare",
        "seconds",
    } <= evaluation.keys()
    assert (
        "β" not in evaluation["definitions"]["rouge_l"]
        and "longest common subsequence" in evaluation["definitions"]["rouge_l"]
    )


def test_a_model_that_knows_the_training_answers_measures_so(evaluated) -> None:
    measures = evaluated[0]["measures"]["train"]
    for name in ("exact_match", "stop_rate", "rouge_l", "char_f1"):
        assert measures[name] == {"value": 1.0, "low": 1.0, "high": 1.0}, name
    assert measures["wrong_question_rate"]["value"] == 0 and measures["perplexity"]["value"] < 1.1
    assert evaluated[0]["measures"]["test"]["exact_match"]["value"] < 1


def test_there_is_a_row_for_each_question_with_what_was_measured_of_it(evaluated, qa: Path) -> None:
    evaluation, rows, *_ = evaluated
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
    evaluation, rows, *_ = evaluated
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
            assert (
                change["low"] <= change["value"] + 1e-9 and change["value"] <= change["high"] + 1e-9
            )
        assert changes["perplexity"]["high"] < 0 < changes["rouge_l"]["low"]


def test_a_split_can_be_chosen_and_thinned_out(
    tuned: Path, qa: Path, pretrained: Path, tmp_path: Path, capsys
) -> None:
    rows = json.loads((qa.parent / "facts.json").read_text(encoding="utf-8"))
    rows = [
        {**row, "split": "untaught" if row["split"] == "test" else row["split"]} for row in rows
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    assert (
        prepare_sft.main(
            [str(tmp_path / "rows.json"), f"--out={tmp_path / 'qa'}", f"--tokenizer={pretrained}"]
        )
        == 0
    )
    out_dir = copied(tuned, tmp_path / "out")
    short = "--max_new_tokens=12"
    assert list(measure(out_dir, "--limit=3", short)["measures"]) == [
        "test"
    ]  # of the model's own data
    there = measure(out_dir, f"--data={tmp_path / 'qa'}", "--limit=3", short)
    assert list(there["measures"]) == ["val"] and there["data"]["folder"] == str(tmp_path / "qa")
    assert list(
        measure(out_dir, f"--data={tmp_path / 'qa'}", "--split=untaught", "--limit=5", short)[
            "measures"
        ]
    ) == ["untaught"]
    assert len(answers_of(out_dir)) == 5 and {row["row"] for row in answers_of(out_dir)} == {
        0,
        5,
        11,
        17,
        23,
    }
    assert (scores := [row["rouge_l"] for row in answers_of(out_dir)]) == sorted(
        scores
    )  # the worst first
    assert list(
        measure(out_dir, f"--data={tmp_path / 'qa'}", "--split=all", "--limit=2", short)["measures"]
    ) == ["train", "val", "untaught"]
    capsys.readouterr()
    assert eval_metrics.main([str(out_dir), f"--data={tmp_path / 'qa'}", "--split=test"]) == 2
    assert (
        "the split test is empty or missing: the data has train, val, untaught"
        in capsys.readouterr().err
    )


@pytest.fixture
def speechless(pretrained_model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models to which nothing is as likely as the end."""
    real, end = GPT.next_logits, pretrained_model[1].end

    def ends(self: GPT, *args: object) -> torch.Tensor:
        logits = real(self, *args)
        logits[:, end] += 1000
        return logits

    monkeypatch.setattr(GPT, "next_logits", ends)


def test_a_model_whose_answers_are_all_empty_gives_numbers(
    speechless, tuned: Path, pretrained: Path, tmp_path: Path
) -> None:
    out_dir = copied(tuned, tmp_path / "out")
    evaluation = measure(out_dir, f"--compare={pretrained}")
    assert {row["answer"] for row in answers_of(out_dir)} == {""}
    measures = evaluation["measures"]["test"]
    for name in (
        "rouge_l",
        "exact_match",
        "char_f1",
        "mean_length",
        "distinct_1",
        "repetition",
        "copy_longest",
        "copy_rate",
        "wrong_question_rate",
    ):
        assert measures[name]["value"] == 0, name
    assert (
        measures["stop_rate"]["value"] == 1
        and evaluation["compare"][0]["difference"]["test"]["rouge_l"]["value"] == 0
    )
    assert (
        value(measure(copied(pretrained, tmp_path / "text"), "--limit=3"), "val", "mean_length")
        == 0
    )


def test_measured_again_only_the_date_and_the_time_taken_differ(
    tuned: Path, tmp_path: Path
) -> None:
    out_dir, found = copied(tuned, tmp_path / "out"), []
    for batch_size in (64, 64):
        evaluation = measure(out_dir, "--limit=6", f"--batch_size={batch_size}")
        found.append(
            {name: fact for name, fact in evaluation.items() if name not in ("date", "seconds")}
            | {"answers": answers_of(out_dir)}
        )
    assert found[0] == found[1]
    other = measure(out_dir, "--limit=6", "--seed=1")["measures"]["test"]
    assert (
        other["rouge_l"]["value"] == found[0]["measures"]["test"]["rouge_l"]["value"]
        and other != found[0]["measures"]["test"]
    )


# ---------------------------------------------------------------- closed sets of answers

LABELS = ["好", "不好，因为船票只剩两张了"]


@pytest.fixture(scope="module")
def closed(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 questions with one of two answers, which a look at the question decides."""
    folder = tmp_path_factory.mktemp("closed")
    rows = [
        {
            "question": f"第{n}回{'走' * (n % 7)}{'雨' if n % 3 else '晴'}？",
            "answer": LABELS[n % 3 == 0],
        }
        for n in range(60)
    ]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    assert (
        prepare_sft.main(
            [
                str(folder / "rows.json"),
                f"--out={folder / 'closed'}",
                f"--tokenizer={pretrained}",
                "--test_fraction=0.2",
            ]
        )
        == 0
    )
    assert read_meta(folder / "closed")["labels"] == LABELS
    return folder / "closed"


def by_the_row(model: GPT, tokenizer, ids: list[int], label: str) -> float:
    """The log-likelihood of a label as the answer, from the whole row."""
    spelt = [*tokenizer.encode(label), tokenizer.end]
    with torch.no_grad():
        logp = model(torch.tensor([[*ids, *spelt][:-1]]))[0].double().log_softmax(-1)
    return sum(logp[len(ids) - 1 + n, token].item() for n, token in enumerate(spelt))


@pytest.mark.parametrize("rows", [1, 4, 64])
def test_labels_score_as_their_whole_rows_do(pretrained_model, rows: int) -> None:
    model, tokenizer = pretrained_model
    asked = [
        "？",
        "谁在渡口？",
        "雨停之后老船夫解开缆绳望着河面出神，谁在渡口？",
        "谁在渡口？",
        "The lamp",
        "柳青禾写了什么？",
        "何时？",
        "午后？",
        "天？",
    ]
    asked = [render_question(tokenizer, [{"role": "user", "content": text}]) for text in asked]
    questions = [Question([], "", ids, 0, range(0)) for ids in asked]
    labels = ["好", "你终究还是来了", "好吗", "", "The lamp is still lit"]
    assert (
        len({len(ids) for ids in asked}) > 4
        and len({len(tokenizer.encode(label)) for label in labels}) >= 4
    )
    scores = label_scores(TextGenerator(model, tokenizer), questions, labels, rows)
    expected = [[by_the_row(model, tokenizer, ids, label) for label in labels] for ids in asked]
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_a_question_that_only_its_own_short_label_leaves_room_for_is_scored_for_the_long_one_too(
    pretrained_model,
) -> None:
    model, tokenizer = pretrained_model
    ids = render_question(tokenizer, [{"role": "user", "content": "走" * 200}])
    ids = [ids[0], *ids[-(model.config.block_size - 2) :]]
    room = model.config.block_size - len(tokenizer.encode(LABELS[1]))
    assert room < len(ids) < model.config.block_size
    generator = TextGenerator(model, tokenizer)
    scores = label_scores(generator, [Question([], "", ids, 0, range(0))], LABELS, 4)
    np.testing.assert_allclose(
        scores, [[by_the_row(model, tokenizer, ids[-room:], label) for label in LABELS]], atol=1e-4
    )


def test_a_closed_set_is_decided_by_its_labels_probabilities(
    closed: Path, pretrained: Path, tmp_path: Path
) -> None:
    out_dir = copied(pretrained, tmp_path / "out")
    evaluation = measure(
        out_dir, f"--data={closed}", f"--compare={pretrained}", "--max_new_tokens=4"
    )
    measures, rows = evaluation["measures"]["test"], answers_of(out_dir)
    model, tokenizer, *_ = weights.load_model(pretrained)
    right = []
    for question, row in zip(read_questions(closed, "test", tokenizer), rows, strict=True):
        scores = torch.tensor(
            [by_the_row(model, tokenizer, question.ids, label) for label in LABELS]
        )
        assert list(row["probabilities"]) == LABELS and sum(
            row["probabilities"].values()
        ) == pytest.approx(1)
        assert list(row["probabilities"].values()) == pytest.approx(
            scores.softmax(0).tolist(), abs=1e-4
        )
        right.append(LABELS[int(scores.argmax())] == row["reference"])
    assert measures["accuracy"]["value"] == pytest.approx(np.mean(right))
    classes = evaluation["classes"]["test"]
    assert classes["labels"] == LABELS
    assert [sum(row) for row in classes["confusion"]] == [
        sum(row["reference"] == label for row in rows) for label in LABELS
    ]
    assert sum(classes["confusion"][n][n] for n in range(2)) == sum(right)
    assert measures["macro_f1"]["value"] == pytest.approx(
        np.mean([classes["per_class"][label]["f1"] for label in LABELS])
    )
    share = np.mean([row["reference"] == LABELS[0] for row in rows])
    assert measures["majority_accuracy"]["value"] == pytest.approx(share) and measures[
        "majority_macro_f1"
    ]["value"] == pytest.approx(share / (1 + share))
    assert measures["tfidf_accuracy"]["value"] == 1 == measures["tfidf_macro_f1"]["value"]
    same = {"value": 0.0, "low": 0.0, "high": 0.0}
    assert all(
        evaluation["compare"][0]["difference"]["test"][name] == same
        for name in ("accuracy", "macro_f1", "perplexity")
    )
    assert "混淆矩阵" in (out_dir / "report.html").read_text(encoding="utf-8")


# ---------------------------------------------------------------- text


def test_what_a_model_writes_stands_beside_how_the_text_goes_on(
    text_evaluated, text_home: Path, dataset: Path
) -> None:
    rows, tokens = answers_of(text_home), TextDataset(dataset, "val").tokens
    _, tokenizer, *_ = weights.load_model(text_home)
    text = tokenizer.decode(tokens.tolist())
    assert len(rows) == 4
    for row in rows:  # a character that is cut in two is in neither part
        assert (
            re.search(f"{re.escape(row['question'])}.?{re.escape(row['reference'])}", text)
            and row["answer"] != row["reference"]
        )
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


def test_models_that_read_further_or_less_far_continue_the_same_prompts(
    pretrained: Path, tmp_path: Path
) -> None:
    out_dir, short = copied(pretrained, tmp_path / "out"), copied(pretrained, tmp_path / "short")
    config = json.loads((short / "config.json").read_text(encoding="utf-8"))
    (short / "config.json").write_text(
        json.dumps({**config, "max_position_embeddings": 16}), encoding="utf-8"
    )
    evaluation = measure(out_dir, f"--compare={short}", "--max_new_tokens=4", "--limit=500")
    difference = evaluation["compare"][0]["difference"]["val"]
    assert (
        "mean_length" in difference and "perplexity" not in difference
    )  # no window is like another's
    assert (
        value(evaluation, "val", "perplexity")
        < evaluation["compare"][0]["measures"]["val"]["perplexity"]["value"]
    )


@pytest.mark.parametrize("characters, prompts", [(100, 0), (1000, 1)])
def test_text_that_is_too_short_to_be_continued_is_scored(
    pretrained: Path, text: str, tmp_path: Path, characters: int, prompts: int
) -> None:
    (tmp_path / "short.txt").write_text(text[:characters], encoding="utf-8")
    assert (
        prepare.main(
            [
                str(tmp_path / "short.txt"),
                f"--out={tmp_path / 'short'}",
                f"--tokenizer={pretrained}",
                "--val_fraction=0.3",
            ]
        )
        == 0
    )
    out_dir = copied(pretrained, tmp_path / "out")
    evaluation = measure(out_dir, f"--data={tmp_path / 'short'}")
    assert evaluation["counts"]["val"]["tokens"] > 0 and (
        evaluation["counts"]["val"]["prompts"] > 0
    ) == bool(prompts)
    assert value(evaluation, "val", "perplexity") > 1
    assert ("mean_length" in evaluation["measures"]["val"]) == bool(prompts) and len(
        answers_of(out_dir)
    ) == evaluation["counts"]["val"]["prompts"]


def test_without_validation_text_the_training_text_can_be_measured(
    pretrained: Path, text: str, tmp_path: Path, capsys
) -> None:
    (tmp_path / "all.txt").write_text(text[:3000], encoding="utf-8")
    assert (
        prepare.main(
            [
                str(tmp_path / "all.txt"),
                f"--out={tmp_path / 'all'}",
                f"--tokenizer={pretrained}",
                "--val_fraction=0",
            ]
        )
        == 0
    )
    out_dir = copied(pretrained, tmp_path / "out")
    for split in ([], ["--split=val"], ["--split=all"]):
        assert eval_metrics.main([str(out_dir), f"--data={tmp_path / 'all'}", *split]) == 2
        assert "the data has train; choose with --split" in capsys.readouterr().err
    assert (
        value(
            measure(
                out_dir,
                f"--data={tmp_path / 'all'}",
                "--split=train",
                "--limit=2",
                "--max_new_tokens=4",
            ),
            "train",
            "perplexity",
        )
        > 1
    )


# ---------------------------------------------------------------- copies


def test_copied_spans_stand_verbatim_in_the_chapter_that_is_named(
    evaluated, pretrained: Path, dataset: Path, text: str
) -> None:
    _, tokenizer, *_ = weights.load_model(pretrained)
    source, meta = TrainingText.find(pretrained), read_meta(dataset)
    tokens = TextDataset(dataset, "train").tokens.tolist()
    books = [f"《{book['title']}》" for book in meta["books"]]
    begins = [
        (chapter["token"], books[chapter["book"]] + chapter["title"])
        for chapter in meta["chapters"]
        if chapter["split"] == "train"
    ]
    ends = [token for token, _ in begins[1:]] + [len(tokens)]
    chapters = {
        title: tokenizer.decode(tokens[start:end])
        for (start, title), end in zip(begins, ends, strict=True)
    }
    assert len(chapters) > 3
    for title, body in chapters.items():
        own = body[60:110]
        assert all(own not in other for name, other in chapters.items() if name != title)
        assert source.spans(f"Ж{own}Ж") == [(1, 51, title)]
    spans = [
        (row["answer"][start:end], title)
        for row in evaluated[1]
        for start, end, title in row["copied"]
    ]
    assert spans and all(
        len(span) >= MIN_MARKED and span in chapters[title] for span, title in spans
    )
    assert source.spans("Ж" * 30) == []


def test_the_copy_rate_counts_answers_with_a_long_span(evaluated, pretrained: Path) -> None:
    (other,), source = evaluated[0]["compare"], TrainingText.find(pretrained)
    written = [row["others"][str(pretrained)] for row in evaluated[1] if row["split"] == "test"]
    longest = [source.copies.longest(text) for text in written]
    assert other["measures"]["test"]["copy_longest"]["value"] == pytest.approx(np.mean(longest))
    assert other["measures"]["test"]["copy_rate"]["value"] == pytest.approx(
        np.mean([length >= MIN_COPIED for length in longest])
    )


@pytest.mark.parametrize("what", ["gone", "another"])
def test_copies_are_not_looked_for_in_text_that_is_not_the_one_trained_on(
    tuned: Path, pretrained: Path, text: str, tmp_path: Path, capsys, what: str
) -> None:
    before, out_dir = copied(pretrained, tmp_path / "before"), copied(tuned, tmp_path / "out")
    if what == "another":
        (tmp_path / "book.txt").write_text(text[:5000], encoding="utf-8")
        assert (
            prepare.main(
                [
                    str(tmp_path / "book.txt"),
                    f"--out={tmp_path / 'book'}",
                    f"--tokenizer={pretrained}",
                ]
            )
            == 0
        )
    for folder, part, values in (
        (before, "data", {"folder": str(tmp_path / "book")}),
        (out_dir, "settings", {"init_from": str(before)}),
    ):
        saved = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        saved[part] |= values
        (folder / "settings.json").write_text(json.dumps(saved), encoding="utf-8")
    evaluation = measure(out_dir, "--limit=3")
    assert (
        not [name for name in evaluation["measures"]["test"] if "copy" in name]
        and "copies       not measured" in capsys.readouterr().out
    )


# ---------------------------------------------------------------- what the reader sees


def test_the_report_is_one_file_that_asks_for_nothing_outside(evaluated) -> None:
    page = evaluated[2]
    assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")
    assert not re.search(r"https?://|src=|href=|url\(|@import|//[a-z]", page)
    assert (
        "ROUGE-L" in page
        and "答非所问率" in page
        and "Wrong-question rate" in page
        and "前后比较" in page
    )


def columns_of(terminal: str) -> Iterator[str]:
    return (
        line
        for line in terminal.splitlines()
        if not line.startswith(("  data ", "  copies ", "  written to "))
    )


def test_the_table_fits_a_terminal_of_100_columns(evaluated) -> None:
    lines = list(columns_of(evaluated[3]))
    assert max(map(display_width, lines)) <= MAX_COLUMNS == 100
    assert all(
        any(name in line for line in lines)
        for name in (
            "above_lookup_joined_rouge_l",
            "out-pretrain test",
            "difference test",
            "ROUGE-L F1",
        )
    )


def test_the_table_fits_with_long_chinese_names_and_wide_figures(evaluated) -> None:
    evaluation = json.loads(json.dumps(evaluated[0]))
    wide = {"value": -0.123456, "low": -0.234567, "high": -0.012345}
    for measures in evaluation["measures"].values():
        measures |= {
            "above_lookup_joined_rouge_l": wide,
            "perplexity": {"value": 1e6, "low": 1e5, "high": 1e7},
        }
    evaluation["compare"][0]["model"] = "/家/" + "很长的输出文件夹" * 5
    lines = list(columns_of(format_results(evaluation, None)))
    assert max(map(display_width, lines)) <= MAX_COLUMNS
    assert (
        sum("文件夹 train" in line for line in lines) == 1
        and sum("measure " in line for line in lines) > 3
    )


# ---------------------------------------------------------------- mistakes


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert eval_metrics.main([*map(str, arguments), "--device=cpu", "--threads=1"]) == 2
    message = capsys.readouterr().err
    assert (
        message.startswith("error: ") and "Traceback" not in message and message.count("error") == 1
    )
    return message


def test_each_mistake_has_its_own_message(
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
    (tmp_path / "other.txt").write_text(text[:5000], encoding="utf-8")
    assert (
        prepare.main(
            [str(tmp_path / "other.txt"), f"--out={tmp_path / 'other'}", "--vocab_size=300"]
        )
        == 0
    )
    message = refused(capsys, pretrained, f"--data={tmp_path / 'other'}")
    assert "another tokenizer" in message and f"--tokenizer={pretrained}" in message
    moved = copied(tuned, tmp_path / "moved")
    saved = json.loads((moved / "settings.json").read_text(encoding="utf-8"))
    saved["data"]["folder"] = str(tmp_path / "gone")
    (moved / "settings.json").write_text(json.dumps(saved), encoding="utf-8")
    assert f"there is no prepared data in {tmp_path / 'gone'}" in refused(capsys, moved)
    assert not any((moved / name).exists() for name in FILES)


def test_rows_longer_than_a_model_reads_are_refused(
    tuned: Path, qa: Path, tmp_path: Path, capsys
) -> None:
    short = copied(tuned, tmp_path / "short")
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
            assert (
                f"has {longest} tokens, the model in {short} reads {block}" in message
                and f"--tokenizer={short}" in message
            )
        else:
            measure(*arguments)


def test_training_answers_that_are_all_the_same_leave_nothing_to_tell_apart(
    pretrained: Path, tmp_path: Path, capsys
) -> None:
    rows = [
        {"question": f"{n}？", "answer": LABELS[n >= 20], "split": "train" if n < 20 else "val"}
        for n in range(24)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    assert (
        prepare_sft.main(
            [str(tmp_path / "rows.json"), f"--out={tmp_path / 'one'}", f"--tokenizer={pretrained}"]
        )
        == 0
    )
    assert "all training answers" in refused(
        capsys, copied(pretrained, tmp_path / "out"), f"--data={tmp_path / 'one'}"
    )
