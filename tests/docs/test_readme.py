"""READMEs and docs: every command in them runs (slow ones in a reduced form); both READMEs have the same commands and tables."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import bench
import eval_metrics
import experiment
import merge
import prepare
import prepare_sft
import sample
import train
from shuoshu.core.errors import REPO_ROOT
from shuoshu.experiments import child
from tests.bench.test_bench import write_checkout
from tests.experiments.stub import StubCommands
from tests.models.families import write_model

READMES = ("README.md", "README.zh.md")
DOCUMENTS = (*READMES, *sorted(f"docs/{path.name}" for path in (REPO_ROOT / "docs").glob("*.md")))
QUICK = [
    "--max_iters=2",
    "--eval_questions=8",
    "--sample_tokens=4",
    "--device=cpu",
    "--dtype=float32",
    "--threads=1",
]
NAMES = (
    "prompts.csv",
    "questions.csv",
    "reviews.csv",
    "unlabelled.csv",
    "aesop.txt",
    "三国演义.txt",
)
SMALL = [
    "--n_layer=1",
    "--n_head=2",
    "--n_embd=32",
    "--block_size=128",
    "--batch_size=2",
    "--gradient_accumulation_steps=1",
]


# The block of labels is that of their data.
SMALL_LABELS = [word for word in SMALL if not word.startswith("--block_size")]


def commands(readme: str) -> list[str]:
    """The command lines in a document's bash blocks."""
    blocks = re.findall(
        r"^```bash\n(.*?)^```",
        (REPO_ROOT / readme).read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def test_both_readmes_have_the_same_commands_and_tables():
    english, chinese = ((REPO_ROOT / name).read_text(encoding="utf-8") for name in READMES)
    assert [re.sub(r'"[^"]*"', "…", c) for c in commands("README.md")] == [
        re.sub(r'"[^"]*"', "…", c) for c in commands("README.zh.md")
    ]
    for pattern in (r"^#", r"^\|", r"^```", r"^\* "):
        assert len(re.findall(pattern, english, re.MULTILINE)) == len(
            re.findall(pattern, chinese, re.MULTILINE)
        ), pattern


@contextmanager
def page_open(arguments: list[str]) -> Iterator[str]:
    """Serves the page by `python app.py …`; yields its address."""
    command = [sys.executable, str(REPO_ROOT / "app.py"), *arguments, "--threads=1"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        try:
            lines = []
            for line in server.stdout:
                lines.append(line)
                if line.startswith("page "):
                    break
            assert lines and lines[-1].startswith("page "), "".join(lines)
            yield lines[-1].split()[1]
        finally:
            server.terminate()  # not SIGINT, which is ignored where the tests run in the background
            assert server.wait(20) == 0


def python_command(line: str) -> int:
    """Runs `python X.py …` in a reduced form; returns its exit code. app.py gets its own process."""
    words = shlex.split(line)
    if words[1] == "app.py":
        with page_open(words[2:]) as address:
            assert address.startswith("http://")
        return 0
    if words[1] == "experiment.py":  # tests/experiments has its trainings and measurements
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(child, "run_child", StubCommands())
            return experiment.main([*words[2:], "--folds=2"])
    mains = {
        "prepare": prepare.main,
        "prepare_sft": prepare_sft.main,
        "train": train.main,
        "sample": sample.main,
        "eval_metrics": eval_metrics.main,
        "merge": merge.main,
        "bench": bench.main,
    }
    main = mains[words[1].removesuffix(".py")]
    labels = "config/labels.py" in words
    is_small = any(word.startswith("--init_from") for word in words)  # the model has its own shape
    reduced = {
        "train.py": [*QUICK, *([] if is_small else SMALL_LABELS if labels else SMALL)],
        "sample.py": ["--max_new_tokens=5", "--threads=1"],
        "eval_metrics.py": ["--limit=3", "--threads=1"],
        "bench.py": [
            *SMALL,
            "--device=cpu",
            "--dtype=float32",
            "--threads=1",
            "--pairs=1",
            "--seconds=0.01",
        ],
    }.get(words[1], [])
    return main([*words[2:], *([] if "--help" in words else reduced)])


@pytest.fixture(scope="module")
def user_folder(tmp_path_factory, text):
    """The folder of a user who follows the README."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "my_novels").mkdir()
    (folder / "my_novels" / "book.txt").write_text(text, encoding="utf-8")
    for name in ("aesop.txt", "三国演义.txt"):
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "prompts.csv").write_text("prompt\n阿迟\n信\n", encoding="utf-8")
    (folder / "questions.csv").write_text("question\n阿迟是谁？\n信在哪里？\n", encoding="utf-8")
    pairs = [
        {"question": f"第{n}封信是谁写的？", "answer": f"{who}写的。"}
        for n, who in enumerate("甲乙丙丁戊己庚辛壬癸" * 3)
    ]
    (folder / "my_questions.json").write_text(
        json.dumps(pairs, ensure_ascii=False), encoding="utf-8"
    )
    (folder / "reviews.csv").write_text(
        "label,review\n" + "".join(f"{n % 2},房间{n}号\n" for n in range(40)), encoding="utf-8"
    )
    (folder / "unlabelled.csv").write_text("review\n书说得好。\n茶凉了。\n", encoding="utf-8")
    write_checkout(folder / "nanoGPT")
    return folder


def test_every_command_runs(user_folder, monkeypatch, capsys):
    folder = user_folder / "reading"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("my_novels", "my_questions.json", *NAMES):
        Path(name).symlink_to(user_folder / name)
    Path("data/reviews").mkdir(parents=True)
    shutil.copy(REPO_ROOT / "data/reviews/reviews.csv", "data/reviews")
    Path("out-sft").symlink_to("out-mine-sft")  # the quickstart's model
    for line in dict.fromkeys(line for name in DOCUMENTS for line in commands(name)):
        if line.startswith("python -m venv"):
            subprocess.run(
                [sys.executable, *line.split(" && ")[0].split()[1:], "--without-pip"], check=True
            )
            assert Path(".venv/bin/activate").is_file() or Path(".venv/Scripts/activate").is_file()
        elif line.startswith("pip install"):  # the requirements must already be installed here
            for requirement in (
                (REPO_ROOT / line.split()[-1]).read_text(encoding="utf-8").splitlines()
            ):
                assert Requirement(requirement).specifier.contains(
                    version(Requirement(requirement).name), prereleases=True
                )
        elif line.startswith("bash ") or line.startswith("torchrun "):
            pass  # tested below
        elif line.startswith("hf download"):  # a small model with random weights in its place
            folder = Path(line.rpartition("--local-dir=")[2])
            write_model(
                folder, "llama", tie_word_embeddings=True, max_position_embeddings=4096
            )  # a passage has a token for each byte here
        elif line.endswith("--help"):
            with pytest.raises(SystemExit):
                python_command(line)
        else:
            assert python_command(line) == 0, (line, capsys.readouterr().err)
    assert (
        Path("data/novella/meta.json").is_file()
        and Path("out-mine/model.safetensors").is_file()
        and Path("answers.csv").is_file()
    )


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs a shell script in the place of Python")
@pytest.mark.parametrize("script", ["quickstart.sh", "test.sh"])
def test_the_scripts_run(script, tmp_path):
    """Runs in a copy with this environment as .venv. Trainings are short; pytest and ruff are not run."""
    house = tmp_path / "house 房子"
    ignored = shutil.ignore_patterns(
        ".venv", ".git", "out-*", ".*_cache", "*.bin", "*.jsonl", "meta.json", "tokenizer.json"
    )
    shutil.copytree(REPO_ROOT, house, ignore=ignored)
    (house / ".venv" / "bin").mkdir(parents=True)
    python = house / ".venv" / "bin" / "python"
    python.write_text(
        f"""#!/bin/sh
case "$*" in
  *train.py*) exec {sys.executable} "$@" {" ".join([*QUICK, *SMALL])};;
  *eval_metrics.py*) exec {sys.executable} "$@" --limit=2 --max_new_tokens=8 --threads=1;;
  "-m pytest"*|"-m ruff"*) echo "would run $*";;
  *) exec {sys.executable} "$@";;
