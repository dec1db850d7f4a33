"""The command line: dataclass defaults, then config files, then --key=value; checked by name and type, all mistakes told at once.

Nothing here imports torch, so that `--help` of any command is instant.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import os
import re
import reprlib
import sys
import traceback
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path

from shuoshu.core.errors import REPO_ROOT, UserError
from shuoshu.core.files import error_reason, read_text

NO_NAME = re.compile("[\0\ud800-\udfff]")  # Python's spelling of bytes that are no UTF-8, and NUL


def setting(default: object, help: str, **checks: object) -> typing.Any:
    """A dataclass field that explains itself. Checks: low, high, choices; alias, positional, any_text; rivals of which the last one set wins."""
    return dataclasses.field(default=default, metadata={"help": help, **checks})


def parse(
    cls: type,
    argv: Sequence[str],
    about: str,
    base: dict | None = None,
    default_config: str | None = None,
) -> typing.Any:
    """The settings that `argv` asks for, on top of the config files, or of `base`, a saved run's; UserError lists every mistake."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    by_flag = {
        f.metadata.get("alias", name): name
        for name, f in fields.items()
        if not f.metadata.get("positional")
    }
    kinds = typing.get_type_hints(cls)
    positional = next((name for name, f in fields.items() if f.metadata.get("positional")), None)
    problems: list[str] = []
    values = {
        name: value for name, value in (base or {}).items() if name in fields and name != positional
    }

    for name in list(values):
        kind, optional = _inner(kinds[name])
        whole = type(values[name]) is int and kind is float
        if not (whole or type(values[name]) is kind or (values[name] is None and optional)):
            problems.append(
                f"{name} = {values.pop(name)!r} in the saved settings should be {_kind_name(kinds[name])}"
            )

    flags, rest, wants_help = _split(cls, argv, by_flag, kinds, problems)
    if rest and not positional:
        problems.append(
            f"don't know what to do with {rest[0]!r}: settings are given as --key=value"
        )
    if positional == "configs" and base is None:
        rest = rest or ([default_config] if default_config else [])
        for path in rest:
            _lay_over(
                values, _read_config(cls, Path(path), by_flag, kinds, fields, problems), fields
            )
    given = {}
    for name, texts in flags.items():
        try:
            given[name] = _from_text(texts, kinds[name])
            if str(given[name]).lower() in fields[name].metadata.get("choices", ()):
                given[name] = given[name].lower()
        except ValueError as error:
            problems.append(f"--{_flag(fields[name])}: {error}")
    _lay_over(values, given, fields)
    if positional:
        values[positional] = tuple(rest)
    for name, value in values.items():
        if name != "configs" and (wrong := _out_of_bounds(value, fields[name].metadata)):
            problems.append(f"{_flag(fields[name])}={str(value)[:80]}: {wrong}")
    if wants_help:
        print(_help(cls, values, about))
        raise SystemExit(0)
    settings = cls(
        **{
            name: value
            for name, value in values.items()
            if not _out_of_bounds(value, fields[name].metadata)
        }
    )
    problems += [
        text for part in cls.__mro__ if "problems" in vars(part) for text in part.problems(settings)
    ]
    if problems:
        raise UserError("\n".join(problems) + "\n(--help lists every setting)")
    settings.given = frozenset(values)  # what is no default
    return settings


def _lay_over(values: dict, layer: dict, fields: dict) -> None:
    """A later layer's settings over an earlier one's; a length it sets replaces the earlier length, whichever kind that was."""
    for name, value in layer.items():
        for rival in fields[name].metadata.get("rivals", ()) if value is not None else ():
            values.pop(rival, None)
    values.update(layer)


