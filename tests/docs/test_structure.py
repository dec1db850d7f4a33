"""The house's own rules: imports run one way, rooms stay light and small."""

import ast
import subprocess
import sys

import pytest

from shuoshu.core.errors import REPO_ROOT

COMMANDS = {"prepare", "prepare_sft", "train", "sample", "eval_metrics", "app", "bench"}
LIGHT = (
    "settings",
    "commandline",
    "files",
    "text",
    "tokenizer",
    "batches",
    "report",
    "questions",
    "pairs",
    "metrics",
    "rows",
)
LIGHT += (
    "corpus",
    "lessons",
    "words",
    "wishes",
    "markup",
    "document",
    "yardstick",
    "peer",
    "contests",
    "race",
    "scale",
    "chores",
)
PRODUCT = sorted(
    [*REPO_ROOT.glob("*.py"), *REPO_ROOT.glob("shuoshu/*.py"), *REPO_ROOT.glob("config/*.py")]
)


def imported(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    return names | {
        node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
    }


def test_no_part_imports_a_command():
    for path in [*REPO_ROOT.glob("shuoshu/*.py"), REPO_ROOT / "model.py"]:
        assert not imported(path) & COMMANDS, path


def test_the_model_needs_torch_and_safetensors_only():
    outside = [
        imported(path) - set(sys.stdlib_module_names)
        for path in (REPO_ROOT / "model.py", REPO_ROOT / "shuoshu" / "lean.py")
    ]
    assert outside == [{"torch", "safetensors", "shuoshu"}, {"torch"}]


@pytest.mark.parametrize("room", LIGHT)
def test_a_light_room_loads_without_torch(room):
    check = f"import sys; import shuoshu.{room}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=REPO_ROOT).returncode == 0


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_waits_for_no_library(name):
    check = f"import sys, {name}\ntry: {name}.main(['--help'])\nexcept SystemExit: sys.exit(bool({{'numpy', 'torch'}} & sys.modules.keys()))\nsys.exit(3)"
    assert (
        subprocess.run(
            [sys.executable, "-c", check], cwd=REPO_ROOT, stdout=subprocess.DEVNULL
        ).returncode
        == 0
    )


def test_every_file_says_what_it_is_for():
    for path in PRODUCT:
        source = path.read_text(encoding="utf-8")
        assert ast.get_docstring(ast.parse(source)) or source.startswith("#"), path


def test_no_file_outgrows_a_sitting():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in PRODUCT}
    assert max(lengths.values()) <= 350, max(lengths, key=lengths.get)
    assert sum(lengths.values()) < 10250


def test_the_scripts_parse_and_ci_runs_the_tests_alone():
    for script in ("quickstart.sh", "test.sh", "environment.sh", ".ci/run"):
        subprocess.run(["bash", "-n", REPO_ROOT / script], check=True)
    lines = [
        line
        for line in (REPO_ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    ]
    assert len(lines) == 1 and "test.sh" in lines[0]