esac
""",
        encoding="utf-8",
    )
    python.chmod(0o755)
    (house / ".venv" / f"have-requirements{'-dev' * (script == 'test.sh')}.txt").write_bytes(
        b"".join(path.read_bytes() for path in sorted(house.glob("requirements*.txt")))
    )
    arguments = [] if script == "quickstart.sh" else ["tests/models/test_model.py", "-k", "cached"]

    def run(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", house / script, *words], capture_output=True, text=True, cwd="/"
        )

    first = run(*arguments)
    assert first.returncode == 0, first.stderr
    if script == "test.sh":
        assert "tests/models/test_model.py -k cached" in first.stdout
        return
    assert all(step in first.stdout for step in ("Preparing", "Pretraining", "A sample"))
    python.write_text('#!/bin/sh\necho "$*"\n', encoding="utf-8")  # only prints its arguments
    second = run()
    assert second.returncode == 0, second.stderr
    assert "sample.py" in second.stdout  # the second run skips the finished steps
    assert not any(name in second.stdout for name in ("prepare", "train.py", "eval_metrics"))
    assert run("--nonsense").returncode == 2


@pytest.mark.slow
def test_the_torchrun_command_runs_with_two_processes(dataset, tmp_path):
    (line,) = [line for line in commands("README.md") if line.startswith("torchrun")]
    words = shlex.split(line.replace("nproc_per_node=8", "nproc_per_node=2"))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *words[1:],
        f"--dataset={dataset}",
        f"--out_dir={tmp_path / 'out'}",
        *QUICK,
        *SMALL,
    ]
    done = subprocess.run(
        command,
        cwd=REPO_ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
@pytest.mark.parametrize("codes, runs", [([137, 1, 0], 3), ([2], 1), ([130], 1), ([143], 1)])
def test_the_restart_loop_continues_after_a_crash_and_ends_after_an_error_or_a_signal(
    tmp_path, codes, runs
):
    for readme in ("docs/reliability.md",):
        loop, batch = re.findall(
            r"^```sh\n(.*?)^```",
            (REPO_ROOT / readme).read_text(encoding="utf-8"),
            re.MULTILINE | re.DOTALL,
        )
        subprocess.run(["bash", "-n"], input=batch, text=True, check=True)
        calls = tmp_path / Path(readme).name
        stub = f'sleep() {{ :; }}; codes=({" ".join(map(str, codes))}); n=0; python() {{ echo "$*" >> "{calls}"; return "${{codes[n++]}}"; }}\n'
        subprocess.run(["bash", "-c", stub + loop], check=True, timeout=20)
        called = calls.read_text(encoding="utf-8").splitlines()
        assert len(called) == runs and all(
            line.startswith("train.py ") and line.endswith(" --resume") for line in called
        )


def test_the_readmes_python_block_runs(pretrained, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for readme in READMES:
        (block,) = re.findall(
            r"^```python\n(from transformers.*?)^```",
            (REPO_ROOT / readme).read_text(encoding="utf-8"),
            re.MULTILINE | re.DOTALL,
        )
        assert (
            "AutoModelForCausalLM.from_pretrained" in block
            and "AutoTokenizer.from_pretrained" in block
        )
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(pretrained),
        AutoTokenizer.from_pretrained(pretrained),
    )
    ids = tokenizer("清晨，沈砚", return_tensors="pt").input_ids
    assert len(tokenizer.decode(model.generate(ids, max_new_tokens=5, do_sample=False)[0])) > 5


def test_the_api_example_runs(tuned, pretrained):
    """docs/web.md asks two questions, then prints a growing continuation state by state.

    How many states are seen depends on the machine's speed, so they are not counted.
    """
    text = (REPO_ROOT / "docs" / "web.md").read_text(encoding="utf-8")
    (block,) = re.findall(
        r"^```python\n(from gradio_client.*?)^```", text, re.MULTILINE | re.DOTALL
    )
    printed = []
    with page_open([str(tuned), str(pretrained)]) as address:
        exec(block.replace("http://127.0.0.1:7860", address), {"print": printed.append})
    answer, record, *states = printed
    assert answer and record["answered_by"] and states and states[-1]
    assert all(after.startswith(before) for before, after in pairwise(states))


def test_links_have_targets():
    log = [f"docs/log/{path.name}" for path in (REPO_ROOT / "docs" / "log").glob("*.md")]
    for name in (*DOCUMENTS, "CONTRIBUTING.md", *log):
        document = REPO_ROOT / name
        for target in re.findall(
            r"\]\((?!https?://)([^)#]+)[^)]*\)", document.read_text(encoding="utf-8")
        ):
            assert (document.parent / target).exists(), (name, target)


def test_settings_named_in_the_readmes_and_formats_exist():
    from dataclasses import fields

    from shuoshu.bench.settings import BenchSettings
    from shuoshu.core.command_settings import (
        AppSettings,
        EvalSettings,
        MergeSettings,
        PrepareSettings,
        PrepareSftSettings,
        SampleSettings,
    )
    from shuoshu.core.settings import TrainSettings

    commands_settings = (
        AppSettings,
        BenchSettings,
        EvalSettings,
        MergeSettings,
        PrepareSettings,
        PrepareSftSettings,
        SampleSettings,
        TrainSettings,
    )
    known = {f.metadata.get("alias", f.name) for cls in commands_settings for f in fields(cls)} | {
        "help",
        "debug",
    }
    for name in (*DOCUMENTS, "CONTRIBUTING.md"):
        for flag in re.findall(
            r"`[^`\n]*?--([a-z_-]+)", (REPO_ROOT / name).read_text(encoding="utf-8")
        ):
            assert flag.replace("-", "_") in known | {
                "global",
                "index_url",
                "standalone",
                "nproc_per_node",
                "page",
                "local_dir",  # of Hugging Face's hf
                "enable_lora",  # of vLLM
                "lora_modules",
            }, (name, flag)


def test_formats_names_every_field_of_meta_and_log(dataset, pretrained):
    text = (REPO_ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    meta = json.loads((dataset / "meta.json").read_text(encoding="utf-8"))
    records = [
        json.loads(line)
        for line in (pretrained / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    names = {*meta, *meta["splits"]["train"], *meta["books"][0], *meta["chapters"][0]}
    names |= {key for record in records for key in record if record["kind"] != "start"} | {
        record["kind"] for record in records
    }
    assert not {
        name
        for name in names
        if f"`{name}`" not in text
        and f".{name}`" not in text
        and f"{name}." not in text
        and f"`{name}[]`" not in text
    }


def test_the_readme_is_short():
    assert len((REPO_ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1300


def test_every_entry_of_the_lab_book_is_in_its_index():
    folder = REPO_ROOT / "docs" / "log"
    index = (folder / "README.md").read_text(encoding="utf-8")
    assert all(f"]({path.name})" in index for path in folder.glob("2*.md"))
