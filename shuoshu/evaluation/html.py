"""Values for HTML pages: escaped text, labels in Chinese and English, numbers."""

from __future__ import annotations

from html import escape

# str.translate: control characters become visible signs, what UTF-8 can't encode becomes �.
VISIBLE = {code: 0x2400 + code for code in range(32) if code not in b"\t\n"}
VISIBLE |= {127: 0x2421}
VISIBLE |= dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000)], 0xFFFD)
MAX_NUMBER = 1e15  # larger numbers are neither shown nor drawn


def escape_html(value: object) -> str:
    """Any text as HTML that shows it, control characters included."""
    return escape(str(value).translate(VISIBLE))


def bilingual(zh: str, en: str) -> str:
    """HTML of a label in both languages; the page shows one of them."""
    if zh == en:
        return escape_html(zh)
    return f'<span lang="zh">{escape_html(zh)}</span><span lang="en">{escape_html(en)}</span>'


def finite_number(value: object) -> float | None:
    """The value if it is a number that can be shown and drawn, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < MAX_NUMBER else None
