"""Shared fixtures: a small synthetic book, models trained on it, and damaged JSON."""

from __future__ import annotations

import copy
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import prepare
import prepare_sft
import train
from model import GPT
from shuoshu.core.errors import REPO_ROOT
from shuoshu.models import weights
from shuoshu.text.tokenizer import Tokenizer, train_bpe
from tests.models import smollm2

torch.set_num_threads(1)  # exact results, and no threads that wait for each other on a busy machine

COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=25, **COMMON)
settings.register_profile("long", max_examples=50, **COMMON)
settings.register_profile("ci", max_examples=50, derandomize=True, **COMMON)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="hundreds of kills, long fuzzing")


def pytest_configure(config: pytest.Config) -> None:
    default = "ci" if os.environ.get("CI") else "quick"
    settings.load_profile("long" if config.getoption("--long") else default)


PEOPLE = [
    "沈砚",
    "柳青禾",
    "赵铁匠",
    "白先生",
    "阿蛮",
    "顾三娘",
    "陆小舟",
    "老船夫",
    "韩秀才",
    "孟婆婆",
]
PLACES = [
    "渡口",
    "城南的茶楼",
    "山神庙",
    "旧书铺",
    "石桥边",
    "药铺",
    "后院",
    "码头",
    "竹林深处",
    "驿站",
]
TIMES = ["清晨", "黄昏时分", "三更天", "雨停之后", "第二天", "入冬以来", "那年春天", "午后"]
DEEDS = [
    "点起一盏油灯",
    "把信折好收进袖中",
    "数了数铜钱",
    "推开半扇木门",
    "望着河面出神",
    "磨着一方旧砚",
    "解开缆绳",
    "沏了一壶粗茶",
    "写下两行小字",
    "牵马过桥",
]
SAYINGS = [
    "你终究还是来了",
    "这雨怕是停不了",
    "账要一笔一笔地算",
    "书里没有写这一页",
    "明日再走也不迟",
    "船票只剩两张",
    "The lamp is still lit",
    "他说的话，只能信一半",
    "记住：NO. 7",
]
CLOSES = [
    "谁也没有再说话。",
    "远处传来几声犬吠。",
    "风把门吹得轻轻作响……",
    "茶已经凉了。",
    "灯花“啪”地爆了一下。",
    "他在纸上记下 3 月 12 日，共 48 文。",
    "天边只剩一线红。",
]
NUMERALS = "一二三四五六七八九十"


@pytest.fixture(scope="session")
def text() -> str:
    """About 30,000 characters of a synthetic novel in ten chapters."""
    draw = random.Random(7)
    lines = []
    for numeral in NUMERALS:
        lines += [
            f"第{numeral}回　{draw.choice(PEOPLE)}夜访{draw.choice(PLACES)}　{draw.choice(PEOPLE)}{draw.choice(DEEDS)}",
            "",
        ]
        for _ in range(28):
            sentences = []
            for _ in range(draw.randint(2, 4)):
                who, other = draw.sample(PEOPLE, 2)
                sentences.append(
                    f"{draw.choice(TIMES)}，{who}在{draw.choice(PLACES)}{draw.choice(DEEDS)}，{other}说：“{draw.choice(SAYINGS)}{draw.choice('。！？')}”"
                )
            lines.append("　　" + "".join(sentences) + draw.choice(CLOSES))
        lines.append("")
    return "\n".join(lines)


@pytest.fixture(scope="session")
def tokenizer(text: str) -> Tokenizer:
    return train_bpe([text], 512)


