"""prepare_sft.py on tables of labelled texts: folds, tokenizer, block, labels, what is printed."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import prepare_sft
from shuoshu.evaluation.measure_labels import LabelledTexts
from shuoshu.generation.answers import read_questions
from shuoshu.sft.dataset import QuestionDataset, read_pairs
from shuoshu.sft.layouts import template_ends
from shuoshu.text import dataset as text_dataset
from shuoshu.text.tokenizer_folder import load_tokenizer
from shuoshu.web.linear_rival import read_split
from tests.sft.helpers import write

QUESTIONS = [{"question": f"第{n}问：谁在渡口？", "answer": f"第{n}个人。"} for n in range(30)]
WORDS = ("雨", "雪", "河水", "石桥", "灯火", "北风", "渡口", "清晨", "油灯", "铜钱")
SPLITS = ("train", "val", "test")
TEMPLATES = ("--question=评论：{review}。是正面吗？", "--answer={label}")


def reviews(count: int = 100, words: int = 6, seed: int = 1) -> list[tuple[str, str]]:
    """Different reviews with labels, half of which are 1."""
    draw = random.Random(seed)
    return [
        (f"{n}" + "".join(draw.choice(WORDS) for _ in range(words)), str(n % 2))
        for n in range(count)
    ]


def table(rows: list[tuple[str, str]], delimiter: str = ",") -> str:
    """A table of reviews with their labels; cells are quoted if they must be."""

    def cell(text: str) -> str:
        quoted = text.replace('"', '""')
        return f'"{quoted}"' if quoted != text or delimiter in text or "\n" in text else text

    lines = [("review", "label"), *rows]
    return "".join(delimiter.join(map(cell, line)) + "\n" for line in lines)


@pytest.fixture
def label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> Callable[..., str]:
    """label(rows or bytes, *arguments) prepares data/out from a table, in a folder with no model."""
    monkeypatch.chdir(tmp_path)

    def run(content: object, *arguments: str, code: int = 0, name: str = "reviews.csv") -> str:
        write(tmp_path / name, table(content) if isinstance(content, list) else content)
        exit_code = prepare_sft.main([name, "--out=data/out", *(arguments or TEMPLATES)])
        output = capsys.readouterr()
        assert exit_code == code, output.err
        assert "Traceback" not in output.err
        return output.err if code else output.out

    return run


def prepared() -> dict[str, list[dict]]:
    """The pairs in data/out by split."""
    return {split: read_pairs(Path("data/out"), split) for split in SPLITS}


def labels_in(pairs: dict[str, list[dict]]) -> Counter:
    return Counter(pair["answer"] for split in pairs.values() for pair in split)


# ---------------------------------------------------------------- folds


def test_the_tests_of_all_folds_are_all_rows(prepare, tmp_path: Path) -> None:
    sources = []
    for fold in (1, 2, 3):
        printed = prepare(QUESTIONS, "--folds=3", f"--fold={fold}")
        assert f"test is fold {fold} of 3" in printed
        sources += [pair["source"] for pair in read_pairs(tmp_path / "out", "test")]
    assert sorted(sources) == sorted(f"rows.json, row {n + 1}" for n in range(30))
    recorded = text_dataset.read_meta(tmp_path / "out")["settings"]
    assert (recorded["folds"], recorded["fold"]) == (3, 3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--fold=3"], "fold=3 needs the number of folds"),
        (["--folds=3"], "folds=3 needs the fold that is the test: --fold=1 to 3"),
        (["--folds=3", "--fold=4"], "fold=4: there are 3 folds"),
        (["--folds=3", "--fold=0"], "fold=0: must be at least 1"),
        (["--folds=1", "--fold=1"], "folds=1: must be at least 2"),
        (["--folds=31", "--fold=1"], "30 different questions can't make so many folds"),
    ],
)
def test_an_impossible_fold_is_one_message(
    prepare, tmp_path: Path, arguments: list[str], message: str
) -> None:
    assert message in prepare(QUESTIONS, *arguments, code=2) and not (tmp_path / "out").exists()


# ---------------------------------------------------------------- tokenizer and block


def test_a_table_is_prepared_without_any_model(label) -> None:
    printed = label(reviews(), *TEMPLATES, "--labels=1=正面,0=负面")
    meta = text_dataset.read_meta(Path("data/out"))
    assert (meta["task"], meta["labels"]) == ("labels", ["负面", "正面"])
    assert meta["tokenizer"]["kind"] == "bpe" and meta["block_size"] == 64
    assert "tokens, trained on the training texts" in printed
    assert (
        "next         python train.py config/labels.py --dataset=out --out_dir=out-out" in printed
    )
    dataset, tokenizer = QuestionDataset(Path("data/out"), "train"), load_tokenizer("data/out")
    for number, pair in enumerate(read_pairs(Path("data/out"), "train")):
        ids, mask = dataset.row(number)
        assert tokenizer.decode(ids[mask == 1].tolist()) == pair["answer"]
        assert ids[-1] == tokenizer.end and mask[-1] == 1


def test_the_tokenizer_is_trained_on_the_training_texts_alone(label) -> None:
    label(reviews())
    before = load_tokenizer("data/out").hash
    held_out = {pair["source"] for split in ("val", "test") for pair in prepared()[split]}
    rows = [
        (f"{n}" + "甲乙丙丁" * 3 if f"reviews.csv, row {n + 2}" in held_out else text, answer)
        for n, (text, answer) in enumerate(reviews())
    ]
    label(rows)
    assert {p["source"] for split in ("val", "test") for p in prepared()[split]} == held_out
    assert load_tokenizer("data/out").hash == before
    assert len(load_tokenizer("data/out").encode("甲")) == 3


def test_a_models_tokenizer_is_used_if_it_is_named(label, pretrained: Path) -> None:
    printed = label(reviews(), *TEMPLATES, f"--tokenizer={pretrained}")
    assert load_tokenizer("data/out").hash == load_tokenizer(pretrained).hash
    assert f"tokenizer    that of {pretrained}" in printed
    assert f"--init_from={pretrained}" in printed


@pytest.mark.parametrize(
    "n_long, settings, block_size",
    [(2, (), 64), (4, (), 512), (0, ("--block_size=100",), 100)],
)
def test_the_block_holds_almost_all_training_rows(
    label, n_long: int, settings: tuple[str, ...], block_size: int
) -> None:
    rows = reviews()
    rows += [(text, answer) for text, answer in reviews(n_long, words=600, seed=2)]
    printed = label(rows, *TEMPLATES, *settings, "--val_fraction=0", "--test_fraction=0")
    assert text_dataset.read_meta(Path("data/out"))["block_size"] == block_size
    assert f"up to {block_size} tokens" in printed


def test_a_long_text_keeps_its_ends_and_its_template(label) -> None:
    draw = random.Random(1)
    middle = "".join(chr(draw.randrange(0x4E00, 0x9000)) for _ in range(500))  # no common pieces
    text = f"好，{middle}很差"
    task = (
        "请读下面这条住客写的评论再判断它是正面的还是负面的只回答一个词不要解释也不要重复评论里的话"
    )
    printed = label([*reviews(), (text, "0")], f"--question={task}：{{review}}", "--answer={label}")
    assert "1 of 101 texts shortened in the middle to fit into 64 tokens" in printed
    (cut,) = (p["question"] for pairs in prepared().values() for p in pairs if "…" in p["question"])
    assert cut.startswith(f"{task}：好，") and cut.endswith("很差")
    assert all(
        QuestionDataset(Path("data/out"), split).lengths.max(initial=0) <= 65 for split in SPLITS
    )


def test_the_linear_model_reads_whole_texts_even_if_their_middle_is_cut(label) -> None:
    rows = [(f"{text}{'河水' * 400}{n}", answer) for n, (text, answer) in enumerate(reviews(80))]
    rows += reviews(20, seed=2)
    columns = [{"review": text, "label": answer, "uncut": "?"} for text, answer in rows]
    text = json.dumps(columns, ensure_ascii=False)
    label(text, *TEMPLATES, "--block_size=64", name="reviews.json")
    folder = Path("data/out")
    questions = read_questions(folder, "train", load_tokenizer(folder))
    read = LabelledTexts(questions, ["0", "1"], TEMPLATES[0].removeprefix("--question=")).texts
    assert set(read) < {text for text, _ in rows}
    assert sum("…" in question.whole_text for question in questions) > 50
    assert read_split(folder, "train", template_ends("评论：{review}。是正面吗？")).texts == read


def test_the_length_of_a_cut_text_does_not_tell_its_label(label) -> None:
    rows = [(f"{n:03}" + "山高水长" * 200, str(n % 2)) for n in range(100)]
    label(rows, *TEMPLATES, "--labels=1=好,0=这是一条负面的评论请不要相信它", "--block_size=64")
    lengths = {len(pair["question"]) for pairs in prepared().values() for pair in pairs}
    assert len(lengths) == 1


def test_texts_that_cutting_makes_equal_are_used_once(label) -> None:
    long = [(f"{'甲' * 300}{n}{'乙' * 300}", "0") for n in range(40)]
    printed = label([*reviews(), *long], *TEMPLATES, "--block_size=64")
    assert "39 duplicate" in printed and "leaks        none" in printed
    assert sum(map(len, prepared().values())) == 101


def test_a_template_without_room_for_the_text_is_one_message(label) -> None:
    draw = random.Random(1)
    rules = "".join(chr(draw.randrange(0x4E00, 0x9000)) for _ in range(3000))
    message = label(reviews(), f"--question={rules}{{review}}", "--answer={label}", code=2)
    assert "no pair is left to train on" in message and "shorten the template" in message


# ---------------------------------------------------------------- nearly the same texts


def test_nearly_equal_texts_share_a_split_and_are_counted(label) -> None:
    rows = []
    for text, answer in reviews(60):
        rows.append((f"{text} http://t.co/{answer}", answer))
        rows.append((f"《{text}》！！", answer))
        rows.append((f"{text}http://t.co/abc再见", answer))
    printed = label(rows)
    assert "120 texts in 60 groups differ only in links, punctuation" in printed
    places: dict[str, set[str]] = {}
    for split, pairs in prepared().items():
        for pair in pairs:
            row = int(pair["source"].split()[-1]) - 2
            if row % 3 < 2:
                places.setdefault(row // 3, set()).add(split)
    assert len(places) == 60 and all(len(splits) == 1 for splits in places.values())


def test_texts_with_several_labels_are_told_and_stay(label) -> None:
    rows = [*reviews(), ("同一句话", "0"), ("同一句话！", "0"), ("同一句话。", "1")]
    printed = label(rows)
    assert "conflict     3 of these texts, in 1 group, have several labels, for example" in printed
    assert "同一句话: 0 (2), 1 (1)" in printed
    assert labels_in(prepared()) == {"0": 52, "1": 51}


def test_links_between_questions_are_not_compared(prepare, tmp_path: Path) -> None:
    rows = [
        {**row, "question": f"{row['question']} http://a.b/{n}"} for n, row in enumerate(QUESTIONS)
    ]
    assert "alike" not in prepare(rows)


def test_texts_in_two_given_splits_are_told_although_their_links_differ(label) -> None:
    rows = [(text, answer, "train") for text, answer in reviews()]
    rows += [(f"《{rows[0][0]}》http://t.co/abcdefgh", rows[0][1], "test")]
    printed = label("review,label,split\n" + "".join(",".join(row) + "\n" for row in rows))
    assert "1 validation or test texts are also training texts, links and punctuation" in printed
    assert rows[0][0] in printed and "《" in printed


# ---------------------------------------------------------------- labels


SPELLINGS = ("1", "1.0", " 1", "true", "0", "0.0", "False", "0 ")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl"])
@pytest.mark.parametrize("given", [(), ("--labels=1=正面,0=负面",)])
def test_a_label_is_one_however_it_is_spelled(label, suffix: str, given: tuple) -> None:
    rows = [(text, SPELLINGS[n % 8]) for n, (text, _) in enumerate(reviews(104))]
    if suffix in (".csv", ".tsv"):
        content: object = "\ufeff" + table(rows, "," if suffix == ".csv" else "\t")
    else:
        values = {"1": 1, "1.0": 1.0, "true": True, "0": 0, "0.0": 0.0, "False": False}
        records = [{"review": text, "label": values.get(one, one)} for text, one in rows]
        lines = "\n".join(map(json.dumps, records))
        content = records if suffix == ".json" else lines
        content = json.dumps(content) if suffix == ".json" else content
    label(content, *TEMPLATES, *given, name=f"reviews{suffix}")
    expected = ("正面", "负面") if given else ("1", "0")
    assert labels_in(prepared()) == dict.fromkeys(expected, 52)


def test_quotes_and_line_ends_in_cells_are_text_and_missing_cells_are_left_out(label) -> None:
    odd = [('他说“好”，又说"很好"', "1"), ("两行\n的评论, 有逗号", "0"), ("", "1"), ("  ", "0")]
    printed = label(table([*reviews(), *odd, ("没有标签", "")]) + "只有一格\n")
    assert "106 rows, 102 used, 4 left out" in printed
    assert "3 empty, for example" in printed and "1 wrong number of cells" in printed
    questions = [pair["question"] for pairs in prepared().values() for pair in pairs]
    assert {
        '评论：他说“好”，又说"很好"。是正面吗？',
        "评论：两行\n的评论, 有逗号。是正面吗？",
    } <= set(questions)


@pytest.mark.parametrize(
    "rows, arguments, note",
    [
        ([], ["--labels=1=好,0=坏,2=平"], "no row has the label 平 of --labels"),
        ([("少见", "2")], [], "only one row has the label 2"),
        ([(f"大写{n}", "Yes") for n in range(9)] + [(f"小写{n}", "yes") for n in range(9)], [],
         "labels that differ in case or width only: Yes (9 rows), yes (9 rows)"),
    ],
)  # fmt: skip
def test_doubtful_labels_are_noted(label, rows: list, arguments: list[str], note: str) -> None:
    assert f"note         {note}" in label([*reviews(), *rows], *TEMPLATES, *arguments)


def test_a_label_of_one_text_is_taught(label) -> None:
    rare = [(f"少见的{n}", f"类{n}") for n in range(8)]
    printed = label([*reviews(200), *rare], *TEMPLATES)
    assert "nothing teaches it" not in printed
    assert {pair["answer"] for pair in prepared()["train"]} == {"0", "1", *(x for _, x in rare)}


def test_a_label_without_a_training_text_is_noted(label) -> None:
    rows = "review,label,split\n" + "".join(f"{t},{x},train\n" for t, x in reviews())
    rows += "另一种,2,test\n又一种,2,test\n"
    assert "note         no training row has the label 2: nothing teaches it" in label(rows)


@pytest.mark.parametrize(
    "rows, arguments, message",
    [
        (
            [(f"{n}", "1") for n in range(50)],
            ["--labels=1=好,0=坏"],
            "all 50 rows have the label 好",
        ),
        ([(f"{n}", "1") for n in range(50)], [], "all rows have the same answer"),
        (
            [(f"{n}", f"词{n}") for n in range(50)],
            [],
            "there are 50 different answers, more than 20",
        ),
        ([(f"{n}", f"{n % 2}") for n in range(9)], [], "9 rows are few for 2 different answers"),
        ([(f"{n}", "x") for n in range(50)], ["--labels=1=好"], "no pair is left to train on"),
    ],
)
def test_what_is_no_labelling_task_says_why(
    label, rows: list, arguments: list[str], message: str
) -> None:
    assert message in label(rows, *TEMPLATES, *arguments, code=2) and not Path("data/out").exists()


def test_free_answers_by_template_are_noted(label, pretrained: Path) -> None:
    rows = [(f"第{n}条", f"词{n}") for n in range(50)]
    printed = label(rows, *TEMPLATES, f"--tokenizer={pretrained}")
    assert "note         the answers are not taken for labels: there are 50" in printed
    assert text_dataset.read_meta(Path("data/out"))["task"] == "questions"
