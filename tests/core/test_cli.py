"""The command line: help, exit codes, and arbitrary input."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shuoshu.bench.settings import BenchSettings
from shuoshu.core.cli import command, parse
from shuoshu.core.command_settings import (
    AppSettings,
    EvalSettings,
    PrepareSettings,
    PrepareSftSettings,
    SampleSettings,
)
from shuoshu.core.errors import REPO_ROOT, UserError
from shuoshu.core.settings import TrainSettings
from shuoshu.core.terminal import display_width
from tests.core.settings_helpers import config, train

pytestmark = pytest.mark.usefixtures("empty_folder")

COMMANDS = {
    "prepare": PrepareSettings,
    "prepare_sft": PrepareSftSettings,
    "train": TrainSettings,
    "sample": SampleSettings,
    "eval_metrics": EvalSettings,
    "app": AppSettings,
    "bench": BenchSettings,
}


# ---------------------------------------------------------------- help


@pytest.mark.parametrize("name", COMMANDS)
def test_help_describes_every_setting_in_100_columns(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        importlib.import_module(name).main(["--help"])
    assert end.value.code == 0
    output = capsys.readouterr().out
    assert max(map(display_width, output.splitlines())) <= 100
    entries = {}
    for entry in output.split("\n  --")[1:]:
        flag, text = entry.split(maxsplit=1)
        entries[flag.split("=")[0]] = " ".join(text.split())
    for field in dataclasses.fields(COMMANDS[name]):
        if not field.metadata.get("positional"):
            text = entries[field.metadata.get("alias", field.name)]
            assert text.startswith(field.metadata["help"])


def test_help_shows_the_current_values(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train(config("c.py", "n_layer = 9"), "--n_embd=48", "-h")
    output = capsys.readouterr().out
    assert "--n_layer=9 " in output and "--n_embd=48 " in output and "--max_iters=none " in output


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_mistakes_do_not_wait_for_torch(name: str) -> None:
    script = (
        f"import sys, {name}\n"
        f"try: {name}.main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        f"assert {name}.main(['--n_lyer=3']) == 2\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPO_ROOT,
        capture_output=True,
        timeout=60,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- settings without dashes


@pytest.mark.parametrize(
    "name, setting", [("train", "dataset=mine"), ("prepare", "out=" + "x" * 300)]
)
def test_a_setting_without_dashes_is_answered_with_them(name: str, setting: str) -> None:
    with pytest.raises(UserError, match=f"^{setting}: a setting needs two dashes: --{setting}"):
        parse(COMMANDS[name], [setting], "about")


def test_a_file_whose_name_looks_like_a_setting_is_a_file() -> None:
    assert train(config("seed=5", "n_layer = 9")).n_layer == 9


def test_only_settings_that_the_user_chose_count_as_given() -> None:
    config("mine.py", "n_layer = 9")
    default = {"default_config": "config/pretrain.py"}
    for argv, names in (
        (["--n_embd=48"], {"n_embd"}),
        (["mine.py", "--n_embd=48"], {"n_layer", "n_embd"}),
    ):
        assert parse(TrainSettings, argv, "about", **default).given == names


# ---------------------------------------------------------------- exit codes


@command
def mistaken(argv: list[str]) -> None:
    raise UserError("第一处\nand a second one")


def test_a_users_mistake_is_one_message_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert mistaken([]) == 2
    output = capsys.readouterr()
    assert output.err == "error: 第一处\nand a second one\n" and output.out == ""


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert mistaken(["--debug"]) == 2
    output = capsys.readouterr().err
    assert "Traceback" in output and output.endswith("error: 第一处\nand a second one\n")


def test_debug_is_not_a_setting() -> None:
    assert train("--debug", "--n_layer=2", "--debug").n_layer == 2


def test_ctrl_c_exits_with_130_and_success_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    @command
    def interrupted(argv: list[str]) -> None:
        raise KeyboardInterrupt

    assert interrupted([]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert command(lambda argv: None)([]) == 0
    assert command(lambda argv: 3)([]) == 3


def test_a_bug_is_not_hidden() -> None:
    @command
    def broken(argv: list[str]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken([])


# ---------------------------------------------------------------- arbitrary input


VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["true", "none", "1e3", "-1", "１２", "1_0", "0x1", "+1", "1e999"])
)


NAMES = st.sampled_from(
    [f.metadata.get("alias", f.name) for cls in COMMANDS.values() for f in dataclasses.fields(cls)]
    + ["help", "debug"]
)


FLAGS = (
    st.builds("--{}={}".format, NAMES | st.text(max_size=5), VALUES)
    | st.builds("--{}".format, NAMES)
    | VALUES.map(str)
)


@given(argv=st.lists(FLAGS, max_size=6), cls=st.sampled_from(list(COMMANDS.values())))
@example(argv=["--seed=" + "9" * 5000], cls=TrainSettings)
@example(argv=["--n_layer", "-"], cls=TrainSettings)
def test_any_arguments_give_settings_or_a_users_error(argv: list[str], cls: type) -> None:
    try:
        settings = parse(cls, argv, "about")
    except UserError:
        return
    except SystemExit as end:
        assert end.code == 0 and {"--help", "-h"} & set(argv)
        return
    assert isinstance(settings, cls)
    for field in dataclasses.fields(cls):  # what was accepted is within its bounds
        value = getattr(settings, field.name)
        if value is not None:
            assert value >= field.metadata.get("low", value) and value <= field.metadata.get(
                "high", value
            )
            assert value in field.metadata.get("choices", (value,))


@given(
    values=st.dictionaries(
        NAMES.filter(str.isidentifier).filter(lambda name: name != "in"),
        VALUES | st.lists(VALUES, max_size=2),
        max_size=6,
    )
)
def test_any_config_gives_settings_or_a_users_error(
    values: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.py"
    path.write_text(
        "".join(f"{name} = {value!r}\n" for name, value in values.items()),
        encoding="utf-8",
        errors="replace",
    )
    try:
        assert isinstance(train(str(path)), TrainSettings)
    except UserError as error:
        assert str(error)
