"""Lists as answers, such as the keywords "a; b; c": recognises them and reads their items."""

from __future__ import annotations

from collections.abc import Sequence

from shuoshu.core.terminal import display_width
from shuoshu.sft.pairs import normalized

# Items are separated by one of these signs, in either width. A comma or 、 also separates the
# parts of a sentence.
SEPARATORS = {";": ";；", "|": "|｜"}
MIN_LISTS = 20
MIN_LIST_SHARE = 0.8  # of the answers
MAX_ITEM_COLUMNS = 60  # display width


def list_separator(answers: Sequence[str]) -> str | None:
    """The sign that separates the items if the answers are lists; None if they aren't.

    A list has two or more short items. Most answers must be lists with the same separator.
    """
    for separator, widths in SEPARATORS.items():
        count = sum(_is_list(answer, separator) for answer in answers)
        if count >= max(MIN_LISTS, MIN_LIST_SHARE * len(answers)):
            return max(widths, key=lambda sign: sum(sign in answer for answer in answers))
    return None


def _is_list(answer: str, separator: str) -> bool:
    items = list_items(answer, separator)
    return len(items) >= 2 and all(display_width(item) <= MAX_ITEM_COLUMNS for item in items)


def list_items(answer: str, separator: str) -> list[str]:
    """The items of a list in their order, each once, without empty ones.

    Differences in width, case and white space are removed, and a full stop at an item's end.
    """
    # A list may end with a full stop, whichever item is its last.
    items = normalized(answer).split(normalized(separator))
    items = (item.rstrip(" .。").strip() for item in items)
    return list(dict.fromkeys(item for item in items if item))