@pytest.fixture(scope="session")
def damage() -> Callable[[st.DataObject, object], object]:
    """damage(data, document): a copy of a JSON document with one thing in it lost, replaced or misspelt."""
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    junk = (
        scalars
        | st.lists(scalars, max_size=3)
        | st.dictionaries(st.text(max_size=4), scalars, max_size=3)
    )

    def hurt(data: st.DataObject, document: object) -> object:
        whole = {"root": copy.deepcopy(document)}
        node, key = whole, "root"
        while isinstance(node[key], (dict, list)) and node[key] and data.draw(st.integers(0, 7)):
            node = node[key]
            key = data.draw(
                st.sampled_from(list(node) if isinstance(node, dict) else range(len(node)))
            )
        how = data.draw(
            st.sampled_from(["replace", "lose", "misspell"] if node is not whole else ["replace"])
        )
        if how == "replace":
            node[key] = data.draw(junk)
        elif how == "lose":
            del node[key]
        elif isinstance(node, dict):
            node[data.draw(st.text(max_size=4))] = node.pop(key)
        else:
            node[key] = [node[key]]
        return whole["root"]

    return hurt


# ---------------------------------------------------------------- trained once, used by many

TINY = [
    "--n_layer=2",
    "--n_head=2",
    "--n_embd=64",
    "--block_size=64",
    "--batch_size=4",
    "--dtype=float32",
    "--device=cpu",
    "--threads=1",
]


