"""A small labelling task, and the settings of a training that takes a second."""

from __future__ import annotations

import json
import random

import prepare_sft
from shuoshu.core.errors import REPO_ROOT
from tests.conftest import QUIET

GOOD, BAD = "香甜清爽热闹敞亮", "冷淡昏暗嘈杂潮湿"
SETTINGS = [
    str(REPO_ROOT / "config" / "labels.py"),
    *QUIET,
    "--n_layer=1",
    "--n_embd=32",
    "--max_epochs=none",
    "--max_iters=40",
    "--eval_interval=8",
    "--save_interval=6",
    "--learning_rate=0.03",
    "--embedding_lr=0.03",
]


def write_table(path, test_is_reversed=False):
    """Texts of characters that speak for their label; in the test perhaps for the other one."""
    draw = random.Random(0)
    rows = []
    for n in range(120):
        split = ["test", "val", "train", "train", "train"][n % 5]
        is_good = n % 3 > 0
        told = is_good != (test_is_reversed and split == "test")
        text = "".join(draw.choices(GOOD if told else BAD, k=6)) + str(n)
        rows.append({"评论": text, "label": int(is_good), "split": split})
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def prepared(home, **options):
    write_table(home / "table.json", **options)
    templates = ["--question=评：{评论}", "--answer={label}", "--labels=1=满意,0=不满意"]
    command = [str(home / "table.json"), f"--out={home / 'data'}", *templates]
    assert prepare_sft.main(command) == 0
    return home / "data"
