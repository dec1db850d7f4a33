"""The flags, types and checks that the command line derives from a settings dataclass."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import reprlib
import types
import typing
from collections.abc import Sequence

NOT_UTF8 = re.compile("[\0\ud800-\udfff]")  # NUL, and how Python spells undecodable bytes
MAX_BITS = 2000  # Python refuses to print much larger numbers
MAX_COUNT = 1 << 53  # JSON readers keep whole numbers exact up to here
MAX_SEED = (1 << 63) - 1  # torch's generators take no larger seed
DEVICE_HELP = "auto, cpu, cuda, cuda:1 or mps; auto: a GPU if there is one"
BASE_HELP = "folder of the model below an adapter (none: where it was when the adapter was trained)"
THREADS_HELP = "number of CPU threads (none: one per core)"
DTYPES = ("auto", "float32", "bfloat16", "float16")
BOOLS = dict.fromkeys(("true", "yes", "1", "on"), True)
BOOLS |= dict.fromkeys(("false", "no", "0", "off"), False)


def setting(default: object, help: str, **checks: object) -> typing.Any:
    """A dataclass field with its help and its checks.

    Checks: low, high, choices; any_bytes: accepts undecodable bytes. alias: the flag's name if it
    isn't the field's; positional: takes the arguments that are not flags. overrides: other settings
    that this one unsets if it comes from a later layer.
    """
    return dataclasses.field(default=default, metadata={"help": help, **checks})


def count(default: int | None, help: str, high: int = MAX_COUNT) -> typing.Any:
    """A setting that counts something: 1 or more."""
    return setting(default, help, low=1, high=high)


def number(default: float | None, help: str, low: float = 0.0, **checks: float) -> typing.Any:
    """A setting with a number that is not negative."""
    return setting(default, help, low=low, **checks)


def random_seed(help: str) -> typing.Any:
    """The seed of a command; the default is nanoGPT's."""
    return setting(1337, help, low=0, high=MAX_SEED)


class Settings:
    """Base class of the settings dataclasses."""

    # Names set by a flag, a config file that the user named, or a saved run. Not a dataclass field:
    # it is never saved.
    given: frozenset[str] = frozenset()

    def problems(self) -> list[str]:
        """Messages about settings that don't fit each other."""
        return []


