"""Renders a chat template in a process of its own, whose time and memory are limited.

A template is a program that came with a downloaded folder. Jinja2's sandbox keeps it from files and
from Python's insides, but not from looping forever or from filling the memory.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_SECONDS = 2  # real templates take milliseconds
MEMORY_BYTES = 1 << 29
MAX_RENDERED = 1_000_000  # of one rendering, which holds no contents of messages


class GenerationBlock(Extension):
    """{% generation %} … {% endgeneration %} renders its body; it marks answers for other tools."""

    tags = {"generation"}  # noqa: RUF012, Jinja2's interface

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def sandbox() -> ImmutableSandboxedEnvironment:
    """The environment in which transformers renders chat templates.

    It has no `strftime_now`: with today's date in them, rows would change from day to day.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols]
    )

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: object, ensure_ascii: bool = False, **options: object) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment.globals["raise_exception"] = raise_exception
    environment.filters["tojson"] = to_json  # Jinja2's own escapes HTML
    return environment


def limit_resources() -> None:
    """Limits this process, as far as the system can (Windows can't, macOS not the memory)."""
    try:
        import resource
    except ImportError:
        return
    for name, limit in (("CPU", CPU_SECONDS), ("AS", MEMORY_BYTES), ("CORE", 0)):
        with suppress(AttributeError, OSError, ValueError):  # ValueError: a lower limit is set
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))


def render_all(source: str, variables: dict, requests: list) -> list[dict[str, str]]:
    """{"text": …} or {"error": …} for each request, a pair (messages, add_generation_prompt)."""
    try:
        template = sandbox().from_string(source)
    except (TemplateSyntaxError, RecursionError, MemoryError) as error:
        return [{"error": f"it can't be read: {explain(error)}"}] * len(requests)
    return [_render(template, variables, *request) for request in requests]


def _render(template: Template, variables: dict, messages: list, asks: bool) -> dict[str, str]:
    pieces, length = [], 0
    try:
        for piece in template.generate(
            **variables,
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=asks,
            enable_thinking=False,
        ):
            pieces.append(piece)
            length += len(piece)
            if length > MAX_RENDERED:
                raise MemoryError
    except Exception as error:  # a template can raise anything that Python can
        return {"error": explain(error)}
    return {"text": "".join(pieces)}


def explain(error: Exception) -> str:
    """What a message says about an exception from a template."""
    if isinstance(error, SecurityError):
        return f"it reaches for what a template may not use ({error})"
    if isinstance(error, MemoryError):
        return "it writes too much or needs too much memory"
    return f"{type(error).__name__}: {error}"[:300]


def main() -> None:
    """Reads [template, variables, requests] from standard input, writes the results."""
    limit_resources()
    json.dump(render_all(*json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main()