def _split(
    cls: type, argv: Sequence[str], by_flag: dict[str, str], kinds: dict, problems: list[str]
) -> tuple[dict[str, list[str]], list[str], bool]:
    """`--key=value`, `--key value`, `--key` for a switch → {name: [texts]}; what is no flag; whether help is wanted."""
    flags: dict[str, list[str]] = {}
    rest: list[str] = []
    tokens = list(argv)
    wants_help = False
    while tokens:
        token = tokens.pop(0)
        if token in ("--help", "-h"):
            wants_help = True
        elif token == "--debug":
            pass  # `command` looks at it
        elif not token.startswith("--"):
            rest.append(token)
        else:
            key, equals, text = token[2:].partition("=")
            name = by_flag.get(key.replace("-", "_"))
            if name is None:
                problems.append(_unknown(f"--{key}", key.replace("-", "_"), by_flag, cls))
                if not equals and tokens and not tokens[0].startswith("--"):
                    tokens.pop(0)  # its value: no second complaint about it
                continue
            if not equals:
                is_switch = kinds[name] is bool
                if is_switch and not (tokens and tokens[0].lower() in _BOOLS):
                    text = "true"
                elif tokens and not (tokens[0].startswith("--") and len(tokens[0]) > 2):
                    text = tokens.pop(0)
                else:
                    problems.append(f"--{key} needs a value: --{key}=...")
                    continue
            flags.setdefault(name, []).append(text)
    return flags, rest, wants_help


_BOOLS = {
    "true": True,
    "yes": True,
    "1": True,
    "on": True,
    "false": False,
    "no": False,
    "0": False,
    "off": False,
}


def _from_text(texts: list[str], kind: object) -> object:
    """The value that the command line's text means for a setting of this type."""
    kind, optional = _inner(kind)
    if typing.get_origin(kind) is tuple:
        return tuple(texts)
    text = texts[-1]
    if optional and text.lower() in ("none", ""):
        return None
    if kind is bool:
        if text.lower() not in _BOOLS:
            raise ValueError(f"{text!r} is neither true nor false")
        return _BOOLS[text.lower()]
    if kind is int:
        try:
            return int(text)
        except ValueError:
            number = _number(text)
            if number != int(number):
                raise ValueError(f"{reprlib.repr(text)} is not a whole number") from None
            return int(number)
    return _number(text) if kind is float else text


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{reprlib.repr(text)} is not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{reprlib.repr(text)} is not a finite number")
    return number


