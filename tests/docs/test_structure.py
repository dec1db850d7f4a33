"""The structure of the code: imports between packages, imports of heavy libraries, sizes of files and functions."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from shuoshu.core.errors import REPO_ROOT

COMMANDS = {"prepare", "prepare_sft", "train", "sample", "eval_metrics", "app", "bench", "merge"}
COMMANDS |= {"experiment"}
MAY_IMPORT = {  # each package, and the packages that it may import besides itself
    "core": set(),
    "text": {"core"},
    "sft": {"core", "text"},
    "models": {"core", "text"},
    "generation": {"core", "text", "sft", "models"},
    "answering": {"core", "text", "sft", "models", "generation"},
    "evaluation": {"core", "text", "sft", "models", "generation", "answering"},
    "training": {"core", "text", "sft", "models", "generation", "answering", "evaluation"},
    "web": {"core", "text", "sft", "models", "generation", "answering", "evaluation"},
}
MAY_IMPORT["experiments"] = {"core", "text", "sft", "evaluation"}
MAY_IMPORT["bench"] = {*MAY_IMPORT, "bench"}
PACKAGE = sorted(REPO_ROOT.glob("shuoshu/*/*.py"))
PRODUCT = sorted([*REPO_ROOT.glob("*.py"), *REPO_ROOT.glob("config/*.py"), *PACKAGE])
LIGHT = [p for p in PACKAGE if p.parent.name in ("core", "text", "sft")]
LIGHT = [p for p in LIGHT if p.stem not in ("device", "distributed", "__init__")]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(REPO_ROOT).with_suffix("").parts)


def imported(path: Path) -> set[str]:
    """The modules that a file imports anywhere, `from package import module` included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_packages_below_it(package):
    for path in REPO_ROOT.glob(f"shuoshu/{package}/*.py"):
        packages = {name.split(".")[1] for name in imported(path) if name.startswith("shuoshu.")}
        assert packages <= MAY_IMPORT[package] | {package}, path


def test_every_package_has_a_rule():
    assert {path.parent.name for path in PACKAGE} == set(MAY_IMPORT)


def test_no_module_imports_a_command():
    for path in [*PACKAGE, REPO_ROOT / "model.py"]:
        assert not {name.split(".")[0] for name in imported(path)} & COMMANDS, path


def test_no_imports_are_circular():
    modules = {module_name(path): path for path in [*PACKAGE, REPO_ROOT / "model.py"]}
    graph = {name: imported(path) & modules.keys() for name, path in modules.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_the_model_needs_torch_only():
    outside = {name.split(".")[0] for name in imported(REPO_ROOT / "model.py")}
    assert outside - set(sys.stdlib_module_names) == {"torch"}


def test_core_text_and_sft_load_without_torch():
    names = [module_name(path) for path in LIGHT]
    check = (
        "import importlib, sys\n"
        f"for name in {names}:\n"
        "    importlib.import_module(name)\n"
        "    if 'torch' in sys.modules: sys.exit(name + ' imports torch')"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=REPO_ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_help_imports_neither_numpy_nor_torch():
    check = (
        "import importlib, sys\n"
        f"for name in {sorted(COMMANDS)}:\n"
        "    try: importlib.import_module(name).main(['--help'])\n"
        "    except SystemExit: pass\n"
        "    else: sys.exit(name + ' has no help')\n"
        "    heavy = {'numpy', 'torch'} & sys.modules.keys()\n"
        "    if heavy: sys.exit(f'{name} --help imports {heavy}')"
    )
    done = subprocess.run(
        [sys.executable, "-c", check],
        cwd=REPO_ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_every_file_begins_with_a_docstring_or_comment():
    for path in PRODUCT:
        source = path.read_text(encoding="utf-8")
        assert ast.get_docstring(ast.parse(source)) or source.startswith("#"), path


def test_the_scripts_parse_and_ci_only_runs_test_sh():
    for script in ("quickstart.sh", "test.sh", "environment.sh", ".ci/run"):
        subprocess.run(["bash", "-n", REPO_ROOT / script], check=True)
    lines = (REPO_ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if not line.startswith("#")]
    assert len(lines) == 1 and "test.sh" in lines[0]


MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 400, 60, 6
API_FUNCTIONS = {"ask", "continue_text"}  # their parameters are those of the page's API


def test_files_and_functions_are_small():
    for path in PRODUCT:
        source = path.read_text(encoding="utf-8")
        assert len(source.splitlines()) <= MAX_FILE_LINES, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                a = node.args
                names = [arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
                count = len(set(names) - {"self", "cls"})
                assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, (path, node.name)
                assert count <= MAX_PARAMETERS or node.name in API_FUNCTIONS, (path, node.name)


def public_names(path: Path) -> set[str]:
    """The names that a module defines at its top level, without those that begin with _."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            targets = (n for target in node.targets for n in ast.walk(target))
            names |= {n.id for n in targets if isinstance(n, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def test_no_two_public_things_have_one_name():
    # cpu_kernels names its functions after the operations that they stand in for; the two workers
    # of the bench do the same jobs; config files hold settings.
    apart = {"cpu_kernels", "our_worker", "nanogpt_worker"}
    homes: dict[str, list[str]] = {}
    for path in PRODUCT:
        if path.stem not in apart and path.parent.name != "config":
            for name in public_names(path) - {"main", "T"}:
                homes.setdefault(name, []).append(path.stem)
    assert not {name: paths for name, paths in homes.items() if len(paths) > 1}
