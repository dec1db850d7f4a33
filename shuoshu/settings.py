"""Settings: dataclass defaults, then config files, then the command line; checked by name and type, all mistakes told at once.

Nothing here imports torch, so that `--help` of any command is instant.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import sys
import traceback
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

HOUSE = Path(__file__).resolve().parent.parent  # the folder of the commands, config/ and the bundled data


class UserError(Exception):
    """A mistake that the user can mend: the message says what, where and how."""


def setting(default: object, help: str, **checks: object) -> typing.Any:
    """A dataclass field that explains itself. Checks: low, high, choices; alias, positional; rivals of which the last one set wins."""
    return dataclasses.field(default=default, metadata={"help": help, **checks})


# ---------------------------------------------------------------- the settings, one dataclass per concern


@dataclass
class ModelSettings:
    """model"""

    n_layer: int = setting(4, "blocks", low=1)
    n_head: int = setting(4, "query heads", low=1)
    n_kv_head: int | None = setting(None, "key and value heads (none: as many as n_head)", low=1)
    n_embd: int = setting(192, "width", low=8)
    head_dim: int | None = setting(None, "width of a head, even (none: n_embd / n_head)", low=2)
    n_hidden: int | None = setting(None, "width inside the MLP (none: 8/3 of n_embd, rounded up to 64)", low=1)
    block_size: int = setting(256, "context length in tokens", low=8)
    dropout: float = setting(0.0, "dropout on embeddings and on each block's two outputs", low=0.0, high=0.95)
    tie_embeddings: bool = setting(False, "one matrix for the embedding and the head (saves parameters; worse on small vocabularies)")
    rope_theta: float = setting(10000.0, "base of the rotary positions", low=1.0)

    def problems(self) -> list[str]:
        found = []
        if self.n_kv_head and self.n_head % self.n_kv_head:
            found.append(f"n_head={self.n_head} must be a multiple of n_kv_head={self.n_kv_head}")
        if not self.head_dim and (self.n_embd % self.n_head or self.n_embd // self.n_head % 2):
            found.append(f"n_embd={self.n_embd} must be an even multiple of n_head={self.n_head} (or set head_dim)")
        if self.head_dim and self.head_dim % 2:
            found.append(f"head_dim={self.head_dim} must be even")
        return found


@dataclass
class OptimSettings:
    """optimiser"""

    optimizer: str = setting("muon", "muon: Muon for the block matrices, AdamW for the rest; adamw: AdamW alone", choices=("muon", "adamw"))
    learning_rate: float | None = setting(None, "rate of the block matrices, with adamw of everything (none: 0.02 muon, 0.001 adamw)", low=0.0)
    embedding_lr: float | None = setting(None, "AdamW's rate for the embedding beside Muon (none: 0.1, tied 0.008)", low=0.0)
    head_lr: float = setting(0.004, "AdamW's rate for an untied head beside Muon", low=0.0)
    gain_lr: float = setting(0.004, "AdamW's rate for the norms' gains beside Muon", low=0.0)
    beta1: float = setting(0.8, "AdamW's first beta", low=0.0, high=0.9999)
    beta2: float = setting(0.95, "AdamW's second beta", low=0.0, high=0.99999)
    weight_decay: float = setting(0.0, "decoupled decay of every matrix, times its rate", low=0.0)
    grad_clip: float = setting(1.0, "largest gradient norm (0: no clipping)", low=0.0)
    schedule: str = setting("wsd", "wsd: warm-up, stable, linear decay; cosine; constant", choices=("wsd", "cosine", "constant"))
    warmup_iters: int = setting(10, "steps of linear warm-up", low=0)
    decay_fraction: float = setting(0.5, "share of the run that wsd spends decaying", low=0.0, high=1.0)
    min_lr_fraction: float = setting(0.02, "the last rate as a share of the full one", low=0.0, high=1.0)


@dataclass
class DataSettings:
    """data"""

    dataset: str = setting("novella", "a folder that prepare.py made, or its name under data/")
    batch_size: int = setting(16, "rows that go through the model at once", low=1)
    gradient_accumulation_steps: int = setting(1, "batches per step, over all processes", low=1)
    seed: int = setting(1337, "of the data's order, the initial weights and dropout", low=0)


LENGTHS = ("max_iters", "max_epochs", "max_minutes")


@dataclass
class RunSettings:
    """run"""

    out_dir: str = setting("out-pretrain", "the folder of the model, its checkpoints, log and curves")
    init_from: str = setting("scratch", "scratch, or the out-dir whose weights to start from")
    max_iters: int | None = setting(None, "length in steps", low=1, rivals=LENGTHS)
    max_epochs: float | None = setting(None, "length in passes over the data", low=0.001, rivals=LENGTHS)
    max_minutes: float | None = setting(None, "length in minutes, evaluation and saving included (none of the three: 10 minutes)", low=0.01, rivals=LENGTHS)
    eval_interval: int | None = setting(None, "steps between evaluations (none: a tenth of the run)", low=1)
    eval_tokens: int | None = setting(None, "validate on the first N tokens only (none: on all)", low=1)
    patience: int | None = setting(None, "stop after so many evaluations without a better one", low=1)
    save_interval: int | None = setting(None, "steps between checkpoints (none: at every evaluation)", low=1)
    log_interval: int = setting(10, "steps between lines of log.jsonl", low=1)
    sample_prompt: str | None = setting(None, "what every evaluation continues into samples.md (none: how the validation text begins)")
    sample_tokens: int = setting(100, "length of that sample", low=0)
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps")
    dtype: str = setting("auto", "auto: bf16 where it is faster, else fp16 on older GPUs, else fp32", choices=("auto", "float32", "bfloat16", "float16"))
    compile: str = setting("auto", "torch.compile; auto: on CUDA with Triton", choices=("auto", "true", "false"))
    threads: int | None = setting(None, "CPU threads (none: all cores)", low=1)
    resume: bool = setting(False, "go on from the newest valid checkpoint in out_dir")
    overwrite: bool = setting(False, "delete an earlier run in out_dir first")
    dry_run: bool = setting(False, "print size, memory, time and disk, and stop")

    def problems(self) -> list[str]:
        given = [name for name in LENGTHS if getattr(self, name) is not None]
        if len(given) > 1:
            return [f"{' and '.join(given)} are both set: choose one length, and set the other to none"]
        return ["resume and overwrite exclude each other"] if self.resume and self.overwrite else []


@dataclass
class TrainSettings(RunSettings, DataSettings, OptimSettings, ModelSettings):
    configs: tuple[str, ...] = setting((), "config/FILE.py", positional=True)


@dataclass
class PrepareSettings:
    """prepare"""

    inputs: tuple[str, ...] = setting((), "FILE|FOLDER", positional=True)
    out: str | None = setting(None, "the folder to write (none: data/<stem of the first input>)")
    tokenizer: str = setting("bpe", "bpe: trained on your text; chars: one token per character; gpt2; or a folder with a tokenizer.json")
    vocab_size: int | None = setting(None, "entries of the vocabulary (none: by the size of the text; chars: every character)", low=300, high=1_000_000)
    val_fraction: float = setting(0.05, "share of each book's end kept for validation, cut at a chapter (0: none)", low=0.0, high=0.9)
    seed: int = setting(1337, "of the sample that the tokenizer is trained on", low=0)
    threads: int | None = setting(None, "CPU threads (none: all cores)", low=1)


@dataclass
class SampleSettings:
    """sampling"""

    start: tuple[str, ...] = setting((), "the text to continue, or FILE:prompt.txt; may be given several times (none: standard input, else a new text)")
    out_dir: str | None = setting(None, "the model's folder (none: the newest of out-sft, out-pretrain)")
    num_samples: int = setting(1, "texts per prompt", low=1)
    max_new_tokens: int = setting(300, "longest continuation in tokens", low=1)
    temperature: float = setting(0.8, "0: the likeliest token every time; 1: as the model believes", low=0.0, high=100.0)
    top_k: int | None = setting(200, "choose among the k likeliest tokens (none: all)", low=1)
    top_p: float = setting(1.0, "choose among the likeliest tokens that hold this share of probability", low=0.0, high=1.0)
    min_p: float = setting(0.0, "drop tokens less likely than this share of the likeliest", low=0.0, high=1.0)
    repetition_penalty: float = setting(1.0, "above 1: what stands in the context already becomes less likely", low=0.01, high=100.0)
    stop: tuple[str, ...] = setting((), "end a text before this string; may be given several times")
    seed: int = setting(1337, "same seed, same text", low=0)
    infile: str | None = setting(None, "a .csv, .txt (a prompt per line) or .jsonl of prompts, for --out", alias="in")
    outfile: str | None = setting(None, "the file to write the answers to, beside their prompts", alias="out")
    batch_size: int = setting(16, "texts generated side by side", low=1)
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps")
    dtype: str = setting("auto", "auto: bf16 on CUDA, else fp32", choices=("auto", "float32", "bfloat16", "float16"))
    threads: int | None = setting(None, "CPU threads (none: all cores)", low=1)


# ---------------------------------------------------------------- reading them


def parse(cls: type, argv: Sequence[str], about: str, base: dict | None = None, default_config: str | None = None) -> typing.Any:
    """The settings that `argv` asks for, on top of `base` (a saved run's) and config files; UserError lists every mistake."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    by_flag = {f.metadata.get("alias", name): name for name, f in fields.items() if not f.metadata.get("positional")}
    kinds = typing.get_type_hints(cls)
    positional = next((name for name, f in fields.items() if f.metadata.get("positional")), None)
    problems: list[str] = []
    values = {name: value for name, value in (base or {}).items() if name in fields and name != positional}

    flags, rest, wants_help = _split(argv, by_flag, kinds, problems)
    if rest and not positional:
        problems.append(f"don't know what to do with {rest[0]!r}: settings are given as --key=value")
    if positional == "configs":
        rest = rest or ([default_config] if default_config else [])
        for path in rest:
            _lay_over(values, _read_config(Path(path), by_flag, kinds, fields, problems), fields)
    given = {}
    for name, texts in flags.items():
        try:
            given[name] = _from_text(texts, kinds[name])
        except ValueError as error:
            problems.append(f"--{_flag(fields[name])}: {error}")
    _lay_over(values, given, fields)
    if positional:
        values[positional] = tuple(rest)
    for name, value in values.items():
        if name != positional and (wrong := _out_of_bounds(value, fields[name].metadata)):
            problems.append(f"{_flag(fields[name])}={value}: {wrong}")
    if wants_help:
        print(_help(cls, values, about))
        raise SystemExit(0)
    if not problems:
        settings = cls(**values)
        problems = [text for part in cls.__mro__ if "problems" in vars(part) for text in part.problems(settings)]
    if problems:
        raise UserError("\n".join(problems) + "\n(--help lists every setting)")
    return settings


def _lay_over(values: dict, layer: dict, fields: dict) -> None:
    """A later layer's settings over an earlier one's; a length it sets replaces the earlier length, whichever kind that was."""
    for name, value in layer.items():
        for rival in fields[name].metadata.get("rivals", ()) if value is not None else ():
            if rival not in layer:
                values.pop(rival, None)
    values.update(layer)


def _split(argv: Sequence[str], by_flag: dict[str, str], kinds: dict, problems: list[str]) -> tuple[dict[str, list[str]], list[str], bool]:
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
                problems.append(_unknown(f"--{key}", key.replace("-", "_"), by_flag))
                if not equals and tokens and not tokens[0].startswith("-"):
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


_BOOLS = {"true": True, "yes": True, "1": True, "on": True, "false": False, "no": False, "0": False, "off": False}


def _from_text(texts: list[str], kind: object) -> object:
    """The value that the command line's text means for a setting of this type."""
    kind, optional = _inner(kind)
    if typing.get_origin(kind) is tuple:
        return tuple(texts)
    text = texts[-1]
    if optional and text.lower() == "none":
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
                raise ValueError(f"{text!r} is not a whole number") from None
            return int(number)
    return _number(text) if kind is float else text


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is not a finite number")
    return number


def _inner(kind: object) -> tuple[object, bool]:
    """int | None → (int, True)."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return next(part for part in typing.get_args(kind) if part is not type(None)), True
    return kind, False


def _read_config(path: Path, by_flag: dict[str, str], kinds: dict, fields: dict, problems: list[str]) -> dict[str, object]:
    """The assignments of a config file, checked by name and type."""
    if not path.is_file() and (HOUSE / path).is_file():
        path = HOUSE / path
    namespace: dict[str, object] = {}
    try:
        source = path.read_text(encoding="utf-8-sig")
        exec(compile(source, str(path), "exec"), namespace)
    except (OSError, UnicodeDecodeError) as error:
        near = difflib.get_close_matches(path.stem, [p.stem for p in (HOUSE / "config").glob("*.py")], 1, 0.5)
        hint = f" - did you mean config/{near[0]}.py?" if near else f" (the house's own: {', '.join(sorted(p.name for p in (HOUSE / 'config').glob('*.py')))})"
        problems.append(f"can't read the config file {path}: {getattr(error, 'strerror', None) or error}{hint}")
        return {}
    except SyntaxError as error:
        problems.append(f"{path}, line {error.lineno}: {error.msg}: a config file holds plain Python assignments, key = value")
        return {}
    except Exception as error:
        problems.append(f"{path}: {type(error).__name__}: {error}")
        return {}
    values = {}
    for key, value in namespace.items():
        if key.startswith("_") or isinstance(value, types.ModuleType) or callable(value):
            continue
        name = by_flag.get(key)
        if name is None:
            problems.append(_unknown(f"{path}: {key}", key, by_flag))
            continue
        kind, optional = _inner(kinds[name])
        if isinstance(value, int) and not isinstance(value, bool) and kind is float:
            value = float(value)
        if isinstance(value, bool) and "true" in fields[name].metadata.get("choices", ()):
            value = str(value).lower()
        if isinstance(value, (list, tuple)) and typing.get_origin(kind) is tuple:
            value = tuple(value)
        elif not (value is None and optional) and type(value) is not kind:
            problems.append(f"{path}: {key} = {value!r} should be {_kind_name(kinds[name])}, not {type(value).__name__}")
            continue
        if isinstance(value, float) and not math.isfinite(value):
            problems.append(f"{path}: {key} = {value} is not a finite number")
            continue
        values[name] = value
    return values


def _out_of_bounds(value: object, checks: typing.Mapping) -> str | None:
    if value is None:
        return None
    if "choices" in checks and value not in checks["choices"]:
        near = difflib.get_close_matches(str(value), checks["choices"], 1)
        return f"must be one of {', '.join(checks['choices'])}" + (f" - did you mean {near[0]}?" if near else "")
    if "low" in checks and value < checks["low"]:
        return f"must be at least {checks['low']}"
    if "high" in checks and value > checks["high"]:
        return f"must be at most {checks['high']}"
    return None


def _unknown(where: str, key: str, by_flag: dict[str, str]) -> str:
    near = difflib.get_close_matches(key, by_flag, 1, 0.6)
    return f"{where}: there is no such setting" + (f" - did you mean {near[0]}?" if near else "")


def _flag(field: dataclasses.Field) -> str:
    return field.metadata.get("alias", field.name)


def _kind_name(kind: object) -> str:
    inner, optional = _inner(kind)
    names = {int: "a whole number", float: "a number", bool: "True or False", str: "a text in quotes"}
    return names.get(inner, "a list of texts") + (" or None" if optional else "")


def _help(cls: type, values: dict, about: str) -> str:
    """Every key with its value here and its meaning, grouped by concern."""
    lines = [about.strip()]
    for part in reversed(cls.__mro__):
        own = [f for f in dataclasses.fields(cls) if f.name in vars(part).get("__annotations__", {}) and not f.metadata.get("positional")]
        if own:
            lines += ["", (part.__doc__ or part.__name__).strip()]
        for field in own:
            value = values.get(field.name, field.default)
            shown = "..." if value == () else str(value).lower() if value is None or isinstance(value, bool) else str(value)
            choices = f" [{'|'.join(field.metadata['choices'])}]" if "choices" in field.metadata else ""
            lines.append(f"  {f'--{_flag(field)}={shown}':<34} {field.metadata['help']}{choices}")
    lines += ["", "  --debug                            show the traceback of an error"]
    return "\n".join(lines)


def command(main: Callable[[Sequence[str]], None]) -> Callable[..., int]:
    """Makes `main(argv)` a command: a user's mistake is one message and exit code 2; the second Ctrl-C is 130."""

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        argv = list(sys.argv[1:] if argv is None else argv)
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(encoding="utf-8", errors="replace")  # a Windows console may be set to anything
        try:
            return main(argv) or 0
        except UserError as error:
            if "--debug" in argv:
                traceback.print_exc()
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    return run
