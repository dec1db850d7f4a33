"""Text as HTML that shows it and nothing else, in both languages."""

from __future__ import annotations

from html import escape

VISIBLE = (
    {c: 0x2400 + c for c in range(32) if c not in b"\t\n"}
    | {127: 0x2421}
    | dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000)], 0xFFFD)
)


def escape_html(value: object) -> str:
    """Any text as HTML that shows it: control characters as signs, what UTF-8 can't hold as �."""
    return escape(str(value).translate(VISIBLE))


def bilingual(zh: str, en: str) -> str:
    """A label in both languages, of which the page shows one."""
    return (
        escape_html(zh)
        if zh == en
        else f'<span lang="zh">{escape_html(zh)}</span><span lang="en">{escape_html(en)}</span>'
    )


def number(value: object) -> float | None:
    """A number that can be shown and drawn, or None."""
    return (
        float(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15
        else None
    )
