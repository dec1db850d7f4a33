"""The command line: dataclass defaults, then config files, then --key=value.

Names and types are checked, and one error lists every mistake. Nothing here imports torch, so
`--help` of any command is instant.
"""

from __future__ import annotations

import difflib
import functools
import os
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from shuoshu.core.errors import REPO_ROOT, UserError
from shuoshu.core.files import error_reason, read_text
from shuoshu.core.schema import Schema
from shuoshu.core.terminal import display_width, pad, wrap

MAX_SHOWN = 80  # characters of a wrong value that a message repeats
HELP_WIDTH, FLAG_WIDTH = 100, 34  # columns


def parse(
    cls: type,
    argv: Sequence[str],
    about: str,
    base: dict | None = None,
    default_config: str | None = None,
) -> typing.Any:
    """The settings that `argv` describes.

    Its flags override the config files, or instead of these `base`, a saved run's settings.
    `default_config` is read if argv names no config file. UserError lists every mistake; --help
    prints `about` and the settings, and exits.
    """
    schema, problems = Schema(cls), []
    values = schema.saved_values(base or {}, problems)
    given = set(values)
    flags, arguments, wants_help = schema.split(argv, problems)
    arguments = without_bare_settings(schema, arguments, problems)
    if schema.positional == "configs" and base is None:
        named, arguments = arguments, arguments or ([default_config] if default_config else [])
        for path in arguments:
            layer = read_config(schema, Path(path), problems)
            schema.override(values, layer)
            given.update(layer if named else ())
    layer = schema.flag_values(flags, problems)
    schema.override(values, layer)
    given.update(layer)
    if schema.positional:
        values[schema.positional] = tuple(arguments)
    valid = {}
    for name, value in values.items():
        wrong = schema.out_of_bounds(name, value)
        if wrong and name != "configs":
            problems.append(f"{schema.flag(name)}={str(value)[:MAX_SHOWN]}: {wrong}")
        if not wrong:
            valid[name] = value
    if wants_help:
        print(help_text(schema, values, about))
        raise SystemExit(0)
    settings = cls(**valid)
    for part in cls.__mro__:
        if "problems" in vars(part):
            problems += part.problems(settings)
    if problems:
        raise UserError("\n".join(problems) + "\n(--help lists every setting)")
    settings.given = frozenset(given)
    return settings


def without_bare_settings(
    schema: Schema, arguments: Sequence[str], problems: list[str]
) -> list[str]:
    """The arguments that are files; the problems get each setting without its dashes."""
    files = []
    for argument in arguments:
        key = argument.partition("=")[0].replace("-", "_")
        if "=" in argument and key in schema.names and not os.path.lexists(argument):
            problems.append(f"{argument}: a setting needs two dashes: --{argument}")
        elif schema.positional is None:
            problems.append(
                f"unexpected argument {argument!r}: settings are written as --key=value"
            )
        else:
            files.append(argument)
    return files


# ---------------------------------------------------------------- config files


def read_config(schema: Schema, path: Path, problems: list[str]) -> dict[str, object]:
    """The assignments of a config file, checked by name and type."""
    values = {}
    for key, value in _run_config(path, problems):
        if key.startswith("_") or isinstance(value, types.ModuleType) or callable(value):
            continue
        name = schema.names.get(key)
        if name is None:
            problems.append(schema.unknown(f"{path}: {key}", key))
            continue
        try:
            values[name] = schema.config_value(name, value)
        except ValueError as error:
            problems.append(f"{path}: {key}{error}")
    return values


def _run_config(path: Path, problems: list[str]) -> Iterator[tuple[str, object]]:
    """Runs a config file as Python; yields its variables, none if it can't be read or raises."""
    rule = "a config file holds plain Python assignments, key = value"
    variables: dict[str, object] = {}
    try:
        if not path.is_file() and (REPO_ROOT / path).is_file():
            path = REPO_ROOT / path
        try:
            source = read_text(path)
        except ValueError as error:
            problems.append(f"{path} is not a config file ({error_reason(error)}): {rule}")
            return
        exec(compile(source, str(path), "exec"), variables)
    except OSError as error:
        ours = sorted((REPO_ROOT / "config").glob("*.py"))
        near = difflib.get_close_matches(path.stem, [p.stem for p in ours], 1, 0.5)
        hint = f" (config/ has {', '.join(p.name for p in ours)})"
        if near:
            hint = f" - did you mean config/{near[0]}.py?"
        problems.append(f"can't read the config file {path}: {error_reason(error)}{hint}")
        return
    except SyntaxError as error:
        problems.append(f"{path}, line {error.lineno}: {error.msg}: {rule}")
        return
    except (Exception, SystemExit) as error:
        problems.append(f"{path}: {traceback.format_exception_only(error)[-1].strip()}")
        return
    yield from variables.items()


# ---------------------------------------------------------------- help


def help_text(schema: Schema, values: dict, about: str) -> str:
    """`about`, then every setting with its value and its help, grouped by dataclass."""
    lines = [about.strip(), "", "Settings and their current values. none: not set."]
    owners = {}  # of each setting, the class that defines it last
    for part in reversed(schema.cls.__mro__):
        owners |= dict.fromkeys(vars(part).get("__annotations__", {}), part)
    for part in reversed(schema.cls.__mro__):
        names = [name for name in schema.names.values() if owners[name] is part]
        if names:
            lines += ["", (part.__doc__ or part.__name__).strip()]
        for name in names:
            field = schema.fields[name]
            flag = f"--{schema.flag(name)}={_spell(values.get(name, field.default))}"
            choices = field.metadata.get("choices")
            options = f" [{'|'.join(choices)}]" if choices else ""
            lines += _setting_lines(flag, field.metadata["help"] + options)
    lines += ["", *_setting_lines("--debug", "show the traceback of an error")]
    return "\n".join(lines)


def _setting_lines(flag: str, help: str) -> list[str]:
    """A flag and, to its right, its help in lines of up to HELP_WIDTH columns."""
    indent = FLAG_WIDTH + 3
    lines = [" " * indent + line for line in wrap(help, HELP_WIDTH - indent)]
    if display_width(flag) > FLAG_WIDTH:
        return [f"  {flag}", *lines]
    return [f"  {pad(flag, FLAG_WIDTH)} {lines[0].lstrip()}", *lines[1:]]


def _spell(value: object) -> str:
    """A value as the command line writes it."""
    if value == ():
        return "..."
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


# ---------------------------------------------------------------- commands


def command(main: Callable[[Sequence[str]], None]) -> Callable[..., int]:
    """Decorator that turns `main(argv)` into a command, which returns the exit code.

    UserError and OSError become one message and exit code 2, Ctrl-C becomes 130, and a closed
    output pipe 141. Other exceptions are bugs and pass through.
    """

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        argv = list(sys.argv[1:] if argv is None else argv)
        # OpenMP threads spin while they wait for each other. If another program holds a core, the
        # spinning makes a training step up to 20 times slower. A shorter spin costs 3% on an idle
        # machine. torch reads this variable when it is imported.
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a Windows console may use any encoding
                stream.reconfigure(encoding="utf-8", errors="replace")
        try:
            return main(argv) or 0
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:  # the reader of our output, for example `head`, closed the pipe
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except (UserError, OSError) as error:  # OSError: an impossible path, a deleted folder
            if "--debug" in argv:
                traceback.print_exc()
            message = error
            if isinstance(error, OSError) and error.filename:
                message = f"{error.filename}: {error.strerror}"
            print(f"error: {message}", file=sys.stderr)
            return 2

    return run