def _inner(kind: object) -> tuple[object, bool]:
    """int | None → (int, True)."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return next(part for part in typing.get_args(kind) if part is not type(None)), True
    return kind, False


def _read_config(
    cls: type, path: Path, by_flag: dict[str, str], kinds: dict, fields: dict, problems: list[str]
) -> dict[str, object]:
    """The assignments of a config file, checked by name and type."""
    namespace: dict[str, object] = {}
    try:
        if not path.is_file() and (REPO_ROOT / path).is_file():
            path = REPO_ROOT / path
        try:
            source = read_text(path)
        except ValueError as error:
            problems.append(
                f"{path} is no config file ({error_reason(error)}): it holds plain Python assignments, key = value"
            )
            return {}
        exec(compile(source, str(path), "exec"), namespace)
    except OSError as error:
        near = difflib.get_close_matches(
            path.stem, [p.stem for p in (REPO_ROOT / "config").glob("*.py")], 1, 0.5
        )
        hint = (
            f" - did you mean config/{near[0]}.py?"
            if near
            else f" (the house's own: {', '.join(sorted(p.name for p in (REPO_ROOT / 'config').glob('*.py')))})"
        )
        problems.append(f"can't read the config file {path}: {error_reason(error)}{hint}")
        return {}
    except SyntaxError as error:
        problems.append(
            f"{path}, line {error.lineno}: {error.msg}: a config file holds plain Python assignments, key = value"
        )
        return {}
    except (Exception, SystemExit) as error:
        problems.append(f"{path}: {traceback.format_exception_only(error)[-1].strip()}")
        return {}
    values = {}
    for key, value in namespace.items():
        if key.startswith("_") or isinstance(value, types.ModuleType) or callable(value):
            continue
        name = by_flag.get(key)
        if name is None:
            problems.append(_unknown(f"{path}: {key}", key, by_flag, cls))
            continue
        kind, optional = _inner(kinds[name])
        if isinstance(value, int) and value.bit_length() > 2000:  # Python itself would not print it
            problems.append(f"{path}: {key} is a number of {value.bit_length():,} bits")
            continue
        if isinstance(value, int) and not isinstance(value, bool) and kind is float:
            value = float(value) if abs(value) < 1e300 else math.inf
        if isinstance(value, bool) and "true" in fields[name].metadata.get("choices", ()):
            value = str(value).lower()
        if isinstance(value, (list, tuple)) and typing.get_origin(kind) is tuple:
            value = tuple(value)
        elif not (value is None and optional) and type(value) is not kind:
            problems.append(
                f"{path}: {key} = {reprlib.repr(value)} should be {_kind_name(kinds[name])}, not {type(value).__name__}"
            )
            continue
        if isinstance(value, float) and not math.isfinite(value):
            problems.append(f"{path}: {key} = {value} is not a finite number")
            continue
        values[name] = value
    return values


def _out_of_bounds(value: object, checks: typing.Mapping) -> str | None:
    if value is None:
        return None
    if value == "":
        return "must not be empty"
    if not checks.get("any_text") and any(
        isinstance(text, str) and NO_NAME.search(text)
        for text in (value if isinstance(value, tuple) else [value])
    ):
        return "is not UTF-8 (a file with such a name can be renamed, or read by naming its folder)"
    if isinstance(value, float) and not math.isfinite(value):
        return "is not a finite number"
    if "choices" in checks and value not in checks["choices"]:
        near = difflib.get_close_matches(str(value), checks["choices"], 1)
        return f"must be one of {', '.join(checks['choices'])}" + (
            f" - did you mean {near[0]}?" if near else ""
        )
    if "low" in checks and value < checks["low"]:
        return f"must be at least {checks['low']}"
    if "high" in checks and value > checks["high"]:
        return f"must be at most {checks['high']}"
    return None


def _unknown(where: str, key: str, by_flag: dict[str, str], cls: type) -> str:
    if here := getattr(cls, "ELSEWHERE", {}).get(key):
        return f"{where}: there is no such setting here; {here}"
    near = difflib.get_close_matches(key, by_flag, 1, 0.6)
    return f"{where}: there is no such setting" + (f" - did you mean {near[0]}?" if near else "")


def _flag(field: dataclasses.Field) -> str:
    return field.metadata.get("alias", field.name)


def _kind_name(kind: object) -> str:
    inner, optional = _inner(kind)
    names = {
        int: "a whole number",
        float: "a number",
        bool: "True or False",
        str: "a text in quotes",
    }
    return names.get(inner, "a list of texts") + (" or None" if optional else "")


def _help(cls: type, values: dict, about: str) -> str:
    """Every key with its value here and its meaning, grouped by concern."""
    lines = [about.strip()]
    for part in reversed(cls.__mro__):
        own = [
            f
            for f in dataclasses.fields(cls)
            if f.name in vars(part).get("__annotations__", {}) and not f.metadata.get("positional")
        ]
        if own:
            lines += ["", (part.__doc__ or part.__name__).strip()]
        for field in own:
            value = values.get(field.name, field.default)
            shown = (
                "..."
                if value == ()
                else str(value).lower()
                if value is None or isinstance(value, bool)
                else str(value)
            )
            choices = (
                f" [{'|'.join(field.metadata['choices'])}]" if "choices" in field.metadata else ""
            )
            lines.append(f"  {f'--{_flag(field)}={shown}':<34} {field.metadata['help']}{choices}")
    lines += ["", "  --debug                            show the traceback of an error"]
    return "\n".join(lines)


def command(main: Callable[[Sequence[str]], None]) -> Callable[..., int]:
    """Makes `main(argv)` a command: a user's mistake, or what the system refuses, is one message and exit code 2; the second Ctrl-C is 130."""

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        argv = list(sys.argv[1:] if argv is None else argv)
        # OpenMP's threads wait for each other by spinning, up to a millisecond: when another program holds a core, a training
        # step then takes up to 20 times as long. A shorter spin costs 3% on a free machine. torch reads this when it is imported.
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(
                    encoding="utf-8", errors="replace"
                )  # a Windows console may be set to anything
        try:
            return main(argv) or 0
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:  # the reader of our output, `head` perhaps, has had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except (
            UserError,
            OSError,
        ) as error:  # OSError: a path that can be none, a folder that went away
            if "--debug" in argv:
                traceback.print_exc()
            told = (
                error
                if isinstance(error, UserError) or not error.filename
                else f"{error.filename}: {error.strerror}"
            )
            print(f"error: {told}", file=sys.stderr)
            return 2

    return run
