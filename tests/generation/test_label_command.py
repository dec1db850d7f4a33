"""sample.py with a model that labels: files, single texts and lines get labels with probabilities."""

from __future__ import annotations

import csv
import io
import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import prepare_sft
import sample
from shuoshu.generation import judge as judging
from shuoshu.generation.answers import read_questions
from shuoshu.generation.judge import Judge
from shuoshu.generation.prompt_files import prompt_of_text, read_texts
from shuoshu.models.purpose import Labelling, Purpose
from shuoshu.models.weights import load_model, save_weights
from shuoshu.sft.dataset import QuestionDataset
from shuoshu.text.tokenizer import Tokenizer
from tests.in_process import train_model

QUESTION = "评论：{review} 好吗？"
WORDS = {"雨": "好", "晴": "坏"}  # one word of a review decides
TEXTS = [f"第{n}回{word}。" for n in range(3) for word in WORDS]
LABELS = [label for _ in range(3) for label in WORDS.values()]
COLUMNS = ["label", "p_好", "p_坏"]


def write_table(path: Path, rows: list[list[object]], delimiter: str = ",") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def labeller(sft: list[str], pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that labels reviews; they were prepared with a template."""
    folder = tmp_path_factory.mktemp("labels")
    values = {"雨": 1, "晴": 0}
    rows = [
        [f"第{n}回{word}。", value, "val" if n % 5 == 4 else "train"]
        for word, value in values.items()
        for n in range(80 if value else 50)
    ]
    table = write_table(folder / "reviews.csv", [["review", "label", "split"], *rows])
    templates = [f"--question={QUESTION}", "--answer={label}", "--labels=1=好,0=坏"]
    prepare = [str(table), f"--out={folder / 'data'}", f"--tokenizer={pretrained}", *templates]
    assert prepare_sft.main(prepare) == 0
    command = [*sft, f"--dataset={folder / 'data'}", "--max_iters=40", "--eval_interval=20"]
    assert train_model([*command, f"--out_dir={folder / 'out'}"]) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def relabelled(labeller: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """relabelled(question=…, …): the folder of the same model with changes of its labelling."""

    def relabelled(**changes: object) -> Path:
        folder = tmp_path_factory.mktemp("relabelled") / "out"
        shutil.copytree(labeller, folder, ignore=shutil.ignore_patterns("checkpoints"))
        model, tokenizer, step, purpose, _ = load_model(labeller)
        purpose = purpose._replace(labelling=replace(purpose.labelling, **changes))
        save_weights(folder, model, tokenizer, step, purpose)
        return folder

    return relabelled


@pytest.fixture
def run(labeller: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., pytest.CaptureResult]:
    """Runs sample.py with the labeller, or the model of a later --out_dir; returns its output."""

    def run(*arguments: object, code: int = 0) -> pytest.CaptureResult:
        argv = [f"--out_dir={labeller}", "--threads=1", "--device=cpu", *map(str, arguments)]
        assert sample.main(argv) == code
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        return output

    return run


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl"])
def test_every_row_keeps_its_columns_and_gets_a_label_with_probabilities(
    run, tmp_path: Path, suffix: str
) -> None:
    path, rows = tmp_path / f"in.{suffix}", [[f"r{n}", text] for n, text in enumerate(TEXTS)]
    records = [dict(zip(("id", "Review"), row, strict=True)) for row in rows]
    if suffix in ("csv", "tsv"):
        write_table(path, [["id", "Review"], *rows], "\t" if suffix == "tsv" else ",")
    elif suffix == "json":
        path.write_text(json.dumps(records), encoding="utf-8")
    else:
        path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    output = run(f"--in={path}", f"--out={tmp_path / 'new' / 'o.csv'}")
    written = read_table(tmp_path / "new" / "o.csv")
    assert list(written[0]) == ["id", "Review", *COLUMNS]
    assert [[row["id"], row["Review"]] for row in written] == rows
    assert [row["label"] for row in written] == LABELS
    for row in written:
        good, bad = float(row["p_好"]), float(row["p_坏"])
        assert good + bad == pytest.approx(1, abs=2e-6) and (good > bad) == (row["label"] == "好")
        assert all(len(row[name].partition(".")[2]) == 6 for name in COLUMNS[1:])
    assert f"6 of 6 texts labelled in {tmp_path / 'new' / 'o.csv'}: 好 3, 坏 3\n" in output.out


def test_a_jsonl_file_has_numbers_and_two_runs_write_the_same(run, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    for name in ("a.jsonl", "b.jsonl"):
        run(f"--in={tmp_path / 'in.txt'}", f"--out={tmp_path / name}")
    content = (tmp_path / "a.jsonl").read_text(encoding="utf-8")
    assert content == (tmp_path / "b.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in content.splitlines()]
    assert all(isinstance(row[name], float) for row in rows for name in COLUMNS[1:])


HOSTILE = ["  第一回\r\n雨  ", "{晴}\\n", "\ufeff雨\0", 'he said "雨"', 3, 2.0, True, "<|user|>晴"]
HOSTILE += [f"{n}" + "沈砚" * n + f"{n}。" for n in range(10, 50, 2)]  # most are too long


@pytest.mark.parametrize("columns", [("review",), ("instruction", "input"), ("query",)])
def test_a_row_becomes_the_prompt_that_the_training_made_of_it(
    pretrained: Path, tmp_path: Path, columns: tuple[str, ...]
) -> None:
    template = QUESTION if columns == ("review",) else ""
    rows = [dict.fromkeys(columns, value) for value in HOSTILE]
    answer = {"review": "label", "instruction": "output", "query": "response"}[columns[0]]
    labelled = [row | {answer: n % 2, "split": "train"} for n, row in enumerate(rows)]
    (tmp_path / "train.json").write_text(json.dumps(labelled), encoding="utf-8")
    templates = [f"--question={template}", "--answer={label}"] if template else []
    command = [str(tmp_path / "train.json"), f"--out={tmp_path / 'data'}", *templates]
    assert prepare_sft.main([*command, "--labels=1=沈砚,0=龘龘", f"--tokenizer={pretrained}"]) == 0
    loaded = load_model(pretrained)
    trained = read_questions(tmp_path / "data", "train", loaded.tokenizer)
    (tmp_path / "in.json").write_text(json.dumps(rows), encoding="utf-8")
    labelling = Labelling(("沈砚", "龘龘"), template)
    judge = Judge(loaded._replace(purpose=Purpose("labels", 1, "", labelling)))
    prompts = read_texts(tmp_path / "in.json", template).usable("label", judge.prompt_ids)
    assert sorted(prompts.values()) == sorted(question.ids for question in trained)
    assert len(trained) == len(HOSTILE)


def test_no_column_of_the_file_is_replaced(run, tmp_path: Path) -> None:
    rows = [["review", "label", "model_p_好"], [TEXTS[0], "1", "x"]]
    path = write_table(tmp_path / "in.csv", rows)
    run(f"--in={path}", f"--out={tmp_path / 'o.csv'}")
    [row] = read_table(tmp_path / "o.csv")
    new = [f"model_model_{name}" for name in COLUMNS]
    assert list(row) == ["review", "label", "model_p_好", *new]
    assert [row["label"], row["model_p_好"], row[new[0]]] == ["1", "x", "好"]


@pytest.mark.parametrize("suffix, empty", [("csv", ""), ("jsonl", None)])
def test_rows_without_a_usable_text_stay_with_empty_cells_and_are_named(
    run, tmp_path: Path, suffix: str, empty: object
) -> None:
    texts = [TEXTS[0], " ", ["雨"], None, TEXTS[1]]
    rows = [{"id": n, "review": text} for n, text in enumerate(texts)]
    (tmp_path / "in.json").write_text(json.dumps([*rows, {"id": 5}]), encoding="utf-8")
    target = tmp_path / f"o.{suffix}"
    output = run(f"--in={tmp_path / 'in.json'}", f"--out={target}")
    if suffix == "csv":
        written = read_table(target)
    else:
        written = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert [int(row["id"]) for row in written] == list(range(6))
    assert [row["label"] for row in written] == ["好", *[empty] * 3, "坏", empty]
    assert [row["p_坏"] == empty for row in written] == [False, *[True] * 3, False, True]
    examples = ("row 2: review is empty", "row 3: review is a list", "row 4: review is empty")
    assert "no label for 4 rows, for example\n  " + "\n  ".join(examples) in output.err
    assert "2 of 2 texts labelled" in output.out


def test_a_file_without_the_templates_column_is_one_message(run, tmp_path: Path) -> None:
    path = write_table(tmp_path / "in.csv", [["id", "text"], ["1", "雨"]])
    error = run(f"--in={path}", f"--out={tmp_path / 'o.csv'}", code=2).err
    assert error.count("\n") == 1 and QUESTION in error
    assert "it needs review" in error and "the file's columns are: id, text" in error
    assert not (tmp_path / "o.csv").exists()


def test_a_file_whose_rows_are_all_broken_says_how(run, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,review\n1\n", encoding="utf-8")
    error = run(f"--in={tmp_path / 'in.csv'}", f"--out={tmp_path / 'o.csv'}", code=2).err
    assert "wrong number of cells" in error


@pytest.mark.parametrize(
    "question, column", [(QUESTION, "review"), ("", "prompt"), ("{a}\\n{b}", None)]
)
def test_a_text_file_fits_a_template_with_one_column_or_none(
    run, relabelled, tmp_path: Path, question: str, column: str | None
) -> None:
    (tmp_path / "in.txt").write_text("\n\n".join(TEXTS), encoding="utf-8")
    files = [f"--in={tmp_path / 'in.txt'}", f"--out={tmp_path / 'o.csv'}"]
    output = run(f"--out_dir={relabelled(question=question)}", *files, code=0 if column else 2)
    if column:
        written = read_table(tmp_path / "o.csv")
        assert [row[column] for row in written] == TEXTS
        assert list(written[0]) == [column, *COLUMNS]
    else:
        assert "give it a table with the columns a, b" in output.err


def test_a_text_longer_than_the_block_is_labelled(run, tmp_path: Path) -> None:
    texts = ["雨" + "第二回" * 100, "第一回。" * 100]
    (tmp_path / "in.txt").write_text("\n".join(texts), encoding="utf-8")
    output = run(f"--in={tmp_path / 'in.txt'}", f"--out={tmp_path / 'o.csv'}")
    assert "2 of 2 texts labelled" in output.out and "no label" not in output.err


def test_a_text_that_is_cut_leaves_room_for_the_label_with_the_most_tokens(relabelled) -> None:
    judge = Judge(load_model(relabelled(labels=("沈砚", "龘龘"))))  # as many characters
    few, many = (len(judge.tokenizer.encode_answer(label)) for label in judge.labelling.labels)
    assert few < many
    for count in range(200):
        assert len(judge.prompt_ids("长" * (count + 1))) + many - 1 <= judge.block


@pytest.mark.filterwarnings("error")
def test_an_interrupted_run_writes_the_finished_labels(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    real, calls = judging.score_answers, []

    def interrupted(*arguments: object) -> np.ndarray:
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(judging, "score_answers", interrupted)
    files = [f"--in={tmp_path / 'in.txt'}", f"--out={tmp_path / 'o.csv'}"]
    output = run(*files, "--batch_size=2", code=130)
    written = read_table(tmp_path / "o.csv")
    assert [row["review"] for row in written] == TEXTS
    assert sum(bool(row["label"]) for row in written) == 4
    assert all(bool(row["label"]) == bool(row["p_好"]) for row in written)
    assert "4 of 6 texts labelled" in output.out


@pytest.mark.parametrize("judges_by", ["answer", "text"])
@pytest.mark.parametrize("bias", [(), (0.5, -0.25)])
def test_a_batch_gives_the_probabilities_of_one_text_after_the_other(
    relabelled, judges_by: str, bias: tuple[float, ...]
) -> None:
    judge = Judge(load_model(relabelled(judges_by=judges_by, bias=bias)))
    texts = ["雨", *TEXTS, "晴" * 30, "第一回，他在渡口。" * 30]
    prompts = [judge.prompt_ids(text) for text in texts]
    assert len(set(map(len, prompts))) > 3
    alone = np.concatenate([judge.probabilities([prompt], rows=1) for prompt in prompts])
    assert np.abs(judge.probabilities(prompts, rows=4) - alone).max() < 1e-5
    assert np.abs(judge.probabilities(prompts[::-1], rows=99)[::-1] - alone).max() < 1e-5
    assert np.abs(alone.sum(axis=1) - 1).max() < 1e-9 and alone.std() > 0.01


# ---------------------------------------------------------------- the terminal


def test_a_single_text_gets_a_line_with_the_most_probable_label_first(run, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("\n".join(TEXTS[:2]), encoding="utf-8")
    run(f"--in={tmp_path / 'in.txt'}", f"--out={tmp_path / 'o.csv'}")
    for text, row in zip(TEXTS, read_table(tmp_path / "o.csv"), strict=False):
        first, second = ("好", "坏") if row["label"] == "好" else ("坏", "好")
        line = f"{first} {float(row[f'p_{first}']):.2f}  {second} {float(row[f'p_{second}']):.2f}\n"
        assert run(f"--start={text}").out == line


def test_several_texts_have_headers(run) -> None:
    lines = [run(f"--start={text}").out for text in TEXTS[:2]]
    both = run(*(f"--start={text}" for text in TEXTS[:2])).out
    assert both == f"--- 1/2  {TEXTS[0]}\n{lines[0]}\n--- 2/2  {TEXTS[1]}\n{lines[1]}"


@pytest.mark.parametrize(
    "template, expected",
    [
        (QUESTION, "评论：雨{b} 好吗？"),
        ("", "雨{b}"),
        ("{a}和{b}", "雨{b}"),
        ("{a}、{a}{{}}\\n", "雨{b}、雨{b}{}"),
    ],
)
def test_a_text_is_put_into_a_template_with_one_column(template: str, expected: str) -> None:
    assert prompt_of_text("雨{b}", template) == expected


def test_a_chat_labels_line_after_line(run, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [run(f"--start={text}").out for text in TEXTS[:2]]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{TEXTS[0]}\n {TEXTS[1]} \n\n{TEXTS[0]}\n"))
    _, *replies = run("--chat").out.split("\n> ")
    assert replies == [*lines, ""]


def test_an_empty_text_is_refused(run) -> None:
    assert "the text is empty: set --start" in run("--start= ", code=2).err


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "setting",
    ["num_samples=2", "temperature=0.7", "top_k=5", "top_p=0.5", "stop=。", "system=你是店主。"],
)
def test_settings_of_texts_that_a_model_writes_are_refused(run, setting: str) -> None:
    error = run("--start=雨", f"--{setting}", code=2).err
    assert f"--{setting.partition('=')[0]}: this model labels texts" in error


def test_harmless_settings_change_nothing(run) -> None:
    harmless = ["--num_samples=1", "--temperature=0", "--seed=7", "--max_new_tokens=3"]
    assert run("--start=雨", *harmless).out == run("--start=雨").out


def test_a_model_that_labels_continues_text_if_told_so(run, tokenizer: Tokenizer) -> None:
    options = ["--continue_text", "--num_samples=2", "--max_new_tokens=5"]
    output = run("--start=清晨，沈砚", *options).out
    assert output.count("清晨，沈砚") == 2 and "0." not in output


def test_a_long_text_is_cut_as_the_training_texts_are(labeller: Path, tmp_path: Path) -> None:
    texts = [f"{n}雨" + "阿迟背着信上桥" * n + "晴" for n in range(10, 30)]
    rows = [[text, n % 2, "train"] for n, text in enumerate(texts)]
    table = write_table(tmp_path / "long.csv", [["review", "label", "split"], *rows])
    question = "请判断这条评论：{review}"
    templates = [f"--question={question}", "--answer={label}", "--labels=1=好,0=一点也不好"]
    argv = [str(table), f"--out={tmp_path / 'data'}", f"--tokenizer={labeller}", *templates]
    assert prepare_sft.main(argv) == 0
    loaded = load_model(labeller)
    changed = replace(loaded.purpose.labelling, labels=("好", "一点也不好"), question=question)
    judge = Judge(loaded._replace(purpose=loaded.purpose._replace(labelling=changed)))
    dataset = QuestionDataset(tmp_path / "data", "train")
    for number, text in enumerate(texts):
        ids, mask = dataset.row(number)
        prompt = judge.prompt_ids(prompt_of_text(text, question))
        assert ids[: mask.argmax()].tolist() == prompt
