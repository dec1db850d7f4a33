"""Settings: layers, spellings on the command line, mistakes, and the length of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shuoshu.core.cli import parse
from shuoshu.core.command_settings import (
    PrepareSettings,
    SampleSettings,
)
from shuoshu.core.errors import REPO_ROOT, UserError
from shuoshu.core.settings import TrainSettings
from tests.core.settings_helpers import config, train

pytestmark = pytest.mark.usefixtures("empty_folder")


def mistakes(*argv: str, cls: type = TrainSettings) -> list[str]:
    """The lines of the error, without the last one, which points to --help."""
    with pytest.raises(UserError) as error:
        parse(cls, argv, "about")
    *lines, hint = str(error.value).split("\n")
    assert "--help" in hint
    return lines


# ---------------------------------------------------------------- layers


def test_without_arguments_the_defaults_hold() -> None:
    assert train() == TrainSettings()


def test_later_configs_override_earlier_ones_and_flags_override_all() -> None:
    first = config("first.py", "n_layer = 5\nn_head = 6\nn_embd = 96")
    second = config("second.py", "n_head = 3\nn_embd = 48")
    settings = train(first, "--n_embd=24", second)
    assert (settings.n_layer, settings.n_head, settings.n_embd) == (5, 3, 24)
    assert settings.batch_size == TrainSettings.batch_size
    assert settings.configs == (first, second)


def test_a_saved_base_replaces_the_configs() -> None:
    base = {
        "n_layer": 7,
        "n_head": 6,
        "n_embd": 96,
        "unknown_to_this_version": 1,
        "configs": ["old.py"],
    }
    settings = train(config("c.py", "n_head = 2"), "--n_embd=48", base=base)
    assert (settings.n_layer, settings.n_head, settings.n_embd) == (7, 6, 48)
    assert settings.configs == ("c.py",)


def test_the_default_config_is_read_only_if_none_is_named() -> None:
    config("default.py", "n_layer = 9")
    assert parse(TrainSettings, [], "about", default_config="default.py").n_layer == 9
    assert (
        parse(
            TrainSettings, [config("other.py", "n_head = 2")], "about", default_config="default.py"
        ).n_layer
        == TrainSettings.n_layer
    )


def test_a_config_may_compute_and_import() -> None:
    settings = train(
        config(
            "c.py",
            "import math\n_half = 3\ndef double(n):\n    return 2 * n\nn_layer = double(_half) + math.floor(1.5)\n",
        )
    )
    assert settings.n_layer == 7


def test_bundled_configs_are_found_from_any_folder() -> None:
    assert train("config/pretrain.py").configs == ("config/pretrain.py",)


@pytest.mark.parametrize(
    "path", sorted((REPO_ROOT / "config").glob("*.py")), ids=lambda path: path.name
)
def test_every_bundled_config_is_valid(path: Path) -> None:
    needed = ["--init_from=out-pretrain"] if path.name == "lora.py" else []
    train(str(path), *needed)


# ---------------------------------------------------------------- spellings


@pytest.mark.parametrize(
    "argv",
    [
        ["--n_layer=6"],
        ["--n_layer", "6"],
        ["--n-layer", "6"],
        ["--n-layer=6"],
        ["--n_layer=2", "--n_layer=6"],
        ["--n_layer=6e0"],
    ],
)
def test_a_value_has_several_spellings(argv: list[str]) -> None:
    assert train(*argv).n_layer == 6


@pytest.mark.parametrize(
    ("argv", "resume"),
    [
        (["--resume"], True),
        (["--resume=true"], True),
        (["--resume", "yes"], True),
        (["--resume=false"], False),
        (["--resume", "OFF"], False),
        (["--resume", "--resume=0"], False),
        (["--resume", "--n_layer=2"], True),
    ],
)
def test_a_switch_has_several_spellings(argv: list[str], resume: bool) -> None:
    assert train(*argv).resume is resume


def test_a_switch_does_not_consume_the_config_after_it() -> None:
    settings = train("--resume", config("c.py", "n_layer = 9"))
    assert settings.resume and settings.n_layer == 9


def test_a_negative_number_is_a_value_not_a_flag() -> None:
    assert mistakes("--seed", "-1") == mistakes("--seed=-1") == ["seed=-1: must be at least 0"]
    assert parse(SampleSettings, ["--start", "-5 degrees"], "about").start == ("-5 degrees",)


def test_a_value_may_contain_equals_signs_and_dashes_or_be_empty() -> None:
    assert parse(
        SampleSettings, ["--start=a=b", "--start==", "--start=--c", "--start="], "about"
    ).start == ("a=b", "=", "--c", "")


def test_an_aliased_setting_has_only_its_alias_as_a_flag() -> None:
    settings = parse(SampleSettings, ["--in=a.csv", "--out", "b.csv"], "about")
    assert (settings.infile, settings.outfile) == ("a.csv", "b.csv")
    assert len(mistakes("--infile=a.csv", cls=SampleSettings)) == 1


def test_numbers_are_read_with_their_type() -> None:
    settings = train("--max_iters=1e3", "--dropout=0", "--learning_rate=1e-3")
    assert (settings.max_iters, settings.dropout, settings.learning_rate) == (1000, 0.0, 0.001)
    assert type(settings.max_iters) is int and type(settings.dropout) is float


def test_a_config_may_give_an_int_for_a_float() -> None:
    settings = train(config("c.py", "dropout = 0\ngrad_clip = 2"))
    assert (
        settings.grad_clip == 2.0
        and type(settings.grad_clip) is float
        and type(settings.dropout) is float
    )


def test_none_is_a_value_of_an_optional_setting_only() -> None:
    saved = config("c.py", "max_minutes = 3\nhead_dim = 32")
    settings = train(saved, "--max_minutes=none", "--head_dim", "None")
    assert settings.max_minutes is None and settings.head_dim is None
    assert train(saved, config("d.py", "head_dim = None")).head_dim is None
    assert parse(SampleSettings, ["--top_k=none"], "about").top_k is None
    assert mistakes("--n_layer=none") == ["--n_layer: 'none' is not a number"]


def test_a_config_may_assign_a_bool_where_true_false_and_auto_are_choices() -> None:
    assert train(config("c.py", "compile = False")).compile == "false"


def test_arguments_without_dashes_are_inputs_of_prepare() -> None:
    settings = parse(PrepareSettings, ["a.txt", "--vocab_size", "300", "b"], "about")
    assert settings.inputs == ("a.txt", "b") and settings.vocab_size == 300


# ---------------------------------------------------------------- mistakes


def test_one_error_lists_every_mistake() -> None:
    wrong = config("wrong.py", "n_layers = 3\nn_head = 'two'\nbatch_size = 0\n")
    broken = config("broken.py", "n_layer = 3\nn_embd = = 4\n")
    messages = mistakes(
        wrong,
        broken,
        "config/no_such_one.py",
        "--n_embdd=8",
        "--n_layer=x",
        "--dropout=2",
        "--optimizer=adam",
        "--block_size=9.5",
    )
    for piece in (
        "wrong.py: n_layers: there is no such setting - did you mean n_layer?",
        "wrong.py: n_head = 'two' should be a whole number, not str",
        "batch_size=0: must be at least 1",
        "broken.py, line 2: ",
        "can't read the config file config/no_such_one.py",
        "--n_embdd: there is no such setting - did you mean n_embd?",
        "--n_layer: 'x' is not a number",
        "dropout=2.0: must be at most 0.95",
        "optimizer=adam: must be one of muon, adamw - did you mean adamw?",
        "--block_size: '9.5' is not a whole number",
    ):
        assert sum(piece in line for line in messages) == 1, piece
    assert len(messages) == 10


def test_one_error_lists_all_conflicting_settings() -> None:
    messages = "\n".join(
        mistakes(
            "--n_head=6",
            "--n_kv_head=4",
            "--n_embd=100",
            "--resume",
            "--overwrite",
            "--max_iters=5",
            "--max_minutes=1",
        )
    )
    for piece in (
        "multiple of n_kv_head=4",
        "multiple of n_head=6",
        "resume and overwrite exclude each other",
        "max_iters and max_minutes are both set",
    ):
        assert piece in messages


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--n_layer"], "--n_layer needs a value"),
        (["--n_layer", "--resume"], "--n_layer needs a value"),
        (["--resume=maybe"], "'maybe' is neither true nor false"),
        (["--dropout=nan"], "'nan' is not a finite number"),
        (["--n_layer=inf"], "'inf' is not a finite number"),
        (["--max_iters=1e400"], "'1e400' is not a finite number"),
        (["--n_layer="], "'' is not a number"),
        (["--"], "there is no such setting"),
        (["--configs=a.py"], "there is no such setting"),
    ],
)
def test_a_wrong_flag_is_reported(argv: list[str], message: str) -> None:
    [line] = mistakes(*argv)
    assert message in line


@pytest.mark.parametrize("argv", [["--foo", "bar"], ["--foo", "-1"]])
def test_the_value_of_an_unknown_flag_is_no_second_mistake(argv: list[str]) -> None:
    assert len(mistakes(*argv)) == 1


def test_an_argument_is_refused_by_a_command_without_inputs() -> None:
    [line] = mistakes("prompt.txt", cls=SampleSettings)
    assert "'prompt.txt'" in line and "--key=value" in line


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("n_layer = True", "should be a whole number, not bool"),
        ("n_layer = 4.0", "should be a whole number, not float"),
        ("n_layer = None", "should be a whole number, not NoneType"),
        ("resume = 1", "should be True or False, not int"),
        ("dropout = '0.1'", "should be a number, not str"),
        ("dropout = float('nan')", "is not a finite number"),
        ("head_lr = float('inf')", "is not a finite number"),
        ("head_lr = 10**400", "head_lr"),
        ("configs = ('other.py',)", "there is no such setting"),
        ("1 / 0", "ZeroDivisionError"),
        ("n_layer = 1\n  n_head = 2", "line 2: "),
        ("n_layer = 1\nn_head = '\0'", "wrong.py"),
    ],
)
def test_a_wrong_config_is_reported(source: str, message: str) -> None:
    [line] = mistakes(config("wrong.py", source))
    assert line.startswith("wrong.py") and message in line


def test_a_config_that_is_not_utf_8_is_refused() -> None:
    Path("wrong.py").write_bytes("n_layer = 1  # 层".encode("gb18030"))
    assert "wrong.py" in mistakes("wrong.py")[0]


@pytest.mark.parametrize(
    "path",
    ["missing.py", ".", "", "nul\0.py", "\udcff.py", "长" * 300],
    ids=["missing", "folder", "empty", "nul", "no utf-8", "too long"],
)
def test_a_config_that_cannot_be_read_is_reported(path: str) -> None:
    assert len(mistakes(path)) == 1


def test_a_misspelt_bundled_config_is_guessed() -> None:
    assert "did you mean config/pretrain.py?" in mistakes("config/pretrian.py")[0]


@pytest.mark.parametrize("saved", [{"n_layer": "four"}, {"resume": 5}])
def test_a_damaged_base_raises_a_user_error(saved: dict) -> None:
    with pytest.raises(UserError):
        train(base=json.loads(json.dumps(saved)))


# ---------------------------------------------------------------- length of a run


def lengths(settings: TrainSettings) -> tuple[int | None, float | None, float | None]:
    return settings.max_iters, settings.max_epochs, settings.max_minutes


def test_a_later_layer_replaces_the_length() -> None:
    minutes, epochs = config("minutes.py", "max_minutes = 3"), config("epochs.py", "max_epochs = 2")
    assert lengths(train(minutes)) == (None, None, 3.0)
    assert lengths(train(minutes, epochs)) == (None, 2.0, None)
    assert lengths(train(epochs, minutes)) == (None, None, 3.0)
    assert lengths(train(minutes, epochs, "--max_iters=5")) == (5, None, None)
    assert lengths(
        train("--max_minutes=3", base={"max_iters": 9, "max_epochs": None, "max_minutes": None})
    ) == (None, None, 3.0)


def test_min_iters_needs_max_epochs() -> None:
    few = config("few.py", "max_epochs = 2\nmin_iters = 400")
    assert [
        train(few, more).min_iters
        for more in ("--max_epochs=3", "--max_iters=5", "--max_minutes=1")
    ] == [400, None, None]
    assert (
        train(
            "--max_epochs=3", "--min_iters=7", base={"max_epochs": 2.0, "min_iters": 400}
        ).min_iters
        == 7
    )
    assert (
        "min_iters=7 needs max_epochs, but max_minutes is set"
        in mistakes("--max_minutes=5", "--min_iters=7")[0]
    )
    assert len(mistakes(few, "--max_epochs=0")) == 1
    assert train(str(REPO_ROOT / "config" / "sft.py")).min_iters


def test_unsetting_one_length_keeps_another() -> None:
    assert lengths(train(config("minutes.py", "max_minutes = 3"), "--max_iters=none")) == (
        None,
        None,
        3.0,
    )


def test_two_lengths_in_one_layer_are_refused() -> None:
    message = "max_iters and max_minutes are both set"
    assert message in mistakes("--max_iters=5", "--max_minutes=1")[0]
    assert message in mistakes(config("both.py", "max_iters = 5\nmax_minutes = 1"))[0]
    assert (
        message
        in mistakes(config("epochs.py", "max_epochs = 2"), "--max_iters=5", "--max_minutes=1")[0]
    )