@pytest.fixture(scope="session")
def dataset(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of the prepared book."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "book.txt").write_text(text, encoding="utf-8")
    assert (
        prepare.main([str(folder / "book.txt"), f"--out={folder / 'book'}", "--vocab_size=512"])
        == 0
    )
    return folder / "book"


@pytest.fixture(scope="session")
def tiny(dataset: Path) -> list[str]:
    """The command line of a run that takes seconds; add a length and an out_dir."""
    return [f"--dataset={dataset}", *TINY]


@pytest.fixture(scope="session")
def pretrained(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained for 150 steps."""
    out_dir = tmp_path_factory.mktemp("runs") / "out-pretrain"
    assert (
        train.main(
            [
                *tiny,
                f"--out_dir={out_dir}",
                "--max_iters=150",
                "--eval_interval=50",
                "--sample_tokens=20",
            ]
        )
        == 0
    )
    return out_dir


@pytest.fixture(scope="session")
def pretrained_model(pretrained: Path) -> tuple[GPT, Tokenizer]:
    model, tokenizer, *_ = weights.load_model(pretrained)
    return model, tokenizer


# ---------------------------------------------------------------- what others made


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct, real weights, as a Hugging Face folder. Don't write into it."""
    try:
        return smollm2.cached_folder()
    except smollm2.Missing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose template writes a system message if a conversation has none."""
    from tests.models.families import write_model  # transformers takes seconds to import
    from tests.text.foreign_helpers import CHATML

    folder = write_model(tmp_path_factory.mktemp("chat") / "model", "llama", head_dim=16)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "chat_template": CHATML}), encoding="utf-8")
    return folder


# ---------------------------------------------------------------- questions about the book

PHRASINGS = {
    "train": ("{who}在{where}做了什么？", "在{where}，{who}做什么？"),
    "val": ("请问{who}在{where}做了什么？",),
    "test": ("{who}到了{where}，做了什么呢？",),
}
ODD_QUESTIONS = [
    ("<|endoftext|>是什么？", "一个记号。"),
    ("谁写了<|assistant|>？？", "没有人写。"),
    ("<|user|>说：？", "“你终究还是来了。”"),
]


def facts_about_the_book() -> list[dict[str, str]]:
    """24 facts in four phrasings each, and questions that spell special tokens; each with its split."""
    draw = random.Random(3)
    places = [(who, where) for who in PEOPLE for where in PLACES]
    rows = []
    for number, (who, where) in enumerate(draw.sample(places, 24)):
        answer = f"{who}{DEEDS[number % len(DEEDS)]}。"
        for split, phrasings in PHRASINGS.items():
            rows += [
                {
                    "question": phrasing.format(who=who, where=where),
                    "answer": answer,
                    "split": split,
                    "fact": number,
                }
                for phrasing in phrasings
            ]
    return rows + [
        {"question": question, "answer": answer, "split": "train"}
        for question, answer in ODD_QUESTIONS
    ]


@pytest.fixture(scope="session")
def qa(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions about the book, prepared for the pretrained model."""
    folder = tmp_path_factory.mktemp("qa")
    (folder / "facts.json").write_text(
        json.dumps(facts_about_the_book(), ensure_ascii=False), encoding="utf-8"
    )
    assert (
        prepare_sft.main(
            [str(folder / "facts.json"), f"--out={folder / 'facts'}", f"--tokenizer={pretrained}"]
        )
        == 0
    )
    return folder / "facts"


QUIET = ["--dtype=float32", "--device=cpu", "--threads=1", "--sample_tokens=0", "--dropout=0"]
QUIET += ["--question_drop=0", "--question_replace=0", "--paraphrases=0", "--batch_size=16"]


@pytest.fixture(scope="session")
def sft(qa: Path, pretrained: Path) -> list[str]:
    """The command line of a fine-tuning that takes seconds; add a length and an out_dir."""
    return [
        str(REPO_ROOT / "config" / "sft.py"),
        f"--dataset={qa}",
        f"--init_from={pretrained}",
        *QUIET,
    ]


@pytest.fixture(scope="session")
def tuned(sft: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows the answers to the training questions."""
    out_dir = tmp_path_factory.mktemp("tuned") / "out-sft"
    assert (
        train.main(
            [
                *sft,
                f"--out_dir={out_dir}",
                "--max_iters=120",
                "--eval_interval=40",
                "--sample_tokens=20",
            ]
        )
        == 0
    )
    return out_dir


# ---------------------------------------------------------------- trainings in processes of their own


class ForkServer:
    """Starts trainings by forking a process that has imported everything, see faults/fork_server.py."""

    def __init__(self) -> None:
        answers, theirs = os.pipe()
        environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": str(REPO_ROOT),
            "OMP_NUM_THREADS": "1",
        }
        command = [
            sys.executable,
            str(REPO_ROOT / "tests" / "faults" / "fork_server.py"),
            str(theirs),
        ]
        self.process = subprocess.Popen(
            command,
            cwd=REPO_ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            pass_fds=[theirs],
            text=True,
        )
        os.close(theirs)
        self._answers = os.fdopen(answers)

    def start(
        self,
        argv: Sequence[str],
        out: Path,
        environment: dict[str, str] | None = None,
        **faults: object,
    ) -> int:
        """Starts a training that appends its output to `out`; returns its pid."""
        return self._ask(
            do="start", argv=list(argv), out=str(out), environment=environment or {}, faults=faults
        )

    def start_group(
        self, argv: Sequence[str], out: Path, world: int, faults: dict[int, dict] | None = None
    ) -> list[int]:
        """Starts a training in several processes, like torchrun; returns their pids. Each prints to `out`.<rank>; faults by rank."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks = ({**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world))
        return [
            self.start(argv, out.with_suffix(f".{r}"), environment, **(faults or {}).get(r, {}))
            for r, environment in enumerate(ranks)
        ]

    def wait(self, pid: int, seconds: float = 60) -> int:
        """Waits for a training; returns its exit code, or minus the signal that ended it."""
        code = self._ask(do="wait", pid=pid, seconds=seconds)
        assert code is not None, f"process {pid} still runs after {seconds} s"
        return code

    def train(
        self, argv: Sequence[str], out: Path, world: int = 1, faults: dict[int, dict] | None = None
    ) -> list[int]:
        """Runs a training in `world` processes; returns their exit codes by rank."""
        return [self.wait(pid) for pid in self.start_group(argv, out, world, faults)]

    def _ask(self, **order: object) -> int | None:
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self._answers.readline())


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    if not hasattr(os, "fork"):
        pytest.skip("Windows doesn't fork")
    fork_server = ForkServer()
    yield fork_server
    fork_server.process.kill()
    fork_server.process.wait()