class Schema:
    """The flags, types and checks of a settings dataclass."""

    def __init__(self, cls: type) -> None:
        self.cls = cls
        self.fields = {field.name: field for field in dataclasses.fields(cls)}
        self.types = typing.get_type_hints(cls)
        self.positional: str | None = None
        self.names: dict[str, str] = {}  # flag → field name
        for name, field in self.fields.items():
            if not field.metadata.get("positional"):
                self.names[self.flag(name)] = name
            elif self.positional is None:
                self.positional = name

    def flag(self, name: str) -> str:
        return self.fields[name].metadata.get("alias", name)

    def unknown(self, where: str, key: str) -> str:
        """The message about a name that is not a setting."""
        message = f"{where}: there is no such setting"
        if hint := getattr(self.cls, "REPLACED_BY", {}).get(key):
            return f"{message} here; {hint}"
        near = difflib.get_close_matches(key, self.names, 1, 0.6)
        return message + (f" - did you mean {near[0]}?" if near else "")

    def override(self, values: dict, layer: dict) -> None:
        """Updates `values` with a later layer. A run length in it replaces any earlier one."""
        for name, value in layer.items():
            if value is not None:
                for other in self.fields[name].metadata.get("overrides", ()):
                    values.pop(other, None)
        values.update(layer)

    def saved_values(self, base: dict, problems: list[str]) -> dict[str, object]:
        """The settings of a saved run that still exist; wrong types go to `problems`."""
        values = {}
        for name, value in base.items():
            if name not in self.fields or name == self.positional:
                continue
            kind, optional = unwrap_optional(self.types[name])
            is_int = type(value) is int and kind is float
            if is_int or type(value) is kind or (value is None and optional):
                values[name] = value
            else:
                problems.append(
                    f"{name} = {value!r} in the saved settings should be {self.type_name(name)}"
                )
        return values

    def split(
        self, argv: Sequence[str], problems: list[str]
    ) -> tuple[dict[str, list[str]], list[str], bool]:
        """Splits argv into {field name: [texts]}, the other arguments, and whether --help is there.

        A flag is `--key=value`, `--key value`, or `--key` alone for a bool.
        """
        flags: dict[str, list[str]] = {}
        arguments: list[str] = []
        tokens = list(argv)
        wants_help = False
        while tokens:
            token = tokens.pop(0)
            if token in ("--help", "-h"):
                wants_help = True
            elif token == "--debug":
                pass  # read by `command`
            elif not token.startswith("--"):
                arguments.append(token)
            else:
                key, equals, text = token[2:].partition("=")
                name = self.names.get(key.replace("-", "_"))
                if name is None:
                    problems.append(self.unknown(f"--{key}", key.replace("-", "_")))
                    if not equals and tokens and not tokens[0].startswith("--"):
                        tokens.pop(0)  # its value: one message is enough
                    continue
                if not equals:
                    text = self._following_value(name, tokens)
                    if text is None:
                        problems.append(f"--{key} needs a value: --{key}=...")
                        continue
                flags.setdefault(name, []).append(text)
        return flags, arguments, wants_help

    def _following_value(self, name: str, tokens: list[str]) -> str | None:
        """Takes the value of a flag without `=` from the tokens after it; None if there is none."""
        if self.types[name] is bool and not (tokens and tokens[0].lower() in BOOLS):
            return "true"
        if tokens and not (tokens[0].startswith("--") and len(tokens[0]) > 2):
            return tokens.pop(0)
        return None

    def flag_values(self, flags: dict[str, list[str]], problems: list[str]) -> dict[str, object]:
        """The flags' values by field name; texts that can't be read go to `problems`."""
        values = {}
        for name, texts in flags.items():
            try:
                value = from_text(texts, self.types[name])
            except ValueError as error:
                problems.append(f"--{self.flag(name)}: {error}")
                continue
            if str(value).lower() in self.fields[name].metadata.get("choices", ()):
                value = value.lower()
            values[name] = value
        return values

    def config_value(self, name: str, value: object) -> object:
        """A config file's value in the setting's type; ValueError says what is wrong with it."""
        kind, optional = unwrap_optional(self.types[name])
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise ValueError(f" is a number of {value.bit_length():,} bits")
        if isinstance(value, int) and not isinstance(value, bool) and kind is float:
            value = float(value) if abs(value) < 1e300 else math.inf
        if isinstance(value, bool) and "true" in self.fields[name].metadata.get("choices", ()):
            value = str(value).lower()
        if isinstance(value, (list, tuple)) and typing.get_origin(kind) is tuple:
            value = tuple(value)
        elif not (value is None and optional) and type(value) is not kind:
            raise ValueError(
                f" = {reprlib.repr(value)} should be {self.type_name(name)},"
                f" not {type(value).__name__}"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f" = {value} is not a finite number")
        return value

    def type_name(self, name: str) -> str:
        """The setting's type in words."""
        kind, optional = unwrap_optional(self.types[name])
        words = {int: "a whole number", float: "a number", bool: "True or False"}
        words[str] = "a text in quotes"
        return words.get(kind, "a list of texts") + (" or None" if optional else "")

    def out_of_bounds(self, name: str, value: object) -> str | None:
        """Why the value is not allowed; None if it is."""
        checks = self.fields[name].metadata
        if value is None:
            return None
        if value == "":
            return "must not be empty"
        texts = value if isinstance(value, tuple) else (value,)
        if not checks.get("any_bytes") and any(
            isinstance(text, str) and NOT_UTF8.search(text) for text in texts
        ):
            return "is not UTF-8 (rename a file with such a name, or name its folder instead)"
        if isinstance(value, float) and not math.isfinite(value):
            return "is not a finite number"
        if "choices" in checks and value not in checks["choices"]:
            near = difflib.get_close_matches(str(value), checks["choices"], 1)
            hint = f" - did you mean {near[0]}?" if near else ""
            return f"must be one of {', '.join(checks['choices'])}{hint}"
        if "low" in checks and value < checks["low"]:
            return f"must be at least {checks['low']}"
        if "high" in checks and value > checks["high"]:
            return f"must be at most {checks['high']}"
        return None


def unwrap_optional(kind: object) -> tuple[object, bool]:
    """int | None → (int, True); int → (int, False)."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return next(part for part in typing.get_args(kind) if part is not type(None)), True
    return kind, False


# ---------------------------------------------------------------- values


def from_text(texts: list[str], kind: object) -> object:
    """The value of a flag: a tuple of all its texts, or the last one as `kind`; else ValueError."""
    kind, optional = unwrap_optional(kind)
    if typing.get_origin(kind) is tuple:
        return tuple(texts)
    text = texts[-1]
    if optional and text.lower() in ("none", ""):
        return None
    if kind is bool:
        if text.lower() not in BOOLS:
            raise ValueError(f"{text!r} is neither true nor false")
        return BOOLS[text.lower()]
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
